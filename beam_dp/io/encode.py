"""RecordBatches as the bytes of one shard, in every output format.

Nothing is quoted in text and tsv, so a line end (and in tsv a tab) inside a value becomes a space there. Nulls are
empty values in text, csv and tsv. Nested values are JSON text in csv and tsv. JSON has no NaN and no infinity: they
become null in jsonl.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import io
import json
import math
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from beam_dp.errors import InputError
from beam_dp.io.batches import without_position

_ROW_GROUP_ROWS = 1 << 20
_ROW_GROUP_BYTES = 64 << 20


class ShardEncoder(Protocol):
    """Writes the batches of one schema to one stream."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds the rows of a batch."""

    def finish(self) -> None:
        """Writes what is still held; does not close the stream."""


class CountingFile(io.RawIOBase):
    """A write-only stream that counts and hashes what passes."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """How much was written."""
        return self.size

    def write(self, data: Any) -> int:
        """Passes ``data`` on."""
        self._stream.write(data)
        self._digest.update(data)
        count = memoryview(data).nbytes
        self.size += count
        return count

    @property
    def sha256(self) -> str:
        """64 hexadecimal digits of what was written."""
        return self._digest.hexdigest()


def encoder(format: str, stream: CountingFile, schema: pa.Schema) -> ShardEncoder:
    """The encoder of a format for batches of ``schema``."""
    return _ENCODERS[format](stream, without_position(schema))


class _Text:
    def __init__(self, stream: CountingFile, schema: pa.Schema) -> None:
        if len(schema) > 1:
            raise InputError(f"output of format text holds one column, not {len(schema)}: {', '.join(schema.names)}")
        self._stream = stream

    def write(self, batch: pa.RecordBatch) -> None:
        self._stream.write(_lines(_unquoted(batch, "\r\n")))

    def finish(self) -> None:
        """Nothing is held."""


class _Tsv:
    def __init__(self, stream: CountingFile, schema: pa.Schema) -> None:
        self._stream = stream
        names = pa.record_batch([pa.array([name]) for name in schema.names], names=[str(i) for i in range(len(schema))])
        if len(schema):
            stream.write(_lines(_unquoted(names, "\r\n\t")))

    def write(self, batch: pa.RecordBatch) -> None:
        self._stream.write(_lines(_unquoted(batch, "\r\n\t")))

    def finish(self) -> None:
        """Nothing is held."""


class _Csv:
    def __init__(self, stream: CountingFile, schema: pa.Schema) -> None:
        self._stream = stream
        if len(schema):
            pa_csv.write_csv(_flat(pa.RecordBatch.from_pylist([], schema)), stream)

    def write(self, batch: pa.RecordBatch) -> None:
        pa_csv.write_csv(_flat(batch), self._stream, pa_csv.WriteOptions(include_header=False))

    def finish(self) -> None:
        """Nothing is held."""


class _Jsonl:
    def __init__(self, stream: CountingFile, schema: pa.Schema) -> None:
        self._stream = stream

    def write(self, batch: pa.RecordBatch) -> None:
        columns = [c.cast(pa.string()) if pa.types.is_timestamp(c.type) else c for c in batch.columns]
        rows = pa.record_batch(columns, names=batch.schema.names).to_pylist()
        try:
            lines = [_dumps(row) for row in rows]
        except ValueError:
            lines = [_dumps(_finite(row)) for row in rows]
        self._stream.write("".join(line + "\n" for line in lines).encode())

    def finish(self) -> None:
        """Nothing is held."""


class _Parquet:
    def __init__(self, stream: CountingFile, schema: pa.Schema) -> None:
        self._stream = stream
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch.replace_schema_metadata(self._schema.metadata))
        self._held_rows += batch.num_rows
        self._held_bytes += batch.nbytes
        if self._held_rows >= _ROW_GROUP_ROWS or self._held_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._held, self._schema)
        self._held, self._held_rows, self._held_bytes = [], 0, 0
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._stream, table.schema, compression="zstd", compression_level=1, use_dictionary=False
            )
        self._writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)

    def finish(self) -> None:
        if self._held or self._writer is None:
            self._flush()
        assert self._writer is not None
        self._writer.close()


_ENCODERS: dict[str, Callable[[CountingFile, pa.Schema], ShardEncoder]] = {
    "text": _Text,
    "jsonl": _Jsonl,
    "csv": _Csv,
    "tsv": _Tsv,
    "parquet": _Parquet,
}


def _flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    """``batch`` with columns that a delimited file can hold: nested values as JSON text, bytes as the text they are."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type
        if pa.types.is_nested(kind):
            values = [None if value is None else _dumps(_finite(value)) for value in column.to_pylist()]
            columns.append(pa.array(values, pa.string()))
        elif pa.types.is_dictionary(kind):
            columns.append(column.dictionary_decode())
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            columns.append(_text_of_bytes(column, name))
        else:
            columns.append(column)
    return pa.record_batch(columns, names=batch.schema.names)


def _text_of_bytes(column: pa.Array, name: str) -> pa.Array:
    try:
        return column.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        raise InputError(f"column {name} holds bytes that are not UTF-8 text; only parquet can hold it") from None


def _unquoted(batch: pa.RecordBatch, forbidden: str) -> list[pa.StringArray]:
    """The columns as strings without nulls, with spaces instead of ``forbidden`` characters."""
    columns = []
    for column in _flat(batch).columns:
        text = pc.fill_null(column.cast(pa.string()), "")
        for character in forbidden:
            if _holds(text, ord(character)):
                text = pc.replace_substring(text, character, " ")
        columns.append(text)
    return columns


def _holds(text: pa.StringArray, byte: int) -> bool:
    values = text.buffers()[2]
    return values is not None and bool((np.frombuffer(values, np.uint8) == byte).any())


def _lines(columns: list[pa.StringArray]) -> memoryview:
    """The columns between tabs, a line end after each row, as the bytes of the file."""
    if not columns or not len(columns[0]):
        return memoryview(b"")
    joined = pc.binary_join_element_wise(*columns, "\t")
    lines = pc.binary_join_element_wise(joined, "", "\n")
    offsets = np.frombuffer(lines.buffers()[1], np.int32)
    return memoryview(lines.buffers()[2])[offsets[lines.offset] : offsets[lines.offset + len(lines)]]


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_json_value)


def _json_value(value: Any) -> Any:
    """What JSON has no kind for, as text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InputError("a column holds bytes that are not UTF-8 text; only parquet can hold it") from None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    raise InputError(f"a column holds values of type {type(value).__name__}, which JSON cannot hold")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
