"""Exact sums as floats that are not below them."""

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


def _to_float(exact: Fraction) -> float | None:
    try:
        return float(exact)
    except OverflowError:
        return None
