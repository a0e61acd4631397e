"""The budget: what is given out is never more than there is, and goes where the weights say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
from exact import KeepAll, NoNoise
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.accounting.loss import ParametersLoss
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.aggregate import (
    Bounds,
    Budget,
    Count,
    Histogram,
    Mean,
    PrivacyUnitCount,
    PrivateSelection,
    Quantiles,
    Sum,
    Variance,
    VectorSum,
)
from beam_dp.aggregate.budget import SelectionRelease, Split, split_budget
from beam_dp.aggregate.metrics import Metric, shared_statistics
from beam_dp.aggregate.noise import GaussianNoise, LaplaceNoise, NoiseFamily, Release
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.partition_selection import LaplaceThreshold, TruncatedGeometric

LAPLACE, GAUSSIAN = LaplaceNoise(), GaussianNoise()


def split(
    budget: Budget,
    metrics: list[Metric],
    selection: Any = None,
    noise: NoiseFamily = LAPLACE,
    bounds: Bounds = Bounds(4, 2),  # noqa: B008  (a frozen value)
) -> Split:
    return split_budget(budget, shared_statistics(metrics), selection, noise, bounds, "user")


def items_of(parts: Split) -> list[SelectionRelease | Release]:
    return [*([] if parts.selection is None else [parts.selection]), *parts.releases]


def shares(parts: Split) -> tuple[list[Fraction], list[Fraction]]:
    """The epsilons and deltas of the selection, if there is one, and of each release."""
    guarantees = [item.guarantee for item in items_of(parts)]
    return [Fraction(g.epsilon or 0) for g in guarantees], [Fraction(g.delta) for g in guarantees]


def most_of(epsilons: list[Fraction]) -> Fraction:
    """The most that can have been given out: shares are rounded down, to a nano-epsilon at most."""
    return sum(epsilons) * (1 + Fraction(1, 2**50)) + Fraction(len(epsilons), 10**9)


weight = st.floats(1e-3, 1e3)


@st.composite
def some_metrics(draw: st.DrawFn) -> list[Metric]:
    every: list[Metric] = [
        Count(weight=draw(weight)),
        PrivacyUnitCount(weight=draw(weight)),
        Sum("v", 0, 5, weight=draw(weight)),
        Mean("w", -1, 1, weight=draw(weight)),
        Variance("v", 0, 5, weight=draw(weight)),
        Histogram("v", (0, 1, 2), weight=draw(weight)),
        VectorSum(("x", "y", "z"), 1, weight=draw(weight)),
        Quantiles("v", 0, 1, weight=draw(weight)),
    ]
    return [metric for metric in every if draw(st.booleans())]


@settings(deadline=None, max_examples=150)
@given(some_metrics(), st.floats(0.01, 20), st.floats(1e-9, 0.1), st.one_of(st.none(), weight))
def test_shares_never_add_up_to_more_than_the_budget_and_hardly_to_less(
    metrics: list[Metric], epsilon: float, delta: float, selection_weight: float | None
) -> None:
    selection = None if selection_weight is None else PrivateSelection("laplace_threshold", weight=selection_weight)
    if not metrics and selection is None:
        return
    parts = split(Budget(epsilon, delta), metrics, selection)
    epsilons, deltas = shares(parts)
    assert sum(epsilons) <= Fraction(epsilon) <= most_of(epsilons)
    # Laplace noise needs no delta: all of it goes to the selection.
    assert sum(deltas) == (Fraction(delta) if selection else 0)
    assert all(d == 0 for d in deltas[1 if selection else 0 :])
    assert parts.composition_delta == 0


def test_weights_are_the_proportions_of_what_is_released() -> None:
    metrics: list[Metric] = [Count(weight=2), Mean("v", 0, 1, weight=3), VectorSum(("x", "y"), 1, weight=4)]
    parts = split(Budget(14, 1e-6), metrics, PrivateSelection(weight=2))
    assert parts.selection is not None
    given_out = {release.label: release.guarantee.epsilon for release in parts.releases}
    # 2 for the selection, 2, twice 3, and 4 in two halves: 14 parts.
    assert [parts.selection.guarantee.epsilon, *given_out.values()] == [2, 2, 3, 3, 2, 2]
    assert list(given_out) == ["count", "mean_v/values", "mean_v/centred_sum", "vector_sum_x_y/x", "vector_sum_x_y/y"]


def test_a_statistic_of_several_metrics_is_paid_once_with_the_largest_weight() -> None:
    metrics: list[Metric] = [Mean("v", 0, 1), Variance("v", 0, 1, weight=3), Sum("v", 0, 1), Count("v", weight=2)]
    parts = split(Budget(9), metrics)
    # The number of values, their centred sum, and the squares: each of weight 3.
    assert [(r.label, r.guarantee.epsilon) for r in parts.releases] == [
        ("mean_v/values", 3.0),
        ("mean_v/centred_sum", 3.0),
        ("variance_v/centred_squares", 3.0),
    ]
    apart = split(Budget(8), [Mean("v", 0, 1), Mean("v", 0, 2, name="other"), Sum("v", 0, 5)])
    assert [r.guarantee.epsilon for r in apart.releases] == [8 / 4] * 4
    with pytest.raises(ArgumentError, match="ask for all quantiles of a column in one"):
        split(Budget(1), [Quantiles("v", 0, 1), Quantiles("v", 0, 1, quantiles=(0.9,), name="q")])


@settings(deadline=None, max_examples=15)
@given(st.floats(0.1, 5), st.floats(1e-8, 1e-3), weight, st.booleans())
def test_gaussian_noise_and_selection_share_delta_by_weight(
    epsilon: float, delta: float, heavier: float, selected: bool
) -> None:
    metrics: list[Metric] = [Count(weight=heavier), PrivacyUnitCount()]
    selection = PrivateSelection("laplace_threshold") if selected else None
    parts = split(Budget(epsilon, delta), metrics, selection, GAUSSIAN, Bounds(1, 1))
    epsilons, deltas = shares(parts)
    assert sum(epsilons) <= Fraction(epsilon) and sum(deltas) <= Fraction(delta)
    assert most_of(epsilons) >= Fraction(epsilon)
    assert sum(deltas) >= Fraction(delta) * (1 - Fraction(1, 2**50))
    for e, d in zip(epsilons, deltas, strict=True):
        assert float(e / Fraction(epsilon)) == pytest.approx(float(d / Fraction(delta)), abs=1e-7)


@pytest.mark.parametrize(
    ("strategy", "rule"), [("truncated_geometric", TruncatedGeometric), ("laplace_threshold", LaplaceThreshold)]
)
def test_selection_gets_its_rule(strategy: Any, rule: type) -> None:
    parts = split(Budget(2, 1e-6), [Count()], PrivateSelection(strategy, pre_threshold=7), bounds=Bounds(5, 3))
    assert parts.selection is not None
    assert parts.selection.rule == rule(1.0, 1e-6, 5, 7)
    assert (parts.selection.guarantee.epsilon, parts.selection.guarantee.delta) == (1.0, 1e-6)
    alone = split(Budget(2, 1e-6), [], PrivateSelection(strategy), bounds=Bounds(5, 1))
    assert alone.releases == () and alone.selection is not None and alone.selection.guarantee.epsilon == 2.0


COMPOSED: list[tuple[Budget, list[Metric], Any, NoiseFamily, Bounds]] = [
    (Budget(1, 1e-6, "pld"), [Count(), Sum("v", 0, 1)], None, LAPLACE, Bounds(1, 1)),
    (Budget(1, 1e-6, "pld"), [Count(), Mean("v", 0, 10)], PrivateSelection(), LAPLACE, Bounds(8, 2)),
    (Budget(0.5, 1e-8, "pld"), [Variance("v", 0, 1), Quantiles("v", 0, 1)], None, LAPLACE, Bounds(30, 1)),
    (Budget(3, 1e-6, "pld"), [Count(), PrivacyUnitCount(), Sum("v", 0, 1)], None, GAUSSIAN, Bounds(4, 2)),
    (Budget(1, 1e-6, "pld"), [Count()], PrivateSelection("laplace_threshold"), GAUSSIAN, Bounds(2, 1)),
    (Budget(1, 1e-6, "pld"), [], PrivateSelection(), LAPLACE, Bounds(10, 1)),
]


@pytest.mark.parametrize(("budget", "metrics", "selection", "noise", "bounds"), COMPOSED)
def test_epsilons_composed_by_pld_are_raised_and_stay_within_the_budget(
    budget: Budget, metrics: list[Metric], selection: Any, noise: NoiseFamily, bounds: Bounds
) -> None:
    parts = split(budget, metrics, selection, noise, bounds)
    epsilons, deltas = shares(parts)
    if parts.composition_delta:
        composed = pld_epsilon(tuple((item.loss, 1) for item in items_of(parts)), budget.delta)
        assert composed is not None and composed <= budget.epsilon
    else:
        # Composition gains nothing there, so nothing is set aside for it.
        assert sum(epsilons) <= Fraction(budget.epsilon)
    assert sum(deltas) + Fraction(parts.composition_delta) <= Fraction(budget.delta)
    # Never less than by basic composition of the same deltas, and all by one factor.
    basic, _ = shares(split(Budget(budget.epsilon, budget.delta), metrics, selection, noise, bounds))
    factors = [float(e / b) for e, b in zip(epsilons, basic, strict=True)]
    assert min(factors) >= 1 - 1e-6 and factors == pytest.approx([factors[0]] * len(factors), rel=1e-5)
    if bounds.partitions >= 8 and len(metrics) > 1:
        assert factors[0] > 1.2


def test_pld_leaves_a_third_of_the_noise_where_a_unit_is_in_many_partitions() -> None:
    """What README says: a count and a mean, 50 partitions a unit, delta 1e-6."""
    noises = []
    for composition in ("basic", "pld"):
        budget = Budget(1, 1e-6, composition)  # type: ignore[arg-type]
        parts = split(budget, [Count(), Mean("v", 0, 10)], PrivateSelection(), bounds=Bounds(50, 2))
        noises.append([release.noise.stddev * release.step for release in parts.releases])
    assert all(0.28 < pld / basic < 0.37 for basic, pld in zip(*noises, strict=True))


@dataclass(frozen=True)
class Unknown(LaplaceNoise):
    """A family of somebody else, of which no more is known than its epsilon."""

    def plan(self, *arguments: Any, **options: Any) -> Release:
        return replace(super().plan(*arguments, **options), loss=None)


def test_releases_of_which_epsilon_alone_is_known_are_composed_too() -> None:
    parts = split(Budget(1, 1e-6, "pld"), [Count(), Sum("v", 0, 1)], PrivateSelection(), Unknown())
    unknown = tuple((ParametersLoss(r.guarantee.epsilon or 0.0, r.guarantee.delta), 1) for r in parts.releases)
    assert parts.selection is not None and parts.selection.loss is not None
    composed = pld_epsilon((*unknown, (parts.selection.loss, 1)), 1e-6)
    # Where composition gains nothing, basic composition is what holds.
    assert min(Fraction(composed or 2), sum(shares(parts)[0])) <= 1


def test_pld_says_when_it_needs_delta() -> None:
    with pytest.raises(ArgumentError, match="delta must be above 0 for composition pld"):
        split(Budget(1, composition="pld"), [Count()])
    with pytest.raises(ArgumentError, match="delta must be above 0 for private selection"):
        split(Budget(1), [Count()], PrivateSelection())
    with pytest.raises(ArgumentError, match="delta must be above 0 for gaussian noise"):
        split(Budget(1), [Count()], noise=GAUSSIAN)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, None, True, "1"])
def test_epsilon_is_a_finite_number_above_zero(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0"):
        Budget(wrong)


@pytest.mark.parametrize("wrong", [-1e-9, 1, 1.5, math.nan, math.inf, None, True, "0"])
def test_delta_is_a_number_from_zero_to_below_one(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="delta must be a number in"):
        Budget(1, wrong)


def test_other_arguments_are_checked_too() -> None:
    with pytest.raises(ArgumentError, match="composition must be one of basic, pld"):
        Budget(1, 0, "rdp")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="strategy must be one of truncated_geometric, laplace_threshold"):
        PrivateSelection("exact")  # type: ignore[arg-type]
    for options, name in (({"pre_threshold": 0}, "pre_threshold"), ({"weight": 0}, "weight")):
        with pytest.raises(ArgumentError, match=name):
            PrivateSelection(**options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="epsilon of count, 0, is out of range"):
        split(Budget(1e-10), [Count(weight=1e-320), PrivacyUnitCount()])
    assert Budget(1) == Budget(1.0, 0.0) and PrivateSelection(weight=1) == PrivateSelection()


def test_the_door_of_the_tests_promises_nothing() -> None:
    parts = split(Budget(1, 1e-6), [Count(), Mean("v", 0, 1)], KeepAll(), NoNoise())
    assert parts.selection is not None
    for item in items_of(parts):
        assert item.guarantee.epsilon is None and item.loss is None
        assert item.guarantee.sentence().startswith("no finite central guarantee: NOT PRIVATE")
