"""Shards of every output format, read back with other software where there is some."""

import csv
import datetime
import decimal
import hashlib
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.errors import InputError
from beam_dp.io import with_position
from beam_dp.io.batches import Position
from beam_dp.io.encode import CountingFile, encoder

TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=10), min_size=1, max_size=12)


def encoded(format: str, *batches: pa.RecordBatch) -> bytes:
    out = io.BytesIO()
    file = CountingFile(out)
    writer = encoder(format, file, batches[0].schema)
    for batch in batches:
        writer.write(batch)
    writer.finish()
    assert file.size == len(out.getvalue())
    assert file.sha256 == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def texts_of(values: list[str | None]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, pa.string()), pa.array(range(len(values)))], names=["text", "n"])


@given(TEXTS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_jsonl(values, start):
    batch = texts_of(values).slice(start)
    lines = encoded("jsonl", batch).decode().split("\n")[:-1]
    assert [json.loads(line) for line in lines] == batch.to_pylist()


@given(TEXTS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_csv(values, start):
    batch = texts_of(values).slice(start)
    rows = list(csv.DictReader(io.StringIO(encoded("csv", batch, batch).decode(), newline="")))
    assert rows == 2 * [{"text": row["text"] or "", "n": str(row["n"])} for row in batch.to_pylist()]


@given(TEXTS, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_text_and_tsv_put_spaces_for_what_would_break_a_row(values, start):
    batch = texts_of(values).slice(start)
    plain = [(value or "").replace("\n", " ").replace("\r", " ") for value in batch.column("text").to_pylist()]
    assert encoded("text", batch.select(["text"])).decode() == "".join(value + "\n" for value in plain)
    numbers = batch.column("n").to_pylist()
    rows = [f"{number}\t{value.replace(chr(9), ' ')}\n" for number, value in zip(numbers, plain, strict=True)]
    assert encoded("tsv", batch.select(["n", "text"])).decode() == "".join(["n\ttext\n", *rows])


@given(TEXTS)
@settings(max_examples=30, deadline=None)
def test_parquet(values):
    batch = texts_of(values)
    placed = with_position(batch.replace_schema_metadata({b"other": b"kept"}), Position(0, 1, 2))
    table = pq.read_table(io.BytesIO(encoded("parquet", placed, placed)))
    assert table.to_pylist() == 2 * batch.to_pylist()
    assert table.schema.metadata == {b"other": b"kept"}


def test_parquet_gathers_batches_into_row_groups():
    batch = pa.record_batch({"text": ["some words"] * 100})
    metadata = pq.read_metadata(io.BytesIO(encoded("parquet", *[batch] * 50)))
    assert (metadata.num_row_groups, metadata.num_rows) == (1, 5000)


def test_json_has_no_nan_and_other_kinds_become_text():
    batch = pa.record_batch(
        {
            "x": [1.5, math.nan],
            "nested": [{"y": [math.inf, 2.0]}, None],
            "day": [datetime.date(2020, 1, 2), None],
            "time": pa.array([datetime.datetime(2020, 1, 2, 3, 4, 5), None], pa.timestamp("ns")),
            "money": [decimal.Decimal("1.10"), None],
            "bytes": [b"text", None],
            "long": [datetime.timedelta(seconds=5), None],
        }
    )
    first, second = (json.loads(line) for line in encoded("jsonl", batch).splitlines())
    assert second == dict.fromkeys(batch.schema.names)
    assert first["nested"] == {"y": [None, 2.0]}
    assert (first["x"], first["day"], first["money"], first["bytes"]) == (1.5, "2020-01-02", "1.10", "text")
    assert first["time"].startswith("2020-01-02 03:04:05")


def test_delimited_formats_hold_nested_values_as_json():
    batch = pa.record_batch(
        {"l": [[1, 2], None], "d": pa.array(["a", None]).dictionary_encode(), "b": [b"x", b"y"], "t": [True, None]}
    )
    assert encoded("tsv", batch) == b"l\td\tb\tt\n[1, 2]\ta\tx\ttrue\n\t\ty\t\n"
    rows = list(csv.reader(io.StringIO(encoded("csv", batch).decode())))
    assert rows == [["l", "d", "b", "t"], ["[1, 2]", "a", "x", "true"], ["", "", "y", ""]]


@pytest.mark.parametrize("format", ["csv", "tsv", "text", "jsonl"])
def test_bytes_that_are_no_text_are_refused_without_showing_them(format):
    with pytest.raises(InputError, match="only parquet") as caught:
        encoded(format, pa.record_batch({"b": [b"secret\xff"]}))
    assert "secret" not in str(caught.value)


def test_text_holds_one_column():
    with pytest.raises(InputError, match="holds one column, not 2: text, n"):
        encoded("text", texts_of(["a"]))


@pytest.mark.parametrize(
    ("format", "empty"), [("text", b""), ("jsonl", b""), ("csv", b'"text"\n'), ("tsv", b"text\n"), ("parquet", None)]
)
def test_shards_without_rows(format, empty):
    data = encoded(format, pa.record_batch([pa.array([], pa.string())], names=["text"]))
    if empty is None:
        assert pq.read_table(io.BytesIO(data)).schema.names == ["text"]
    else:
        assert data == empty


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "tsv", "parquet"])
def test_shards_without_columns(format):
    data = encoded(format, pa.RecordBatch.from_pylist([], pa.schema([])))
    if format == "parquet":
        assert pq.read_table(io.BytesIO(data)).num_columns == 0
    else:
        assert data == b""
