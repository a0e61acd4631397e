"""The budget of an aggregation and how it is split over selection and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

from beam_dp.accounting.loss import ParametersLoss, PrivacyLoss
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.accounting.rounding import float_down
from beam_dp.accounting.shares import Part
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.metrics import Metric
from beam_dp.aggregate.noise import NoiseFamily, Release
from beam_dp.aggregate.statistics import Statistic
from beam_dp.errors import ArgumentError, require_choice, require_count, require_positive
from beam_dp.guarantees import CentralGuarantee
from beam_dp.mechanisms.partition_selection import KeepRule, LaplaceThreshold, TruncatedGeometric, scale_up

_STRATEGIES: dict[str, type[TruncatedGeometric] | type[LaplaceThreshold]] = {
    "truncated_geometric": TruncatedGeometric,
    "laplace_threshold": LaplaceThreshold,
}
_COMPOSITIONS = ("basic", "pld")
_LARGEST_FACTOR = 8.0
_FACTOR_STEPS = 10
SELECTION = "selection"


@dataclass(frozen=True)
class Budget:
    """What all releases of an aggregation may spend on one privacy unit together.

    Private selection and every metric have a weight, 1 unless it says otherwise. What is released, selection and
    statistics, gets epsilon in proportion to the weights. `Mean` needs two statistics, `Variance` three, and each gets
    the metric's weight; one that several metrics need is released once, with the largest of theirs. The coordinates of
    a `VectorSum` share its weight. delta goes to what needs it, in the same proportion: private selection, and Gaussian
    noise.

    Attributes:
        epsilon: finite, above 0.
        delta: in [0, 1); above 0 for private selection and for Gaussian noise.
        composition: ``basic``: the shares add up to epsilon. ``pld``: half of delta, or all of it where nothing else
            needs it, is set aside for composition, and all epsilons are raised by one factor as far as the composed
            privacy loss distribution stays within (epsilon, delta); worth it for many partitions or metrics.
    """

    epsilon: float
    delta: float = 0.0
    composition: Literal["basic", "pld"] = "basic"

    def __post_init__(self) -> None:
        amount = Part(self.epsilon, self.delta)
        object.__setattr__(self, "epsilon", amount.epsilon)
        object.__setattr__(self, "delta", amount.delta)
        require_choice("composition", self.composition, _COMPOSITIONS)


class Selection(Protocol):
    """What ``partitions=`` takes instead of a public list."""

    @property
    def weight(self) -> float:
        """Its part of the budget, relative to those of the metrics."""

    def rule(self, bounds: Bounds, *, epsilon: float, delta: float) -> KeepRule:
        """Which partitions are kept."""

    def guarantee(self, unit: str, *, epsilon: float, delta: float) -> CentralGuarantee:
        """What the set of partitions kept promises to one unit."""

    def loss(self, bounds: Bounds, *, epsilon: float, delta: float) -> PrivacyLoss | None:
        """The same for composition by privacy loss distributions."""


@dataclass(frozen=True)
class PrivateSelection:
    """Partitions are shown only if enough privacy units are in them; see `beam_dp.mechanisms.partition_selection`.

    Attributes:
        strategy: ``truncated_geometric`` (keeps the most) or ``laplace_threshold``.
        pre_threshold: partitions with fewer units are never kept.
        weight: its part of the budget, relative to those of the metrics.
    """

    strategy: Literal["truncated_geometric", "laplace_threshold"] = "truncated_geometric"
    pre_threshold: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, tuple(_STRATEGIES))
        require_count("pre_threshold", self.pre_threshold)
        object.__setattr__(self, "weight", require_positive("weight", self.weight))

    def rule(self, bounds: Bounds, *, epsilon: float, delta: float) -> TruncatedGeometric | LaplaceThreshold:
        """See `Selection.rule`."""
        if delta == 0:
            raise ArgumentError(
                "delta must be above 0 for private selection: write Budget(epsilon, delta=1e-6), or give the public "
                "partitions"
            )
        return _STRATEGIES[self.strategy](epsilon, delta, bounds.partitions, self.pre_threshold)

    def guarantee(self, unit: str, *, epsilon: float, delta: float) -> CentralGuarantee:
        """See `Selection.guarantee`."""
        return CentralGuarantee(epsilon=epsilon, delta=delta, basis="proved", privacy_unit=unit)

    def loss(self, bounds: Bounds, *, epsilon: float, delta: float) -> PrivacyLoss:
        """See `Selection.loss`."""
        rule = self.rule(bounds, epsilon=epsilon, delta=delta)
        return ParametersLoss(scale_up(rule.partition_epsilon), scale_up(rule.partition_delta), bounds.partitions)


@dataclass(frozen=True)
class SelectionRelease:
    """Private selection with its share of the budget.

    Attributes:
        rule: which partitions are kept.
        guarantee: what that promises to one unit.
        loss: the same for composition.
    """

    rule: KeepRule
    guarantee: CentralGuarantee
    loss: PrivacyLoss | None

    @property
    def mechanism(self) -> str:
        """What the ledger calls it."""
        return repr(self.rule)

    def parameters(self) -> dict[str, Any]:
        """Sensitivity for the ledger: a unit counts once in a partition."""
        return {"sensitivity": {"units_per_partition": 1}}


@dataclass(frozen=True)
class Split:
    """A budget as it is split.

    Attributes:
        selection: private selection with its share; None where the partitions are public.
        releases: every statistic that is released, with its noise.
        composition_delta: what is set aside for composition.
    """

    selection: SelectionRelease | None
    releases: tuple[Release, ...]
    composition_delta: float


def split_budget(
    budget: Budget,
    metrics: Sequence[Metric],
    selection: Selection | None,
    noise: NoiseFamily,
    bounds: Bounds,
    unit: str,
) -> Split:
    """Everything that is released, with its noise; see `Budget`.

    Raises:
        ArgumentError: delta is missing where it is needed, or a share is out of range.
    """
    if noise.needs_delta and metrics and budget.delta == 0:
        raise ArgumentError("delta must be above 0 for gaussian noise: write Budget(epsilon, delta=1e-6)")
    basic = _maker(budget, 0.0, metrics, selection, noise, bounds, unit)
    if budget.composition == "basic":
        return basic(1.0)
    if budget.delta == 0:
        raise ArgumentError("delta must be above 0 for composition pld: write Budget(epsilon, delta=1e-6, ...)")
    needed = selection is not None or noise.needs_delta
    spare = budget.delta / (2 if needed else 1)
    # Where composition gains nothing, nothing is set aside for it.
    return _raised(budget, _maker(budget, spare, metrics, selection, noise, bounds, unit)) or basic(1.0)


def _maker(
    budget: Budget,
    spare: float,
    metrics: Sequence[Metric],
    selection: Selection | None,
    noise: NoiseFamily,
    bounds: Bounds,
    unit: str,
) -> Callable[[float], Split]:
    """The split as a function of the factor by which the epsilons of basic composition are multiplied."""
    wanted = _wanted(metrics)
    chosen = Fraction(0) if selection is None else Fraction(selection.weight)
    total = sum((weight for _, weight in wanted.values()), chosen)
    total_delta = total if noise.needs_delta else chosen

    def share(weight: Fraction, factor: float) -> tuple[float, float]:
        epsilon = float_down(Fraction(budget.epsilon) * weight / total * Fraction(factor))
        delta = Fraction(budget.delta) - Fraction(spare)
        return epsilon, float_down(delta * weight / total_delta) if total_delta else 0.0

    def make(factor: float) -> Split:
        kept = None
        if selection is not None:
            epsilon, delta = share(chosen, factor)
            kept = SelectionRelease(
                selection.rule(bounds, epsilon=epsilon, delta=delta),
                selection.guarantee(unit, epsilon=epsilon, delta=delta),
                selection.loss(bounds, epsilon=epsilon, delta=delta),
            )
        releases = []
        for statistic, (label, weight) in wanted.items():
            epsilon, delta = share(weight, factor)
            delta = delta if noise.needs_delta else 0.0
            releases.append(noise.plan(label, statistic, bounds, unit, epsilon=epsilon, delta=delta))
        return Split(kept, tuple(releases), spare)

    return make


def _wanted(metrics: Sequence[Metric]) -> dict[Statistic, tuple[str, Fraction]]:
    """Each statistic that is released, once, with its label and weight."""
    wanted: dict[Statistic, tuple[str, Fraction]] = {}
    for metric in metrics:
        statistics = metric.statistics
        for name, statistic in statistics.items():
            label = metric.title if len(statistics) == 1 else f"{metric.title}/{name}"
            weight = Fraction(metric.statistic_weight)
            if statistic in wanted:
                if statistic.is_sparse:
                    raise ArgumentError(f"{metric.title}: ask for all quantiles of a column in one Quantiles(...)")
                label, other = wanted[statistic]
                weight = max(weight, other)
            wanted[statistic] = (label, weight)
    return wanted


def _raised(budget: Budget, make: Callable[[float], Split]) -> Split | None:
    """The split with the largest factor, within a hundredth, whose composed loss is within the budget; None if 1 is."""

    def fits(factor: float) -> bool:
        split = make(factor)
        items = [item for item in (split.selection, *split.releases) if item is not None]
        # What promises nothing at all (only tests have it) cannot be composed, and need not be.
        losses = tuple((_loss_of(item), 1) for item in items if item.guarantee.epsilon is not None)
        spent = sum((Fraction(item.guarantee.delta) for item in items), Fraction(split.composition_delta))
        composed = pld_epsilon(losses, float_down(spent))
        return composed is not None and composed <= budget.epsilon

    low, high = 1.0, _LARGEST_FACTOR
    for _ in range(_FACTOR_STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return make(low) if low > 1 else None


def _loss_of(item: SelectionRelease | Release) -> PrivacyLoss:
    """What is known of a release: its loss, or else what its epsilon and delta imply."""
    if item.loss is not None:
        return item.loss
    assert item.guarantee.epsilon is not None
    return ParametersLoss(item.guarantee.epsilon, item.guarantee.delta)
