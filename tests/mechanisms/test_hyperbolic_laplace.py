import math

import mpmath
import numpy as np
import pytest
from ball import (
    DIGITS,
    BallSpace,
    ball_distance,
    distances_from_word,
    lift_ball,
    lift_log,
    lorentz_distance,
    noisy_points,
    pulled_back,
    radial_cdf,
    radial_law,
)
from projections import independence_pvalue, line_law, matrix_pvalue
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, HyperbolicLaplace, hyperbolic_laplace
from beam_dp.mechanisms.base import require_euclidean
from beam_dp.mechanisms.hyperbolic_laplace import hyperbolic_noise
from beam_dp.mechanisms.poincare_ball import boundary_gaps, log_coordinates, moved, polar

SIGNIFICANCE = 1e-4
NORMS = [0.0, 0.5, 0.999999]
N = 3000


def word_at(norm, dimension, seed=11):
    direction = np.random.default_rng(seed).normal(size=dimension)
    return (norm * direction / np.linalg.norm(direction)).astype(np.float32)


def radius_pvalue(dimension, epsilon, norm, rng, n=N):
    word = word_at(norm, dimension)
    radius = distances_from_word(word, noisy_points(HyperbolicLaplace(epsilon), word, n, rng))
    return stats.kstest(radius, radial_cdf(dimension, epsilon)).pvalue


# What the noise and the isometry were, and what goes wrong with them in other software.


def shape_off_by_one(n, dimension, epsilon, rng):
    return hyperbolic_noise(n, dimension, epsilon + 2, rng)


def dimension_off_by_one(n, dimension, epsilon, rng):
    shape = (epsilon - dimension + 1) / 2
    radius = -np.log(rng.beta(shape, dimension + 1, n)) / 2
    return radius, hyperbolic_noise(n, dimension, epsilon, rng)[1]


def no_half_in_the_radius(n, dimension, epsilon, rng):
    radius, direction = hyperbolic_noise(n, dimension, epsilon, rng)
    return 2 * radius, direction


def gamma_radius(n, dimension, epsilon, rng):
    """The Euclidean law, which knows nothing of how fast hyperbolic space grows."""
    return rng.standard_gamma(dimension, n) / epsilon, hyperbolic_noise(n, dimension, epsilon, rng)[1]


def shared_by_a_batch(n, dimension, epsilon, rng):
    radius, direction = hyperbolic_noise(1, dimension, epsilon, rng)
    return np.repeat(radius, n), np.repeat(direction, n, axis=0)


def in_the_ball(radius, direction):
    return np.tanh(radius / 2)[:, None] * direction


def log_coordinates_of(points):
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    return points * np.divide(2 * np.arctanh(np.minimum(norm, 1 - 1e-16)), norm, out=np.ones_like(norm), where=norm > 0)


def euclidean_translation(radius, direction, home, heading):
    points = in_the_ball(radius, direction) + in_the_ball(home, heading)
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    return log_coordinates_of(points * np.minimum(1, (1 - 1e-9) / np.maximum(norm, 1e-300)))


def tangent_translation(radius, direction, home, heading):
    """Log coordinates added as if space were flat."""
    return radius[:, None] * direction + home[:, None] * heading


def clipped(radius, direction, home, heading):
    """Peers' projection into the ball: no point may come nearer to the boundary than 1e-5."""
    logs = moved(radius, direction, home, heading)
    norm, towards = polar(logs)
    return np.minimum(norm, 2 * math.atanh(1 - 1e-5))[:, None] * towards


NOISE_BUGS = {
    "shape": shape_off_by_one,
    "dimension": dimension_off_by_one,
    "no half": no_half_in_the_radius,
    "gamma": gamma_radius,
}
MOVE_BUGS = {"euclidean": euclidean_translation, "tangent": tangent_translation, "clipped": clipped}


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None])
def test_epsilon_that_is_no_positive_finite_number_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0, not "):
        HyperbolicLaplace(epsilon)


