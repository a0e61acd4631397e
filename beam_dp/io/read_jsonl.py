"""jsonl: one JSON object a line. Arrow parses whole blocks; a block that it cannot take is parsed line by line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from beam_dp.errors import InputError
from beam_dp.io.files import InputFile, open_input, reading
from beam_dp.io.formats import require_columns
from beam_dp.io.lines import LineBlock, invalid_utf8, line_blocks, split_lines
from beam_dp.io.read_text import range_blocks
from beam_dp.io.rejects import INVALID_UNICODE, MALFORMED_JSON, NOT_TEXT, ROW_TOO_LARGE, Reject
from beam_dp.io.source import Decoded, FileRange, ReadSpec

_SAMPLE_BYTES = 1 << 20
_EXACT_DOUBLE = 2.0**53
_BLANK = b" \t\r"


def check_jsonl(file: InputFile, spec: ReadSpec) -> ReadSpec:
    """``spec`` with the types that the columns have in the first lines of the file.

    Raises:
        InputError: no line there is an object, or none of the objects has one of the columns.
    """
    with contextlib.closing(open_input(file)) as stream, reading(file.name):
        blocks = line_blocks(
            stream.read, 0, _SAMPLE_BYTES, chunk_bytes=_SAMPLE_BYTES, max_line_bytes=spec.max_row_bytes
        )
        first = next((block for block in blocks if block.data.strip()), None)
    if first is None:
        return spec
    objects = [row for _, row in _parse_lines(first) if isinstance(row, dict)]
    if not objects:
        raise InputError(f"no line of {file.name} is a JSON object (one object a line is expected)")
    there = list(dict.fromkeys(name for row in objects for name in row))
    require_columns(spec.columns, there, file.name)
    sample = decode_block(first, spec).batch
    stable = (pa.types.is_string, pa.types.is_boolean, pa.types.is_int64, pa.types.is_float64)
    by_value = {*spec.keys, *spec.numbers}
    fields = [f for f in sample.schema if f.name not in by_value and any(test(f.type) for test in stable)]
    return dataclasses.replace(spec, types=pa.schema(fields))


def read_jsonl(piece: FileRange, spec: ReadSpec) -> Iterator[Decoded]:
    """The rows of a range of a jsonl file; blank lines are skipped."""
    for block in range_blocks(piece, spec):
        rows = decode_block(block, spec)
        too_large = [Reject(ROW_TOO_LARGE, offset) for offset in block.too_large]
        yield rows._replace(rejects=too_large + rows.rejects)


def decode_block(block: LineBlock, spec: ReadSpec) -> Decoded:
    """The objects of a block.

    The text column is ``string``; a null or missing text is null. Other columns have the types that ``spec`` expects,
    or else those that the block shows. Values that no Arrow type holds exactly (mixed kinds, integers beyond 64 bits)
    make the column ``string``: strings as they are, other values as JSON. Nested values become structs and lists, where
    a key that other rows have is null. The columns that ``spec`` names as keys and numbers are exceptions: there each
    value is read by itself, so that no row changes what becomes of another.
    """
    values, positions = split_lines(block)
    filled = pc.greater(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    positions = positions[filled]
    plain = _in_braces(values.filter(pa.array(filled))) and not invalid_utf8(values)
    batch = _parse_block(block.data, spec) if plain else None
    if batch is None or batch.num_rows != positions.size:
        return _decode_lines(block, spec)
    return Decoded(batch, positions, [])


def _in_braces(lines: pa.BinaryArray) -> bool:
    """Whether every line begins with ``{`` and ends with ``}``.

    Arrow takes objects that span lines, and several on one line; with this, the number of objects tells.
    """
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, np.int32)[lines.offset : lines.offset + len(lines) + 1]
    if not len(lines):
        return True
    letters = np.frombuffer(data, np.uint8)
    return bool((letters[ends[:-1]] == ord("{")).all() and (letters[ends[1:] - 1] == ord("}")).all())


def _parse_block(data: bytes, spec: ReadSpec) -> pa.RecordBatch | None:
    """The wanted columns of all objects in ``data`` by Arrow's parser; None where it fails or would lose something."""
    expected = _expected_types(spec)
    types = expected
    table = _arrow_json(data, types, infer=len(types) < len(spec.columns))
    if table is None and spec.types is not None:
        types = {name: kind for name, kind in expected.items() if name == spec.text_column}
        table = _arrow_json(data, types, infer=len(types) < len(spec.columns))
    if table is None:
        return None
    dates = [field.name for field in table.schema if pa.types.is_temporal(field.type) and field.name in spec.columns]
    if dates:
        # Arrow takes strings that look like dates for dates; they must come out as they went in.
        table = _arrow_json(data, types | dict.fromkeys(dates, pa.string()), infer=True)
        if table is None:
            return None
    columns = []
    for name in spec.columns:
        if name not in table.column_names:
            column = pa.nulls(table.num_rows, expected.get(name, pa.null()))
        else:
            column = table.column(name).combine_chunks()
        if _is_inexact(column):
            return None
        if name in spec.keys or name in spec.numbers:
            if not _is_plain(column, name in spec.keys):
                return None
            column = column.cast(pa.string()) if name in spec.keys else column
        columns.append(column)
    return pa.record_batch(columns, names=list(spec.columns))


