"""The coder of RecordBatches, their positions and their sizes."""

import pickle

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st
from io_support import pipeline

from beam_dp.io import ReadBatches, RecordBatchCoder, WriteBatches, keep_position, position_of, with_position
from beam_dp.io.batches import Position, split_by_size, without_position

CODER = RecordBatchCoder()
VALUES = st.lists(st.tuples(st.none() | st.text(), st.none() | st.integers(-(2**63), 2**63 - 1)), max_size=30)


def batch_of(values: list[tuple[str | None, int | None]]) -> pa.RecordBatch:
    return pa.record_batch(
        [pa.array([text for text, _ in values], pa.string()), pa.array([number for _, number in values], pa.int64())],
        names=["text", "number"],
    )


@given(VALUES, st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_coder_round_trip_of_slices(values, start, length):
    batch = with_position(batch_of(values).slice(start, length), Position(3, 99, 1))
    decoded = CODER.decode(CODER.encode(batch))
    assert decoded.equals(batch, check_metadata=True)
    assert CODER.encode(decoded) == CODER.encode(batch)


def test_coder_keeps_dictionary_columns():
    batch = pa.record_batch({"d": pa.array(["a", "b", "a"]).dictionary_encode(), "l": [[1], [], None]})
    assert CODER.decode(CODER.encode(batch)).equals(batch)


def test_a_slice_ships_its_own_rows_only():
    batch = pa.record_batch({"text": [f"row number {i}" for i in range(100_000)]})
    encoded = CODER.encode(batch.slice(500, 10))
    assert len(encoded) < 2000
    assert len(pickle.dumps(batch.slice(500, 10))) > 100 * len(encoded)
    assert CODER.decode(encoded).column("text")[0].as_py() == "row number 500"


def test_decoding_copies_nothing():
    encoded = CODER.encode(pa.record_batch({"text": ["x" * 1000]}))
    before = pa.total_allocated_bytes()
    decoded = CODER.decode(encoded)
    assert pa.total_allocated_bytes() - before < 1000
    assert decoded.num_rows == 1


def test_the_coder_is_registered_and_deterministic():
    assert beam.coders.registry.get_coder(pa.RecordBatch) == CODER
    assert CODER.is_deterministic()
    assert CODER.to_type_hint() is pa.RecordBatch
    assert CODER.estimate_size(pa.record_batch({"a": pa.array([1, 2], pa.int64())})) == 16


def test_no_batch_is_pickled_anywhere_in_the_graph(tmp_path):
    (tmp_path / "in.txt").write_text("a\n")
    graph = pipeline()
    read = graph | ReadBatches(str(tmp_path / "in.txt")).with_rejects()
    mapped = read.batches | beam.Map(lambda batch: batch).with_output_types(pa.RecordBatch)
    (mapped, read.rejected) | WriteBatches(str(tmp_path / "out"), format="text", run_id="r")
    proto = graph.to_runner_api()
    ours = 0
    carriers = ("/Read/", "InOneWindow", "Map(<lambda at test_io")
    for collection in proto.components.pcollections.values():
        coder = proto.components.coders[collection.coder_id]
        if any(name in collection.unique_name for name in carriers):
            assert b"RecordBatchCoder" in coder.spec.payload, collection.unique_name
            ours += 1
        else:
            assert b"RecordBatchCoder" not in coder.spec.payload, collection.unique_name
    assert ours == 5


def test_positions_travel_in_the_metadata():
    plain = pa.record_batch({"a": [1]}).replace_schema_metadata({b"other": b"kept"})
    assert position_of(plain) is None
    placed = with_position(plain, Position(source=2, offset=2**40, piece=7))
    assert placed.schema.metadata[b"beam_dp.source"] == b"2"
    assert placed.schema.metadata[b"beam_dp.offset"] == str(2**40).encode()
    assert position_of(placed) == Position(2, 2**40, 7)
    assert without_position(placed.schema).metadata == {b"other": b"kept"}
    assert position_of(keep_position(pa.record_batch({"b": ["x"]}), placed)) == Position(2, 2**40, 7)
    assert keep_position(plain, pa.record_batch({"b": ["x"]})) is plain


@given(st.lists(st.text(max_size=40), max_size=60), st.integers(1, 20), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_split_by_size_keeps_every_row_within_both_bounds(texts, max_rows, max_bytes):
    batch = pa.record_batch([pa.array(texts, pa.string())], names=["text"])
    parts = list(split_by_size(batch, max_rows, max_bytes))
    assert [text for _, part in parts for text in part.column(0).to_pylist()] == texts
    for start, part in parts:
        assert part.column(0).to_pylist() == texts[start : start + part.num_rows]
        assert part.num_rows <= 1 or (part.num_rows <= max_rows and part.nbytes <= max_bytes)


def test_an_empty_batch_is_one_slice():
    empty = pa.record_batch([pa.array([], pa.string())], names=["text"])
    assert [part.num_rows for _, part in split_by_size(empty, 10, 10)] == [0]


def test_batches_pass_through_a_shuffle_of_another_process():
    batch = with_position(pa.record_batch({"text": ["a", "b", "c"]}), Position(0, 5, 0))
    with pipeline("--direct_num_workers=1", "--direct_running_mode=multi_processing") as running:
        out = (
            running
            | beam.Create([0, 1, 2])
            | beam.Map(lambda start: batch.slice(start, 1)).with_output_types(pa.RecordBatch)
            | beam.Reshuffle()
            | beam.Map(lambda part: (part.column(0).to_pylist(), position_of(part).offset))
        )
        assert_that(out, equal_to([(["a"], 5), (["b"], 5), (["c"], 5)]))


@pytest.mark.parametrize("bad", [b"", b"not an IPC stream"])
def test_decoding_something_else_fails(bad):
    with pytest.raises(pa.ArrowException):
        CODER.decode(bad)
