"""The exponential mechanism against its exact law, its promise over all neighbours, and both against planted bugs."""

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from exact_numbers import SIGNIFICANCE, counts_pvalue, exp_bounds
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.exponential import ExponentialMechanism, _Sampler

DRAWS = 2000
INT64 = np.iinfo(np.int64)

SCORES = [
    np.array([0, 0, 0, 0]),
    np.array([5, -2, 5, 0, 3, 3]),
    np.array([100, 99, 98, 97, 0, -(10**9)]),
    np.array([0.25, -0.5, 1.75, 0.25, 1e-9, -300.0]),
    np.array([-1e15, -1e15 + 2, -1e15 + 1]),
    np.array([INT64.min, INT64.min + 1, INT64.min + 3]),
    np.array([INT64.max, INT64.max - 2, INT64.min]),
    np.array([1.7e308, -1.7e308, 1.7e308]),
    np.arange(40) % 7,
]


def exact_law(scores, rate):
    """P[i] ∝ exp(rate·u_i) by rational arithmetic, as floats."""
    top = max(Fraction(u) for u in scores.tolist())
    exponents = [Fraction(rate) * (Fraction(u) - top) for u in scores.tolist()]
    # Below exp(-500) a candidate is never drawn.
    weights = [exp_bounds(exponent)[0] if exponent > -500 else Fraction(0) for exponent in exponents]
    return np.array([float(weight / sum(weights)) for weight in weights])


@pytest.mark.parametrize("scores", SCORES, ids=str)
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_choices_have_the_exact_law(rng, scores, rate):
    mechanism = ExponentialMechanism(2 * rate, 1)
    chosen = [mechanism.choose(scores, rng) for _ in range(DRAWS)]
    assert type(chosen[0]) is int
    law = exact_law(scores, rate)
    assert mechanism.probabilities(scores) == pytest.approx(law, rel=1e-9, abs=1e-200)
    assert counts_pvalue(np.bincount(chosen, minlength=len(scores)), law) > SIGNIFICANCE


@pytest.mark.parametrize(("monotone", "rate"), [(False, Fraction(3, 14)), (True, Fraction(3, 7))])
def test_the_rate_is_epsilon_by_the_sensitivity_with_one_half_unless_monotone(monotone, rate):
    assert ExponentialMechanism(3, 7, monotone=monotone).rate == rate


def neighbours(scores, steps):
    for step in itertools.product(steps, repeat=len(scores)):
        yield scores + np.array(step)


def worst_loss(mechanism, scores, steps):
    """The largest |ln(P[i] / P'[i])| over all neighbours whose scores differ by these steps."""
    here = np.log(mechanism.probabilities(scores))
    return max(np.abs(here - np.log(mechanism.probabilities(other))).max() for other in neighbours(scores, steps))


@pytest.mark.parametrize(
    "scores", [np.zeros(5), np.array([0, 1, 5, 5, 9]), np.array([0.0, 30.0, -4.5, 0.1, 2.0])], ids=str
)
@pytest.mark.parametrize("sensitivity", [1, 2.5])
def test_no_neighbour_loses_more_than_epsilon(scores, sensitivity):
    epsilon = 1.3
    general = ExponentialMechanism(epsilon, sensitivity)
    monotone = ExponentialMechanism(epsilon, sensitivity, monotone=True)
    assert worst_loss(general, scores, (-sensitivity, 0, sensitivity)) <= epsilon * (1 + 1e-9)
    assert worst_loss(monotone, scores, (0, sensitivity)) <= epsilon * (1 + 1e-9)
    assert worst_loss(monotone, scores, (0, -sensitivity)) <= epsilon * (1 + 1e-9)


def test_the_promise_is_nearly_used_up_and_planted_bugs_exceed_it():
    """A candidate that hardly ever wins, while all others fall: with many others the loss comes near epsilon."""
    epsilon, scores = 1.0, np.zeros(1000)
    away, all_but_one = np.full(1000, -1.0), np.full(1000, -1.0)
    away[0], all_but_one[0] = 1.0, 0.0

    def loss(mechanism, step):
        return math.log(mechanism.probabilities(scores + step)[0] / mechanism.probabilities(scores)[0])

    assert 0.99 * epsilon < loss(ExponentialMechanism(epsilon, 1), away) <= epsilon
    assert 0.99 * epsilon < loss(ExponentialMechanism(epsilon, 1, monotone=True), all_but_one) <= epsilon
    # A half dropped from the exponent: scores that may fall and rise, treated as monotone.
    assert loss(ExponentialMechanism(epsilon, 1, monotone=True), away) > 1.9 * epsilon
    # A sensitivity that is too small.
    assert loss(ExponentialMechanism(epsilon, 0.5), away) > 1.9 * epsilon