def test_epsilon_that_leaves_no_noise_in_float64_is_refused():
    with pytest.raises(ArgumentError, match="epsilon must be at most"):
        HyperbolicLaplace(1e13)


@pytest.mark.parametrize("flag", [None, 1, "yes"])
def test_prefer_general_is_a_truth_value(flag):
    with pytest.raises(ArgumentError, match="prefer_general must be True or False"):
        HyperbolicLaplace(1.0, flag)


def test_is_a_value_with_a_name():
    assert HyperbolicLaplace(2) == HyperbolicLaplace(2.0, prefer_general=False) != HyperbolicLaplace(2.0, True)
    assert repr(HyperbolicLaplace(2)) == "HyperbolicLaplace(epsilon=2.0, prefer_general=False)"
    assert MECHANISMS["hyperbolic_laplace"] is HyperbolicLaplace


def test_guarantee_is_epsilon_in_the_metric_of_the_ball():
    space = BallSpace(np.eye(3) / 2)
    for general in (False, True):
        guarantee = HyperbolicLaplace(2.5, general).guarantee(space)
        assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (2.5, 0.0, "proved")
        assert (guarantee.metric, guarantee.index_digest) == ("poincare", space.digest)


@pytest.mark.parametrize("epsilon", [1.0, 1.999, 2.0])
def test_epsilon_without_a_density_is_refused_and_another_mechanism_named(epsilon):
    mechanism, space = HyperbolicLaplace(epsilon), BallSpace(np.eye(3) / 2)
    for call in (mechanism.guarantee, mechanism.bind):
        with pytest.raises(ArgumentError, match=r"epsilon must be above n-1 = 2 .* n = 3 .* exponential serves every"):
            call(space)
    HyperbolicLaplace(math.nextafter(2.0, 3)).bind(space)


def test_other_metrics_are_refused_and_the_ball_by_euclidean_mechanisms(plain_space):
    for call in (HyperbolicLaplace(9.0).guarantee, HyperbolicLaplace(9.0).bind):
        with pytest.raises(ArgumentError, match="proved for the poincare metric, not for euclidean"):
            call(plain_space(np.eye(3)))
    with pytest.raises(ArgumentError, match="not for poincare"):
        require_euclidean(BallSpace(np.eye(3) / 2))


# Coordinates


@pytest.mark.parametrize("dimension", [1, 2, 10, 100])
@pytest.mark.parametrize("norm", [0.0, 1e-30, 0.5, 0.999, 0.999999, 1 - 2**-24])
def test_gaps_and_log_coordinates_have_all_digits(dimension, norm):
    point = word_at(norm, dimension)
    with mpmath.workdps(DIGITS):
        gap = 1 - sum(mpmath.mpf(float(x)) ** 2 for x in point)
        radius = float(mpmath.acosh(lift_ball(point)[0]))
    if gap > 0:
        assert boundary_gaps(point[None])[0] == pytest.approx(float(gap), rel=1e-15)
        logs = log_coordinates(point[None])
        assert np.linalg.norm(logs) == pytest.approx(radius, rel=1e-14)
        assert logs[0] == pytest.approx(radius * point.astype(float) / max(np.linalg.norm(point.astype(float)), 1e-300))


def test_gap_is_exact_where_float64_sums_are_not():
    """1 - |x|² of 1e-12: a plain sum of squares is off by several parts in ten thousand."""
    first = np.float32(1 - 2**-13)
    rest = np.sqrt(1 - float(first) ** 2)
    second = np.float32(rest - 1e-9)
    third = np.float32(np.sqrt(max(1 - float(first) ** 2 - float(second) ** 2 - 1e-12, 0)))
    point = np.array([[first, second, third]])
    with mpmath.workdps(DIGITS):
        exact = float(1 - sum(mpmath.mpf(float(x)) ** 2 for x in point[0]))
    assert 1e-13 < exact < 1e-10
    assert boundary_gaps(point)[0] == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", [1, 2, 10])
