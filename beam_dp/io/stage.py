"""Staged shards: what one worker writes before the publish."""

from __future__ import annotations

import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Iterator

import pyarrow as pa
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_dp.errors import InputError
from beam_dp.io.batches import Position, position_of, without_position
from beam_dp.io.encode import CountingFile, encoder
from beam_dp.io.files import writing
from beam_dp.io.formats import EXTENSIONS
from beam_dp.io.publish import REJECTS, ROWS, Staged, Target

SHARD_BYTES = 512 << 20
_OPEN_SHARDS = 8
_UNPLACED = Position(source=1 << 62, offset=0, piece=1 << 62)


class Shard:
    """One staged file that is being written.

    Args:
        target: names the staging folder.
        kind: `ROWS` or `REJECTS`.
        schema: that all its batches have.
        position: of its first batch.
    """

    def __init__(self, target: Target, kind: str, schema: pa.Schema, position: Position) -> None:
        format = target.format if kind == ROWS else "jsonl"
        self._format = format
        self._kind = kind
        self.schema = schema
        self._position = position
        self._prefix = target.prefix
        self._path = f"{target.staging}/{kind}-{target.attempt}-{secrets.token_hex(8)}{EXTENSIONS[format]}"
        self._rows = 0
        self._reasons: dict[str, tuple[int, str | None, int | None]] = {}
        with writing(self._prefix):
            self._stream = FileSystems.create(self._path, compression_type=CompressionTypes.UNCOMPRESSED)
        self._file = CountingFile(self._stream)
        with self._refusals():
            self._encoder = encoder(format, self._file, schema)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            with writing(self._prefix):
                yield
        except pa.ArrowException:
            kinds = ", ".join(f"{field.name!r}: {str(field.type).split('<')[0]}" for field in self.schema)
            raise InputError(f"columns of these types cannot be written as {self._format}: {kinds}") from None

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds the rows of a batch."""
        with self._refusals():
            self._encoder.write(batch)
        self._rows += batch.num_rows
        if self._kind == REJECTS:
            for row in batch.to_pylist():
                count, source, position = self._reasons.get(row["reason"], (0, row["source"], row["position"]))
                self._reasons[row["reason"]] = count + 1, source, position

    def finish(self) -> Staged:
        """Closes the file and says what is in it."""
        with self._refusals():
            self._encoder.finish()
            self._stream.close()
        return Staged(
            kind=self._kind,
            order=(self._position.piece, self._position.source, self._position.offset),
            path=self._path,
            rows=self._rows,
            size=self._file.size,
            sha256=self._file.sha256,
            reasons=tuple((reason, *rest) for reason, rest in self._reasons.items()),
        )

    def abandon(self) -> None:
        """Closes the file, whatever state it is in."""
        with contextlib.suppress(Exception):
            self._stream.close()


def stage_empty(target: Target, schema: pa.Schema) -> Staged:
    """A shard without rows."""
    return Shard(target, ROWS, schema, _UNPLACED).finish()


class Stager:
    """Puts batches into shards: one open shard for each piece of the input, so that shards can be put in order.

    A shard also ends where it is large, where a batch does not fit its schema, and where many others are open.
    """

    def __init__(self, target: Target, kind: str) -> None:
        self._target = target
        self._kind = kind
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._staged: list[Staged] = []
        self._empty: pa.Schema | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Writes the rows of a batch into the shard of its piece."""
        schema = without_position(batch.schema)
        if not batch.num_rows:
            self._empty = schema
            return
        position = position_of(batch) or _UNPLACED
        shard = self._open.get(position.piece)
        fitting = None if shard is None or shard.size >= SHARD_BYTES else _fit(batch, shard.schema, self._target.format)
        if shard is None or fitting is None:
            if shard is not None:
                self._finish(position.piece)
            elif len(self._open) >= _OPEN_SHARDS:
                self._finish(next(iter(self._open)))
            shard, fitting = Shard(self._target, self._kind, schema, position), batch
            self._open[position.piece] = shard
        self._open.move_to_end(position.piece)
        shard.write(fitting)

    def _finish(self, piece: int) -> None:
        self._staged.append(self._open.pop(piece).finish())

    def finish(self) -> list[Staged]:
        """Ends all shards; one without rows shows the schema if there were batches, but no rows."""
        for piece in list(self._open):
            self._finish(piece)
        if self._kind == ROWS and not self._staged and self._empty is not None:
            self._staged.append(stage_empty(self._target, self._empty))
        return self._staged

    def abandon(self) -> None:
        """Closes what is open; the files stay in the staging folder."""
        for shard in self._open.values():
            shard.abandon()


def _fit(batch: pa.RecordBatch, schema: pa.Schema, format: str) -> pa.RecordBatch | None:
    """``batch`` as it can go into a shard of ``schema``; None if it needs a shard of its own.

    Types matter to parquet alone. There, all-null columns and integers that are doubles elsewhere are converted.
    """
    if batch.schema.names != schema.names:
        return None
    if format != "parquet" or batch.schema.equals(schema):
        return batch
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        alike = column.type == field.type or pa.types.is_null(column.type)
        if not alike and not (pa.types.is_int64(column.type) and pa.types.is_float64(field.type)):
            return None
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid:
            return None
    return pa.RecordBatch.from_arrays(columns, schema=schema)