def _is_plain(column: pa.Array, key: bool) -> bool:
    """Whether every value of a column is of one JSON kind, from which its own text or number follows.

    Doubles may have been integers, whose text is another: as numbers they are the same.
    """
    tests = (pa.types.is_string, pa.types.is_int64, pa.types.is_boolean, pa.types.is_null)
    return any(test(column.type) for test in tests) or (pa.types.is_float64(column.type) and not key)


def _value_text(value: Any, key: bool) -> str | None:
    """A JSON value as text, by itself; null for what is no number, where numbers are wanted."""
    if value is None or isinstance(value, str):
        return value
    if key:
        return json.dumps(value, ensure_ascii=False)
    return repr(float(value)) if isinstance(value, (bool, float)) else str(value) if isinstance(value, int) else None


def _expected_types(spec: ReadSpec) -> dict[str, pa.DataType]:
    expected = {} if spec.types is None else {field.name: field.type for field in spec.types}
    return expected if spec.text_column is None else expected | {spec.text_column: pa.string()}


def _arrow_json(data: bytes, types: dict[str, pa.DataType], *, infer: bool) -> pa.Table | None:
    try:
        return pa_json.read_json(
            pa.BufferReader(data),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=pa.schema(list(types.items())),
                unexpected_field_behavior="infer" if infer else "ignore",
            ),
        )
    except (pa.ArrowException, UnicodeDecodeError, RecursionError):
        return None


def _is_inexact(column: pa.Array) -> bool:
    """Whether integers of the input may have been rounded to doubles, or a nested string was taken for a date."""
    if pa.types.is_list(column.type):
        return _is_inexact(column.flatten())
    if pa.types.is_struct(column.type):
        return any(_is_inexact(child) for child in column.flatten())
    if pa.types.is_temporal(column.type):
        return True
    if not pa.types.is_floating(column.type):
        return False
    largest = pc.max(pc.abs(column)).as_py()
    return largest is not None and not largest < _EXACT_DOUBLE


def _parse_lines(block: LineBlock) -> Iterator[tuple[int, Any]]:
    """(offset, value) of each line that is not blank; the value is a `Reject` where it is no JSON."""
    values, positions = split_lines(block)
    for position, line in zip(positions.tolist(), values.to_pylist(), strict=True):
        if not line.strip(_BLANK):
            continue
        try:
            yield position, json.loads(line.decode(), parse_constant=_refuse_constant)
        except UnicodeDecodeError:
            yield position, Reject(INVALID_UNICODE, position)
        except (ValueError, RecursionError):
            yield position, Reject(MALFORMED_JSON, position)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _decode_lines(block: LineBlock, spec: ReadSpec) -> Decoded:
    rows: list[list[Any]] = []
    positions: list[int] = []
    rejects: list[Reject] = []
    for position, value in _parse_lines(block):
        reject = _unfit(value, position, spec)
        if reject is not None:
            rejects.append(reject)
        else:
            rows.append([value.get(name) for name in spec.columns])
            positions.append(position)
    expected = _expected_types(spec)
    by_column = zip(*rows, strict=True) if rows else [()] * len(spec.columns)
    columns = [
        pa.array([_value_text(value, name in spec.keys) for value in values], pa.string())
        if name in spec.keys or name in spec.numbers
        else _column(values, expected.get(name))
        for name, values in zip(spec.columns, by_column, strict=True)
    ]
    batch = pa.record_batch(columns, names=list(spec.columns))
    return Decoded(batch, np.array(positions, np.int64), rejects)


def _unfit(value: Any, position: int, spec: ReadSpec) -> Reject | None:
    if isinstance(value, Reject):
        return value
    if not isinstance(value, dict):
        return Reject(MALFORMED_JSON, position)
    wanted = [value.get(name) for name in spec.columns]
    try:
        json.dumps(wanted, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Reject(INVALID_UNICODE, position)
    text = value.get(spec.text_column)
    if spec.text_column is not None and text is not None and not isinstance(text, str):
        return Reject(NOT_TEXT, position)
    return None


def _column(values: tuple[Any, ...], expected: pa.DataType | None) -> pa.Array:
    """Values of any JSON kinds as one array; as strings where no other type holds them all exactly."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values), expected or pa.null())
    if kinds == {int, float} and all(abs(value) < _EXACT_DOUBLE for value in values if isinstance(value, int)):
        kinds = {float}
    if len(kinds) == 1:
        with contextlib.suppress(pa.ArrowException, OverflowError):
            return pa.array(values, pa.float64() if kinds == {float} else None)
    texts = (v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values)
    return pa.array(list(texts), pa.string())
