"""Numbers and foreign text as people read them. A claim is shown exactly or rounded up, never down."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction

from beam_dp.accounting.rounding import round_up

# Digits of e^epsilon - 1 that are shown, and the decimals beyond which a factor close to 1 is rounded up to.
_DIGITS, _MOST_DECIMALS = 5, 7
_LARGEST_IN_DIGITS = 10**12
_WORTHLESS = 14.0  # e^14 is above a million
_PRECISION = decimal.Context(prec=60, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
_FEW_DIGITS = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING)


def exact(number: float) -> str:
    """``number`` with all its digits."""
    return repr(float(number)).removesuffix(".0")


def factor(epsilon: float) -> str:
    """e^epsilon, rounded up: five digits of what is above 1, and a power of ten where that would be long.

    Args:
        epsilon: finite, at least 0.
    """
    # Of the float and of the digits that are shown for it, whichever is more.
    exponent = max(decimal.Decimal(epsilon), decimal.Decimal(repr(float(epsilon))))
    tens = _PRECISION.divide(exponent, _PRECISION.ln(decimal.Decimal(10)))
    if tens >= 9:
        # Far more than the quotient can be below the truth.
        above = _PRECISION.multiply(tens, 1 + decimal.Decimal("1e-50"))
        return f"10^{_FEW_DIGITS.plus(above.to_integral_value(decimal.ROUND_CEILING))}"
    # exp is correctly rounded, so the next number is above the truth.
    value = _PRECISION.next_plus(_PRECISION.exp(exponent))
    decimals = min(_DIGITS - 1 - (value - 1).adjusted(), _MOST_DECIMALS)
    step = decimal.Decimal(1).scaleb(-decimals)
    up = value.quantize(step, rounding=decimal.ROUND_CEILING, context=_PRECISION)
    return f"{up:,f}"


def times_as_likely(epsilon: float) -> str:
    """The promise of epsilon in words, after "becomes"."""
    said = f"more than {factor(epsilon)} times as likely (e^{exact(epsilon)}, rounded up)"
    return said if epsilon < _WORTHLESS else f"{said}, a factor so large that it limits nothing in practice"


def chance(delta: float) -> str:
    """delta with all its digits and, where that helps, as one in so many, which is not below those digits."""
    many = math.floor(1 / Fraction(repr(float(delta)))) if delta else 0
    return f"{exact(delta)} (at most 1 in {many:,d})" if 10 <= many < _LARGEST_IN_DIGITS else exact(delta)


def central_promise(unit: str, epsilon: float, delta: float | None) -> str:
    """What (epsilon, delta) promises one privacy unit of the central model."""
    return (
        f"Whether all rows of one {unit} are in the data or not: no result, and no set of results, becomes "
        f"{times_as_likely(epsilon)}{plus(delta)}."
    )


def local_promise(unit: str, epsilon: float, delta: float | None) -> str:
    """What (epsilon, delta) promises one privacy unit of the local model."""
    return (
        f"If one {unit} answers differently: no response, and no set of responses, becomes "
        f"{times_as_likely(epsilon)}{plus(delta)}."
    )


def word_promise(metric: str, epsilon: float, delta: float | None, diameter: float | None) -> str:
    """What (epsilon, delta) promises one word of the metric model, whose epsilon is per unit of distance."""
    said = (
        f"If a word is replaced by another one at distance d in the {metric} metric of the index: no set of outputs "
        f"becomes more than e^({exact(epsilon)} * d) times as likely{plus(delta)}. At distance 1 that is "
        f"{factor(epsilon)} times, rounded up"
    )
    farthest = None if diameter is None else round_up(Fraction(epsilon) * Fraction(diameter))
    return (
        f"{said}." if farthest is None else f"{said}; at the largest distance of two words, {factor(farthest)} times."
    )


def document_promise(epsilon: float, delta: float | None) -> str:
    """What the worst case of a document promises."""
    return (
        "If a whole text is replaced by any other one of which as many words are drawn: no set of outputs becomes "
        f"{times_as_likely(epsilon)}{plus(delta)}."
    )


def plus(delta: float | None) -> str:
    """What delta adds to a promise in words: nothing where it is 0."""
    return f", plus a probability of {chance(delta)}" if delta else ""


def printable(text: str) -> str:
    """``text`` on one line, without characters that control a terminal or have no place in XML."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
