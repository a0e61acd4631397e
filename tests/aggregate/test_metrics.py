"""Metrics: values that say what is released, and what they make of noisy integers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from beam_dp.aggregate import (
    Count,
    Histogram,
    Mean,
    PrivacyUnitCount,
    Quantiles,
    Sum,
    Variance,
    VectorSum,
)
from beam_dp.aggregate.intervals import sum_half_width
from beam_dp.aggregate.metrics import Metric, Noised, NoisyTree, shared_statistics
from beam_dp.aggregate.partials import Sparse
from beam_dp.aggregate.statistics import BinCounts, LeafCounts, RowCount, Total, UnitCount, ValueCount
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.discrete_noise import DiscreteGaussian, DiscreteLaplace

EVERY: dict[str, tuple[Metric, dict[str, Any]]] = {
    "count": (Count(), {"rows": RowCount()}),
    "count_v": (Count("v"), {"values": ValueCount(column="v")}),
    "privacy_unit_count": (PrivacyUnitCount(), {"units": UnitCount()}),
    "sum_v": (Sum("v", -1, 4), {"sum": Total(column="v", low=-1, high=4)}),
    "mean_v": (
        Mean("v", 0, 10),
        {"values": ValueCount(column="v"), "centred_sum": Total(column="v", low=0, high=10, of="centred")},
    ),
    "variance_v": (
        Variance("v", 0, 10),
        {
            "values": ValueCount(column="v"),
            "centred_sum": Total(column="v", low=0, high=10, of="centred"),
            "centred_squares": Total(column="v", low=0, high=10, of="squares"),
        },
    ),
    "histogram_v": (Histogram("v", (0, 1, 5)), {"bins": BinCounts(column="v", edges=(0, 1, 5))}),
    "vector_sum_x_y": (
        VectorSum(("x", "y"), 3),
        {c: Total(column=c, low=-3, high=3) for c in ("x", "y")},
    ),
    "quantile_v": (Quantiles("v", 0, 8, quantiles=(0.5, 0.9)), {"tree": LeafCounts(column="v", low=0, high=8)}),
}


@pytest.mark.parametrize("title", EVERY)
def test_metrics_are_values_that_name_their_statistics(title: str) -> None:
    metric, statistics = EVERY[title]
    assert metric.title == title and metric.statistics == statistics
    assert metric == pickle.loads(pickle.dumps(metric)) == eval(repr(metric))
    assert hash(metric) == hash(pickle.loads(pickle.dumps(metric)))
    with pytest.raises(AttributeError):
        metric.weight = 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("title", EVERY)
@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf, None, "1", True])
def test_weights_are_finite_and_above_zero(title: str, weight: object) -> None:
    metric = EVERY[title][0]
    fields = {name: getattr(metric, name) for name in metric.__dataclass_fields__}  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match="weight"):
        type(metric)(**fields | {"weight": weight})
    with pytest.raises(ArgumentError, match="name must be a string"):
        type(metric)(**fields | {"name": ""})
    assert type(metric)(**fields | {"name": "other"}).title == "other"


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Sum("", 0, 1), "column must be the name of a column"),
    (lambda: Sum(None, 0, 1), "column must be the name of a column, not None"),  # type: ignore[arg-type]
    (lambda: Sum("v", 1, 0), "low must be at most high, but 1 and 0 were given"),
    (lambda: Mean("v", 0, math.inf), "high must be a finite number"),
    (lambda: Variance("v", math.nan, 1), "low must be a finite number"),
    (lambda: Quantiles("v", 1, 1), "low must be below high"),
    (lambda: Quantiles("v", 0, 1, quantiles=()), "one or more different numbers"),
    (lambda: Quantiles("v", 0, 1, quantiles=(0.5, 0.5)), "one or more different numbers"),
    (lambda: Quantiles("v", 0, 1, quantiles=(1.5,)), "numbers from 0 to 1"),
    (lambda: Quantiles("v", 0, 1, quantiles=(math.nan,)), "numbers from 0 to 1"),
    (lambda: Quantiles("v", 0, 1, quantiles="0.5"), "numbers from 0 to 1"),  # type: ignore[arg-type]
    (lambda: Quantiles("v", 0, 1, quantiles=0.5), "numbers from 0 to 1"),  # type: ignore[arg-type]
    (lambda: Histogram("v", (1,)), "edges must be two or more ascending numbers"),
    (lambda: Histogram("v", (1, 1)), "low must be below high"),
    (lambda: Histogram("v", (2, 1)), "low must be below high"),
    (lambda: Histogram("v", (0, math.inf)), "high must be a finite number"),
    (lambda: Histogram("v", "01"), "edges must be two or more ascending numbers"),  # type: ignore[arg-type]
    (lambda: VectorSum((), 1), "columns_of must be a list of one or more columns"),
    (lambda: VectorSum("xy", 1), "columns_of must be a list of one or more columns"),  # type: ignore[arg-type]
    (lambda: VectorSum(("x", "x"), 1), "columns_of must name each column once"),
    (lambda: VectorSum(("x",), 0), "bound must be a finite number above 0, not zero"),
    (lambda: VectorSum(("x",), math.inf), "bound must be a finite number above 0"),
    (lambda: VectorSum(("x",), 1e151), "magnitude at most 1e150"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


LAPLACE = DiscreteLaplace(7.5)
GAUSSIAN = DiscreteGaussian(20.0)


def noised(integers: list[Any], noise: Any = LAPLACE, step: float = 1.0, rounded: bool = False) -> Noised:
    array = np.array(integers, np.int64)
    return Noised(array if array.ndim == 2 else array[:, None], noise, step, rounded)


def columns_of(metric: Metric, *released: Noised | NoisyTree) -> dict[str, list[Any]]:
    columns = metric.columns(released)
    title = metric.title
    assert list(columns) == [title, f"{title}_noise_stddev", f"{title}_ci_low", f"{title}_ci_high"]
    return {name.removeprefix(title): column.to_pylist() for name, column in columns.items()}


@pytest.mark.parametrize("metric", [Count(), Count("v"), PrivacyUnitCount()], ids=lambda metric: metric.title)
@pytest.mark.parametrize("noise", [LAPLACE, GAUSSIAN], ids=repr)
def test_counts_are_the_noisy_integers_with_the_quantile_of_the_noise(metric: Metric, noise: Any) -> None:
    found = columns_of(metric, noised([5, -3, 0], noise))
    reach = noise.half_width(0.95)
    assert found == {
        "": [5, -3, 0],
        "_noise_stddev": [noise.stddev] * 3,
        "_ci_low": [5 - reach, -3 - reach, -reach],
        "_ci_high": [5 + reach, -3 + reach, reach],
    }
    assert metric.columns([noised([1])])[metric.title].type == pa.int64()


@pytest.mark.parametrize("edges", [(0, 1), (0, 1, 2, 3)])
def test_histograms_are_lists_of_counts(edges: tuple[float, ...]) -> None:
    integers = [list(range(len(edges) - 1)), [-2] * (len(edges) - 1)]
    found = columns_of(Histogram("v", edges), noised(integers))
    reach = LAPLACE.half_width(0.95)
    assert found[""] == integers
    assert found["_ci_low"] == [[n - reach for n in row] for row in integers]
    assert found["_ci_high"] == [[n + reach for n in row] for row in integers]
    assert found["_noise_stddev"] == [LAPLACE.stddev] * 2
    assert Histogram("v", edges).columns([noised(integers)])["histogram_v"].type == pa.list_(pa.int64())


@pytest.mark.parametrize("rounded", [False, True])
def test_sums_are_in_the_units_of_the_column(rounded: bool) -> None:
    found = columns_of(Sum("v", -1, 4), noised([8, -8], step=0.25, rounded=rounded))
    reach = (LAPLACE.half_width(0.95) + (0.5 if rounded else 0)) * 0.25
    assert found == {
        "": [2, -2],
        "_noise_stddev": [LAPLACE.stddev * 0.25] * 2,
        "_ci_low": [2 - reach, -2 - reach],
        "_ci_high": [2 + reach, -2 + reach],
    }


def test_vector_sums_are_lists() -> None:
    found = columns_of(VectorSum(("x", "y"), 3), noised([4, 0], step=0.5), noised([-2, 6], step=0.5))
    reach = LAPLACE.half_width(0.95) * 0.5
    assert found[""] == [[2, -1], [0, 3]]
    assert found["_ci_low"] == [[2 - reach, -1 - reach], [-reach, 3 - reach]]
    assert found["_ci_high"] == [[2 + reach, -1 + reach], [reach, 3 + reach]]
    assert found["_noise_stddev"] == [LAPLACE.stddev * 0.5] * 2


def test_means_are_clamped_quotients_in_intervals_that_hold_every_possible_quotient() -> None:
    mean = Mean("v", 10, 20)
    counts, sums, step = [1000, 5, 0, -4, 1], [1000, 10_000, 30, -30, 5], 0.5
    found = columns_of(mean, noised(counts), noised(sums, step=step))
    n_reach = s_reach = LAPLACE.half_width(0.975)
    for i, (n, s) in enumerate(zip(counts, sums, strict=True)):
        assert found[""][i] == pytest.approx(min(max(15 + s * step / max(n, 1), 10), 20))
        corners = [
            total * step / max(count, 1)
            for total in (s - s_reach, s + s_reach)
            for count in range(max(n - n_reach, 1), max(n + n_reach, 1) + 1)
        ]
        assert found["_ci_low"][i] == pytest.approx(min(max(15 + min(corners), 10), 20))
        assert found["_ci_high"][i] == pytest.approx(min(max(15 + max(corners), 10), 20))
    # First order: d(S/n) = dS/n - S/n² dn.
    first = math.hypot(LAPLACE.stddev * step, 0.5 * LAPLACE.stddev) / 1000
    assert found["_noise_stddev"][0] == pytest.approx(first)
    assert [value is None for value in found["_noise_stddev"]] == [False, False, True, True, True]


def test_variances_are_clamped_and_their_intervals_hold_every_possible_one() -> None:
    variance = Variance("v", -4, 4)
    # 100 values of -4 and 300 of 2: mean 0.5, variance 6.75; Σ(x² - 8) = -400.
    found = columns_of(
        variance, noised([400, 400, 0]), noised([800, 800, 5], step=0.25), noised([-1600, 9000, 9], step=0.25)
    )
    assert found[""][0] == pytest.approx(6.75)
    assert found[""][1] == pytest.approx(13.375) and found[""][2] == pytest.approx(8 + 2.25 - 1.25**2)
    reach = LAPLACE.half_width(1 - 0.05 / 3)
    for i, (n, s, q) in enumerate([(400, 800, -1600), (400, 800, 9000), (0, 5, 9)]):
        counts = [max(n - reach, 1), max(n + reach, 1)]
        means = [(s + d) * 0.25 / c for d in (-reach, reach) for c in counts]
        squares = [(q + d) * 0.25 / c + 8 for d in (-reach, reach) for c in counts]
        least = 0 if min(means) <= 0 <= max(means) else min(map(abs, means))
        assert found["_ci_low"][i] == pytest.approx(min(max(min(squares) - max(map(abs, means)) ** 2, 0), 16))
        assert found["_ci_high"][i] == pytest.approx(min(max(max(squares) - least**2, 0), 16))
    noise = [LAPLACE.stddev * 0.25, 2 * 0.5 * LAPLACE.stddev * 0.25, (2 * 0.25 + 1) * LAPLACE.stddev]
    assert found["_noise_stddev"][0] == pytest.approx(math.hypot(*noise) / 400)
    assert found["_noise_stddev"][2] is None


def test_quantiles_have_a_column_each_and_no_stddev(rng: np.random.Generator) -> None:
    tree = Sparse(np.array([0, 16**4 - 1, 16**4 + 3]), np.array([500, 500, 1000]))
    metric = Quantiles("v", 100, 200, quantiles=(0.25, 1))
    columns = metric.columns([NoisyTree(tree, 2, DiscreteLaplace(0.5), rng)])
    assert list(columns) == [
        f"quantile_v_{q}{end}" for q in ("0.25", "1") for end in ("", "_noise_stddev", "_ci_low", "_ci_high")
    ]
    assert all(column.type == pa.float64() and len(column) == 2 for column in columns.values())
    low, high = (columns[f"quantile_v_0.25{end}"].to_pylist() for end in ("_ci_low", "_ci_high"))
    for i, value in enumerate(columns["quantile_v_0.25"].to_pylist()):
        assert low[i] <= value <= high[i] and value == pytest.approx(100, abs=0.01)
    assert columns["quantile_v_1"].to_pylist() == pytest.approx([200, 100], abs=0.01)
    assert columns["quantile_v_1_noise_stddev"].null_count == 2


def test_a_sum_beside_a_mean_is_made_of_its_statistics() -> None:
    mean, alone, other = Mean("v", 0, 10), Sum("v", 0, 5), Sum("v", 0, 10, name="total", weight=3)
    first, second, third = shared_statistics([mean, alone, other])
    assert (first, second) == (mean, alone)
    assert third.title == "total" and third.statistics == mean.statistics and third.statistic_weight == 3
    found = columns_of(third, noised([40, 0]), noised([8, -8], step=0.25, rounded=True))
    assert found[""] == [5 * 40 + 2, -2]
    reach = sum_half_width([(5.0, LAPLACE), (0.25, LAPLACE)], 0.95) + 0.125
    assert found["_ci_low"] == pytest.approx([202 - reach, -2 - reach])
    assert found["_ci_high"] == pytest.approx([202 + reach, -2 + reach])
    assert found["_noise_stddev"] == pytest.approx([math.hypot(5, 0.25) * LAPLACE.stddev] * 2)


def law(noise: Any, reach: int) -> np.ndarray:
    """P[X = k] for k from -reach to reach, from the definition."""
    k = np.arange(-reach, reach + 1)
    weights = (
        np.exp(-np.abs(k) / noise.scale) if isinstance(noise, DiscreteLaplace) else np.exp(-(k**2) / 2 / noise.sigma**2)
    )
    return weights / weights.sum()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (5.0, 0.01), (0.3, 2.0), (0.0, 1.5), (1e-9, 1.0)], ids=str)
@pytest.mark.parametrize(
    "pair", [(LAPLACE, LAPLACE), (LAPLACE, GAUSSIAN), (DiscreteLaplace(0.2), DiscreteLaplace(90.0))], ids=str
)
def test_the_half_width_of_a_sum_of_noises(weights: tuple[float, float], pair: tuple[Any, Any]) -> None:
    # Exactly, over all pairs of integers.
    reaches = [noise.half_width(1 - 1e-10) for noise in pair]
    masses = np.outer(*(law(noise, reach) for noise, reach in zip(pair, reaches, strict=True)))
    places = [weight * np.arange(-reach, reach + 1) for weight, reach in zip(weights, reaches, strict=True)]
    distance = np.abs(places[0][:, None] + places[1][None])
    for confidence in (0.5, 0.95, 0.99):
        t = sum_half_width(list(zip(weights, pair, strict=True)), confidence)
        scale = max(weight * noise.stddev for weight, noise in zip(weights, pair, strict=True))
        assert masses[distance <= t * (1 + 1e-9)].sum() >= confidence - 1e-9
        narrower = t * 0.999 - 1e-3 * scale - min(w for w in weights if w) * 1.001
        assert masses[distance <= narrower].sum() < confidence
