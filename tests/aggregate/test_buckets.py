"""Buckets of units: nothing is lost on the way in, and one that is too large for memory gives the same on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from exact import Sums
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.buckets import Columns, bucket_sums, cut, cut_by_unit
from beam_dp.aggregate.partials import Partials, merge
from beam_dp.aggregate.statistics import BinCounts, LeafCounts, RowCount, Total, UnitCount
from beam_dp.errors import InputError

SIGNIFICANCE = 1e-4
LOOSE = Bounds(1000, 100_000)
TOTAL = Total(column="v", low=-8, high=8)
STATISTICS = (UnitCount(), RowCount(), TOTAL, LeafCounts(column="v", low=-8, high=8))
COLUMNS = Columns("user", ("item",), ("v",))


def batch_of(users: Sequence[object], items: Sequence[object], values: Sequence[object]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"user": pa.array(users), "item": pa.array(items), "v": pa.array(values)})


def data_of(rows: int, rng: np.random.Generator, hot: float = 0.0) -> pa.RecordBatch:
    """Rows of many users, the share ``hot`` of them of one."""
    users = rng.integers(1, 40, rows)
    users[rng.random(rows) < hot] = 0
    return batch_of(list(users), list(rng.integers(0, 6, rows)), list(rng.integers(-8, 9, rows)))


def slices_of(batch: pa.RecordBatch, size: int) -> list[pa.RecordBatch]:
    selected = COLUMNS.select(batch)
    return [selected.slice(start, size) for start in range(0, selected.num_rows, size)]


def table(parts: list[Partials]) -> dict[object, tuple[int, ...]]:
    """Partition to (units, rows, total in units of 2^-30 of its magnitude, rows in the tree)."""
    sums = merge(parts, ["item"])
    in_tree = np.bincount(sums.sparse[0].codes // 16**4, sums.sparse[0].counts, len(sums)).astype(int).tolist()
    numbers = zip(sums.keys[0].to_pylist(), sums.dense.tolist(), in_tree, strict=True)
    return {key: (units, rows, high * 2**15 + low, tree) for key, (units, rows, high, low), tree in numbers}


def expected(batch: pa.RecordBatch) -> dict[object, tuple[int, ...]]:
    rows = [row for row in batch.to_pylist() if row["user"] is not None]
    return {
        item: (
            len({row["user"] for row in rows if row["item"] == item}),
            sum(row["item"] == item for row in rows),
            # Whole numbers are whole multiples of 2^27 units.
            sum(row["v"] * 2**27 for row in rows if row["item"] == item),
            sum(row["item"] == item for row in rows),
        )
        for item in {row["item"] for row in rows}
    }


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(disk: Path) -> list[Path]:
    return [path for path in disk.rglob("*") if path.is_file()]


@pytest.mark.parametrize("memory_rows", [50, 777, 1999, 2000, 2001])
@pytest.mark.parametrize("hot", [0.0, 0.99])
def test_a_bucket_of_any_size_gives_the_exact_sums(
    memory_rows: int, hot: float, disk: Path, rng: np.random.Generator
) -> None:
    batch = data_of(2000, rng, hot)
    parts = []
    for part in bucket_sums(Sums(STATISTICS, LOOSE), slices_of(batch, 100), 64, rng, memory_rows):
        if memory_rows < 2000:
            assert len(list(disk.iterdir())) == 1
        parts.append(part)
    assert table(parts) == expected(batch)
    assert (len(parts) > 1) == (memory_rows < 2000)
    assert not list(disk.iterdir())


@pytest.mark.parametrize("memory_rows", [100, 10_000])
@pytest.mark.parametrize(("most", "rows"), [(1, 1), (2, 3), (6, 1), (1, 500)])
def test_bounds_hold_for_a_user_with_nearly_all_rows(
    memory_rows: int, most: int, rows: int, disk: Path, rng: np.random.Generator
) -> None:
    # The others are within the bounds: one row of one item each.
    others = batch_of(list(range(1, 41)), [1, 2] * 20, [8] * 40)
    hot = batch_of([0] * 3960, list(rng.integers(0, 6, 3960)), [-8] * 3960)
    slices = [*slices_of(hot, 97), *slices_of(others, 97), *slices_of(hot, 97)]
    result = table(list(bucket_sums(Sums(STATISTICS, Bounds(most, rows)), slices, 64, rng, memory_rows)))
    alone = expected(others)
    hers = {
        item: tuple(a - b for a, b in zip(sums, alone.get(item, (0, 0, 0, 0)), strict=True))
        for item, sums in result.items()
    }
    touched = [item for item, sums in hers.items() if any(sums)]
    assert len(touched) == most
    # Partitions of which nothing is left are not carried on.
    assert set(result) == set(alone) | set(touched)
    assert all(hers[item] == (1, rows, -rows * 2**30, rows) for item in touched)


def test_a_hot_user_is_thinned_before_she_is_written_to_disk(disk: Path, rng: np.random.Generator) -> None:
    rows = 100_000
    slices = slices_of(batch_of([7] * rows, [1] * rows, [3] * rows), 1000)
    written = []

    def watched() -> Iterator[pa.RecordBatch]:
        for batch in slices:
            written.append(sum(path.stat().st_size for path in files(disk)))
            yield batch

    parts = list(bucket_sums(Sums(STATISTICS, Bounds(1, 2)), watched(), 64, rng, memory_rows=5000))
    assert table(parts) == {1: (1, 2, 2 * 3 * 2**27, 2)}
    # Twenty chunks of two rows each; all of the rows would be megabytes.
    assert 0 < max(written) < 100_000


def test_nothing_stays_on_disk_when_the_consumer_stops(disk: Path, rng: np.random.Generator) -> None:
    sums = bucket_sums(Sums(STATISTICS, LOOSE), slices_of(data_of(500, rng), 50), 64, rng, memory_rows=60)
    next(sums)
    assert files(disk)
    sums.close()  # type: ignore[attr-defined]
    assert not list(disk.iterdir())


def failing(slices: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from slices
    raise OSError("the shuffle went away")


def test_nothing_stays_on_disk_when_the_input_fails(disk: Path, rng: np.random.Generator) -> None:
    with pytest.raises(OSError, match="the shuffle went away"):
        list(bucket_sums(Sums(STATISTICS, LOOSE), failing(slices_of(data_of(500, rng), 50)), 64, rng, 60))
    assert not list(disk.iterdir())


# Units of two types can be in different parts of a bucket on disk: types are compared at the release once more.
@pytest.mark.parametrize(("where", "memory_rows"), [("user", 1000), ("item", 1000), ("item", 3)])
def test_two_types_in_a_bucket_are_refused_by_column(
    where: str, memory_rows: int, disk: Path, rng: np.random.Generator
) -> None:
    one = batch_of([1, 2] * 10, [1, 2] * 10, [1] * 20)
    columns = dict(zip(one.schema.names, one.columns, strict=True)) | {where: pa.array(["1"] * 20)}
    other = pa.RecordBatch.from_pydict(columns)
    slices = [*slices_of(one, 4), *slices_of(other, 4)]
    with pytest.raises(InputError, match=f"column '{where}' holds int64 in some batches and string in others"):
        list(bucket_sums(Sums(STATISTICS, LOOSE), slices, 64, rng, memory_rows))
    assert not list(disk.iterdir())


@pytest.mark.parametrize("memory_rows", [40, 10**6])
def test_the_sample_of_a_bucket_is_uniform_on_disk_too(memory_rows: int, disk: Path, rng: np.random.Generator) -> None:
    # 400 users with 8 rows in each of 5 items; the value says which row it is. They come in the order of the values.
    values, items, users = (x.ravel() for x in np.meshgrid(np.arange(8), np.arange(5), np.arange(400), indexing="ij"))
    batch = batch_of(list(users), list(items), list(values))
    plan = Sums((UnitCount(), BinCounts(column="v", edges=tuple(range(9)))), Bounds(2, 3))
    sums = merge(list(bucket_sums(plan, slices_of(batch, 1000), 64, rng, memory_rows)), ["item"])
    units, bins = sums.dense[:, 0], sums.dense[:, 1:].sum(axis=0)
    assert units.sum() == 400 * 2 and bins.sum() == 400 * 2 * 3
    assert stats.chisquare(units).pvalue > SIGNIFICANCE
    assert stats.chisquare(bins).pvalue > SIGNIFICANCE


def test_rows_without_a_unit_are_dropped_and_other_columns_too() -> None:
    columns = {"secret": ["x"] * 3, "user": [1, None, 2], "item": ["a", "b", None], "v": [1.5, 2, None]}
    batch = pa.RecordBatch.from_pydict(columns)
    selected = COLUMNS.select(batch)
    assert selected.schema.names == ["0", "1", "2"]
    assert COLUMNS.units(selected).to_pylist() == [1, 2]
    assert COLUMNS.keys(selected)[0].to_pylist() == ["a", None]
    np.testing.assert_array_equal(COLUMNS.values(selected)["v"], [1.5, np.nan])
    assert COLUMNS.select(batch_of([None, None], ["a", "b"], [1, 2])).num_rows == 0


def test_nothing_in_nothing_out(rng: np.random.Generator) -> None:
    assert list(bucket_sums(Sums(STATISTICS, LOOSE), [], 64, rng)) == []


keys = st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=30)


@settings(deadline=None)
@given(keys, st.integers(1, 5), st.integers(1, 30))
def test_all_rows_of_a_unit_meet_in_one_bucket_however_they_are_batched(
    users: list[int | None], buckets: int, size: int
) -> None:
    batch = batch_of([*users, 0], [1] * len(users) + [1], list(range(len(users) + 1)))
    buckets_of: dict[int, set[int]] = {}
    seen = []
    for piece in slices_of(batch, size):
        for bucket, rows in cut_by_unit(COLUMNS, piece, buckets):
            assert 0 <= bucket < buckets and rows.num_rows
            for user, value in zip(rows.column(0).to_pylist(), rows.column(2).to_pylist(), strict=True):
                buckets_of.setdefault(user, set()).add(bucket)
                seen.append(value)
    assert all(len(places) == 1 for places in buckets_of.values())
    assert sorted(seen) == [i for i, user in enumerate([*users, 0]) if user is not None]


@pytest.mark.parametrize("count", [1, 300, 70_000])
def test_cutting_keeps_the_order_within_a_place(count: int, rng: np.random.Generator) -> None:
    place = rng.integers(0, count, 500)
    rows = pa.RecordBatch.from_pydict({"n": pa.array(range(500))})
    pieces = dict(cut(rows, place, count))
    assert sorted(pieces) == sorted(set(place.tolist()))
    for index, piece in pieces.items():
        assert piece.column(0).to_pylist() == np.flatnonzero(place == index).tolist()
