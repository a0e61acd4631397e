"""Keys of rows whose type a public list decides: each value by itself, whatever is beside it."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.aggregate.rows import _keys_of

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([10**10, 7, 7.0, 0.5, "7", "x", "10000000000", b"7", Decimal("1.5"), Decimal("1.500")]),
    st.sampled_from([np.int8(7), np.datetime64("2020-01-01"), np.datetime64("2020-01-01T05:00:00"), ["a"], object()]),
    st.dates(dt.date(2000, 1, 1), dt.date(2001, 1, 1)),
    st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2001, 1, 1), timezones=st.sampled_from([None, dt.timezone.utc])),
)
KINDS = [pa.string(), pa.int64(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC")]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=150, deadline=None)
@given(values=st.lists(VALUES, max_size=6), extra=VALUES)
def test_no_value_changes_another(kind: pa.DataType, values: list[Any], extra: Any) -> None:
    # As arrays: some timestamps are beyond what Python can show.
    alone = pa.concat_arrays([pa.array([], kind), *(_keys_of([value], kind) for value in values)])
    assert _keys_of(values, kind).equals(alone)
    assert _keys_of([extra, *values], kind).slice(1).equals(alone)


def test_values_of_the_type_stay_and_others_are_null() -> None:
    assert _keys_of([7, "8", "x", None, 2**70], pa.int64()).to_pylist() == [7, 8, None, None, None]
    assert _keys_of([10**10, 0.5, "a"], pa.string()).to_pylist()[::2] == ["10000000000", "a"]
