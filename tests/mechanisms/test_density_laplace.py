import math
from types import SimpleNamespace

import numpy as np
import pytest
from finite_laws import (
    REJECTION,
    SIGNIFICANCE,
    VOCABULARIES,
    largest_excess,
    slow_law,
    with_index_distances,
    worst_fit,
)
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, DensityLaplace
from beam_dp.mechanisms import density_laplace as module
from beam_dp.mechanisms.density_laplace import _propose, envelope
from beam_dp.mechanisms.row_laws import Weights

EPSILON = 2.5
SMALL = {
    "3 words, d=1": [[0.0], [1.0], [3.5]],
    "equal vectors, d=1": [[0.0], [0.0], [0.7], [2.0]],
    "9 words, d=2": np.random.default_rng(1).normal(size=(9, 2)),
    "stretched, d=2": np.random.default_rng(2).normal(size=(12, 2)) * [0.1, 2],
}


def grid_of(space, epsilon, bandwidth):
    """Points so far and so close that all but a millionth of every f_w lies among them."""
    reach = min(7 * bandwidth, 40 / epsilon) + 1e-9
    low, high = space.vectors.min(axis=0) - reach, space.vectors.max(axis=0) + reach
    steps = 200_001 if space.dimension == 1 else 701
    axes = [np.linspace(a, b, steps) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, space.dimension)


def distances_to(space, points):
    vectors = space.vectors.astype(np.float64)
    return np.stack([np.sqrt(((points - vector) ** 2).sum(axis=1)) for vector in vectors])


def densities(space, points, epsilon, bandwidth, with_prior=True):
    """ln f_w of every word on ``points``, a grid, up to one constant: (V, n), each normalised by its sum."""
    distances = distances_to(space, points)
    prior = np.log(np.exp(-((distances / bandwidth) ** 2) / 2).sum(axis=0) + 1e-300) if with_prior else 0
    logs = prior - epsilon / 2 * distances
    return logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))


def grid_law(space, epsilon, bandwidth, with_prior=True):
    """P[M(w) = y], the density summed over the points that are nearest to each word; of equal vectors the first."""
    points = grid_of(space, epsilon, bandwidth)
    nearest = distances_to(space, points).argmin(axis=0)
    law = np.exp(densities(space, points, epsilon, bandwidth, with_prior))
    return np.array([np.bincount(nearest, row, space.size) for row in law])


def points_of(space, mechanism, word, n, rng):
    """The points X of n draws for one word, in float64."""
    captured = []
    space.nearest = lambda queries: captured.append(queries.astype(np.float64)) or np.zeros(len(queries), np.int32)
    mechanism.bind(space).sample(np.full(n, word, np.int32), rng)
    return np.concatenate(captured)


def accept_everything(bounds, distances, across_dimensions, rng):
    """A planted bug: a chain of length 1, which takes its first proposal."""
    parts, accepted = _propose(bounds, distances, across_dimensions, rng)
    return parts, np.ones_like(accepted)


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf, "1", True, 1e-13, 200.00001])
def test_bandwidth_out_of_range_is_refused(bandwidth):
    with pytest.raises(ArgumentError, match="bandwidth must be"):
        DensityLaplace(3.0, bandwidth)


@pytest.mark.parametrize("epsilon", [0, math.nan, "1", 1e-13])
def test_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be"):
        DensityLaplace(epsilon)


def test_is_a_value_with_a_name():
    assert repr(DensityLaplace(2, 1)) == "DensityLaplace(epsilon=2.0, bandwidth=1.0)"
    assert MECHANISMS["density_laplace"] is DensityLaplace
    assert DensityLaplace(3.0, 200.0).bandwidth == 200.0


