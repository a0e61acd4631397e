"""What rows add up to in a partition: vectors of integers whose sensitivity is known.

A statistic maps the rows that contribution bounding has left to integers for each partition. Values are clamped to
public bounds and quantised: the largest magnitude becomes 2^30 units, so that one row changes a total by at most 2^30.
Totals are kept in two limbs, ``high * 2^15 + low``, each summed apart: neither a sum of 2^38 rows in float64 nor one of
2^47 rows in int64 can overflow or round.

NaN (null) contributes to no statistic of its column; infinities are clamped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from beam_dp.aggregate.bounds import Bounds, Codes, Kept
from beam_dp.errors import ArgumentError, describe_kind

Values = npt.NDArray[np.float64]

QUANTISED_BITS = 30
LIMB_BITS = 15
TREE_HEIGHT = 4
TREE_BRANCHING = 16
TREE_LEAVES = TREE_BRANCHING**TREE_HEIGHT


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that are left, as statistics see them.

    Attributes:
        partition: (m,) the partition of each row.
        pair_partitions: (q,) the partition of each (unit, partition).
        values: for each column (m,) float64, NaN where there is no number.
        size: the number of partitions.
    """

    partition: Codes
    pair_partitions: Codes
    values: Mapping[str, Values]
    size: int

    @classmethod
    def of(cls, kept: Kept, values: Mapping[str, Values], size: int) -> Rows:
        """The rows of ``kept``; ``values`` are those of all rows before."""
        lengths = np.diff(kept.pair_starts, append=len(kept.rows))
        partition = np.repeat(kept.pair_partitions, lengths)
        return cls(partition, kept.pair_partitions, {name: v[kept.rows] for name, v in values.items()}, size)

    def count(self, where: npt.NDArray[np.bool_] | None = None) -> Codes:
        """Rows in each partition, all or those of a mask: (size,)."""
        return np.bincount(self.partition if where is None else self.partition[where], minlength=self.size)


@dataclass(frozen=True)
class Statistic:
    """A vector of ``width`` integers for each partition.

    Attributes:
        column: where the values are; None for statistics of whole rows.
    """

    column: str | None = None
    width: ClassVar[int] = 1
    is_sparse: ClassVar[bool] = False

    def partition_sensitivity(self, bounds: Bounds) -> int:
        """By how much, in the L1 norm over the vector, one unit changes one partition at most."""
        return bounds.rows_per_partition

    @property
    def single(self) -> bool:
        """Whether there is one integer for each partition."""
        return self.width == 1


@dataclass(frozen=True)
class RowCount(Statistic):
    """The number of rows."""

    def add_up(self, rows: Rows) -> Codes:
        """(size, 1) int64."""
        return rows.count()[:, None]


@dataclass(frozen=True)
class UnitCount(Statistic):
    """The number of distinct privacy units."""

    def partition_sensitivity(self, bounds: Bounds) -> int:
        """One: a unit counts once."""
        return 1

    def add_up(self, rows: Rows) -> Codes:
        """(size, 1) int64."""
        return np.bincount(rows.pair_partitions, minlength=rows.size)[:, None]


@dataclass(frozen=True, kw_only=True)
class ValueCount(Statistic):
    """The number of rows with a number in ``column``."""

    column: str

    def add_up(self, rows: Rows) -> Codes:
        """(size, 1) int64."""
        return rows.count(~np.isnan(rows.values[self.column]))[:, None]


@dataclass(frozen=True, kw_only=True)
class Total(Statistic):
    """The sum of quantised values.

    Attributes:
        low: values below are taken for it.
        high: values above are taken for it; at least ``low``.
        of: ``value``: x itself; ``centred``: x - middle; ``squares``: (x - middle)² - halfrange²/2, which lies in
            ±halfrange²/2.
    """

    column: str
    low: float
    high: float
    of: Literal["value", "centred", "squares"] = "value"
    width: ClassVar[int] = 2

    @property
    def single(self) -> bool:
        """Two limbs of one integer."""
        return True

    @property
    def middle(self) -> float:
        """Of the bounds."""
        return self.low + (self.high - self.low) / 2

    @property
    def magnitude(self) -> float:
        """The largest magnitude of what is summed, in the units of the column (squared for squares)."""
        half = (self.high - self.low) / 2
        return {"value": max(abs(self.low), abs(self.high)), "centred": half, "squares": half * half / 2}[self.of]

    def partition_sensitivity(self, bounds: Bounds) -> int:
        """L∞·2^30: each row adds an integer of magnitude at most 2^30."""
        return bounds.rows_per_partition << QUANTISED_BITS

    def quantise(self, values: Values) -> Codes:
        """(m,) float64 to (m,) int64 of magnitude at most 2^30, by a function of each value alone; NaN gives 0."""
        x = np.clip(values, self.low, self.high)
        if self.of != "value":
            x -= self.middle
        if self.of == "squares":
            np.square(x, out=x)
            x -= self.magnitude
        limit = 1 << QUANTISED_BITS
        if self.magnitude > 0:
            x /= self.magnitude
        scaled = np.rint(np.nan_to_num(x, nan=0.0, copy=False) * limit)
        # The clip is what the sensitivity rests on: no rounding before can lead beyond it.
        return np.clip(scaled, -limit, limit).astype(np.int64)

    def add_up(self, rows: Rows) -> Codes:
        """(size, 2) int64: high and low limb."""
        quantised = self.quantise(rows.values[self.column])
        limbs = (quantised >> LIMB_BITS, quantised & ((1 << LIMB_BITS) - 1))
        sums = [np.bincount(rows.partition, weights=limb, minlength=rows.size) for limb in limbs]
        return np.stack(sums, axis=1).astype(np.int64)


