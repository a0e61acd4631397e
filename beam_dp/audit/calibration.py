"""The epsilon at which words stay themselves as often as is wanted.

An epsilon of metric privacy has the unit 1/distance, so that no number means the same on two indexes or for two
mechanisms. How often a word stays itself does, and mechanisms are best compared where it is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from beam_dp.audit.deniability import plausible_deniability, require_words
from beam_dp.errors import ArgumentError, require_choice, require_count
from beam_dp.mechanisms.base import Doubles, FiniteLaw, WordIds, WordMechanism, WordSpace

Statistic = Literal["mean", "worst"]
STATISTICS = ("mean", "worst")

# Halving this often makes a range of 1:10,000,000 as narrow as 1:(1 + 1e-8).
_STEPS = 40
_NARROW = 1e-8
_RANGE = (1e-2, 1e5)
_LAW_CELLS = 1 << 23


@dataclass(frozen=True)
class Measured:
    """The mean or the largest N_w at one epsilon.

    Attributes:
        epsilon: in units of 1/distance.
        share: N_w, from 0 to 1.
        interval: confidence interval of N_w; both ends are ``share`` where that is exact.
    """

    epsilon: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        mechanism: at the epsilon that was found.
        target: the N_w that was wanted.
        statistic: ``mean`` or ``worst``, over the words.
        found: epsilon and the N_w there.
        confidence: of the intervals of all ``tried`` together; None where N_w comes from the exact law.
        runs: draws of each word at each epsilon; None where N_w comes from the exact law.
        tried: all that was measured, in order.
    """

    mechanism: WordMechanism
    target: float
    statistic: Statistic
    found: Measured
    confidence: float | None
    runs: int | None
    tried: tuple[Measured, ...]

    @property
    def epsilon(self) -> float:
        """The epsilon that was found."""
        return self.found.epsilon

    def sentence(self) -> str:
        """What was found, in one sentence."""
        low, high = self.found.interval
        how = "from the exact law" if self.runs is None else f"{self.confidence:.0%} interval {low:.3f} to {high:.3f}"
        return (
            f"{self.mechanism.name}: at epsilon {self.epsilon:.4g} the {self.statistic} N_w is {self.found.share:.3f} "
            f"({how}), wanted {self.target:g}"
        )


