"""What the pictures of a ledger show, as numbers: the curve of a central total, and which part of it is whose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from beam_dp.accounting.composition import loss_of
from beam_dp.accounting.entries import Entry
from beam_dp.accounting.pld import pld_epsilon

# The curve reaches from 1e-12 to 1e-2, and to a decade beyond the stated delta, which is then inside.
_FIRST_DECADE, _LAST_DECADE = -12, -2
_LEAST_DECADE = -323  # of the floats
_POINTS_A_DECADE = 4
# That many numbers with all their digits fit side by side.
_FEW_POINTS = 6


@dataclass(frozen=True)
class Curve:
    """What the entries of one privacy unit promise together at other deltas.

    Attributes:
        points: (delta, epsilon) with delta ascending.
    """

    points: tuple[tuple[float, float], ...]

    def excerpt(self) -> tuple[tuple[float, float], ...]:
        """The points whose delta is an even power of ten, or a power of ten where there are few."""
        whole = [point for point in self.points if point[0] in _powers(_LEAST_DECADE, -1)]
        even = [point for point in whole if point[0] in _powers(_LEAST_DECADE, -1, 2)]
        return tuple(whole if len(whole) <= _FEW_POINTS else even)


@dataclass(frozen=True)
class Part:
    """What one entry, or all entries of one named share, take of a sum.

    Attributes:
        name: label of the entry, or name of the share.
        pieces: epsilon of each entry in it, all its applications added.
    """

    name: str
    pieces: tuple[Fraction, ...]

    @property
    def epsilon(self) -> Fraction:
        """Of all pieces together, exactly."""
        return sum(self.pieces, Fraction(0))


def central_curve(entries: Sequence[Entry], *, epsilon: float, delta: float) -> Curve | None:
    """The curve of the entries of one privacy unit, None where privacy loss distributions give none.

    At each delta it is the epsilon by `pld_epsilon`, or the stated one if that is less: what holds at the stated delta
    holds at every larger one.

    Args:
        entries: central ones with one privacy unit, not empty.
        epsilon: of their stated total.
        delta: of their stated total; the curve has a point there, unless it is 0.
    """
    losses = []
    for entry in entries:
        if entry.guarantee.epsilon is None or entry.max_applications is None:
            return None
        losses.append((loss_of(entry), entry.max_applications))
    deltas = _deltas(delta)
    found = {at: pld_epsilon(tuple(losses), at) for at in deltas}
    if not any(value is not None for value in found.values()):
        return None
    stated = {at: epsilon for at in deltas if at >= delta}
    least = ((at, [value for value in (found[at], stated.get(at)) if value is not None]) for at in deltas)
    return Curve(tuple((at, min(values)) for at, values in least if values))


def _deltas(stated: float) -> list[float]:
    first, last = _FIRST_DECADE, _LAST_DECADE
    if stated:
        first = max(min(first, math.floor(math.log10(stated)) - 1), _LEAST_DECADE)
        last = max(last, min(math.ceil(math.log10(stated)) + 1, -1))
    whole = _powers(first, last)
    steps = {10.0 ** (step / _POINTS_A_DECADE) for step in range(first * _POINTS_A_DECADE, last * _POINTS_A_DECADE)}
    between = {at for at in steps if not any(math.isclose(at, power) for power in whole)}
    return sorted(whole | between | ({stated} if stated else set()))


def _powers(first: int, last: int, step: int = 1) -> set[float]:
    # As they are written: 10.0**-5 is another float than 1e-5.
    return {float(f"1e{power}") for power in range(first, last + 1) if power % step == 0}


def parts_of(entries: Sequence[Entry], *, each_application: bool) -> tuple[Part, ...] | None:
    """The parts of the sum of epsilons, in the order of the entries; those with a named share are one part.

    Args:
        entries: of one total.
        each_application: whether an entry counts once, instead of as often as it is applied.

    Returns:
        None where an entry has no epsilon, or nobody knows how often it is applied.
    """
    pieces: dict[tuple[bool, str], list[Fraction]] = {}
    for entry in entries:
        count = 1 if each_application else entry.max_applications
        if entry.guarantee.epsilon is None or count is None:
            return None
        named = entry.share is not None
        key = (named, entry.share if entry.share is not None else entry.label)
        pieces.setdefault(key, []).append(Fraction(entry.guarantee.epsilon) * count)
    return tuple(Part(name, tuple(epsilons)) for (_, name), epsilons in pieces.items())
