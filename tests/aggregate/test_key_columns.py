"""Columns as aggregates need them: equal keys are equal in whatever form they come, numbers mean one thing."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from beam_dp.aggregate.columns import (
    common_type,
    concat_columns,
    hash_keys,
    key_codes,
    key_column,
    number_column,
)
from beam_dp.aggregate.rows import numbers_of
from beam_dp.errors import InputError

SECRET = "xyzzysecret"
SMALL = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32())
DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12)
KEYS: dict[str, pa.Array] = {
    "int64": pa.array([3, None, -5, 3, 2**63 - 1, -(2**63)]),
    "uint64": pa.array([3, None, 2**64 - 1, 3], pa.uint64()),
    "string": pa.array(["a", None, "", "bc", "a", "\u00e9\U0001f600", "\x00"]),
    "bool": pa.array([True, None, False, True]),
    "date32": pa.array([DAY, None, datetime.date(1969, 12, 31), DAY]),
    "date64": pa.array([DAY, None, datetime.date(1969, 12, 31), DAY], pa.date64()),
    "time32": pa.array([datetime.time(1), None, datetime.time(23, 59), datetime.time(1)], pa.time32("s")),
    "time64": pa.array([datetime.time(1), None, datetime.time(23, 59), datetime.time(1)], pa.time64("us")),
    "timestamp": pa.array([NOON, None, datetime.datetime(1900, 1, 1), NOON], pa.timestamp("us")),
    "zoned": pa.array([NOON, None, datetime.datetime(1900, 1, 1), NOON], pa.timestamp("ms", "Europe/Paris")),
    "decimal": pa.array([Decimal("1.50"), None, Decimal("-0.01"), Decimal("1.50")]),
    "null": pa.nulls(4),
}


@pytest.mark.parametrize("kind", KEYS)
def test_hashes_are_equal_where_keys_are_and_do_not_depend_on_the_batch(kind: str) -> None:
    column = key_column(KEYS[kind], "k")
    hashes, values = hash_keys([column]), column.to_pylist()
    assert hashes.dtype == np.uint64 and len(hashes) == len(values)
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            assert (hashes[i] == hashes[j]) == (one == other)
    for start in range(len(values)):
        for size in range(1, len(values) - start + 1):
            assert hash_keys([column.slice(start, size)]).tolist() == hashes[start : start + size].tolist()
    backwards = column.take(pa.array(range(len(values))[::-1]))
    assert hash_keys([backwards]).tolist() == hashes[::-1].tolist()
    assert hash_keys([column.slice(0, 0)]).tolist() == []


@pytest.mark.parametrize("kind", SMALL, ids=str)
def test_all_integer_types_are_one_key_type(kind: pa.DataType) -> None:
    values = [7, None, 0, 100, 7]
    column = key_column(pa.array(values, kind), "k")
    assert column.type == pa.int64() and column.to_pylist() == values
    assert hash_keys([column]).tolist() == hash_keys([pa.array(values)]).tolist()


@pytest.mark.parametrize("values", [[1, 2], [2**63], [2**64 - 1, None], []])
def test_uint64_is_a_type_of_its_own_whatever_its_values_are(values: list[int | None]) -> None:
    # If the values decided, one person's id could decide whether batches agree, and with that whether a run fails.
    column = key_column(pa.array(values, pa.uint64()), "k")
    assert column.type == pa.uint64() and column.to_pylist() == values
    with pytest.raises(InputError, match="'k' holds int64 in some batches and uint64 in others"):
        common_type([column.type, pa.int64()], "k")


STRINGS = ["a", None, "", "b" * 300, "a", "\u00fc"]
TEXTS = {
    "string": pa.array(STRINGS),
    "large_string": pa.array(STRINGS, pa.large_string()),
    "dictionary": pa.array(STRINGS).dictionary_encode(),
    "dictionary of large_string": pa.array(STRINGS, pa.large_string()).dictionary_encode(),
    "slice of a dictionary": pa.array(["zz", *STRINGS]).dictionary_encode().slice(1),
}


@pytest.mark.parametrize("form", TEXTS)
def test_all_string_types_are_one_key_type(form: str) -> None:
    column = key_column(TEXTS[form], "k")
    assert column.type == pa.string() and column.to_pylist() == STRINGS
    assert hash_keys([column]).tolist() == hash_keys([pa.array(STRINGS)]).tolist()


def test_dictionaries_of_integers_are_integers() -> None:
    column = key_column(pa.array([5, None, 5, 9], pa.int16()).dictionary_encode(), "k")
    assert column.type == pa.int64() and column.to_pylist() == [5, None, 5, 9]


def test_a_null_hashes_the_same_in_every_type() -> None:
    assert len({hash_keys([pa.nulls(1, column.type)])[0] for column in KEYS.values()}) == 1


@pytest.mark.parametrize("large", [False, True])
def test_strings_that_are_no_utf8_are_nulls(large: bool) -> None:
    raw = pa.array([b"ok", b"\xff" + SECRET.encode(), None, b"\xc3\xa9"], pa.large_binary() if large else pa.binary())
    column = raw.view(pa.large_string() if large else pa.string())
    assert key_column(column, "k").to_pylist() == ["ok", None, None, "\u00e9"]
    assert np.isnan(number_column(column, "k").to_numpy()).all()


NO_KEYS = [
    pa.array([1.0]),
    pa.array([1.0], pa.float32()),
    pa.array([b"x"]),
    pa.array([[1]]),
    pa.array([{"a": 1}]),
    pa.array([datetime.timedelta(1)]),
    pa.array([1.0]).dictionary_encode(),
]


@pytest.mark.parametrize("column", NO_KEYS, ids=lambda column: str(column.type))
def test_types_that_are_no_keys_are_refused_by_column_and_type(column: pa.Array) -> None:
    with pytest.raises(InputError, match=r"column 'who' holds .*, which cannot be a key"):
        key_column(column, "who")


def test_columns_hash_in_their_order() -> None:
    a, b = pa.array(["x", "y", "x"]), pa.array([1, 2, 2])
    both = hash_keys([a, b])
    assert len(set(both.tolist())) == 3
    assert set(hash_keys([b, a]).tolist()).isdisjoint(both.tolist())
    assert len({*hash_keys([pa.array(["ab"]), pa.array(["c"])]), *hash_keys([pa.array(["a"]), pa.array(["bc"])])}) == 2


@pytest.mark.parametrize("keys", ["numbers", "texts", "days"])
@pytest.mark.parametrize("parts", [64, 7, 32])
def test_hashes_spread_keys_evenly(keys: str, parts: int) -> None:
    numbers = pa.array(np.arange(20_000) * 1024)
    column = {
        "numbers": numbers,
        "texts": pa.array([f"user{i:06d}@example.org" for i in range(20_000)]),
        "days": pa.array(np.arange(20_000, dtype=np.int32)).view(pa.date32()),
    }[keys]
    hashes = hash_keys([key_column(column, "k")])
    assert len(set(hashes.tolist())) == 20_000
    for shift in (0, 6, 32):
        counts = np.bincount(((hashes >> np.uint64(shift)) % np.uint64(parts)).astype(np.int64))
        assert stats.chisquare(counts).pvalue > 1e-4


columns_of_keys = st.lists(
    st.tuples(st.one_of(st.none(), st.text(max_size=2)), st.one_of(st.none(), st.integers(-2, 2))), max_size=30
)


@settings(deadline=None)
@given(columns_of_keys, st.integers(1, 2), st.integers(0, 30))
def test_codes_number_the_distinct_keys(rows: list[tuple[str | None, int | None]], width: int, cut: int) -> None:
    arrays = [pa.array([row[0] for row in rows], pa.string()), pa.array([row[1] for row in rows], pa.int64())][:width]
    for start in (0, cut):
        codes, firsts = key_codes([array.slice(start) for array in arrays])
        keys = [row[:width] for row in rows[start:]]
        assert codes.dtype == np.int64 and len(codes) == len(keys)
        assert sorted(set(codes.tolist())) == list(range(len(set(keys)))) == list(range(len(firsts)))
        assert [keys[firsts[code]] for code in codes] == keys


def test_batches_agree_on_one_type_which_nulls_leave_open() -> None:
    assert common_type([pa.null(), pa.string(), pa.null(), pa.string()], "k") == pa.string()
    assert common_type([], "k") == common_type([pa.null()], "k") == pa.null()
    joined = concat_columns([pa.nulls(2), pa.array([1]), pa.nulls(1)], "k")
    assert joined.type == pa.int64() and joined.to_pylist() == [None, None, 1, None]
    for types in ([pa.int64(), pa.string()], [pa.string(), pa.null(), pa.int64()]):
        with pytest.raises(InputError, match="column 'k' holds int64 in some batches and string in others"):
            common_type(types, "k")
    with pytest.raises(InputError, match=r"timestamp\[ms\] in some batches and timestamp\[us\] in others"):
        common_type([pa.timestamp("us"), pa.timestamp("ms")], "k")


NUMBERS = {
    "5": 5, " 5 ": 5, "\t-.5e1\n": -5, "+2.": 2, "1e400": math.inf, "-1e400": -math.inf, "1e-400": 0,
    "inf": math.inf, "-Infinity": -math.inf, "007": 7,
}  # fmt: skip
NO_NUMBERS = ["", " ", "x", "1_000", "0x10", "1e", "e5", ".", "5 5", "nan", "\u0967", "5\x0b", "\u20035", "--1", "1,5"]


def test_text_is_parsed_in_one_way_in_columns_and_in_rows() -> None:
    for text in (pa.string(), pa.large_string()):
        assert number_column(pa.array(list(NUMBERS), text), "v").to_pylist() == list(NUMBERS.values())
        assert np.isnan(number_column(pa.array([*NO_NUMBERS, None], text), "v").to_numpy()).all()
    assert numbers_of(list(NUMBERS)).to_pylist() == list(NUMBERS.values())
    assert np.isnan(numbers_of([*NO_NUMBERS, None]).to_numpy()).all()


@settings(deadline=None)
@given(st.text("0123456789+-.eEinfINF \t\n_x\u0660", max_size=8))
def test_any_text_is_parsed_in_one_way(text: str) -> None:
    (in_column,) = number_column(pa.array([text]), "v").to_pylist()
    (in_row,) = numbers_of([text]).to_pylist()
    assert in_column == in_row or (math.isnan(in_column) and math.isnan(in_row))


class Oddity:
    """Something that numpy can make a number of."""

    def __float__(self) -> float:
        return 4.0


anything = st.sampled_from(
    [1, -2.5, True, None, 10**400, -(10**400), "3", "x", "1_000", b"5", Decimal("1.5"), Decimal("sNaN"), math.nan,
     math.inf, np.float32(0.25), np.int8(-3), np.bool_(True), np.datetime64("2024-01-01"), np.array(3.0), Oddity(),
     DAY, [1], 1j, np.complex128(2)]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(anything, min_size=1, max_size=6))
def test_what_becomes_of_a_value_does_not_depend_on_the_rows_beside_it(values: list[Any]) -> None:
    alone = np.concatenate([numbers_of([value]).to_numpy() for value in values])
    np.testing.assert_array_equal(numbers_of(values).to_numpy(), alone)


def test_numbers_of_other_types() -> None:
    for column, expected in [
        (pa.array([1, None, -3], pa.int8()), [1, math.nan, -3]),
        (pa.array([2**64 - 1], pa.uint64()), [2.0**64]),
        (pa.array([1.5, None, math.nan, math.inf], pa.float32()), [1.5, math.nan, math.nan, math.inf]),
        (pa.array([True, None, False]), [1, math.nan, 0]),
        (pa.array([Decimal("1.25"), None]), [1.25, math.nan]),
        (pa.array(["7", "x", "7"]).dictionary_encode(), [7, math.nan, 7]),
        (pa.nulls(2), [math.nan, math.nan]),
        (pa.array([9, 1, 2]).slice(1), [1, 2]),
    ]:
        numbers = number_column(column, "v")
        assert numbers.type == pa.float64() and not numbers.null_count
        np.testing.assert_array_equal(numbers.to_numpy(), expected)
    for column in (pa.array([DAY]), pa.array([b"5"]), pa.array([[1.0]])):
        with pytest.raises(InputError, match=r"column 'v' holds .*, but numbers are needed"):
            number_column(column, "v")
