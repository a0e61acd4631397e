"""Randomized response: every person answers through a coin of her own, so nobody has to be trusted with the truth.

The two forms here share one shape: the true category is kept with probability p, and every other category is answered
with the same probability q = (1-p)/(k-1) < p. For any two true answers x, x' and any response y,
P[y | x] / P[y | x'] is 1, p/q or q/p. So one response is ln(p/q)-locally differentially private, and ln(p/q) is the
least epsilon (Warner 1965; k categories: Kairouz, Bonawitz, Ramage 2016, section 4).

Who answers no category at all is given a uniform one first: a random choice among inputs that the proof covers. Her
response is then uniform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError, require_count, require_positive
from beam_dp.mechanisms.coins import Coin, logistic_enclosure

Codes: TypeAlias = npt.NDArray[np.int32]
_MOST_CATEGORIES = 1 << 30


class Estimates(NamedTuple):
    """What `ResponseMechanism.estimate` returns.

    Attributes:
        shares: (k,) float64; unbiased, so single ones may be below 0 or above 1. They sum to 1.
        standard_errors: (k,) float64, with the observed share in the place of the expected one.
    """

    shares: npt.NDArray[np.float64]
    standard_errors: npt.NDArray[np.float64]


class ResponseMechanism(Protocol):
    """A form of randomized response: a small frozen dataclass."""

    @property
    def categories(self) -> int:
        """k; the codes are 0 to k-1."""

    @property
    def epsilon(self) -> float:
        """What one response promises, never below ln(p/q)."""

    def respond(self, codes: Codes, rng: np.random.Generator) -> Codes:
        """One response to each true answer: (n,) int32 in, (n,) int32 in [0, k) out.

        Args:
            codes: any code outside [0, k) stands for an answer that is no category.
            rng: the current generator of a `SecureSource`.
        """

    def estimate(self, counts: npt.ArrayLike) -> Estimates:
        """The shares of the true answers, from how often each category was responded, (k,) integers.

        With N of n responses in a category, E[N/n] = q + (p-q)·share, so (N/n - q)/(p-q) is unbiased. Its standard
        error, sqrt(N/n·(1 - N/n)/n)/(p-q), is for n persons drawn from a population; as an estimate of the share among
        these n alone it errs less. All are NaN for n = 0.

        Raises:
            ArgumentError: not k counts of at least 0.
        """


@dataclass(frozen=True)
class KaryRandomizedResponse:
    """Keeps the answer with probability p = e^ε/(e^ε + k - 1) exactly, else answers one of the others, each alike.

    Attributes:
        categories: k, at least 2.
        epsilon: ε = ln(p/q), finite, above 0.
    """

    categories: int
    epsilon: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", require_count("categories", self.categories, 2))
        if self.categories > _MOST_CATEGORIES:
            raise ArgumentError(f"categories must be at most 2^30, not {self.categories}")
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))

    @property
    def keep_probability(self) -> float:
        """p = 1/(1 + (k-1)·e^-ε), rounded; `respond` takes it exactly."""
        return 1 / (1 + (self.categories - 1) * math.exp(-self.epsilon))

    def respond(self, codes: Codes, rng: np.random.Generator) -> Codes:
        """See `ResponseMechanism.respond`."""
        codes = _with_uniform_codes(codes, self.categories, rng)
        shifts = rng.integers(1, self.categories, len(codes), dtype=np.int32)
        shifts[_keep_coin(self.categories, self.epsilon).flip(len(codes), rng)] = 0
        return (codes + shifts) % np.int32(self.categories)

    def estimate(self, counts: npt.ArrayLike) -> Estimates:
        """See `ResponseMechanism.estimate`."""
        lie = math.exp(-self.epsilon) * self.keep_probability
        return _estimates(counts, self.categories, lie, -math.expm1(-self.epsilon) * self.keep_probability)


@lru_cache(maxsize=64)
def _keep_coin(categories: int, epsilon: float) -> Coin:
    return Coin(logistic_enclosure(-Fraction(epsilon), categories - 1))


@dataclass(frozen=True)
class FairCoinResponse:
    """The polling form for yes and no: a fair coin says "answer the truth" or "answer what a second fair coin says".

    The truth is answered with probability 1/2 + 1/4 = 3/4 and its opposite with 1/4, both exactly, of two random bits:
    epsilon is ln 3. The estimate is 2·N/n - 1/2, its standard error 2·sqrt(N/n·(1 - N/n)/n).
    """

    categories: ClassVar[int] = 2
    keep_probability: ClassVar[Fraction] = Fraction(3, 4)

    @property
    def epsilon(self) -> float:
        """The least float that is not below ln 3."""
        return LN_3

    def respond(self, codes: Codes, rng: np.random.Generator) -> Codes:
        """See `ResponseMechanism.respond`."""
        codes = _with_uniform_codes(codes, self.categories, rng)
        coins = rng.integers(0, 4, len(codes), dtype=np.uint8)
        return np.where(coins & 1, codes, coins >> 1).astype(np.int32)

    def estimate(self, counts: npt.ArrayLike) -> Estimates:
        """See `ResponseMechanism.estimate`."""
        return _estimates(counts, self.categories, 0.25, 0.5)


def _ln_3() -> float:
    exact = Context(prec=50).ln(Decimal(3))
    nearest = float(exact)
    return nearest if Decimal(nearest) >= exact else math.nextafter(nearest, math.inf)


LN_3 = _ln_3()
"""The least float that is not below ln 3."""


def _with_uniform_codes(codes: Codes, categories: int, rng: np.random.Generator) -> Codes:
    """``codes`` with a uniform category in the place of what is none."""
    if codes.dtype != np.int32 or codes.ndim != 1:
        raise ArgumentError(f"codes must be one array of int32, not {codes.ndim} dimensions of {codes.dtype}")
    outside = np.flatnonzero((codes < 0) | (codes >= categories))
    if not len(outside):
        return codes
    codes = codes.copy()
    codes[outside] = rng.integers(0, categories, len(outside), dtype=np.int32)
    return codes


def _estimates(counts: npt.ArrayLike, categories: int, lie: float, contrast: float) -> Estimates:
    """Shares and standard errors from q = ``lie`` and p - q = ``contrast``."""
    numbers = np.asarray(counts)
    if numbers.shape != (categories,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise ArgumentError(f"counts must be {categories} whole numbers of at least 0")
    n = int(numbers.sum())
    if not n:
        return Estimates(np.full(categories, np.nan), np.full(categories, np.nan))
    observed = numbers / n
    return Estimates((observed - lie) / contrast, np.sqrt(observed * (1 - observed) / n) / contrast)
