"""Totals of a ledger: one function per privacy model, none of which adds across models.

Every sum is exact (`fractions.Fraction`) and rounded once, upwards: a total is never below the sum of what the
mechanisms spend, or, for central totals by privacy loss distributions, below what they lose together. Epsilons are
rounded up to a whole number of 1e-9 (nano-epsilon), deltas to the next float.

A total that cannot be stated is null, and ``reason`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from beam_dp.accounting.entries import METRIC_PRIVACY_UNIT, Entry
from beam_dp.accounting.loss import ParametersLoss, PrivacyLoss
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.accounting.rounding import float_up, round_up
from beam_dp.guarantees import CentralGuarantee, LocalGuarantee, MetricGuarantee

NOT_PRIVATE = "NOT PRIVATE"
_METRIC_NOTE = (
    "Entries on the same metric and index are added as if they met the same document, which bounds every use from "
    "above. epsilon_per_document is under the maximum distance over positions, epsilon_per_document_summed_metric "
    "under the sum of the distances, worst_case_per_document over any two documents of which as many words are drawn. "
    "This is not user-level privacy: a person's documents add up."
)
_TOO_LARGE = "a sum exceeds the largest float"
_LOCAL_NOTE = "Basic composition: epsilons and deltas of all applications to one privacy unit are added."
_CENTRAL_NOTE = (
    "Basic composition adds epsilons and deltas of all applications to one privacy unit. PLD composition takes the "
    "same delta and the epsilon that the privacy loss distributions of the mechanisms have together. Group privacy is "
    "what holds for that many privacy units at once; it is not stated where their delta would reach 1."
)
_GROUP_SIZES = (2, 5, 10)
_WORTH_SAYING = 1 - 1e-6
_LARGEST_EXPONENT = 700.0  # whose exp is a float


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
    """Totals of local entries by basic composition; see `_compose_per_unit`."""
    return _compose_per_unit(entries, _basic_total, _LOCAL_NOTE)


def compose_central(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """Totals of central entries, by privacy loss distributions where they give less; see `_compose_per_unit`."""
    return _compose_per_unit(entries, _central_total, _CENTRAL_NOTE)


def _compose_per_unit(
    entries: Sequence[Entry], total_of: Callable[[Sequence[Entry]], dict[str, Any]], note: str
) -> dict[str, Any] | None:
    """The totals of each privacy unit, which ``total_of`` states.

    Different privacy units protect different things: their totals are listed under ``groups`` and are not added.
    """
    if not entries:
        return None
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        guarantee = entry.guarantee
        assert isinstance(guarantee, (LocalGuarantee, CentralGuarantee))
        groups.setdefault(guarantee.privacy_unit, []).append(entry)
    parts = [{"privacy_unit": unit} | total_of(members) for unit, members in groups.items()]
    if len(parts) == 1:
        return parts[0] | {"note": note, "groups": parts}
    compositions = {part["composition"] for part in parts}
    return {
        "privacy_unit": None,
        "epsilon": None,
        "delta": None,
        "composition": compositions.pop() if len(compositions) == 1 else None,
        "reason": "entries protect different privacy units",
        "note": note,
        "groups": parts,
    }


def _basic_total(entries: Sequence[Entry]) -> dict[str, Any]:
    """Basic composition for one privacy unit.

    If entry i promises (ε_i, δ_i) to a unit and meets it at most m_i times, all of them together promise
    (Σ m_i·ε_i, Σ m_i·δ_i) (Dwork and Roth 2014, Theorem 3.16).
    """
    return _unit_sums(entries) | {"composition": "basic"}


def _central_total(entries: Sequence[Entry]) -> dict[str, Any]:
    """Basic composition for one privacy unit and the epsilon by privacy loss distributions.

    The latter is at the delta of the former and what the entries set aside for composition.

    Every entry has a dominating pair, its ``loss`` or else the one that its (ε, δ) implies, and the pairs' product,
    each taken m_i times, dominates all applications together: see `beam_dp.accounting.loss`. The smaller epsilon of the
    two is the total; one that differs in its last digits alone is not worth an odd number.
    """
    sums = _unit_sums(entries)
    basic = {"epsilon": sums["epsilon"], "delta": sums["delta"]}
    epsilon, delta = None, None
    if basic["epsilon"] is not None:
        delta = _delta_sum(((entry.max_applications or 0, entry) for entry in entries), with_spare=True)
    if delta:
        epsilon = pld_epsilon(tuple((loss_of(entry), entry.max_applications or 0) for entry in entries), delta)
    better = None if epsilon is None else round_up(Fraction(epsilon))
    by_pld = better is not None and better < basic["epsilon"] * _WORTH_SAYING
    total = sums | ({"epsilon": better, "delta": delta} if by_pld else {})
    return total | {
        "composition": "pld" if by_pld else "basic",
        "basic": basic,
        "group_privacy": [group_privacy(total["epsilon"], total["delta"], units) for units in _GROUP_SIZES],
    }


def group_privacy(epsilon: float | None, delta: float | None, units: int) -> dict[str, Any]:
    """What (epsilon, delta) promises to ``units`` privacy units at once.

    Between two data sets that differ by k units lie k - 1 others, each a neighbour of the next, so for every S
    P[M(D_0) in S] <= e^ε·P[M(D_1) in S] + δ <= ... <= e^(kε)·P[M(D_k) in S] + δ·(1 + e^ε + ... + e^((k-1)ε)),
    and that sum is (e^(kε) - 1)/(e^ε - 1) (Dwork and Roth 2014, Theorem 2.2; Vadhan 2017, Lemma 2.2).

    Returns:
        units, epsilon and delta, both rounded up; both None where the delta is 1 or more, or there is nothing to scale.
    """
    unstated = {"units": units, "epsilon": None, "delta": None}
    if epsilon is None or delta is None:
        return unstated
    group_epsilon = round_up(Fraction(epsilon) * units)
    if not delta:
        return unstated | ({} if group_epsilon is None else {"epsilon": group_epsilon, "delta": 0.0})
    if epsilon * (units - 1) > min(-math.log(delta), _LARGEST_EXPONENT):
        return unstated
    # exp is within one float of the truth: the next one is not below it.
    factor = sum(Fraction(math.nextafter(math.exp(epsilon * step), math.inf)) for step in range(units))
    group_delta = Fraction(delta) * factor
    return unstated | ({"epsilon": group_epsilon, "delta": float_up(group_delta)} if group_delta < 1 else {})


def loss_of(entry: Entry) -> PrivacyLoss:
    """What one application of a central entry with an epsilon loses at most: its loss, or what its claim implies."""
    if entry.loss is not None:
        return entry.loss
    assert entry.guarantee.epsilon is not None
    return ParametersLoss(entry.guarantee.epsilon, entry.guarantee.delta)


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


def _delta_sum(terms: Iterable[tuple[int, Entry]], *, with_spare: bool = False) -> float | None:
    """Σ count·δ rounded up to a float, or None where it is 1 or more; with what is set aside for composition or not."""
    total = Fraction(0)
    for count, entry in terms:
        spare = Fraction(entry.composition_delta) if with_spare else Fraction(0)
        total += count * (Fraction(entry.guarantee.delta) + spare)
    return float_up(total) if total < 1 else None
