"""Alias tables: one draw from any of V finite laws for one random word and two look-ups.

The tables are exact: the law that they sample is a rational number with a known denominator, and `AliasTables.law`
gives it back to the last bit, so that a guarantee can be computed for what is drawn and not for what was meant.

Source: Walker 1977; Vose 1991. Here the V tables are built side by side, one column a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.base import Arrays, WordIds

# Each column of a table holds 2^32 units of probability: one half of a random 64-bit word chooses among them.
_COLUMN_BITS = 32
_COLUMN = 1 << _COLUMN_BITS
_BLOCK_DRAWS = 1 << 14


@dataclass(frozen=True, eq=False)
class AliasTables:
    """V tables of 2^m columns over the outcomes 0 to K-1, with K <= 2^m <= 256.

    Attributes:
        thresholds: (V, 2^m) uint32; column c keeps its own outcome c on the units below ``thresholds[w, c]``.
        aliases: (V, 2^m) uint8; the outcome of the other units of column c.
    """

    thresholds: npt.NDArray[np.uint32]
    aliases: npt.NDArray[np.uint8]

    @classmethod
    def from_laws(cls, laws: npt.NDArray[np.float64]) -> AliasTables:
        """Tables of ``laws`` (V, K): rows of probabilities that sum to 1, rounded to 2^-(m+32).

        Raises:
            ArgumentError: more than 256 outcomes, a negative or NaN probability, or a row that does not sum to 1.
        """
        rows, outcomes = laws.shape
        if not 1 <= outcomes <= 256:
            raise ArgumentError(f"laws must have 1 to 256 outcomes, not {outcomes}")
        if not (np.all(laws >= 0) and np.allclose(laws.sum(axis=1), 1, rtol=0, atol=1e-6)):
            raise ArgumentError("laws must be rows of probabilities that sum to 1")
        columns = 1 << (outcomes - 1).bit_length()
        units = _whole_units(laws, columns)
        thresholds = np.zeros((rows, columns), dtype=np.uint32)
        aliases = np.tile(np.arange(columns, dtype=np.uint8), (rows, 1))
        row = np.arange(rows)
        closed = np.zeros((rows, columns), dtype=bool)
        for _ in range(columns - 1):
            # The poorest open column is filled up by the richest: their mean is one column, so it always can.
            poor = np.where(closed, np.iinfo(np.int64).max, units).argmin(axis=1)
            closed[row, poor] = True
            rich = np.where(closed, -1, units).argmax(axis=1)
            has = units[row, poor]
            full = has == _COLUMN  # then every open column is full: the alias (itself) has no say
            thresholds[row, poor] = np.where(full, 0, has)
            aliases[row, poor] = np.where(full, poor, rich)
            units[row, rich] -= _COLUMN - has
        return cls(thresholds, aliases)

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> AliasTables:
        """The tables from `to_arrays`."""
        return cls(arrays["thresholds"], arrays["aliases"])

    def to_arrays(self) -> Arrays:
        """The two arrays by name, to be stored."""
        return {"thresholds": self.thresholds, "aliases": self.aliases}

    def law(self) -> npt.NDArray[np.float64]:
        """The law (V, 2^m) that the tables sample, exactly: multiples of 2^-(m+32)."""
        rows, columns = self.thresholds.shape
        own = self.thresholds.astype(np.int64)
        row = np.repeat(np.arange(rows), columns)
        units = own.copy()
        np.add.at(units, (row, self.aliases.ravel()), (_COLUMN - own).ravel())
        return units / (columns * _COLUMN)

    def sample(self, ids: WordIds, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        """One outcome (n,) for each row number in ``ids`` (n,)."""
        columns = self.thresholds.shape[1]
        column_bits = columns.bit_length() - 1
        thresholds, aliases = self.thresholds.ravel(), self.aliases.ravel()
        out = np.empty(len(ids), dtype=np.intp)
        for start in range(0, len(ids), _BLOCK_DRAWS):
            part = ids[start : start + _BLOCK_DRAWS]
            bits = rng.integers(0, 1 << 64, size=len(part), dtype=np.uint64)
            column = (bits & np.uint64(columns - 1)).astype(np.intp)
            cell = (part.astype(np.intp) << column_bits) + column
            unit = (bits >> np.uint64(64 - _COLUMN_BITS)).astype(np.uint32)
            keeps = unit < thresholds[cell]
            out[start : start + len(part)] = np.where(keeps, column, aliases[cell])
        return out


def _whole_units(laws: npt.NDArray[np.float64], columns: int) -> npt.NDArray[np.int64]:
    """``laws`` in whole units, (V, columns): the richest outcome takes what rounding left over."""
    total = columns * _COLUMN
    units = np.zeros((len(laws), columns), dtype=np.int64)
    units[:, : laws.shape[1]] = np.rint(laws / laws.sum(axis=1, keepdims=True) * total)
    units[np.arange(len(laws)), units.argmax(axis=1)] += total - units.sum(axis=1)
    return units
