"""Rows of three kinds as batches of the columns that an aggregation needs, and its results as rows."""

from __future__ import annotations

import contextlib
import datetime
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import BoundedWindow, GlobalWindow, GlobalWindows
from apache_beam.typehints import row_type
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.aggregate.columns import is_number
from beam_dp.errors import ArgumentError, InputError
from beam_dp.io.rows import row_fields

_BATCH_ROWS = 1 << 14
_NUMBERS = (float, int, np.floating, np.integer, np.bool_, type(None))
_KEY_KINDS = ((int, np.integer), str)
_ALIKE = frozenset((int, str, bool, datetime.date))
_PYTHON_TYPES = ((pa.types.is_integer, int), (pa.types.is_floating, float), (pa.types.is_string, str))


class RowsToBatches(beam.DoFn):
    """Collects rows of the global window into batches; what is not needed is dropped at once.

    Args:
        kind: ``dict`` or ``row``.
        element_type: of the input.
        keys: names of key columns.
        numbers: names of columns of numbers.
        types: of key columns whose public values are of a type: what is none of it is null. So no row decides it.

    Raises:
        InputError: the element type declares its fields and lacks one; in a worker, a row lacks one, or its keys are
            of several kinds.
    """

    def __init__(
        self,
        kind: str,
        element_type: Any,
        keys: Sequence[str],
        numbers: Sequence[str],
        types: Mapping[str, pa.DataType] = MappingProxyType({}),
    ) -> None:
        self._types = dict(types)
        self._names = tuple(dict.fromkeys((*keys, *numbers)))
        self._keys = frozenset(keys)
        fields = [name for name, _ in row_fields(element_type) or []]
        missing = [name for name in self._names if name not in fields]
        if fields and missing:
            raise InputError(f"the rows have no column {missing[0]!r}; the columns are: {', '.join(fields)}")
        self._getters = _getters(kind, element_type, self._names)

    def start_bundle(self) -> None:
        """Begins with nothing held."""
        self._rows: list[Any] = []

    def process(self, element: Any) -> Iterable[pa.RecordBatch] | None:
        """Holds a row; gives a batch when enough are held."""
        # A parameter for the window, or an empty answer, would make each row three times as dear.
        rows = self._rows
        rows.append(element)
        if len(rows) < _BATCH_ROWS:
            return None
        self._rows = []
        return (self._batch(rows),)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Gives what is still held."""
        rows, self._rows = self._rows, []
        if rows:
            yield GlobalWindows.windowed_value(self._batch(rows), GlobalWindow().max_timestamp())

    def _batch(self, rows: Sequence[Any]) -> pa.RecordBatch:
        try:
            # Column by column: a tuple for each row, or a zip of all, costs three times as much.
            columns = [list(map(get, rows)) for get in self._getters]
        except (KeyError, AttributeError, IndexError, TypeError):
            raise InputError(f"a row lacks one of the columns {', '.join(map(repr, self._names))}") from None
        arrays = [
            numbers_of(values)
            if name not in self._keys
            else _keys_of(values, self._types[name])
            if name in self._types
            else _keys(values, name)
            for name, values in zip(self._names, columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(self._names))


class WindowedRowsToBatches(RowsToBatches):
    """The same for any windows: a batch has rows of one window."""

    def start_bundle(self) -> None:
        """Begins with nothing held."""
        self._held: dict[BoundedWindow, list[Any]] = {}

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Iterable[pa.RecordBatch] | None:
        """Holds a row; gives a batch when enough of its window are held."""
        held = self._held.setdefault(window, [])
        held.append(element)
        if len(held) < _BATCH_ROWS:
            return None
        del self._held[window]
        return (self._batch(held),)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Gives what is still held."""
        held, self._held = self._held, {}
        for window, rows in held.items():
            yield WindowedValue(self._batch(rows), window.max_timestamp(), (window,))


def _getters(kind: str, element_type: Any, names: Sequence[str]) -> list[Callable[[Any], Any]]:
    """What takes each of the named fields out of a row."""
    is_tuple = isinstance(element_type, type) and issubclass(element_type, tuple)
    if is_tuple and hasattr(element_type, "_fields"):
        return [operator.itemgetter(element_type._fields.index(name)) for name in names]
    make = operator.itemgetter if kind == "dict" or is_tuple else operator.attrgetter
    return [make(name) for name in names]


