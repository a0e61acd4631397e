import itertools
import json
import math
from datetime import datetime, timezone

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from projections import Recorder, fit_pvalue, independence_pvalue
from scipy import integrate, stats

from beam_dp import BudgetStore, Ledger, Limit, PrivatizeText, open_index, resolve_index
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, DistanceTruncatedLaplace
from beam_dp.mechanisms import distance_truncated_laplace as module
from beam_dp.mechanisms.distance_truncated_laplace import (
    least_bound,
    mass_outside,
    truncated_gamma,
    truncated_laplace_noise,
)

SIGNIFICANCE = 1e-4
LINE = np.array([-1.0, 0.2, -0.25, 1.5, 0.0])
# (dimension, epsilon, R): much of the Gamma law cut, little, nearly all, and a bound far below its bulk.
LAWS = [(1, 1.0, 2.0), (1, 0.1, 1.0), (2, 3.0, 1.5), (2, 1.0, 15.0), (10, 1.0, 4.0), (10, 5.0, 2.5), (300, 10.0, 29.0)]
FAR_BELOW = [(300, 1.0, 200.0), (300, 0.01, 50.0), (300, 1e-9, 2.0), (10, 1.0, 0.5), (3, 1e-3, 1e-3)]


def radius_cdf(dimension, epsilon, bound):
    """P[|Z| <= r], the density integrated on a fine grid in logarithms, so that nothing underflows."""
    grid = np.linspace(0, 1, 200_001)[1:] * bound
    logs = (dimension - 1) * np.log(grid) - epsilon * grid
    density = np.exp(logs - logs.max())
    mass = integrate.cumulative_trapezoid(density, x=grid, initial=0)
    return lambda r: np.interp(r, grid, mass / mass[-1])


def brute_force(distance, bound, dimension, epsilon):
    """P[|Z + distance * e| > bound] the other way round: over the angle, of how far one must go to leave the ball."""

    def gone(angle):
        across = distance * math.sin(angle)
        if across >= bound:
            return 1.0
        leaves = -distance * math.cos(angle) + math.sqrt(bound**2 - across**2)
        enters = -distance * math.cos(angle) - math.sqrt(bound**2 - across**2)
        law = stats.gamma(dimension, scale=1 / epsilon)
        total = law.cdf(bound)
        above = max(law.sf(leaves) - law.sf(bound), 0.0) if leaves > 0 else total
        return (above + (law.cdf(enters) if enters > 0 else 0.0)) / total

    if dimension == 1:
        return (gone(0.0) + gone(math.pi)) / 2
    edges = np.linspace(0, math.pi, 33)
    parts = [
        [integrate.quad(f, a, b, epsabs=1e-16, epsrel=1e-9, limit=200)[0] for a, b in itertools.pairwise(edges)]
        for f in (lambda t: gone(t) * math.sin(t) ** (dimension - 2), lambda t: math.sin(t) ** (dimension - 2))
    ]
    return sum(parts[0]) / sum(parts[1])


def is_bound(found, exact):
    """An upper bound, up to what the reference errs, and within 0.1% and a little."""
    return exact * (1 - 1e-7) <= found <= exact * 1.001 + 2e-12


def exact_line_law(points, epsilon, bound):
    """P[w, y] in one dimension: each word owns an interval between two midpoints, of a Laplace law that ends at R."""
    order = np.argsort(points)
    ordered = points[order]
    edges = np.concatenate([[-np.inf], (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
    offsets = np.clip(edges[None] - points[:, None], -bound, bound)
    laplace = stats.laplace(scale=1 / epsilon)
    cdf = (laplace.cdf(offsets) - laplace.cdf(-bound)) / (laplace.cdf(bound) - laplace.cdf(-bound))
    law = np.empty((len(points), len(points)))
    law[:, order] = np.diff(cdf, axis=1)
    return law


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None, 1e-13, 1e17])
def test_epsilon_that_cannot_be_right_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be "):
        DistanceTruncatedLaplace(epsilon)


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf, "1", True, 1e16])
def test_bound_that_cannot_be_right_is_refused(bound):
    with pytest.raises(ArgumentError, match="max_noise must be "):
        DistanceTruncatedLaplace(1.0, bound)


