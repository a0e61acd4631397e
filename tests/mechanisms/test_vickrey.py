import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from projections import Recorder, distances_from, independence_pvalue, line_law, matrix_pvalue, noise_grid
from scipy import integrate, stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, Vickrey, vickrey
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise
from beam_dp.mechanisms.vickrey import takes_second

SIGNIFICANCE = 1e-4
WEIGHTS = [0.0, 0.3, 0.5, 1.0]
LINE = np.array([-2.0, 0.4, -0.5, 3.0, 0.0])


def choice_law(vectors, points, weight):
    """P[y] at each noisy vector: (n, V), from the paper's formula."""
    distances = distances_from(vectors, points)
    order = np.argsort(distances, axis=1, kind="stable")[:, :2]
    first, second = np.take_along_axis(distances, order, axis=1).T
    chance = (1 - weight) * second / (weight * first + (1 - weight) * second)
    law = np.zeros(distances.shape)
    np.put_along_axis(law, order, np.stack([chance, 1 - chance], axis=1), axis=1)
    return law


def exact_line_law(points, epsilon, weight):
    """P[w, y] on the line, integrated between the places where the two nearest words, or the density, change."""
    sorted_points = np.sort(points)
    breaks = np.unique([*points, *((a + b) / 2 for a in points for b in points)])
    edges = np.concatenate([[sorted_points[0] - 60 / epsilon], breaks, [sorted_points[-1] + 60 / epsilon]])
    law = np.zeros((len(points), len(points)))
    for low, high in itertools.pairwise(edges):
        nodes, weights = np.polynomial.legendre.leggauss(200)
        z = (low + high) / 2 + (high - low) / 2 * nodes
        chosen = choice_law(points[:, None], z[:, None], weight)
        density = stats.laplace(loc=points[:, None], scale=1 / epsilon).pdf(z)
        law += (density * weights * (high - low) / 2) @ chosen
    return law


def plane_law(vectors, epsilon, weight, words):
    """P[w, y] in the plane for the first ``words`` words, from equally likely points of the noise; 0 for the others."""
    law = np.zeros((len(vectors), len(vectors)))
    points = noise_grid(2, epsilon, 250)
    law[:words] = [choice_law(vectors, points + vector, weight).mean(axis=0) for vector in vectors[:words]]
    return law


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None])
def test_epsilon_that_is_no_positive_finite_number_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0, not "):
        Vickrey(epsilon)


@pytest.mark.parametrize("weight", [-0.1, 1.01, math.nan, math.inf, "0.2", True, None])
def test_weight_that_is_no_number_from_0_to_1_is_refused(weight):
    with pytest.raises(ArgumentError, match="second_weight must be a number from 0 to 1, not "):
        Vickrey(1.0, weight)


def test_is_a_value_with_a_name():
    assert Vickrey(2) == Vickrey(2.0, second_weight=0.5) != Vickrey(2.0, 0.3)
    assert repr(Vickrey(2, 1)) == "Vickrey(epsilon=2.0, second_weight=1.0)"
    assert MECHANISMS["vickrey"] is Vickrey


def test_guarantee_is_that_of_multivariate_laplace_at_every_weight(plain_space):
    space = plain_space(np.eye(3))
    for weight in WEIGHTS:
        guarantee = Vickrey(3, weight).guarantee(space)
        assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (3.0, 0.0, "proved")
        assert (guarantee.metric, guarantee.index_digest) == ("euclidean", space.digest)


def test_spaces_of_another_metric_or_of_one_word_are_refused(plain_space):
    for space, message in (
        (plain_space(np.eye(3), metric="poincare"), "not for poincare"),
        (SimpleNamespace(metric="euclidean", size=1), "at least two words"),
    ):
        for call in (Vickrey(1.0).guarantee, Vickrey(1.0).bind):
            with pytest.raises(ArgumentError, match=message):
                call(space)


@pytest.mark.parametrize(
    ("distances", "weight", "second"),
    [
        ([1.0, 3.0], 0.5, 0.25),
        ([1.0, 3.0], 0.25, 0.1),
        ([2.0, 2.0], 0.5, 0.5),
        ([2.0, 2.0], 0.9, 0.9),
        ([0.0, 2.0], 0.9, 0.0),
        ([1.0, 1e300], 0.5, 0.0),
        ([1.0, 3.0], 0.0, 0.0),
        ([1.0, 3.0], 1.0, 1.0),
        ([0.0, 3.0], 1.0, 1.0),
        ([0.0, 0.0], 1.0, 1.0),
    ],
)
def test_second_is_taken_with_the_probability_of_the_paper(rng, distances, weight, second):
    n = 20_000
    taken = int(takes_second(np.tile(distances, (n, 1)), weight, rng).sum())
    assert stats.binomtest(taken, n, second).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("weight", WEIGHTS)