def test_guarantee_is_proved_for_the_euclidean_metric_alone(plain_space):
    guarantee = DensityLaplace(3.0).guarantee(SimpleNamespace(metric="euclidean", digest="1" * 64, min_distance=0.1))
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis, guarantee.metric) == (3.0, 0.0, "proved", "euclidean")
    space = plain_space([[0.0], [0.5]], metric="poincare")
    for call in (DensityLaplace(3.0).guarantee, DensityLaplace(3.0).bind):
        with pytest.raises(ArgumentError, match="proved for the euclidean metric"):
            call(space)


def test_vocabulary_of_equal_vectors_needs_a_bandwidth(plain_space, rng):
    space = plain_space([[0.0], [0.0], [1.0]])
    for call in (DensityLaplace(1.0).bind, DensityLaplace(1.0).guarantee):
        with pytest.raises(ArgumentError, match="bandwidth must be given"):
            call(space)
    assert len(DensityLaplace(1.0, 1.0).bind(space).sample(np.array([0, 1, 2], np.int32), rng)) == 3


class Script:
    """A generator that gives the numbers it is told to."""

    def __init__(self, normal, gamma, uniform):
        self.standard_normal = lambda n: normal.copy()
        self.standard_gamma = lambda shape, n: gamma.copy()
        self.random = lambda n: uniform.copy()


@pytest.mark.parametrize("sharpness", [0.3, 5.0, 100.0])
@pytest.mark.parametrize("dimension", [2, 10, 300])
def test_a_proposal_is_accepted_as_often_as_its_own_law_exceeds_the_target(rng, dimension, sharpness):
    """The laws of t and s are read off what `_propose` makes of given numbers, the acceptance off its answers."""
    n = 300
    bounds = envelope(sharpness, 1.0, dimension, 50.0)
    distances = rng.uniform(0, 50, n)
    normal, gamma = rng.normal(size=n), rng.gamma(dimension - 1, size=n)

    def propose(log_uniform):
        return _propose(bounds, distances, dimension - 1, Script(normal, gamma, np.exp(log_uniform)))

    t, s = propose(np.zeros(n))[0]
    proposal = stats.norm(t - normal).logpdf(t) + stats.gamma(dimension - 1, scale=s / gamma).logpdf(s)
    proposal -= Weights(sharpness, knots=bounds.knots).costs(distances)
    target = -(t**2) / 2 + (dimension - 2) * np.log(s) - s**2 / 2 - sharpness * np.hypot(distances + t, s)
    low, high = np.full(n, -60.0), np.zeros(n)
    for _ in range(50):
        middle = (low + high) / 2
        accepted = propose(middle)[1]
        low, high = np.where(accepted, middle, low), np.where(accepted, high, middle)
    possible = low > -59
    assert possible.sum() > n / 5
    assert np.ptp((target - proposal - low)[possible]) < 1e-7


@pytest.mark.parametrize("rate", [1e-9, 0.3, 20.0])
@pytest.mark.parametrize("bandwidth", [1e-9, 0.2, 15.0])
@pytest.mark.parametrize("dimension", [1, 2, 10, 300])
def test_what_is_accepted_has_the_density_of_the_target(rng, dimension, bandwidth, rate):
    """Proposal times acceptance is the target times one number, whatever centre, t and s."""
    diameter = 4 * (bandwidth + 1 / rate)
    bounds = envelope(rate, bandwidth, dimension, diameter)
    distances = np.append(rng.uniform(0, diameter, 500), [0.0, diameter, *bounds.breaks[bounds.breaks <= diameter]])
    n = len(distances)
    t = rng.normal(0, 2, n)
    s = stats.chi(dimension - 1).rvs(n, random_state=rng) if dimension > 1 else np.zeros(n)
    sharpness = rate * bandwidth
    length = np.hypot(distances / bandwidth + t, s)
    target = -(t**2) / 2 - sharpness * length
    line = np.searchsorted(bounds.breaks, distances)
    a, b = bounds.along[line], bounds.across[line]
    proposal = stats.norm(-sharpness * a).logpdf(t) - Weights(rate, knots=bounds.knots).costs(distances)
    excess = sharpness * (length - a * (distances / bandwidth + t) - b * s)
    if dimension > 1:
        target += (dimension - 2) * np.log(s) - s**2 / 2
        proposal += stats.gamma(dimension - 1, scale=1 / bounds.steps[line]).logpdf(s)
        excess += (s - (dimension - 1) / bounds.steps[line]) ** 2 / 2
    assert excess.min() > -1e-9 * (1 + rate * diameter)
    assert np.ptp(proposal - excess - target) < 1e-9 * (1 + rate * diameter + dimension)


