"""`MostFrequent`: counts of distinct units, the exponential mechanism, and one ledger entry of k·epsilon."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from scipy import stats

from beam_dp import Ledger, MostFrequent
from beam_dp.aggregate.frequent import _Choose
from beam_dp.errors import ArgumentError, GrantError


def run(make: Any) -> Ledger:
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        make(p)
    return ledger


def rows_of(counts: dict[Any, int], repeats: int = 1) -> list[dict[str, Any]]:
    """Rows in which so many users have each candidate, each of them ``repeats`` times."""
    return [{"user": u, "item": item} for item, n in counts.items() for u in range(n) for _ in range(repeats)]


def most_frequent(**arguments: Any) -> MostFrequent:
    return MostFrequent("item", privacy_unit="user", **({"candidates": ["a", "b", "c"], "epsilon": 50.0} | arguments))


def test_units_count_once_and_rows_outside_the_candidates_not_at_all() -> None:
    rows = [*rows_of({"a": 12, "b": 9, "other": 50}), *rows_of({"c": 5}, repeats=40), {"user": None, "item": "c"}]

    def make(p: beam.Pipeline) -> None:
        chosen = p | beam.Create(rows) | most_frequent(k=2)
        assert_that(
            chosen | beam.FlatMap(lambda batch: batch.to_pylist()),
            equal_to([{"rank": 1, "item": "a"}, {"rank": 2, "item": "b"}]),
        )

    run(make)


def test_candidates_are_compared_with_what_rows_hold_as_their_own_type() -> None:
    def make(p: beam.Pipeline) -> None:
        chosen = p | beam.Create(rows_of({7: 30, 8: 3})) | most_frequent(candidates=["8", "7"])
        assert_that(chosen | beam.FlatMap(pa.RecordBatch.to_pylist), equal_to([{"rank": 1, "item": "7"}]))

    run(make)


def test_no_rows_at_all_choose_among_all_candidates() -> None:
    def make(p: beam.Pipeline) -> None:
        none = p | beam.Create([]).with_output_types(dict[str, Any])
        ranked = none | most_frequent(k=3) | beam.FlatMap(lambda batch: sorted(batch.column("item").to_pylist()))
        assert_that(ranked, equal_to(["a", "b", "c"]))

    run(make)


def test_the_law_is_that_of_the_exponential_mechanism(rng: np.random.Generator) -> None:
    """exp(ε·count) for monotone scores of sensitivity 1, through what the DoFn draws with."""
    transform = most_frequent(epsilon=0.7)
    scores = np.array([0, 1, 3])
    drawn = [int(transform._mechanism.top_k(scores, 1, rng)[0]) for _ in range(6000)]
    weights = np.exp(0.7 * scores)
    assert stats.chisquare(np.bincount(drawn, minlength=3), 6000 * weights / weights.sum()).pvalue > 1e-4
    halved = np.exp(0.35 * scores)
    assert stats.chisquare(np.bincount(drawn, minlength=3), 6000 * halved / halved.sum()).pvalue < 1e-4


def test_the_ledger_has_k_times_epsilon() -> None:
    ledger = run(lambda p: p | beam.Create(rows_of({"a": 3})) | most_frequent(epsilon=0.25, k=2))
    (entry,) = ledger.entries
    assert (entry.guarantee.epsilon, entry.guarantee.delta, entry.guarantee.privacy_unit) == (0.5, 0.0, "user")
    assert ledger.total()["central"]["epsilon"] == 0.5
    assert entry.parameters == {"candidates": 3, "choices": 2, "sensitivity": {"units_per_candidate": 1}}


def test_a_changed_plan_has_no_grant() -> None:
    ledger = Ledger()
    pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    transform = most_frequent(epsilon=0.25)
    _ = pipeline | beam.Create(rows_of({"a": 3})) | transform
    grant = ledger.record(
        label="other",
        mechanism="m",
        guarantee=ledger.entries[0].guarantee,
        max_applications=1,
        fingerprint="something else",
    )
    with pytest.raises(GrantError, match="another mechanism"):
        _Choose(None, transform._mechanism, 2, transform._plan, grant).setup()  # type: ignore[arg-type]
    with pytest.raises(GrantError, match="has no grant"):
        _Choose(None, transform._mechanism, 2, transform._plan, None).setup()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": []}, "candidates must be a list of one or more"),
        ({"candidates": ["a", None]}, "candidates must be a list of one or more"),
        ({"candidates": [0.5]}, "candidates: .* cannot be a key"),
        ({"candidates": ["a", "a"], "k": 2}, "k must be at most the number of different candidates, 1"),
        ({"k": 0}, "k must be at least 1"),
        ({"epsilon": 0}, "epsilon must be a finite number above 0"),
        ({"input_kind": "str"}, "input_kind must be one of"),
    ],
)
def test_what_cannot_be_right_is_refused_at_construction(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        most_frequent(**change)


def test_windows_are_refused() -> None:
    windowed = beam.WindowInto(window.FixedWindows(10))
    with pytest.raises(ArgumentError, match="needs the global window"):
        run(lambda p: p | beam.Create(rows_of({"a": 3})) | windowed | most_frequent())
