"""Integer noise against its exact law, against OpenDP, and the same tests against planted bugs."""

import math
import pickle
from fractions import Fraction

import numpy as np
import opendp.prelude as dp
import pytest
from exact_numbers import LARGEST, SIGNIFICANCE, ChosenWords, exp_bounds, integers_pvalue
from scipy import stats

from beam_dp.accounting import DiscreteLaplaceLoss
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.discrete_noise import DiscreteGaussian, DiscreteLaplace
from beam_dp.mechanisms.partition_selection import LaplaceThreshold

SCALES = [0.3, 1.0, 5.0, 200.0]
LAWS = [DiscreteLaplace, DiscreteGaussian]
DRAWS = 200_000

dp.enable_features("contrib")


def laplace_law(scale):
    alpha = math.exp(-1 / scale)
    return lambda k: (1 - alpha) / (1 + alpha) * alpha ** np.abs(k)


def gaussian_law(sigma):
    reach = math.ceil(40 * sigma) + 1
    total = math.fsum(math.exp(-((k / sigma) ** 2) / 2) for k in range(-reach, reach + 1))
    return lambda k: np.exp(-((k / sigma) ** 2) / 2) / total


def law_of(noise):
    return laplace_law(noise.scale) if isinstance(noise, DiscreteLaplace) else gaussian_law(noise.sigma)


def reach_of(noise):
    """Beyond it is less than 1e-6 of the law."""
    return math.ceil(14 * noise.scale if isinstance(noise, DiscreteLaplace) else 5.5 * noise.sigma) + 2


def law_pvalue(sample, noise):
    return integers_pvalue(sample, law_of(noise), reach_of(noise))


def half_law(noise):
    """P[|X| = 0], P[|X| = 1], ... as far as floats go."""
    support = np.arange(math.ceil(60 * (noise.scale if isinstance(noise, DiscreteLaplace) else noise.sigma)) + 3)
    law = law_of(noise)(support)
    law[1:] *= 2
    return law


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", LAWS)
def test_draws_have_the_exact_law(rng, kind, scale):
    noise = kind(scale)
    sample = noise.sample(DRAWS, rng)
    assert sample.dtype == np.int64 and sample.shape == (DRAWS,)
    assert law_pvalue(sample, noise) > SIGNIFICANCE


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", LAWS)
def test_moments(rng, kind, scale):
    noise = kind(scale)
    sample = noise.sample(DRAWS, rng).astype(float)
    law = half_law(noise)
    support = np.arange(len(law), dtype=float)
    second, fourth = float(support**2 @ law), float(support**4 @ law)
    limit = stats.norm.isf(SIGNIFICANCE / 2)
    assert abs(sample.mean()) < limit * math.sqrt(second / DRAWS)
    assert abs(np.mean(sample**2) - second) < limit * math.sqrt((fourth - second**2) / DRAWS)


