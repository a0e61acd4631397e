import math
from types import SimpleNamespace

import numpy as np
import pytest
from finite_laws import (
    REJECTION,
    SIGNIFICANCE,
    VOCABULARIES,
    fit,
    largest_excess,
    slow_law,
    with_index_distances,
    worst_fit,
)

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MECHANISMS, Exponential, FiniteLaw, TruncatedExponential

EPSILON = 2.5
GAMMA = 1.7


def exponential_weight(epsilon):
    return lambda distance, _: math.exp(-epsilon * distance / 2)


def truncated_weight(epsilon, gamma):
    return lambda distance, _: math.exp(-epsilon * min(distance, gamma) / 2)


def whole_law(space, weight):
    return np.array([slow_law(space, word, weight) for word in range(space.size)])


@pytest.mark.parametrize("kind", [Exponential, TruncatedExponential])
@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None, 1e-13, 1e13])
def test_epsilon_out_of_range_is_refused(kind, epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be"):
        kind(epsilon)


@pytest.mark.parametrize("gamma", [0, -1.0, math.nan, math.inf, "1", True])
def test_gamma_that_is_no_distance_is_refused(gamma):
    with pytest.raises(ArgumentError, match="gamma must be a finite number above 0"):
        TruncatedExponential(1.0, gamma)


def test_are_values_with_names():
    assert Exponential(2) == Exponential(2.0) and repr(Exponential(2)) == "Exponential(epsilon=2.0)"
    assert repr(TruncatedExponential(2, 1)) == "TruncatedExponential(epsilon=2.0, gamma=1.0)"
    assert TruncatedExponential(2).gamma is None
    assert MECHANISMS["exponential"] is Exponential
    assert MECHANISMS["truncated_exponential"] is TruncatedExponential


@pytest.mark.parametrize("mechanism", [Exponential(3.0), TruncatedExponential(3.0)], ids=repr)
def test_guarantee_is_proved_for_any_metric_and_makes_no_row(mechanism):
    space = SimpleNamespace(metric="poincare", digest="1" * 64)  # asking it for a distance would be an error
    guarantee = mechanism.guarantee(space)
    assert (guarantee.epsilon, guarantee.delta, guarantee.basis) == (3.0, 0.0, "proved")
    assert (guarantee.metric, guarantee.index_digest) == ("poincare", "1" * 64)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_law_has_the_half_in_the_exponent(plain_space, vocabulary):
    space = plain_space(VOCABULARIES[vocabulary])
    every = np.arange(space.size, dtype=np.int32)
    for mechanism, weight in (
        (Exponential(EPSILON), exponential_weight(EPSILON)),
        (TruncatedExponential(EPSILON, GAMMA), truncated_weight(EPSILON, GAMMA)),
    ):
        bound = mechanism.bind(space)
        assert isinstance(bound, FiniteLaw)
        assert np.abs(bound.law_rows(every) - whole_law(space, weight)).max() < 1e-12


def other_metrics():
    rng = np.random.default_rng(8)
    points = rng.normal(size=(30, 3))
    manhattan = np.abs(points[:, None] - points[None]).sum(axis=2)
    # The Poincaré disc: a negatively curved metric, with words near the boundary.
    radius = np.linspace(0, 0.999, 30)
    disc = radius[:, None] * (points[:, :2] / np.linalg.norm(points[:, :2], axis=1, keepdims=True))
    squared = ((disc[:, None] - disc[None]) ** 2).sum(axis=2)
    room = 1 - radius**2
    return {
        "manhattan": (points, manhattan),
        "discrete": (points, 2.0 * (1 - np.eye(30))),
        "hyperbolic": (disc, np.arccosh(1 + 2 * squared / (room[:, None] * room[None]))),
    }


METRICS = other_metrics()


@pytest.mark.parametrize("name", METRICS)
def test_claim_holds_for_any_metric_and_draws_follow_its_law(plain_space, rng, name):
    points, distances = METRICS[name]
    space = plain_space(points, metric=name)
    space.distances = distances
    every = np.arange(30, dtype=np.int32)
    for mechanism, cap in ((Exponential(EPSILON), math.inf), (TruncatedExponential(EPSILON, GAMMA), GAMMA)):
        bound = mechanism.bind(space)
        law = bound.law_rows(every)
        expected = np.exp(-EPSILON * np.minimum(distances, cap) / 2)
        assert np.abs(law - expected / expected.sum(axis=1, keepdims=True)).max() < 1e-12
        assert largest_excess(law, np.minimum(distances, cap), EPSILON) < 1e-12
        assert worst_fit(bound, law, [0, 7, 29], 60_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_claim_holds_and_a_dropped_half_breaks_it(plain_space, vocabulary):
    space = plain_space(VOCABULARIES[vocabulary])
    every = np.arange(space.size, dtype=np.int32)
    for mechanism, cap in ((Exponential(EPSILON), math.inf), (TruncatedExponential(EPSILON, GAMMA), GAMMA)):
        distances = np.minimum(space.distances, cap)
        assert largest_excess(mechanism.bind(space).law_rows(every), distances, EPSILON) < 1e-12
        dropped = np.exp(-EPSILON * distances)
        dropped /= dropped.sum(axis=1, keepdims=True)
        assert largest_excess(dropped, distances, EPSILON) > 0.05


@pytest.mark.parametrize("epsilon", [0.4, EPSILON, 60.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_draws_of_the_exponential_mechanism_follow_the_formula(plain_space, rng, vocabulary, epsilon):
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    words = sorted({0, space.size // 2, space.size - 1})
    law = {word: slow_law(space, word, exponential_weight(epsilon)) for word in words}
    assert worst_fit(Exponential(epsilon).bind(space), law, words, 50_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("gamma", [None, 0.3, GAMMA, 1e300])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_draws_of_the_truncated_mechanism_follow_the_formula(plain_space, rng, vocabulary, gamma):
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    words = sorted({0, space.size // 2, space.size - 1})
    mechanism = TruncatedExponential(EPSILON, gamma)
    weight = truncated_weight(EPSILON, mechanism.threshold(space.size))
    law = {word: slow_law(space, word, weight) for word in words}
    assert worst_fit(mechanism.bind(space), law, words, 50_000, rng) > SIGNIFICANCE


def published(space, word, n, rng, *, half=0.5, tail_weight=True, tail_holds_word=False):
    """TEM as its paper writes it down: Gumbel noise on scores, an argmax, a uniform word of the tail. (n,) ids."""
    distances = space.distances[word]
    near, tail = np.flatnonzero(distances < GAMMA), np.flatnonzero(distances >= GAMMA)
    scores = -half * EPSILON * distances[near]
    if tail_weight:
        scores = np.append(scores, -half * EPSILON * GAMMA + math.log(len(tail)))
    choice = (scores + rng.gumbel(size=(n, len(scores)))).argmax(axis=1)
    uniform = np.full(n, word) if tail_holds_word else rng.choice(tail, n)
    return np.where(choice < len(near), near[np.minimum(choice, len(near) - 1)], uniform)


@pytest.mark.parametrize(
    ("fault", "right"),
    [({}, True), ({"half": 1.0}, False), ({"tail_weight": False}, False), ({"tail_holds_word": True}, False)],
    ids=["as published", "half dropped", "tail bucket omitted", "word itself returned for the tail"],
)
def test_law_is_the_published_procedure_and_not_that_of_faulty_peers(plain_space, rng, fault, right):
    space = plain_space(VOCABULARIES["17 words, d=2"])
    bound = TruncatedExponential(EPSILON, GAMMA).bind(space)
    tails = np.sum(space.distances >= GAMMA, axis=1)
    for word in np.flatnonzero((tails > 3) & (tails < 14))[[0, -1]]:
        p = fit(published(space, word, 200_000, rng, **fault), bound.law_rows(np.array([word], np.int32))[0])
        assert p > SIGNIFICANCE if right else p < REJECTION


def test_words_beyond_gamma_come_equally_often_and_the_word_itself_not_for_them(plain_space, rng):
    """All other words are in the tail: each has exp(-epsilon*gamma/2) of the weight of the word itself."""
    space = with_index_distances(plain_space([[0.0], [50.0], [-70.0], [90.0]]))
    drawn = TruncatedExponential(2.0, 1.0).bind(space).sample(np.zeros(200_000, np.int32), rng)
    law = np.array([1, *[math.exp(-1)] * 3]) / (1 + 3 * math.exp(-1))
    assert fit(drawn, law) > SIGNIFICANCE


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_default_gamma_is_the_formula_and_one_word_in_a_thousand_comes_from_beyond_it(plain_space, vocabulary, epsilon):
    space = plain_space(np.asarray(VOCABULARIES[vocabulary]) * 30)
    mechanism = TruncatedExponential(epsilon)
    gamma = mechanism.threshold(space.size)
    assert gamma == pytest.approx(2 / epsilon * math.log(0.999 * (space.size - 1) / 0.001))
    law = mechanism.bind(space).law_rows(np.arange(space.size, dtype=np.int32))
    assert (law * (space.distances >= gamma)).sum(axis=1).max() <= 0.001 * (1 + 1e-9)


def test_extreme_epsilons_keep_every_word_or_forget_it(plain_space, rng):
    space = with_index_distances(plain_space(VOCABULARIES["300 words, d=2"]))
    ids = np.arange(300, dtype=np.int32)
    assert np.array_equal(Exponential(1e12).bind(space).sample(ids, rng), ids)
    drawn = Exponential(1e-12).bind(space).sample(np.zeros(60_000, np.int32), rng)
    assert fit(drawn, np.full(300, 1 / 300)) > SIGNIFICANCE


def test_words_with_equal_vectors_have_the_same_law(plain_space, rng):
    space = with_index_distances(plain_space(VOCABULARIES["equal vectors"]))
    bound = Exponential(EPSILON).bind(space)
    first, second, third = bound.law_rows(np.array([0, 12, 17], np.int32))
    assert np.array_equal(first, second) and np.array_equal(first, third)
    drawn = bound.sample(np.array([0, 12, 17], np.int32).repeat(60_000), rng).reshape(3, -1)
    assert min(fit(words, first) for words in drawn) > SIGNIFICANCE
