"""Coins whose probability is an exact real number, flipped by the million.

A coin of probability p lands heads if U < p for U uniform on [0, 1). The first 64 binary digits of U settle that unless
they equal those of p, which happens once in 2^64 flips; then more digits of both are compared until they differ, p
being enclosed in ever smaller rational intervals. So a flip has probability p exactly, not a rounded one, given
uniform bits; and it costs one random word and one comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]
Enclosure: TypeAlias = Callable[[int], tuple[Fraction, Fraction]]
"""Given n, an interval of non-negative numbers that holds p, at most 2^-n wide."""

_WORD = 64
_GUARD_DIGITS = 8
_LOG10_2 = math.log10(2)
# Far above the rounding errors of float64 in exp(-gamma), and so rare that it costs nothing.
_FLOAT_DOUBT = 1e-11


def random_words(n: int, rng: np.random.Generator) -> Words:
    """n independent uniform words of 64 bits."""
    return rng.integers(0, 1 << _WORD, n, dtype=np.uint64)


def random_below(bound: int, rng: np.random.Generator) -> int:
    """A uniform integer in [0, bound), bound being of any size: as many random bits as it has, until they are below."""
    bits = bound.bit_length()
    count = -(-bits // _WORD)
    while True:
        drawn = int.from_bytes(random_words(count, rng).tobytes(), "little") >> (count * _WORD - bits)
        if drawn < bound:
            return drawn


def enclose_exp(exponent: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """An interval that holds exp(exponent), at most 2^-bits * max(1, exp(exponent)) wide.

    `decimal` rounds quotient and exponential correctly; the guard digits are for the quotient's error, which the
    exponential multiplies by the exponent.
    """
    if not exponent:
        return Fraction(1), Fraction(1)
    if exponent < -bits:
        # exp(-bits) < 2^-bits; the digits of a number as small as exp(-1e9) would fill the memory.
        return Fraction(0), Fraction(1, 1 << bits)
    magnitude = max(0, math.ceil(math.log10(abs(exponent)))) if abs(exponent) > 1 else 0
    digits = math.ceil(bits * _LOG10_2) + magnitude + _GUARD_DIGITS
    context = Context(prec=digits, rounding=ROUND_HALF_EVEN, Emin=-(10**9), Emax=10**9)
    quotient = context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
    value = Fraction(context.exp(quotient))
    slack = value * Fraction(1, 10 ** (digits - magnitude - 2))
    return value - slack, value + slack


def exp_enclosure(exponent: Fraction) -> Enclosure:
    """The enclosure of p = exp(exponent), exponent at most 0."""
    return lambda bits: enclose_exp(exponent, bits)


def logistic_enclosure(exponent: Fraction, weight: int = 1) -> Enclosure:
    """The enclosure of p = 1 / (1 + weight * exp(exponent)), weight at least 1."""

    def enclose(bits: int) -> tuple[Fraction, Fraction]:
        # With x = weight * exp(exponent), p changes by at most dx / max(1, x).
        low, high = enclose_exp(exponent, bits + weight.bit_length())
        return 1 / (1 + weight * high), 1 / (1 + weight * low)

    return enclose


def is_below(word: int, enclosure: Enclosure, rng: np.random.Generator) -> bool:
    """Whether U < p, where U is uniform among the numbers that begin with the 64 binary digits of ``word``."""
    drawn, bits = word, _WORD
    while True:
        low, high = enclosure(bits + _WORD)
        if drawn + 1 <= low * (1 << bits):
            return True
        if drawn >= high * (1 << bits):
            return False
        drawn, bits = (drawn << _WORD) | int(random_words(1, rng)[0]), bits + _WORD


class Coin:
    """A coin that lands heads with probability p exactly.

    Args:
        enclosure: of p.
    """

    def __init__(self, enclosure: Enclosure) -> None:
        self._enclosure = enclosure
        bits = _WORD
        while True:
            low, high = (math.floor(bound * (1 << _WORD)) for bound in enclosure(bits))
            if low == high or bits > 4 * _WORD:
                break
            bits += _WORD
        # A p within 2^-300 of a multiple of 2^-64 keeps both neighbours in doubt.
        largest = (1 << _WORD) - 1
        self._first, self._last = np.uint64(min(low, largest)), np.uint64(min(high, largest))

    def flip(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """n independent flips: (n,) bool."""
        words = random_words(n, rng)
        heads = words < self._first
        for i in np.flatnonzero((words >= self._first) & (words <= self._last)):
            heads[i] = is_below(int(words[i]), self._enclosure, rng)
        return heads


def flip_exp(
    gamma: npt.NDArray[np.float64], enclosure: Callable[[int], Enclosure], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """One flip for each gamma >= 0, with probability exp(-gamma) exactly.

    Args:
        gamma: (n,) the exponents, near enough that exp(-gamma) is within 1e-12 of the exact probability.
        enclosure: of the exact probability at index i; asked where float64 cannot tell, twice in 1e11 flips.
    """
    words = random_words(len(gamma), rng)
    uniform = words.astype(np.float64) * 2.0**-_WORD
    gap = uniform - np.exp(-gamma)
    heads = gap < 0
    for i in np.flatnonzero(np.abs(gap) <= _FLOAT_DOUBT):
        heads[i] = is_below(int(words[i]), enclosure(int(i)), rng)
    return heads
