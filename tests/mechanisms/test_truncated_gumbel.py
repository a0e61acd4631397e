import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import TruncatedGumbel, truncated_gumbel
from beam_dp.mechanisms.truncated_gumbel import candidate_count_law, published_scale, truncated_gumbel_law


def simulate(distances, counts, scale, bound, n, rng):
    """The mechanism as it is written down: draw k, draw truncated noise, take the least. (K,) counts."""
    k_max = len(distances)
    low, high = (np.exp(-np.exp(-x / scale)) for x in (-bound, bound))
    noise = -scale * np.log(-np.log(rng.uniform(low, high, (n, k_max))))
    noisy = distances + noise
    noisy[np.arange(k_max) >= rng.choice(np.arange(1, k_max + 1), n, p=counts)[:, None]] = np.inf
    return np.bincount(noisy.argmin(axis=1), minlength=k_max)


@pytest.mark.parametrize("scale", [0.3, 2.0, 40.0])
def test_law_is_what_the_mechanism_does_when_simulated(rng, scale):
    distances = np.sort(np.append(0.0, rng.uniform(0.5, 4, 7)))
    counts = candidate_count_law(60, 8)
    law = truncated_gumbel_law(distances[None], counts, scale, 4.5)[0]
    n = 400_000
    observed = simulate(distances, counts, scale, 4.5, n, rng)
    seen = law * n >= 5
    rest = 1 - law[seen].sum()
    expected = np.append(law[seen], rest) if rest > 1e-12 else law[seen] / law[seen].sum()
    got = np.append(observed[seen], observed[~seen].sum()) if rest > 1e-12 else observed[seen]
    if rest * n > 5 or rest <= 1e-12:
        assert stats.chisquare(got, expected * n).pvalue > 1e-4
    assert observed[~seen].sum() <= 30


def test_planted_bugs_do_not_fit_the_law(rng):
    """Noise x0.8, noise not truncated, the word itself left out, k always at its largest."""
    distances, scale, bound, n = np.array([0.0, 1.0, 1.5, 2.0]), 1.0, 2.0, 200_000
    counts = candidate_count_law(20, 4)
    law = truncated_gumbel_law(distances[None], counts, scale, bound)[0]
    wrong = [
        simulate(distances, counts, scale * 0.8, bound, n, rng),
        simulate(distances, counts, scale, 50.0, n, rng),
        np.append(0, simulate(distances[1:], candidate_count_law(20, 3), scale, bound, n, rng)),
        simulate(distances, np.array([0, 0, 0, 1.0]), scale, bound, n, rng),
    ]
    assert stats.chisquare(simulate(distances, counts, scale, bound, n, rng), law * n).pvalue > 1e-4
    for observed in wrong:
        assert stats.chisquare(observed, law * n).pvalue < 1e-6


def test_two_candidates_agree_with_an_independent_quadrature():
    d, b, bound = 1.2, 0.7, 3.0
    counts = np.array([0.4, 0.6])
    z = np.diff(stats.gumbel_r(scale=b).cdf([-bound, bound]))[0]

    def beats(t):
        """The second candidate stands at t and the first one above it."""
        above = (stats.gumbel_r.cdf(bound, scale=b) - stats.gumbel_r.cdf(t, scale=b)) / z
        return stats.gumbel_r.pdf(t - d, scale=b) / z * above

    second = 0.6 * integrate.quad(beats, d - bound, bound, epsabs=1e-12)[0]
    law = truncated_gumbel_law(np.array([[0.0, d]]), counts, b, bound)[0]
    assert law[1] == pytest.approx(second, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1e9])
def test_extreme_scales_have_their_limits(scale):
    distances = np.array([[0.0, 1.0, 2.0]])
    law = truncated_gumbel_law(distances, np.full(3, 1 / 3), scale, 2.0)[0]
    if scale < 1:
        assert law[0] == pytest.approx(1)
    else:  # noise uniform on [-2, 2]: the second of two candidates wins with probability 9/32
        two = truncated_gumbel_law(distances[:, :2], np.array([0.0, 1.0]), scale, 2.0)[0]
        assert two[1] == pytest.approx(9 / 32, abs=1e-7)
    assert law.sum() == pytest.approx(1)


