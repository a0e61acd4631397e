"""Columns of input batches as aggregates need them: types that mean the same everywhere, codes, hashes, numbers.

The privacy unit and the grouping columns are *keys*: integers, strings, booleans, dates, times or decimals. Floats are
refused as keys: NaN equals nothing, and an integer column with nulls that became float in one file only would give one
person two identities. All integer types count as one, but for uint64, whose upper half no other type has; and so do
all string types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.aggregate.bounds import Codes
from beam_dp.errors import InputError
from beam_dp.io.lines import invalid_utf8

Hashes = npt.NDArray[np.uint64]

_MULTIPLIERS = tuple(np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_NULL_HASH = np.uint64(0xD6E8FEB86659FD93)
_NUMBER = r"^[ \t\r\n\f]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t\r\n\f]*$"
_INFINITY = r"^[ \t\r\n\f]*[+-]?[iI][nN][fF]([iI][nN][iI][tT][yY])?[ \t\r\n\f]*$"


def key_column(column: pa.Array, name: str) -> pa.Array:
    """``column`` as a key: int64 for integers (but uint64), string for text, other key types as they are.

    Raises:
        InputError: a type that cannot be a key.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_integer(kind):
        # By type, not by whether the values fit: otherwise one person's value decides whether batches agree.
        return column if pa.types.is_uint64(kind) else column.cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.string())
        # Arrow takes the bytes of a string on trust, but its kernels and what is written rest on it.
        bad = invalid_utf8(column)
        return column if not bad else _without(column, bad)
    tests = (
        pa.types.is_boolean,
        pa.types.is_date,
        pa.types.is_time,
        pa.types.is_timestamp,
        pa.types.is_decimal128,
        pa.types.is_decimal256,
        pa.types.is_null,
    )
    if any(test(kind) for test in tests):
        return column
    raise InputError(
        f"column {name!r} holds {str(kind).split('<')[0]}, which cannot be a key: use integers, strings, booleans, "
        "dates, timestamps or decimals"
    )


def _without(column: pa.Array, rows: Sequence[int]) -> pa.Array:
    """``column`` with null in these rows."""
    mask = np.zeros(len(column), bool)
    mask[list(rows)] = True
    return pc.if_else(pa.array(mask), pa.scalar(None, column.type), column)