def test_is_a_value_with_a_name():
    assert (
        DistanceTruncatedLaplace(2) == DistanceTruncatedLaplace(2.0, max_noise=None) != DistanceTruncatedLaplace(2, 3)
    )
    assert repr(DistanceTruncatedLaplace(2, 3)) == "DistanceTruncatedLaplace(epsilon=2.0, max_noise=3.0)"
    assert MECHANISMS["distance_truncated_laplace"] is DistanceTruncatedLaplace


def test_spaces_of_another_metric_are_refused(plain_space):
    space = plain_space(np.eye(3), metric="poincare")
    for call in (DistanceTruncatedLaplace(1.0).guarantee, DistanceTruncatedLaplace(1.0, 2.0).bind):
        with pytest.raises(ArgumentError, match="not for poincare"):
            call(space)


@pytest.mark.parametrize(("dimension", "epsilon", "bound"), LAWS + FAR_BELOW)
def test_radius_has_the_truncated_law_and_the_bound_is_kept(rng, dimension, epsilon, bound):
    space = Recorder(np.zeros((3, dimension)))
    noise = space.noise_of(DistanceTruncatedLaplace(epsilon, bound), np.zeros(3000, np.int32), rng)
    radius = np.linalg.norm(noise, axis=1)
    assert stats.kstest(radius, radius_cdf(dimension, epsilon, bound)).pvalue > SIGNIFICANCE
    assert radius.max() <= bound * (1 + 1e-6)
    assert len(np.unique(noise[:, 0])) > 2990


@pytest.mark.parametrize(("dimension", "epsilon", "bound"), [(1, 1.0, 2.0), (3, 1.0, 4.0), (300, 0.01, 50.0)])
def test_directions_are_uniform(rng, dimension, epsilon, bound):
    n = 20_000
    noise = truncated_laplace_noise(n, dimension, epsilon, bound, rng).astype(np.float64)
    noise /= np.linalg.norm(noise, axis=1)[:, None]
    # The mean of n unit vectors, times n * d, is a chi-square of d degrees of freedom.
    assert stats.chi2(dimension).sf(n * dimension * (noise.mean(axis=0) ** 2).sum()) > SIGNIFICANCE
    assert (noise**2).mean(axis=0) == pytest.approx(np.full(dimension, 1 / dimension), rel=6 * math.sqrt(2 / n))


@pytest.mark.parametrize(("shape", "bound"), [(300, 265.0), (300, 266.0), (16, 7.9), (16, 8.1), (1, 0.49), (1, 0.51)])
def test_both_ways_to_draw_a_radius_have_one_law(monkeypatch, rng, shape, bound):
    draws = {}
    for far in (True, False):
        monkeypatch.setattr(module, "_is_far_below", lambda *_, far=far: far)
        draws[far] = truncated_gamma(20_000, shape, bound, rng)
        assert draws[far].max() <= bound
    assert stats.ks_2samp(draws[True], draws[False]).pvalue > SIGNIFICANCE


def no_bound(n, shape, bound, rng):
    return rng.standard_gamma(shape, n)


def too_short(n, shape, bound, rng):
    return 0.8 * truncated_gamma(n, shape, bound, rng)


def wrong_shape(n, shape, bound, rng):
    return truncated_gamma(n, shape - 1, bound, rng)


def clipped(n, shape, bound, rng):
    return np.minimum(rng.standard_gamma(shape, n), bound)


# Shapes of 299 and 300 differ too little for 3000 draws.
@pytest.mark.parametrize(
    ("bug", "dimension", "epsilon", "bound"),
    [
        *((bug, 2, 1.0, 3.0) for bug in (no_bound, too_short, wrong_shape, clipped)),
        *((bug, 10, 1.0, 12.0) for bug in (no_bound, too_short, wrong_shape, clipped)),
        *((bug, 300, 10.0, 31.0) for bug in (no_bound, too_short, clipped)),
    ],
)
def test_planted_bugs_of_the_radius_do_not_fit_its_law(monkeypatch, rng, bug, dimension, epsilon, bound):
    monkeypatch.setattr(module, "truncated_gamma", bug)
    noise = truncated_laplace_noise(3000, dimension, epsilon, bound, rng).astype(np.float64)
    pvalue = stats.kstest(np.linalg.norm(noise, axis=1), radius_cdf(dimension, epsilon, bound)).pvalue
    assert pvalue < SIGNIFICANCE