def test_law_on_the_line_is_that_of_an_integration(plain_space, rng, weight):
    law = exact_line_law(LINE, 1.3, weight)
    np.testing.assert_allclose(law.sum(axis=1), 1, atol=1e-6)
    assert matrix_pvalue(Vickrey(1.3, weight).bind(plain_space(LINE[:, None])), law, range(5), 40_000, rng) > 1e-4
    if weight == 0:
        np.testing.assert_allclose(law, line_law(LINE, 1.3), atol=1e-6)


def test_integration_agrees_with_adaptive_quadrature(plain_space):
    """One probability of the reference itself, by another rule."""

    def integrand(z):
        return stats.laplace(scale=1 / 1.3).pdf(z) * choice_law(LINE[:, None], np.array([[z]]), 0.5)[0, 2]

    exact = integrate.quad(integrand, -6, 4, points=sorted({*LINE, -1.25, -0.25, -0.05, 0.2}), limit=400)[0]
    assert exact_line_law(LINE, 1.3, 0.5)[4, 2] == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("size", [3, 40])
def test_law_in_the_plane_is_that_of_an_integration(plain_space, rng, size):
    space = plain_space(rng.normal(size=(size, 2)) * [3, 0.5])
    law = plane_law(space.vectors, 2.0, 0.5, words=3)
    assert matrix_pvalue(Vickrey(2.0, 0.5).bind(space), law, range(3), 20_000, rng) > SIGNIFICANCE
    assert matrix_pvalue(Vickrey(2.0, 0.0).bind(space), law, range(3), 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("weight", WEIGHTS)
def test_exact_law_keeps_its_claim_between_all_words(weight):
    law = exact_line_law(LINE, 1.3, weight)
    allowed = np.exp(1.3 * np.abs(LINE[:, None] - LINE[None]))
    assert (law[:, None, :] <= allowed[:, :, None] * law[None, :, :] * (1 + 1e-9) + 1e-9).all()


@pytest.mark.parametrize("dimension", [1, 2, 10])
def test_what_is_searched_for_is_the_words_vector_plus_noise_of_the_claimed_law(rng, dimension):
    space, epsilon = Recorder(rng.normal(size=(7, dimension))), 3.0
    noise = space.noise_of(Vickrey(epsilon), rng.integers(0, 7, 3000).astype(np.int32), rng)
    radius = np.linalg.norm(noise, axis=1)
    assert stats.kstest(radius, stats.gamma(dimension, scale=1 / epsilon).cdf).pvalue > SIGNIFICANCE
    assert len(np.unique(radius)) > 0.99 * len(radius)


def too_small(n, dimension, epsilon, rng):
    return multivariate_laplace_noise(n, dimension, epsilon / 0.8, rng)


def shared_by_a_batch(n, dimension, epsilon, rng):
    return np.repeat(multivariate_laplace_noise(1, dimension, epsilon, rng), n, axis=0)


def first_and_second_swapped(distances, second_weight, rng):
    return ~takes_second(distances, second_weight, rng)


def weight_swapped(distances, second_weight, rng):
    return takes_second(distances, 1 - second_weight, rng)


def distances_swapped(distances, second_weight, rng):
    return takes_second(distances[:, ::-1], second_weight, rng)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("multivariate_laplace_noise", too_small),
        ("takes_second", first_and_second_swapped),
        ("takes_second", weight_swapped),
        ("takes_second", distances_swapped),
    ],
)
def test_planted_bugs_do_not_fit_the_law(monkeypatch, plain_space, rng, name, bug):
    law = exact_line_law(LINE, 1.3, 0.3)
    monkeypatch.setattr(vickrey, name, bug)
    assert matrix_pvalue(Vickrey(1.3, 0.3).bind(plain_space(LINE[:, None])), law, range(5), 40_000, rng) < 1e-4


def test_words_of_one_batch_are_drawn_independently(monkeypatch, plain_space, rng):
    bound = Vickrey(0.5).bind(plain_space(LINE[:, None]))
    assert independence_pvalue(bound, 1, 20_000, rng) > SIGNIFICANCE
    monkeypatch.setattr(vickrey, "multivariate_laplace_noise", shared_by_a_batch)
    assert independence_pvalue(bound, 1, 20_000, rng) < SIGNIFICANCE


@pytest.mark.parametrize("n", [0, 1, 2049])
def test_every_block_size_gives_one_valid_word_for_each(plain_space, rng, n):
    space = plain_space(rng.normal(size=(300, 10)))
    out = Vickrey(1).bind(space).sample(rng.integers(0, 300, n).astype(np.int32), rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 300))


def test_little_noise_gives_the_word_or_its_neighbour(plain_space, rng):
    space = plain_space(rng.normal(size=(300, 10)))
    ids = np.arange(300, dtype=np.int32)
    assert np.array_equal(Vickrey(1e9, 0).bind(space).sample(ids, rng), ids)
    assert np.array_equal(Vickrey(1e9, 1).bind(space).sample(ids, rng), space.neighbours(2)[0][:, 1])
