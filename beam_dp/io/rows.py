"""Rows of four kinds, one column of which a transform replaces: the door between row-wise pipelines and batches.

| kind | in | out |
|---|---|---|
| ``str`` | str or None | the replaced value |
| ``dict`` | a mapping with the column | dict: the column and the kept ones |
| ``row`` | NamedTuple, dataclass row or `beam.Row` | `beam.Row`: the field and the kept ones, declared schema |
| ``record_batch`` | `pyarrow.RecordBatch` | `pyarrow.RecordBatch`: the column and the kept ones |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms import window
from apache_beam.typehints import row_type, typehints
from apache_beam.typehints.native_type_compatibility import convert_to_beam_type
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.errors import ArgumentError, InputError, describe_kind
from beam_dp.io.batches import keep_position

KINDS = ("str", "dict", "row", "record_batch")

_MAX_BUFFERED_ROWS = 4096
_MAX_BUFFERED_CHARACTERS = 4 << 20
_ONE_WINDOW_A_ROW = (window.GlobalWindows, window.FixedWindows, window.Sessions)


def infer_kind(element_type: Any) -> str:
    """The kind of the elements of a PCollection with this type hint.

    Raises:
        ArgumentError: the hint does not say (``Any``) or is of no known kind.
    """
    # Some versions of Beam normalise `str | None` only after it was made a hint of their own.
    hint = typehints.normalize(convert_to_beam_type(element_type))
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


def require_one_window(pcoll: beam.PCollection, kind: str, transform: str) -> None:
    """ArgumentError if a row may be in several windows and would be drawn for in each of them.

    A batch in several windows is processed once for all of them.
    """
    if kind != "record_batch" and not isinstance(pcoll.windowing.windowfn, _ONE_WINDOW_A_ROW):
        raise ArgumentError(
            f"{transform} must stand before a window function that puts a row into several windows: it would "
            "draw for each of them"
        )


def require_column(name: str, value: object) -> str:
    """``value`` if it can be the name of a column, else ArgumentError naming the argument ``name``."""
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{name} must be the name of a column, not {describe_kind(value)}")
    return value


@dataclass(frozen=True)
class RowShape:
    """Which column is replaced and which others are kept; all others are dropped.

    Attributes:
        column: the name of the column or field that is replaced; without meaning for the kind ``str``.
        keep_columns: passed on as they are, in this order, after that column.
    """

    column: str
    keep_columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.keep_columns, str):
            raise ArgumentError("keep_columns must be a list of names, not one string")
        object.__setattr__(self, "keep_columns", tuple(self.keep_columns))
        if self.column in self.keep_columns or len(set(self.keep_columns)) != len(self.keep_columns):
            raise ArgumentError("keep_columns must name columns other than the replaced one, each of them once")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the output."""
        return (self.column, *self.keep_columns)

    def require(self, there: Iterable[str]) -> None:
        """InputError naming the columns there are, unless all that are needed are among them."""
        names = list(there)
        missing = [column for column in self.columns if column not in names]
        if missing:
            raise InputError(f"no column {missing[0]!r}; the columns are: {', '.join(map(str, names)) or 'none'}")


def output_hint(kind: str, shape: RowShape, element_type: Any, value_type: type) -> Any:
    """The type hint of the output, the replaced column holding ``value_type``."""
    if kind == "row":
        fields = dict(row_fields(element_type) or [])
        return row_type.RowTypeConstraint.from_fields(
            [(shape.column, value_type), *((name, fields.get(name, Any)) for name in shape.keep_columns)]
        )
    return {"str": value_type, "dict": dict[str, Any], "record_batch": pa.RecordBatch}[kind]


def value_of(kind: str, element: Any, shape: RowShape) -> Any:
    """The value of the column in one row.

    Raises:
        LookupError: the row lacks that column or one of the kept ones.
    """
    if kind == "str":
        return element
    if kind == "dict":
        if not isinstance(element, Mapping) or any(column not in element for column in shape.columns):
            raise LookupError
        return element[shape.column]
    if any(not hasattr(element, column) for column in shape.columns):
        raise LookupError
    return getattr(element, shape.column)


def with_value(kind: str, element: Any, shape: RowShape, value: Any) -> Any:
    """The output row of ``element``."""
    if kind == "str":
        return value
    if kind == "dict":
        return {shape.column: value, **{name: element[name] for name in shape.keep_columns}}
    return beam.Row(**{shape.column: value}, **{name: getattr(element, name) for name in shape.keep_columns})


def with_column(batch: pa.RecordBatch, shape: RowShape, column: pa.Array) -> pa.RecordBatch:
    """The output batch of ``batch``: the new column, the kept ones, and its place in the input.

    Other metadata of the schema and its fields is dropped: writers put names and statistics of all columns there.
    """
    kept = [batch.schema.field(name) for name in shape.keep_columns]
    fields = [pa.field(shape.column, column.type), *(pa.field(f.name, f.type, f.nullable) for f in kept)]
    columns = [column, *(batch.column(name) for name in shape.keep_columns)]
    return keep_position(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)), batch)


class RowBuffer:
    """Rows of one bundle that wait until they fill a batch; each keeps its timestamp and window.

    Args:
        kind: of the rows; not ``record_batch``.
        shape: which of their columns is replaced, and which stay.
        replace: the new values, one for each value of the column; called once for each batch.
    """

    def __init__(self, kind: str, shape: RowShape, replace: Callable[[list[Any]], Sequence[Any]]) -> None:
        self._kind, self._shape, self._replace = kind, shape, replace
        self._waiting: list[WindowedValue] = []
        self._values: list[Any] = []
        self._characters = 0

    def add(self, row: WindowedValue, value: Any) -> Iterable[WindowedValue]:
        """Takes a row whose column holds ``value``, and gives rows out if that fills a batch."""
        self._waiting.append(row)
        self._values.append(value)
        self._characters += len(value) if isinstance(value, str) else 0
        full = len(self._values) >= _MAX_BUFFERED_ROWS or self._characters >= _MAX_BUFFERED_CHARACTERS
        return self.flush() if full else ()

    def flush(self) -> list[WindowedValue]:
        """All rows that wait, with their new values."""
        if not self._values:
            return []
        out = [
            row.with_value(with_value(self._kind, row.value, self._shape, value))
            for row, value in zip(self._waiting, self._replace(self._values), strict=True)
        ]
        self._waiting, self._values, self._characters = [], [], 0
        return out