def test_candidate_count_is_a_truncated_poisson():
    law = candidate_count_law(33_860, 40)
    exact = stats.poisson(math.log(33_860))
    assert law == pytest.approx(exact.pmf(np.arange(1, 41)) / (exact.cdf(40) - exact.pmf(0)))


def test_published_scale_is_the_formula_of_the_paper(plain_space, rng):
    space = plain_space(rng.normal(size=(30, 4)) * 5)
    epsilon = 2 * (5 + 2 * math.log(30)) / space.min_distance
    a = (epsilon - 2 * (1 + math.log(30)) / space.min_distance) / 3
    expected = 2 * space.diameter / min(special.lambertw(2 * a * space.diameter).real, math.log(a * space.min_distance))
    assert published_scale(epsilon, space) == pytest.approx(expected)


def test_epsilon_below_the_smallest_valid_one_is_refused_and_that_one_named(plain_space, rng):
    space = plain_space(rng.normal(size=(30, 4)))
    least = (5 + 2 * math.log(30)) / space.min_distance
    with pytest.raises(ArgumentError, match=r"epsilon must be above \d+\.\d\d") as refused:
        TruncatedGumbel(epsilon=least * 0.999).bind(space)
    named = float(str(refused.value).split("above ")[1].split()[0])
    assert least <= named <= least + 0.01
    TruncatedGumbel(epsilon=named + 1e-6).bind(space)


def test_equal_vectors_leave_no_valid_epsilon(plain_space):
    space = plain_space([[0.0], [1.0], [1.0]])
    with pytest.raises(ArgumentError, match="equal vectors"):
        TruncatedGumbel(epsilon=1e6).guarantee(space)
    assert TruncatedGumbel(scale=1.0).guarantee(space).epsilon is None


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, "1", True])
@pytest.mark.parametrize("name", ["epsilon", "scale"])
def test_bad_numbers_are_refused_by_name(name, bad):
    with pytest.raises(ArgumentError, match=f"{name} must be"):
        TruncatedGumbel(**{name: bad})


@pytest.mark.parametrize("arguments", [{}, {"epsilon": 1.0, "scale": 1.0}])
def test_exactly_one_of_epsilon_and_scale(arguments):
    with pytest.raises(ArgumentError, match="epsilon or scale"):
        TruncatedGumbel(**arguments)


@pytest.mark.parametrize("neighbours", [1, 257, 2.5, True])
def test_number_of_neighbours_is_checked(neighbours):
    with pytest.raises(ArgumentError, match="neighbours"):
        TruncatedGumbel(scale=1.0, neighbours=neighbours)


def test_draws_follow_the_law_that_the_guarantee_is_computed_from(plain_space, rng):
    space = plain_space(rng.normal(size=(25, 2)))
    bound = TruncatedGumbel(scale=0.8, neighbours=10).bind(space)
    law, n = bound.law(), 100_000
    for word in (0, 7, 24):
        exact = np.zeros(25)
        exact[law.ids[word]] = law.probabilities[word]
        counts = np.bincount(bound.sample(np.full(n, word, np.int32), rng), minlength=25)
        assert counts[exact == 0].sum() == 0
        common = exact * n > 5
        observed, expected = counts[common], exact[common] * n
        assert stats.chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 1e-4


def test_law_is_computed_once_for_a_space_and_scale(plain_space, rng):
    space = plain_space(rng.normal(size=(6, 2)))
    TruncatedGumbel(scale=0.8).bind(space)
    TruncatedGumbel(scale=0.9).bind(space)
    assert len(set(space.computed)) == 2


