"""Rows of four kinds, as one Arrow column of texts and back: the door between row-wise pipelines and batches.

| kind | in | out |
|---|---|---|
| ``str`` | str or None | str |
| ``dict`` | dict with the text column | dict: the text column and the kept ones |
| ``row`` | NamedTuple, dataclass row or `beam.Row` | `beam.Row`: the text field and the kept ones, declared schema |
| ``record_batch`` | `pyarrow.RecordBatch` | `pyarrow.RecordBatch`: the text column and the kept ones |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints import row_type, typehints

from beam_dp.errors import ArgumentError, InputError
from beam_dp.io.batches import keep_position
from beam_dp.io.rejects import INVALID_UNICODE, NOT_TEXT

KINDS = ("str", "dict", "row", "record_batch")

MISSING_COLUMN = "missing_column"


@dataclass(frozen=True)
class RowShape:
    """Which column is privatized and which others are kept; all others are dropped.

    Attributes:
        text_column: the name of the column or field of texts; without meaning for the kind ``str``.
        keep_columns: passed on as they are, in this order, after the text.
    """

    text_column: str
    keep_columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.text_column, str) or not self.text_column:
            raise ArgumentError("text_column must be the name of a column")
        if self.text_column in self.keep_columns or len(set(self.keep_columns)) != len(self.keep_columns):
            raise ArgumentError("keep_columns must name columns other than the text column, each of them once")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the output."""
        return (self.text_column, *self.keep_columns)

    def require(self, there: Iterable[str]) -> None:
        """InputError naming the columns there are, unless all that are needed are among them."""
        names = list(there)
        missing = [column for column in self.columns if column not in names]
        if missing:
            raise InputError(f"no column {missing[0]!r}; the columns are: {', '.join(map(str, names)) or 'none'}")


def infer_kind(element_type: Any) -> str:
    """The kind of the elements of a PCollection with this type hint.

    Raises:
        ArgumentError: the hint does not say (``Any``) or is of no known kind.
    """
    hint = typehints.normalize(element_type)
    if hint is str or hint == typehints.Optional[str]:
        return "str"
    if isinstance(hint, typehints.DictConstraint) or hint is dict:
        return "dict"
    if hint is pa.RecordBatch:
        return "record_batch"
    if row_fields(hint) is not None or hint is beam.Row:
        return "row"
    if hint == typehints.Any:
        raise ArgumentError(
            f"input_kind must be given, one of {', '.join(KINDS)}: "
            "the input PCollection does not declare its element type"
        )
    raise ArgumentError(f"the input PCollection holds {hint!r}, but one of {', '.join(KINDS)} is needed")


def row_fields(element_type: Any) -> list[tuple[str, Any]] | None:
    """The declared fields of a schema type, or None if the type declares none."""
    if element_type is beam.Row:
        return None
    row = row_type.RowTypeConstraint.from_user_type(element_type) if isinstance(element_type, type) else element_type
    return list(row._fields) if isinstance(row, row_type.RowTypeConstraint) else None


def output_hint(kind: str, shape: RowShape, element_type: Any) -> Any:
    """The type hint of the privatized rows."""
    if kind == "row":
        fields = dict(row_fields(element_type) or [])
        return row_type.RowTypeConstraint.from_fields(
            [(shape.text_column, str), *((name, fields.get(name, Any)) for name in shape.keep_columns)]
        )
    return {"str": str, "dict": dict[str, Any], "record_batch": pa.RecordBatch}[kind]


def text_of(kind: str, element: Any, shape: RowShape) -> tuple[str | None, str | None]:
    """The text of one row and None, or None and the reason why the row is rejected."""
    if kind == "str":
        text = element
    elif kind == "dict":
        if not isinstance(element, Mapping) or any(column not in element for column in shape.columns):
            return None, MISSING_COLUMN
        text = element[shape.text_column]
    else:
        if any(not hasattr(element, column) for column in shape.columns):
            return None, MISSING_COLUMN
        text = getattr(element, shape.text_column)
    if text is None:
        return None, None
    if not isinstance(text, str):
        return None, NOT_TEXT
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None, INVALID_UNICODE
    return text, None


def with_text(kind: str, element: Any, shape: RowShape, text: str) -> Any:
    """The output row of ``element``."""
    if kind == "str":
        return text
    if kind == "dict":
        return {shape.text_column: text, **{name: element[name] for name in shape.keep_columns}}
    return beam.Row(**{shape.text_column: text}, **{name: getattr(element, name) for name in shape.keep_columns})


def batch_with_text(batch: pa.RecordBatch, shape: RowShape, texts: pa.Array) -> pa.RecordBatch:
    """The output batch of ``batch``: the texts, the kept columns, and its place in the input.

    Other metadata of the schema and its fields is dropped: writers put names and statistics of all columns there.
    """
    kept = [batch.schema.field(name) for name in shape.keep_columns]
    fields = [pa.field(shape.text_column, pa.string()), *(pa.field(f.name, f.type, f.nullable) for f in kept)]
    columns = [texts, *(batch.column(name) for name in shape.keep_columns)]
    return keep_position(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), batch)
