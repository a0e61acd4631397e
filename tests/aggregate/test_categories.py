"""A public list of categories, and values of any kind as codes of it."""

import math

import numpy as np
import pyarrow as pa
import pytest

from beam_dp.aggregate.categories import Categories

COLOURS = ["red", "green", "blue"]


def test_values_of_any_kind_have_a_code():
    values = ["blue", "red", None, 7, ["red"], {"red"}, b"red", "\ud800", math.nan]
    assert Categories(COLOURS).value_codes(values).tolist() == [2, 0] + [-1] * 7


def test_numbers_and_booleans_of_numpy_are_categories_and_values_too():
    assert Categories(np.array([3, 5])).values == (3, 5)
    numbers = Categories([3, 5])
    assert numbers.value_codes([np.int8(5), 3, np.uint64(3), 3.0, True, "3", None]).tolist() == [
        1,
        0,
        0,
        -1,
        -1,
        -1,
        -1,
    ]
    flags = Categories([False, True])
    assert flags.value_codes([np.True_, False, 1, 0, None]).tolist() == [1, 0, -1, -1, -1]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
def test_codes_of_integer_columns_are_those_of_their_values(kind, rng):
    categories = Categories([-(1 << 63), -129, -1, 0, 1, 127, 200, 1 << 20, (1 << 63) - 1])
    bounds = np.iinfo(str(kind))
    possible = [value for value in categories.values if bounds.min <= value <= bounds.max]
    values = [*possible, bounds.max, bounds.min, 77, None, *rng.choice(possible, 50).tolist()]
    expected = [categories.values.index(v) if v in categories.values else -1 for v in values]
    codes = categories.column_codes(pa.array(values, kind), "x")
    assert codes.dtype == np.int32 and codes.tolist() == expected
    assert categories.value_codes(values).tolist() == expected


def test_columns_of_codes_are_categories():
    assert Categories(["a", "b"]).column(np.array([1, 0, 1], np.int32)).to_pylist() == ["b", "a", "b"]
