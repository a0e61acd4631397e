"""`InKeyOrder`: released partitions in an order that says nothing of the data.

`Aggregate` gives its partitions in blocks. How many there are and which comes first depends on the size of the input
and on partitions that were not selected, so neither may show in an output: not in the order of its rows, not in the
number of its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import pvalue

from beam_dp.aggregate.buckets import cut
from beam_dp.aggregate.columns import hash_keys
from beam_dp.errors import require_count
from beam_dp.io.batches import Position, with_position

PART_ROWS = 1 << 20
_BATCH_ROWS = 1 << 14


class InKeyOrder(beam.PTransform):
    """Batches of released partitions, sorted by their keys.

    Up to ``part_rows`` partitions come as one part in the order of their keys, nulls last. More of them are cut into
    parts by a hash of the key, each sorted by itself and small enough for one worker. `WriteBatches` makes a file of a
    part. All of it is a function of the released partitions alone.

    Args:
        by: the key columns.
        part_rows: how many partitions a part has, about.
    """

    def __init__(self, by: Sequence[str], part_rows: int = PART_ROWS) -> None:
        super().__init__()
        self._by = tuple(by)
        self._part_rows = require_count("part_rows", part_rows)

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Counts the partitions, cuts them into parts, sorts each."""
        count = batches | "Rows" >> beam.Map(_rows) | "Count" >> beam.CombineGlobally(sum)
        into_parts = beam.FlatMap(_cut, pvalue.AsSingleton(count), self._by, self._part_rows)
        ordered = (
            batches
            | "Cut" >> into_parts.with_output_types(tuple[int, pa.RecordBatch])
            | "GroupParts" >> beam.GroupByKey()
            | "Sort" >> beam.FlatMap(_sorted, self._by)
        )
        ordered.element_type = pa.RecordBatch
        return ordered


def _rows(batch: pa.RecordBatch) -> int:
    return batch.num_rows


def _cut(batch: pa.RecordBatch, rows: int, by: Sequence[str], part_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A batch as (part, rows); without rows it goes to the first, which so knows the columns in any case."""
    parts = -(-rows // part_rows)
    if parts <= 1 or not batch.num_rows:
        yield 0, batch
        return
    place = (hash_keys([batch.column(name) for name in by]) % np.uint64(parts)).astype(np.int64)
    yield from cut(batch, place, parts)


def _sorted(part: tuple[int, Iterable[pa.RecordBatch]], by: Sequence[str]) -> list[pa.RecordBatch]:
    """The rows of a part in the order of their keys, with the place of the part in the output."""
    number, batches = part
    table = pa.Table.from_batches(list(batches)).sort_by([(name, "ascending") for name in by]).combine_chunks()
    place = Position(source=0, offset=0, piece=number)
    empty = pa.RecordBatch.from_pylist([], table.schema)
    return [with_position(batch, place) for batch in table.to_batches(_BATCH_ROWS) or [empty]]
