"""The budget store: the budgets of data sets, kept across runs and machines behind one URL.

Every write is optimistic: read the history, fold it, decide, and append the record only if the history is still the
same; else wait a random moment and begin again. `beam_dp.accounting.budget.history` says why that keeps every limit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from beam_dp.accounting.budget.account import RUNNING, Account
from beam_dp.accounting.budget.charges import Limit
from beam_dp.accounting.budget.history import UNSEEN, fold, refusal
from beam_dp.accounting.budget.inputs import normalised_prefixes
from beam_dp.accounting.budget.log import RecordLog
from beam_dp.accounting.budget.missing import NoStoreError
from beam_dp.accounting.budget.records import (
    CREATE,
    LIMIT,
    NO_RECORD,
    SCHEMA_VERSION,
    VOID,
    Record,
    damaged,
    make_line,
    parse_lines,
    require_name,
)
from beam_dp.accounting.budget.urls import require_url
from beam_dp.errors import ArgumentError, BeamDpError, BudgetExceededError, BudgetStoreError, InputError

if TYPE_CHECKING:
    from beam_dp.accounting.budget.run import BudgetRun

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_LENGTH = 200

_PATIENCE_SECONDS = 300.0
_FIRST_WAIT_SECONDS = 0.005
_LONGEST_WAIT_SECONDS = 1.0


class _OthersFirstError(Exception):
    """Another record took the place of ours."""


class Draft(NamedTuple):
    """A record that is still to be numbered, dated and chained."""

    kind: str
    body: dict[str, Any]


@dataclass(frozen=True)
class _Read:
    """A history as it was read and checked."""

    lines: list[str]
    account: Account | None


_UNREAD = _Read([], None)


class BudgetStore:
    """The budgets behind one URL.

    >>> store = BudgetStore("sqlite:///budgets.db")
    >>> store.create("reviews", Limit(model="central", privacy_unit="user", epsilon=4.0, delta=1e-5))  # doctest: +SKIP
    >>> run = store.run("reviews", "2024-05-17")  # doctest: +SKIP

    Args:
        url: ``sqlite:///FILE`` for one machine, ``postgresql://USER@HOST/DATABASE`` or ``gs://BUCKET/FOLDER`` for
            many. No password: those of PostgreSQL come from PGPASSWORD, ~/.pgpass or
            ``?password_secret=projects/P/secrets/S/versions/V``. Nothing is connected before it is needed.

    Raises:
        ArgumentError: ``url`` is none of these, or holds a password.

    Every other method raises `BudgetStoreError` if the store is unreachable, busy, read-only, damaged, or written by a
    newer version. A store may be used by several threads, and pickled: the copy connects anew.
    """

    def __init__(self, url: str) -> None:
        self.url = require_url(url)
        self._reads: dict[str, _Read] = {}
        self._log: RecordLog | None = self._make_log()

    @property
    def is_local(self) -> bool:
        """Whether the store is a file of this machine, which workers on others cannot reach."""
        return self.url.startswith("sqlite:")

    @property
    def path(self) -> str | None:
        """The file that the store is, on this machine; None if it is elsewhere."""
        return self.url.partition("///")[2] if self.is_local else None

    def create(self, dataset: str, *limits: Limit, inputs: Sequence[str] = ()) -> Account:
        """Makes a data set with its limits, or adds limits to one that is there.

        Args:
            dataset: 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit.
            limits: at least one, all of different keys.
            inputs: prefixes (folders, files or URIs) of the files that the data set is made of; a run on it may read
                no other. Empty for any. They are set for good when the data set is made.

        Raises:
            ArgumentError: a limit of one of the keys is there already or does not cover what was spent; other inputs
                than those that the data set has.
        """
        require_name("dataset", dataset)
        if not limits or not all(isinstance(limit, Limit) for limit in limits):
            raise ArgumentError("limits must be one or more Limit")
        keys = [limit.key for limit in limits]
        if len(set(keys)) < len(keys):
            raise ArgumentError("limits must be of different models, privacy units, metrics or indexes")
        prefixes = normalised_prefixes(inputs)

        def create_or_check(account: Account | None, at: datetime) -> Draft | None:
            if account is None:
                return Draft(CREATE, {"schema": SCHEMA_VERSION, "inputs": list(prefixes)})
            if prefixes and set(prefixes) != set(account.inputs):
                raise ArgumentError(f"inputs of data set {dataset} were set when it was made and cannot be changed")
            for limit in limits:
                legal(account, Draft(LIMIT, {"limit": limit.to_json()}), at, ArgumentError)
            return None

        self.transact(dataset, create_or_check, make_store=True)
        for limit in limits:
            self._add(dataset, limit)
        return self.account(dataset)

    def datasets(self) -> list[str]:
        """The names of the data sets, sorted."""
        return self._open().datasets()

    def account(self, dataset: str) -> Account:
        """Limits and runs of a data set, its whole history checked; InputError if there is none of that name."""
        return self.require_account(dataset, self._read(dataset).account)

    def history(self, dataset: str) -> list[Record]:
        """All records of a data set, checked; InputError if there is none of that name."""
        records = list(self._records(dataset))
        self.require_account(dataset, fold(dataset, records))
        return records

    def now(self) -> datetime:
        """The time in UTC, of the server's clock where there is one."""
        return self._open().now()

    def void(self, dataset: str, run_id: str, *, signed_by: str | None = None, unseen: bool = False) -> Account:
        """Gives the charge of a run back that published nothing and never will.

        Args:
            dataset: name of the data set.
            run_id: of a run that is reserved, or of one that is running and whose lease is over.
            signed_by: for a run that was started the name of the person who vouches for ``unseen``.
            unseen: for a run that was started: neither its output nor its staging was seen by anyone.

        Raises:
            ArgumentError: no such run; the run was started and nobody signed.
            BudgetExceededError: the run is committed or void, or its lease is not over.
        """
        require_name("run_id", run_id)
        if signed_by is not None and not _is_signature(signed_by):
            raise ArgumentError(f"signed_by must be the name of a person, at most {_SIGNATURE_LENGTH} characters")

        def give_back(account: Account | None, at: datetime) -> Draft:
            run = self.require_account(dataset, account).runs.get(run_id)
            if run is None:
                raise ArgumentError(f"run_id: data set {dataset} has no run {run_id}")
            started = run.state == RUNNING
            if started and run.lease_expired(at) and not (signed_by and unseen):
                raise ArgumentError(
                    f"run {run_id} was started: signed_by must name the person who says with unseen=True that {UNSEEN} "
                    "(--signed_by=PERSON --neither_output_nor_staging_was_seen)"
                )
            statement = UNSEEN if started and unseen else None
            body = {"run_id": run_id, "was": run.state, "signed_by": signed_by, "statement": statement}
            return legal(account, Draft(VOID, body), at, BudgetExceededError)

        self.transact(dataset, give_back)
        return self.account(dataset)

    def verify(self, dataset: str | None = None, head: str | None = None) -> dict[str, str]:
        """Reads histories anew, checks every record, and returns the hash of the last one of each data set.

        Args:
            dataset: name of the one to check; None for all.
            head: a hash that this or `Account.head` returned earlier: the history must still hold its record.

        Raises:
            BudgetStoreError: a history is damaged, or has no record with this hash: its end was cut off.
        """
        if head is not None and dataset is None:
            raise ArgumentError("head goes with the name of a data set")
        if head is not None and (not isinstance(head, str) or not _HASH.fullmatch(head)):
            raise ArgumentError("head must be the 64 hexadecimal digits of a hash that verify returned earlier")
        heads = {}
        for name in self.datasets() if dataset is None else [dataset]:
            hashes: list[str] = []
            account = fold(name, _noting(hashes, self._records(name)))
            if head is not None and head not in hashes:
                raise BudgetStoreError(
                    f"the history of data set {name} was cut after some record or is another one: none of its records, "
                    f"0 to {len(hashes) - 1}, has the hash given as head"
                    if hashes
                    else f"the history of data set {name} is gone: restore the budget store from a copy"
                )
            heads[name] = self.require_account(name, account).head
        return heads

    def run(
        self,
        dataset: str,
        run_id: str,
        *,
        pipeline: str = "",
        inputs: Sequence[str] | None = None,
        started_by_workers: bool = False,
    ) -> BudgetRun:
        """One launch on a data set; nothing is read or written yet.

        Args:
            dataset: name of the data set.
            run_id: names the launch in the history, once and for all: letters and digits as for data sets.
            pipeline: says in the history what was launched; no data.
            inputs: paths of the files that the pipeline reads; needed if the data set names its inputs.
            started_by_workers: see `BudgetRun`.
        """
        from beam_dp.accounting.budget.run import BudgetRun  # noqa: PLC0415  (which needs this module)

        return BudgetRun(self, dataset, run_id, pipeline=pipeline, inputs=inputs, started_by_workers=started_by_workers)

    def transact(
        self,
        dataset: str,
        decide: Callable[[Account | None, datetime], Draft | None],
        *,
        make_store: bool = False,
    ) -> None:
        """Appends what ``decide`` makes of the history, decided on exactly the history that it is appended to.

        Args:
            dataset: name of the data set.
            decide: called with the account (None if there is no such data set) and the time that the record gets, as
                often as others come first. Returns the record to write, or None for none. What it raises is raised.
            make_store: whether the first record may make a store where the URL has none.

        Raises:
            BudgetStoreError: others came first for five minutes; what `RecordLog.append` raises.
        """
        tried: list[tuple[int, str]] = []

        def once() -> None:
            read = self._read(dataset, missing_is_empty=make_store)
            # The answer to an earlier try may have been lost on its way back, and its record not.
            if any(_stands(read.lines, sequence, line) for sequence, line in tried):
                return
            now = self.now()
            before = read.account
            at = now if before is None else max(now, before.at)
            draft = decide(before, at)
            if draft is None:
                return
            sequence = len(read.lines)
            line = make_line(
                dataset=dataset,
                sequence=sequence,
                at=at,
                kind=draft.kind,
                body=draft.body,
                previous=NO_RECORD if before is None else before.head,
            )
            # What no reader would accept must never stand in a history, from which nothing is ever removed.
            _continued(dataset, before, [line])
            tried.append((sequence, line))
            if not self._append(dataset, sequence, line):
                raise _OthersFirstError

        patience = Retrying(
            retry=retry_if_exception_type(_OthersFirstError),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
            stop=stop_after_delay(_PATIENCE_SECONDS),
        )
        try:
            patience(once)
        except RetryError:
            raise BudgetStoreError(
                f"the budget store is too busy: for {_PATIENCE_SECONDS:.0f} seconds others wrote to data set {dataset} "
                "first; nothing was written, try again"
            ) from None

    def _add(self, dataset: str, limit: Limit) -> None:
        draft = Draft(LIMIT, {"limit": limit.to_json()})
        self.transact(dataset, lambda account, at: legal(account, draft, at, ArgumentError))

    def _append(self, dataset: str, sequence: int, line: str) -> bool:
        """`RecordLog.append`; True also if it failed although it wrote the record."""
        try:
            return self._open().append(dataset, sequence, line)
        except BudgetStoreError:
            with contextlib.suppress(BudgetStoreError):
                if _stands(self._open().read(dataset), sequence, line):
                    return True
            raise

    def _read(self, dataset: str, *, missing_is_empty: bool = False) -> _Read:
        """The history of a data set and its fold. Only what is new since the last time is parsed."""
        require_name("dataset", dataset)
        known = self._reads.get(dataset, _UNREAD)
        try:
            lines = self._open().read(dataset)
        except NoStoreError:
            if not missing_is_empty:
                raise
            lines = []
        if lines[: len(known.lines)] != known.lines:
            same = next(n for n, line in enumerate(known.lines) if not _stands(lines, n, line))
            raise damaged(dataset, same, "it was there and is gone or changed since this process read it")
        if len(lines) == len(known.lines):
            return known
        read = _Read(lines, _continued(dataset, known.account, lines[len(known.lines) :]))
        self._reads[dataset] = read
        return read

    def _records(self, dataset: str) -> Iterator[Record]:
        """All records of a data set, parsed anew."""
        return parse_lines(self._open().read(require_name("dataset", dataset)), dataset=dataset)

    def _open(self) -> RecordLog:
        """The backend; a copy in a worker makes it, and imports what it needs, when it is used."""
        if self._log is None:
            self._log = self._make_log()
        return self._log

    def _make_log(self) -> RecordLog:
        """The backend of the URL, not connected. Each needs libraries that the others do not."""
        if self.url.startswith("gs:"):
            from beam_dp.accounting.budget.gcs import ObjectLog  # noqa: PLC0415

            return ObjectLog(self.url)
        from beam_dp.accounting.budget.sql import SqlLog  # noqa: PLC0415

        return SqlLog(self.url)

    def require_account(self, dataset: str, account: Account | None) -> Account:
        """``account`` if it is one, else InputError that says how to make the data set."""
        if account is None:
            raise InputError(
                f"there is no data set {dataset} in the budget store: make it with 'beam-dp budget create {dataset}'"
            )
        return account

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_reads": {}, "_log": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def legal(account: Account | None, draft: Draft, at: datetime, error: type[BeamDpError]) -> Draft:
    """``draft`` if it may follow the history at ``at``; else ``error`` with the reason."""
    reason = refusal(account, draft.kind, draft.body, at)
    if reason is not None:
        raise error(reason)
    return draft


def _continued(dataset: str, account: Account | None, lines: Sequence[str]) -> Account | None:
    """The account after the records in ``lines``, which follow those of ``account``."""
    if account is None:
        return fold(dataset, parse_lines(lines, dataset=dataset))
    after = parse_lines(lines, dataset=dataset, start=account.records, previous=account.head, not_before=account.at)
    return fold(dataset, after, account)


def _is_signature(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip()) and len(text) <= _SIGNATURE_LENGTH and text.isprintable()


def _noting(hashes: list[str], records: Iterable[Record]) -> Iterator[Record]:
    """``records``, whose hashes are put into ``hashes`` on the way."""
    for record in records:
        hashes.append(record.hash)
        yield record


def _stands(lines: Sequence[str], sequence: int, line: str) -> bool:
    return sequence < len(lines) and lines[sequence] == line
