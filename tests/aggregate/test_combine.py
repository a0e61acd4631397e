"""`DPCombinePerKey` and `DPCombineGlobally`: exact sums, noise after the combine, and what they refuse."""

from __future__ import annotations

import math
import pickle
import random
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import trigger, window
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp import (
    Bounds,
    Budget,
    DPCombineGlobally,
    DPCombinePerKey,
    LaplaceCount,
    LaplaceMean,
    LaplaceSum,
    Ledger,
    PrivateSelection,
)
from beam_dp.aggregate.combine import LaplaceCombineFn
from beam_dp.aggregate.statistics import LIMB_BITS, QUANTISED_BITS
from beam_dp.errors import ArgumentError, GrantError

# So large that the noise of counts is 0 but once in e^100, and that of sums and means below a tenth.
QUIET = Budget(epsilon=400)
ONE = Bounds(partitions=1, rows_per_partition=1)


def run(make: Any) -> Ledger:
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        make(p)
    return ledger


def exact(fn: LaplaceCombineFn, accumulator: Any) -> tuple[int, list[int]]:
    """Rows and integers of an accumulator, past the grant that the product asks for."""
    rows, sums, waiting = fn.compact(accumulator)
    assert not waiting
    return rows, sums


VALUES = st.lists(
    st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.integers(-(2**80), 2**80), st.none(), st.text()),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(values=VALUES, seed=st.integers(0, 2**32 - 1))
def test_any_tree_of_merges_adds_up_the_same_integers(values: list[Any], seed: int) -> None:
    fn = LaplaceMean(-3, 5)
    whole = fn.create_accumulator()
    for value in values:
        whole = fn.add_input(whole, (value,))
    shuffled = random.Random(seed)
    parts = [fn.create_accumulator() for _ in range(4)]
    for value in values:
        fn.add_input(shuffled.choice(parts), (value,))
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]
    merged = fn.merge_accumulators([fn.merge_accumulators(parts[:2]), *parts[2:]])
    assert exact(fn, merged) == exact(fn, whole)
    rows, (count, high, low) = exact(fn, whole)
    numbers = [v for v in values if isinstance(v, (int, float)) and not (isinstance(v, float) and math.isnan(v))]
    numbers += [float(v) for v in values if isinstance(v, str) and _is_float(v)]
    assert (rows, count) == (len(values), len(numbers))
    expected = sum((min(max(v, -3), 5) - 1) / 4 for v in numbers) * 2**QUANTISED_BITS
    assert abs(high * 2**LIMB_BITS + low - expected) <= len(numbers)


