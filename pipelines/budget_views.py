"""What a budget holds, as text for people, as a table and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from beam_dp.accounting.budget import Account, Amount, BudgetRun, BudgetStore, Charge, Limit, Record, Run
from beam_dp.accounting.budget.account import RESERVED, RUNNING, left_of, told
from beam_dp.accounting.budget.charges import unit_of
from beam_dp.accounting.report.wording import printable
from beam_dp.errors import BeamDpError

FORMATS = ("text", "tsv", "json")

# The state that a run is in after a record of this kind.
_STATES = {"reserve": "reserved", "start": "running", "commit": "committed", "publish": "committed", "void": "void"}
# The whole ledger of each run would bury the rest; a token is the launch's own.
_NOT_SHOWN = ("token", "ledger")
_LIMIT_COLUMNS = (
    "dataset",
    "model",
    "privacy_unit",
    "metric",
    "index_digest",
    "epsilon",
    "delta",
    "committed_epsilon",
    "committed_delta",
    "open_epsilon",
    "open_delta",
    "left_epsilon",
    "left_delta",
    "renew_days",
    "renews_at",
    "open_runs",
    "head",
)
_RECORD_COLUMNS = ("sequence", "at", "kind", "run_id", "pipeline", "what", "state", "signed_by", "hash")


@dataclass(frozen=True)
class View:
    """One answer in each of its forms.

    Attributes:
        lines: for people.
        table: the header and then the rows.
        document: JSON values.
    """

    lines: Sequence[str]
    table: Sequence[Sequence[object]]
    document: Mapping[str, Any]

    def render(self, format: str) -> str:
        """The answer as one of `FORMATS`, without the last newline."""
        if format == "json":
            return json.dumps(self.document, indent=2, ensure_ascii=False)
        if format == "text":
            return "\n".join(map(printable, self.lines))
        stream = io.StringIO()
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(
            [printable(cell) if isinstance(cell, str) else cell for cell in row] for row in self.table
        )
        return stream.getvalue().rstrip("\n")


def accounts_view(accounts: Sequence[Account], at: datetime) -> View:
    """Limits, what is spent and left of them, and the runs that are not over, of each data set.

    Args:
        accounts: of the data sets.
        at: now, by the clock of the store.
    """
    documents = [_account_document(account, at) for account in accounts]
    rows = [
        [
            *(document["dataset"], limit["model"], limit["privacy_unit"], limit["metric"], limit["index_digest"]),
            *(limit["epsilon"], limit["delta"]),
            *(limit[part][name] for part in ("committed", "open", "left") for name in ("epsilon", "delta")),
            *(limit["renew_days"], limit["renews_at"]),
            *(" ".join(run["run_id"] for run in document["open_runs"]), document["head"]),
        ]
        for document in documents
        for limit in document["limits"]
    ]
    lines = [line for account in accounts for line in _account_lines(account, at)]
    return View(lines or ["no data sets"], [_LIMIT_COLUMNS, *rows], {"datasets": documents})


def history_view(dataset: str, records: Sequence[Record]) -> View:
    """A line for each record of a data set."""
    pipelines = {r.body["run_id"]: r.body["pipeline"] for r in records if r.kind == "reserve"}
    rows: list[Sequence[object]] = []
    documents: list[dict[str, Any]] = []
    for record in records:
        body = record.body
        run_id = body.get("run_id")
        state, signed_by = _STATES.get(record.kind), body.get("signed_by")
        rows.append(
            [
                *(record.sequence, record.at, record.kind, run_id, pipelines.get(run_id)),
                *(_told_record(record), state, signed_by, record.hash),
            ]
        )
        fields = {"sequence": record.sequence, "at": record.at, "kind": record.kind, "state": state}
        shown = {name: value for name, value in body.items() if name not in _NOT_SHOWN}
        documents.append(fields | shown | {"hash": record.hash})
    lines = [
        f"{record.sequence}  {_told_time(record.time)}  {record.kind}"
        + (f"  run {row[3]}" if row[3] else "")
        + (f" of {row[4]}" if row[4] else "")
        + f": {row[5]}"
        + (f", signed by {row[7]}" if row[7] else "")
        for record, row in zip(records, rows, strict=True)
    ]
    return View(lines, [_RECORD_COLUMNS, *rows], {"dataset": dataset, "records": documents})


def verified_view(store: BudgetStore, heads: Mapping[str, str]) -> View:
    """What `BudgetStore.verify` found: the hash of each data set's last record, and how many records lead to it."""
    rows: list[tuple[str, str, int]] = []
    for dataset, head in heads.items():
        # Others may have written since.
        count = next(record.sequence + 1 for record in store.history(dataset) if record.hash == head)
        rows.append((dataset, head, count))
    documents = [dict(zip(("dataset", "head", "records"), row, strict=True)) for row in rows]
    lines = [f"ok {dataset} {head} {count} records" for dataset, head, count in rows]
    return View(lines or ["no data sets"], [("dataset", "head", "records"), *rows], {"datasets": documents})


