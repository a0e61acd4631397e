"""Partial sums: what they are, that adding them up commutes, and that they survive the way to another worker."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.aggregate import partials
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.partials import Merger, Partials, add_up, key_order, merge, zeros
from beam_dp.aggregate.statistics import LeafCounts, RowCount, Statistic, Total, UnitCount
from beam_dp.errors import InputError
from beam_dp.io.batches import RecordBatchCoder

LEAVES = 16**4
TREE = LeafCounts(column="v", low=0, high=16)
TOTAL = Total(column="v", low=0, high=16)
STATISTICS: tuple[Statistic, ...] = (UnitCount(), RowCount(), TOTAL, TREE)
LOOSE = Bounds(1000, 1000)
BY = ("item", "day")

Key = tuple[str | None, int | None]
Row = tuple[int, str | None, int | None, float]
# The dense integers of a partition, and for each tree how many values are in which leaf.
Contents = tuple[tuple[int, ...], tuple[dict[int, int], ...]]
row = st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, None]), st.floats(-1, 17))
rows = st.lists(row, max_size=30)


@dataclass(frozen=True)
class Plan:
    by: tuple[str, ...] = BY
    privacy_unit: str = "user"
    bounds: Bounds = LOOSE
    statistics: tuple[Statistic, ...] = STATISTICS


def sums_of(data: list[Row], statistics: tuple[Statistic, ...] = STATISTICS) -> Partials:
    keys = [pa.array([r[1] for r in data], pa.string()), pa.array([r[2] for r in data], pa.int64())]
    values = {"v": np.array([r[3] for r in data], np.float64)}
    units = pa.array([r[0] for r in data], pa.int64())
    return add_up(units, keys, values, statistics, LOOSE, np.random.default_rng(0))


def contents(sums: Partials) -> dict[Key, Contents]:
    """Everything in partial sums, without their order."""
    trees: list[dict[int, dict[int, int]]] = []
    for sparse in sums.sparse:
        assert np.all(np.diff(sparse.codes) > 0)
        leaves: dict[int, dict[int, int]] = defaultdict(dict)
        for code, count in zip(sparse.codes.tolist(), sparse.counts.tolist(), strict=True):
            leaves[code // LEAVES][code % LEAVES] = count
        trees.append(leaves)
    keys = list(zip(*(key.to_pylist() for key in sums.keys), strict=True))
    assert len(set(keys)) == len(keys) == len(sums)
    dense = [tuple(numbers) for numbers in sums.dense.tolist()]
    return {key: (dense[i], tuple(tree[i] for tree in trees)) for i, key in enumerate(keys)}


def expected(data: list[Row]) -> dict[Key, Contents]:
    groups: dict[Key, list[Row]] = defaultdict(list)
    for r in data:
        groups[r[1:3]].append(r)
    result: dict[Key, Contents] = {}
    for key, members in groups.items():
        total = sum(round(min(max(r[3], 0), 16) / 16 * 2**30) for r in members)
        quantised = [int(TOTAL.quantise(np.array([r[3]]))[0]) for r in members]
        # The total to the last half unit of each row; its limbs, exactly.
        assert abs(sum(quantised) - total) <= len(members)
        limbs = (sum(q >> 15 for q in quantised), sum(q & 0x7FFF for q in quantised))
        leaves = Counter(min(int(min(max(r[3], 0), 16) / 16 * LEAVES), LEAVES - 1) for r in members)
        result[key] = ((len({r[0] for r in members}), len(members), *limbs), (dict(leaves),))
    return result


@settings(deadline=None)
@given(rows)
def test_sums_are_those_of_every_partition(data: list[Row]) -> None:
    assert contents(sums_of(data)) == expected(data)


def disjoint(data: list[Row], parts: int) -> list[Partials]:
    """The sums of the rows in parts that share no unit, as buckets do not."""
    return [sums_of([r for r in data if r[0] % parts == part]) for part in range(parts)]


@settings(deadline=None)
@given(rows, st.permutations(range(3)))
def test_sums_of_buckets_add_up_to_those_of_all_in_any_order(data: list[Row], order: list[int]) -> None:
    parts = disjoint(data, 3)
    whole = merge([parts[i] for i in order], BY)
    assert contents(whole) == expected(data)
    assert contents(merge([merge([parts[order[0]], parts[order[1]]], BY), parts[order[2]]], BY)) == expected(data)


def test_keys_of_two_types_are_not_added_up() -> None:
    data: list[Row] = [(0, "a", 1, 0.0)]
    one = sums_of(data)
    for i, column in ((0, "item"), (1, "day")):
        keys = list(one.keys)
        keys[i] = pa.array([True])
        with pytest.raises(InputError, match=f"column '{column}' holds bool in some batches"):
            merge([one, Partials(tuple(keys), one.dense, one.sparse)], BY)


@settings(deadline=None)
@given(rows, st.data())
def test_sums_survive_the_shuffle_whole_and_in_slices(data: list[Row], more: st.DataObject) -> None:
    coder = RecordBatchCoder()
    for statistics in (STATISTICS, STATISTICS[:3], (TREE,), (RowCount(), TREE, TREE)):
        sums = sums_of(data, statistics)
        batch = sums.to_batch()
        back = Partials.from_batch(coder.decode(coder.encode(batch)))
        assert contents(back) == contents(sums)
        start = more.draw(st.integers(0, len(sums)))
        pieces = [batch.slice(0, start), batch.slice(start)]
        parts = [Partials.from_batch(coder.decode(coder.encode(piece))) for piece in pieces]
        assert [len(part) for part in parts] == [start, len(sums) - start]
        assert contents(merge(parts, BY)) == contents(sums)


@settings(deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_partitions_can_be_taken_in_any_order_and_left_out(data: list[Row], random: Random) -> None:
    sums = sums_of(data)
    order = random.sample(range(len(sums)), random.randint(0, len(sums)))
    taken = sums.take(np.array(order, np.int64))
    keys = list(zip(*(key.to_pylist() for key in sums.keys), strict=True))
    assert list(zip(*(key.to_pylist() for key in taken.keys), strict=True)) == [keys[i] for i in order]
    assert contents(taken) == {keys[i]: contents(sums)[keys[i]] for i in order}


@pytest.mark.parametrize("limit", [0, 3, 1 << 18])
def test_a_merger_holds_its_partitions_and_not_its_parts(
    limit: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partials, "_MERGE_ROWS", limit)
    data: list[Row] = [
        (int(u), "ab"[u % 2], int(p), float(v))
        for u, p, v in zip(rng.integers(0, 40, 400), rng.integers(1, 5, 400), rng.uniform(0, 16, 400), strict=True)
    ]
    merger = Merger(BY)
    for part in disjoint(data, 40):
        merger.add([part])
        assert len(merger) <= max(limit, 2 * 8) + 4
    whole = merger.result()
    assert whole is not None and contents(whole) == expected(data)
    assert len(merger) == 0 and merger.result() is None


def test_the_sums_of_partitions_without_rows_are_zeros() -> None:
    keys = [pa.array(["x", "y"]), pa.array([1, 1])]
    nothing = zeros(Plan(), keys)
    assert contents(nothing) == {("x", 1): ((0, 0, 0, 0), ({},)), ("y", 1): ((0, 0, 0, 0), ({},))}
    data: list[Row] = [(0, "x", 1, 3.0)]
    assert contents(merge([nothing, sums_of(data)], BY)) == expected(data) | {("y", 1): ((0, 0, 0, 0), ({},))}


@settings(deadline=None)
@given(rows)
def test_the_order_is_that_of_the_keys_with_nulls_last(data: list[Row]) -> None:
    def rank(key: Key) -> tuple[tuple[bool, str], tuple[bool, int]]:
        return (key[0] is None, key[0] or ""), (key[1] is None, key[1] or 0)

    sums = sums_of(data)
    ordered = sums.take(key_order(sums.keys))
    keys = list(zip(*(key.to_pylist() for key in ordered.keys), strict=True))
    assert keys == sorted({r[1:3] for r in data}, key=rank)


def test_columns_of_nulls_alone_do_not_prevent_an_order() -> None:
    assert key_order([pa.nulls(2), pa.array(["b", "a"])]).tolist() == [1, 0]
    assert key_order([pa.nulls(3)]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True, False]),
        pa.array([2, 1], pa.uint64()),
        pa.array([2, 1], pa.int32()).view(pa.date32()),
        pa.array([86_400_000, 0]).view(pa.date64()),
        pa.array([2, 1], pa.int32()).view(pa.time32("s")),
        pa.array([2, 1]).view(pa.time64("ns")),
        pa.array([2, 1]).view(pa.timestamp("ns", "UTC")),
        pa.array(["2", "1"]).cast(pa.decimal128(3, 1)),
    ],
    ids=lambda column: str(column.type),
)
def test_keys_of_every_type_have_an_order(column: pa.Array) -> None:
    assert key_order([column]).tolist() == [1, 0]