def test_a_draw_is_put_together_of_digits_and_heads_in_a_row():
    """What lies beyond eight scales is too rare for a statistic; chosen words reach it. The word 0 is always heads."""
    heads, tails = 0, LARGEST
    # Scale 1/8: no digits. The first geometric number has three heads, the second none.
    rows = ChosenWords(heads, tails, heads, heads, tails)
    assert DiscreteLaplace(0.125).sample(1, rows).tolist() == [3] and not rows.words
    # Scale 1: digits of 1, 2 and 4, then eights. 1 + 4 + 2 * 8 = 21, and 2 + 4 = 6.
    digits = (heads, tails, tails, heads, heads, heads)
    rows = ChosenWords(*digits, heads, tails, heads, tails)
    assert DiscreteLaplace(1.0).sample(1, rows).tolist() == [21 - 6] and not rows.words


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("scale", [2.0**20, 2.0**35])
def test_large_scales(rng, kind, scale):
    """The steps of the lattice do not show in the shape, and the lowest digits are those of a smooth law: uniform."""
    sample = kind(scale).sample(50_000, rng)
    shape = stats.laplace if kind is DiscreteLaplace else stats.norm
    assert stats.kstest(sample / scale, shape.cdf).pvalue > SIGNIFICANCE
    assert stats.chisquare(np.bincount(sample % 64, minlength=64)).pvalue > SIGNIFICANCE
    assert stats.chisquare(np.bincount((sample >> 12) % 64, minlength=64)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("kind", LAWS)
def test_every_scale_on_the_border_of_what_is_allowed_can_be_drawn(rng, kind):
    assert not kind(0.001).sample(1000, rng).any()
    largest = 2.0**40 if kind is DiscreteLaplace else 2.0**39
    noise = kind(largest)
    assert 0.9 < noise.sample(20_000, rng).std() / noise.stddev < 1.1
    with pytest.raises(ArgumentError, match="must be from"):
        kind(largest * 1.01)
    with pytest.raises(ArgumentError, match="must be from"):
        kind(0.0009)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("size", [0, 1, 7, 1 << 14, (1 << 14) + 1])
def test_any_number_of_draws(rng, kind, size):
    assert kind(3.0).sample(size, rng).shape == (size,)


@pytest.mark.parametrize("kind", LAWS)
def test_draws_are_independent_of_each_other(rng, kind):
    """Neighbours, and the same places of neighbouring blocks."""
    sample = kind(20.0).sample(100_000, rng).astype(float)
    for lag in (1, 2, 1 << 13, 1 << 14, 1 << 15):
        assert stats.spearmanr(sample[:-lag], sample[lag:]).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 5.0, 200.0, 4100.0])
def test_standard_deviation_and_half_widths_are_those_of_the_exact_sums(kind, scale):
    noise = kind(scale)
    law = half_law(noise)
    support = np.arange(len(law), dtype=float)
    assert noise.stddev == pytest.approx(math.sqrt(math.fsum(support**2 * law)), rel=1e-9)
    outside = np.append(np.cumsum(law[:0:-1])[::-1], 0.0)  # P[|X| > t], summed from the small end
    for confidence in (0.05, 0.5, 0.9, 0.95, 0.983, 0.999, 1 - 1e-9):
        t = noise.half_width(confidence)
        assert isinstance(t, int) and t >= 0
        assert outside[t] <= (1 - confidence) * (1 + 1e-9)
        assert t == 0 or outside[t - 1] > (1 - confidence) * (1 - 1e-9)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0, 200.0, 4100.0])
def test_distribution_functions_are_those_of_the_exact_sums(kind, scale):
    noise = kind(scale)
    reach = math.ceil(60 * scale)
    below = np.cumsum(law_of(noise)(np.arange(-reach, reach + 1)))
    k = np.unique(np.concatenate([np.arange(-5, 6), np.linspace(-reach, reach, 400).astype(int)]))
    k = k[np.abs(k) <= reach]
    assert noise.at_most(k.astype(float)) == pytest.approx(below[k + reach], rel=1e-9, abs=1e-12)
    assert noise.at_most(np.array([-1e12, 1e12])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0, 200.0])
def test_exponential_moments_are_those_of_the_exact_sums_or_bound_them(kind, scale):
    noise = kind(scale)
    support = np.arange(-math.ceil(200 * scale) - 40, math.ceil(200 * scale) + 41)
    support = support[law_of(noise)(support) > 0]
    law = law_of(noise)(support)
    for share in (-0.7, -0.2, 0.1, 0.5, 0.8):
        t = share * min(noise.largest_exponent, 3 / scale)
        exact = math.log(np.exp(t * support) @ law)
        assert exact <= noise.log_mgf(t) + 1e-12
        assert kind is DiscreteGaussian or noise.log_mgf(t) == pytest.approx(exact, rel=1e-9)
        if kind is DiscreteGaussian and scale >= 1:
            assert noise.log_mgf(t) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("sigma", [2.0**12, 2.0**12 + 1])
def test_both_ways_to_the_half_width_agree_where_they_meet(sigma):
    noise = DiscreteGaussian(sigma)
    law = half_law(noise)
    for confidence in np.linspace(0.01, 0.999, 50):
        t = int(np.searchsorted(np.cumsum(law), confidence))
        assert noise.half_width(confidence) == t


