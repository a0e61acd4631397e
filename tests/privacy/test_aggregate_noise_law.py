"""The noise as `release_block` shows it, against the exact law that the claim asks for.

The scale that is expected is worked out here from epsilon, L0, L∞ and the bounds of the values alone.
"""

import math

import aggregate_audits as audits
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from beam_dp.aggregate import Aggregate, Bounds, Budget, Count, Histogram, PrivacyUnitCount, Sum, VectorSum
from beam_dp.aggregate.partials import zeros
from beam_dp.aggregate.release import release_block
from beam_dp.mechanisms.discrete_noise import DiscreteGaussian, DiscreteLaplace

SIGNIFICANCE = 1e-4
BOUNDS = Bounds(partitions=3, rows_per_partition=2)
PARTITIONS = 200_000
LAPLACE, GAUSSIAN = DiscreteLaplace.sample, DiscreteGaussian.sample


def shown(metrics, epsilon, rng, *, bounds=BOUNDS, size=PARTITIONS, **options):
    """What is released of partitions without rows: noise alone; every metric has ``epsilon`` for each statistic."""
    releases = sum(len(metric.statistics) for metric in metrics)
    budget = Budget(epsilon * releases, options.pop("delta", 0.0))
    plan = Aggregate(
        "p", privacy_unit="u", bounds=bounds, metrics=metrics, budget=budget, partitions=[0], **options
    )._plan
    batch = release_block(plan, zeros(plan, [pa.array(np.arange(size))]), rng)
    flat = {
        name: column.flatten() if pa.types.is_list(column.type) else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    return {name: column.to_numpy() for name, column in flat.items()}, plan


def laplace_cdf(k, scale):
    """P[X <= k] where P[X = k] is proportional to exp(-|k|/scale)."""
    a = math.exp(-1 / scale)
    return np.where(k < 0, np.exp(-np.abs(k) / scale) / (1 + a), 1 - np.exp(-(np.abs(k) + 1) / scale) / (1 + a))


def gaussian_cdf(k, sigma):
    """P[X <= k] where P[X = k] is proportional to exp(-k²/(2·sigma²)), by summing."""
    support = np.arange(-math.ceil(15 * sigma), math.ceil(15 * sigma) + 1)
    cumulated = np.cumsum(np.exp(-((support / sigma) ** 2) / 2))
    return (cumulated / cumulated[-1])[np.clip(k - support[0], 0, len(support) - 1).astype(int)]


def law_pvalue(noise, cdf, spread):
    """Chi-square of integers in about 50 cells whose ends are spread evenly over ±4 ``spread``, and two tails."""
    assert (noise == np.rint(noise)).all()
    ends = np.unique(np.rint(np.linspace(-4 * spread, 4 * spread, 51)))
    expected = np.diff(np.concatenate([[0], cdf(ends), [1]])) * len(noise)
    observed = np.bincount(np.searchsorted(ends, noise, side="left"), minlength=len(ends) + 1)
    assert expected.min() > 10
    return stats.chisquare(observed, expected).pvalue


def low_digits_pvalue(noise, scale):
    """Chi-square of the four lowest binary digits of integers, whose law is as good as uniform at a large scale."""
    assert scale > 100
    return stats.chisquare(np.bincount(noise.astype(np.int64) & 15, minlength=16)).pvalue


def pairs_pvalue(one, other):
    """Chi-square of independence of the quarters that two columns of noise fall into."""
    ranks = [np.searchsorted(np.quantile(x, (0.25, 0.5, 0.75)), x) for x in (one, other)]
    table = np.bincount(4 * ranks[0] + ranks[1], minlength=16).reshape(4, 4)
    return stats.chi2_contingency(table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]).pvalue


def count_pvalue(rng):
    (columns, _) = shown([Count()], 0.7, rng)
    scale = 3 * 2 / 0.7
    return law_pvalue(columns["count"], lambda k: laplace_cdf(k, scale), scale)


def unit_count_pvalue(rng):
    (columns, _) = shown([PrivacyUnitCount()], 0.7, rng)
    scale = 3 * 1 / 0.7
    return law_pvalue(columns["privacy_unit_count"], lambda k: laplace_cdf(k, scale), scale)


def sum_pvalue(rng):
    """In the steps that the noise is drawn in: 100 is a whole number of them, a power of two."""
    columns, plan = shown([Sum("x", -20, 100)], 0.7, rng)
    steps = 100 / plan.releases[0].step
    assert steps == 2 ** round(math.log2(steps))
    scale = 3 * 2 * steps / 0.7
    noise = columns["sum_x"] / 100 * steps
    whole = np.rint(noise)
    assert np.abs(noise - whole).max() < 1e-6
    return min(law_pvalue(whole, lambda k: laplace_cdf(k, scale), scale), low_digits_pvalue(whole, scale))


def histogram_pvalue(rng):
    columns, _ = shown([Histogram("x", (0, 1, 2, 3))], 0.7, rng, size=70_000)
    scale = 3 * 2 / 0.7
    return law_pvalue(columns["histogram_x"], lambda k: laplace_cdf(k, scale), scale)


def tree_pvalue(rng):
    """All nodes that a search sees on its way down to the first leaf: L∞ rows change four counts each."""
    columns, _ = shown([audits.TreePath()], 0.7, rng, size=50_000)
    scale = 3 * 2 * 4 / 0.7
    return law_pvalue(columns["path"], lambda k: laplace_cdf(k, scale), scale)


