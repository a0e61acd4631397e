"""A ledger as a page of HTML that needs nothing else: to read in a browser, to print, to keep with what was published.

The three privacy models stand apart, each with its totals and what they mean in a sentence, and no number of one is
added to another's. Every number has all its digits, or is rounded up and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any
from xml.etree.ElementTree import Element

from beam_dp.accounting.composition import NOT_PRIVATE
from beam_dp.accounting.entries import Entry
from beam_dp.accounting.report.curve import Curve, central_curve, parts_of
from beam_dp.accounting.report.markup import document, node, row, table
from beam_dp.accounting.report.pictures import curve_picture, parts_picture
from beam_dp.accounting.report.statements import assumed, is_open
from beam_dp.accounting.report.wording import (
    central_promise,
    document_promise,
    exact,
    local_promise,
    word_promise,
)
from beam_dp.accounting.rounding import round_up
from beam_dp.guarantees import MetricGuarantee

Total = Mapping[str, Any]

_UNSTATED = "not stated"
_MODELS = {
    "central": (
        "Central model: tables",
        "Protects a privacy unit, with all of its rows, from everyone who sees the results. Who runs the pipeline sees "
        "the rows.",
    ),
    "local": (
        "Local model: responses",
        "Protects what one privacy unit answered from everyone who sees the responses alone.",
    ),
    "metric": (
        "Metric model: texts",
        "Protects words among words that are near to them. Epsilon counts per unit of distance, so it cannot be "
        "compared with that of another model. This is not user-level privacy.",
    ),
}
_COMPOSITIONS = {"pld": "privacy loss distributions (PLD)", "basic": "basic: all applications are added"}
_MEANINGS = {
    "epsilon_per_word": "of one word, per unit of distance",
    "delta_per_word": "of one word",
    "diameter": "no two words of the index are farther apart",
    "max_words": "words of a document that are drawn, at most",
    "epsilon_per_document": "of a document, per unit of the largest distance over its positions",
    "epsilon_per_document_summed_metric": "of a document, per unit of the sum of distances over its positions",
    "delta_per_document": "of a document",
    "worst_case_per_document": "epsilon between any two documents of which as many words are drawn; without unit",
}


def render_page(
    entries: Sequence[Entry],
    totals: Mapping[str, Total | None],
    shares: Sequence[Mapping[str, Any]] = (),
    *,
    plan_hash: str,
    sealed: bool,
) -> str:
    """The page of one ledger.

    Args:
        entries: of the ledger.
        totals: as `beam_dp.accounting.composition.compose` states them for the entries.
        shares: what was declared, as the ledger's JSON holds it.
        plan_hash: of the ledger.
        sealed: whether the plan is final.

    Raises:
        ArgumentError: there is something to draw, and matplotlib is not installed.
    """
    state = "sealed: the plan is final" if sealed else "NOT SEALED: the plan may still change"
    head = node(
        "header",
        node("h1", "Privacy ledger"),
        node("p", "Plan ", node("code", plan_hash), f", {state}."),
        node("p", f"{_many(len(entries), 'mechanism')} recorded. Promises of different models are never added."),
    )
    present = [(model, total) for model, total in totals.items() if total is not None]
    absent = [model for model, total in totals.items() if total is None]
    sections = [_model_section(model, total, _of_model(entries, model)) for model, total in present]
    nothing = f"No mechanism of this ledger is in the {' or the '.join(absent)} model." if absent else None
    return document(
        f"Privacy ledger {plan_hash[:12]}",
        head,
        alarm([entry.label for entry in entries if is_open(entry)], "what these write"),
        node("h2", "What is promised"),
        *sections,
        None if nothing is None else node("p", nothing, class_="note"),
        _entries_section(entries) if entries else None,
        _assumptions_section(entries),
        _shares_section(shares) if shares else None,
    )


def alarm(names: Sequence[str], what: str) -> Element | None:
    """The box that says what no noise protects, None where there is no such thing."""
    if not names:
        return None
    return node(
        "section",
        node("h2", NOT_PRIVATE),
        node("p", f"No noise protects {what}: ", node("strong", ", ".join(names)), "."),
        class_="alarm",
        role="alert",
    )


def _model_section(model: str, total: Total, entries: Sequence[Entry]) -> Element:
    title, about = _MODELS[model]
    groups: Sequence[Total] = total["groups"]
    parts: list[Element | None] = [node("h3", title), node("p", about, class_="note")]
    if model == "metric":
        for index, group in enumerate(groups):
            parts += _metric_group(group, _in_group(entries, group), f"metric{index}")
        parts += _document(total, several=len(groups) > 1)
    else:
        if len(groups) > 1:
            parts.append(node("p", f"No total over all of them: {total['reason']}."))
        for index, group in enumerate(groups):
            parts += _unit_group(model, group, _in_group(entries, group), f"{model}{index}")
    return node("section", *parts, node("p", total["note"], class_="note"), id=f"model-{model}")


def _unit_group(model: str, group: Total, entries: Sequence[Entry], name: str) -> Iterator[Element | None]:
    """What one privacy unit of the central or local model is promised."""
    unit, epsilon, delta = group["privacy_unit"], group["epsilon"], group["delta"]
    yield node("h4", f"Privacy unit: {unit}")
    if epsilon is None:
        yield node("p", f"No total is stated: {group['reason']}.", class_="promise")
        return
    promise = central_promise if model == "central" else local_promise
    yield node("p", promise(unit, epsilon, delta), class_="promise")
    rows = [
        row("epsilon", str(epsilon)),
        row("delta", str(delta)),
        row("composition", _COMPOSITIONS[group["composition"]]),
    ]
    if group["composition"] == "pld":
        basic = group["basic"]
        rows += [
            row("epsilon by basic composition", str(basic["epsilon"])),
            row("delta by basic composition", str(basic["delta"])),
        ]
    rows += [
        row(
            f"of any {together['units']} units together",
            _UNSTATED if together["epsilon"] is None else f"epsilon {together['epsilon']}, delta {together['delta']}",
        )
        for together in group.get("group_privacy", ())
    ]
    yield table(("total", "value"), rows, label=f"Total of {unit} in the {model} model")
    if model == "central":
        yield from _curve(central_curve(entries, epsilon=epsilon, delta=delta), epsilon, delta, unit, f"{name}curve")
    said = f"Parts of epsilon for one {unit}, by basic composition"
    if group["composition"] == "pld":
        said += f", which adds up to more than the total by PLD, {exact(epsilon)}"
    yield _parts(entries, f"{said}.", f"{name}parts", each_application=False)


def _metric_group(group: Total, entries: Sequence[Entry], name: str) -> Iterator[Element | None]:
    """What the words of one index are promised."""
    yield node("h4", f"Words, {group['metric']} metric of index ", node("code", group["index_digest"]))
    epsilon, delta = group["epsilon_per_word"], group["delta_per_word"]
    if epsilon is None:
        yield node("p", f"No total is stated: {group['reason']}.", class_="promise")
        return
    yield node("p", word_promise(group["metric"], epsilon, delta, group["diameter"]), class_="promise")
    rows = [
        row(key, _UNSTATED if group[key] is None else str(group[key]), meaning) for key, meaning in _MEANINGS.items()
    ]
    yield table(("total", "value", "what it is"), rows, label="Totals of the metric model", class_="total tall")
    if group["reason"]:
        yield node("p", f"Not all is stated: {group['reason']}.")
    by_word = group["epsilon_per_document"] is None
    whose = "one word" if by_word else "one document, under the largest distance over its positions"
    yield _parts(
        entries,
        f"Parts of epsilon for {whose}, per unit of distance, by basic composition.",
        f"{name}parts",
        each_application=by_word,
    )


def _document(total: Total, *, several: bool) -> Iterator[Element]:
    """What a whole document is promised, over all indexes."""
    worst, delta = total["worst_case_per_document"], total["delta_per_document"]
    if worst is None and several:
        yield node("p", f"No worst case of a document over all indexes is stated: {total['reason']}.")
    if worst is None or delta is None:
        return
    yield node("h4", "Whole documents" + (", over all indexes" if several else ""))
    yield node("p", document_promise(worst, delta), class_="promise")
    if several:
        rows = [row(key, str(total[key]), _MEANINGS[key]) for key in ("worst_case_per_document", "delta_per_document")]
        yield table(
            ("total", "value", "what it is"), rows, label="Totals of documents over all indexes", class_="total tall"
        )


def _curve(curve: Curve | None, epsilon: float, delta: float, unit: str, name: str) -> Iterator[Element]:
    """Picture and table of a curve, or a line that says that there is none."""
    if curve is None:
        yield node("p", "No curve of epsilon over delta: at none has it a finite epsilon by PLD.", class_="note")
        return
    (least, highest), (most, lowest) = curve.points[0], curve.points[-1]
    about = (
        f"Curve of epsilon over delta for {unit}: it falls from epsilon {_up(highest)} at delta {exact(least)} to "
        f"epsilon {_up(lowest)} at delta {exact(most)}. The stated total is epsilon {exact(epsilon)} at delta "
        f"{exact(delta)}."
    )
    caption = (
        f"What was recorded for {unit} holds at each of these deltas with the epsilon that the curve has there, by "
        "privacy loss distributions; in the table epsilon is rounded up. It is one promise seen from many sides: "
        "nothing more is spent."
    )
    excerpt = curve.excerpt()
    yield node(
        "figure",
        curve_picture(curve, epsilon=epsilon, delta=delta, name=name, about=about),
        table(
            ("delta", *(exact(at) for at, _ in excerpt)),
            [row("epsilon", *(_up(found) for _, found in excerpt))],
            label=f"Points of the curve for {unit}",
        ),
        node("figcaption", caption),
    )


def _parts(entries: Sequence[Entry], caption: str, name: str, *, each_application: bool) -> Element | None:
    parts = parts_of(entries, each_application=each_application)
    if parts is None or len(entries) == 1:
        return None
    largest = max(parts, key=lambda part: part.epsilon)
    about = f"{caption} Number of parts: {len(parts)}; the largest is {largest.name}."
    return node("figure", parts_picture(parts, name=name, about=about), node("figcaption", caption))


def _entries_section(entries: Sequence[Entry]) -> Element:
    rows = []
    for number, entry in enumerate(entries, start=1):
        share = None if entry.share is None else node("p", f"share {entry.share}", class_="note")
        rows.append(
            row(
                node("div", f"{number}. {entry.label}", share),
                node("code", entry.mechanism),
                node("div", entry.guarantee.sentence()),
                "?" if entry.max_applications is None else str(entry.max_applications),
                class_="open" if is_open(entry) else None,
            )
        )
    return node(
        "section",
        node("h2", "What was recorded"),
        table(
            ("label", "mechanism", "promise of one use", "uses"),
            rows,
            caption="uses: how often a mechanism meets one privacy unit at most (text: words of one document)",
            label="Entries of the ledger",
            class_="entries tall",
        ),
        id="entries",
    )


def _assumptions_section(entries: Sequence[Entry]) -> Element | None:
    """What the promises assume, each once, with the numbers of the entries that do."""
    assumptions: dict[str, list[int]] = {}
    for number, entry in enumerate(entries, start=1):
        for said in assumed(entry):
            assumptions.setdefault(said, []).append(number)
    if not assumptions:
        return None
    return node(
        "section",
        node("h2", "What is assumed"),
        node("p", "The promises hold if this is so. Nothing here enforces it."),
        node("ul", *(node("li", f"{said} (recorded: {_ranges(numbers)})") for said, numbers in assumptions.items())),
        id="assumptions",
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 1 to 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)


def _shares_section(shares: Sequence[Mapping[str, Any]]) -> Element:
    parts: list[Element] = [node("h2", "What was declared")]
    for declared in shares:
        per_word = " per word" if declared["model"] == "metric" else ""
        rows = [
            row(part["name"], str(part["epsilon"]), str(part["delta"]), part["drawn_by"] or "nobody drew it")
            for part in declared["parts"]
        ]
        rows.append(row("declared total", str(declared["epsilon"]), str(declared["delta"]), "", class_="sum"))
        parts += [
            node("h3", f"Shares of the {declared['model']} model{per_word}"),
            table(("share", "epsilon", "delta", "drawn by"), rows, label=f"Shares of the {declared['model']} model"),
        ]
    return node("section", *parts, id="shares")


def _of_model(entries: Sequence[Entry], model: str) -> list[Entry]:
    return [entry for entry in entries if entry.guarantee.model == model]


def _in_group(entries: Sequence[Entry], group: Total) -> list[Entry]:
    """The entries of one model that a group is about."""
    members = []
    for entry in entries:
        fields = entry.to_json()
        names = ("metric", "index_digest") if isinstance(entry.guarantee, MetricGuarantee) else ("privacy_unit",)
        if all(fields[name] == group[name] for name in names):
            members.append(entry)
    return members


def _up(epsilon: float) -> str:
    """An epsilon of the curve on the grid of totals, rounded up."""
    found = round_up(Fraction(epsilon))
    return _UNSTATED if found is None else exact(found)


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