def test_gaussian_of_a_large_sigma_is_described_without_summing_its_support():
    noise = DiscreteGaussian(2.0**39)
    assert noise.stddev == 2.0**39
    assert noise.half_width(0.95) / 2.0**39 == pytest.approx(stats.norm.ppf(0.975), rel=1e-9)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("confidence", [0, 1, -0.1, 1.5, math.nan])
def test_a_confidence_that_is_no_probability_is_refused(kind, confidence):
    for scale in (2.0, 5000.0):
        with pytest.raises(ArgumentError, match="confidence"):
            kind(scale).half_width(confidence)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, None, "1", True])
def test_a_scale_that_is_no_positive_number_is_refused(kind, value):
    with pytest.raises(ArgumentError, match="scale" if kind is DiscreteLaplace else "sigma"):
        kind(value)


@pytest.mark.parametrize("kind", LAWS)
def test_a_law_is_a_value(kind, rng):
    noise = kind(2)
    noise.sample(10, rng)
    copy = pickle.loads(pickle.dumps(noise))
    assert copy == noise == kind(2.0) and hash(copy) == hash(noise) and repr(copy) == repr(noise)
    assert kind(3.0) != noise


def opendp_measurement(noise):
    domain = dp.atom_domain(T=int)
    if isinstance(noise, DiscreteLaplace):
        return dp.m.make_laplace(dp.vector_domain(domain), dp.l1_distance(T=int), scale=noise.scale)
    return dp.m.make_gaussian(dp.vector_domain(domain), dp.l2_distance(T=int), scale=noise.sigma)