@pytest.mark.parametrize("bound", [0.4, 1.2, 5.0])
def test_law_on_the_line_is_the_closed_form(plain_space, rng, bound):
    law, n = exact_line_law(LINE, 1.3, bound), 40_000
    bounded = DistanceTruncatedLaplace(1.3, bound).bind(plain_space(LINE[:, None]))
    pvalues = []
    for word in range(5):
        drawn = bounded.sample(np.full(n, word, np.int32), rng)
        counts, possible = np.bincount(drawn, minlength=5), law[word] > 0
        assert not counts[~possible].any()
        if possible.sum() > 1:
            pvalues.append(fit_pvalue(counts[possible], law[word][possible]))
    assert len(pvalues) * min(pvalues) > SIGNIFICANCE


@pytest.mark.parametrize(("epsilon", "bound"), [(1.3, 0.4), (1.3, 3.0), (0.5, 4.0), (0.1, 5.0)])
def test_exact_law_on_the_line_keeps_delta_between_all_words(plain_space, epsilon, bound):
    law = exact_line_law(LINE, epsilon, bound)
    distances = np.abs(LINE[:, None] - LINE[None])
    excess = np.maximum(law[:, None] - np.exp(epsilon * distances)[:, :, None] * law[None], 0).sum(axis=2)
    deltas = np.array([[mass_outside(d, bound, 1, epsilon) for d in row] for row in distances])
    assert (excess <= deltas + 1e-12).all()
    # Not idle: words that own what one ball alone reaches come near to it.
    assert excess.max() > 0.3 * deltas.max()


@pytest.mark.parametrize(("epsilon", "bound"), [(1.0, 2.0), (5.0, 3.0), (0.01, 4.0), (50.0, 1.2)])
def test_delta_in_one_dimension_is_the_closed_form(epsilon, bound):
    for distance in np.array([1e-6, 0.1, 0.5, 0.99, 1.0]) * bound:
        exact = 0.5 * (math.exp(-epsilon * (bound - distance)) - math.exp(-epsilon * bound))
        assert is_bound(mass_outside(distance, bound, 1, epsilon), exact / -math.expm1(-epsilon * bound))
    # Beyond R the side of the other word's ball is left too, up to where it begins.
    for distance in np.array([1.2, 1.7]) * bound:
        exact = 0.5 + 0.5 * math.expm1(-epsilon * (distance - bound)) / math.expm1(-epsilon * bound)
        assert is_bound(mass_outside(distance, bound, 1, epsilon), exact)


@pytest.mark.parametrize(
    ("distance", "bound", "dimension", "epsilon"),
    [
        (0.5, 2.0, 2, 1.0),
        (1.9, 2.0, 2, 1.0),
        (2.5, 2.0, 2, 3.0),
        (3.0, 18.2, 2, 1.0),
        (1.0, 5.0, 3, 2.0),
        (4.0, 9.0, 10, 2.0),
        (5.0, 18.4, 10, 2.0),
        (9.0, 14.3, 50, 10.0),
        (15.0, 38.0, 300, 10.0),
        (15.0, 382.0, 300, 1.0),
    ],
)
def test_delta_is_what_integration_over_the_angle_gives(distance, bound, dimension, epsilon):
    assert is_bound(mass_outside(distance, bound, dimension, epsilon), brute_force(distance, bound, dimension, epsilon))


@pytest.mark.parametrize(("distance", "bound", "dimension"), [(2.0, 30.0, 3), (15.0, 1e4, 300), (15.0, 200.0, 300)])
def test_delta_of_nearly_uniform_noise_is_the_volume_outside(distance, bound, dimension):
    """Two equal balls share twice a cap, whose share of the volume is an incomplete beta function."""
    shared = stats.beta((dimension + 1) / 2, 0.5).cdf(1 - (distance / (2 * bound)) ** 2)
    assert mass_outside(distance, bound, dimension, 1e-12) == pytest.approx(1 - shared, rel=2e-3)
    assert mass_outside(distance, bound, dimension, 1e-12) >= (1 - shared) * (1 - 1e-7)


