"""Windows: each is released once, and the ledger counts as many as are declared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms import trigger, window
from exact import Row, aggregate, declared, private, run

from beam_dp.aggregate import (
    Budget,
    Count,
    PrivacyUnitCount,
)
from beam_dp.errors import ArgumentError


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
