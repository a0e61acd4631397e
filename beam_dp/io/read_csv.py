"""csv with a header, quoted as RFC 4180 says: a quoted value may hold separators, quotes (doubled) and line ends."""

from __future__ import annotations

import bisect
import contextlib
import csv
import io
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from beam_dp.errors import InputError
from beam_dp.io.files import InputFile, open_input, reading
from beam_dp.io.formats import require_columns
from beam_dp.io.rejects import UNTERMINATED_QUOTE, WRONG_COLUMN_COUNT, Reject
from beam_dp.io.source import Decoded, FileRange, Positions, ReadSpec, empty_batch, with_valid_text

_LARGEST_BLOCK = (1 << 31) - (1 << 16)
_BLOCK_GROWTH = 8
# Arrow's parser can miss a quote near a NUL at the edge of a block, so NUL travels as 0xFF, which UTF-8 never has;
# a 0xFF that stands in the file becomes 0xFE, which is as invalid.
_HIDE_NUL = bytes.maketrans(b"\x00\xff", b"\xff\xfe")
_SHOW_NUL = bytes.maketrans(b"\xff", b"\x00")


def csv_header(file: InputFile) -> list[str]:
    """The names in the first record of a csv file; none for an empty file."""
    unreadable = InputError(f"the first line of {file.name} is not a header")
    with contextlib.closing(open_input(file)) as stream, reading(file.name):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            header = next((record for record in csv.reader(text) if record), [])
            "".join(header).encode()
        except (csv.Error, UnicodeEncodeError):
            raise unreadable from None
    return header


def check_csv(file: InputFile, spec: ReadSpec) -> ReadSpec:
    """InputError if the header of a csv file lacks a column."""
    _require_columns(csv_header(file), spec, file)
    return spec


def _require_columns(header: list[str], spec: ReadSpec, file: InputFile) -> None:
    only = header[0] if len(header) == 1 else ""
    hint = ""
    if "\t" in only:
        hint = "; it holds a tab: pass --format=tsv if tabs separate the columns"
    elif ";" in only:
        hint = "; it holds a semicolon, but columns of csv are separated by commas"
    require_columns(spec.columns, header, file.name, hint=hint)


def read_csv(piece: FileRange, spec: ReadSpec) -> Iterator[Decoded]:
    """The rows of a whole csv file, every value as the string that stands there; blank lines are skipped.

    A row that does not fit into one block of the parser makes it start again with larger blocks and pass over the rows
    that it gave already.

    Raises:
        InputError: a row (or a quote that is never closed) is larger than ``max_row_bytes``.
    """
    header = csv_header(piece.file)
    if not header:
        return
    _require_columns(header, spec, piece.file)
    block_bytes, largest = spec.batch_bytes, min(2 * spec.max_row_bytes, _LARGEST_BLOCK)
    done = 1
    rejected: set[Reject] = set()
    while True:
        try:
            for rows in _parse(piece.file, spec, header, min(block_bytes, largest)):
                fresh = rows.positions > done
                rejects = [reject for reject in rows.rejects if reject not in rejected]
                batch = rows.batch if fresh.all() else rows.batch.filter(pa.array(fresh))
                yield Decoded(batch, rows.positions[fresh], rejects)
                done = max(done, int(rows.positions.max(initial=0)))
                rejected.update(rejects)
        except pa.ArrowInvalid:
            if block_bytes >= largest:
                raise InputError(
                    f"{piece.file.name}: a row after record {done} is larger than {spec.max_row_bytes} bytes, "
                    "or a quote is never closed"
                ) from None
            block_bytes *= _BLOCK_GROWTH
        else:
            return


def _parse(file: InputFile, spec: ReadSpec, header: list[str], block_bytes: int) -> Iterator[Decoded]:
    """One pass over the file; the header is a row as the others, with number 1.

    Arrow may drop a last record whose quote is not closed without a word. So a record of marks, which cannot be in the
    file, follows the file. An open quote swallows it; else it is the last row.
    """
    bad: list[int] = []
    mark = secrets.token_hex(16)
    tail = "\n" + ",".join([mark] * len(header)) + "\n"

    def on_bad_row(row: Any) -> str:
        if mark not in row.text:
            bad.append(row.number)
        return "skip"

    last = f"f{len(header) - 1}"
    wanted = [f"f{header.index(name)}" for name in spec.columns]
    columns = [*wanted, last] if last not in wanted else wanted
    with contextlib.closing(open_input(file)) as stream, reading(file.name):
        source = _WithTail(stream, tail.encode())
        reader = pa_csv.open_csv(
            io.BufferedReader(source),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=block_bytes, autogenerate_column_names=True),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_bad_row),
            convert_options=pa_csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.binary()), strings_can_be_null=False
            ),
        )
        number, reported, closed = 0, 0, False
        for parsed in reader:
            batch = parsed
            tail_value = batch.column(last)[-1].as_py() if batch.num_rows else b""
            if mark.encode() in tail_value:
                closed = tail_value == mark.encode()
                batch = batch.slice(0, batch.num_rows - 1)
            positions = _record_numbers(number + 1, batch.num_rows, bad)
            number = int(positions.max(initial=number))
            rejects = [Reject(WRONG_COLUMN_COUNT, record) for record in bad[reported:]]
            reported = len(bad)
            values = [batch.column(name) for name in wanted]
            if source.has_nul:
                values = [_with_nul(column) for column in values]
            strings = [column.view(pa.string()) for column in values]
            batch = pa.record_batch(strings, names=list(spec.columns))
            yield with_valid_text(Decoded(batch, positions, rejects), None)
        rest = [Reject(WRONG_COLUMN_COUNT, record) for record in bad[reported:]]
        if not closed:
            rest.append(Reject(UNTERMINATED_QUOTE, max([number, *bad]) + 1))
        yield Decoded(empty_batch(spec), np.empty(0, np.int64), rest)


def _with_nul(values: pa.BinaryArray) -> pa.BinaryArray:
    """``values`` with the NUL bytes that `_HIDE_NUL` took away."""
    validity, offsets, data = values.buffers()
    if data is None:
        return values
    shown = pa.py_buffer(data.to_pybytes().translate(_SHOW_NUL))
    return pa.Array.from_buffers(pa.binary(), len(values), [validity, offsets, shown], offset=values.offset)


def _record_numbers(first: int, count: int, bad: list[int]) -> Positions:
    """The ``count`` record numbers from ``first`` on that good rows have, when those in ``bad`` (sorted) were not."""
    ahead = bad[bisect.bisect_left(bad, first) :]
    candidates = np.arange(first, first + count + len(ahead), dtype=np.int64)
    return np.setdiff1d(candidates, ahead, assume_unique=True)[:count]


class _WithTail(io.RawIOBase):
    """A stream with its NUL bytes hidden and some bytes after its end.

    Attributes:
        has_nul: whether there was a NUL in what has been read so far.
    """

    def __init__(self, stream: BinaryIO, tail: bytes) -> None:
        super().__init__()
        self._stream = stream
        self._tail = tail
        self.has_nul = False

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self._stream.read(len(target))
        if not data:
            data, self._tail = self._tail[: len(target)], self._tail[len(target) :]
        if b"\0" in data:
            self.has_nul = True
        if not data.isascii() or self.has_nul:
            data = data.translate(_HIDE_NUL)
        target[: len(data)] = data
        return len(data)
