"""From a share of the budget to the noise of a statistic: sensitivity, scale, and what the ledger is told.

Neighbouring data sets differ by all rows of one privacy unit, added or removed. Bounding is applied to each unit by
itself, so for any outcome of the other units' sampling the sums of neighbours differ by what one bounded unit
contributes: at most Δ in the L1 norm of each of at most L0 partitions, Δ = `Statistic.partition_sensitivity`. Bounding
is random, and a mixture of (ε, δ)-indistinguishable pairs under one common mixing law is (ε, δ)-indistinguishable.

Totals of quantised values are rounded to whole steps of 2^shift units before the noise. As 2^shift divides Δ, totals
that differ by at most Δ differ by at most Δ/2^shift steps after it: |round(a/s) - round(b/s)| <= ceil(|a-b|/s).
Steps are about a thousandth of the noise, so that they cost no accuracy and make sampling and accounting cheap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

from scipy.special import erfcx, ndtr

from beam_dp.accounting.loss import DiscreteGaussianLoss, DiscreteLaplaceLoss, ParametersLoss, PrivacyLoss
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.statistics import LIMB_BITS, QUANTISED_BITS, Statistic, Total
from beam_dp.errors import ArgumentError
from beam_dp.guarantees import CentralGuarantee
from beam_dp.mechanisms.discrete_noise import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    DiscreteGaussian,
    DiscreteLaplace,
    IntegerNoise,
)
from beam_dp.mechanisms.partition_selection import scale_up

_STEP_BITS = 10
_LARGEST_SIGMA_FACTOR = 1.5


@dataclass(frozen=True)
class Release:
    """One statistic and the noise that it is released with.

    Attributes:
        label: its name within the aggregation, for the ledger.
        statistic: what is added up.
        bounds: contribution bounds that the sensitivity rests on.
        noise: what is added to each integer.
        shift: totals are rounded to whole multiples of 2^shift units first; 0 for counts.
        guarantee: what one release promises to one unit.
        loss: the same for composition by privacy loss distributions; None where nothing is promised.
    """

    label: str
    statistic: Statistic
    bounds: Bounds
    noise: IntegerNoise
    shift: int
    guarantee: CentralGuarantee
    loss: PrivacyLoss | None

    @property
    def step(self) -> float:
        """One step in the units of the statistic."""
        if isinstance(self.statistic, Total):
            return self.statistic.magnitude / (1 << (QUANTISED_BITS - self.shift))
        return 1.0

    @property
    def partition_sensitivity(self) -> int:
        """L1, in steps: how much one unit changes one partition."""
        return self.statistic.partition_sensitivity(self.bounds) >> self.shift

    @property
    def mechanism(self) -> str:
        """What the ledger calls it."""
        return f"{self.noise!r} on {self.statistic!r}"

    def parameters(self) -> dict[str, Any]:
        """Sensitivity and noise for the ledger, in the units of the statistic."""
        per_partition = self.partition_sensitivity * self.step
        partitions = self.bounds.partitions
        return {
            "sensitivity": {"l1": partitions * per_partition, "l2": math.sqrt(partitions) * per_partition},
            "noise": {"law": repr(self.noise), "step": self.step, "stddev": self.noise.stddev * self.step},
        }


class NoiseFamily(Protocol):
    """A family of noise laws as `Aggregate` takes it.

    Attributes:
        needs_delta: whether a release spends delta.
    """

    needs_delta: ClassVar[bool]

    def plan(
        self, label: str, statistic: Statistic, bounds: Bounds, unit: str, *, epsilon: float, delta: float
    ) -> Release:
        """The release of ``statistic`` for (epsilon, delta) to one ``unit``.

        Raises:
            ArgumentError: this family cannot serve it.
        """


@dataclass(frozen=True)
class LaplaceNoise:
    """Discrete Laplace noise of scale L0·Δ/epsilon, rounded up: (epsilon, 0) by `DiscreteLaplace`'s proof."""

    needs_delta: ClassVar[bool] = False

    def plan(
        self, label: str, statistic: Statistic, bounds: Bounds, unit: str, *, epsilon: float, delta: float
    ) -> Release:
        """See `NoiseFamily.plan`; spends no delta."""
        try:
            shift = _shift(statistic, bounds.partitions * bounds.rows_per_partition / epsilon)
            per_partition = statistic.partition_sensitivity(bounds) >> shift
            scale = scale_up(bounds.partitions * per_partition / Fraction(epsilon))
            noise = DiscreteLaplace(scale)
        except (ArgumentError, OverflowError, ZeroDivisionError):
            raise ArgumentError(
                f"epsilon of {label}, {epsilon:g}, is out of range: noise of scale {SMALLEST_SCALE:g} to "
                f"{LARGEST_SCALE:g} is supported"
            ) from None
        loss: PrivacyLoss = DiscreteLaplaceLoss(scale, per_partition, bounds.partitions)
        if not statistic.single:
            # A unit can spread over several integers of a partition, for which only the pure bound is proved.
            loss = ParametersLoss(scale_up(per_partition / Fraction(scale)), 0.0, bounds.partitions)
        guarantee = CentralGuarantee(epsilon=epsilon, basis="proved", privacy_unit=unit)
        return Release(label, statistic, bounds, noise, shift, guarantee, loss)