def test_isometry_keeps_distances(rng, dimension, norm):
    """Between the moved points, and from the word, to 1e-9; through the origin and out to 300."""
    word = word_at(norm, dimension)
    home, heading = polar(log_coordinates(word[None]))
    radius = np.concatenate(
        [rng.exponential(1, 20), rng.uniform(0, 10, 10), [0.0, 1e-9, home[0], 14.5, 30.0, 61.0, 300.0]]
    )
    direction = rng.normal(size=(len(radius), dimension))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    direction[::7] = -heading
    logs = moved(radius, direction, np.repeat(home, len(radius)), np.repeat(heading, len(radius), axis=0))
    assert distances_from_word(word, logs) == pytest.approx(radius, abs=1e-9)
    with mpmath.workdps(DIGITS):
        before = [lift_log(r * u) for r, u in zip(radius[:20], direction[:20], strict=True)]
        after = [lift_log(log) for log in logs[:20]]
        for i in range(20):
            for j in range(i):
                kept = lorentz_distance(after[i], after[j])
                assert kept == pytest.approx(lorentz_distance(before[i], before[j]), abs=1e-9)


# The law of the noisy point


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dimension", "epsilon"), [(1, 0.7), (2, 1.5), (2, 6.0), (10, 9.5), (10, 20.0)])
def test_distance_of_the_noisy_point_has_the_radial_law(rng, dimension, epsilon, norm):
    assert radius_pvalue(dimension, epsilon, norm, rng) > SIGNIFICANCE


@pytest.mark.parametrize("norm", [0.0, 0.999999])
@pytest.mark.parametrize(("dimension", "epsilon"), [(2, 3.0), (10, 11.0)])
@pytest.mark.parametrize("bug", NOISE_BUGS)
def test_planted_bugs_in_the_radius_are_found(monkeypatch, rng, bug, dimension, epsilon, norm):
    monkeypatch.setattr(hyperbolic_laplace, "hyperbolic_noise", NOISE_BUGS[bug])
    assert radius_pvalue(dimension, epsilon, norm, rng) < SIGNIFICANCE


@pytest.mark.parametrize("dimension", [1, 2, 10])
@pytest.mark.parametrize("bug", MOVE_BUGS)
def test_planted_bugs_in_the_isometry_are_found(monkeypatch, rng, bug, dimension):
    """At the word of norm 0.999999; on the line log coordinates do add up, so that is no bug there."""
    monkeypatch.setattr(hyperbolic_laplace, "moved", MOVE_BUGS[bug])
    right = bug == "tangent" and dimension == 1
    assert (radius_pvalue(dimension, dimension + 1.0, 0.999999, rng) > SIGNIFICANCE) == right


@pytest.mark.parametrize("bug", ["euclidean", "tangent"])
def test_planted_bugs_in_the_isometry_are_found_in_the_middle_of_the_ball(monkeypatch, rng, bug):
    monkeypatch.setattr(hyperbolic_laplace, "moved", MOVE_BUGS[bug])
    assert radius_pvalue(2, 3.0, 0.5, rng) < SIGNIFICANCE


