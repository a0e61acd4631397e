"""The state of a data set's budget at one moment: what `beam_dp.accounting.budget.history` folds records into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple

from beam_dp.accounting.budget.charges import DOCUMENT_KEY, NOTHING, WORD, Amount, Charge, Key, Limit, unit_of
from beam_dp.errors import ArgumentError

RESERVED, RUNNING, COMMITTED, VOIDED = "reserved", "running", "committed", "void"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One launch on a data set.

    Attributes:
        run_id: its name.
        state: ``reserved`` (charged, not started), ``running``, ``committed`` (its output may be seen, so its charge is
            final) or ``void`` (never published, charge given back).
        token: random, of the process that reserved it.
        plan_hash: of the ledger that it was reserved with.
        pipeline: name of what it runs; may be empty.
        charges: what it costs.
        at: when it was reserved, UTC.
        lease_until: until when nobody may void it once it is running, UTC; None before.
        launch: random, of the graph whose workers started it; None before, and where the launching process did.
        published: the outputs of it that are in their places, each by the ``attempt`` of its manifest.
    """

    run_id: str
    state: str
    token: str
    plan_hash: str
    pipeline: str
    charges: tuple[Charge, ...]
    at: datetime
    lease_until: datetime | None = None
    launch: str | None = None
    published: frozenset[str] = frozenset()

    def lease_expired(self, at: datetime) -> bool:
        """Whether the run was started and its lease is over at ``at`` (UTC, aware)."""
        return self.lease_until is not None and at >= self.lease_until


class Term(NamedTuple):
    """A limit and when it was set."""

    limit: Limit
    since: datetime

    def period(self, at: datetime) -> int:
        """Which period ``at`` is in: 0 for a limit for good; negative before the limit was set."""
        days = self.limit.renew_days
        return 0 if days is None else (at - self.since) // timedelta(days=days)


