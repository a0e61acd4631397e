"""What several runs promised to whom, each run and all together, as text, a table of values, JSON or a page.

Runs add up by basic composition of their totals (Dwork and Roth 2014, Theorem 3.16), exactly as they are charged to a
budget: see `beam_dp.accounting.budget.charges`. Totals of different models, privacy units or indexes are not added.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal
from xml.etree.ElementTree import Element

from beam_dp.accounting.budget.charges import DOCUMENT_KEY, MODELS, NOTHING, Charge, Key, charges_of
from beam_dp.accounting.composition import NOT_PRIVATE
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.report.markup import document, node, row, table
from beam_dp.accounting.report.page import alarm
from beam_dp.accounting.report.statements import is_open
from beam_dp.accounting.report.text import WIDTH
from beam_dp.accounting.report.wording import central_promise, document_promise, local_promise, printable, word_promise
from beam_dp.accounting.rounding import written_up
from beam_dp.errors import ArgumentError, require_choice

Format = Literal["text", "tsv", "json", "html"]

SCHEMA_VERSION = 1
_FORMATS = ("text", "tsv", "json", "html")
_TITLE = "What was promised to whom"
_NOTE = (
    "Runs add up by basic composition: the epsilons and deltas of their totals are added. Different models, privacy "
    "units and indexes are not: if the same people stand behind two units, the sum of both holds for them. Every run "
    "counts, also one that ran the same plan again or failed."
)
_UNSTATED = "not stated"
_NANO = 10**9
_COLUMNS = (46, 24, 24)


@dataclass(frozen=True)
class _Run:
    """One ledger as the report shows it."""

    name: str
    plan_hash: str
    sealed: bool
    mechanisms: int
    open_labels: tuple[str, ...]
    charges: tuple[Charge, ...]

    @classmethod
    def of(cls, name: str, ledger: Ledger) -> _Run:
        fields, entries = ledger.to_dict(), ledger.entries
        labels = tuple(entry.label for entry in entries if is_open(entry))
        return cls(name, fields["plan_hash"], fields["sealed"], len(entries), labels, charges_of(fields))

    @property
    def state(self) -> str:
        return "sealed" if self.sealed else "NOT SEALED"


@dataclass(frozen=True)
class _Account:
    """All runs that promise something to one kind of privacy unit, and their sum.

    Attributes:
        charges: of each run its name and what it promised.
        epsilon: of all together, None where it is not stated.
        delta: of all together; None if epsilon is.
        reason: why epsilon is None; else None.
    """

    charges: tuple[tuple[str, Charge], ...]
    epsilon: float | None = None
    delta: float | None = None
    reason: str | None = None

    @classmethod
    def of(cls, charges: Sequence[tuple[str, Charge]]) -> _Account:
        total = NOTHING
        for name, charge in charges:
            if charge.amount is None:
                return cls(tuple(charges), reason=f"{charge.reason}, in {name}")
            total = total.plus(charge.amount)
        epsilon, delta = written_up(Fraction(total.nano_epsilon, _NANO)), written_up(total.exact_delta)
        if delta is None or delta >= 1:
            return cls(tuple(charges), reason="the deltas add up to 1 or more")
        if epsilon is None:
            return cls(tuple(charges), reason="the sum exceeds the largest float")
        return cls(tuple(charges), epsilon, delta)

    @property
    def key(self) -> Key:
        return self.charges[0][1].key

    @property
    def title(self) -> str:
        model, unit, metric, digest = self.key
        where = ", over all indexes" if self.key == DOCUMENT_KEY else ""
        if metric is not None:
            where = f", {metric} metric of index {digest}"
        return f"{model} model: {unit}{where}"

    @property
    def meaning(self) -> str:
        """What the sum promises, in a sentence."""
        model, unit, metric, _ = self.key
        if self.epsilon is None:
            return f"No sum is stated: {self.reason}."
        if model == "central":
            return central_promise(unit, self.epsilon, self.delta)
        if model == "local":
            return local_promise(unit, self.epsilon, self.delta)
        if metric is None:
            return document_promise(self.epsilon, self.delta)
        return word_promise(metric, self.epsilon, self.delta, None)

    def lines(self) -> Iterator[tuple[str, str, str]]:
        """Name, epsilon and delta of each run and of all together."""
        for name, charge in self.charges:
            yield name, _shown(charge.epsilon), _shown(charge.delta)
        yield self.together, _shown(self.epsilon), _shown(self.delta)

    @property
    def together(self) -> str:
        return f"together ({len(self.charges)} run{'' if len(self.charges) == 1 else 's'})"


def report_runs(ledgers: Sequence[tuple[str, Ledger]], format: Format = "text") -> str:
    """The report of one run, which is that of its ledger, or of several with their sums.

    Args:
        ledgers: of each run a name, for instance that of the file, and the ledger.
        format: ``text`` (at most 100 columns), ``tsv`` (a line for each run and privacy unit and for each sum),
            ``json``, or ``html``.

    Raises:
        ArgumentError: no ledger, two of one name, another format; or ``html`` of one ledger and no matplotlib.
    """
    require_choice("format", format, _FORMATS)
    if not ledgers:
        raise ArgumentError("ledgers must be one or more pairs of a name and a Ledger")
    names = [name for name, _ in ledgers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ArgumentError(f"ledgers has {twice!r} twice: it would count twice")
    if len(ledgers) == 1 and format != "tsv":
        return ledgers[0][1].report(format)
    runs = [_Run.of(name, ledger) for name, ledger in ledgers]
    accounts = _accounts(runs)
    render = {"text": _text, "tsv": _tsv, "json": _json, "html": _html}[format]
    return render(runs, accounts)


def _accounts(runs: Sequence[_Run]) -> list[_Account]:
    """One for each key, the models in their order, keys in that of their first run."""
    found: dict[Key, list[tuple[str, Charge]]] = {}
    for run in runs:
        for charge in run.charges:
            found.setdefault(charge.key, []).append((run.name, charge))
    # Documents after the words of all indexes.
    ordered = sorted(found, key=lambda key: (MODELS.index(key[0]), key == DOCUMENT_KEY))
    return [_Account.of(found[key]) for key in ordered]


def _open_names(runs: Sequence[_Run]) -> list[str]:
    return [f"{label} in {run.name}" for run in runs for label in run.open_labels]


def _text(runs: Sequence[_Run], accounts: Sequence[_Account]) -> str:
    lines = [f"{_TITLE}: {len(runs)} runs", ""]
    doors = _open_names(runs)
    if doors:
        lines += [NOT_PRIVATE, *_wrapped(f"no noise protects what these write: {', '.join(doors)}", "  "), ""]
    for run in runs:
        lines += _wrapped(f"{run.name}: {run.mechanisms} recorded, {run.state}", "  ")
        lines.append(f"    plan {run.plan_hash}")
    for account in accounts:
        lines += ["", *_wrapped(account.title, ""), *_cells("run", "epsilon", "delta"), "  " + "-" * (WIDTH - 2)]
        for line in account.lines():
            lines += _cells(*line)
        lines += _wrapped(account.meaning, "  ")
    if not accounts:
        lines += ["", "no mechanism was recorded"]
    return "\n".join([*lines, "", *_wrapped(_NOTE, "")]) + "\n"


def _cells(name: str, epsilon: str, delta: str) -> list[str]:
    """One table row; a long name takes several lines."""
    width, *_ = _COLUMNS
    first, *more = textwrap.wrap(printable(name), width, break_on_hyphens=False) or [""]
    whole = "  ".join(cell.ljust(size) for cell, size in zip((first, epsilon, delta), _COLUMNS, strict=True))
    return [f"  {line}".rstrip() for line in (whole, *more)]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _tsv(runs: Sequence[_Run], accounts: Sequence[_Account]) -> str:
    out = io.StringIO()
    write = csv.writer(out, delimiter="\t", lineterminator="\n").writerow
    write(("kind", "run", "model", "privacy_unit", "metric", "index_digest", "epsilon", "delta", "reason"))
    for account in accounts:
        key = [printable(part or "") for part in account.key]
        for name, charge in account.charges:
            values = (_value(charge.epsilon), _value(charge.delta), printable(charge.reason or ""))
            write(("run", printable(name), *key, *values))
        write(("sum", "", *key, _value(account.epsilon), _value(account.delta), printable(account.reason or "")))
    return out.getvalue()


def _json(runs: Sequence[_Run], accounts: Sequence[_Account]) -> str:
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "name": run.name,
                "plan_hash": run.plan_hash,
                "sealed": run.sealed,
                "not_private": list(run.open_labels),
                "totals": [charge.to_json() for charge in run.charges],
            }
            for run in runs
        ],
        "sums": [
            dict(zip(("model", "privacy_unit", "metric", "index_digest"), account.key, strict=True))
            | {"epsilon": account.epsilon, "delta": account.delta, "reason": account.reason}
            | {"runs": [name for name, _ in account.charges]}
            for account in accounts
        ],
        "note": _NOTE,
    }
    return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _html(runs: Sequence[_Run], accounts: Sequence[_Account]) -> str:
    sections = [
        node(
            "section",
            node("h3", account.title),
            node("p", account.meaning, class_="promise"),
            table(("run", "epsilon", "delta"), _account_rows(account), label=account.title),
        )
        for account in accounts
    ]
    listed = [
        row(run.name, node("code", run.plan_hash), str(run.mechanisms), run.state, class_=_marked(run)) for run in runs
    ]
    return document(
        _TITLE,
        node("header", node("h1", _TITLE), node("p", f"{len(runs)} runs.")),
        alarm(_open_names(runs), "what these write"),
        node("h2", "All runs together"),
        *sections,
        None if accounts else node("p", "No mechanism was recorded."),
        node("p", _NOTE, class_="note"),
        node("h2", "The runs"),
        table(("run", "plan", "mechanisms", "state"), listed, label="The runs and their plans", class_="entries tall"),
    )


def _account_rows(account: _Account) -> list[Element]:
    *each, together = account.lines()
    return [*(row(*line) for line in each), row(*together, class_="sum")]


def _marked(run: _Run) -> str | None:
    return "open" if run.open_labels else None


def _shown(number: float | None) -> str:
    return _UNSTATED if number is None else str(number)


def _value(number: float | None) -> str:
    return "" if number is None else repr(number)