def number_column(column: pa.Array, name: str) -> pa.Array:
    """``column`` as float64 without nulls, NaN where there is no number; text is parsed, and is NaN if it is none.

    Raises:
        InputError: a type that holds no numbers.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return number_column(column.dictionary_decode(), name)
    if pa.types.is_null(kind):
        return pa.array(np.full(len(column), np.nan))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        bad = invalid_utf8(column.cast(pa.string()))
        column = _without(column, bad) if bad else column
        numeric = pc.or_(pc.match_substring_regex(column, _NUMBER), pc.match_substring_regex(column, _INFINITY))
        column = pc.utf8_trim_whitespace(pc.if_else(numeric, column, pa.scalar(None, column.type)))
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        if not pa.types.is_boolean(kind):
            raise InputError(f"column {name!r} holds {str(kind).split('<')[0]}, but numbers are needed")
        column = column.cast(pa.int8())
    numbers = pc.cast(column, pa.float64(), safe=False)
    return pa.array(numbers.to_numpy(zero_copy_only=False)) if numbers.null_count else numbers


def is_number(text: str) -> bool:
    """Whether `number_column` reads ``text`` as a number."""
    return any(re.search(pattern, text, re.ASCII) for pattern in (_NUMBER, _INFINITY))


def hash_keys(columns: Sequence[pa.Array]) -> Hashes:
    """A 64-bit hash of each row of key columns, (n,) uint64: equal rows of equal types have equal hashes."""
    total = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        total = _mix(total * _MULTIPLIERS[0] + _hash_column(column))
    return total


def _hash_column(column: pa.Array) -> Hashes:
    if pa.types.is_null(column.type):
        return np.full(len(column), _NULL_HASH)
    whole = _whole_numbers(column)
    if whole is not None:
        hashes = _mix(whole.view(np.uint64))
    else:
        # Keys repeat: hashing the distinct ones and looking them up is five times as fast.
        encoded = column.cast(pa.string()).dictionary_encode()
        distinct = _hash_strings(encoded.dictionary)
        if not len(distinct):
            return np.full(len(column), _NULL_HASH)
        hashes = distinct[encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    if column.null_count:
        hashes = np.where(column.is_null().to_numpy(zero_copy_only=False), _NULL_HASH, hashes)
    return hashes


def _whole_numbers(column: pa.Array) -> Codes | None:
    """The numbers that Arrow keeps integers, dates, times and timestamps as, anything for null; None for others."""
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_temporal(kind)):
        return None
    # Every key type of these has 32 or 64 bits.
    whole = column.view(pa.int64()) if kind.bit_width == 64 else column.view(pa.int32()).cast(pa.int64())
    return (whole.fill_null(0) if whole.null_count else whole).to_numpy(zero_copy_only=False)


def _mix(x: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIERS[1]
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIERS[2]
    return x ^ (x >> np.uint64(31))


def _hash_strings(column: pa.StringArray) -> Hashes:
    """Σ (byte + 1)·K(position) mod 2^64, mixed, where K(position) is odd and pseudo-random."""
    n = len(column)
    buffer = column.buffers()[1]
    if not n or buffer is None:
        return np.zeros(n, np.uint64)
    offsets = np.frombuffer(buffer, np.int32)[column.offset : column.offset + n + 1].astype(np.int64)
    lengths = np.diff(offsets)
    values = column.buffers()[2]
    data = np.empty(0, np.uint8) if values is None else np.frombuffer(values, np.uint8)[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    weights = _mix(np.arange(1, int(lengths.max(initial=0)) + 1, dtype=np.uint64)) | np.uint64(1)
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    terms = (data.astype(np.uint64) + np.uint64(1)) * weights[place]
    sums = np.zeros(n + 1, np.uint64)
    filled = lengths > 0
    if filled.any():
        sums[:-1][filled] = np.add.reduceat(terms, starts[filled])
    return _mix(sums[:n] + lengths.astype(np.uint64) * _MULTIPLIERS[0])


def key_codes(columns: Sequence[pa.Array]) -> tuple[Codes, Codes]:
    """Codes of the distinct rows of key columns.

    Returns:
        (n,) int64 codes from 0, and for each code the index of one of its rows.
    """
    total: Codes | None = None
    for column in columns:
        encoded = pc.dictionary_encode(column, null_encoding="encode")
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # Renumbered after each column, the product of the sizes cannot overflow.
        total = codes if total is None else _renumber(total * len(encoded.dictionary) + codes)
    assert total is not None
    firsts = np.empty(int(total.max(initial=-1)) + 1, np.int64)
    firsts[total] = np.arange(len(total))
    return total, firsts


def _renumber(codes: Codes) -> Codes:
    return np.unique(codes, return_inverse=True)[1].reshape(-1)


def concat_columns(arrays: Sequence[pa.Array], name: str) -> pa.Array:
    """One array of arrays of one type; arrays of nulls alone may have none.

    Raises:
        InputError: two types.
    """
    typed = common_type([array.type for array in arrays], name)
    return pa.concat_arrays([a if a.type == typed else a.cast(typed) for a in arrays])


def common_type(types: Iterable[pa.DataType], name: str) -> pa.DataType:
    """The one type of the key column ``name`` over all batches; null where all of them hold nulls alone.

    Raises:
        InputError: there are two, so that one key could count as two.
    """
    found = pa.null()
    for kind in types:
        if pa.types.is_null(kind) or kind == found:
            continue
        if not pa.types.is_null(found):
            first, second = sorted((str(found), str(kind)))
            raise InputError(f"column {name!r} holds {first} in some batches and {second} in others: give it one type")
        found = kind
    return found