@pytest.mark.parametrize("sharpness", [1e-9, 0.1, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("dimension", [1, 2, 10, 300])
def test_envelope_is_the_best_line_everywhere_and_serves_rows(dimension, sharpness):
    bounds = envelope(sharpness, 1.0, dimension, 50.0)
    ends, bent = bounds.knots
    assert ends[0] == bent[0] == 0 and ends[-1] >= 50 and (np.diff(ends) > 0).all()
    slopes = np.diff(bent) / np.diff(ends)
    assert slopes.min() > -1e-12 and slopes.max() < 1 + 1e-12 and (np.diff(slopes) > -1e-9).all()
    distances = np.linspace(0, 50, 2001)
    heights = -((sharpness * bounds.along) ** 2) / 2
    if dimension > 1:
        n = dimension - 1
        heights += n * np.log(bounds.steps) - (n / bounds.steps) ** 2 / 2
    costs = (sharpness * bounds.along * distances[:, None] + heights).max(axis=1)
    scale = 1e-9 * (1 + sharpness * 50 + dimension)
    assert np.abs(Weights(sharpness, knots=bounds.knots).costs(distances) - (costs - costs[0])).max() < scale


@pytest.mark.parametrize("sharpness", [1e-9, 0.1, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("dimension", [1, 2, 10, 300])
def test_rounds_accept_often_enough(rng, dimension, sharpness):
    bounds = envelope(sharpness, 1.0, dimension, 1e4)
    for distance in (0.0, sharpness / 3, sharpness, sharpness + math.sqrt(dimension), 1e3):
        _, accepted = _propose(bounds, np.full(40_000, distance), dimension - 1, rng)
        assert accepted.mean() > 0.3 * math.sqrt(dimension) / (sharpness + math.sqrt(dimension))


@pytest.mark.parametrize("bandwidth", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("vocabulary", SMALL)
def test_draws_follow_the_density_and_not_that_without_the_prior(plain_space, rng, vocabulary, bandwidth):
    space = with_index_distances(plain_space(SMALL[vocabulary]))
    words = [0, space.size // 2, space.size - 1]
    bound = DensityLaplace(EPSILON, bandwidth).bind(space)
    law = grid_law(space, EPSILON, bandwidth)
    assert worst_fit(bound, law, words, 40_000, rng) > SIGNIFICANCE
    if bandwidth < 1:
        flat = grid_law(space, EPSILON, bandwidth, with_prior=False)
        assert worst_fit(bound, flat, words, 40_000, rng) < REJECTION


@pytest.mark.parametrize("vocabulary", SMALL)
def test_default_bandwidth_is_the_median_neighbour_distance_over_the_root_of_the_dimension(
    plain_space, rng, vocabulary
):
    space = plain_space(SMALL[vocabulary])
    bandwidth = float(np.median(np.sort(space.distances, axis=1)[:, 1])) / math.sqrt(space.dimension)
    if bandwidth == 0:
        pytest.skip("most words of this vocabulary have a twin")
    law = grid_law(space, EPSILON, bandwidth)
    assert worst_fit(DensityLaplace(EPSILON).bind(space), law, [0, 1], 40_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("vocabulary", ["3 words, d=1", "9 words, d=2"])
def test_a_chain_of_length_one_is_caught(monkeypatch, plain_space, rng, vocabulary):
    space = plain_space(SMALL[vocabulary])
    monkeypatch.setattr(module, "_propose", accept_everything)
    law = grid_law(space, EPSILON, 1.5)
    assert worst_fit(DensityLaplace(EPSILON, 1.5).bind(space), law, [0, 1], 40_000, rng) < REJECTION


@pytest.mark.parametrize("bandwidth", [0.1, 1.0])
@pytest.mark.parametrize("vocabulary", SMALL)
def test_claim_holds_for_points_and_words_and_a_dropped_half_breaks_it(plain_space, vocabulary, bandwidth):
    space = plain_space(SMALL[vocabulary])
    points = grid_of(space, EPSILON, bandwidth)[::5]
    allowed = EPSILON * space.distances
    for epsilon, holds in ((EPSILON, True), (2 * EPSILON, False)):
        logs = densities(space, points, epsilon, bandwidth)
        ratios = np.array([(row - logs).max(axis=1) for row in logs])
        assert ((ratios - allowed).max() < 1e-6) == holds
    law = grid_law(space, EPSILON, bandwidth)
    assert largest_excess(law[:, law.any(axis=0)], space.distances, EPSILON) < 1e-6


def two_words(dimension):
    rng = np.random.default_rng(dimension)
    axis = rng.normal(size=dimension)
    return np.array([np.zeros(dimension), 3 * axis / np.linalg.norm(axis)])


def marginals(dimension, epsilon, bandwidth, distance=3.0):
    """Distribution functions of the part of X - v(w) along the axis of two words, and of the length across."""
    reach = 9 * bandwidth
    along = np.linspace(-reach, distance + reach, 3001)[:, None]
    middle = bandwidth * math.sqrt(dimension)
    across = np.linspace(max(middle - 25 * bandwidth, 0), middle + 9 * bandwidth, 3002)[None, 1:]
    logs = (dimension - 2) * np.log(across) - (across / bandwidth) ** 2 / 2 - epsilon / 2 * np.hypot(along, across)
    logs = logs + np.logaddexp(-((along / bandwidth) ** 2) / 2, -(((along - distance) / bandwidth) ** 2) / 2)
    density = np.exp(logs - logs.max())

    def cdf(axis, marginal):
        # The mass up to a point: half of its own cell, and all cells before.
        mass = np.cumsum(marginal) - marginal / 2
        return lambda x: np.interp(x, axis.ravel(), mass / marginal.sum())

    return cdf(along, density.sum(axis=1)), cdf(across, density.sum(axis=0))


def fits(points, dimension, epsilon, bandwidth):
    """p-values of points for a draw of word 0: along the axis, across it, and of the direction across."""
    axis = two_words(dimension)[1] / 3
    along = points @ axis
    rest = points - along[:, None] * axis
    across = np.linalg.norm(rest, axis=1)
    other = np.eye(dimension)[0] - axis[0] * axis
    cosine = rest @ (other / np.linalg.norm(other)) / across
    half = (dimension - 2) / 2
    laws = marginals(dimension, epsilon, bandwidth)
    return [
        stats.kstest(along, laws[0]).pvalue,
        stats.kstest(across, laws[1]).pvalue,
        stats.kstest((cosine + 1) / 2, stats.beta(half, half).cdf).pvalue,
        stats.pearsonr(along, cosine).pvalue,
    ]


@pytest.mark.parametrize(("dimension", "bandwidth"), [(3, 0.7), (10, 0.5), (10, 2.0), (300, 0.2), (300, 1.0)])
def test_points_in_many_dimensions_follow_the_density(plain_space, rng, dimension, bandwidth):
    space = plain_space(two_words(dimension))
    points = points_of(space, DensityLaplace(EPSILON, bandwidth), 0, 20_000, rng)
    assert min(fits(points, dimension, EPSILON, bandwidth)) > SIGNIFICANCE
    # Another epsilon, and another bandwidth, are told apart.
    assert min(fits(points, dimension, 1.3 * EPSILON, bandwidth)) < SIGNIFICANCE
    assert min(fits(points, dimension, EPSILON, 1.1 * bandwidth)) < SIGNIFICANCE


@pytest.mark.parametrize("dimension", [10, 300])
def test_a_chain_of_length_one_is_caught_in_many_dimensions(monkeypatch, plain_space, rng, dimension):
    monkeypatch.setattr(module, "_propose", accept_everything)
    points = points_of(plain_space(two_words(dimension)), DensityLaplace(EPSILON, 1.0), 0, 20_000, rng)
    assert min(fits(points, dimension, EPSILON, 1.0)) < REJECTION


@pytest.mark.parametrize("vocabulary", ["3 words, d=1", "17 words, d=2", "40 words, d=10, stretched"])
def test_a_narrow_density_is_the_exponential_mechanism(plain_space, rng, vocabulary):
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    words = [0, space.size // 2]
    law = {word: slow_law(space, word, lambda distance, _: math.exp(-EPSILON * distance / 2)) for word in words}
    assert worst_fit(DensityLaplace(EPSILON, 1e-6).bind(space), law, words, 40_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("dimension", [1, 2, 3, 10])
def test_a_wide_density_is_laplace_noise_of_half_the_epsilon(plain_space, rng, dimension):
    space = plain_space(np.eye(3, dimension) / 100)
    points = points_of(space, DensityLaplace(EPSILON, 600 / EPSILON), 2, 10_000, rng) - space.vectors[2]
    radius = np.linalg.norm(points, axis=1)
    # What is left of the density makes points at radius r rarer by exp(-r²/2h²): a thousandth, at 10 dimensions.
    assert stats.kstest(radius, stats.gamma(dimension, scale=2 / EPSILON).cdf).pvalue > SIGNIFICANCE
    cosine = points[:, 0] / radius
    if dimension == 1:
        assert stats.binomtest(int((cosine > 0).sum()), len(cosine)).pvalue > SIGNIFICANCE
    else:
        half = (dimension - 1) / 2
        assert stats.kstest((cosine + 1) / 2, stats.beta(half, half).cdf).pvalue > SIGNIFICANCE


def test_each_bandwidth_has_rows_of_its_own(plain_space, rng):
    space = with_index_distances(plain_space(SMALL["3 words, d=1"]))
    bounds = {bandwidth: DensityLaplace(EPSILON, bandwidth).bind(space) for bandwidth in (3.0, 0.05)}
    for bandwidth, bound in bounds.items():
        assert worst_fit(bound, grid_law(space, EPSILON, bandwidth), [0, 1], 40_000, rng) > SIGNIFICANCE


def test_default_bandwidth_stays_within_its_bounds(plain_space, rng):
    for epsilon, far, bandwidth in ((1e12, 1.0, 6e-10), (1.0, 1e-20, 1e-12)):
        bound = DensityLaplace(epsilon).bind(plain_space([[0.0], [far]]))
        assert bound._envelope.bandwidth == bandwidth
        # At a distance of 1e12/ε a word stays itself, at one of 1e-20/ε it may become the other.
        assert set(bound.sample(np.zeros(100, np.int32), rng)) == ({0} if far == 1 else {0, 1})


def test_words_of_a_batch_are_drawn_independently_and_in_place(plain_space, rng):
    space = plain_space([[0.0], [100.0], [200.0]])
    ids = rng.permutation(np.repeat(np.arange(3, dtype=np.int32), 3000))
    bound = DensityLaplace(1.0, 0.5).bind(space)
    drawn = bound.sample(ids, rng)
    assert drawn.dtype == np.int32 and np.array_equal(drawn, ids)
    assert len(bound.sample(np.zeros(0, np.int32), rng)) == 0
    assert bound.law_digest() is None