def _is_float(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def test_public_keys_are_all_there_and_no_others() -> None:
    pairs = [("a", 2), ("a", 900), ("b", 1), ("secret", 5), ("b", None), ("b", math.nan)]

    def make(p: beam.Pipeline) -> None:
        rows = p | beam.Create(pairs)
        for name, fn, expected in (
            ("count", LaplaceCount(), [("a", 2), ("b", 3), ("zz", 0)]),
            ("sum", LaplaceSum(0, 10), [("a", 12), ("b", 1), ("zz", 0)]),
            ("mean", LaplaceMean(0, 10), [("a", 6), ("b", 1), ("zz", 5)]),
        ):
            out = rows | name >> DPCombinePerKey(fn, bounds=ONE, budget=QUIET, public_keys=["a", "zz", "b", "a"])
            assert_that(out | f"round {name}" >> beam.MapTuple(_rounded), equal_to(expected), label=f"check {name}")

    run(make)


def _rounded(key: str, value: float) -> tuple[str, int]:
    return key, round(value)


def test_selection_keeps_keys_by_the_least_number_of_units_that_their_values_need() -> None:
    # Ten values a unit: 50 values are at least 5 units, which the pre-threshold never keeps; 61 are at least 7, of
    # which the first two beyond the threshold are kept for sure at this epsilon.
    pairs = [("few", 1)] * 50 + [("many", 1)] * 61
    bounds = Bounds(partitions=2, rows_per_partition=10)
    select = PrivateSelection(pre_threshold=6)

    def make(p: beam.Pipeline) -> None:
        out = (
            p
            | beam.Create(pairs)
            | DPCombinePerKey(LaplaceCount(), bounds=bounds, budget=Budget(1600, 0.5), selection=select)
        )
        assert_that(out, equal_to([("many", 61)]))

    run(make)


def test_globally_gives_one_value_also_of_nothing() -> None:
    def make(p: beam.Pipeline) -> None:
        values = p | beam.Create([3.0, 4.0, 80.0])
        out = values | DPCombineGlobally(LaplaceSum(0, 10), rows_per_unit=2, budget=QUIET)
        assert_that(out | beam.Map(round), equal_to([17]))
        nothing = p | "nothing" >> beam.Create([])
        none = nothing | "count" >> DPCombineGlobally(LaplaceCount(), rows_per_unit=2, budget=QUIET)
        assert_that(none, equal_to([0]), label="none")

    run(make)


def test_the_noise_has_the_scale_of_the_bounds() -> None:
    keys = [f"k{i}" for i in range(4000)]

    def make(p: beam.Pipeline) -> None:
        out = (
            p
            | beam.Create([("k0", 1)])
            | DPCombinePerKey(
                LaplaceCount(), bounds=Bounds(partitions=3, rows_per_partition=2), budget=Budget(2), public_keys=keys
            )
        )
        assert_that(out | beam.Values() | beam.combiners.ToList(), has_scale_three)

    run(make)


def has_scale_three(lists: list[list[int]]) -> None:
    (noise,) = lists
    # Standard deviation of the discrete Laplace law of scale 3 is 4.22; that of its estimate from 4,000 is about 0.08.
    assert len(noise) == 4000
    assert 3.8 < np.std(noise) < 4.65
    assert abs(np.mean(noise)) < 0.35


def test_the_ledger_says_that_nothing_enforces_the_bounds() -> None:
    def make(p: beam.Pipeline) -> None:
        _ = (
            p
            | beam.Create([("a", 1)])
            | DPCombinePerKey(
                LaplaceMean(0, 10),
                bounds=Bounds(partitions=2, rows_per_partition=3),
                budget=Budget(1, 1e-6),
                selection=PrivateSelection(),
                privacy_unit="patient",
            )
        )

    ledger = run(make)
    assert [entry.label.split("/", 1)[1] for entry in ledger.entries] == [
        "selection",
        "mean_value/values",
        "mean_value/centred_sum",
    ]
    for entry in ledger.entries:
        assert entry.parameters["bounds"]["hold"] == "as the caller declares: nothing enforces it"
        assert entry.guarantee.privacy_unit == "patient"
    total = ledger.total()["central"]
    assert (total["epsilon"], total["delta"]) == (1.0, 1e-6)


@pytest.mark.parametrize("fn", [LaplaceCount(), LaplaceSum(0, 1), LaplaceMean(0, 1)])
def test_alone_it_refuses_to_run(fn: LaplaceCombineFn) -> None:
    with pytest.raises(Exception, match="has no grant"), beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | beam.Create([("a", 1.0)]) | beam.CombinePerKey(fn)
    with pytest.raises(GrantError):
        fn.extract_output(fn.create_accumulator())
    with pytest.raises(GrantError):
        fn.setup()


def test_fixed_windows_need_selection_and_multiply_by_the_declared_windows() -> None:
    def windowed(p: beam.Pipeline) -> beam.PCollection:
        timed = p | beam.Create([("a", 5)] * 30 + [("a", 15)] * 20)
        stamped = timed | beam.MapTuple(lambda k, t: window.TimestampedValue((k, 1), t))
        return stamped | beam.WindowInto(window.FixedWindows(10))

    def make(p: beam.Pipeline) -> None:
        out = windowed(p) | DPCombinePerKey(
            LaplaceCount(), bounds=ONE, budget=Budget(1000, 0.5), selection=PrivateSelection(), max_windows=3
        )
        assert_that(out, equal_to([("a", 30), ("a", 20)]))

    assert run(make).total()["central"]["epsilon"] is None  # three times a delta of 0.5 promises nothing
    with pytest.raises(ArgumentError, match="public_keys need the global window"):
        run(lambda p: windowed(p) | DPCombinePerKey(LaplaceCount(), bounds=ONE, budget=QUIET, public_keys=["a"]))


def test_triggers_that_fire_twice_are_refused() -> None:
    early = beam.WindowInto(
        window.GlobalWindows(),
        trigger=trigger.Repeatedly(trigger.AfterCount(1)),
        accumulation_mode=trigger.AccumulationMode.DISCARDING,
    )
    combine = DPCombinePerKey(LaplaceCount(), bounds=ONE, budget=QUIET, public_keys=["a"])
    with pytest.raises(ArgumentError, match="trigger that fires once"):
        run(lambda p: p | beam.Create([("a", 1)]) | early | combine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fn": sum}, "fn must be LaplaceCount"),
        ({"fn": LaplaceCount}, "fn must be LaplaceCount"),
        ({"bounds": 3}, "bounds must be a Bounds, not a positive number"),
        ({"budget": 1.0}, "budget must be a Budget"),
        ({"public_keys": None}, "exactly one of public_keys and selection"),
        ({"selection": PrivateSelection()}, "exactly one of public_keys and selection"),
        ({"public_keys": "abc"}, "public_keys must be a list"),
        ({"public_keys": []}, "public_keys must be a list"),
        ({"public_keys": [["a"]]}, "public_keys must be hashable"),
        ({"public_keys": None, "selection": PrivateSelection()}, "delta must be above 0"),
        ({"max_windows": 0}, "max_windows must be at least 1"),
    ],
)
def test_what_cannot_be_right_is_refused_at_construction(change: dict[str, Any], message: str) -> None:
    arguments = {"fn": LaplaceCount(), "bounds": ONE, "budget": Budget(1), "public_keys": ["a"]} | change
    with pytest.raises(ArgumentError, match=message):
        DPCombinePerKey(arguments.pop("fn"), **arguments)


def test_bounds_of_values_are_checked() -> None:
    with pytest.raises(ArgumentError, match="low must be at most high"):
        LaplaceSum(5, 1)
    with pytest.raises(ArgumentError, match="high must be a finite number"):
        LaplaceMean(0, math.inf)
    with pytest.raises(ArgumentError, match="rows_per_unit must be at least 1"):
        DPCombineGlobally(LaplaceCount(), rows_per_unit=0, budget=QUIET)


def test_without_a_ledger_it_is_refused() -> None:
    with pytest.raises(GrantError, match="no ledger"), beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | beam.Create([("a", 1)]) | DPCombinePerKey(LaplaceCount(), bounds=ONE, budget=QUIET, public_keys=["a"])