@pytest.mark.parametrize(
    ("distance", "bound", "dimension", "epsilon"),
    [(1.0, 2.0, 1, 1.0), (1.5, 2.0, 2, 2.0), (3.0, 2.0, 2, 1.0), (4.0, 8.0, 10, 2.0), (15.0, 200.0, 300, 0.5)],
)
def test_delta_is_how_often_noise_leaves_the_ball_of_the_other_word(rng, distance, bound, dimension, epsilon):
    n = 50_000
    noise = truncated_laplace_noise(n, dimension, epsilon, bound, rng).astype(np.float64)
    noise[:, 0] += distance
    outside = stats.binomtest(int((np.linalg.norm(noise, axis=1) > bound).sum()), n)
    interval = outside.proportion_ci(1 - SIGNIFICANCE, method="exact")
    delta = mass_outside(distance, bound, dimension, epsilon)
    assert interval.low <= delta and delta / 1.001 <= interval.high
    assert 0.003 < delta < 0.99


def angle_of_wrong_sign(gap, distance, bound, dimension):
    return 1 - module_outside(gap, distance, bound, dimension)


def dimension_too_small(gap, distance, bound, dimension):
    return module_outside(gap, distance, bound, dimension - 1)


def angle_ignored(gap, distance, bound, dimension):
    return np.full(len(gap), 0.5)


module_outside = module._outside_given_radius


@pytest.mark.parametrize("bug", [angle_of_wrong_sign, dimension_too_small, angle_ignored])
@pytest.mark.parametrize("dimension", [2, 10])
def test_planted_bugs_of_the_integral_are_seen(monkeypatch, bug, dimension):
    exact = brute_force(1.5, 6.0, dimension, 2.0)
    assert is_bound(mass_outside(1.5, 6.0, dimension, 2.0), exact)
    monkeypatch.setattr(module, "_outside_given_radius", bug)
    assert not is_bound(mass_outside(1.5, 6.0, dimension, 2.0), exact)


def test_planted_bug_radius_that_is_not_truncated_in_the_integral_is_seen(monkeypatch):
    exact = brute_force(1.5, 4.0, 10, 2.0)
    monkeypatch.setattr(module, "_cumulative_radius", lambda bound, d, epsilon: stats.gamma(d, scale=1 / epsilon).cdf)
    assert not is_bound(mass_outside(1.5, 4.0, 10, 2.0), exact)


@pytest.mark.parametrize("dimension", [1, 2, 3, 10, 300])
@pytest.mark.parametrize("scaled", [0.01, 0.5, 1.5, 4.0])
def test_delta_increases_with_the_distance_from_0_to_1(dimension, scaled):
    """Anderson's theorem; ``scaled`` is R in units of the mean length of the noise, d."""
    bound = scaled * dimension
    deltas = [mass_outside(distance, bound, dimension, 1.0) for distance in np.linspace(0, 2, 41) * bound]
    assert deltas[0] == 0 and deltas[-1] == 1
    # Each is at most 0.1% too high.
    assert all(later >= earlier / 1.001 - 2e-12 for earlier, later in itertools.pairwise(deltas))


@pytest.mark.parametrize("delta", [1e-2, 1e-6])
@pytest.mark.parametrize(
    ("distance", "dimension", "epsilon"), [(2.0, 1, 1.0), (3.0, 2, 5.0), (15.0, 300, 10.0), (15.0, 300, 1e-3)]
)
def test_least_bound_is_enough_and_hardly_less_is_not(distance, dimension, epsilon, delta):
    bound = least_bound(delta, distance, dimension, epsilon)
    assert bound == float(f"{bound:.3g}")
    assert mass_outside(distance, bound, dimension, epsilon) <= delta
    assert mass_outside(distance, bound * 0.985, dimension, epsilon) > delta


def test_guarantee_is_computed_for_the_diameter(plain_space):
    space = plain_space(LINE[:, None])
    guarantee = DistanceTruncatedLaplace(2.0, 6.0).guarantee(space)
    exact = brute_force(2.5, 6.0, 1, 2.0)
    assert (guarantee.epsilon, guarantee.basis, guarantee.metric) == (2.0, "computed", "euclidean")
    assert guarantee.index_digest == space.digest
    assert is_bound(guarantee.delta, exact) and 1e-5 < exact < 1e-2
    default = DistanceTruncatedLaplace(2.0)
    assert 0.5e-6 < default.guarantee(space).delta <= 1e-6
    assert default.bound(space) == least_bound(1e-6, 2.5, 1, 2.0)


