import math
from types import SimpleNamespace

import numpy as np
import pytest
from finite_laws import (
    REJECTION,
    SIGNIFICANCE,
    VOCABULARIES,
    largest_excess,
    slow_distance,
    slow_law,
    with_index_distances,
    worst_fit,
)

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, DensityPrior, FiniteLaw
from beam_dp.mechanisms.density_prior import log_density

EPSILON = 2.5


def slow_density(space, bandwidth):
    """The kernel density of each word, as it is written down."""
    return [
        math.fsum(math.exp(-((slow_distance(space, y, v) / bandwidth) ** 2) / 2) for v in range(space.size))
        / space.size
        for y in range(space.size)
    ]


def prior_weight(density, epsilon=EPSILON):
    return lambda distance, y: density[y] * math.exp(-epsilon * distance / 2)


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf, "1", True])
def test_bandwidth_that_is_no_distance_is_refused(bandwidth):
    with pytest.raises(ArgumentError, match="bandwidth must be a finite number above 0"):
        DensityPrior(1.0, bandwidth)


@pytest.mark.parametrize("epsilon", [0, math.nan, "1", 1e-13])
def test_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be"):
        DensityPrior(epsilon)


def test_is_a_value_with_a_name():
    assert repr(DensityPrior(2, 1)) == "DensityPrior(epsilon=2.0, bandwidth=1.0)"
    assert MECHANISMS["density_prior"] is DensityPrior


def test_guarantee_is_proved_for_any_metric_and_computes_no_density():
    guarantee = DensityPrior(3.0).guarantee(SimpleNamespace(metric="poincare", digest="1" * 64, min_distance=0.1))
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (3.0, 0.0, "proved")
    assert guarantee.metric == "poincare"


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_density_is_the_sum_of_kernels_and_nowhere_zero(plain_space, vocabulary, bandwidth):
    space = plain_space(VOCABULARIES[vocabulary])
    density = np.array(slow_density(space, bandwidth))
    found = log_density(space, bandwidth)
    assert found.max() == 0 and found.min() >= -math.log(space.size)
    assert np.abs(found - np.log(density / density.max())).max() < 1e-5


def test_densities_at_the_ends_of_the_floats(plain_space):
    space = plain_space(VOCABULARIES["17 words, d=2"])
    assert np.array_equal(log_density(space, 1e-300), np.zeros(17))
    assert np.array_equal(log_density(space, 1e300), np.zeros(17))


@pytest.mark.parametrize("vocabulary", [name for name in VOCABULARIES if name != "equal vectors"])
def test_law_is_the_formula_with_the_median_neighbour_distance_as_bandwidth(plain_space, vocabulary):
    space = plain_space(VOCABULARIES[vocabulary])
    bandwidth = float(np.median(np.sort(space.distances, axis=1)[:, 1]))
    bound = DensityPrior(EPSILON).bind(space)
    assert isinstance(bound, FiniteLaw)
    every = np.arange(space.size, dtype=np.int32)
    law = bound.law_rows(every)
    assert np.abs(law - DensityPrior(EPSILON, np.float32(bandwidth)).bind(space).law_rows(every)).max() < 1e-12
    weight = prior_weight(slow_density(space, bandwidth))
    expected = np.array([slow_law(space, word, weight) for word in range(space.size)])
    assert np.abs(law - expected).max() < 1e-5
    # And to twelve digits with the density that is kept.
    kept = np.exp(log_density(space, np.float32(bandwidth)))
    expected = np.array([slow_law(space, word, prior_weight(kept)) for word in range(space.size)])
    assert np.abs(law - expected).max() < 1e-12


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_draws_follow_the_law_and_not_that_without_the_prior(plain_space, rng, vocabulary, bandwidth):
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    words = sorted({0, space.size // 2, space.size - 1})
    bound = DensityPrior(EPSILON, bandwidth).bind(space)
    kept = np.exp(log_density(space, bandwidth))
    law = {word: slow_law(space, word, prior_weight(kept)) for word in words}
    assert worst_fit(bound, law, words, 50_000, rng) > SIGNIFICANCE
    if np.ptp(np.log(kept)) > 0.5:
        flat = {word: slow_law(space, word, prior_weight(np.ones(space.size))) for word in words}
        assert worst_fit(bound, flat, words, 50_000, rng) < REJECTION


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_claim_holds_and_a_dropped_half_breaks_it(plain_space, vocabulary):
    space = plain_space(VOCABULARIES[vocabulary])
    every = np.arange(space.size, dtype=np.int32)
    law = DensityPrior(EPSILON, 0.5).bind(space).law_rows(every)
    assert largest_excess(law, space.distances, EPSILON) < 1e-12
    dropped = np.exp(log_density(space, 0.5) - EPSILON * space.distances)
    dropped /= dropped.sum(axis=1, keepdims=True)
    assert largest_excess(dropped, space.distances, EPSILON) > 0.05


def test_density_of_a_word_that_depends_on_the_word_would_break_the_claim(plain_space):
    """A planted bug: the density around the word that is drawn for takes the place of a public one."""
    space = plain_space(VOCABULARIES["17 words, d=2"])
    mu = np.exp(-((space.distances / 0.3) ** 2))
    law = mu * np.exp(-EPSILON * space.distances / 2)
    law /= law.sum(axis=1, keepdims=True)
    assert largest_excess(law, space.distances, EPSILON) > 1


def test_density_is_kept_under_its_bandwidth(plain_space):
    space = plain_space(VOCABULARIES["17 words, d=2"])
    for bandwidth in (0.5, 0.25):
        DensityPrior(1.0, bandwidth).bind(space)
    DensityPrior(2.0, 0.25).bind(space)
    first, second, third = space.computed
    assert first != second == third


def test_vocabulary_of_equal_vectors_needs_a_bandwidth(plain_space):
    space = plain_space([[0.0], [0.0], [1.0]])
    for call in (DensityPrior(1.0).bind, DensityPrior(1.0).guarantee):
        with pytest.raises(ArgumentError, match="bandwidth must be given"):
            call(space)
    assert DensityPrior(1.0, 1.0).bind(space).law_rows(np.array([0], np.int32)).shape == (1, 3)
