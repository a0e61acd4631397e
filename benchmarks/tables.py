"""Synthetic tables of purchases, as rows and as record batches, and what feeds them to a pipeline.

A table is made of blocks, each drawn from a generator of its own, so that any worker can make any block and a table of
any size takes the memory of one block. Where production must cost next to nothing, its blocks are prepared once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_dp.errors import ArgumentError
from beam_dp.io.read import BATCH_ROWS

LARGEST_AMOUNT = 100

Kind = Literal["rows", "batches"]

# The Zipf law is looked up from 16 random bits: for a table of any size that costs less than a search.
_STEPS = 1 << 16
_SEED = 20240517


class Purchase(NamedTuple):
    """One row: who bought what for how much."""

    user: int
    item: int
    amount: float


@dataclass(frozen=True)
class PurchaseTable:
    """A table that is the same each time it is made.

    Attributes:
        rows: how many.
        users: drawn uniformly.
        items: item k is drawn with probability proportional to 1/(k+1), to within 2^-16; at most 8,192.
        strings: whether the record batches name users and items by strings instead of integers.
    """

    rows: int
    users: int
    items: int
    strings: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.users, self.items) < 1 or self.items > _STEPS // 8:
            raise ArgumentError(f"a table needs rows, users and 1 to {_STEPS // 8:,} items")

    @property
    def blocks(self) -> int:
        """How many blocks the table has."""
        return -(-self.rows // BATCH_ROWS)

    def columns(self, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Users, items and amounts (uniform in 0..100) of a block, each (n,)."""
        size = min(BATCH_ROWS, self.rows - block * BATCH_ROWS)
        rng = np.random.default_rng((_SEED, block))
        users = rng.integers(0, self.users, size)
        items = _zipf(self.items)[rng.integers(0, _STEPS, size, dtype=np.uint16)]
        return users, items, rng.uniform(0, LARGEST_AMOUNT, size)

    def batch(self, block: int) -> pa.RecordBatch:
        """A block as a record batch."""
        users, items, amounts = self.columns(block)
        keys = [pa.array(users), pa.array(items)]
        if self.strings:
            keys = [_names("user", self.users).take(keys[0]), _names("item", self.items).take(keys[1])]
        return pa.RecordBatch.from_arrays([*keys, pa.array(amounts)], names=list(Purchase._fields))

    def purchases(self, block: int) -> list[Purchase]:
        """A block as rows; they name users and items by integers."""
        return [Purchase(*row) for row in zip(*(column.tolist() for column in self.columns(block)), strict=True)]


@cache
def _zipf(items: int) -> npt.NDArray[np.int64]:
    weights = np.cumsum(1 / np.arange(1, items + 1))
    return np.searchsorted(weights / weights[-1], (np.arange(_STEPS) + 0.5) / _STEPS).astype(np.int64)


@cache
def _names(prefix: str, size: int) -> pa.Array:
    return pa.array([f"{prefix}-{number:07d}" for number in range(size)])


@cache
def prepared(table: PurchaseTable, kind: Kind) -> tuple[list[Any], ...]:
    """The elements of every block, made once in a process."""
    return tuple(_made(table, kind, block) for block in range(table.blocks))


def _made(table: PurchaseTable, kind: Kind, block: int) -> list[Any]:
    return table.purchases(block) if kind == "rows" else [table.batch(block)]


def _taken(table: PurchaseTable, kind: Kind, block: int) -> list[Any]:
    return prepared(table, kind)[block]


def read(table: PurchaseTable, kind: Kind, *, prepare: bool = True) -> beam.PTransform:
    """What yields the elements of a table; only the numbers of its blocks go through `beam.Create`.

    Args:
        table: which.
        kind: ``rows`` for `Purchase`, ``batches`` for `pyarrow.RecordBatch`.
        prepare: whether all blocks are made once and kept, or each when it is its turn.
    """
    elements = partial(_taken if prepare else _made, table, kind)
    hint = Purchase if kind == "rows" else pa.RecordBatch
    # The type is declared: to infer it, Beam would look at every element of a list.
    return beam.Create(range(table.blocks)) | beam.FlatMap(elements).with_output_types(hint)