@dataclass(kw_only=True)
class Account:
    """Limits and runs of a data set as of its last record. Nothing changes an account that a store has returned.

    Attributes:
        dataset: name of the data set.
        created: when its first record was written, UTC.
        inputs: prefixes of the files that belong to it; empty if it names none.
        head: hash of the last record. Who keeps it elsewhere can later prove that nothing was cut off.
        at: when the last record was written, UTC.
        records: how many records there are.
    """

    dataset: str
    created: datetime
    inputs: tuple[str, ...]
    head: str
    at: datetime
    records: int
    _terms: dict[Key, Term] = field(default_factory=dict, repr=False)
    _runs: dict[str, Run] = field(default_factory=dict, repr=False)
    _used: dict[tuple[Key, int], Amount] = field(default_factory=dict, repr=False)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits in the order in which they were set."""
        return tuple(term.limit for term in self._terms.values())

    @property
    def runs(self) -> Mapping[str, Run]:
        """The runs by their id, in the order in which they were reserved."""
        return MappingProxyType(self._runs)

    def spent(self, limit: Limit, at: datetime) -> Amount:
        """What all runs but void ones cost under ``limit``, in its period at ``at`` (UTC, aware).

        Raises:
            ArgumentError: the data set has no such limit.
        """
        return self._used.get((limit.key, self._term(limit).period(max(at, self.at))), NOTHING)

    def unfinished(self, limit: Limit, at: datetime) -> Amount:
        """The part of `spent` that reserved and running runs cost; raises ArgumentError as `spent` does."""
        term, amount = self._term(limit), NOTHING
        period = term.period(max(at, self.at))
        for run in self._runs.values():
            if run.state in (RESERVED, RUNNING) and term.period(run.at) == period:
                for charge in run.charges:
                    if charge.key == limit.key and charge.amount is not None:
                        amount = amount.plus(charge.amount)
        return amount

    def renews_at(self, limit: Limit, at: datetime) -> datetime | None:
        """When the period of ``limit`` at ``at`` is over, UTC; None for a limit for good.

        Raises:
            ArgumentError: the data set has no such limit.
        """
        term = self._term(limit)
        if limit.renew_days is None:
            return None
        return term.since + timedelta(days=limit.renew_days) * (term.period(max(at, self.at)) + 1)

    def remaining(self, limit: Limit, at: datetime) -> Amount:
        """What is left under ``limit`` in its period at ``at``; raises ArgumentError as `spent` does."""
        return limit.amount.minus(self.spent(limit, at))

    def refusal(self, charges: Sequence[Charge], at: datetime) -> str | None:
        """Why a run with these charges may not be reserved at ``at``, or None.

        Every limit that exists for a charge must hold. A central or local charge needs a limit of its key, and so does
        that of a metric word, unless there is a limit for documents, which covers the words of all indexes.
        """
        if not charges:
            return "the ledger records no mechanism, so nothing says what the run costs"
        reasons = []
        asked: dict[Key, Amount] = {}
        by_document = DOCUMENT_KEY in self._terms
        words = any(_is_word(charge.key) for charge in charges)
        for charge in charges:
            if charge.key in self._terms:
                if charge.amount is None:
                    reasons.append(f"{unit_of(charge.key)}: what the run costs is not stated: {charge.reason}")
                else:
                    asked[charge.key] = asked.get(charge.key, NOTHING).plus(charge.amount)
            elif not (_is_word(charge.key) and by_document) and not (charge.key == DOCUMENT_KEY and words):
                reasons.append(f"{unit_of(charge.key)}: data set {self.dataset} has no budget for it")
        for key, amount in asked.items():
            limit = self._terms[key].limit
            left = self.remaining(limit, at)
            if not amount.fits(left):
                reasons.append(f"{unit_of(key)}: {told(amount)} is asked for, {left_of(left, 'is', limit.amount)}")
        return "; ".join(reasons) or None

    def term_refusal(self, limit: Limit, at: datetime) -> str | None:
        """Why ``limit`` may not be set at ``at``, or None: its key has one, or more was spent already."""
        if limit.key in self._terms:
            return f"data set {self.dataset} has a limit for {unit_of(limit.key)} already, and limits never change"
        term = Term(limit, at)
        spent = NOTHING
        for period, charge in self._counted(term):
            if period == term.period(at):
                if charge.amount is None:
                    return f"{unit_of(limit.key)}: what an earlier run cost is not stated: {charge.reason}"
                spent = spent.plus(charge.amount)
        if not spent.fits(limit.amount):
            return f"{unit_of(limit.key)}: {told(spent)} is spent already, more than the limit"
        return None

    def add_term(self, term: Term) -> None:
        """Sets a limit; for the fold alone."""
        self._terms[term.limit.key] = term
        for period, charge in self._counted(term):
            self._use(charge, period, 1)

    def add_run(self, run: Run) -> None:
        """Counts a new run; for the fold alone."""
        self._runs[run.run_id] = run
        self._use_all(run, 1)

    def change_run(self, run: Run) -> None:
        """Replaces a run by its next state and gives the charge of one that is void back; for the fold alone."""
        self._runs[run.run_id] = run
        if run.state == VOIDED:
            self._use_all(run, -1)

    def _term(self, limit: Limit) -> Term:
        term = self._terms.get(limit.key)
        if term is None:
            raise ArgumentError(
                f"limit must be one of data set {self.dataset}, which has none for {unit_of(limit.key)}"
            )
        return term

    def _counted(self, term: Term) -> Iterable[tuple[int, Charge]]:
        """The charges of a term's key that count, each with its period."""
        for run in self._runs.values():
            if run.state != VOIDED:
                for charge in run.charges:
                    if charge.key == term.limit.key:
                        yield term.period(run.at), charge

    def _use_all(self, run: Run, sign: int) -> None:
        for charge in run.charges:
            term = self._terms.get(charge.key)
            if term is not None:
                self._use(charge, term.period(run.at), sign)

    def _use(self, charge: Charge, period: int, sign: int) -> None:
        # An unstated charge is of a period before the limit was set, in which nothing is ever reserved again.
        if charge.amount is not None:
            place = charge.key, period
            used = self._used.get(place, NOTHING)
            self._used[place] = used.plus(charge.amount) if sign > 0 else used.minus(charge.amount)


def told(amount: Amount) -> str:
    """An amount for people, e.g. ``'epsilon 1.0, delta 1e-06'``."""
    return f"epsilon {amount.epsilon}" + (f", delta {amount.delta}" if amount.exact_delta else "")


def left_of(left: Amount, verb: str, limit: Amount) -> str:
    """What is left of a limit, for people, e.g. ``'3.0 and 9e-06 would be left of 4.0 and 1e-05'``."""
    if not limit.exact_delta and not left.exact_delta:
        return f"{left.epsilon} {verb} left of {limit.epsilon}"
    return f"{left.epsilon} and {left.delta} {verb} left of {limit.epsilon} and {limit.delta}"


def _is_word(key: Key) -> bool:
    return key[:2] == ("metric", WORD)