def test_planted_bugs_in_the_draw_are_found(rng):
    scores, mechanism = np.array([5, 4, 3, 0, 0, 0, 0]), ExponentialMechanism(1, 1)
    law = exact_law(scores, 0.5)

    def pvalue(choose):
        return counts_pvalue(np.bincount([choose() for _ in range(DRAWS)], minlength=len(scores)), law)

    assert pvalue(lambda: mechanism.choose(scores, rng)) > SIGNIFICANCE
    assert pvalue(lambda: ExponentialMechanism(1, 1, monotone=True).choose(scores, rng)) < SIGNIFICANCE
    sampler = _Sampler(scores, mechanism.rate)
    sampler._acceptance = None  # any use of it would fail

    shares = [size * 2.0**-level for level, size in enumerate(sampler._sizes)]
    shares = np.array(shares) / sum(shares)

    def level_without_acceptance():
        level = int(rng.choice(len(sampler._sizes), p=shares))
        return sampler._starts[level] + int(rng.integers(sampler._sizes[level]))

    assert pvalue(level_without_acceptance) < SIGNIFICANCE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scores=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12)
    | st.lists(st.integers(-50, 50), min_size=1, max_size=12)
    | st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=12),
    epsilon=st.floats(1e-6, 1e3),
)
def test_every_candidate_is_in_one_level_and_accepted_with_a_probability(scores, epsilon):
    """2^level·exp(-γ) is at most 1, and above one half outside the last level: exactly."""
    ordered = np.sort(np.array(scores))[::-1]
    rate = Fraction(epsilon)
    sampler = _Sampler(ordered, rate)
    assert sampler._starts[-1] == len(scores) == sum(sampler._sizes)
    assert sampler._weights[-1] == sum(size << (64 - level) for level, size in enumerate(sampler._sizes))
    for level, size in enumerate(sampler._sizes):
        for place in range(sampler._starts[level], sampler._starts[level] + size):
            low, high = sampler._acceptance(place, level)(0)(128)
            assert high - low <= Fraction(1, 1 << 128)
            gamma = rate * (Fraction(ordered[0].item()) - Fraction(ordered[place].item()))
            if gamma < 200:
                least, most = exp_bounds(-gamma)
                assert low <= least * (1 << level) <= 1 and most * (1 << level) <= high
            assert low <= 1
            assert level == 64 or high > Fraction(499, 1000)


class Counted:
    """A generator that counts how often it is asked: three times for a proposal, its coin's rare ties aside."""

    def __init__(self, rng):
        self.rng, self.calls = rng, 0

    def integers(self, *arguments, **options):
        self.calls += 1
        return self.rng.integers(*arguments, **options)


@pytest.mark.parametrize(
    "scores",
    [
        np.concatenate([[10**9], np.zeros(999_999, np.int64)]),
        np.concatenate([[20], np.zeros(999_999, np.int64)]),
        np.zeros(1_000_000, np.int64),
        np.linspace(0, 60, 1_000_000),
        (1e7 / np.arange(1, 1_000_001)).astype(np.int64),
    ],
    ids=["one has all", "one has much", "all alike", "even", "zipf"],
)
def test_half_of_the_proposals_are_accepted_whatever_the_scores(rng, scores):
    counted, draws = Counted(rng), 500
    sampler = _Sampler(np.sort(scores)[::-1], Fraction(1))
    for _ in range(draws):
        sampler.draw(counted)
    # Each draw of a number below a bound takes two goes at most on average: 2 * 2 + 1 calls for each of 2 proposals.
    assert counted.calls / draws < 10


def ordered_law(scores, rate, k):
    """P[first, second, ...] of peeling: each by the exponential mechanism among those that are left."""
    weights = exact_law(scores, rate)
    law = {}
    for order in itertools.permutations(range(len(scores)), k):
        left, probability = weights.sum(), 1.0
        for index in order:
            probability *= weights[index] / left
            left -= weights[index]
        law[order] = probability
    return law


@pytest.mark.parametrize(
    ("scores", "k"),
    [
        (np.array([0, 1, 2, 3]), 2),
        (np.array([0.5, 0.5, -1.0]), 3),
        # Each far above the next: proposals are lost until levels are made anew.
        (np.array([0, 9, 4, 13]), 3),
    ],
    ids=str,
)
def test_top_k_has_the_law_of_peeling(rng, scores, k):
    mechanism = ExponentialMechanism(1, 1, monotone=True)
    law = ordered_law(scores, 1, k)
    orders = list(law)
    counts = dict.fromkeys(orders, 0)
    for _ in range(1000):
        chosen = mechanism.top_k(scores, k, rng)
        assert chosen.dtype == np.int64
        counts[tuple(chosen.tolist())] += 1
    probabilities = np.array([law[order] for order in orders])
    assert counts_pvalue([counts[order] for order in orders], probabilities / probabilities.sum()) > SIGNIFICANCE


