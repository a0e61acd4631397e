"""The transforms that Beam YAML and other languages call, on rows, without either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from apache_beam.typehints.row_type import RowTypeConstraint

from beam_dp import BudgetStore, Limit, resolve_index
from beam_dp.embeddings.broadcast import read_manifest
from beam_dp.errors import ArgumentError, BudgetExceededError
from pipelines.transforms import Aggregate, PrivatizeText, RandomizedResponse

CANARY = "canary-7f3a"
SOLD = {"by": "item", "privacy_unit": "user", "metrics": "count", "max_partitions": 1, "epsilon": 50, "delta": 1e-3}


def apply(transform: beam.PTransform, rows: list[dict[str, Any]], check: Callable[[Any], None], **types: Any) -> None:
    """Runs ``transform`` on rows whose fields are of ``types``, and ``check`` on what it gives."""
    hint = RowTypeConstraint.from_fields(list(types.items()))
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as p:
        check(p | beam.Create([beam.Row(**row) for row in rows]).with_output_types(hint) | "It" >> transform)


def holds(*tests: Callable[[list[Any]], bool]) -> Callable[[Any], None]:
    """A check that every one of ``tests`` is true of the elements."""

    def check(actual: list[Any]) -> None:
        for test in tests:
            assert test(actual), actual

    return lambda outputs: assert_that(outputs, check)


def test_texts_keep_their_rows_and_fields() -> None:
    check = holds(
        lambda rows: sorted(row.id for row in rows) == [1, 2],
        lambda rows: all(len(row.body.split()) == 3 for row in rows),
        lambda rows: all(set(row._asdict()) == {"id", "body"} for row in rows),
    )
    rows = [{"id": n, "body": "where is it", "name": CANARY} for n in (1, 2)]
    transform = PrivatizeText(epsilon=4, text_column="body", keep_columns=["id"])
    apply(transform, rows, check, id=int, body=str, name=str)


def test_rejected_texts_are_an_output_of_reasons() -> None:
    def check(outputs: dict[str, Any]) -> None:
        assert set(outputs) == {"good", "bad"}
        assert_that(outputs["good"], lambda rows: None if len(rows) == 1 else pytest.fail(str(len(rows))), label="good")
        holds(lambda rows: [row._asdict() for row in rows] == [{"reason": "not_text"}])(outputs["bad"])

    rows = [{"text": "where is it"}, {"text": [CANARY]}]
    apply(PrivatizeText(epsilon=4, error_handling={"output": "bad"}), rows, check, text=Any)


def test_rejected_texts_fail_where_nothing_handles_them() -> None:
    with pytest.raises(Exception, match="a row was rejected") as caught:
        apply(PrivatizeText(epsilon=4), [{"text": [CANARY]}], holds(), text=Any)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "handling", [{}, {"output": ""}, {"output": "good"}, {"output": 1}, {"output": "a", "b": 1}, "a"]
)
def test_error_handling_names_one_output(handling: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^error_handling must be 'output: NAME'"):
        PrivatizeText(epsilon=4, error_handling=handling)


def test_groups_are_rows_of_a_schema() -> None:
    def check(outputs: beam.PCollection) -> None:
        fields = dict(outputs.element_type._fields)
        assert fields["item"] is str
        assert list(fields)[:2] == ["item", "count"]
        assert "quantile_price_0_5" in fields
        holds(
            lambda rows: sorted(row.item for row in rows) == ["jam", "tea"],
            lambda rows: all(abs(row.count - 400) < 40 for row in rows),
        )(outputs)

    rows = [{"user": n, "item": "tea" if n % 2 else "jam", "price": n % 10} for n in range(800)]
    sold = SOLD | {"metrics": ["count", "quantiles:price:0:10:0.5"], "max_rows_per_partition": 1}
    apply(Aggregate(**sold), rows, check, user=int, item=str, price=int)


def test_public_groups_of_two_columns() -> None:
    sold = SOLD | {"by": ["shop", "item"], "public_partitions": [["a", "tea"], ["b", "jam"]], "delta": 0}
    rows = [{"user": n, "shop": "a", "item": "tea"} for n in range(200)]
    check = holds(
        lambda rows: sorted((row.shop, row.item) for row in rows) == [("a", "tea"), ("b", "jam")],
        lambda rows: all(abs(row.count - (200 if row.shop == "a" else 0)) < 20 for row in rows),
    )
    apply(Aggregate(**sold), rows, check, user=int, shop=str, item=str)


def test_answers_are_of_the_categories() -> None:
    check = holds(
        lambda rows: sorted(number for number, _ in rows) == list(range(100)),
        lambda rows: {answer for _, answer in rows} == {"no", "yes"},
    )
    rows = [{"id": n, "smokes": CANARY if n % 2 else None} for n in range(100)]
    transform = RandomizedResponse(column="smokes", categories=["no", "yes"], epsilon=1, keep_columns=["id"])
    apply(transform, rows, lambda outputs: check(outputs | beam.Map(_as_pair)), id=int, smokes=str | None)


def _as_pair(row: Any) -> tuple[int, str]:
    return row.id, row.smokes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (PrivatizeText, "epsilon is required"),
        (lambda: PrivatizeText(epsilon="8"), "epsilon must be a finite number above 0, not a value of type str"),
        (lambda: PrivatizeText(epsilon=8, mechanism="laplace"), "mechanism must be one of"),
        (lambda: PrivatizeText(epsilon=8, neighbours=3), "neighbours is not a parameter of multivariate_laplace"),
        (lambda: Aggregate(**SOLD | {"metrics": "sums"}), "^metrics: unknown metric"),
        (lambda: Aggregate(**SOLD | {"metrics": [1]}), "metrics must be a text such as"),
        (lambda: Aggregate(**SOLD | {"max_partitions": 0}), "partitions must be at least 1"),
        (lambda: Aggregate(**SOLD | {"epsilon": -1}), "epsilon must be"),
        (lambda: Aggregate(**SOLD | {"composition": "rdp"}), "composition must be one of"),
        (lambda: Aggregate(**SOLD | {"public_partitions": "tea"}), "public_partitions must be a list"),
        (
            lambda: Aggregate(**SOLD, public_partitions=["tea"], pre_threshold=3),
            "selection and pre_threshold are about",
        ),
    ],
    ids=[
        "no epsilon",
        "epsilon as text",
        "mechanism",
        "parameter",
        "metric",
        "no metric",
        "bounds",
        "negative epsilon",
        "composition",
        "no list",
        "selection of public groups",
    ],
)
def test_what_can_never_work_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_two_transforms_of_a_pipeline_share_a_run_id(tmp_path: Path) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    index = resolve_index(None)
    words = {"metric": read_manifest(index).metric, "index_digest": index.digest}
    store.create(
        "survey",
        Limit(model="local", privacy_unit="user", epsilon=1),
        Limit(model="metric", privacy_unit="word", epsilon=9, **words),
    )
    budget = {"budget_store": store.url, "dataset": "survey", "run_id": "week-7"}
    hint = RowTypeConstraint.from_fields([("smokes", str), ("text", str)])

    def construct() -> beam.Pipeline:
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        rows = pipeline | beam.Create([beam.Row(smokes="no", text="never")]).with_output_types(hint)
        rows | RandomizedResponse(column="smokes", categories=["no", "yes"], epsilon=1, **budget)
        rows | PrivatizeText(epsilon=9, **budget)
        return pipeline

    construct()
    construct().run().wait_until_finish()
    runs = store.account("survey").runs
    assert {name: run.state for name, run in runs.items()} == {
        "week-7.RandomizedResponse": "committed",
        "week-7.PrivatizeText": "committed",
    }
    assert [run.pipeline for run in runs.values()] == ["RandomizedResponse", "PrivatizeText"]
    with pytest.raises(BudgetExceededError, match=r"run week-7\.RandomizedResponse of RandomizedResponse is committed"):
        construct()


def test_a_budget_needs_all_three() -> None:
    transform = RandomizedResponse(column="smokes", categories=["no", "yes"], epsilon=1, dataset="survey")
    with pytest.raises(ArgumentError, match=r"^budget_store is missing: give all of budget_store, dataset, run_id"):
        apply(transform, [{"smokes": "no"}], holds(), smokes=str)
