"""What `Aggregate` refuses, by name, and that neither failures nor successes show data."""

from __future__ import annotations

import datetime
import logging
import traceback
import typing
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from exact import Row, Run, batches_of, declared, private, run

from beam_dp import Ledger
from beam_dp.aggregate import (
    Bounds,
    Budget,
    Count,
    Quantiles,
    Sum,
)
from beam_dp.errors import ArgumentError, GrantError, InputError

DAY = datetime.date(2024, 2, 28)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"by": []}, "by must be one or more different names"),
    ({"by": ["a", "a"]}, "by must be one or more different names"),
    ({"by": [1]}, "by must be one or more different names"),
    ({"by": ""}, "by must be one or more different names"),
    ({"privacy_unit": None}, "privacy_unit must be the name of a column"),
    ({"bounds": (1, 2)}, "bounds must be a Bounds"),
    ({"budget": 1.0}, "budget must be a Budget"),
    ({"metrics": "count"}, "metrics must be a list of metrics"),
    ({"metrics": Count()}, "metrics must be a list of metrics"),
    ({"metrics": [Count]}, "metrics must hold metrics such as Count()"),
    ({"metrics": ["count"]}, "metrics must hold metrics such as Count()"),
    ({"metrics": [Count(), Count()]}, "two columns of the output would be 'count'"),
    ({"metrics": [Sum("v", 0, 1), Sum("v", 0, 2)]}, "two columns of the output would be 'sum_v'"),
    ({"by": "count"}, "two columns of the output would be 'count'"),
    ({"by": "count_ci_low"}, "two columns of the output would be 'count_ci_low'"),
    ({"metrics": [], "partitions": ["a"]}, "metrics must not be empty where the partitions are public"),
    ({"budget": Budget(1)}, "delta must be above 0 for private selection"),
    ({"budget": Budget(1), "noise": "gaussian", "partitions": ["a"]}, "delta must be above 0 for gaussian noise"),
    ({"noise": "normal"}, "noise must be one of laplace, gaussian, not 'normal'"),
    ({"noise": "gaussian", "metrics": [Quantiles("v", 0, 1)]}, "gaussian noise is not offered for quantile_v"),
    ({"buckets": 0}, "buckets must be at least 1"),
    ({"max_windows": 0}, "max_windows must be at least 1"),
    ({"input_kind": "tuple"}, "input_kind must be one of dict, row, record_batch"),
    ({"partitions": []}, "partitions must be a list of one or more public keys"),
    ({"partitions": "abc"}, "partitions must be a list of one or more public keys"),
    ({"partitions": ["a", None]}, "partitions must be a list of one or more public keys"),
    ({"partitions": ["a", 1]}, "partitions must be a list of one or more public keys"),
    ({"partitions": [1.5]}, "partitions: column 'item' holds double, which cannot be a key"),
    ({"partitions": [("a", 1)], "by": ["item", "day", "n"]}, "tuples of 3, for item, day, n"),
    ({"partitions": ["a"], "by": ["item", "day"]}, "tuples of 2, for item, day"),
    ({"partitions": pa.table({"x": ["a"]})}, "partitions lacks one of the columns item"),
    ({"partitions": pa.table({"item": pa.array([], pa.string())})}, "one or more public keys"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_arguments_are_named_at_construction(options: dict[str, Any], message: str) -> None:
    by = options.get("by", "item")
    with pytest.raises(ArgumentError) as failed:
        private(**{name: value for name, value in options.items() if name != "by"} | {"by": by})
    assert message in str(failed.value)


def test_a_pipeline_without_a_ledger_is_refused() -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    rows = pipeline | beam.Create([]).with_output_types(dict[str, Any])
    with pytest.raises(GrantError, match="ledger"):
        rows | private()
    ledger = Ledger()
    rows | "Granted" >> private(ledger=ledger)
    assert [entry.label for entry in ledger.entries] == ["Granted/selection", "Granted/count"]


def test_undeclared_elements_need_input_kind() -> None:
    _, rows = declared(Any)
    with pytest.raises(ArgumentError, match="input_kind must be given"):
        rows | private()
    rows | "said" >> private(input_kind="dict")


class Visit(typing.NamedTuple):
    user: str
    item: str
    v: float


def test_a_declared_row_without_the_column_is_refused_at_construction() -> None:
    _, rows = declared(Visit)
    for options, missing in (({"by": "town"}, "town"), ({"metrics": [Sum("x", 0, 1)]}, "x")):
        message = f"no column '{missing}'; the columns are: user, item, v"
        with pytest.raises(InputError, match=message):
            rows | missing >> private(**options)


SECRET = "xyzzy7secret"
NUMBER = 918273645546372


def batch_with(**columns: pa.Array) -> pa.RecordBatch:
    """A batch that is right, but for some columns, and full of what must not be seen."""
    usual = {
        "user": pa.array([SECRET, SECRET + "2"]),
        "item": pa.array([SECRET, "x"]),
        "v": pa.array([float(NUMBER), 1.0]),
    }
    return pa.RecordBatch.from_pydict(usual | columns)


def rows_with(**fields: Any) -> list[Row]:
    return [{"user": SECRET, "item": SECRET, "v": NUMBER}, {"user": SECRET, "item": SECRET, "v": NUMBER} | fields]


FAILURES: dict[str, tuple[list[Any], str]] = {
    "float key": (
        [batch_with(item=pa.array([float(NUMBER), 1.0]))],
        "column 'item' holds double, which cannot be a key",
    ),
    "float unit": ([batch_with(user=pa.array([float(NUMBER), 1.0]))], "column 'user' holds double"),
    "binary key": ([batch_with(item=pa.array([SECRET.encode(), b"x"]))], "column 'item' holds binary"),
    "nested value": ([batch_with(v=pa.array([[SECRET], ["x"]]))], "column 'v' holds list, but numbers are needed"),
    "dates as numbers": ([batch_with(v=pa.array([DAY, DAY]))], "column 'v' holds date32"),
    "missing column": ([batch_with().select(["user", "item"])], "no column 'v' in the input"),
    "column twice": (
        [pa.RecordBatch.from_arrays([*batch_with().columns, pa.array([SECRET] * 2)], ["user", "item", "v", "user"])],
        "more than one column 'user' in the input",
    ),
    "two types": ([batch_with(), batch_with(user=pa.array([NUMBER, 1]))], "column 'user' holds int64 in some batches"),
    "row without field": ([*rows_with(), {"user": SECRET}], "a row lacks one of the columns 'user', 'item', 'v'"),
    "row of another kind": ([*rows_with(), (SECRET,)], "a row lacks one of the columns"),
    "mixed keys": (rows_with(item=NUMBER), "column 'item' holds keys of several kinds"),
    "mixed dates": (
        [row | {"item": at} for row, at in zip(rows_with(), (DAY, datetime.datetime(2024, 1, 1)), strict=True)],
        "column 'item' holds keys of several kinds",
    ),
    "integer beyond 64 bits": ([row | {"user": NUMBER << 64} for row in rows_with()], "or integers beyond 64 bits"),
    "float keys in rows": ([row | {"item": NUMBER + 0.5} for row in rows_with()], "column 'item' holds double"),
}


def everything_said(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], error: BaseException | None, outcome: Any
) -> str:
    said = [caplog.text, *capfd.readouterr()]
    if error is not None:
        said += traceback.format_exception(error)
    if outcome is not None:
        said.append(str(outcome.metrics().query()))
    return "\n".join(said)


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_say_what_is_wrong_and_never_show_data(
    kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    elements, message = FAILURES[kind]
    caplog.set_level(logging.DEBUG)
    in_batches = isinstance(elements[0], pa.RecordBatch)
    transform = private(metrics=[Count(), Sum("v", 0, 1)], input_kind="record_batch" if in_batches else "dict")
    with pytest.raises(Exception, match=message) as failed:
        run(elements, transform, element_type=pa.RecordBatch if in_batches else Any)
    said = everything_said(caplog, capfd, failed.value, None)
    assert message in said
    assert SECRET not in said and str(NUMBER) not in said


def test_a_run_that_succeeds_says_nothing_of_the_data(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="beam_dp")
    caplog.set_level(logging.INFO)
    rows = [{"user": i, "item": "shown", "v": 1.0} for i in range(4321)]
    batches = [
        *batches_of(rows),
        pa.RecordBatch.from_pydict(
            {"user": pa.array([NUMBER]), "item": pa.array([SECRET]), "v": pa.array([float(NUMBER)])}
        ),
    ]
    done = run(batches, private(metrics=[Count(), Sum("v", 0, 1)], bounds=Bounds(1, 1), budget=Budget(1, 1e-9)))
    assert [row["item"] for row in done.rows] == ["shown"]
    said = everything_said(caplog, capfd, None, done.outcome) + done.ledger.to_json() + done.ledger.report()
    assert SECRET not in said and str(NUMBER) not in said
    # No counter of ours at all: one that counted rows would be an exact count.
    assert done.outcome.metrics().query() == {"counters": [], "distributions": [], "gauges": [], **untouched(done)}
    assert "4321" not in said and "4322" not in said


def untouched(done: Run) -> dict[str, list[Any]]:
    """Kinds of Beam metrics that this version has besides, all of them empty."""
    kinds = done.outcome.metrics().query()
    return {kind: [] for kind in kinds if kind not in {"counters", "distributions", "gauges"}}


def test_the_display_data_say_how_and_never_what() -> None:
    data = private(partitions=[SECRET, "b"], metrics=[Sum("v", 0, 1)]).display_data()
    values = {name: item.value for name, item in data.items()}
    assert values["bounds"] == "Bounds(partitions=2, rows_per_partition=3)"
    assert values["partitions"] == "2 public partitions" and "Sum(" in values["metrics"]
    assert SECRET not in str(values)