def _keys(values: Sequence[Any], name: str) -> pa.Array:
    kinds = set(map(type, values)) - {type(None)}
    # Arrow would make dates of datetimes, or refuse them, after the first one in the batch.
    one_kind = len(kinds) <= 1 or any(all(issubclass(kind, whole) for kind in kinds) for whole in _KEY_KINDS)
    try:
        array = pa.array(values) if one_kind else None
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        array = None
    if array is None:
        raise InputError(
            f"column {name!r} holds keys of several kinds, or integers beyond 64 bits: make them all strings"
        )
    return _of_one_type(array, values, name)


def _keys_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Keys of a known type, each value by itself; null for a value that is none."""
    kinds = set(map(type, values)) - {type(None)}
    # Only of these does Arrow read many as it reads one.
    if len(kinds) <= 1 and kinds <= _ALIKE:
        with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
            return pa.array(values).cast(kind)
    return pa.concat_arrays([pa.array([], kind), *(_key_of(value, kind) for value in values)])


def _key_of(value: Any, kind: pa.DataType) -> pa.Array:
    try:
        return pa.array([value]).cast(kind)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.nulls(1, kind)


def _of_one_type(array: pa.Array, values: Sequence[Any], name: str) -> pa.Array:
    """``array``, made of ``values``, with a type that no single row decides: the type of the keys is in the output."""
    if pa.types.is_decimal(array.type):
        raise InputError(f"column {name!r} holds decimals of any number of digits: make them all strings")
    if not pa.types.is_timestamp(array.type):
        return array
    zoned = {getattr(value, "tzinfo", None) is not None for value in values if value is not None}
    if len(zoned) > 1:
        raise InputError(f"column {name!r} holds timestamps with and without a time zone: make them alike")
    return array.cast(pa.timestamp(array.type.unit, "UTC")) if zoned == {True} else array


def numbers_of(values: Sequence[Any]) -> pa.Array:
    """Python values as float64, NaN where there is no number, infinite beyond the floats.

    Each value by itself: what becomes of one must not depend on the rows of others beside it.
    """
    if all(issubclass(kind, _NUMBERS) and kind is not np.timedelta64 for kind in set(map(type, values))):
        with contextlib.suppress(OverflowError):  # an integer beyond the floats
            return pa.array(np.array(values, np.float64))
    return pa.array(np.fromiter(map(_number, values), np.float64, len(values)))


def _number(value: Any) -> float:
    """``value`` as a float, beyond their range infinite; NaN if it is no number. Text as `number_column` reads it."""
    if not isinstance(value, (*_NUMBERS, str, Decimal)) or (isinstance(value, str) and not is_number(value)):
        return float("nan")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # type: ignore[operator]
    except (TypeError, ValueError):
        return float("nan")


def batch_to_dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as dicts."""
    return batch.to_pylist()


def batch_to_rows(batch: pa.RecordBatch) -> list[beam.Row]:
    """The rows of a batch as `beam.Row`; see `row_hint` for the names of their fields."""
    names = list(map(_field_name, batch.schema.names))
    columns = [column.to_pylist() for column in batch.columns]
    return [beam.Row(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def row_hint(schema: pa.Schema, element_type: Any, keys: Sequence[str]) -> row_type.RowTypeConstraint:
    """The schema type of result rows: keys as the input declares them, the others as Arrow has them.

    What cannot be in an identifier is an underscore in the name of a field: ``quantile_x_0_5``.

    Raises:
        ArgumentError: the columns cannot be fields.
    """
    declared = dict(row_fields(element_type) or [])
    fields = [
        (_field_name(field.name), declared.get(field.name, Any) if field.name in keys else _python_type(field.type))
        for field in schema
    ]
    try:
        return row_type.RowTypeConstraint.from_fields(fields)
    except ValueError:
        raise ArgumentError(
            "the columns of the output cannot be fields of rows, which are different identifiers that do not begin "
            "with an underscore: give metrics another name=, or use dicts or batches"
        ) from None


def _field_name(column: str) -> str:
    return re.sub(r"\W", "_", column)


def _python_type(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return Sequence[int] if pa.types.is_integer(kind.value_type) else Sequence[float]
    plain = next((python for test, python in _PYTHON_TYPES if test(kind)), None)
    return Any if plain is None else plain | None
