"""Buckets of privacy units: how rows get into them, and how one that is too large for memory is bounded all the same.

A bucket holds all rows of its units, so that it can be bounded by itself. Its rows come as slices with the columns
unit, keys, numbers. A bucket above `MEMORY_ROWS` is cut into parts by further bits of the same hash, on local
disk; before that, rows beyond L∞ of each (unit, partition) are dropped chunk by chunk, by random tags that go along, so
that a unit with most of the rows of a data set does not outgrow memory either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from beam_dp.aggregate.bounds import Bounds, Codes, thin_rows
from beam_dp.aggregate.columns import concat_columns, hash_keys, key_codes, key_column, number_column
from beam_dp.aggregate.partials import Partials, SumPlan, add_up
from beam_dp.mechanisms.coins import random_words

MEMORY_ROWS = 1 << 22
_PARTS = 32
_TAGS = "tags"


@dataclass(frozen=True)
class Columns:
    """Which columns of the input an aggregation takes, and what they are called on the way.

    Attributes:
        unit: the column of the privacy unit.
        by: the key columns.
        numbers: the columns of numbers.
    """

    unit: str
    by: tuple[str, ...]
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, plan: SumPlan) -> Columns:
        """Those of a plan."""
        columns = (statistic.column for statistic in plan.statistics)
        return cls(plan.privacy_unit, plan.by, tuple(dict.fromkeys(c for c in columns if c is not None)))

    @property
    def key_names(self) -> tuple[str, ...]:
        """The unit and the keys by their input names."""
        return (self.unit, *self.by)

    def select(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that have a unit, with the columns unit, keys, numbers (float64) by place.

        Raises:
            InputError: a column is of a type that cannot serve.
        """
        arrays = [key_column(batch.column(name), name) for name in self.key_names]
        arrays += [number_column(batch.column(name), name) for name in self.numbers]
        chosen = pa.RecordBatch.from_arrays(arrays, names=[str(i) for i in range(len(arrays))])
        return chosen.filter(arrays[0].is_valid()) if arrays[0].null_count else chosen

    def concat(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """Selected batches as one."""
        if len(batches) == 1:
            return batches[0]
        names = (*self.key_names, *self.numbers)
        arrays = [
            concat_columns([batch.column(i) for batch in batches], names[i] if i < len(names) else _TAGS)
            for i in range(batches[0].num_columns)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=batches[0].schema.names)

    def units(self, rows: pa.RecordBatch) -> pa.Array:
        """The units of selected rows."""
        return rows.column(0)

    def keys(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The keys of selected rows."""
        return [rows.column(1 + i) for i in range(len(self.by))]

    def values(self, rows: pa.RecordBatch) -> dict[str, np.ndarray]:
        """The numbers of selected rows."""
        first = 1 + len(self.by)
        return {name: rows.column(first + i).to_numpy() for i, name in enumerate(self.numbers)}


def cut_by_unit(columns: Columns, rows: pa.RecordBatch, buckets: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Selected rows as (bucket, its rows), every row of a unit in the same bucket."""
    place = (hash_keys([columns.units(rows)]) % np.uint64(buckets)).astype(np.int64)
    yield from cut(rows, place, buckets)


def cut(rows: pa.RecordBatch, place: Codes, count: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows as (place, the rows with that place), for each place from 0 to ``count`` - 1 that occurs."""
    narrow = place.astype(np.uint16) if count <= 1 << 16 else place
    # numpy sorts 16-bit integers by radix.
    order = np.argsort(narrow, kind="stable")
    ordered = rows.take(pa.array(order))
    ends = np.cumsum(np.bincount(place, minlength=count))
    for index in np.flatnonzero(np.diff(ends, prepend=0)):
        start = int(ends[index - 1]) if index else 0
        yield int(index), ordered.slice(start, int(ends[index]) - start)


def bucket_sums(
    plan: SumPlan,
    slices: Iterable[pa.RecordBatch],
    buckets: int,
    rng: np.random.Generator,
    memory_rows: int = MEMORY_ROWS,
) -> Iterator[Partials]:
    """The sums of one bucket after contribution bounding; in several parts where it is too large for memory."""
    columns = Columns.of(plan)
    stream = iter(slices)
    held, more = _until(stream, memory_rows)
    if not more:
        if held:
            yield _sums(plan, columns, columns.concat(held), rng)
        return
    with tempfile.TemporaryDirectory(prefix="beam_dp_bucket_") as folder:
        spill = _Spill(plan.bounds, columns, Path(folder), buckets, memory_rows)
        while held:
            spill.add(columns.concat(held), rng)
            held, _ = _until(stream, memory_rows)
        for rows in spill.parts():
            yield _sums(plan, columns, rows, rng)


def _until(stream: Iterator[pa.RecordBatch], most_rows: int) -> tuple[list[pa.RecordBatch], bool]:
    """The next slices of up to about so many rows, and whether that was why it stopped."""
    held, rows = [], 0
    for batch in stream:
        held.append(batch)
        rows += batch.num_rows
        if rows > most_rows:
            return held, True
    return held, False


def _sums(plan: SumPlan, columns: Columns, rows: pa.RecordBatch, rng: np.random.Generator) -> Partials:
    return add_up(columns.units(rows), columns.keys(rows), columns.values(rows), plan.statistics, plan.bounds, rng)


class _Spill:
    """A bucket on disk, in parts that each hold all rows of their units."""

    def __init__(self, bounds: Bounds, columns: Columns, folder: Path, buckets: int, memory_rows: int) -> None:
        self._bounds = bounds
        self._columns = columns
        self._folder = folder
        self._buckets = np.uint64(buckets)
        self._memory_rows = memory_rows
        self._count = 0

    def add(self, rows: pa.RecordBatch, rng: np.random.Generator) -> None:
        """Thins a chunk and appends it to its parts."""
        tagged = pa.RecordBatch.from_arrays(
            [*rows.columns, pa.array(random_words(rows.num_rows, rng))], names=[*rows.schema.names, _TAGS]
        )
        tagged = self._thinned(tagged)
        place = hash_keys([self._columns.units(tagged)]) // self._buckets % np.uint64(_PARTS)
        for index, part in cut(tagged, place.astype(np.int64), _PARTS):
            with pa.OSFile(str(self._path(index, self._count)), "wb") as sink, pa.ipc.new_file(sink, part.schema) as w:
                w.write_batch(part)
        self._count += 1

    def parts(self) -> Iterator[pa.RecordBatch]:
        """The rows of each part, thinned as a whole, without tags."""
        for index in range(_PARTS):
            held: list[pa.RecordBatch] = []
            thinned_rows = 0
            for path in filter(Path.exists, (self._path(index, count) for count in range(self._count))):
                with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
                    held.append(reader.get_batch(0))
                path.unlink()
                # At twice the size, so that rows which stay are not sorted again for every chunk.
                if sum(chunk.num_rows for chunk in held) > max(self._memory_rows, 2 * thinned_rows):
                    held = [self._thinned(self._columns.concat(held))]
                    thinned_rows = held[0].num_rows
            if held:
                rows = self._columns.concat(held) if len(held) == 1 else self._thinned(self._columns.concat(held))
                yield rows.select(rows.schema.names[:-1])

    def _path(self, part: int, chunk: int) -> Path:
        return self._folder / f"{part}-{chunk}.arrow"

    def _thinned(self, tagged: pa.RecordBatch) -> pa.RecordBatch:
        units, _ = key_codes([self._columns.units(tagged)])
        partitions, _ = key_codes(self._columns.keys(tagged))
        tags = tagged.column(tagged.num_columns - 1).to_numpy()
        return tagged.filter(pa.array(thin_rows(units, partitions, tags, self._bounds.rows_per_partition)))
