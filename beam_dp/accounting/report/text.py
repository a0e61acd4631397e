"""A ledger as plain text for people, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_dp.accounting.composition import NOT_PRIVATE
from beam_dp.accounting.entries import Entry
from beam_dp.accounting.report.wording import printable

WIDTH = 100
_COLUMNS = (("label", 22), ("mechanism", 34), ("promise", 30), ("uses", 8))
_GAP = "  "
_VALUE_WIDTH = 32  # half a digest is enough to tell indexes apart; no number is longer
_UNSTATED = "not stated"


def render_text(entries: Sequence[Entry], totals: Mapping[str, Any], shares: Sequence[Mapping[str, Any]] = ()) -> str:
    """The entries as a table, then the totals of each model that has entries, and the shares that were declared."""
    lines: list[str] = []
    open_doors = [entry.label for entry in entries if str(entry.guarantee.reason).startswith(NOT_PRIVATE)]
    if open_doors:
        lines += [NOT_PRIVATE, *_wrapped(f"no noise protects what these write: {', '.join(open_doors)}", "  "), ""]
    if not entries:
        return "empty ledger: no mechanism was recorded\n"
    lines += _row([name for name, _ in _COLUMNS])
    lines.append(_GAP.join("-" * width for _, width in _COLUMNS))
    for entry in entries:
        uses = "?" if entry.max_applications is None else str(entry.max_applications)
        lines += _row([entry.label, entry.mechanism, entry.guarantee.sentence(), uses])
    lines += ["", "uses: how often a mechanism meets one privacy unit at most (text: words of one document)"]
    for model, total in totals.items():
        if total is not None:
            lines += ["", *_model_lines(model, total)]
    for declared in shares:
        lines += ["", *_share_lines(declared)]
    return "\n".join(lines) + "\n"


def _model_lines(model: str, total: Mapping[str, Any]) -> Iterable[str]:
    yield from _wrapped(
        f"{model} total ({_composition(total)} composition, unit: {total['privacy_unit'] or 'several'})", ""
    )
    yield from _values(total)
    if len(total["groups"]) > 1:
        for group in total["groups"]:
            unit = (
                "on one index:"
                if "metric" in group
                else f"unit {group['privacy_unit']} ({_composition(group)} composition):"
            )
            yield from _wrapped(unit, "  ")
            yield from _values(group, indent="    ")
    yield from _wrapped(total["note"], "  ")


def _share_lines(declared: Mapping[str, Any]) -> Iterable[str]:
    per_word = " per word" if declared["model"] == "metric" else ""
    yield f"{declared['model']} shares of epsilon {declared['epsilon']}, delta {declared['delta']}{per_word}"
    for part in declared["parts"]:
        drawn = "nobody drew it" if part["drawn_by"] is None else f"drawn by {part['drawn_by']}"
        yield from _wrapped(f"{part['name']}: epsilon {part['epsilon']}, delta {part['delta']}; {drawn}", "  ")


def _composition(total: Mapping[str, Any]) -> str:
    return {"pld": "PLD", "basic": "basic"}.get(total["composition"], "several kinds of")


def _values(total: Mapping[str, Any], indent: str = "  ") -> Iterable[str]:
    """One line for each number of a total, in the order of the total, and what else is known of the total."""
    skipped = ("composition", "privacy_unit", "note", "groups", "reason", "basic", "group_privacy")
    for name, value in total.items():
        if name not in skipped:
            yield f"{indent}{name:<36}{_UNSTATED if value is None else printable(str(value))[:_VALUE_WIDTH]}"
    if total["reason"]:
        yield from _wrapped(f"{_UNSTATED}: {total['reason']}", indent)
    elif "group_privacy" in total:
        if total["composition"] == "pld":
            yield f"{indent}{'epsilon by basic composition':<36}{total['basic']['epsilon']}"
        for group in total["group_privacy"]:
            yield f"{indent}{'of any ' + str(group['units']) + ' units together':<36}{_group_claim(group)}"


def _group_claim(group: Mapping[str, Any]) -> str:
    """The claim with all its digits; the total's note says where there is none."""
    return _UNSTATED if group["epsilon"] is None else f"epsilon {group['epsilon']}, delta {group['delta']}"


def _wrapped(text: str, indent: str) -> list[str]:
    # Not at hyphens: 1e-06 is one word.
    return textwrap.wrap(
        printable(text), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _row(cells: Sequence[str]) -> list[str]:
    """One table row, each cell wrapped to its column's width."""
    wrapped = [
        textwrap.wrap(printable(cell), width, break_on_hyphens=False) or [""]
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    ]
    height = max(map(len, wrapped))
    padded = [lines + [""] * (height - len(lines)) for lines in wrapped]
    return [
        _GAP.join(line.ljust(width) for line, (_, width) in zip(row, _COLUMNS, strict=True)).rstrip()
        for row in zip(*padded, strict=True)
    ]