@dataclass(frozen=True)
class GaussianNoise:
    """Discrete Gaussian noise, for statistics of one integer a partition.

    Its sigma starts at the analytic Gaussian mechanism's for the L2 sensitivity sqrt(L0)·Δ (Balle, Wang 2018) and grows
    until (epsilon, delta) holds by the privacy loss distribution of the discrete law itself.
    """

    needs_delta: ClassVar[bool] = True

    def plan(
        self, label: str, statistic: Statistic, bounds: Bounds, unit: str, *, epsilon: float, delta: float
    ) -> Release:
        """See `NoiseFamily.plan`."""
        if not statistic.single:
            raise ArgumentError(f"noise: gaussian noise is not offered for {label}; use laplace")
        start = analytic_gaussian_sigma(epsilon, delta) * math.sqrt(bounds.partitions)
        shift = _shift(statistic, start * bounds.rows_per_partition)
        per_partition = statistic.partition_sensitivity(bounds) >> shift
        sigma = start * per_partition
        while not _within(loss := DiscreteGaussianLoss(sigma, per_partition, bounds.partitions), epsilon, delta):
            sigma *= 1.001
            if sigma > _LARGEST_SIGMA_FACTOR * start * per_partition:
                raise ArgumentError(f"no gaussian noise was found for {label} at epsilon {epsilon:g}, delta {delta:g}")
        guarantee = CentralGuarantee(epsilon=epsilon, delta=delta, basis="computed", privacy_unit=unit)
        return Release(label, statistic, bounds, DiscreteGaussian(sigma), shift, guarantee, loss)


def _within(loss: PrivacyLoss, epsilon: float, delta: float) -> bool:
    """Whether (epsilon, delta) holds for a loss."""
    found = pld_epsilon(((loss, 1),), delta)
    return found is not None and found <= epsilon


def _shift(statistic: Statistic, magnitudes: float) -> int:
    """The bits that a total loses so that noise of this many magnitudes is about 2^10 steps."""
    if not isinstance(statistic, Total):
        return 0
    bits = _STEP_BITS - math.floor(math.log2(magnitudes))
    return QUANTISED_BITS - min(max(bits, 0), QUANTISED_BITS - LIMB_BITS)


def analytic_gaussian_sigma(epsilon: float, delta: float) -> float:
    """The least sigma, at sensitivity 1, with Φ(1/(2σ) - εσ) - e^ε·Φ(-1/(2σ) - εσ) <= delta (Balle, Wang 2018)."""

    def excess(sigma: float) -> float:
        a, b = 1 / (2 * sigma) - epsilon * sigma, 1 / (2 * sigma) + epsilon * sigma
        # e^ε·Φ(-b) = e^(-a²/2)·erfcx(b/√2)/2, which does not overflow.
        return float(ndtr(a)) - math.exp(-a * a / 2) * float(erfcx(b / math.sqrt(2))) / 2

    low, high = 1e-6, 1.0
    while excess(high) > delta:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > delta else (low, middle)
    return high
