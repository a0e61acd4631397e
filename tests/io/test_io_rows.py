import typing

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.transforms.window import GlobalWindow
from apache_beam.typehints import row_type, typehints
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.errors import ArgumentError, InputError
from beam_dp.io import Position, position_of, with_position
from beam_dp.io.rows import (
    RowBuffer,
    RowShape,
    infer_kind,
    output_hint,
    require_column,
    row_fields,
    value_of,
    with_column,
    with_value,
)


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
    ("kind", "element"),
    [("str", 7), ("dict", {"user": 1, "text": 7}), ("row", beam.Row(user=1, text=7)), ("row", Utterance(7, 1))],
)
def test_the_value_of_a_row_is_whatever_the_column_holds(kind, element):
    assert value_of(kind, element, SHAPE) == 7


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        ("dict", {"text": 1}),
        ("dict", {"user": 1}),
        ("dict", ["text", "user"]),
        ("row", beam.Row(text=1)),
        ("row", None),
    ],
)
def test_a_row_without_a_needed_column_has_no_value(kind, element):
    with pytest.raises(LookupError):
        value_of(kind, element, SHAPE)


def test_output_rows_have_the_new_value_and_the_kept_columns():
    assert with_value("str", "a", SHAPE, "b") == "b"
    assert with_value("dict", {"user": 1, "text": "a", "x": 2}, SHAPE, "b") == {"text": "b", "user": 1}
    assert with_value("row", Utterance("a", 1), SHAPE, "b") == beam.Row(text="b", user=1)


def test_output_types():
    assert output_hint("str", SHAPE, str, str) is str
    assert output_hint("dict", SHAPE, dict, int) == dict[str, typing.Any]
    assert output_hint("record_batch", SHAPE, pa.RecordBatch, int) is pa.RecordBatch
    row = output_hint("row", SHAPE, Utterance, bool)
    assert isinstance(row, row_type.RowTypeConstraint) and row._fields == (("text", bool), ("user", int))


def test_output_batch_has_the_new_column_the_kept_ones_and_the_place_of_the_old():
    batch = with_position(pa.RecordBatch.from_pydict({"x": [0], "user": [1], "text": ["a"]}), Position(1, 2, 3))
    out = with_column(batch.replace_schema_metadata(batch.schema.metadata | {b"note": b"a"}), SHAPE, pa.array([7]))
    assert out.to_pylist() == [{"text": 7, "user": 1}]
    assert position_of(out) == Position(1, 2, 3) and b"note" not in out.schema.metadata


def test_missing_columns_are_refused_and_those_there_are_named():
    with pytest.raises(InputError, match="no column 'user'; the columns are: text, name"):
        SHAPE.require(["text", "name"])
    with pytest.raises(InputError, match="none"):
        SHAPE.require([])


@pytest.mark.parametrize("keep", ["user", ["text"], ["user", "user"]])
def test_columns_that_cannot_be_kept_are_refused(keep):
    with pytest.raises(ArgumentError, match="keep_columns"):
        RowShape("text", keep)


@pytest.mark.parametrize("name", ["", None, 3])
def test_what_is_no_name_of_a_column_is_refused(name):
    with pytest.raises(ArgumentError, match="text_column must be the name of a column"):
        require_column("text_column", name)


@pytest.mark.parametrize(("value", "rows"), [("x", 4096), ("x" * (1 << 20), 4), (7, 4096)])
def test_rows_wait_until_their_number_or_their_characters_fill_a_batch(value, rows):
    sizes = []

    def replace(values):
        sizes.append(len(values))
        return values

    waiting = RowBuffer("str", SHAPE, replace)
    row = WindowedValue(value, 5, (GlobalWindow(),))
    out = [len(list(waiting.add(row, value))) for _ in range(rows)]
    assert out == [0] * (rows - 1) + [rows] and sizes == [rows]
    assert waiting.flush() == [] and sizes == [rows]


def test_rows_keep_their_timestamps_and_windows_while_they_wait():
    waiting = RowBuffer("str", SHAPE, lambda values: [value.upper() for value in values])
    rows = [WindowedValue(text, at, (GlobalWindow(),)) for text, at in (("a", 1), ("b", 2))]
    for row in rows:
        assert not waiting.add(row, row.value)
    out = waiting.flush()
    assert [row.value for row in out] == ["A", "B"]
    assert [(row.timestamp, row.windows) for row in out] == [(row.timestamp, row.windows) for row in rows]
