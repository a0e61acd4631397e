"""Texts to (privacy unit, n-gram), through a pipeline and batch by batch."""

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from beam_dp.errors import ArgumentError, InputError
from beam_dp.text import SplitIntoNgrams


def rows_of(batch):
    return [tuple(row.values()) for row in batch.to_pylist()]


def split(batch, **options):
    """The rows that the transform makes of one batch, without a pipeline."""
    found = list(SplitIntoNgrams(privacy_unit="user", **options)._split(batch))
    assert all(part.schema.names == ["user", "ngram"] for part in found)
    return [row for part in found for row in rows_of(part)]


def batch_of(texts, users=None):
    users = list(range(len(texts))) if users is None else users
    return pa.RecordBatch.from_pydict({"user": users, "text": texts, "other": ["x"] * len(texts)})


def test_sizes_follow_each_other_and_repetitions_stay():
    batch = batch_of(["One two, one two", None, "two"], ["a", "b", None])
    words = [("a", "one"), ("a", "two"), ("a", "one"), ("a", "two"), (None, "two")]
    pairs = [("a", "one two"), ("a", "two one"), ("a", "one two")]
    assert split(batch, sizes=(1, 2)) == words + pairs
    assert split(batch, sizes=[2], max_words=3) == pairs[:2]
    assert split(batch, sizes=[3], max_words=2) == []


def test_text_that_is_no_utf8_has_no_words():
    texts = pa.array([b"a b", b"\xff secret", b"c"], pa.binary()).view(pa.string())
    batch = pa.RecordBatch.from_pydict({"user": [1, 2, 3], "text": texts})
    assert split(batch) == [(1, "a"), (1, "b"), (3, "c")]


def test_units_keep_their_type_and_texts_may_be_encoded():
    users = pa.array([7, 8], pa.int32())
    texts = pa.array(["a b", "a b"]).dictionary_encode()
    (found,) = SplitIntoNgrams(privacy_unit="id", text_column="said", sizes=(2,))._split(
        pa.record_batch([users, texts], names=["id", "said"])
    )
    assert found.schema == pa.schema([("id", pa.int32()), ("ngram", pa.string())])
    assert rows_of(found) == [(7, "a b"), (8, "a b")]


def test_in_a_pipeline():
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = (
            p
            | beam.Create(["a b", "c"])
            | beam.Map(lambda text: batch_of([text], ["u"])).with_output_types(pa.RecordBatch)
            | SplitIntoNgrams(privacy_unit="user", sizes=(1, 2))
            | beam.FlatMap(rows_of)
        )
        assert_that(rows, equal_to([("u", "a"), ("u", "b"), ("u", "a b"), ("u", "c")]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"privacy_unit": ""}, "privacy_unit must be the name of a column"),
        ({"privacy_unit": "text"}, "privacy_unit must be another column"),
        ({"privacy_unit": "ngram"}, "privacy_unit must be another column"),
        ({"privacy_unit": "u", "text_column": None}, "text_column must be the name of a column, not None"),
        ({"privacy_unit": "u", "sizes": ()}, "sizes must be one or more"),
        ({"privacy_unit": "u", "sizes": 2}, "sizes must be a list"),
        ({"privacy_unit": "u", "sizes": "12"}, "sizes must be a whole number"),
        ({"privacy_unit": "u", "sizes": (1, 1)}, "sizes must be one or more different"),
        ({"privacy_unit": "u", "sizes": (0,)}, "sizes must be at least 1"),
        ({"privacy_unit": "u", "sizes": (9,)}, "from 1 to 8"),
        ({"privacy_unit": "u", "max_words": 0}, "max_words must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_right(options, message):
    with pytest.raises(ArgumentError, match=message):
        SplitIntoNgrams(**options)


def test_it_takes_batches_only():
    with pytest.raises(ArgumentError, match="takes a PCollection of pyarrow"):
        _ = beam.Pipeline(runner="FnApiRunner") | beam.Create(["a"]) | SplitIntoNgrams(privacy_unit="user")


def test_columns_that_are_missing_or_hold_no_text():
    with pytest.raises(InputError, match="no column 'user'"):
        split(pa.RecordBatch.from_pydict({"text": ["a"]}))
    with pytest.raises(InputError, match="must hold text, not int64"):
        split(pa.RecordBatch.from_pydict({"user": ["a"], "text": [1]}))
