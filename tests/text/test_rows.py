import typing

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.typehints import typehints

from beam_dp.errors import ArgumentError, InputError
from beam_dp.text.rows import RowShape, batch_with_text, infer_kind, row_fields, text_of, with_text


class Utterance(typing.NamedTuple):
    text: str
    user: int


SHAPE = RowShape("text", ("user",))


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (str, "str"),
        (str | None, "str"),
        (dict, "dict"),
        (dict[str, int], "dict"),
        (typehints.Dict[str, typehints.Any], "dict"),
        (Utterance, "row"),
        (beam.Row, "row"),
        (pa.RecordBatch, "record_batch"),
    ],
)
def test_kind_follows_the_type_hint(hint, kind):
    assert infer_kind(hint) == kind


@pytest.mark.parametrize("hint", [typing.Any, object])
def test_a_hint_that_says_nothing_is_refused(hint):
    with pytest.raises(ArgumentError, match=r"input_kind must be given|input PCollection holds"):
        infer_kind(hint)


@pytest.mark.parametrize("hint", [int, bytes, list[str]])
def test_a_hint_of_another_type_is_refused(hint):
    with pytest.raises(ArgumentError, match="input PCollection holds"):
        infer_kind(hint)


def test_declared_fields():
    assert row_fields(Utterance) == [("text", str), ("user", int)]
    assert row_fields(beam.Row) is None and row_fields(int) is None


@pytest.mark.parametrize(
    ("kind", "element", "expected"),
    [
        ("str", "a", ("a", None)),
        ("str", None, (None, None)),
        ("str", b"a", (None, "not_text")),
        ("str", "\ud800", (None, "invalid_unicode")),
        ("dict", {"text": "a", "user": 1}, ("a", None)),
        ("dict", {"text": "a"}, (None, "missing_column")),
        ("dict", ["text"], (None, "missing_column")),
        ("dict", {"text": 1, "user": 1}, (None, "not_text")),
        ("row", Utterance("a", 1), ("a", None)),
        ("row", beam.Row(text=None, user=1), (None, None)),
        ("row", beam.Row(text="a"), (None, "missing_column")),
    ],
)
def test_the_text_of_a_row_or_why_there_is_none(kind, element, expected):
    assert text_of(kind, element, SHAPE) == expected


def test_output_rows_have_the_text_and_the_kept_columns():
    assert with_text("str", "a", SHAPE, "b") == "b"
    assert with_text("dict", {"user": 1, "text": "a", "x": 2}, SHAPE, "b") == {"text": "b", "user": 1}
    assert with_text("row", Utterance("a", 1), SHAPE, "b") == beam.Row(text="b", user=1)


def test_output_batch_has_one_text_column_of_type_string():
    batch = pa.record_batch({"x": [0], "user": [1], "text": ["a"]})
    out = batch_with_text(batch, SHAPE, pa.array(["b"]))
    assert out.to_pylist() == [{"text": "b", "user": 1}]


def test_missing_columns_are_refused_and_those_there_are_named():
    with pytest.raises(InputError, match="no column 'user'; the columns are: text, name"):
        SHAPE.require(["text", "name"])
    with pytest.raises(InputError, match="none"):
        SHAPE.require([])