@pytest.mark.parametrize("bound", [0.1, 1.25, 3.0])
def test_a_bound_that_is_too_small_has_no_finite_claim_and_the_reason_names_one_that_has(plain_space, bound):
    space = plain_space(LINE[:, None])
    guarantee = DistanceTruncatedLaplace(2.0, bound).guarantee(space)
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (None, 0.0, "none")
    delta = mass_outside(2.5, bound, 1, 2.0)
    assert f"is {delta:.3g}, above 0.01: max_noise must be at least " in guarantee.reason
    assert guarantee.reason.endswith(f"not {bound:g}")
    least = float(guarantee.reason.split("at least ")[1].split()[0])
    enough = DistanceTruncatedLaplace(2.0, least).guarantee(space)
    assert enough.epsilon == 2.0 and 0.009 < enough.delta <= 0.01


def test_equal_vectors_need_no_delta(plain_space):
    space = plain_space(np.ones((3, 2)))
    for mechanism in (DistanceTruncatedLaplace(2.0), DistanceTruncatedLaplace(2.0, 0.1)):
        guarantee = mechanism.guarantee(space)
        assert (guarantee.epsilon, guarantee.delta) == (2.0, 0.0)


def test_digest_tells_epsilon_bound_and_dimension_apart(plain_space):
    line, plane = plain_space(LINE[:, None]), plain_space(np.eye(2))
    digests = {
        DistanceTruncatedLaplace(epsilon, bound).bind(space).law_digest()
        for epsilon in (1.0, 2.0)
        for bound in (5.0, 5.5)
        for space in (line, plane)
    }
    assert len(digests) == 8
    again = DistanceTruncatedLaplace(2.0, DistanceTruncatedLaplace(2.0).bound(line)).bind(line).law_digest()
    assert again == DistanceTruncatedLaplace(2.0).bind(line).law_digest()


def shared_by_a_batch(n, dimension, epsilon, bound, rng):
    return np.repeat(truncated_laplace_noise(1, dimension, epsilon, bound, rng), n, axis=0)


def test_words_of_one_batch_are_drawn_independently(monkeypatch, plain_space, rng):
    bound = DistanceTruncatedLaplace(0.5, 3.0).bind(plain_space(LINE[:, None]))
    assert independence_pvalue(bound, 1, 20_000, rng) > SIGNIFICANCE
    monkeypatch.setattr(module, "truncated_laplace_noise", shared_by_a_batch)
    assert independence_pvalue(bound, 1, 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("n", [0, 1, 2049])
@pytest.mark.parametrize("bound", [None, 1.0])
def test_every_block_size_gives_one_valid_word_for_each(plain_space, rng, n, bound):
    space = plain_space(rng.normal(size=(300, 10)))
    out = DistanceTruncatedLaplace(1, bound).bind(space).sample(rng.integers(0, 300, n).astype(np.int32), rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 300))


def test_a_pipeline_draws_each_word_and_its_ledger_adds_the_deltas_up(tmp_path):
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    limit = Limit(model="metric", privacy_unit="document", epsilon=1e9, delta=1e-4)
    store.create("reviews", limit)
    ledger = Ledger(budget=store.run("reviews", "first"))
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        mechanism = DistanceTruncatedLaplace(1e5)
        texts = pipeline | beam.Create(["the weather in paris", ""]) | PrivatizeText(mechanism, max_words=20)

        def check(rows):
            assert sorted(rows) == ["", "the weather in paris"]

        assert_that(texts, check)
    index, written = open_index(resolve_index()), json.loads(ledger.to_json())
    (entry,), total = written["entries"], written["totals"]["metric"]
    assert entry["mechanism"] == "DistanceTruncatedLaplace(epsilon=100000.0, max_noise=None)"
    assert (entry["epsilon"], entry["basis"], entry["metric"]) == (1e5, "computed", "euclidean")
    assert entry["parameters"]["law_digest"] == mechanism.bind(index).law_digest()
    assert entry["delta"] == mechanism.guarantee(index).delta and 0 < entry["delta"] <= 1e-6
    assert total["delta_per_document"] == pytest.approx(20 * entry["delta"], rel=1e-12)
    assert "(computed)" in ledger.report()
    assert store.account("reviews").spent(limit, datetime.now(timezone.utc)).delta == total["delta_per_document"]
