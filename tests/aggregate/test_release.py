"""The release: exact sums in, noisy rows in the order of their keys out, with intervals that cover as they say."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from exact import KeepPresent, plan_of, sums_of
from scipy import stats

from beam_dp.aggregate import (
    Bounds,
    Count,
    Histogram,
    Mean,
    PrivacyUnitCount,
    Quantiles,
    Sum,
    Variance,
    VectorSum,
)
from beam_dp.aggregate.metrics import Metric, shared_statistics
from beam_dp.aggregate.noise import GaussianNoise, LaplaceNoise, NoiseFamily
from beam_dp.aggregate.partials import Partials, merge, zeros
from beam_dp.aggregate.release import AggregationPlan, release_block
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.discrete_noise import DiscreteGaussian, DiscreteLaplace
from beam_dp.mechanisms.partition_selection import TruncatedGeometric

SIGNIFICANCE = 1e-4
INTERVALS = 10_000
FAMILIES: dict[str, NoiseFamily] = {"laplace": LaplaceNoise(), "gaussian": GaussianNoise()}


def noisy(plan: AggregationPlan, sums: Partials, rng: np.random.Generator) -> dict[str, Any]:
    """The released columns; numbers as arrays, lists as matrices."""
    released = release_block(plan, sums, rng)
    return {
        name: np.array(released.column(name).to_pylist(), np.float64)
        for name in released.schema.names
        if name not in plan.by
    }


def same_sums(plan: AggregationPlan, dense: list[int]) -> Partials:
    """Many partitions with the same sums."""
    keys = (pa.array(np.arange(INTERVALS)),)
    return Partials(keys, np.tile(np.array(dense, np.int64), (INTERVALS, 1)), ())


def probability_within(noise: Any, low: float, high: float) -> float:
    """P[low <= X <= high], summed from the definition of the law."""
    reach = math.ceil(60 * noise.stddev) + 10
    k = np.arange(-reach, reach + 1)
    weights = (
        np.exp(-np.abs(k) / noise.scale)
        if isinstance(noise, DiscreteLaplace)
        else np.exp(-np.square(k / noise.sigma) / 2)
    )
    return float(weights[(k >= low) & (k <= high)].sum() / weights.sum())


def assert_coverage(covered: np.ndarray, probability: float) -> None:
    """Exactly this probability, within what chance allows."""
    assert stats.binomtest(int(covered.sum()), covered.size, probability).pvalue > SIGNIFICANCE


def assert_at_least(covered: np.ndarray, probability: float = 0.95) -> None:
    assert stats.binomtest(int(covered.sum()), covered.size, probability, alternative="less").pvalue > SIGNIFICANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [0.05, 0.9, 3.0])
@pytest.mark.parametrize("metric", [Count(), PrivacyUnitCount(), Count("v")], ids=lambda metric: metric.title)
def test_intervals_of_counts_have_their_exact_coverage(
    metric: Metric, epsilon: float, family: str, rng: np.random.Generator
) -> None:
    plan = plan_of([metric], Bounds(3, 2), family=FAMILIES[family], epsilon=epsilon, delta=1e-6)
    noise = plan.releases[0].noise
    found = noisy(plan, same_sums(plan, [17]), rng)
    low, high = found[f"{metric.title}_ci_low"], found[f"{metric.title}_ci_high"]
    t = (high - low) / 2
    assert np.all(t == t[0])
    exact = probability_within(noise, -t[0], t[0])
    # The smallest that has 95%.
    assert exact >= 0.95 > probability_within(noise, 1 - t[0], t[0] - 1)
    assert_coverage((low <= 17) & (high >= 17), exact)
    assert found[f"{metric.title}_noise_stddev"] == pytest.approx(noise.stddev)
    errors = found[metric.title] - 17
    assert abs(errors.mean()) < 5 * noise.stddev / math.sqrt(INTERVALS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [0.2, 20.0])
@pytest.mark.parametrize("total", [12_345_678_901, -(2**33) + 7 * 2**13])
def test_intervals_of_sums_have_their_exact_coverage(
    total: int, epsilon: float, family: str, rng: np.random.Generator
) -> None:
    plan = plan_of([Sum("v", -2, 5)], Bounds(2, 1), family=FAMILIES[family], epsilon=epsilon, delta=1e-6)
    (release,) = plan.releases
    truth = total * 5 / 2**30
    found = noisy(plan, same_sums(plan, [total >> 15, total & 0x7FFF]), rng)
    low, high = found["sum_v_ci_low"], found["sum_v_ci_high"]
    steps = total / 2**release.shift
    rounding = math.floor(steps + 0.5) - steps
    t = float(np.median(high - low)) / 2 / release.step
    exact = probability_within(release.noise, -t - rounding, t - rounding)
    assert exact >= 0.95
    assert_coverage((low <= truth) & (truth <= high), exact)
    errors = found["sum_v"] - truth
    assert abs(errors.mean()) < 5 * release.noise.stddev * release.step / math.sqrt(INTERVALS) + release.step / 2
    assert errors.std() == pytest.approx(release.noise.stddev * release.step, rel=0.05)
    # Rounding to steps costs nothing next to the noise.
    assert release.step < release.noise.stddev * release.step / 500 or release.shift == 15


def test_intervals_of_histograms_and_vectors_cover_each_number_by_itself(rng: np.random.Generator) -> None:
    metrics: list[Metric] = [Histogram("v", (0, 1, 2, 3)), VectorSum(("v", "w"), 8)]
    plan = plan_of(metrics, Bounds(2, 3), family=LaplaceNoise(), epsilon=0.7)
    bins, (v, w) = [5, 0, 900], (3 * 2**30, -5 * 2**28)
    dense = [*bins, v >> 15, v & 0x7FFF, w >> 15, w & 0x7FFF]
    found = noisy(plan, same_sums(plan, dense), rng)
    low, high = found["histogram_v_ci_low"], found["histogram_v_ci_high"]
    t = (high[0, 0] - low[0, 0]) / 2
    exact = probability_within(plan.releases[0].noise, -t, t)
    assert exact >= 0.95
    for i, count in enumerate(bins):
        assert_coverage((low[:, i] <= count) & (count <= high[:, i]), exact)
    noise = found["histogram_v"] - bins
    assert_uncorrelated(noise)
    sums = found["vector_sum_v_w"] - [24, -10]
    assert_uncorrelated(np.concatenate([sums, noise], axis=1))
    for i, truth in enumerate([24, -10]):
        covers = (found["vector_sum_v_w_ci_low"][:, i] <= truth) & (truth <= found["vector_sum_v_w_ci_high"][:, i])
        assert_at_least(covers)


def assert_uncorrelated(noise: np.ndarray) -> None:
    """Columns with each other, and every row with the next."""
    ranks = np.argsort(np.argsort(noise + 1e-6 * np.arange(noise.shape[1]), axis=0), axis=0)
    every = [(ranks[:, i], ranks[:, j]) for i in range(ranks.shape[1]) for j in range(i)]
    every += [(ranks[:-1, i], ranks[1:, i]) for i in range(ranks.shape[1])]
    assert all(stats.pearsonr(*pair).pvalue > SIGNIFICANCE / len(every) for pair in every)


def test_noise_of_selection_and_metrics_are_independent_draws(rng: np.random.Generator) -> None:
    rule = TruncatedGeometric(0.2, 0.05, 1)
    plan = plan_of([PrivacyUnitCount(), Count()], Bounds(1, 1), family=LaplaceNoise(), keep=rule)
    count = int(np.searchsorted(rule.table, 2**63))
    released = release_block(plan, same_sums(plan, [count, count, count]), rng)
    kept = np.zeros(INTERVALS, bool)
    kept[released.column("item").to_numpy()] = True
    chance = float(rule.table[count]) / 2**64
    assert 0.3 < chance < 0.7
    assert_coverage(kept, chance)
    units, rows = (released.column(name).to_numpy() - count for name in ("privacy_unit_count", "count"))
    # Selection has not looked at the noise that is shown: those that were kept have it unchanged.
    noise = plan.releases[0].noise
    for shown in (units, rows):
        for k in (-2, -1, 0, 1, 2):
            assert_coverage(shown == k, probability_within(noise, k, k))
    assert stats.pearsonr(units, rows).pvalue > SIGNIFICANCE
    assert stats.pearsonr(units[1:], units[:-1]).pvalue > SIGNIFICANCE


# Numbers of values, and the values: skewed, spread, one, equal, beyond the bounds.
def groups(size: int, rng: np.random.Generator) -> list[np.ndarray]:
    choices = [
        rng.exponential(2, size),
        rng.uniform(-5, 15, size),
        np.full(size, 3.25),
        rng.choice([0.0, 10.0], size),
        rng.normal(9.9, 0.01, size),
    ]
    return [np.clip(values, 0, 10) for values in choices]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 8, 60, 4000])
def test_intervals_of_means_and_variances_and_sums_beside_them_cover_enough(
    size: int, family: str, rng: np.random.Generator
) -> None:
    metrics = list(shared_statistics([Mean("v", 0, 10), Variance("v", 0, 10), Sum("v", 0, 10)]))
    plan = plan_of(metrics, Bounds(1, 1), family=FAMILIES[family], epsilon=0.8, delta=1e-6)
    values = groups(size, rng)
    copies = INTERVALS // len(values)
    one = merge([sums_of(plan, rows_of(group, i), i) for i, group in enumerate(values)], plan.by)
    order = np.argsort(one.keys[0].to_numpy())
    sums = Partials((pa.array(np.arange(copies * len(values))),), np.repeat(one.dense[order], copies, axis=0), ())
    found = noisy(plan, sums, rng)
    for title, truths in (
        ("mean_v", [group.mean() for group in values]),
        ("variance_v", [group.var() for group in values]),
        ("sum_v", [group.sum() for group in values]),
    ):
        truth = np.repeat(truths, copies)
        low, high = found[f"{title}_ci_low"], found[f"{title}_ci_high"]
        # What was quantised is off by 2^-31 of the range, and exact zeros are compared with their rounding.
        covered = (low - 1e-8 * size <= truth) & (truth <= high + 1e-8 * size)
        for i in range(len(values)):
            assert_at_least(covered[i * copies : (i + 1) * copies])
        assert np.all(low <= found[title] + 1e-9) and np.all(found[title] <= high + 1e-9)


def rows_of(values: np.ndarray, item: int) -> pa.RecordBatch:
    """A row of its own unit for each value."""
    users = np.arange(len(values)) + item * 10**6
    return pa.RecordBatch.from_pydict({"user": users, "item": np.full(len(values), item), "v": values})


@pytest.mark.parametrize("size", [1, 30, 2000])
def test_intervals_of_quantiles_cover_enough(size: int, rng: np.random.Generator) -> None:
    quantiles = (0.0, 0.1, 0.5, 0.95)
    plan = plan_of([Quantiles("v", 0, 10, quantiles=quantiles)], Bounds(1, 1), family=LaplaceNoise(), epsilon=1.5)
    values = groups(size, rng)
    for i, group in enumerate(values):
        one = sums_of(plan, rows_of(group, i), i)
        copies = INTERVALS // len(values)
        found = noisy(plan, tiled(one, copies), rng)
        for q in quantiles:
            low, high = found[f"quantile_v_{q:g}_ci_low"], found[f"quantile_v_{q:g}_ci_high"]
            width = 10 / 16**4
            for truth in (np.quantile(group, q, method="inverted_cdf"), np.quantile(group, q)):
                assert_at_least((low - width <= truth) & (truth <= high + width))


def tiled(sums: Partials, copies: int) -> Partials:
    """Partial sums of one partition, in many partitions."""
    (sparse,) = sums.sparse
    codes = (np.arange(copies)[:, None] * 16**4 + sparse.codes).reshape(-1)
    tree = type(sparse)(codes, np.tile(sparse.counts, copies))
    return Partials((pa.array(np.arange(copies)),), np.tile(sums.dense, (copies, 1)), (tree,))


KEYS: dict[str, list[Any]] = {
    "integers": [5, -3, None, 2**40, 0],
    "texts": ["b", "", None, "a", "\u00e9"],
    "booleans": [True, None, False],
}


@pytest.mark.parametrize("kind", KEYS)
def test_rows_come_in_the_order_of_their_keys_whatever_the_order_of_the_sums(kind: str) -> None:
    keys = KEYS[kind]
    plan = plan_of([Count()], Bounds(9, 9), keep=KeepPresent())
    batch = pa.RecordBatch.from_pydict({"user": pa.array(range(len(keys))), "item": pa.array(keys)})
    sums = sums_of(plan, batch)
    results = []
    for order in (np.arange(len(keys)), np.arange(len(keys))[::-1], np.roll(np.arange(len(keys)), 2)):
        released = release_block(plan, sums.take(order), np.random.default_rng(0))
        results.append(released.column("item").to_pylist())
    present = sorted(key for key in keys if key is not None)
    assert results == [[*present, None]] * 3


def test_columns_are_the_keys_then_those_of_the_metrics(rng: np.random.Generator) -> None:
    metrics: list[Metric] = [Sum("v", 0, 1), Count(name="n")]
    plan = plan_of(metrics, Bounds(1, 1), family=LaplaceNoise(), by=("a", "b"))
    keys = [pa.array(["x"]), pa.array([1])]
    released = release_block(plan, zeros(plan, keys), rng)
    ends = ("", "_noise_stddev", "_ci_low", "_ci_high")
    assert released.schema.names == ["a", "b", *(f"sum_v{end}" for end in ends), *(f"n{end}" for end in ends)]
    assert released.num_rows == 1
    nothing = release_block(plan, zeros(plan, [key.slice(0, 0) for key in keys]), rng)
    assert nothing.num_rows == 0 and nothing.schema == released.schema


@pytest.mark.parametrize("by", ["count_ci_low", "quantile_v_0.5"])
def test_two_columns_of_one_name_are_refused(by: str, rng: np.random.Generator) -> None:
    plan = plan_of([Count(), Quantiles("v", 0, 1)], Bounds(1, 1), family=LaplaceNoise(), by=(by,))
    with pytest.raises(ArgumentError, match=f"two columns of the output would be '{by}'"):
        release_block(plan, zeros(plan, [pa.array(["x"])]), rng)


def test_partitions_that_are_not_kept_are_nowhere_in_the_output(rng: np.random.Generator) -> None:
    plan = plan_of([Count()], Bounds(1, 1), family=LaplaceNoise(), keep=TruncatedGeometric(1.0, 1e-9))
    sums = Partials((pa.array(["many", "secret"]),), np.array([[10**6, 10**6], [1, 1]]), ())
    released = release_block(plan, sums, rng)
    assert released.column("item").to_pylist() == ["many"]
    assert b"secret" not in released.serialize().to_pybytes()


def test_a_plan_pickles_as_a_value() -> None:
    metrics: list[Metric] = [Count(), Mean("v", 0, 1), Quantiles("v", 0, 1)]
    plan = plan_of(metrics, Bounds(2, 3), family=LaplaceNoise(), keep=TruncatedGeometric(1.0, 1e-6, 2))
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan and repr(again) == repr(plan)
    assert isinstance(again.releases[0].noise, (DiscreteLaplace, DiscreteGaussian))
