"""Windows: each is released once, no more than the limit where one is enforced, and the ledger counts as many."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import trigger, window
from apache_beam.utils.timestamp import Duration, Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from exact import Row, aggregate, declared, private, run

from beam_dp import Ledger, Share, Shares
from beam_dp.aggregate import (
    Bounds,
    Budget,
    Count,
    DPCombinePerKey,
    LaplaceCount,
    PrivacyUnitCount,
    PrivateSelection,
    SelectPartitions,
)
from beam_dp.errors import ArgumentError, GrantError


def in_windows() -> beam.PTransform:
    return beam.Map(lambda row: window.TimestampedValue(row, row["at"])).with_output_types(
        dict[str, Any]
    ) | beam.WindowInto(window.FixedWindows(60))


class Start(beam.DoFn):
    """Adds the start of the window and the timestamp to a row."""

    def process(self, row: Row, at: Any = beam.DoFn.TimestampParam, w: Any = beam.DoFn.WindowParam) -> Iterable[Row]:
        yield {**row, "start": float(w.start), "at": float(at)}


class Then(beam.PTransform):
    """One transform after another."""

    def __init__(self, *transforms: beam.PTransform) -> None:
        super().__init__()
        self.transforms = transforms

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        for i, transform in enumerate(self.transforms):
            rows = rows | f"{i}" >> transform
        return rows


def test_fixed_windows_are_released_once_each() -> None:
    rows: list[Row] = [
        {"user": i % 7, "item": "ab"[i % 2], "at": at} for i, at in enumerate([1, 2, 59, 60, 61, 200] * 5)
    ]
    done = run(
        rows,
        Then(aggregate(metrics=[Count(), PrivacyUnitCount()]), beam.ParDo(Start())),
        element_type=dict[str, Any],
        window=in_windows(),
    )
    found = sorted((row["start"], row["item"], row["count"], row["privacy_unit_count"]) for row in done.results)
    expected = []
    for start in (0.0, 60.0, 180.0):
        for item in "ab":
            mine = [row for row in rows if row["item"] == item and row["at"] // 60 * 60 == start]
            if mine:
                expected.append((start, item, len(mine), len({row["user"] for row in mine})))
    assert found == expected
    assert all(row["start"] < row["at"] < row["start"] + 60 for row in done.results)


@pytest.mark.parametrize("max_windows", [None, 5])
def test_the_total_of_windows_is_stated_only_if_their_number_is_declared(max_windows: int | None) -> None:
    ledger, rows = declared()
    rows | in_windows() | private(budget=Budget(0.5, 1e-6), max_windows=max_windows)
    fields = json.loads(ledger.to_json())
    assert sum(entry["epsilon"] for entry in fields["entries"]) == 0.5
    assert [entry["max_applications"] for entry in fields["entries"]] == [max_windows] * 2
    central = fields["totals"]["central"]
    if max_windows is None:
        assert central["epsilon"] is None and "declares no maximum" in central["reason"]
    else:
        assert central["epsilon"] <= 0.5 * 5 and central["delta"] >= 5e-6
        assert (central.get("basic") or central)["epsilon"] == pytest.approx(0.5 * 5)


GLOBAL = window.GlobalWindows()
EARLY = trigger.AfterWatermark(early=trigger.AfterCount(1))
LATE = trigger.AfterWatermark(late=trigger.AfterCount(1))
DISCARDING = trigger.AccumulationMode.DISCARDING
REFUSED_WINDOWS: dict[str, tuple[dict[str, Any], str]] = {
    "sliding": ({"windowfn": window.SlidingWindows(60, 30)}, "takes global or fixed windows"),
    "sessions": ({"windowfn": window.Sessions(10)}, "takes global or fixed windows"),
    "early": ({"windowfn": window.FixedWindows(60), "trigger": EARLY, "accumulation_mode": DISCARDING}, "fires once"),
    "late": ({"windowfn": window.FixedWindows(60), "trigger": LATE, "accumulation_mode": DISCARDING}, "fires once"),
    "repeatedly": (
        {"windowfn": GLOBAL, "trigger": trigger.Repeatedly(trigger.AfterCount(5)), "accumulation_mode": DISCARDING},
        "fires once",
    ),
    "after count": (
        {"windowfn": GLOBAL, "trigger": trigger.AfterCount(5), "accumulation_mode": DISCARDING},
        "fires once",
    ),
    "lateness": ({"windowfn": window.FixedWindows(60), "allowed_lateness": 10}, "without allowed lateness"),
}


@pytest.mark.parametrize("kind", REFUSED_WINDOWS)
def test_windows_in_which_a_partition_would_be_released_twice_are_refused(kind: str) -> None:
    options, message = REFUSED_WINDOWS[kind]
    _, rows = declared()
    with pytest.raises(ArgumentError, match=message):
        rows | beam.WindowInto(**options) | private()


def test_public_partitions_on_windows_and_endless_windows_are_refused() -> None:
    _, rows = declared()
    with pytest.raises(ArgumentError, match="public partitions need the global window"):
        rows | in_windows() | private(partitions=["a"])
    rows.is_bounded = False
    with pytest.raises(ArgumentError, match="unbounded input needs fixed windows"):
        rows | "endless" >> private()


def test_a_global_window_with_the_watermark_trigger_is_released_once() -> None:
    rows: list[Row] = [{"user": i, "item": "a"} for i in range(10)]
    once = beam.WindowInto(GLOBAL, trigger=trigger.AfterWatermark(), accumulation_mode=DISCARDING)
    done = run(rows, aggregate(), element_type=dict[str, Any], window=once)
    assert [(row["item"], row["count"]) for row in done.results] == [("a", 10)]


SIZE, OFFSET, LIMIT = 60, 7, 3
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# In the middle of the window [67, 127).
FIRST: dict[str, Any] = {
    "Timestamp": Timestamp(100),
    "datetime": EPOCH + timedelta(seconds=100),
    "text": "1970-01-01T00:01:40Z",
    "its start": Timestamp(67),
    "its last microsecond": Timestamp(micros=126_999_999),
}
# Two rows in each of the windows before, within and after the three that begin at 67: in their first and last moments.
MOMENTS = [start + moment for start in (-53, 7, 67, 127, 187, 247, 307) for moment in (0, 59.999999)]
WITHIN = [(67.0, "a", 2), (127.0, "a", 2), (187.0, "a", 2)]


def in_offset_windows() -> beam.PTransform:
    return beam.WindowInto(window.FixedWindows(SIZE, OFFSET))


class AsBatches(beam.DoFn):
    """A row as a batch of one."""

    def process(self, row: Row) -> Iterable[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist([{key: value for key, value in row.items() if key != "at"}])


def stamped(kind: str) -> beam.PTransform:
    """Rows of a kind in windows, from dicts with ``at``."""
    timed = beam.Map(lambda row: window.TimestampedValue(row, row["at"])).with_output_types(dict[str, Any])
    if kind == "dict":
        return timed | in_offset_windows()
    return timed | in_offset_windows() | beam.ParDo(AsBatches()).with_output_types(pa.RecordBatch)


class StartOf(beam.DoFn):
    """The start of the window, the item and the count of each row."""

    def process(self, element: Any, w: Any = beam.DoFn.WindowParam) -> Iterable[tuple[float, str, int]]:
        for row in element.to_pylist() if isinstance(element, pa.RecordBatch) else [element]:
            yield float(w.start), row["item"], row.get("count", 0)


def limited(**options: Any) -> dict[str, Any]:
    return {"max_windows": LIMIT, "first_window": FIRST["Timestamp"]} | options


@pytest.mark.parametrize("kind", ["dict", "record_batch"])
@pytest.mark.parametrize("first", FIRST)
def test_exactly_the_windows_of_the_limit_are_released(kind: str, first: str) -> None:
    rows: list[Row] = [{"user": i, "item": "a", "at": at} for i, at in enumerate(MOMENTS)]
    transform = aggregate(max_windows=LIMIT, first_window=FIRST[first])
    done = run(
        rows,
        Then(transform, beam.ParDo(StartOf())),
        element_type=dict[str, Any],
        window=stamped(kind),
    )
    assert sorted(done.results) == WITHIN
    (entry,) = [entry for entry in done.ledger.entries if entry.label.endswith("/count")]
    assert entry.max_applications == LIMIT
    assert entry.parameters["windows"] == {
        "at_most": LIMIT,
        "size_seconds": SIZE,
        "first": "1970-01-01T00:01:07Z",
        "hold": "by enforcement",
    }


def test_windows_without_rows_count_and_none_after_them_takes_their_place() -> None:
    rows: list[Row] = [{"user": at, "item": "a", "at": at} for at in (6, 190, 247, 307)]
    done = run(
        rows,
        Then(aggregate(**limited()), beam.ParDo(StartOf())),
        element_type=dict[str, Any],
        window=stamped("dict"),
    )
    assert done.results == [(187.0, "a", 1)]


def test_on_bounded_input_without_a_first_window_the_number_is_the_callers_word() -> None:
    rows: list[Row] = [{"user": i, "item": "a", "at": at} for i, at in enumerate(MOMENTS)]
    done = run(
        rows,
        Then(aggregate(max_windows=1), beam.ParDo(StartOf())),
        element_type=dict[str, Any],
        window=stamped("dict"),
    )
    assert sorted(done.results) == [(start, "a", 2) for start in (-53.0, 7.0, 67.0, 127.0, 187.0, 247.0, 307.0)]
    assert [entry.parameters["windows"] for entry in done.ledger.entries] == [
        {
            "at_most": 1,
            "size_seconds": SIZE,
            "first": None,
            "hold": "as the caller declares: nothing enforces it",
        }
    ] * 2


class WithoutItems(beam.DoFn):
    """Drops the key column in all windows but those of the limit."""

    def process(self, row: Row, w: Any = beam.DoFn.WindowParam) -> Iterable[Row]:
        yield row if w.start in (67, 127, 187) else {"user": row["user"]}


@pytest.mark.parametrize("kind", ["dict", "record_batch"])
def test_rows_of_other_windows_are_not_even_read(kind: str) -> None:
    rows: list[Row] = [{"user": i, "item": "a", "at": at} for i, at in enumerate(MOMENTS)]
    timed = beam.Map(lambda row: window.TimestampedValue(row, row["at"]))
    broken = timed | in_offset_windows() | beam.ParDo(WithoutItems()).with_output_types(dict[str, Any])
    if kind == "record_batch":
        broken = broken | beam.ParDo(AsBatches()).with_output_types(pa.RecordBatch)
    done = run(rows, Then(aggregate(**limited()), beam.ParDo(StartOf())), element_type=dict[str, Any], window=broken)
    assert sorted(done.results) == WITHIN


class ByHand(beam.DoFn):
    """Puts each row into windows of its own making: beside the grid, longer, shorter, and at last as it was."""

    def process(self, row: Row, at: Any = beam.DoFn.TimestampParam) -> Iterable[WindowedValue]:
        for start, end in ((97, 157), (67, 187), (67, 97), (127, 187)):
            yield WindowedValue(row, at, (window.IntervalWindow(start, end),))


def test_windows_made_by_hand_do_not_get_past_the_limit() -> None:
    rows: list[Row] = [{"user": i, "item": "a", "at": 130 + i} for i in range(5)]
    by_hand = stamped("dict") | beam.ParDo(ByHand()).with_output_types(dict[str, Any])
    done = run(rows, Then(aggregate(**limited()), beam.ParDo(StartOf())), element_type=dict[str, Any], window=by_hand)
    assert done.results == [(127.0, "a", 5)]


def test_windows_of_milliseconds_are_exact_after_a_shuffle() -> None:
    rows: list[Row] = [{"user": i, "item": "a", "at": at / 1000} for i, at in enumerate((999, 1000, 1249, 1250, 1500))]
    timed = beam.Map(lambda row: window.TimestampedValue(row, row["at"])).with_output_types(dict[str, Any])
    shuffled = timed | beam.WindowInto(window.FixedWindows(0.25)) | beam.Reshuffle()
    transform = aggregate(max_windows=2, first_window="1970-01-01T00:00:01.100Z")
    done = run(rows, Then(transform, beam.ParDo(StartOf())), element_type=dict[str, Any], window=shuffled)
    assert sorted(done.results) == [(1.0, "a", 2), (1.25, "a", 1)]


LIMITED: dict[str, Callable[..., beam.PTransform]] = {
    "SelectPartitions": lambda **windows: SelectPartitions(
        "item", privacy_unit="user", max_partitions=1, budget=Budget(1000, 0.1), **windows
    ),
    "DPCombinePerKey": lambda **windows: DPCombinePerKey(
        LaplaceCount(), bounds=Bounds(1, 1), budget=Budget(1000, 0.1), selection=PrivateSelection(), **windows
    ),
}


class ItemOf(beam.DoFn):
    """The start of the window and the key of each result."""

    def process(self, element: Any, w: Any = beam.DoFn.WindowParam) -> Iterable[tuple[float, str]]:
        yield float(w.start), element["item"] if isinstance(element, dict) else element[0]


@pytest.mark.parametrize("name", LIMITED)
def test_the_other_transforms_have_the_same_limit(name: str) -> None:
    # Twenty units in each window are kept for sure at this epsilon and delta, but once in e^300.
    rows: list[Row] = [{"user": user, "item": "a", "at": at} for at in MOMENTS for user in range(20)]
    windowed = stamped("dict")
    if name == "DPCombinePerKey":
        windowed = windowed | beam.Map(lambda row: (row["item"], 1)).with_output_types(tuple[str, int])
    done = run(
        rows, Then(LIMITED[name](**limited()), beam.ParDo(ItemOf())), element_type=dict[str, Any], window=windowed
    )
    assert sorted(done.results) == [(67.0, "a"), (127.0, "a"), (187.0, "a")]
    for entry in done.ledger.entries:
        assert entry.max_applications == LIMIT
        assert entry.parameters["windows"]["hold"] == "by enforcement"


def nodes(pcoll: beam.PCollection) -> list[Any]:
    """All applied transforms of the pipeline."""
    found: list[Any] = []

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: Any) -> None:
            found.append(node)

    pcoll.pipeline.visit(Visitor())
    return found


def keepers(pcoll: beam.PCollection) -> list[Any]:
    """The DoFns that drop windows, each of which must be the one reader of what is aggregated."""
    readers = [node for node in nodes(pcoll) if pcoll in node.inputs]
    found = [node for node in nodes(pcoll) if type(getattr(node.transform, "fn", None)).__name__ == "_KeepWindows"]
    assert not found or readers == found
    return [node.transform.fn for node in found]


@pytest.mark.parametrize("name", ["Aggregate", *LIMITED])
def test_on_unbounded_input_the_launch_is_in_the_first_window(name: str) -> None:
    ledger, rows = declared()
    rows = rows | in_offset_windows()
    rows.is_bounded = False
    before = time.time_ns() // 1000
    transform = private(max_windows=5) if name == "Aggregate" else LIMITED[name](max_windows=5)
    rows | transform
    after = time.time_ns() // 1000
    (keeper,) = keepers(rows)
    limit = keeper._plan.windows
    assert (limit.at_most, limit.size) == (5, SIZE * 1_000_000)
    assert limit.first % limit.size == OFFSET * 1_000_000
    # Beam reads its clock as a float.
    assert limit.first <= after + 1 and before - 1 < limit.first + limit.size
    for entry in ledger.entries:
        assert entry.max_applications == 5
        assert entry.parameters["windows"]["hold"] == "by enforcement"
        first = datetime.fromisoformat(entry.parameters["windows"]["first"].replace("Z", "+00:00"))
        assert (first - EPOCH) // timedelta(microseconds=1) == limit.first


def test_on_unbounded_input_a_first_window_that_is_named_is_taken() -> None:
    _, rows = declared()
    rows = rows | in_offset_windows()
    rows.is_bounded = False
    rows | private(**limited())
    (keeper,) = keepers(rows)
    assert keeper._plan.windows.first == 67_000_000


def test_on_unbounded_input_without_a_number_of_windows_no_total_is_stated() -> None:
    ledger, rows = declared()
    rows = rows | in_offset_windows()
    rows.is_bounded = False
    rows | private()
    assert not keepers(rows)
    assert ledger.total()["central"]["epsilon"] is None
    assert all("windows" not in entry.parameters for entry in ledger.entries)


def test_the_global_window_has_no_limit_in_its_ledger() -> None:
    ledger, rows = declared()
    rows | private(max_windows=5)
    assert not keepers(rows)
    assert [(entry.max_applications, entry.parameters.get("windows")) for entry in ledger.entries] == [(1, None)] * 2


def test_the_total_is_that_of_all_windows_of_the_limit() -> None:
    ledger, rows = declared()
    rows | in_windows() | private(budget=Budget(0.5, 1e-6), **limited())
    central = ledger.total()["central"]
    assert (central.get("basic") or central)["epsilon"] == pytest.approx(0.5 * LIMIT)


@pytest.mark.parametrize("changes", [{"at_most": LIMIT + 1}, {"first": 7_000_000}, {"first": None}, {"size": 1000}])
@pytest.mark.parametrize("do_fn", ["_KeepWindows", "_Release"])
def test_other_windows_than_the_ledger_has_are_refused_in_the_worker(changes: dict[str, Any], do_fn: str) -> None:
    _, rows = declared()
    rows = rows | in_offset_windows()
    rows | private(**limited())
    fns = [getattr(node.transform, "fn", None) for node in nodes(rows)]
    (fn,) = [fn for fn in fns if type(fn).__name__ == do_fn]
    pickle.loads(pickle.dumps(fn)).setup()
    fn._plan = replace(fn._plan, windows=replace(fn._plan.windows, **changes))
    with pytest.raises(GrantError):
        fn.setup()


@pytest.mark.parametrize("name", ["Aggregate", *LIMITED])
def test_a_first_window_needs_fixed_windows(name: str) -> None:
    _, rows = declared()
    transform = private(**limited()) if name == "Aggregate" else LIMITED[name](**limited())
    with pytest.raises(ArgumentError, match="first_window goes with fixed windows"):
        rows | transform


@pytest.mark.parametrize(
    "windows", [(Duration(micros=1_000_500), 0), (1, Timestamp(micros=10))], ids=["size", "offset"]
)
def test_windows_that_beam_does_not_pass_on_exactly_are_refused_where_a_limit_is_enforced(windows: Any) -> None:
    _, rows = declared()
    rows = rows | beam.WindowInto(window.FixedWindows(*windows))
    with pytest.raises(ArgumentError, match="whole milliseconds"):
        rows | private(**limited())
    rows | "declared" >> private(max_windows=LIMIT)


def test_a_share_is_divided_by_the_windows_of_the_limit_and_not_drawn_where_the_windows_are_refused() -> None:
    ledger = Ledger(shares=Shares(1, 1e-6, parts={"counts": 1}))
    rows = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) | beam.Create([])
    rows = rows | beam.Map(dict).with_output_types(dict[str, Any])
    with pytest.raises(ArgumentError, match="first_window goes with fixed windows"):
        rows | "refused" >> private(budget=Share("counts"), **limited())
    rows | in_offset_windows() | private(budget=Share("counts"), **limited())
    ledger.seal()
    assert [entry.max_applications for entry in ledger.entries] == [LIMIT] * 2
    assert sum(entry.guarantee.epsilon or 0 for entry in ledger.entries) == pytest.approx(1 / LIMIT)
    assert ledger.total()["central"]["epsilon"] <= 1
