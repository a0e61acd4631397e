"""`Aggregate` in pipelines: exact against brute force where nothing is random, and noised as the ledger says."""

from __future__ import annotations

import datetime
import json
import math
import statistics
import typing
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from exact import KeepAll, Row, aggregate, batches_of, declared, private, run

from beam_dp.aggregate import (
    Bounds,
    Budget,
    Count,
    Histogram,
    Mean,
    PrivacyUnitCount,
    PrivateSelection,
    Quantiles,
    SelectPartitions,
    Sum,
    Variance,
    VectorSum,
    sums,
)
from beam_dp.aggregate.metrics import Metric
from beam_dp.errors import ArgumentError

DAY = datetime.date(2024, 2, 28)
QUANTILES = (0.0, 0.25, 0.5, 1.0)
METRICS: tuple[Metric, ...] = (
    Count(),
    PrivacyUnitCount(),
    Count("v"),
    Sum("v", -4, 6),
    Sum("w", 0, 2),
    Mean("v", -4, 6),
    Variance("v", -4, 6),
    Quantiles("v", -4, 6, quantiles=QUANTILES),
    Histogram("w", (0, 0.5, 1, 2)),
    VectorSum(("v", "w"), 3),
)


def rows_of(keys: dict[str, list[Any]], count: int, rng: np.random.Generator) -> list[Row]:
    """Rows with keys of each column drawn from a list, some of them without a unit or a number."""
    rows = []
    for _ in range(count):
        row: Row = {name: values[rng.integers(len(values))] for name, values in keys.items()}
        row["user"] = None if rng.random() < 0.05 else f"user{rng.integers(40)}"
        row["v"] = None if rng.random() < 0.1 else float(rng.normal(1, 4))
        row["w"] = [0.5, 1.0, -7.0, math.inf, math.nan, float(rng.uniform(0, 2))][rng.integers(6)]
        rows.append(row)
    return rows


def clamped(rows: list[Row], column: str, low: float, high: float) -> list[float]:
    return [min(max(r[column], low), high) for r in rows if r[column] is not None and not math.isnan(r[column])]


def off(values: list[float], magnitude: float) -> float:
    """How far a total may be from the exact one: half a step, and half a unit for each value."""
    return magnitude * (2**-16 + 2**-31 * len(values)) * (1 + 1e-9)


