"""Text (one row a line) and tsv (a header, then one row a line, columns between tabs, no quoting)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.errors import InputError
from beam_dp.io.files import InputFile, open_input, reading
from beam_dp.io.formats import TEXT_COLUMN, require_columns
from beam_dp.io.lines import LineBlock, invalid_utf8, line_blocks, split_lines
from beam_dp.io.rejects import INVALID_UNICODE, ROW_TOO_LARGE, WRONG_COLUMN_COUNT, Reject
from beam_dp.io.source import Decoded, FileRange, ReadSpec, reject_rows

_MAX_HEADER_BYTES = 1 << 20


def range_blocks(piece: FileRange, spec: ReadSpec) -> Iterator[LineBlock]:
    """The blocks of whole lines of a range; memory holds one block."""
    with contextlib.closing(open_input(piece.file)) as stream, reading(piece.file.name):
        if piece.start:
            stream.seek(piece.start - 1)
        yield from line_blocks(
            stream.read, piece.start, piece.end, chunk_bytes=spec.batch_bytes, max_line_bytes=spec.max_row_bytes
        )


def decode_lines(block: LineBlock) -> Decoded:
    """The lines of a block as a batch with the one column ``text``."""
    values, positions = split_lines(block)
    batch = pa.record_batch([values.view(pa.string())], names=[TEXT_COLUMN])
    too_large = [Reject(ROW_TOO_LARGE, offset) for offset in block.too_large]
    return reject_rows(Decoded(batch, positions, too_large), INVALID_UNICODE, invalid_utf8(values))


def check_text(file: InputFile, spec: ReadSpec) -> ReadSpec:
    """InputError if a column other than ``text`` is asked for; ResourceError if the file cannot be opened."""
    open_input(file).close()
    require_columns(spec.columns, [TEXT_COLUMN], f"a file of format text ({file.name})", declared=True)
    return spec


def read_text(piece: FileRange, spec: ReadSpec) -> Iterator[Decoded]:
    """The rows of a range of a text file; empty lines are rows."""
    for block in range_blocks(piece, spec):
        yield decode_lines(block)


def tsv_header(file: InputFile) -> list[str]:
    """The names in the first line of a tsv file; none for an empty file."""
    with contextlib.closing(open_input(file)) as stream, reading(file.name):
        blocks = line_blocks(stream.read, 0, 1, chunk_bytes=_MAX_HEADER_BYTES, max_line_bytes=_MAX_HEADER_BYTES)
        first = next(blocks, None)
    if first is None:
        return []
    header = decode_lines(first)
    if header.rejects:
        raise InputError(f"the first line of {file.name} is not a header: {header.rejects[0].reason}")
    return header.batch.column(0)[0].as_py().split("\t") if header.batch.num_rows else []


def check_tsv(file: InputFile, spec: ReadSpec) -> ReadSpec:
    """InputError if the header of a tsv file lacks a column."""
    require_columns(spec.columns, tsv_header(file), file.name)
    return spec


def read_tsv(piece: FileRange, spec: ReadSpec) -> Iterator[Decoded]:
    """The rows of a range of a tsv file, every value as the string that stands there.

    Blank lines are skipped in a file of several columns; in a file of one column they are empty values.
    """
    header = tsv_header(piece.file)
    if not header:
        return
    require_columns(spec.columns, header, piece.file.name)
    indices = [header.index(name) for name in spec.columns]
    header_passed = piece.start > 0
    for block in range_blocks(piece, spec):
        rows = decode_lines(block)
        if not header_passed and rows.batch.num_rows:
            rows = Decoded(rows.batch.slice(1), rows.positions[1:], rows.rejects)
            header_passed = True
        yield _split_columns(rows, spec.columns, indices, len(header))


def _split_columns(rows: Decoded, names: tuple[str, ...], indices: list[int], width: int) -> Decoded:
    if width > 1:
        filled = pc.greater(pc.binary_length(rows.batch.column(0)), 0)
        rows = Decoded(rows.batch.filter(filled), rows.positions[filled.to_numpy(zero_copy_only=False)], rows.rejects)
    fields = pc.split_pattern(rows.batch.column(0), "\t")
    ragged = pc.not_equal(pc.list_value_length(fields), width).to_numpy(zero_copy_only=False)
    rows = reject_rows(rows, WRONG_COLUMN_COUNT, np.flatnonzero(ragged).tolist())
    if ragged.any():
        fields = fields.filter(pa.array(~ragged))
    columns = [pc.list_element(fields, index) for index in indices]
    return Decoded(pa.record_batch(columns, names=list(names)), rows.positions, rows.rejects)
