"""Lines of byte ranges, against a loop over the whole content."""

import io

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_dp.io.lines import BOM, LineBlock, invalid_utf8, line_blocks, split_lines

CONTENTS = st.builds(
    lambda mark, parts: mark + b"".join(parts),
    st.sampled_from([b"", b"", BOM]),
    st.lists(
        st.sampled_from([b"a", b"bc", b"\n", b"\n", b"\r\n", b"\r", b"\0", "é".encode(), b"\xe2\x80\xa8"]), max_size=25
    ),
)


def expected(content: bytes, limit: int) -> tuple[list[tuple[int, bytes]], list[int]]:
    rows, too_large, offset = [], [], 0
    parts = content.split(b"\n")
    if parts[-1] == b"":
        parts.pop()
    for part in parts:
        start, value = offset, part
        offset += len(part) + 1
        if len(value) > limit:
            too_large.append(start)
            continue
        if start == 0 and value.startswith(BOM):
            start, value = len(BOM), value[len(BOM) :]
            if content == BOM:
                continue
        rows.append((start, value[:-1] if value.endswith(b"\r") else value))
    return rows, too_large


def lines_of(content: bytes, start: int, end: int | None, chunk: int, limit: int):
    stream = io.BytesIO(content)
    stream.seek(max(start - 1, 0))
    rows: list[tuple[int, bytes]] = []
    too_large: list[int] = []
    for block in line_blocks(stream.read, start, end, chunk_bytes=chunk, max_line_bytes=limit):
        values, positions = split_lines(block)
        values.validate(full=True)
        rows += zip(positions.tolist(), values.to_pylist(), strict=True)
        too_large += block.too_large
    return rows, too_large


@given(CONTENTS, st.integers(1, 9), st.sampled_from([3, 5, 100]))
@example(BOM, 1, 100)
@example(BOM + b"\n", 2, 100)
@example(b"\n\n", 1, 100)
@example(b"aaaaaaaaaa\nb\n", 4, 3)
@settings(max_examples=150, deadline=None)
def test_every_split_of_a_file_gives_every_line_once(content, chunk, limit):
    whole = expected(content, limit)
    assert lines_of(content, 0, None, chunk, limit) == whole
    for size in range(1, len(content) + 1):
        rows: list[tuple[int, bytes]] = []
        too_large: list[int] = []
        for start in range(0, len(content), size):
            part = lines_of(content, start, min(start + size, len(content)), chunk, limit)
            rows += part[0]
            too_large += part[1]
        assert (rows, too_large) == whole


@given(CONTENTS, st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_a_range_owns_the_lines_that_begin_in_it(content, start, length):
    start = min(start, len(content))
    end = min(start + max(length, 1), len(content))
    if start == end:
        return
    rows, _ = lines_of(content, start, end, 7, 1000)
    bom = len(BOM) if content.startswith(BOM) else 0
    owned = [row for row in expected(content, 1000)[0] if start <= (0 if row[0] == bom else row[0]) < end]
    assert rows == owned


def test_blocks_are_bounded_by_the_chunk_and_hold_whole_lines():
    content = b"".join(b"line %d\n" % i for i in range(1000))
    blocks = list(line_blocks(io.BytesIO(content).read, 0, None, chunk_bytes=100, max_line_bytes=1000))
    assert b"".join(block.data for block in blocks) == content
    assert all(len(block.data) <= 200 and block.data.endswith(b"\n") for block in blocks)


def test_only_newline_ends_a_line():
    values, _ = split_lines(LineBlock("a\u2028b\x0bc\x0cd\x85e\rf\r\r\n\x00\n".encode(), 0))
    assert [value.decode() for value in values.to_pylist()] == ["a\u2028b\x0bc\x0cd\x85e\rf\r", "\x00"]


@given(st.lists(st.sampled_from([b"ok", b"", "é".encode(), b"\xff", b"\xc3", b"\xed\xa0\x80"]), max_size=30))
@settings(max_examples=100, deadline=None)
def test_invalid_utf8_finds_exactly_the_bad_values(values):
    def is_bad(value: bytes) -> bool:
        try:
            value.decode()
        except UnicodeDecodeError:
            return True
        return False

    bad = [index for index, value in enumerate(values) if is_bad(value)]
    for kind in (pa.binary(), pa.large_binary()):
        assert invalid_utf8(pa.array(values, kind)) == bad


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_invalid_utf8_respects_nulls_and_slices(kind):
    binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
    values = pa.array([b"\xff", None, b"ok", b"\xfe", None], binary).view(kind)
    assert invalid_utf8(values) == [0, 3]
    assert invalid_utf8(values.slice(1, 2)) == []
    assert invalid_utf8(values.slice(2)) == [1]
