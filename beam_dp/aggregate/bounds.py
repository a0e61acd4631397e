"""Contribution bounding: what is left of a privacy unit's rows, exactly and uniformly at random.

The columnar shape: all rows of a unit are in one batch, so that sorting it bounds every unit in it at once. Codes
stand for values: ``units`` and ``partitions`` are (n,) integers from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from beam_dp.errors import require_count

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bounds:
    """How much one privacy unit may contribute; what exceeds it is dropped, uniformly at random.

    Attributes:
        partitions: L0, the most partitions that a unit's rows are in.
        rows_per_partition: L∞, the most rows of a unit in one partition.
    """

    partitions: int
    rows_per_partition: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "partitions", require_count("partitions", self.partitions))
        object.__setattr__(self, "rows_per_partition", require_count("rows_per_partition", self.rows_per_partition))


@dataclass(frozen=True, eq=False)
class Kept:
    """The rows that are left, grouped by (unit, partition).

    Attributes:
        rows: (m,) indices of the rows that are left.
        pair_partitions: (q,) the partition of each (unit, partition) that is left.
        pair_starts: (q,) where its rows begin in ``rows``.
    """

    rows: Codes
    pair_partitions: Codes
    pair_starts: Codes


def bound_contributions(units: Codes, partitions: Codes, bounds: Bounds, rng: np.random.Generator) -> Kept:
    """At most L0 partitions for each unit and at most L∞ rows in each of them.

    A random permutation ranks the rows and the L∞ first of each (unit, partition) stay: a uniform sample without
    replacement. The partitions of each unit are ranked by another one, independent of it. So each unit's sample is
    independent of every other unit's rows, and adding or removing a unit changes no other unit's sample in law.

    Args:
        units: (n,) codes from 0.
        partitions: (n,) codes from 0.
        bounds: L0 and L∞.
        rng: the current generator of a `SecureSource`.
    """
    width = int(partitions.max(initial=0)) + 1
    pairs, rows = _shuffled_groups(units * width + partitions, rng)
    starts = _starts(pairs)
    kept_pairs = np.ones(len(starts), bool)
    pair_units = pairs[starts] // width
    if len(starts) and np.diff(_starts(pair_units), append=len(starts)).max() > bounds.partitions:
        kept_pairs[:] = False
        owners, order = _shuffled_groups(pair_units, rng)
        kept_pairs[order[_ranks(owners) < bounds.partitions]] = True
    keep = np.repeat(kept_pairs, np.diff(starts, append=len(pairs))) & (_ranks(pairs) < bounds.rows_per_partition)
    rows, pairs = rows[keep], pairs[keep]
    starts = _starts(pairs)
    return Kept(rows, pairs[starts] % width, starts)


def thin_rows(
    units: Codes, partitions: Codes, tags: npt.NDArray[np.uint64], rows_per_partition: int
) -> npt.NDArray[np.bool_]:
    """Which rows are among the L∞ of least tag of their (unit, partition), (n,) bool.

    With independent uniform 64-bit tags this is a uniform sample (but for equal tags, of probability below
    n²/2^65), and thinning parts and then their union is the same as thinning all at once.
    """
    order = np.lexsort((tags, partitions, units))
    changes = (np.diff(units[order]) != 0) | (np.diff(partitions[order]) != 0)
    first = np.flatnonzero(np.concatenate([[True], changes])[: len(order)])
    ranks = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    keep = np.empty(len(order), bool)
    keep[order] = ranks < rows_per_partition
    return keep


def _shuffled_groups(groups: Codes, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """The group codes in ascending order and the index of each, in uniformly random order within a group."""
    n = len(groups)
    order = rng.permutation(n)
    bits = max(n - 1, 0).bit_length()
    if int(groups.max(initial=0)).bit_length() + bits < 64:
        # One sort of plain integers is several times as fast as a stable argsort.
        keys = (groups[order] << bits) | np.arange(n)
        keys.sort()
        return keys >> bits, order[keys & ((1 << bits) - 1)]
    stable = np.argsort(groups[order], kind="stable")
    order = order[stable]
    return groups[order], order


def _starts(ordered: Codes) -> Codes:
    """Where each run of equal values begins."""
    if not len(ordered):
        return np.empty(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])


def _ranks(ordered: Codes) -> Codes:
    """The place of each item in its run of equal values, from 0."""
    starts = _starts(ordered)
    return np.arange(len(ordered)) - np.repeat(starts, np.diff(starts, append=len(ordered)))