def test_planted_bug_of_a_second_choice_among_all_candidates_is_found(rng):
    """The k most frequent of many draws, instead of peeling."""
    scores, mechanism = np.array([0, 1, 2, 3]), ExponentialMechanism(1, 1, monotone=True)
    law = ordered_law(scores, 1, 2)
    counts = dict.fromkeys(law, 0)
    for _ in range(DRAWS):
        first, second = mechanism.choose(scores, rng), mechanism.choose(scores, rng)
        if first != second:
            counts[first, second] += 1
    assert counts_pvalue(list(counts.values()), list(law.values())) < SIGNIFICANCE


def test_all_candidates_can_be_chosen_and_far_apart_ones_come_in_order(rng):
    mechanism = ExponentialMechanism(1, 1)
    assert sorted(mechanism.top_k(np.zeros(300), 300, rng).tolist()) == list(range(300))
    scores = rng.permutation(200) * 1000
    assert (mechanism.top_k(scores, 200, rng) == np.argsort(-scores)).all()
    assert mechanism.top_k([7], 1, rng).tolist() == [0]


def test_ties_are_broken_uniformly(rng):
    scores = np.array([1] * 50 + [0] * 3)
    first = [int(ExponentialMechanism(1000, 1).top_k(scores, 2, rng)[0]) for _ in range(DRAWS)]
    assert counts_pvalue(np.bincount(first, minlength=53), np.append(np.full(50, 1 / 50), np.zeros(3))) > SIGNIFICANCE


def test_choices_follow_the_scores_not_their_places(rng):
    scores = rng.permutation(np.arange(12))
    chosen = [ExponentialMechanism(1, 1).choose(scores, rng) for _ in range(DRAWS)]
    law = exact_law(scores, 0.5)
    assert stats.spearmanr(np.bincount(chosen, minlength=12), law).statistic > 0.95
    assert counts_pvalue(np.bincount(chosen, minlength=12), law) > SIGNIFICANCE


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.int64, np.float32, np.float64])
def test_narrower_types_of_scores_are_taken_as_they_are(rng, dtype):
    assert ExponentialMechanism(1000, 1).choose(np.array([1, 2, 100, 3], dtype), rng) == 2


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "scores must be one array of at least one number"),
        ([[1, 2]], "scores must be one array"),
        (3, "scores must be one array"),
        ([1.0, math.nan], "scores must be finite"),
        ([1.0, math.inf], "scores must be finite"),
        ([1.0, -math.inf], "scores must be finite"),
        (["1"], "scores must be int64 or float64"),
        ([True, False], "scores must be int64 or float64, not bool"),
        ([1j], "scores must be int64 or float64"),
        (np.array([1, 2], np.uint64), "not uint64"),
        ([None, 1], "not object"),
    ],
)
def test_scores_that_are_none_are_refused(rng, scores, message):
    mechanism = ExponentialMechanism(1, 1)
    with pytest.raises(ArgumentError, match=message):
        mechanism.choose(scores, rng)
    with pytest.raises(ArgumentError, match=message):
        mechanism.probabilities(scores)


@pytest.mark.parametrize(
    ("k", "message"), [(0, "k must be at least 1"), (4, "k must be at most .* 3"), (1.5, "k must")]
)
def test_numbers_of_candidates_that_cannot_be_chosen_are_refused(rng, k, message):
    with pytest.raises(ArgumentError, match=message):
        ExponentialMechanism(1, 1).top_k([1, 2, 3], k, rng)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "epsilon"),
        ((math.inf, 1), "epsilon"),
        ((1, 0), "sensitivity"),
        ((1, -1), "sensitivity"),
        ((1, None), "sensitivity"),
        ((1, 1, 1), "monotone must be True or False"),
        ((1e200, 1e-200), "epsilon / sensitivity"),
        ((1e-200, 1e200), "epsilon / sensitivity"),
    ],
)
def test_what_can_never_work_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ExponentialMechanism(*arguments)


def test_a_mechanism_is_a_value():
    mechanism = ExponentialMechanism(1, 2, monotone=True)
    assert pickle.loads(pickle.dumps(mechanism)) == mechanism == ExponentialMechanism(1.0, 2.0, True)
    assert repr(mechanism) == "ExponentialMechanism(epsilon=1.0, sensitivity=2.0, monotone=True)"