def two_sample_pvalue(one, other):
    """Chi-square of two samples of integers, in cells that hold at least twenty of both together."""
    both = np.sort(np.concatenate([one, other]))
    edges = np.unique(both[:: max(20, len(both) // 60)])
    table = np.array([np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (one, other)])
    table = table[:, table.sum(axis=0) > 0]
    return stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", LAWS)
def test_opendp_draws_from_the_same_law(rng, kind, scale):
    """Its generator has no seed, so the significance is one that chance never meets."""
    noise = kind(scale)
    theirs = np.array(opendp_measurement(noise)([0] * 20_000))
    assert two_sample_pvalue(noise.sample(DRAWS, rng), theirs) > 1e-9
    assert two_sample_pvalue(kind(scale * 0.8).sample(DRAWS, rng), theirs) < 1e-9


@pytest.mark.parametrize("epsilon", [0.01, 0.3, 1.0, 1 / 3, 7.7])
@pytest.mark.parametrize("partitions", [1, 7])
def test_opendp_charges_the_scale_of_an_epsilon_with_that_epsilon(epsilon, partitions):
    noise = LaplaceThreshold(epsilon, 1e-6, partitions).noise
    assert opendp_measurement(noise).map(partitions) == pytest.approx(epsilon, rel=1e-12)
    assert DiscreteLaplaceLoss(noise.scale, partitions).reach == pytest.approx(epsilon, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 5.0])
@pytest.mark.parametrize("sensitivity", [1, 2])
def test_the_gaussian_law_loses_what_it_claims_and_opendp_charges_the_same(sigma, sensitivity):
    """Rényi divergences of the law from its shifted copy: at most order * rho, which whole orders reach."""
    rho = opendp_measurement(DiscreteGaussian(sigma)).map(sensitivity)
    law = gaussian_law(sigma)
    support = np.arange(-math.ceil(30 * sigma), math.ceil(30 * sigma) + 1)
    here, there = np.log(law(support)), np.log(law(support - sensitivity))
    orders = np.array([1.1, 1.5, 2, 2.5, 3, 4, 5])
    losses = [np.log(np.exp(order * here + (1 - order) * there).sum()) / (order - 1) for order in orders]
    assert np.max(losses / orders) == pytest.approx(rho, rel=1e-9)
    assert rho == pytest.approx(sensitivity**2 / (2 * sigma**2), rel=1e-12)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_laplace_law_loses_what_it_claims_and_no_less(scale):
    """Over all outputs in reach: the largest ratio of neighbours is exp(Δ/scale), and it is reached."""
    law = laplace_law(scale)
    outputs = np.arange(-math.ceil(20 * scale), math.ceil(20 * scale) + 4)
    for sensitivity in (1, 3):
        ratio = np.log(law(outputs) / law(outputs - sensitivity))
        assert ratio.max() == pytest.approx(sensitivity / scale, rel=1e-9)
        assert ratio.min() == pytest.approx(-sensitivity / scale, rel=1e-9)


def half_scale(noise, n, rng):
    return type(noise)(scale_of(noise) * 0.5).sample(n, rng)


def four_fifths_of_the_scale(noise, n, rng):
    return type(noise)(scale_of(noise) * 0.8).sample(n, rng)


def scale_of(noise):
    return noise.scale if isinstance(noise, DiscreteLaplace) else noise.sigma


def zero_counted_twice(noise, n, rng):
    """A geometric number with a random sign: +0 and -0 are one output with the probability of both."""
    alpha = math.exp(-1 / noise.scale)
    return (rng.geometric(1 - alpha, n) - 1) * rng.choice([-1, 1], n)


def one_sided(noise, n, rng):
    return np.abs(noise.sample(n, rng))


def rounded_float(noise, n, rng):
    return np.rint(rng.laplace(0, noise.scale, n)).astype(np.int64)


def proposal_without_rejection(noise, n, rng):
    return DiscreteLaplace(math.floor(noise.sigma) + 1.0).sample(n, rng)


def rejection_by_the_continuous_density(noise, n, rng):
    """Accepts with exp(-Y²/(2σ²)), which forgets that the proposal has a law of its own."""
    out = np.empty(0, np.int64)
    while len(out) < n:
        drawn = proposal_without_rejection(noise, n, rng)
        out = np.append(out, drawn[rng.random(n) < np.exp(-((drawn / noise.sigma) ** 2) / 2)])
    return out[:n]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bug", [half_scale, four_fifths_of_the_scale, zero_counted_twice, one_sided])
def test_planted_bugs_of_the_laplace_law_are_found(rng, bug, scale):
    noise = DiscreteLaplace(scale)
    draws = DRAWS if scale < 100 else 10 * DRAWS  # a zero counted twice is one draw in 400 there
    assert law_pvalue(bug(noise, draws, rng), noise) < SIGNIFICANCE


def test_planted_bug_of_rounded_float_noise_is_found(rng):
    noise = DiscreteLaplace(1.0)
    assert law_pvalue(rounded_float(noise, DRAWS, rng), noise) < SIGNIFICANCE


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "bug", [half_scale, four_fifths_of_the_scale, proposal_without_rejection, rejection_by_the_continuous_density]
)
def test_planted_bugs_of_the_gaussian_law_are_found(rng, bug, scale):
    noise = DiscreteGaussian(scale)
    assert law_pvalue(bug(noise, DRAWS, rng), noise) < SIGNIFICANCE


def test_the_laws_of_these_tests_are_those_of_the_definition():
    """Against rational arithmetic, so that the tests do not rest on the floats that they compare with."""
    low, high = exp_bounds(Fraction(-1, 5))
    for k in (0, 1, 17):
        least, most = (1 - high) / (1 + high) * low**k, (1 - low) / (1 + low) * high**k
        assert float(least) == pytest.approx(float(most), rel=1e-12)
        assert laplace_law(5.0)(np.array([k, -k])) == pytest.approx([float(least)] * 2, rel=1e-12)
    assert gaussian_law(0.3)(np.arange(-9, 10)).sum() == pytest.approx(1, rel=1e-12)
    weights = [exp_bounds(Fraction(-(k**2), 2))[0] for k in range(-20, 21)]
    assert gaussian_law(1.0)(np.array([3]))[0] == pytest.approx(float(weights[23] / sum(weights)), rel=1e-12)
