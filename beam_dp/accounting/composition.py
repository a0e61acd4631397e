"""Totals of a ledger: one function per privacy model, none of which adds across models.

Every sum is exact (`fractions.Fraction`) and rounded once, upwards: a total is never below the sum of what the
mechanisms spend. Epsilons are rounded up to a whole number of 1e-9 (nano-epsilon), deltas to the next float.

A total that cannot be stated is null, and ``reason`` says why.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from beam_dp.accounting.entries import METRIC_PRIVACY_UNIT, Entry
from beam_dp.guarantees import CentralGuarantee, LocalGuarantee, MetricGuarantee

NOT_PRIVATE = "NOT PRIVATE"
_NANO = 10**9
_METRIC_NOTE = (
    "Entries on the same metric and index are added as if they met the same document, which bounds every use from "
    "above. epsilon_per_document is under the maximum distance over positions, epsilon_per_document_summed_metric "
    "under the sum of the distances, worst_case_per_document over any two documents of which as many words are drawn. "
    "This is not user-level privacy: a person's documents add up."
)
_TOO_LARGE = "a sum exceeds the largest float"
_UNIT_NOTE = "Basic composition: epsilons and deltas of all applications to one privacy unit are added."


def compose(entries: Sequence[Entry]) -> dict[str, Any]:
    """The totals of a ledger: one object per model, None where the ledger has no entry of it."""
    return {
        "central": compose_central([entry for entry in entries if isinstance(entry.guarantee, CentralGuarantee)]),
        "local": compose_local([entry for entry in entries if isinstance(entry.guarantee, LocalGuarantee)]),
        "metric": compose_metric([entry for entry in entries if isinstance(entry.guarantee, MetricGuarantee)]),
    }


def compose_metric(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Totals of metric entries, each group of equal (metric, index digest) on its own.

    Let entry i promise (ε_i, δ_i) per word and unit of distance and be applied to at most m_i words of a document.
    Fix two documents x, x' with the same number of in-vocabulary words and let d_j be the distance of their j-th
    words. For one pair of words, entry i is (ε_i·d_j, δ_i)-indistinguishable, and draws are independent, so by basic
    composition for a fixed pair of inputs (Dwork and Roth 2014, Theorem 3.16, whose proof never uses that the
    inputs are neighbours) over words and entries:

    * under the summed metric D = Σ_j d_j: Σ_i Σ_j ε_i·d_j = (Σ_i ε_i)·D;
    * under the maximum D = max_j d_j: Σ_i Σ_(j<m_i) ε_i·d_j <= (Σ_i ε_i·m_i)·D;
    * over any x, x': d_j <= diameter_i gives the unitless Σ_i ε_i·m_i·diameter_i;
    * δ: Σ_i m_i·δ_i per document, Σ_i δ_i per word. A sum of 1 or more promises nothing, and all per-document values
      that it goes with are null.

    Entries that meet different documents spend less than that. Epsilons of different metrics or digests have different
    units and are never added; the worst case has no unit and is.
    """
    if not entries:
        return None
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        guarantee = entry.guarantee
        assert isinstance(guarantee, MetricGuarantee)
        groups.setdefault((guarantee.metric, guarantee.index_digest), []).append(entry)
    parts = [
        {"metric": metric, "index_digest": digest} | _metric_sums(members)
        for (metric, digest), members in groups.items()
    ]
    total = dict(parts[0]) if len(parts) == 1 else _across_groups(entries)
    return total | {
        "composition": "basic",
        "privacy_unit": METRIC_PRIVACY_UNIT,
        "note": _METRIC_NOTE,
        "groups": parts,
    }


