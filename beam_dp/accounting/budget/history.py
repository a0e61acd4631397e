"""The rules of a budget: which record may follow a history, as pure functions, and the fold of a history.

Records by kind, with the fields of their bodies
    create  schema, inputs                          the first record, and only that
    limit   limit                                   a limit of a key that has none
    reserve run_id, token, plan_hash, pipeline, charges, ledger      charges a run
    start   run_id, token, lease_until, [launch]    the one moment at which a reserved run becomes a launch
    commit  run_id, token                           from now on its output may be seen: its charge is final
    publish run_id, token, attempt                  one of its outputs is in its place
    void    run_id, was, signed_by, statement       it never published and never will: its charge is given back

A run goes reserved -> running -> committed, and reserved or running -> void. It keeps its id for ever.

Why no limit is ever exceeded. Let H(n) be records 0 to n of a data set.
1. A `RecordLog` writes record n+1 only where n is the last record, and no record changes. So all that is ever read is
   a prefix of one history, and a record that was decided on H(n) is either written directly behind H(n) or not at all.
2. A record is written only if `refusal` of the fold of H(n) gives no reason against it. Its time is never before that
   of record n, so a period of a renewing limit that is over stays over.
3. For each limit, let S be the sum of the charges of its key of all runs but void ones that were reserved in the
   limit's current period. After each record S <= limit: ``create`` has no runs; ``limit`` is refused if S is above
   already; ``reserve`` is refused if S and its own charge are together above; ``start``, ``commit`` and ``publish``
   leave S as it is, ``void`` lowers it, and so does the beginning of a period, in which nothing was reserved yet.
So S, spent and reserved alike, is at most the limit at every moment and under any number of concurrent launches, since
there is no moment that is not behind some H(n).

Why nothing runs that is not charged. A launch submits only once its own ``start`` record is there, or, where others own
the pipeline, a worker draws only once the ``start`` record of its own graph (``launch``) is there. ``start`` needs a
reserved run, which ``reserve`` has charged, and takes it away, so one run id is launched at most once. A launch that
dies leaves its charge behind: only a person can give it back, with a name and for an output that nobody saw. ``commit``
comes before anything can be seen, right before the publication or, where that is not for us to say, with ``start``; a
run that is void cannot commit, and one that has committed is never void.

A reader applies the same rules to each record (`fold`), so a history that breaks one is found whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from beam_dp.accounting.budget.account import COMMITTED, RESERVED, RUNNING, VOIDED, Account, Run, Term
from beam_dp.accounting.budget.charges import Charge, Limit, charges_of
from beam_dp.accounting.budget.records import (
    COMMIT,
    CREATE,
    LIMIT,
    PUBLISH,
    RESERVE,
    SCHEMA_VERSION,
    START,
    VOID,
    Record,
    damaged,
    parse_time,
    require_name,
)

LEASE = timedelta(days=1)
UNSEEN = "neither output nor staging of this run was seen by anyone"

Body = Mapping[str, Any]


def refusal(account: Account | None, kind: str, body: Body, at: datetime) -> str | None:
    """Why a record of this kind and body may not follow the history at ``at``, or None.

    Args:
        account: the fold of the history; None if there is none yet.
        kind: of the record.
        body: of the record; KeyError, TypeError or ValueError if it lacks a field or one is of another kind.
        at: when the record would be written, not before the last one.
    """
    if account is None:
        return None if kind == CREATE else "the first record must create the data set"
    if kind == CREATE:
        return "the data set is there already"
    if kind == LIMIT:
        return account.term_refusal(Limit.from_json(body["limit"]), at)
    if kind == RESERVE:
        return _refuse_reserve(account, body, at)
    run = account.runs.get(body["run_id"])
    if run is None:
        return f"data set {account.dataset} has no run {body['run_id']}: reserve it first"
    return _refuse_void(run, body, at) if kind == VOID else _refuse_step(run, kind, body, at)


def is_done(account: Account, kind: str, body: Body) -> bool:
    """Whether the history says already what this record would, so that asking again writes nothing.

    That is so for a reservation by the same process for the same plan that was not started yet (Beam may construct a
    graph twice), for ``start`` by another worker of the same graph, and for ``commit`` of a committed run and
    ``publish`` of the same output by its own launch (Beam may run a bundle again).
    """
    run = account.runs.get(body["run_id"])
    if run is None or run.token != body["token"]:
        return False
    if kind == RESERVE:
        return run.state == RESERVED and (run.plan_hash, run.charges) == (body["plan_hash"], _charges(body))
    if kind == START:
        same_graph = run.launch is not None and run.launch == body.get("launch")
        return same_graph and run.state in (RUNNING, COMMITTED)
    if kind == PUBLISH:
        return body["attempt"] in run.published
    return kind == COMMIT and run.state == COMMITTED


def fold(dataset: str, records: Iterable[Record], account: Account | None = None) -> Account | None:
    """The account after ``records``; None if there are none.

    Args:
        dataset: whose records these are.
        records: checked against each other by `parse_lines`.
        account: the fold of the records before them. It stays as it is.

    Raises:
        BudgetStoreError: a record breaks a rule.
    """
    if account is not None:
        account = replace(account, _terms=dict(account._terms), _runs=dict(account._runs), _used=dict(account._used))
    for record in records:
        try:
            reason = refusal(account, record.kind, record.body, record.time)
            if reason is None:
                account = _after(account, record)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            reason = "its body lacks a field, or one is of another kind"
        if reason is not None:
            raise damaged(dataset, record.sequence, reason)
    return account


def _refuse_reserve(account: Account, body: Body, at: datetime) -> str | None:
    run = account.runs.get(require_name("run_id", body["run_id"]))
    if run is not None:
        return f"{_described(run)}; another run_id is charged anew"
    charges = _charges(body)
    if charges != charges_of(body["ledger"]):
        return "the charges are not those of its ledger"
    return account.refusal(charges, at)


def _refuse_step(run: Run, kind: str, body: Body, at: datetime) -> str | None:
    """Why ``start``, ``commit`` or ``publish`` is refused."""
    needed = {START: RESERVED, COMMIT: RUNNING, PUBLISH: COMMITTED}[kind]
    if run.state != needed:
        return f"{_described(run)}: {kind} needs one that is {needed}"
    if run.token != body["token"]:
        return f"{_described(run)} by another launch; another run_id is charged anew"
    if kind == START and parse_time(body["lease_until"]) < at:
        return f"run {run.run_id}: a lease ends in the future"
    return None


def _refuse_void(run: Run, body: Body, at: datetime) -> str | None:
    if run.state not in (RESERVED, RUNNING):
        return f"{_described(run)}: only one that is reserved or running can be made void"
    if body["was"] != run.state:
        return f"{_described(run)}, and not {body['was']}"
    if run.state == RESERVED:
        return None
    if not run.lease_expired(at):
        ends = f"{run.lease_until:%Y-%m-%d %H:%M:%S} UTC"
        return f"{_described(run)} and may still publish: it can be made void from {ends} on"
    signed = isinstance(body["signed_by"], str) and body["signed_by"].strip()
    if not signed or body["statement"] != UNSEEN:
        return f"{_described(run)}: a person must sign that {UNSEEN}"
    return None


def _after(account: Account | None, record: Record) -> Account:
    """The account after a record that nothing speaks against; changes ``account``."""
    body, at = record.body, record.time
    if account is None:
        if body["schema"] != SCHEMA_VERSION:
            raise ValueError
        account = Account(
            dataset=record.dataset,
            created=at,
            inputs=tuple(map(_text, body["inputs"])),
            head=record.hash,
            at=at,
            records=0,
        )
    elif record.kind == LIMIT:
        account.add_term(Term(Limit.from_json(body["limit"]), at))
    elif record.kind == RESERVE:
        account.add_run(_reserved(body, at))
    else:
        account.change_run(_CHANGES[record.kind](account.runs[body["run_id"]], body))
    account.head, account.at, account.records = record.hash, at, record.sequence + 1
    return account


def _reserved(body: Body, at: datetime) -> Run:
    return Run(
        run_id=body["run_id"],
        state=RESERVED,
        token=_text(body["token"]),
        plan_hash=_text(body["plan_hash"]),
        pipeline=_text(body["pipeline"]),
        charges=_charges(body),
        at=at,
    )


_CHANGES: dict[str, Callable[[Run, Body], Run]] = {
    START: lambda run, body: replace(
        run, state=RUNNING, lease_until=parse_time(body["lease_until"]), launch=_launch(body)
    ),
    COMMIT: lambda run, body: replace(run, state=COMMITTED),
    PUBLISH: lambda run, body: replace(run, published=run.published | {_text(body["attempt"])}),
    VOID: lambda run, body: replace(run, state=VOIDED),
}


def _charges(body: Body) -> tuple[Charge, ...]:
    # Types belong to the key: 1 == 1.0 == True.
    return tuple(_charge(tuple(fields.items()), tuple(map(type, fields.values()))) for fields in body["charges"])


@lru_cache(maxsize=1024)
def _charge(items: tuple[tuple[str, Any], ...], types: tuple[type, ...]) -> Charge:
    """The charge with these fields; most runs on a data set cost the same."""
    return Charge.from_json(dict(items))


def _described(run: Run) -> str:
    return f"run {run.run_id}" + (f" of {run.pipeline}" if run.pipeline else "") + f" is {run.state} already"


def _launch(body: Body) -> str | None:
    launch = body.get("launch")
    return None if launch is None else _text(launch)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
