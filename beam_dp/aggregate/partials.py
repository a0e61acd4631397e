"""Partial sums of partitions: what bounded rows become, how partial sums are added, and how they travel.

Adding is exact integer arithmetic on whole columns and commutes, so that the order in which a runner brings partial
sums together changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.aggregate.bounds import Bounds, Codes, bound_contributions
from beam_dp.aggregate.columns import concat_columns, key_codes
from beam_dp.aggregate.statistics import TREE_LEAVES, LeafCounts, Rows, Statistic, Values

_KEY, _DENSE, _LEAVES, _COUNTS = "key", "dense", "leaves", "counts"
_MERGE_ROWS = 1 << 18


class SumPlan(Protocol):
    """What is bounded and added up."""

    @property
    def by(self) -> tuple[str, ...]:
        """The key columns."""

    @property
    def privacy_unit(self) -> str:
        """The column whose values are protected."""

    @property
    def bounds(self) -> Bounds:
        """Of a unit's contribution."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What is added up."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """The leaves of trees, one tree for each partition.

    Attributes:
        codes: (m,) ascending ``partition * TREE_LEAVES + leaf``, each once.
        counts: (m,) int64.
    """

    codes: Codes
    counts: Codes


@dataclass(frozen=True, eq=False)
class Partials:
    """Sums of P partitions.

    Attributes:
        keys: the key columns, (P,) each; no row twice.
        dense: (P, W) int64: the vectors of all dense statistics side by side.
        sparse: one for each sparse statistic.
    """

    keys: tuple[pa.Array, ...]
    dense: Codes
    sparse: tuple[Sparse, ...]

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, order: Codes) -> Partials:
        """The partitions of these indices, in this order."""
        place = np.full(len(self), -1, np.int64)
        place[order] = np.arange(len(order))
        indices = pa.array(order)
        return Partials(
            tuple(key.take(indices) for key in self.keys),
            self.dense[order],
            tuple(_moved(sparse, place) for sparse in self.sparse),
        )

    def to_batch(self) -> pa.RecordBatch:
        """The sums as a batch, for the shuffle."""
        size, width = self.dense.shape
        dense = pa.FixedSizeListArray.from_arrays(pa.array(self.dense.reshape(-1)), width) if width else None
        columns: dict[str, pa.Array] = {f"{_KEY}{i}": key for i, key in enumerate(self.keys)}
        columns[_DENSE] = pa.nulls(size) if dense is None else dense
        for i, sparse in enumerate(self.sparse):
            offsets = pa.array(np.searchsorted(sparse.codes, np.arange(size + 1) * TREE_LEAVES), pa.int32())
            columns[f"{_LEAVES}{i}"] = pa.ListArray.from_arrays(
                offsets, pa.array(sparse.codes % TREE_LEAVES, pa.int32())
            )
            columns[f"{_COUNTS}{i}"] = pa.ListArray.from_arrays(offsets, pa.array(sparse.counts))
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Partials:
        """The sums in a batch that `to_batch` made."""
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        keys = tuple(column for name, column in columns.items() if name.startswith(_KEY))
        dense = columns[_DENSE]
        matrix = (
            np.empty((batch.num_rows, 0), np.int64)
            if pa.types.is_null(dense.type)
            else dense.flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, dense.type.list_size)
        )
        sparse = []
        for i in range(sum(name.startswith(_LEAVES) for name in columns)):
            leaves, counts = columns[f"{_LEAVES}{i}"], columns[f"{_COUNTS}{i}"]
            lengths = leaves.value_lengths().to_numpy(zero_copy_only=False)
            owners = np.repeat(np.arange(batch.num_rows), lengths)
            codes = owners * TREE_LEAVES + leaves.flatten().to_numpy(zero_copy_only=False)
            sparse.append(Sparse(codes, counts.flatten().to_numpy(zero_copy_only=False)))
        return cls(keys, matrix, tuple(sparse))


def _moved(sparse: Sparse, place: Codes) -> Sparse:
    """The trees of the partitions with a place, at their places."""
    owners, leaves = np.divmod(sparse.codes, TREE_LEAVES)
    places = place[owners]
    there = places >= 0
    codes = places[there] * TREE_LEAVES + leaves[there]
    order = np.argsort(codes, kind="stable")
    return Sparse(codes[order], sparse.counts[there][order])


def add_up(
    units: pa.Array,
    keys: Sequence[pa.Array],
    values: Mapping[str, Values],
    statistics: Sequence[Statistic],
    bounds: Bounds,
    rng: np.random.Generator,
) -> Partials:
    """Bounds the contributions of all units whose rows these are, and adds up what is left.

    Args:
        units: (n,) the privacy unit of each row; all rows of a unit must be here.
        keys: the key columns of the partition, (n,) each.
        values: the value columns, (n,) float64, NaN for none.
        statistics: what to add up.
        bounds: how much of a unit is left.
        rng: the current generator of a `SecureSource`.
    """
    unit_codes, _ = key_codes([units])
    partitions, firsts = key_codes(keys)
    kept = bound_contributions(unit_codes, partitions, bounds, rng)
    rows = Rows.of(kept, values, len(firsts))
    dense = [s.add_up(rows) for s in statistics if not s.is_sparse]  # type: ignore[attr-defined]
    sparse = [Sparse(*s.add_up_sparse(rows)) for s in statistics if isinstance(s, LeafCounts)]
    matrix = np.concatenate(dense, axis=1) if dense else np.empty((len(firsts), 0), np.int64)
    sums = Partials(tuple(key.take(pa.array(firsts)) for key in keys), matrix, tuple(sparse))
    left = np.flatnonzero(np.bincount(kept.pair_partitions, minlength=len(firsts)))
    return sums.take(left)


def merge(parts: Sequence[Partials], by: Sequence[str]) -> Partials:
    """The sums of one or more partial sums with the same statistics; in no particular order.

    Args:
        parts: what to add up.
        by: names of the key columns.

    Raises:
        InputError: a key column is of two types.
    """
    if len(parts) == 1:
        return parts[0]
    keys = [concat_columns([part.keys[i] for part in parts], name) for i, name in enumerate(by)]
    codes, firsts = key_codes(keys)
    dense = np.concatenate([part.dense for part in parts])
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(firsts)))
    summed = np.add.reduceat(dense[order], starts, axis=0) if len(firsts) and dense.shape[1] else dense[firsts]
    sparse = []
    begins = np.cumsum([0, *(len(part) for part in parts)])
    for i in range(len(parts[0].sparse)):
        moved = [codes[part.sparse[i].codes // TREE_LEAVES + at] for part, at in zip(parts, begins, strict=False)]
        leaves = np.concatenate([part.sparse[i].codes % TREE_LEAVES for part in parts])
        counts = np.concatenate([part.sparse[i].counts for part in parts])
        sparse.append(_summed(np.concatenate(moved) * TREE_LEAVES + leaves, counts))
    return Partials(tuple(key.take(pa.array(firsts)) for key in keys), summed, tuple(sparse))


def _summed(codes: Codes, counts: Codes) -> Sparse:
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(codes) != 0])[: len(codes)])
    return Sparse(codes[starts], np.add.reduceat(counts[order], starts) if len(starts) else counts)


class Merger:
    """Adds up a stream of partial sums in memory for its partitions, not for its parts.

    Args:
        by: names of the key columns.
    """

    def __init__(self, by: Sequence[str]) -> None:
        self._by = by
        self._parts: list[Partials] = []
        self._rows = 0
        self._merged_rows = 0

    def add(self, parts: Iterable[Partials]) -> None:
        """Adds partial sums."""
        for part in parts:
            self._parts.append(part)
            self._rows += len(part)
            if self._rows > max(_MERGE_ROWS, 2 * self._merged_rows):
                self._parts = [merge(self._parts, self._by)]
                self._rows = self._merged_rows = len(self._parts[0])

    def __len__(self) -> int:
        """Partitions held, some of them more than once."""
        return self._rows

    def result(self) -> Partials | None:
        """All sums; None if there were none. The merger is empty afterwards."""
        parts, self._parts = self._parts, []
        self._rows = self._merged_rows = 0
        return merge(parts, self._by) if parts else None


def zeros(plan: SumPlan, keys: Sequence[pa.Array]) -> Partials:
    """The sums of partitions without rows."""
    width = sum(statistic.width for statistic in plan.statistics if not statistic.is_sparse)
    nothing = Sparse(np.empty(0, np.int64), np.empty(0, np.int64))
    trees = tuple(nothing for statistic in plan.statistics if statistic.is_sparse)
    return Partials(tuple(keys), np.zeros((len(keys[0]), width), np.int64), trees)


def key_order(keys: Sequence[pa.Array]) -> Codes:
    """The order of ascending keys, nulls last: (P,) int64."""
    names = [str(i) for i in range(len(keys))]
    # Null-typed columns cannot be sorted, and need not be.
    sortable = [name for name, key in zip(names, keys, strict=True) if not pa.types.is_null(key.type)]
    if not sortable:
        return np.arange(len(keys[0]))
    table = pa.table(list(keys), names=names)
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in sortable])
    return order.to_numpy(zero_copy_only=False).astype(np.int64)