def compose_local(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Totals of local entries; see `_compose_per_unit`."""
    return _compose_per_unit(entries)


def compose_central(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Totals of central entries; see `_compose_per_unit`."""
    return _compose_per_unit(entries)


def _compose_per_unit(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Basic composition for one privacy unit.

    If entry i promises (ε_i, δ_i) to a unit and meets it at most m_i times, all of them together promise
    (Σ m_i·ε_i, Σ m_i·δ_i) (Dwork and Roth 2014, Theorem 3.16). Different privacy units protect different things:
    their sums are listed under ``groups`` and are not added.
    """
    if not entries:
        return None
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        guarantee = entry.guarantee
        assert isinstance(guarantee, (LocalGuarantee, CentralGuarantee))
        groups.setdefault(guarantee.privacy_unit, []).append(entry)
    parts = [{"privacy_unit": unit} | _unit_sums(members) for unit, members in groups.items()]
    if len(parts) == 1:
        total = dict(parts[0])
    else:
        total = {
            "privacy_unit": None,
            "epsilon": None,
            "delta": None,
            "reason": "entries protect different privacy units",
        }
    return total | {"composition": "basic", "note": _UNIT_NOTE, "groups": parts}


def _metric_sums(entries: Sequence[Entry]) -> dict[str, Any]:
    """The totals of entries on one metric and index."""
    bounds = [entry.max_applications for entry in entries]
    diameters = [entry.diameter for entry in entries]
    sums: dict[str, Any] = {
        "epsilon_per_word": None,
        "delta_per_word": None,
        "diameter": None if None in diameters else max(d for d in diameters if d is not None),
        "max_words": None if None in bounds else max(m for m in bounds if m is not None),
        "epsilon_per_document": None,
        "epsilon_per_document_summed_metric": None,
        "delta_per_document": None,
        "worst_case_per_document": None,
        "reason": _unstated(entries),
    }
    if sums["reason"]:
        return sums
    delta_word = _delta_sum((1, entry) for entry in entries)
    if delta_word is None:
        return sums | {"reason": "the deltas of one word add up to 1 or more"}
    sums |= {"epsilon_per_word": round_up(sum(map(_epsilon, entries))), "delta_per_word": delta_word}
    if None in bounds:
        return sums | {"reason": _unbounded(entries)}
    delta_document = _delta_sum((entry.max_applications or 0, entry) for entry in entries)
    if delta_document is None:
        return sums | {"reason": "the deltas of the words of one document add up to 1 or more"}
    sums |= {
        "epsilon_per_document": round_up(sum(_epsilon(e) * (e.max_applications or 0) for e in entries)),
        "epsilon_per_document_summed_metric": sums["epsilon_per_word"],
        "delta_per_document": delta_document,
    }
    if None in diameters:
        return sums | {"reason": "no diameter is known for every entry, so the worst case is not bounded"}
    sums |= {"worst_case_per_document": _worst_case(entries)}
    return sums | {
        "reason": _TOO_LARGE if None in (sums["epsilon_per_document"], sums["worst_case_per_document"]) else None
    }


def _across_groups(entries: Sequence[Entry]) -> dict[str, Any]:
    """The totals of entries on several metrics or indexes: the unitless ones alone."""
    total: dict[str, Any] = {
        "metric": None,
        "index_digest": None,
        "epsilon_per_word": None,
        "delta_per_word": None,
        "diameter": None,
        "max_words": None,
        "epsilon_per_document": None,
        "epsilon_per_document_summed_metric": None,
        "delta_per_document": None,
        "worst_case_per_document": None,
        "reason": "entries are on different metrics or indexes, whose epsilons have different units; see groups",
    }
    unstated = _unstated(entries)
    if unstated:
        return total | {"reason": unstated}
    if any(entry.max_applications is None or entry.diameter is None for entry in entries):
        return total
    delta = _delta_sum((entry.max_applications or 0, entry) for entry in entries)
    if delta is None:
        return total
    return total | {"delta_per_document": delta, "worst_case_per_document": _worst_case(entries)}


def _unit_sums(entries: Sequence[Entry]) -> dict[str, Any]:
    """Sums of m_i·ε_i and m_i·δ_i over entries on one privacy unit."""
    reason = _unstated(entries)
    if not reason and any(entry.max_applications is None for entry in entries):
        reason = _unbounded(entries)
    if reason:
        return {"epsilon": None, "delta": None, "reason": reason}
    delta = _delta_sum((entry.max_applications or 0, entry) for entry in entries)
    if delta is None:
        return {"epsilon": None, "delta": None, "reason": "the deltas of one privacy unit add up to 1 or more"}
    epsilon = round_up(sum(_epsilon(e) * (e.max_applications or 0) for e in entries))
    return {"epsilon": epsilon, "delta": delta, "reason": _TOO_LARGE if epsilon is None else None}


def _unstated(entries: Sequence[Entry]) -> str | None:
    """Why no epsilon can be summed over ``entries``, or None. An entry that is not private comes first."""
    reasons = [
        (not str(entry.guarantee.reason).startswith(NOT_PRIVATE), f"{entry.guarantee.reason} ({entry.label})")
        for entry in entries
        if entry.guarantee.epsilon is None
    ]
    return min(reasons, key=lambda pair: pair[0])[1] if reasons else None


def _unbounded(entries: Sequence[Entry]) -> str:
    label = next(entry.label for entry in entries if entry.max_applications is None)
    return f"{label} declares no maximum of applications to one privacy unit"


def _epsilon(entry: Entry) -> Fraction:
    assert entry.guarantee.epsilon is not None
    return Fraction(entry.guarantee.epsilon)


def _worst_case(entries: Sequence[Entry]) -> float | None:
    return round_up(sum(_epsilon(e) * (e.max_applications or 0) * Fraction(e.diameter or 0.0) for e in entries))


def _delta_sum(terms: Iterable[tuple[int, Entry]]) -> float | None:
    """Σ count·δ rounded up to a float, or None where it is 1 or more."""
    total = sum((count * Fraction(entry.guarantee.delta) for count, entry in terms), Fraction(0))
    return _float_up(total) if total < 1 else None


def round_up(total: Fraction | int) -> float | None:
    """``total`` as the least whole number of nano-epsilon whose float is not below it; None beyond the floats."""
    exact = Fraction(total)
    below = math.floor(exact * _NANO)
    for nano in (below, below + 1):
        candidate = _to_float(Fraction(nano, _NANO))
        if candidate is not None and Fraction(candidate) >= exact:
            return candidate
    # Above 2**53 nano-epsilon the floats are coarser than the grid.
    return _float_up(exact)


def _float_up(exact: Fraction) -> float | None:
    """The least float that is not below ``exact``, or None beyond the floats."""
    nearest = _to_float(exact)
    if nearest is None or Fraction(nearest) >= exact:
        return nearest
    above = math.nextafter(nearest, math.inf)
    return above if above <= sys.float_info.max else None


def _to_float(exact: Fraction) -> float | None:
    try:
        return float(exact)
    except OverflowError:
        return None