def charged_lines(budget: BudgetRun) -> list[str]:
    """What a run was charged and what is left, a line for each limit that it counts against.

    The output is published by then, so a store that fails now fails no run.
    """
    title = f"charged to data set {budget.dataset} as run {budget.run_id}:"
    try:
        account, at = budget.store.account(budget.dataset), budget.store.now()
    except BeamDpError:
        return [f"{title} what is left cannot be read now"]
    charges = {charge.key: charge.amount for charge in account.runs[budget.run_id].charges}
    return [
        title,
        *(
            f"  {unit_of(limit.key)}: {told(amount)}; {left_of(account.remaining(limit, at), 'is', limit.amount)}"
            for limit in account.limits
            if (amount := charges.get(limit.key)) is not None
        ),
    ]


def _account_document(account: Account, at: datetime) -> dict[str, Any]:
    return {
        "dataset": account.dataset,
        "created": account.created.isoformat(),
        "records": account.records,
        "head": account.head,
        "inputs": list(account.inputs),
        "limits": [_limit_document(account, limit, at) for limit in account.limits],
        "open_runs": [
            {
                "run_id": run.run_id,
                "state": run.state,
                "pipeline": run.pipeline,
                "reserved_at": run.at.isoformat(),
                "lease_until": None if run.lease_until is None else run.lease_until.isoformat(),
                "lease_expired": run.lease_expired(at),
                "charges": [charge.to_json() for charge in run.charges],
            }
            for run in _open_runs(account)
        ],
    }


def _limit_document(account: Account, limit: Limit, at: datetime) -> dict[str, Any]:
    renews_at = account.renews_at(limit, at)
    amounts = {
        name: {"epsilon": amount.epsilon, "delta": amount.delta}
        for name, amount in _amounts(account, limit, at).items()
    }
    return limit.to_json() | amounts | {"renews_at": None if renews_at is None else renews_at.isoformat()}


def _account_lines(account: Account, at: datetime) -> Iterator[str]:
    yield f"data set {account.dataset}, made {_told_time(account.created)}"
    if account.inputs:
        yield f"  files: {', '.join(account.inputs)}"
    for limit in account.limits:
        renews_at = account.renews_at(limit, at)
        renewal = "for good" if renews_at is None else f"every {limit.renew_days} days, next {_told_time(renews_at)}"
        yield f"  {unit_of(limit.key)}: {_told_amount(limit.amount, limit)}, {renewal}"
        for name, amount in _amounts(account, limit, at).items():
            yield f"    {name:<10} {_told_amount(amount, limit)}"
    for run in _open_runs(account):
        yield f"  run {run.run_id}{f' of {run.pipeline}' if run.pipeline else ''}: {_told_state(run, at)}"
    yield f"  head {account.head} of {account.records} records"


def _amounts(account: Account, limit: Limit, at: datetime) -> dict[str, Amount]:
    unfinished = account.unfinished(limit, at)
    return {
        "committed": account.spent(limit, at).minus(unfinished),
        "open": unfinished,
        "left": account.remaining(limit, at),
    }


def _open_runs(account: Account) -> Iterable[Run]:
    return (run for run in account.runs.values() if run.state in (RESERVED, RUNNING))


def _told_state(run: Run, at: datetime) -> str:
    if run.lease_until is None:
        return f"{run.state} since {_told_time(run.at)}, not started"
    lease = "its lease expired" if run.lease_expired(at) else "its lease ends"
    return f"{run.state}, reserved {_told_time(run.at)}, {lease} {_told_time(run.lease_until)}"


def _told_record(record: Record) -> str:
    """What a record says beside its kind and its run."""
    body = record.body
    if record.kind == "create":
        return f"files {', '.join(body['inputs'])}" if body["inputs"] else "any files"
    if record.kind == "limit":
        limit = Limit.from_json(body["limit"])
        renewal = "" if limit.renew_days is None else f", every {limit.renew_days} days"
        return f"{unit_of(limit.key)}: {told(limit.amount)}{renewal}"
    if record.kind == "reserve":
        return "; ".join(_told_charge(Charge.from_json(fields)) for fields in body["charges"])
    if record.kind == "void":
        return f"given back, {body['statement'] or 'never started'}"
    told_kinds = {"commit": "its charge is final", "publish": "an output is in its place"}
    return told_kinds.get(record.kind) or f"lease until {body['lease_until']}"


def _told_charge(charge: Charge) -> str:
    said = f"epsilon is not stated: {charge.reason}" if charge.amount is None else told(charge.amount)
    return f"{unit_of(charge.key)}: {said}"


def _told_amount(amount: Amount, limit: Limit) -> str:
    return f"epsilon {amount.epsilon}" + (f", delta {amount.delta}" if limit.delta else "")


def _told_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