def gaussian_pvalue(rng):
    columns, plan = shown([Count()], 0.7, rng, noise="gaussian", delta=1e-3)
    sigma = plan.releases[0].noise.sigma
    return law_pvalue(columns["count"], lambda k: gaussian_cdf(k, sigma), 0.6 * sigma)


LAWS = {
    "count": count_pvalue,
    "units": unit_count_pvalue,
    "sum": sum_pvalue,
    "histogram": histogram_pvalue,
    "tree": tree_pvalue,
    "gaussian": gaussian_pvalue,
}


@pytest.mark.parametrize("law", LAWS)
def test_noise_has_the_law_that_the_claim_asks_for(law, rng):
    assert LAWS[law](rng) > SIGNIFICANCE


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("law", LAWS)
def test_noise_of_another_scale_is_found(law, factor, rng, monkeypatch):
    def scaled(self, n, rng):
        return LAPLACE(DiscreteLaplace(self.scale * factor), n, rng)

    def scaled_gaussian(self, n, rng):
        return GAUSSIAN(DiscreteGaussian(self.sigma * factor), n, rng)

    monkeypatch.setattr(DiscreteLaplace, "sample", scaled)
    monkeypatch.setattr(DiscreteGaussian, "sample", scaled_gaussian)
    assert LAWS[law](rng) < SIGNIFICANCE


@pytest.mark.parametrize("law", ["count", "units", "histogram"])
def test_noise_of_a_continuous_law_that_is_rounded_is_found(law, rng, monkeypatch):
    """Its law differs most where the scale is small."""
    monkeypatch.setattr(DiscreteLaplace, "sample", lambda self, n, rng: np.trunc(rng.laplace(0, self.scale, n)))
    assert LAWS[law](rng) < SIGNIFICANCE


def delta_of(sigma, epsilon, partitions):
    """The delta of ``partitions`` counts of sensitivity 1 with discrete Gaussian noise, from the law itself.

    The loss, Σ (1 - 2·x_i)/(2·sigma²), hangs on the sum of the draws alone.
    """
    reach = math.ceil(15 * sigma)
    law = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    law /= law.sum()
    total = law
    for _ in range(partitions - 1):
        total = np.convolve(total, law)
    sums = np.arange(len(total)) - partitions * reach
    loss = (partitions - 2 * sums) / (2 * sigma**2)
    return float(total @ np.maximum(0, -np.expm1(epsilon - loss)))


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 4.0, 8.0])
def test_gaussian_noise_has_the_delta_that_it_claims_and_at_usual_scales_not_much_less(partitions, epsilon, rng):
    delta = 1e-4
    bounds = Bounds(partitions=partitions, rows_per_partition=1)
    _, plan = shown([Count()], epsilon, rng, bounds=bounds, size=1, noise="gaussian", delta=delta)
    sigma = plan.releases[0].noise.sigma
    assert delta_of(sigma, epsilon, partitions) <= delta
    # At a sigma of about 1 delta jumps as the law does, up and down.
    if sigma > 3:
        assert delta_of(sigma, epsilon, partitions) > 0.9 * delta
        assert delta_of(0.97 * sigma, epsilon, partitions) > delta


def independence_pvalue(rng):
    """Of neighbouring partitions, of two metrics, of two coordinates, of two bins and of two levels of a tree."""
    metrics = [
        Count(),
        PrivacyUnitCount(),
        VectorSum(("x", "y"), 1.0),
        Histogram("x", (0, 1, 2)),
        audits.TreePath(),
    ]
    columns, _ = shown(metrics, 1.0, rng, size=20_000)
    counts, units, bins = columns["count"], columns["privacy_unit_count"], columns["histogram_x"]
    vectors, levels = columns["vector_sum_x_y"], columns["path"]
    pairs = [
        (counts[:-1], counts[1:]),
        (counts[:10_000], counts[10_000:]),
        (counts, units),
        (vectors[::2], vectors[1::2]),
        (counts, vectors[::2]),
        (bins[::2], bins[1::2]),
        (counts, bins[::2]),
        (levels[::4], levels[1::4]),
        (levels[2::4], levels[3::4]),
        (counts, levels[::4]),
    ]
    return min(1.0, len(pairs) * min(pairs_pvalue(one, other) for one, other in pairs))


def test_every_integer_has_a_noise_of_its_own(rng):
    assert independence_pvalue(rng) > SIGNIFICANCE


def same_for_all(self, n, rng):
    return np.repeat(LAPLACE(self, 1, rng), n)


def same_for_neighbours(self, n, rng):
    return np.repeat(LAPLACE(self, n // 2 + 1, rng), 2)[:n]


def same_for_metrics(self, n, rng):
    return LAPLACE(self, n, np.random.default_rng(1))


def same_for_halves(self, n, rng):
    return np.tile(LAPLACE(self, (n + 1) // 2, rng), 2)[:n]


@pytest.mark.parametrize("bug", [same_for_neighbours, same_for_metrics, same_for_halves])
def test_noise_that_integers_share_is_found(bug, rng, monkeypatch):
    monkeypatch.setattr(DiscreteLaplace, "sample", bug)
    assert independence_pvalue(rng) < SIGNIFICANCE


def test_one_noise_for_a_block_is_found(rng, monkeypatch):
    monkeypatch.setattr(DiscreteLaplace, "sample", same_for_all)
    assert count_pvalue(rng) < SIGNIFICANCE
