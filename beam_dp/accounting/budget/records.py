"""One line of a data set's history, and the hash chain that ties it to the lines before.

A record's line is the canonical JSON of all its fields but ``hash``, with ``hash`` put behind as the last key: the
sha256 of that canonical JSON. ``previous`` is the hash of the record before, so a hash vouches for the whole history
up to its record, and whoever keeps the hash of the last one can tell whether any was changed, moved or cut off.

No record holds data: names that people gave, numbers of budgets, the ledger of a plan.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

from beam_dp.accounting.entries import canonical_json, sha256_of
from beam_dp.errors import ArgumentError, BudgetStoreError, describe_kind

NO_RECORD = "0" * 64
SCHEMA_VERSION = 1

CREATE, LIMIT, RESERVE, START, COMMIT, PUBLISH, VOID = (
    "create",
    "limit",
    "reserve",
    "start",
    "commit",
    "publish",
    "void",
)
KINDS = (CREATE, LIMIT, RESERVE, START, COMMIT, PUBLISH, VOID)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAIL = re.compile(r',"hash":"([0-9a-f]{64})"\}')
_TAIL_LENGTH = len(f',"hash":"{NO_RECORD}"}}')
_FIELDS: dict[str, type] = {
    "dataset": str,
    "sequence": int,
    "at": str,
    "kind": str,
    "body": dict,
    "nonce": str,
    "previous": str,
    "hash": str,
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of the history of a data set.

    Attributes:
        dataset: name of the data set.
        sequence: number of the record, from 0.
        at: when it was written, UTC in ISO format with microseconds; never before the record before.
        kind: one of `KINDS`.
        body: what it says; see `beam_dp.accounting.budget.history`.
        nonce: random, so that no two writers ever write the same record and each knows its own by its hash.
        previous: hash of the record before; `NO_RECORD` in the first.
        hash: sha256 of the canonical JSON of all of the above.
    """

    dataset: str
    sequence: int
    at: str
    kind: str
    body: dict[str, Any]
    nonce: str
    previous: str
    hash: str

    @cached_property
    def time(self) -> datetime:
        """``at`` as a datetime in UTC."""
        return parse_time(self.at)


def make_line(*, dataset: str, sequence: int, at: datetime, kind: str, body: dict[str, Any], previous: str) -> str:
    """A new record behind the one with the hash ``previous``, as a line without a newline."""
    rest = canonical_json(
        {
            "dataset": dataset,
            "sequence": sequence,
            "at": format_time(at),
            "kind": kind,
            "body": body,
            "nonce": secrets.token_hex(16),
            "previous": previous,
        }
    )
    return f'{rest[:-1]},"hash":"{sha256_of(rest)}"}}'


def parse_line(line: str, *, dataset: str, sequence: int, previous: str, not_before: datetime | None) -> Record:
    """The record in a line, if it is record number ``sequence`` of ``dataset`` and follows the one before.

    Args:
        line: as `make_line` makes it.
        dataset: whose history it is.
        sequence: the number of the line, from 0.
        previous: hash of the record before; `NO_RECORD` for the first.
        not_before: time of the record before; None for the first.

    Raises:
        BudgetStoreError: it is something else, was changed, or a newer version of this package wrote it.
    """
    try:
        fields = json.loads(line)
    except ValueError:
        raise damaged(dataset, sequence, "it is not JSON") from None
    if sequence == 0:
        _refuse_newer_schema(dataset, fields)
    if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != _FIELDS:
        raise damaged(dataset, sequence, "a field is missing, unknown or of another kind")
    tail = _TAIL.fullmatch(line, len(line) - _TAIL_LENGTH)
    if tail is None or sha256_of(line[:-_TAIL_LENGTH] + "}") != tail[1]:
        raise damaged(dataset, sequence, "it was changed after it was written: its hash does not match")
    record = Record(**fields)
    if (record.dataset, record.sequence) != (dataset, sequence):
        raise damaged(dataset, sequence, "another record stands in its place")
    if record.previous != previous:
        raise damaged(dataset, sequence, "the record before it is not the one that it followed")
    if record.kind not in KINDS:
        raise damaged(dataset, sequence, "its kind is unknown")
    try:
        time = record.time
    except ValueError:
        raise damaged(dataset, sequence, "its time is no time in UTC") from None
    if not_before is not None and time < not_before:
        raise damaged(dataset, sequence, "its time is before that of the record before")
    return record


def parse_lines(
    lines: Iterable[str],
    *,
    dataset: str,
    start: int = 0,
    previous: str = NO_RECORD,
    not_before: datetime | None = None,
) -> Iterator[Record]:
    """The records in the lines from number ``start`` on; arguments and errors are those of `parse_line`.

    One at a time, since a long history of ledgers does not belong in memory all at once.
    """
    for sequence, line in enumerate(lines, start):
        record = parse_line(line, dataset=dataset, sequence=sequence, previous=previous, not_before=not_before)
        previous, not_before = record.hash, record.time
        yield record


def damaged(dataset: str, sequence: int, reason: str) -> BudgetStoreError:
    """The error about a record that cannot be part of a history."""
    return BudgetStoreError(f"the history of data set {dataset} is damaged at record {sequence}: {reason}")


def format_time(time: datetime) -> str:
    """A time (aware) as records hold it, in UTC."""
    return time.astimezone(timezone.utc).isoformat(timespec="microseconds")


def parse_time(text: str) -> datetime:
    """The time that `format_time` wrote; ValueError if it is not in UTC."""
    time = datetime.fromisoformat(text)
    if time.utcoffset() != timedelta(0):
        raise ValueError("not in UTC")
    return time


def require_name(name: str, value: object) -> str:
    """``value`` if it can name a data set or a run, else ArgumentError naming the argument ``name``."""
    if not isinstance(value, str):
        raise ArgumentError(f"{name} must be a string, not {describe_kind(value)}")
    if not _NAME.fullmatch(value):
        raise ArgumentError(f"{name} must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit")
    return value


def _refuse_newer_schema(dataset: str, fields: Any) -> None:
    body = fields.get("body") if isinstance(fields, dict) else None
    schema = body.get("schema") if isinstance(body, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise BudgetStoreError(
            f"data set {dataset} is kept in schema {schema} of the budget store, and this version of beam_dp reads "
            f"{SCHEMA_VERSION}: upgrade beam_dp"
        )
