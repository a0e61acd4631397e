"""The order of released partitions: a function of the rows, whatever the batches that they come in."""

import datetime
from decimal import Decimal

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.aggregate.ordered import InKeyOrder, _cut, _sorted
from beam_dp.errors import ArgumentError
from beam_dp.io import position_of

SCHEMA = pa.schema([("a", pa.string()), ("b", pa.int64()), ("count", pa.int64())])

keys = st.tuples(st.none() | st.sampled_from(["", "x", "é", "yy"]), st.none() | st.integers(-3, 3))


def batch_of(rows):
    return pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def rows_of(batch):
    return [tuple(row.values()) for row in batch.to_pylist()]


def nulls_last(row):
    a, b, _ = row
    return a is None, a or "", b is None, b or 0


@settings(max_examples=200, deadline=None)
@given(st.lists(keys, unique=True, max_size=12), st.data())
def test_however_the_rows_are_cut_the_part_is_the_same(found, data):
    rows = [(*key, i) for i, key in enumerate(found)]
    shuffled = data.draw(st.permutations(rows))
    middle = data.draw(st.integers(0, len(rows)))
    parts = [batch_of(shuffled[:middle]), batch_of([]), batch_of(shuffled[middle:])]
    batches = _sorted((3, parts), ["a", "b"])
    assert [row for batch in batches for row in rows_of(batch)] == sorted(rows, key=nulls_last)
    assert batches and all(position_of(batch).piece == 3 for batch in batches)
    assert all(batch.schema.remove_metadata() == SCHEMA for batch in batches)


@pytest.mark.parametrize(
    "values",
    [
        [True, False, None],
        [datetime.date(2024, 1, day) for day in (3, 1, 2)],
        [datetime.datetime(2024, 1, day, tzinfo=datetime.timezone.utc) for day in (3, 1, 2)],
        [datetime.time(hour) for hour in (3, 1, 2)],
        [Decimal("1.10"), Decimal("-2.00"), None],
        [2**63 + 1, 5, 2**63],
    ],
)
def test_every_type_of_key(values):
    column = pa.array(values, pa.uint64() if values[1] == 5 else None)
    (batch,) = _sorted((0, [pa.RecordBatch.from_pydict({"k": column})]), ["k"])
    assert batch.column(0).to_pylist() == sorted(v for v in values if v is not None) + [None] * values.count(None)


def test_parts_depend_on_keys_and_their_number_alone():
    batch = batch_of([(f"k{i}", i % 7, i) for i in range(1000)])
    assert [(part, rows.num_rows) for part, rows in _cut(batch, 1000, ["a", "b"], 1000)] == [(0, 1000)]
    whole = {part: set(rows_of(rows)) for part, rows in _cut(batch, 1000, ["a", "b"], 300)}
    assert set(whole) == {0, 1, 2, 3} and all(150 < len(rows) < 350 for rows in whole.values())
    pieces = {part: set() for part in whole}
    for start in range(0, 1000, 90):
        for part, rows in _cut(batch.slice(start, 90), 1000, ["a", "b"], 300):
            pieces[part] |= set(rows_of(rows))
    assert pieces == whole
    assert [part for part, _ in _cut(batch_of([]), 1000, ["a", "b"], 300)] == [0]


@pytest.mark.parametrize(("batches", "part_rows"), [([[1, 5], [], [3]], 10), ([[], []], 10), ([[4, 2, 9, 7]], 1)])
def test_in_a_pipeline(batches, part_rows):
    with beam.Pipeline(runner="FnApiRunner") as p:
        ordered = (
            p
            | beam.Create(batches, reshuffle=False)
            | beam.Map(lambda ids: batch_of([("k", i, i) for i in ids])).with_output_types(pa.RecordBatch)
            | InKeyOrder(["a", "b"], part_rows)
        )
        assert ordered.element_type is pa.RecordBatch
        found = [i for ids in batches for i in ids]
        if part_rows > len(found):
            assert_that(ordered | beam.Map(rows_of), equal_to([[("k", i, i) for i in sorted(found)]]))
        else:
            assert_that(ordered | beam.FlatMap(rows_of), equal_to([("k", i, i) for i in found]))


def test_a_part_has_rows():
    with pytest.raises(ArgumentError, match="part_rows must be at least 1"):
        InKeyOrder(["a"], part_rows=0)
