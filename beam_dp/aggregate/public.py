"""A public list of partitions: what is shown whatever the data are, and which rows count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.aggregate.columns import key_codes, key_column
from beam_dp.errors import ArgumentError, InputError


class PublicPartitions:
    """A public list of partitions.

    Args:
        keys: one array for each key column, all of one length; no nulls. Keys that are there twice count once.
    """

    def __init__(self, keys: Sequence[pa.Array]) -> None:
        self._keys = _distinct(keys)

    def __len__(self) -> int:
        return len(self._keys[0])

    @property
    def types(self) -> list[pa.DataType]:
        """The types of the key columns, as they were given."""
        return [key.type for key in self._keys]

    def typed(self, types: Sequence[pa.DataType], names: Sequence[str]) -> tuple[pa.Array, ...]:
        """The keys in the types that the data have, each once; types of nulls alone leave them as they are.

        Raises:
            InputError: a key is none of that type.
        """
        arrays = []
        for key, kind, name in zip(self._keys, types, names, strict=True):
            try:
                arrays.append(key if pa.types.is_null(kind) or kind == key.type else key.cast(kind))
            except pa.ArrowException:
                raise InputError(f"some public keys are no {kind}, which column {name!r} holds") from None
        return _distinct(arrays)

    def keep(self, rows: pa.RecordBatch, keys: Sequence[pa.Array], names: Sequence[str]) -> pa.RecordBatch:
        """The rows whose partition is public.

        Args:
            rows: (n rows).
            keys: their key columns.
            names: of the key columns, for messages.
        """
        if any(pa.types.is_null(key.type) for key in keys):
            return rows.slice(0, 0)
        public = self.typed([key.type for key in keys], names)
        if len(keys) == 1:
            return rows.filter(pc.is_in(keys[0], value_set=public[0]))
        size = len(public[0])
        codes, _ = key_codes([pa.concat_arrays([a, b]) for a, b in zip(public, keys, strict=True)])
        listed = np.zeros(int(codes.max(initial=0)) + 1, bool)
        listed[codes[:size]] = True
        return rows.filter(pa.array(listed[codes[size:]]))


def _distinct(keys: Sequence[pa.Array]) -> tuple[pa.Array, ...]:
    _, firsts = key_codes(keys)
    order = pa.array(np.sort(firsts))
    return tuple(key.take(order) for key in keys)


def public_partitions(partitions: Any, by: tuple[str, ...], argument: str = "partitions") -> PublicPartitions:
    """A public list of keys (tuples where ``by`` has several columns), or a table with the columns ``by``.

    Raises:
        ArgumentError: it is no such list; the message calls it ``argument``.
    """
    wrong = ArgumentError(
        f"{argument} must be a list of one or more public keys of one kind, without nulls"
        + (f": tuples of {len(by)}, for {', '.join(by)}" if len(by) > 1 else "")
    )
    if isinstance(partitions, pa.Table):
        if any(name not in partitions.column_names for name in by):
            raise ArgumentError(f"{argument} lacks one of the columns {', '.join(by)}")
        columns = [_one_array(partitions.column(name)) for name in by]
    elif isinstance(partitions, Sequence) and not isinstance(partitions, (str, bytes)):
        if len(by) > 1 and not all(isinstance(key, tuple) and len(key) == len(by) for key in partitions):
            raise wrong
        values = list(zip(*partitions, strict=True)) if len(by) > 1 else [partitions]
        try:
            columns = [pa.array(column) for column in values]
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise wrong from None
    else:
        raise wrong
    if not columns or not len(columns[0]):
        raise wrong
    try:
        keys = [key_column(column, name) for column, name in zip(columns, by, strict=True)]
    except InputError as error:
        raise ArgumentError(f"{argument}: {error}") from None
    if any(key.null_count for key in keys):
        raise wrong
    return PublicPartitions(keys)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