@pytest.mark.parametrize("word", [0, 13])
def test_what_is_bound_is_the_mechanism_when_simulated_with_the_distances_of_the_space(plain_space, rng, word):
    """More words than candidates, the scale and the bound of the space: the whole path from space to draws."""
    space, scale, k_max, n = plain_space(rng.normal(size=(30, 3))), 0.9, 6, 300_000
    counts = stats.poisson(math.log(30)).pmf(np.arange(1, k_max + 1))
    order = np.argsort(space.distances[word])[:k_max]
    expected = simulate(space.distances[word][order], counts / counts.sum(), scale, space.diameter, n, rng)
    bound = TruncatedGumbel(scale=scale, neighbours=k_max).bind(space)
    drawn = np.bincount(bound.sample(np.full(n, word, np.int32), rng), minlength=30)
    assert drawn.sum() == drawn[order].sum()
    table = np.array([expected, drawn[order]])
    assert stats.chi2_contingency(table[:, table.min(axis=0) > 5]).pvalue > 1e-4


def exact_delta(space, law, epsilon):
    """The definition over the dense matrix of a law."""
    matrix = np.zeros((space.size, space.size))
    np.put_along_axis(matrix, law.ids.astype(int), law.probabilities, axis=1)
    factor = np.exp(np.minimum(epsilon * space.distances, 700))
    return max(
        np.maximum(matrix[w] - factor[w, v] * matrix[v], 0).sum() for w in range(space.size) for v in range(space.size)
    )


def test_vocabulary_that_the_candidates_cover_gets_a_finite_guarantee_computed_from_its_law(plain_space, rng):
    space = plain_space(rng.normal(size=(8, 3)))
    epsilon = 1.02 * (5 + 2 * math.log(8)) / space.min_distance
    mechanism = TruncatedGumbel(epsilon=epsilon)
    guarantee = mechanism.guarantee(space)
    assert (guarantee.basis, guarantee.epsilon) == ("computed", epsilon)
    assert guarantee.delta == exact_delta(space, mechanism.bind(space).law(), epsilon) == 0


@pytest.mark.parametrize(("size", "neighbours"), [(11, 10), (12, 7)])
def test_no_finite_guarantee_where_some_word_cannot_become_another(plain_space, rng, size, neighbours):
    """A word keeps itself with a high probability, so delta is large as soon as it is nobody else's candidate."""
    space = plain_space(rng.normal(size=(size, 3)))
    epsilon = 1.02 * (5 + 2 * math.log(size)) / space.min_distance
    mechanism = TruncatedGumbel(epsilon=epsilon, neighbours=neighbours)
    delta = exact_delta(space, mechanism.bind(space).law(), epsilon)
    guarantee = mechanism.guarantee(space)
    assert 0.01 < delta < 1 and guarantee.epsilon is None and f"is {delta:.3g}" in guarantee.reason


def test_no_finite_guarantee_where_candidates_of_two_words_are_disjoint(plain_space, rng):
    space = plain_space(rng.normal(size=(60, 1)) * 10)
    guarantee = TruncatedGumbel(epsilon=1e9, neighbours=5).guarantee(space)
    assert guarantee.epsilon is None and "nothing in common" in guarantee.reason


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 2.0, 5.0, 100.0])
def test_law_of_close_and_of_lonely_words_is_integrated_to_nine_digits(rng, scale, monkeypatch):
    """Words among many near ones and words with none near, against rules of nearly three times the order."""
    spread = rng.uniform(0.3, 6, (40, 1))
    distances = np.sort(spread * rng.uniform(0.5, 2, (40, 40)), axis=1)
    distances[:, 0] = 0
    counts = candidate_count_law(20_000, 40)
    law = truncated_gumbel_law(distances, counts, scale, 20.0)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    monkeypatch.setattr(truncated_gumbel, "_NODES", nodes)
    monkeypatch.setattr(truncated_gumbel, "_WEIGHTS", weights)
    assert np.abs(law - truncated_gumbel_law(distances, counts, scale, 20.0)).max() < 1e-9