def shifted_total(limbs: Codes, shift: int) -> Codes:
    """round(total / 2^shift) of totals in limbs (P, 2): (P,) int64, halves up; ``shift`` from 15 to 30.

    floor((h·2^15 + l + r) / 2^shift) = floor((h + floor((l + r) / 2^15)) / 2^(shift - 15)), r = 2^(shift-1), so that no
    intermediate result is larger than the limbs.
    """
    high, low = limbs[:, 0], limbs[:, 1]
    return (high + ((low + (1 << (shift - 1))) >> LIMB_BITS)) >> (shift - LIMB_BITS)


@dataclass(frozen=True, kw_only=True)
class BinCounts(Statistic):
    """The number of values in each bin [e_i, e_(i+1)), the last one with its upper edge; values beyond go to the ends.

    Attributes:
        edges: ascending, two or more.
    """

    column: str
    edges: tuple[float, ...]

    @property
    def width(self) -> int:  # type: ignore[override]
        """The number of bins."""
        return len(self.edges) - 1

    @property
    def single(self) -> bool:
        """Whether there is one bin."""
        return self.width == 1

    def add_up(self, rows: Rows) -> Codes:
        """(size, bins) int64."""
        values = rows.values[self.column]
        there = ~np.isnan(values)
        bins = np.clip(np.searchsorted(self.edges, values[there], side="right") - 1, 0, self.width - 1)
        counts = np.bincount(rows.partition[there] * self.width + bins, minlength=rows.size * self.width)
        return counts.reshape(rows.size, self.width)


@dataclass(frozen=True, kw_only=True)
class LeafCounts(Statistic):
    """The number of values in each leaf of a tree over [low, high]; sparse, since most leaves are empty.

    A row is in one leaf and so in one node of each of the four levels below the root: it changes four counts by one.
    """

    column: str
    low: float
    high: float
    is_sparse: ClassVar[bool] = True

    @property
    def single(self) -> bool:
        """No: nodes of four levels."""
        return False

    def partition_sensitivity(self, bounds: Bounds) -> int:
        """L∞ times the height of the tree."""
        return TREE_HEIGHT * bounds.rows_per_partition

    def leaves(self, values: Values) -> Codes:
        """The leaf of each value (no NaN), (m,) int64."""
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        return np.minimum((share * TREE_LEAVES).astype(np.int64), TREE_LEAVES - 1)

    def add_up_sparse(self, rows: Rows) -> tuple[Codes, Codes]:
        """Ascending codes ``partition * TREE_LEAVES + leaf`` that occur, and how often."""
        values = rows.values[self.column]
        there = ~np.isnan(values)
        return np.unique(rows.partition[there] * TREE_LEAVES + self.leaves(values[there]), return_counts=True)


def require_bounds(low: object, high: object, *, equal: bool = True) -> tuple[float, float]:
    """Finite clamping bounds with low <= high (below it, unless ``equal``), as floats.

    Raises:
        ArgumentError: they are not.
    """
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise ArgumentError(f"{name} must be a finite number, not {describe_kind(value)}")
        try:
            within = abs(float(value)) <= 1e150
        except OverflowError:
            within = False
        if not within:
            raise ArgumentError(f"{name} must be a finite number of magnitude at most 1e150")
    a, b = float(low), float(high)  # type: ignore[arg-type]
    if a > b or (a == b and not equal):
        raise ArgumentError(f"low must be {'at most' if equal else 'below'} high, but {a:g} and {b:g} were given")
    return a, b