def calibrate(
    mechanism: Callable[[float], WordMechanism],
    index: WordSpace,
    target: float,
    *,
    statistic: Statistic = "mean",
    words: npt.ArrayLike | None = None,
    between: tuple[float, float] | None = None,
    runs: int = 100,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
) -> Calibration:
    """The epsilon at which the mean or the largest N_w of ``words`` is ``target``.

    Bisection on the logarithm of epsilon, for a mechanism whose N_w grows with epsilon. Where the law is known
    (`beam_dp.mechanisms.base.FiniteLaw`), N_w is read off it. Elsewhere it is measured by ``runs`` draws of each word,
    and the search ends where the confidence interval of N_w has the target inside: more runs tell the target from its
    neighbours, and so give a closer epsilon.

    Intervals: of the mean, that of Clopper and Pearson for all draws together, which holds for words of different N_w
    too (Hoeffding, "On the distribution of the number of successes in independent trials", 1956, theorem 4); of the
    worst, from the largest lower to the largest upper end over the words, each at its share of the error. The measured
    worst itself is rather too high, as the largest of many noisy numbers. The error is shared among all steps, so that
    the last interval may be quoted.

    Args:
        mechanism: makes the mechanism of an epsilon: a class, or a function that sets other parameters too.
        index: an opened index, or any word space.
        target: N_w between 0 and 1.
        statistic: over the words: ``mean``, or ``worst`` for the largest.
        words: ids (n,); None for the whole vocabulary.
        between: the range of epsilon; None for 0.01/diameter to 100,000/diameter.
        runs: draws of each word at each epsilon.
        confidence: of all intervals together, between 0 and 1.
        rng: what is drawn with; None for a fresh key of the operating system.

    Raises:
        ArgumentError: an argument is out of range; the mechanism is not valid at one end of ``between``; or the target
            is not met anywhere in it.
    """
    for name, value in (("target", target), ("confidence", confidence)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise ArgumentError(f"{name} must be a number between 0 and 1")
    require_choice("statistic", statistic, STATISTICS)
    require_count("runs", runs)
    low, high = _require_range(between, index)
    measure = _Measure(mechanism, index, require_words(words, index), statistic, runs, (1 - confidence) / _STEPS, rng)
    ends = measure(low), measure(high)
    tried = list(ends)
    if ends[0].interval[0] > target or ends[1].interval[1] < target:
        raise ArgumentError(
            f"target: the {statistic} N_w is {ends[0].share:.3g} at epsilon {low:g} and {ends[1].share:.3g} at "
            f"{high:g}, so {target:g} is not between; give another target, or another range in between"
        )
    while len(tried) < _STEPS and high / low > 1 + _NARROW:
        middle = measure(math.sqrt(low * high))
        tried.append(middle)
        if middle.interval[1] < target:
            low = middle.epsilon
        elif middle.interval[0] > target:
            high = middle.epsilon
        else:
            break
    found = tried[-1]
    return Calibration(
        mechanism=mechanism(found.epsilon),
        target=float(target),
        statistic=statistic,
        found=found,
        confidence=None if measure.exact else confidence,
        runs=None if measure.exact else runs,
        tried=tuple(tried),
    )


class _Measure:
    """N_w at an epsilon."""

    def __init__(
        self,
        mechanism: Callable[[float], WordMechanism],
        index: WordSpace,
        words: WordIds,
        statistic: Statistic,
        runs: int,
        error: float,
        rng: np.random.Generator | None,
    ) -> None:
        self._mechanism = mechanism
        self._index = index
        self._words = words
        self._statistic = statistic
        self._runs = runs
        self._error = error
        self._rng = rng
        self.exact = False

    def __call__(self, epsilon: float) -> Measured:
        mechanism = self._mechanism(epsilon)
        bound = mechanism.bind(self._index)
        self.exact = isinstance(bound, FiniteLaw)
        if isinstance(bound, FiniteLaw):
            shares = _diagonal(bound, self._words, self._index.size)
            share = float(shares.mean() if self._statistic == "mean" else shares.max())
            return Measured(epsilon, share, (share, share))
        drawn = plausible_deniability(mechanism, self._index, self._runs, words=self._words, rng=self._rng)
        if self._statistic == "mean":
            total = len(self._words) * self._runs
            low, high = clopper_pearson(drawn.unchanged.sum(keepdims=True), total, self._error)
            return Measured(epsilon, float(drawn.share_unchanged.mean()), (float(low[0]), float(high[0])))
        low, high = clopper_pearson(drawn.unchanged, self._runs, self._error / len(self._words))
        return Measured(epsilon, float(drawn.share_unchanged.max()), (float(low.max()), float(high.max())))


def clopper_pearson(successes: npt.NDArray[np.int64], trials: int, error: float) -> tuple[Doubles, Doubles]:
    """The ends of the exact two-sided intervals at level 1 - ``error`` of ``successes`` (n,) of ``trials`` each."""
    failures = trials - successes
    with np.errstate(invalid="ignore"):
        low = special.betaincinv(successes, failures + 1, error / 2)
        high = special.betaincinv(successes + 1, failures, 1 - error / 2)
    return np.where(successes == 0, 0.0, low), np.where(failures == 0, 1.0, high)


def _diagonal(law: FiniteLaw, words: WordIds, size: int) -> Doubles:
    """P[M(w) = w] of ``words`` (n,)."""
    step = max(1, _LAW_CELLS // size)
    blocks = (words[start : start + step] for start in range(0, len(words), step))
    return np.concatenate([law.law_rows(block)[np.arange(len(block)), block] for block in blocks])


def _require_range(between: tuple[float, float] | None, index: WordSpace) -> tuple[float, float]:
    if between is None:
        if not index.diameter > 0:
            raise ArgumentError("between is required: all words of this index have the same vector")
        return _RANGE[0] / index.diameter, _RANGE[1] / index.diameter
    low, high = (float(end) for end in between)
    if not 0 < low < high < math.inf:
        raise ArgumentError("between must be two finite numbers above 0, the lower one first")
    return low, high
