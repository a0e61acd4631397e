"""A public list of categories, and columns of values as codes of it."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.errors import ArgumentError, InputError, describe_kind
from beam_dp.mechanisms.randomized_response import Codes

OUTSIDE = -1
"""The code of a value that is no category."""

_ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
_SAME_KIND: dict[type, Callable[[pa.DataType], bool]] = {
    str: lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    int: pa.types.is_integer,
    bool: pa.types.is_boolean,
}


@dataclass(frozen=True)
class Categories:
    """The categories that an answer can be, in the order of their codes 0 to k-1.

    Attributes:
        values: all str, all int (of 64 bits) or all bool; at least two, all different.
    """

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.values, (str, bytes)) or not isinstance(self.values, Iterable):
            raise ArgumentError(f"categories must be a list, not {describe_kind(self.values)}")
        values = tuple(value.item() if isinstance(value, np.generic) else value for value in self.values)
        kinds = {type(value) for value in values}
        if len(values) < 2 or len(kinds) != 1 or not kinds <= _ARROW_TYPES.keys():
            raise ArgumentError("categories must be two or more values, all of them strings, integers or booleans")
        if len(set(values)) != len(values):
            raise ArgumentError("categories must be different from each other")
        object.__setattr__(self, "values", values)
        try:
            pa.array(values, self.arrow_type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            raise ArgumentError("categories must be integers of 64 bits or valid Unicode") from None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def value_type(self) -> type:
        """The Python type of the categories: str, int or bool."""
        return type(self.values[0])

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of a column of categories: string, int64 or bool."""
        return _ARROW_TYPES[self.value_type]

    @cached_property
    def _code_of(self) -> dict[Any, int]:
        return {value: code for code, value in enumerate(self.values)}

    def column_codes(self, column: pa.Array, name: str) -> Codes:
        """The codes of a column, (n,) int32; `OUTSIDE` for a null and for what is no category.

        Raises:
            InputError: the column ``name`` is of another type than the categories.
        """
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_null(column.type):
            return np.full(len(column), OUTSIDE, np.int32)
        if not _SAME_KIND[self.value_type](column.type):
            raise InputError(
                f"column {name!r} holds {str(column.type).split('<')[0]}, but the categories are of type "
                f"{self.value_type.__name__}"
            )
        possible = [code for code, value in enumerate(self.values) if _fits(value, column.type)]
        known = pa.array([self.values[code] for code in possible], column.type)
        places = pc.index_in(column, value_set=known).fill_null(len(possible)).to_numpy(zero_copy_only=False)
        return np.array([*possible, OUTSIDE], np.int32)[places]

    def value_codes(self, values: Sequence[Any]) -> Codes:
        """The codes of values of any types, (n,) int32; `OUTSIDE` for what is no category."""
        return np.fromiter(map(self._value_code, values), np.int32, len(values))

    def _value_code(self, value: Any) -> int:
        kind = self.value_type
        # True is 1 to a dict, and no answer to a question whose categories are numbers.
        if kind is str:
            same = isinstance(value, str)
        elif kind is bool:
            same = isinstance(value, (bool, np.bool_))
        else:
            same = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return self._code_of.get(value, OUTSIDE) if same else OUTSIDE

    def column(self, codes: Codes) -> pa.Array:
        """The categories of these codes, none of them `OUTSIDE`."""
        return pa.array(self.values, self.arrow_type).take(pa.array(codes))


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a column of this type can hold ``value``."""
    if not pa.types.is_integer(kind):
        return True
    signed = pa.types.is_signed_integer(kind)
    top = 1 << (kind.bit_width - signed)
    return -top * signed <= value < top
