"""`pyarrow.RecordBatch` as a Beam element: its coder, its place in the input, and its size.

Importing this module registers `RecordBatchCoder` for `pyarrow.RecordBatch`. Beam's default coder would pickle a
batch, and a pickled slice ships the buffers of its parent.

A source writes the place of a batch into the schema metadata (see `Position`); a transform that makes a new batch
from another copies the metadata (`keep_position`), and sinks order their shards by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa

SOURCE_KEY = b"beam_dp.source"
OFFSET_KEY = b"beam_dp.offset"
PIECE_KEY = b"beam_dp.piece"
_POSITION_KEYS = (SOURCE_KEY, OFFSET_KEY, PIECE_KEY)


class RecordBatchCoder(beam.coders.Coder):
    """Arrow IPC stream of one batch: schema with its metadata, then the rows of this batch only.

    Decoding copies nothing: the arrays of the result point into the encoded bytes.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        """The IPC stream that holds ``value``."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        """The batch in an IPC stream that `encode` made."""
        with pa.ipc.open_stream(pa.py_buffer(encoded)) as reader:
            return reader.read_next_batch()

    def is_deterministic(self) -> bool:
        """Equal batches (values, schema and metadata) with equal buffers give equal bytes."""
        return True

    def estimate_size(self, value: pa.RecordBatch) -> int:
        """Bytes of the rows of ``value``; cheap, since Beam asks while it samples element sizes."""
        return value.nbytes

    def to_type_hint(self) -> type[pa.RecordBatch]:
        """The element type that the coder is registered for."""
        return pa.RecordBatch

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


beam.coders.registry.register_coder(pa.RecordBatch, RecordBatchCoder)


@dataclass(frozen=True, order=True)
class Position:
    """Where the first row of a batch stands in the input.

    Attributes:
        source: index of the file in the sorted list of input files.
        offset: position in that file, a byte offset or a row number, whichever the format has; monotone.
        piece: index of the unit of work that read it; all batches of one piece come from one worker, in order.
    """

    source: int
    offset: int
    piece: int


def with_position(batch: pa.RecordBatch, position: Position) -> pa.RecordBatch:
    """``batch`` with ``position`` in its schema metadata; other metadata stays."""
    metadata = dict(batch.schema.metadata or {})
    for key, number in zip(_POSITION_KEYS, (position.source, position.offset, position.piece), strict=True):
        metadata[key] = str(number).encode()
    return batch.replace_schema_metadata(metadata)


def position_of(batch: pa.RecordBatch) -> Position | None:
    """The position that a source gave the batch, or None for a batch that came from elsewhere."""
    metadata = batch.schema.metadata
    if not metadata or any(key not in metadata for key in _POSITION_KEYS):
        return None
    return Position(*(int(metadata[key]) for key in _POSITION_KEYS))


def keep_position(batch: pa.RecordBatch, origin: pa.RecordBatch) -> pa.RecordBatch:
    """``batch`` with the position of ``origin``, from which it was made."""
    position = position_of(origin)
    return batch if position is None else with_position(batch, position)


def without_position(schema: pa.Schema) -> pa.Schema:
    """``schema`` without the position, as it goes into a file."""
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key not in _POSITION_KEYS}
    return schema.with_metadata(metadata or None)


def split_by_size(batch: pa.RecordBatch, max_rows: int, max_bytes: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cuts a batch into (index of the first row, slice) with at most ``max_rows`` rows and ``max_bytes`` bytes each.

    A single row above ``max_bytes`` is a slice of its own. Slices share the buffers of the batch. A batch without
    rows is one slice.
    """
    if batch.num_rows <= 1:
        yield 0, batch
        return
    for start in range(0, batch.num_rows, max_rows):
        yield from _halve(batch.slice(start, max_rows), start, max_bytes)


def _halve(batch: pa.RecordBatch, start: int, max_bytes: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    if batch.num_rows <= 1 or batch.nbytes <= max_bytes:
        yield start, batch
        return
    middle = batch.num_rows // 2
    yield from _halve(batch.slice(0, middle), start, max_bytes)
    yield from _halve(batch.slice(middle), start + middle, max_bytes)
