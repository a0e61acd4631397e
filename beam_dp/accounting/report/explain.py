"""A ledger in plain words, entry by entry, for someone who answers for it with a signature.

Numbers have all their digits, or are rounded up and say so. What the ledger does not say is put down as assumed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from beam_dp.accounting.composition import NOT_PRIVATE
from beam_dp.accounting.entries import Entry
from beam_dp.accounting.report.statements import (
    assumed,
    is_open,
    promised,
    protected,
    recorded,
    released,
    rests_on,
    unprotected,
)
from beam_dp.accounting.report.wording import (
    central_promise,
    chance,
    document_promise,
    exact,
    local_promise,
    printable,
    word_promise,
)
from beam_dp.guarantees import MetricGuarantee

if TYPE_CHECKING:
    from beam_dp.accounting.ledger import Ledger

_WIDTH = 80
_NOT_COVERED = {
    "central": (
        "This is about one run. Each further run on the same data adds what it spends. Different privacy units are not "
        "added here: if the same people stand behind two of them, the sum of both holds for those people. The results "
        "themselves may say true things about many people. Rows that cannot be read are counted exactly."
    ),
    "local": (
        "This is about one run. Each further answer of the same people adds what it spends, whether or not it was the "
        "same answer."
    ),
    "metric": (
        "This is not user-level privacy: the documents of one person add up, and nothing bounds how many there are. "
        "Each further run on the same texts adds what it spends. A text can stay recognisable if no other text has "
        "words that are near to its own."
    ),
}


def explain(ledger: Ledger) -> str:
    """What a ledger promises, to whom, on what ground, and what it leaves open: plain text of at most 80 columns.

    Args:
        ledger: best a sealed one; of another the text says that it may still change.
    """
    entries, totals = ledger.entries, ledger.total()
    lines = ["What this pipeline promises", f"plan {ledger.plan_hash}", ""]
    lines += _wrapped(_state(sealed=ledger.sealed, count=len(entries)))
    doors = [entry.label for entry in entries if is_open(entry)]
    if doors:
        lines += ["", NOT_PRIVATE, *_wrapped(f"No noise protects what these write: {', '.join(doors)}.", "  ")]
    for number, entry in enumerate(entries, start=1):
        lines += ["", *_entry_lines(number, entry)]
    for model, total in totals.items():
        if total is not None:
            lines += ["", *_total_lines(model, total)]
    present = [model for model, total in totals.items() if total is not None]
    if len(present) > 1:
        said = f"The models ({', '.join(present)}) promise different things. Their numbers are never added."
        lines += ["", *_wrapped(said)]
    lines += ["", *(f"{what + ':':<11}{'_' * 40}\n" for what in ("Name", "Date", "Signature"))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _state(*, sealed: bool, count: int) -> str:
    recorded_there = f"{count} mechanism{'' if count == 1 else 's'} recorded."
    if sealed:
        return f"{recorded_there} The plan is sealed: nothing can be added to it."
    return f"{recorded_there} NOT SEALED: the plan may still change, and this text with it."


def _entry_lines(number: int, entry: Entry) -> Iterator[str]:
    yield from _wrapped(f"{number}. {entry.label}")
    if is_open(entry):
        yield f"   {NOT_PRIVATE}"
    yield from _said("Released", [released(entry)])
    yield from _said("Protected", [protected(entry)])
    yield from _said("Promised", promised(entry))
    yield from _said("Rests on", [rests_on(entry)])
    yield from _said("Assumed, and enforced by nothing", assumed(entry))
    yield from _said("Open to see, whatever epsilon is", unprotected(entry))
    if isinstance(entry.guarantee, MetricGuarantee):
        yield from _said("Index", [entry.guarantee.index_digest])
    if entry.share is not None:
        yield from _said("Share", [entry.share])
    if entry.parameters:
        yield from _said("Recorded with it", [recorded(entry)])


def _total_lines(model: str, total: Mapping[str, Any]) -> Iterator[str]:
    yield f"All of the {model} model together"
    groups = total["groups"]
    if model == "metric":
        for group in groups:
            yield from _said(f"A word, {group['metric']} metric, index {group['index_digest']}", [_word(group)])
        yield from _said("A document" + (", over all indexes" if len(groups) > 1 else ""), _document(total))
    else:
        for group in groups:
            yield from _said(f"One {group['privacy_unit']}", _unit(model, group))
    yield from _said("Not covered", [_NOT_COVERED[model]])


def _unit(model: str, group: Mapping[str, Any]) -> Iterator[str]:
    unit, epsilon, delta = group["privacy_unit"], group["epsilon"], group["delta"]
    if epsilon is None:
        yield f"No total is stated: {group['reason']}."
        return
    yield f"Epsilon {exact(epsilon)}, delta {chance(delta)}."
    yield (central_promise if model == "central" else local_promise)(unit, epsilon, delta)
    if group["composition"] == "pld":
        basic = group["basic"]
        yield (
            "Composed by privacy loss distributions (PLD); adding up gives epsilon "
            f"{exact(basic['epsilon'])}, delta {exact(basic['delta'])}."
        )
    else:
        yield "Composed by adding up."
    for together in group.get("group_privacy", ()):
        if together["epsilon"] is None:
            yield f"For any {together['units']} of unit {unit} together nothing is stated."
        else:
            yield (
                f"For any {together['units']} of unit {unit} together: epsilon {exact(together['epsilon'])}, delta "
                f"{exact(together['delta'])}."
            )


def _word(group: Mapping[str, Any]) -> str:
    if group["epsilon_per_word"] is None:
        return f"No total is stated: {group['reason']}."
    return word_promise(group["metric"], group["epsilon_per_word"], group["delta_per_word"], group["diameter"])


def _document(total: Mapping[str, Any]) -> Iterator[str]:
    worst, delta = total["worst_case_per_document"], total["delta_per_document"]
    if worst is None or delta is None:
        yield f"No worst case is stated: {total['reason']}."
        return
    yield document_promise(worst, delta)
    if total["epsilon_per_document"] is not None:
        yield (
            f"Per unit of the largest distance over its positions: epsilon {exact(total['epsilon_per_document'])}, "
            f"delta {exact(delta)}."
        )


def _said(what: str, sentences: Iterable[str]) -> Iterator[str]:
    """``what`` and after it the sentences; nothing where there are none."""
    text = " ".join(sentences)
    if text:
        yield from _wrapped(f"{what}: {text}", "   ")


def _wrapped(text: str, indent: str = "") -> list[str]:
    further = f"{indent}  " if indent else ""
    return textwrap.wrap(
        printable(text), _WIDTH, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False
    )
