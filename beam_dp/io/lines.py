"""Lines out of bytes: ranges of a file that own whole lines, and lines as Arrow arrays without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BOM = b"\xef\xbb\xbf"
_NEWLINE = 10
_RETURN = 13
_OVERRUN_BYTES = 1 << 16

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file, with their line ends; the last line of the file may have none.

    Attributes:
        data: the bytes.
        offset: where they begin in the file.
        too_large: offsets of lines above the limit, which were skipped before the end of this block.
    """

    data: bytes
    offset: int
    too_large: list[int] = field(default_factory=list)


def line_blocks(
    read: Read, start: int, end: int | None, *, chunk_bytes: int, max_line_bytes: int
) -> Iterator[LineBlock]:
    r"""The lines that begin in ``[start, end)`` of a file, in blocks of about ``chunk_bytes``.

    A line begins at offset 0 and after every ``\n``. Ranges that partition a file partition its lines. The byte
    order mark of a file is left out.

    Args:
        read: gives up to so many next bytes, ``b""`` at the end of the file; stands at ``max(start - 1, 0)``.
        start: first offset that is owned.
        end: first offset that is not owned any more; None for the end of the file.
        chunk_bytes: how much to read at a time.
        max_line_bytes: longer lines are skipped and reported.
    """
    chunk_bytes = min(chunk_bytes, max_line_bytes)
    held: list[bytes] = []
    held_bytes = held_start = 0
    too_large: list[int] = []
    dropping = False
    for begin, data in _owned_bytes(read, start, end, chunk_bytes):
        first = data.find(b"\n")
        if not held and not dropping:
            held_start = begin
        if not dropping and held_bytes + (first if first >= 0 else len(data)) > max_line_bytes:
            too_large.append(held_start)
            held, held_bytes, dropping = [], 0, True
        if dropping:
            if first < 0:
                continue
            dropping, held_start = False, begin + first + 1
            data = data[first + 1 :]  # noqa: PLW2901 - the rest of the chunk goes on as any other
            begin = held_start  # noqa: PLW2901
        cut = data.rfind(b"\n") + 1
        if cut:
            yield _block([*held, data[:cut]], held_start, too_large)
            held, held_bytes, held_start, too_large = [], 0, begin + cut, []
        if cut < len(data):
            held.append(data[cut:])
            held_bytes += len(data) - cut
    if held or too_large:
        yield _block(held, held_start, too_large)


def _block(parts: list[bytes], offset: int, too_large: list[int]) -> LineBlock:
    data = b"".join(parts)
    if offset == 0 and data.startswith(BOM):
        return LineBlock(data[len(BOM) :], len(BOM), too_large)
    return LineBlock(data, offset, too_large)


def _owned_bytes(read: Read, start: int, end: int | None, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of the lines that begin in ``[start, end)``, as (offset, bytes), as they come."""
    position = max(start - 1, 0)
    inside = start == 0
    while True:
        if end is None:
            data = read(chunk_bytes)
        else:
            data = read(min(chunk_bytes, end - position if position < end else _OVERRUN_BYTES))
        if not data:
            return
        begin, position = position, position + len(data)
        if not inside:
            newline = data.find(b"\n")
            begin, data = begin + newline + 1, data[newline + 1 :]
            inside = newline >= 0
            if end is not None and (begin if inside else position) >= end:
                return
            if not inside:
                continue
        if end is not None and position >= end:
            newline = data.find(b"\n", max(end - 1 - begin, 0))
            if newline >= 0:
                yield begin, data[: newline + 1]
                return
        if data:
            yield begin, data


def split_lines(block: LineBlock) -> tuple[pa.BinaryArray, npt.NDArray[np.int64]]:
    r"""The lines of a block as (values (n,) binary, byte offsets in the file (n,) int64).

    A line ends at ``\n`` and loses one ``\r`` before it. Nothing else ends a line.
    """
    data = np.frombuffer(block.data, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    is_value = data != _NEWLINE
    if data.size and data[-1] != _NEWLINE:
        ends = np.append(ends, data.size)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts
    if b"\r" in block.data:
        with_return = (lengths > 0) & (data[np.maximum(ends, 1) - 1] == _RETURN)
        is_value[ends[with_return] - 1] = False
        lengths = lengths - with_return
    offsets = np.zeros(ends.size + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = pa.BinaryArray.from_buffers(
        pa.binary(), ends.size, [None, pa.py_buffer(offsets), pa.py_buffer(data[is_value])]
    )
    return values, starts + block.offset


def invalid_utf8(values: pa.Array) -> list[int]:
    """Indices of the values (binary or string, small or large) that are not UTF-8; no loop while all are."""
    large = pa.types.is_large_binary(values.type) or pa.types.is_large_string(values.type)
    found: list[int] = []
    pending = [(0, values.view(pa.large_string() if large else pa.string()))]
    while pending:
        start, part = pending.pop()
        try:
            part.validate(full=True)
        except pa.ArrowInvalid:
            if len(part) == 1:
                found.append(start)
            else:
                middle = len(part) // 2
                pending += [(start, part.slice(0, middle)), (start + middle, part.slice(middle))]
    return sorted(found)
