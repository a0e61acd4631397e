"""What every reader takes and gives: a range of a file in, rows with their positions and rejects out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_dp.io.files import InputFile
from beam_dp.io.lines import invalid_utf8
from beam_dp.io.rejects import INVALID_UNICODE, Reject

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReadSpec:
    """What to read from each file.

    Attributes:
        columns: names of the columns, in the order that batches have them.
        text_column: the one among them that must be text and comes out as ``string``; None if there is none.
        batch_rows: most rows of a batch.
        batch_bytes: most bytes of a batch that has more than one row.
        max_row_bytes: longer lines are rejected.
        types: types that columns are expected to have, where the format does not say (jsonl).
        keys: columns that come out as text where the format has no types (jsonl).
        numbers: columns that come out as numbers, or as text that spells them, where the format has no types.
    """

    columns: tuple[str, ...]
    text_column: str | None
    batch_rows: int
    batch_bytes: int
    max_row_bytes: int
    types: pa.Schema | None = None
    keys: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileRange:
    """The rows of a file that begin in the stored bytes ``[start, end)``; ``end`` None means to the end.

    Attributes:
        file: the file.
        source: its index in the sorted list of input files.
        start: first byte that is owned.
        end: first byte that is not owned any more.
    """

    file: InputFile
    source: int
    start: int = 0
    end: int | None = None


class Decoded(NamedTuple):
    """Rows of a file as they were read.

    Attributes:
        batch: (n rows) the wanted columns; not yet cut to size.
        positions: (n,) where each row stands in the file; see `Reject.position`.
        rejects: the rows left out.
    """

    batch: pa.RecordBatch
    positions: Positions
    rejects: list[Reject]


def empty_batch(spec: ReadSpec) -> pa.RecordBatch:
    """A batch without rows, with the columns of ``spec``: as strings where no type is known."""
    known = {} if spec.types is None else {field.name: field.type for field in spec.types}
    fields = [pa.field(name, known.get(name, pa.string())) for name in spec.columns]
    return pa.RecordBatch.from_pylist([], pa.schema(fields))


def reject_rows(decoded: Decoded, reason: str, rows: Iterable[int]) -> Decoded:
    """``decoded`` without the rows of these indices, which are rejected for ``reason``."""
    indices = sorted(set(rows))
    if not indices:
        return decoded
    keep = np.ones(decoded.batch.num_rows, bool)
    keep[indices] = False
    rejects = [Reject(reason, int(decoded.positions[index])) for index in indices]
    return Decoded(decoded.batch.filter(pa.array(keep)), decoded.positions[keep], decoded.rejects + rejects)


def with_valid_text(decoded: Decoded, text_column: str | None) -> Decoded:
    """Rejects rows with a string that is not UTF-8 and makes the text column ``string``, whatever holds it.

    Arrow takes the bytes of a parquet or csv string on trust (except those of a dictionary, which it checks itself).
    """
    batch = decoded.batch
    bad: set[int] = set()
    columns: list[pa.Array] = []
    for field, values in zip(batch.schema, batch.columns, strict=True):
        column = values
        if field.name == text_column:
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            column = column.cast(pa.binary())
            bad.update(invalid_utf8(column))
            column = column.view(pa.string())
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            bad.update(invalid_utf8(column))
        columns.append(column)
    fields = [field.with_type(column.type) for field, column in zip(batch.schema, columns, strict=True)]
    batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, batch.schema.metadata))
    return reject_rows(decoded._replace(batch=batch), INVALID_UNICODE, bad)
