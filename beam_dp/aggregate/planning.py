"""From an aggregation whose budget may be a share to its plan: what is checked before the share is drawn, and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.shares import Share
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.budget import Budget, Selection, split_budget
from beam_dp.aggregate.metrics import Metric
from beam_dp.aggregate.noise import NoiseFamily
from beam_dp.aggregate.release import AggregationPlan
from beam_dp.errors import ArgumentError, describe_kind

_UNTIL_DRAWN = Budget(epsilon=1.0, delta=1e-6)


@dataclass(frozen=True)
class Planner:
    """All that makes an `AggregationPlan` but, where the budget is a share, the numbers of that budget.

    Attributes:
        by: the key columns.
        privacy_unit: the column whose values are protected.
        bounds: of a unit's contribution.
        metrics: what is shown of a partition.
        selection: how partitions are selected; None where they are public.
        noise: the family of noise laws.
        budget: what all of it may spend on one unit in one window, or the share of what it may spend in all windows.

    Raises:
        ArgumentError: ``bounds`` or ``budget`` is something else.
    """

    by: tuple[str, ...]
    privacy_unit: str
    bounds: Bounds
    metrics: tuple[Metric, ...]
    selection: Selection | None
    noise: NoiseFamily
    budget: Budget | Share

    def __post_init__(self) -> None:
        if not isinstance(self.bounds, Bounds):
            raise ArgumentError(f"bounds must be a Bounds, not {describe_kind(self.bounds)}")
        if not isinstance(self.budget, (Budget, Share)):
            raise ArgumentError(f"budget must be a Budget or a Share, not {describe_kind(self.budget)}")

    @cached_property
    def preliminary(self) -> AggregationPlan:
        """The plan; for a share one of the same shape with a budget of epsilon 1, to check arguments with.

        Raises:
            ArgumentError: the budget cannot be split like that.
        """
        return self._plan(_UNTIL_DRAWN if isinstance(self.budget, Share) else self.budget)

    def final(self, ledger: Ledger, label: str, windows: int | None) -> AggregationPlan:
        """The plan to record and to run; draws the share.

        Args:
            ledger: where the share is declared.
            label: of the transform.
            windows: how many one unit is in at most, which divide the share; None if unknown.

        Raises:
            ArgumentError: the share cannot be drawn, or cannot be split like that.
        """
        share = self.budget
        if not isinstance(share, Share):
            return self.preliminary
        if windows is None:
            raise ArgumentError(f"max_windows must be given: nothing else says how often share {share.name!r} is spent")
        part = ledger.draw(share, label, "central").split(windows)
        try:
            plan = self._plan(Budget(part.epsilon, part.delta, share.composition))
        except ArgumentError as error:
            raise ArgumentError(f"share {share.name!r}: {error}") from None
        return replace(plan, share=share)

    def _plan(self, budget: Budget) -> AggregationPlan:
        split = split_budget(budget, self.metrics, self.selection, self.noise, self.bounds, self.privacy_unit)
        return AggregationPlan(
            self.by,
            self.privacy_unit,
            self.bounds,
            self.metrics,
            split.releases,
            split.selection,
            split.composition_delta,
        )