def check(results: list[Row], rows: list[Row], by: Sequence[str]) -> None:
    """Compares what came out for `METRICS` with brute force."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["user"] is not None:
            groups[tuple(row[name] for name in by)].append(row)
    found = {tuple(row[name] for name in by): row for row in results}
    assert len(found) == len(results) and found.keys() == groups.keys()
    for key, members in groups.items():
        row = found[key]
        v, w = clamped(members, "v", -4, 6), clamped(members, "w", 0, 2)
        assert row["count"] == len(members) and row["count_v"] == len(v)
        assert row["privacy_unit_count"] == len({r["user"] for r in members})
        # Made of the mean's statistics: middle·n + Σ(x - middle).
        assert abs(row["sum_v"] - sum(v)) <= off(v, 5)
        assert abs(row["sum_w"] - sum(w)) <= off(w, 2)
        mean = statistics.fmean(v) if v else 1.0
        assert abs(row["mean_v"] - mean) <= off(v, 5) / max(len(v), 1)
        if v:
            error = (off(v, 12.5) + 2 * 5 * off(v, 5)) / len(v)
            assert abs(row["variance_v"] - statistics.pvariance(v)) <= error + 1e-9
            for q in QUANTILES:
                leaf = sorted(v)[max(math.ceil(q * len(v)) - 1, 0)]
                assert abs(row[f"quantile_v_{q:g}"] - leaf) <= 10 / 16**4 + 1e-12
        bins = [sum(low <= x < high for x in w) for low, high in ((0, 0.5), (0.5, 1), (1, math.inf))]
        assert row["histogram_w"] == bins
        for i, column in enumerate(("v", "w")):
            values = clamped(members, column, -3, 3)
            assert abs(row["vector_sum_v_w"][i] - sum(values)) <= off(values, 3)
        assert row["count_ci_low"] == row["count_ci_high"] == row["count"] and row["count_noise_stddev"] == 0


KEYS: dict[str, dict[str, list[Any]]] = {
    "integers": {"item": [1, -2, 2**62, None]},
    "texts": {"item": ["a", "", None, "\u00e9\u4e2d"]},
    "booleans": {"item": [True, False, None]},
    "dates": {"item": [DAY, DAY + datetime.timedelta(1), None]},
    "several": {"item": ["a", "b", None], "day": [DAY, None], "n": [1, 2, None]},
}


@pytest.mark.parametrize("kind", KEYS)
def test_all_metrics_are_exact_without_noise(kind: str, rng: np.random.Generator) -> None:
    rows = rows_of(KEYS[kind], 600, rng)
    by = list(KEYS[kind])
    done = run(batches_of(rows), aggregate(by, metrics=METRICS))
    assert all(isinstance(batch, pa.RecordBatch) for batch in done.results)
    check(done.rows, rows, by)
    table = done.ledger.report()
    assert "NOT PRIVATE" in table
    central = json.loads(done.ledger.to_json())["totals"]["central"]
    assert central["epsilon"] is None and central["reason"].startswith("NOT PRIVATE")
    assert len({batch.schema for batch in done.results}) == 1


# Not as a class: the module's annotations are strings, which declare nothing.
Visit = typing.NamedTuple(  # noqa: UP014
    "Visit",
    [
        ("user", str | None),
        ("item", str | None),
        ("day", datetime.date | None),
        ("v", float | None),
        ("w", float),
        ("note", str),
    ],
)


def visits(rows: list[Row]) -> list[Visit]:
    return [Visit(**row, note="x") for row in rows]


@pytest.mark.parametrize("kind", ["dict", "named_tuple", "row"])
def test_rows_of_every_kind_give_what_batches_give(kind: str, rng: np.random.Generator) -> None:
    by = ["item", "day"]
    rows = rows_of({"item": ["a", "b", None], "day": [DAY, None]}, 500, rng)
    kinds: dict[str, tuple[list[Any], Any]] = {
        "dict": (rows, dict[str, Any]),
        "named_tuple": (visits(rows), Visit),
        "row": ([beam.Row(**row) for row in rows], beam.Row),
    }
    elements, element_type = kinds[kind]
    done = run(elements, aggregate(by, metrics=METRICS), element_type=element_type)
    if kind == "dict":
        check(done.results, rows, by)
        return
    assert all(isinstance(row, beam.Row) for row in done.results)
    # What cannot be in an identifier is an underscore.
    names = {name.replace(".", "_"): name for name in run([], aggregate(by, metrics=METRICS)).results[0].schema.names}
    check([{names[field]: value for field, value in row.as_dict().items()} for row in done.results], rows, by)


def test_result_rows_have_a_schema() -> None:
    _, rows = declared(Visit)
    metrics = [Count(), Mean("v", 0, 1), Histogram("v", (0, 1)), Quantiles("v", 0, 1, quantiles=(0.25,))]
    fields = dict((rows | aggregate(["item", "day"], metrics=metrics)).element_type._fields)
    assert fields["item"] == str | None and fields["day"] == datetime.date | None
    assert fields["count"] == int | None and fields["mean_v_ci_low"] == float | None
    assert fields["histogram_v"] == Sequence[int] and fields["quantile_v_0_25_ci_high"] == float | None
    for name in ("_hidden", "class", "1st", "item"):
        with pytest.raises(ArgumentError, match="name="):
            rows | name >> aggregate(["item"], metrics=[Count(name=name)])
    with pytest.raises(ArgumentError, match="cannot be fields of rows"):
        rows | "twice" >> aggregate(["item"], metrics=[Count(name="a.b"), Count("v", name="a-b")])


def test_two_processes_give_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    # The workers find the noise family of the tests by its module.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    rows = rows_of({"item": ["a", "b", None]}, 400, rng)
    flags = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    check(run(batches_of(rows, [50] * 7), aggregate(metrics=METRICS), flags=flags).rows, rows, ["item"])


def test_batches_and_their_types_and_their_order_change_nothing(rng: np.random.Generator) -> None:
    count = 300
    users, items = rng.integers(0, 30, count), rng.integers(0, 5, count)
    forms: list[Callable[[np.ndarray], pa.Array]] = [
        lambda x: pa.array(x, pa.int8()),
        lambda x: pa.array(x, pa.uint16()),
        lambda x: pa.array(x, pa.int64()),
        lambda x: pa.array(x, pa.int32()).dictionary_encode(),
    ]
    texts: list[Callable[[np.ndarray], pa.Array]] = [
        lambda x: pa.array([f"i{k}" for k in x]),
        lambda x: pa.array([f"i{k}" for k in x], pa.large_string()),
        lambda x: pa.array([f"i{k}" for k in x]).dictionary_encode(),
    ]
    batches = [
        pa.RecordBatch.from_pydict(
            {"item": texts[i % 3](items[start : start + 25]), "user": forms[i % 4](users[start : start + 25])}
        )
        for i, start in enumerate(range(0, count, 25))
    ]
    metrics = [Count(), PrivacyUnitCount()]
    results = []
    for order in (batches, batches[::-1]):
        done = run(order, aggregate(metrics=metrics))
        for batch in done.results:
            # Each block in the order of its keys.
            assert batch.column("item").to_pylist() == sorted(batch.column("item").to_pylist())
        results.append(sorted(done.rows, key=lambda row: row["item"]))
    assert results[0] == results[1]
    for row in results[0]:
        mine = items == int(row["item"][1:])
        assert (row["count"], row["privacy_unit_count"]) == (mine.sum(), len(set(users[mine].tolist())))


@pytest.mark.parametrize(("most", "rows"), [(1, 1), (3, 2), (5, 40)])
def test_an_adversary_moves_no_more_than_the_bounds_allow(most: int, rows: int, rng: np.random.Generator) -> None:
    others: list[Row] = [{"user": f"u{i}", "item": i % 6, "v": 0.25, "w": 0.5} for i in range(60)]
    hers: list[Row] = [{"user": "her", "item": int(rng.integers(20)), "v": 1e300, "w": math.inf} for _ in range(8000)]
    mixed = [*hers[:4000], *others, *hers[4000:]]
    metrics = [Count(), PrivacyUnitCount(), Sum("v", -4, 6), Histogram("w", (0, 0.5, 1, 2))]
    done = run(batches_of(mixed, [500] * 15), aggregate(metrics=metrics, bounds=Bounds(most, rows)))
    changed = {}
    for row in done.rows:
        without = 10 if row["item"] < 6 else 0
        bins = [a - b for a, b in zip(row["histogram_w"], [0, without, 0], strict=True)]
        moved = round(row["sum_v"] - 0.25 * without, 2)
        changed[row["item"]] = (row["count"] - without, row["privacy_unit_count"] - without, moved, bins)
    touched = [change for change in changed.values() if any(change[:3])]
    # She has more than the bounds allow, so she uses them up, and no others lose anything.
    assert touched == [(rows, 1, 6.0 * rows, [0, 0, rows])] * most
    assert set(range(6)) <= changed.keys()


@pytest.mark.parametrize("column", ["user", "item"])
@pytest.mark.parametrize("partitions", [KeepAll(), [1, 2]], ids=["private", "public"])
def test_a_column_of_two_types_is_refused_also_if_the_batches_never_meet(
    column: str, partitions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not beside each other, and in buckets and blocks of their own: one unit would count as two.
    monkeypatch.setattr(sums, "_MOST_HELD_ROWS", 1)
    batches = [
        pa.RecordBatch.from_pydict({"user": pa.array([1]), "item": pa.array([1])} | {column: keys})
        for keys in (pa.array([7]), pa.array(["7"]))
    ]
    with pytest.raises(Exception, match=f"column '{column}' holds int64 in some batches and string in others"):
        run(batches, aggregate(partitions=partitions, buckets=1000))


def test_batches_of_nulls_alone_take_the_type_of_the_others() -> None:
    batches = [
        pa.RecordBatch.from_pydict({"user": pa.nulls(3), "item": pa.array(["a"] * 3)}),
        pa.RecordBatch.from_pydict({"user": pa.array(["u", None]), "item": pa.nulls(2)}),
        pa.RecordBatch.from_pydict({"user": pa.array(["u", "v"]), "item": pa.array(["a", "b"])}),
    ]
    done = run(batches, aggregate())
    assert {row["item"]: row["count"] for row in done.rows} == {None: 1, "a": 1, "b": 1}
    assert {batch.schema.field("item").type for batch in done.results} == {pa.string()}


def test_partitions_of_few_users_are_not_shown_and_of_many_are() -> None:
    rows: list[Row] = [{"user": i, "item": "many"} for i in range(500)] + [{"user": 1, "item": "one"}] * 100
    metrics = [Count(), PrivacyUnitCount()]
    for transform in (
        private(metrics=metrics, bounds=Bounds(2, 1), budget=Budget(3, 1e-8)),
        private(partitions=PrivateSelection("laplace_threshold"), bounds=Bounds(2, 1), budget=Budget(3, 1e-8)),
        private(partitions=PrivateSelection(pre_threshold=50), bounds=Bounds(2, 1), budget=Budget(3, 1e-8)),
        SelectPartitions("item", privacy_unit="user", max_partitions=2, budget=Budget(1, 1e-8)),
    ):
        done = run(batches_of(rows), transform)
        assert [row["item"] for row in done.rows] == ["many"]
    assert done.results[0].schema.names == ["item"]
    assert [entry.label for entry in done.ledger.entries] == ["SelectPartitions/selection"]


def test_noise_is_what_the_ledger_says() -> None:
    rows: list[Row] = [{"user": i, "item": i % 500, "v": 1.0} for i in range(500)]
    metrics = [Count(), Sum("v", 0, 2)]
    done = run(
        batches_of(rows), private(metrics=metrics, partitions=list(range(500)), bounds=Bounds(1, 1), budget=Budget(1))
    )
    entries = {entry.label: entry for entry in done.ledger.entries}
    assert sorted(entries) == ["Aggregate/count", "Aggregate/sum_v"]
    for name in ("count", "sum_v"):
        entry = entries[f"Aggregate/{name}"]
        (stddev,) = {row[f"{name}_noise_stddev"] for row in done.rows}
        assert entry.guarantee.epsilon == 0.5 and entry.parameters["noise"]["stddev"] == stddev
        errors = [row[name] - 1 for row in done.rows]
        # Five standard errors of the standard deviation of 500 Laplace draws.
        assert np.std(errors) == pytest.approx(stddev, rel=5 * math.sqrt(5 / 4 / 500))
        assert entry.parameters["bounds"]["partitions"] == entry.parameters["bounds"]["rows_per_partition"] == 1
        assert entry.max_applications == 1
