"""Rejected rows: a reason code, a file and a position, never content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

INVALID_UNICODE = "invalid_unicode"
MALFORMED_JSON = "malformed_json"
NOT_TEXT = "not_text"
ROW_TOO_LARGE = "row_too_large"
UNTERMINATED_QUOTE = "unterminated_quote"
WRONG_COLUMN_COUNT = "wrong_column_count"

METRICS_NAMESPACE = "beam_dp"
"""The namespace of this package's counters."""

REJECTS_SCHEMA = pa.schema([("reason", pa.string()), ("source", pa.string()), ("position", pa.int64())])


class Reject(NamedTuple):
    """One row that was not read.

    Attributes:
        reason: one of the codes of this module.
        position: byte offset of the line (text, jsonl, tsv), number of the record with the header as number 1 (csv),
            or row number from 0 (parquet). None for a row that comes from no file.
    """

    reason: str
    position: int | None


def rejects_batch(rejects: Sequence[Reject], source: str | None) -> pa.RecordBatch:
    """The rejects of one file as a batch of `REJECTS_SCHEMA`; ``source`` is the name of the file."""
    return pa.record_batch(
        [
            pa.array([reject.reason for reject in rejects], pa.string()),
            pa.array([source] * len(rejects), pa.string()),
            pa.array([reject.position for reject in rejects], pa.int64()),
        ],
        schema=REJECTS_SCHEMA,
    )


def count_reasons(rejects: pa.RecordBatch) -> dict[str, int]:
    """How many rows of a batch of `REJECTS_SCHEMA` have each reason."""
    return {item["values"]: item["counts"] for item in pc.value_counts(rejects.column("reason")).to_pylist()}