def direction_pvalue(dimension, norm, rng):
    """Of the direction from the word: the angle in the plane, the sign on the line, second moments beyond."""
    word = word_at(norm, dimension)
    n = N // 2
    seen = pulled_back(word, noisy_points(HyperbolicLaplace(dimension + 2.0), word, n, rng))
    if dimension == 1:
        return stats.binomtest(int((seen > 0).sum()), n).pvalue
    if dimension == 2:
        return stats.kstest(np.arctan2(seen[:, 1], seen[:, 0]), stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue
    excess = seen.T @ seen / n - np.eye(dimension) / dimension
    squares = n * dimension * (dimension + 2) * np.sum(excess[np.triu_indices(dimension, 1)] ** 2)
    diagonal = n * dimension * (dimension + 2) / 2 * np.sum(np.diag(excess) ** 2)
    mean = n * dimension * np.sum(seen.mean(axis=0) ** 2)
    freedom = dimension * (dimension - 1) / 2 + dimension - 1 + dimension
    return stats.chi2(freedom).sf(squares + diagonal + mean)


def cube_directions(n, dimension, epsilon, rng):
    direction = rng.uniform(-1, 1, (n, dimension))
    direction[:, 0] += 0.2
    return hyperbolic_noise(n, dimension, epsilon, rng)[0], direction / np.linalg.norm(direction, axis=1, keepdims=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", [1, 2, 10])
def test_directions_from_the_word_are_uniform(monkeypatch, rng, dimension, norm):
    assert direction_pvalue(dimension, norm, rng) > SIGNIFICANCE
    monkeypatch.setattr(hyperbolic_laplace, "hyperbolic_noise", cube_directions)
    assert direction_pvalue(dimension, norm, rng) < SIGNIFICANCE


def test_radius_and_direction_are_independent(rng):
    radius, direction = hyperbolic_noise(N, 3, 4.0, rng)
    assert all(stats.spearmanr(radius, direction[:, i]).pvalue > SIGNIFICANCE for i in range(3))
    assert all(stats.spearmanr(radius, np.abs(direction[:, i])).pvalue > SIGNIFICANCE for i in range(3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("epsilon", [math.nextafter(2.0, 3), 2 + 1e-9, 2.01, 1e3, 1e9, 1e12])
def test_noise_of_any_length_is_finite(rng, epsilon, norm):
    """Up to 1e16 away where epsilon is all but n-1, where the law of r·(ε - n + 1) tends to the exponential one."""
    word = word_at(norm, 3)
    logs = noisy_points(HyperbolicLaplace(epsilon), word, 500, rng)
    assert np.isfinite(logs).all()
    if epsilon - 2 < 1e-6:
        assert stats.kstest(np.linalg.norm(logs, axis=1) * (epsilon - 2), "expon").pvalue > SIGNIFICANCE


# The law of the word


def test_law_on_the_line_is_that_of_laplace_noise(rng):
    """In one dimension x -> 2 artanh(x) takes the ball to the line and its distance to |.|."""
    vectors = np.array([-0.999999, -0.9, 0.0, 0.3, 0.5, 0.99, 0.99999])[:, None].astype(np.float32)
    law = line_law(2 * np.arctanh(vectors[:, 0].astype(np.float64)), 0.6)
    space = BallSpace(vectors)
    assert matrix_pvalue(HyperbolicLaplace(0.6).bind(space), law, range(7), 20_000, rng) > SIGNIFICANCE
    assert matrix_pvalue(HyperbolicLaplace(0.66).bind(space), law, range(7), 20_000, rng) < SIGNIFICANCE


def disc(size, seed=3):
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, size), np.tanh(rng.uniform(0, 3.5, size) / 2)
    return (radius * np.stack([np.cos(angle), np.sin(angle)])).T.astype(np.float32)


def noisy_grid(vector, epsilon, steps=400):
    """Equally likely noisy points of a word in the disc: radial quantiles by integration, Möbius addition."""
    radii, total = radial_law(2, epsilon)
    quantiles = np.interp((np.arange(steps) + 0.5) / steps, total, radii)
    turns = np.exp(2j * np.pi * (np.arange(steps) + 0.5) / steps)
    noise = (np.tanh(quantiles / 2)[:, None] * turns).ravel()
    word = complex(*vector.tolist())
    point = (noise + word) / (1 + word.conjugate() * noise)
    return np.stack([point.real, point.imag], axis=1)


def disc_law(vectors, epsilon, chosen, steps=400):
    """P[w, y] in the disc, ``chosen`` from the distances of noisy points to all words."""
    law = np.empty((len(vectors), len(vectors)))
    for word, vector in enumerate(vectors.astype(np.float64)):
        distances = ball_distance(noisy_grid(vector, epsilon, steps)[:, None], vectors.astype(np.float64)[None])
        law[word] = np.bincount(chosen(distances), minlength=len(vectors)) / len(distances)
    return law


def nearest_of(distances):
    return distances.argmin(axis=1)


@pytest.mark.parametrize("size", [3, 8])
def test_projected_law_in_the_disc_is_that_of_an_integration(rng, size):
    vectors = disc(size)
    law = disc_law(vectors, 1.8, nearest_of)
    space = BallSpace(vectors)
    assert matrix_pvalue(HyperbolicLaplace(1.8).bind(space), law, range(size), 20_000, rng) > SIGNIFICANCE
    assert matrix_pvalue(HyperbolicLaplace(2.0).bind(space), law, range(size), 20_000, rng) < SIGNIFICANCE


def euclidean_nearest(self, queries):
    radius, direction = polar(queries)
    points = in_the_ball(radius, direction)
    return np.square(points[:, None] - self.vectors[None]).sum(axis=2).argmin(axis=1).astype(np.int32)


@pytest.mark.parametrize("bug", ["shape", "no half", "gamma", "euclidean", "tangent", "nearest"])
def test_planted_bugs_do_not_fit_the_projected_law(monkeypatch, rng, bug):
    vectors = disc(8)
    law = disc_law(vectors, 1.8, nearest_of)
    if bug == "nearest":
        monkeypatch.setattr(BallSpace, "nearest", euclidean_nearest)
    elif bug in NOISE_BUGS:
        monkeypatch.setattr(hyperbolic_laplace, "hyperbolic_noise", NOISE_BUGS[bug])
    else:
        monkeypatch.setattr(hyperbolic_laplace, "moved", MOVE_BUGS[bug])
    bound = HyperbolicLaplace(1.8).bind(BallSpace(vectors))
    assert matrix_pvalue(bound, law, range(8), 20_000, rng) < SIGNIFICANCE


def general_of(vectors):
    """The rule in words: of the two nearest the one nearer to the origin, if it is at most twice as far."""
    norm = np.linalg.norm(vectors.astype(np.float64), axis=1)

    def chosen(distances):
        words = []
        for row in distances:
            first, second = sorted(range(len(row)), key=row.__getitem__)[:2]
            words.append(second if norm[second] < norm[first] and row[second] <= 2 * row[first] else first)
        return np.array(words)

    return chosen


def test_general_words_are_preferred_by_the_noisy_point_alone(rng):
    vectors = disc(8)
    law = disc_law(vectors, 1.8, general_of(vectors), steps=150)
    plain = disc_law(vectors, 1.8, nearest_of, steps=150)
    bound = HyperbolicLaplace(1.8, prefer_general=True).bind(BallSpace(vectors))
    assert matrix_pvalue(bound, law, range(8), 5_000, rng) > SIGNIFICANCE
    assert matrix_pvalue(bound, plain, range(8), 5_000, rng) < SIGNIFICANCE
    norm = np.linalg.norm(vectors, axis=1)
    assert np.all(law @ norm < plain @ norm)


def test_words_of_one_batch_are_drawn_independently(monkeypatch, rng):
    bound = HyperbolicLaplace(1.5).bind(BallSpace(disc(4)))
    assert independence_pvalue(bound, 1, 20_000, rng) > SIGNIFICANCE
    monkeypatch.setattr(hyperbolic_laplace, "hyperbolic_noise", shared_by_a_batch)
    assert independence_pvalue(bound, 1, 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2049])
def test_every_block_size_gives_one_valid_word_for_each(rng, n, general):
    out = HyperbolicLaplace(1.5, general).bind(BallSpace(disc(20))).sample(rng.integers(0, 20, n).astype(np.int32), rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 20))


@pytest.mark.parametrize("general", [False, True])
def test_little_noise_changes_nothing(rng, general):
    ids = np.arange(20, dtype=np.int32)
    assert np.array_equal(HyperbolicLaplace(1e9, general).bind(BallSpace(disc(20))).sample(ids, rng), ids)
