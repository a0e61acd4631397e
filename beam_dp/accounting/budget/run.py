"""One launch of a pipeline on a data set, from its quote to its commit."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beam_dp.accounting.budget.account import Account, left_of, told
from beam_dp.accounting.budget.charges import NOTHING, Charge, charges_of, unit_of
from beam_dp.accounting.budget.history import LEASE, is_done, refusal
from beam_dp.accounting.budget.inputs import refuse_outside
from beam_dp.accounting.budget.records import COMMIT, PUBLISH, RESERVE, START, format_time, require_name
from beam_dp.accounting.budget.store import BudgetStore, Draft, legal
from beam_dp.accounting.entries import plan_hash_of
from beam_dp.errors import ArgumentError, BudgetExceededError, InputError, describe_kind

_PIPELINE_LENGTH = 200


@dataclass(frozen=True)
class Quote:
    """What a run would cost, and whether it would be let in at the moment of asking.

    Attributes:
        charges: what it costs each kind of privacy unit.
        lines: the same for people, one line for each charge, with what would be left.
        refusal: why it would be refused; None if it would not.
    """

    charges: tuple[Charge, ...]
    lines: tuple[str, ...]
    refusal: str | None


class BudgetRun:
    """One launch of a pipeline on a data set.

    ``reserve`` charges it and ``start`` turns the charge into the right to launch, exactly once for a run id. The
    workers get the launch by pickling (which leaves ``inputs`` behind), ``commit`` it before they publish, and say
    ``published`` after.

    All launches of one id that one process makes are the same one; a fork is another process.

    Where somebody else owns the pipeline (Beam YAML, a Java program), nothing here sees its submission. There the
    workers start the run before they draw: of all graphs that were made for one run id, those of one do.

    Args:
        store: where the budget is kept.
        dataset: name of the data set.
        run_id: 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit.
        pipeline: says in the history what was launched, at most 200 characters; no data.
        inputs: paths of the files that the pipeline reads; None if nobody says.
        started_by_workers: whether workers call ``start``. This object, and its copies in workers, then stand for one
            graph, which must run once.

    Raises:
        ArgumentError: an argument is none of that.

    Every method raises `BudgetStoreError` if the store cannot be read or written, and InputError if it has no such
    data set.
    """

    def __init__(
        self,
        store: BudgetStore,
        dataset: str,
        run_id: str,
        *,
        pipeline: str = "",
        inputs: Sequence[str] | None = None,
        started_by_workers: bool = False,
    ) -> None:
        if not isinstance(store, BudgetStore):
            raise ArgumentError(f"store must be a BudgetStore, not {describe_kind(store)}")
        if not isinstance(pipeline, str) or len(pipeline) > _PIPELINE_LENGTH or not pipeline.isprintable():
            raise ArgumentError(f"pipeline must be at most {_PIPELINE_LENGTH} printable characters")
        if inputs is not None and (isinstance(inputs, str) or not isinstance(inputs, Sequence)):
            raise ArgumentError(f"inputs must be a sequence of paths or None, not {describe_kind(inputs)}")
        self.store = store
        self.dataset = require_name("dataset", dataset)
        self.run_id = require_name("run_id", run_id)
        self._pipeline = pipeline
        self._inputs = None if inputs is None else tuple(inputs)
        self._token = _token_of_this_process()
        self._launch = secrets.token_hex(16) if started_by_workers else None

    @property
    def started_by_workers(self) -> bool:
        """Whether workers start the run, before they draw, and not the process that launches it."""
        return self._launch is not None

    def reads(self, paths: Sequence[str]) -> None:
        """Adds files that the pipeline reads; `ReadBatches` calls it."""
        self._inputs = (*(self._inputs or ()), *paths)

    def quote(self, ledger: Mapping[str, Any]) -> Quote:
        """What a run of this plan would cost now; writes nothing.

        Args:
            ledger: `Ledger.to_dict`.

        Raises:
            InputError: as `reserve` raises.
        """
        body = self._reservation(ledger)
        account = self.store.account(self.dataset)
        refuse_outside(self.dataset, account.inputs, self._inputs)
        at = self.store.now()
        done = is_done(account, RESERVE, body)
        charges = charges_of(ledger)
        return Quote(
            charges=charges,
            lines=tuple(_line(account, charge, at, counted=done) for charge in charges),
            refusal=None if done else refusal(account, RESERVE, body, at),
        )

    def reserve(self, ledger: Mapping[str, Any]) -> None:
        """Charges the run; again in the same process for the same plan, before it started, it changes nothing.

        Args:
            ledger: `Ledger.to_dict`. The whole of it stays in the history.

        Raises:
            BudgetExceededError: a limit would not hold or is missing, or the run id was used; nothing is charged.
            InputError: not a ledger; the data set names its inputs and the run reads others, or does not say which.
        """
        body = self._reservation(ledger)

        def charge(account: Account | None, at: datetime) -> Draft | None:
            account = self.store.require_account(self.dataset, account)
            refuse_outside(self.dataset, account.inputs, self._inputs)
            if is_done(account, RESERVE, body):
                return None
            return legal(account, Draft(RESERVE, body), at, BudgetExceededError)

        self.store.transact(self.dataset, charge)

    def start(self) -> None:
        """Takes the right to launch, which only one caller ever gets; with ``started_by_workers`` only one graph, whose
        workers may ask again, and which is committed too, since nobody knows when its output is seen.

        Raises:
            BudgetExceededError: the run is not reserved by this launch, was started already, or is void.
        """
        if self._launch in _started_here:
            return
        self._step(START)
        if self._launch is not None:
            self._step(COMMIT)
            _started_here.add(self._launch)

    def commit(self) -> None:
        """Makes the charge final, before anything can be seen; again it changes nothing.

        Raises:
            BudgetExceededError: the run is not running, or is void.
        """
        self._step(COMMIT)

    def require_unpublished(self, attempt: str) -> None:
        """Returns unless an output was published before.

        Args:
            attempt: of its manifest, which is not in its place.

        Raises:
            BudgetExceededError: it was: this is a second execution of one graph, whose draws nothing was charged for.
        """
        account = self.store.account(self.dataset)
        run = account.runs.get(self.run_id)
        if run is not None and attempt in run.published:
            raise BudgetExceededError(
                f"run {self.run_id} has published this output already: a job that is submitted again draws again, and "
                "needs a run_id of its own"
            )

    def published(self, attempt: str) -> None:
        """Says that an output is in its place; again it changes nothing.

        Args:
            attempt: of its manifest.

        Raises:
            BudgetExceededError: the run is not committed by this launch.
        """
        self._step(PUBLISH, attempt=attempt)

    def _reservation(self, ledger: Mapping[str, Any]) -> dict[str, Any]:
        charges = charges_of(ledger)
        plan_hash = ledger.get("plan_hash")
        if plan_hash != plan_hash_of(ledger.get("entries", ()), ledger.get("shares", ())):
            raise InputError("not a ledger: its entries do not match its plan_hash")
        return {
            "run_id": self.run_id,
            "token": self._token,
            "plan_hash": plan_hash,
            "pipeline": self._pipeline,
            "charges": [charge.to_json() for charge in charges],
            "ledger": dict(ledger),
        }

    def _step(self, kind: str, **more: str) -> None:
        def step(account: Account | None, at: datetime) -> Draft | None:
            account = self.store.require_account(self.dataset, account)
            body = {"run_id": self.run_id, "token": self._token, **more}
            if kind == START:
                body["lease_until"] = format_time(at + LEASE)
                if self._launch is not None:
                    body["launch"] = self._launch
            if is_done(account, kind, body):
                return None
            return legal(account, Draft(kind, body), at, BudgetExceededError)

        self.store.transact(self.dataset, step)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_inputs": None}

    def __repr__(self) -> str:
        return f"BudgetRun({self.dataset!r}, {self.run_id!r}, {self.store.url!r})"


def _token_of_this_process() -> str:
    if _token[0] != os.getpid():
        _token[:] = [os.getpid(), secrets.token_hex(16)]
    return str(_token[1])


_token: list[Any] = [0, ""]
# A worker has many threads, and each makes its DoFns: the store is asked once.
_started_here: set[str | None] = set()


def _line(account: Account, charge: Charge, at: datetime, *, counted: bool) -> str:
    """A charge for people, with what would be left of its limit; ``counted`` says that it is in the account already."""
    unit = unit_of(charge.key)
    if charge.amount is None:
        return f"{unit}: epsilon is not stated: {charge.reason}"
    asked = f"{unit}: {told(charge.amount)}"
    limit = next((limit for limit in account.limits if limit.key == charge.key), None)
    if limit is None:
        return f"{asked}; no limit of its own"
    before = account.remaining(limit, at)
    after = before.minus(NOTHING if counted else charge.amount)
    if not NOTHING.fits(after):
        return f"{asked}; too much, {left_of(before, 'is', limit.amount)}"
    return f"{asked}; {left_of(after, 'would be', limit.amount)}"
