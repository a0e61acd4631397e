"""Parquet: the row groups that begin in a range of bytes, only the wanted columns, in batches of bounded size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_dp.errors import InputError
from beam_dp.io.batches import split_by_size
from beam_dp.io.files import InputFile, open_stored, reading
from beam_dp.io.formats import require_columns
from beam_dp.io.source import Decoded, FileRange, ReadSpec, with_valid_text

_BUFFER_BYTES = 1 << 20


@contextlib.contextmanager
def _opened(file: InputFile) -> Iterator[pq.ParquetFile]:
    """The open file; whatever the parquet reader says about its content comes out as one InputError."""
    with reading(file.name), contextlib.closing(open_stored(file)) as stored:
        try:
            with pq.ParquetFile(stored, buffer_size=_BUFFER_BYTES) as parquet:
                yield parquet
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError(f"cannot read parquet file {file.name}: corrupt or truncated") from None


def _text_kind(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _check_schema(schema: pa.Schema, spec: ReadSpec, name: str) -> None:
    require_columns(spec.columns, schema.names, name, declared=True)
    if spec.text_column is not None and not _text_kind(schema.field(spec.text_column).type):
        kind = schema.field(spec.text_column).type
        raise InputError(
            f"column {spec.text_column!r} of {name} must be string, binary or dictionary<string>, not {kind}"
        )


def check_parquet(file: InputFile, spec: ReadSpec) -> ReadSpec:
    """InputError if a column is missing, or if the text column holds no text."""
    with _opened(file) as parquet:
        _check_schema(parquet.schema_arrow, spec, file.name)
    return spec


def read_parquet(piece: FileRange, spec: ReadSpec) -> Iterator[Decoded]:
    """The rows of the row groups whose first page begins in the range; one batch without rows if there are none.

    Raises:
        InputError: the file is no whole parquet file, or lacks a column.
    """
    with _opened(piece.file) as parquet:
        _check_schema(parquet.schema_arrow, spec, piece.file.name)
        names = list(spec.columns)
        groups, row = _owned_groups(parquet.metadata, piece)
        if not groups:
            empty = pa.RecordBatch.from_pylist([], pa.schema([parquet.schema_arrow.field(name) for name in names]))
            yield with_valid_text(Decoded(empty, np.empty(0, np.int64), []), spec.text_column)
            return
        rows = _rows_at_once(parquet.metadata, groups, spec)
        for batch in parquet.iter_batches(rows, row_groups=groups, columns=names, use_threads=False):
            for start, part in split_by_size(batch.select(names), spec.batch_rows, spec.batch_bytes):
                positions = np.arange(row + start, row + start + part.num_rows, dtype=np.int64)
                yield with_valid_text(Decoded(part, positions, []), spec.text_column)
            row += batch.num_rows


def _owned_groups(metadata: pq.FileMetaData, piece: FileRange) -> tuple[list[int], int]:
    """The row groups of the range, which follow each other, and the number of rows before them."""
    owned, before = [], 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        chunk = group.column(0)
        begin = chunk.data_page_offset
        if chunk.dictionary_page_offset is not None:
            begin = min(begin, chunk.dictionary_page_offset)
        if begin < piece.start:
            before += group.num_rows
        elif piece.end is None or begin < piece.end:
            owned.append(index)
    return owned, before


def _rows_at_once(metadata: pq.FileMetaData, groups: list[int], spec: ReadSpec) -> int:
    """How many rows to decode at a time, so that even wide rows stay within ``batch_bytes`` on average."""
    widest = 1.0
    for index in groups:
        group = metadata.row_group(index)
        chunks = (group.column(column) for column in range(group.num_columns))
        size = sum(
            chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in spec.columns
        )
        widest = max(widest, size / max(group.num_rows, 1))
    return max(1, min(spec.batch_rows, int(spec.batch_bytes / widest)))
