"""Exact sums as floats that are not below them, and exact parts as floats that are not above them."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

_NANO = 10**9


def round_up(total: Fraction | int) -> float | None:
    """``total`` as the least whole number of nano-epsilon whose float is not below it; None beyond the floats."""
    exact = Fraction(total)
    below = math.floor(exact * _NANO)
    for nano in (below, below + 1):
        candidate = _to_float(Fraction(nano, _NANO))
        if candidate is not None and Fraction(candidate) >= exact:
            return candidate
    # Above 2**53 nano-epsilon the floats are coarser than the grid.
    return float_up(exact)


def float_up(exact: Fraction) -> float | None:
    """The least float that is not below ``exact``, or None beyond the floats."""
    nearest = _to_float(exact)
    if nearest is None or Fraction(nearest) >= exact:
        return nearest
    above = math.nextafter(nearest, math.inf)
    return above if above <= sys.float_info.max else None


def written_up(exact: Fraction) -> float | None:
    """A float near ``exact``, at least 0, whose shortest digits are not below it; None beyond the floats."""
    nearest = _to_float(exact)
    if nearest is None or Fraction(repr(nearest)) >= exact:
        return nearest
    above = math.nextafter(nearest, math.inf)
    return above if above <= sys.float_info.max else None


def round_down(part: Fraction) -> float:
    """``part``, at least 0, as the largest whole number of nano-epsilon whose float is not above it.

    A sum of such numbers that is within one of them stays within it after `round_up`.
    """
    below = math.floor(part * _NANO)
    for nano in (below + 1, below, below - 1):
        candidate = float(Fraction(nano, _NANO))
        if 0 <= Fraction(candidate) <= part:
            return candidate
    return float_down(part)


def float_down(exact: Fraction) -> float:
    """The largest float that is not above ``exact``, which is at least 0 and within the floats."""
    nearest = float(exact)
    return nearest if Fraction(nearest) <= exact else math.nextafter(nearest, 0.0)


def _to_float(exact: Fraction) -> float | None:
    try:
        return float(exact)
    except OverflowError:
        return None
