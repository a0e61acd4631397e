"""Randomized response against its exact law, its estimator against the algebra, and both against planted bugs."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from exact_numbers import SIGNIFICANCE, counts_pvalue, exp_bounds
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.randomized_response import LN_3, FairCoinResponse, KaryRandomizedResponse

DRAWS = 60_000
MECHANISMS = [
    KaryRandomizedResponse(2, 0.1),
    KaryRandomizedResponse(2, 3.0),
    KaryRandomizedResponse(3, 1.0),
    KaryRandomizedResponse(10, 1.5),
    KaryRandomizedResponse(200, 4.0),
    FairCoinResponse(),
]


def law(k, epsilon):
    """P[y | x] = e^ε/(e^ε + k - 1) for y = x and 1/(e^ε + k - 1) elsewhere: (k, k)."""
    return (np.ones((k, k)) + math.expm1(epsilon) * np.eye(k)) / (math.exp(epsilon) + k - 1)


def law_pvalue(respond, k, epsilon, codes=None):
    """The smallest p-value over true answers, times their number."""
    rows = law(k, epsilon)
    codes = range(k) if codes is None else codes
    pvalues = [
        counts_pvalue(np.bincount(respond(np.full(DRAWS, code, np.int32)), minlength=k), rows[code]) for code in codes
    ]
    return len(pvalues) * min(pvalues)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_responses_have_the_exact_law(rng, mechanism):
    codes = [0, 1, mechanism.categories - 1]
    respond = lambda answers: mechanism.respond(answers, rng)  # noqa: E731
    assert law_pvalue(respond, mechanism.categories, mechanism.epsilon, codes) > SIGNIFICANCE


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_responses_are_codes_and_independent_of_each_other(rng, mechanism):
    answers = np.zeros(20_000, np.int32)
    before = answers.copy()
    out = mechanism.respond(answers, rng)
    assert out.dtype == np.int32 and out.shape == answers.shape and (answers == before).all()
    assert out.min() >= 0 and out.max() < mechanism.categories
    assert stats.spearmanr(out[:-1], out[1:]).pvalue > SIGNIFICANCE
    assert mechanism.respond(np.empty(0, np.int32), rng).shape == (0,)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
@pytest.mark.parametrize("outside", [-1, -(2**31), 200, 2**31 - 1])
def test_an_answer_that_is_no_category_gets_a_uniform_response(rng, mechanism, outside):
    k = mechanism.categories
    counts = np.bincount(mechanism.respond(np.full(DRAWS, outside, np.int32), rng), minlength=k)
    assert counts_pvalue(counts, np.full(k, 1 / k)) > SIGNIFICANCE


def test_answers_beside_one_that_is_no_category_keep_their_places(rng):
    answers = np.tile(np.array([0, -1, 2, 7, 1], np.int32), 5000)
    out = KaryRandomizedResponse(3, 700.0).respond(answers, rng).reshape(-1, 5)
    assert (out[:, [0, 2, 4]] == [0, 2, 1]).all()
    assert set(out[:, 1]) == set(out[:, 3]) == {0, 1, 2}


class AllPairsOfCoins:
    """Both coins in each of the four ways they can fall."""

    def integers(self, low, high, size, dtype):
        assert (low, high, size) == (0, 4, 4)
        return np.arange(4, dtype=dtype)


@pytest.mark.parametrize("truth", [0, 1])
def test_two_fair_coins_answer_the_truth_in_three_of_four_ways(truth):
    out = FairCoinResponse().respond(np.full(4, truth, np.int32), AllPairsOfCoins())
    assert Fraction(int((out == truth).sum()), 4) == Fraction(3, 4) == FairCoinResponse.keep_probability
    # Where the first coin says so, the second one answers, whatever the truth is.
    assert sorted(out[::2].tolist()) == [0, 1] and out[1::2].tolist() == [truth, truth]


def test_epsilon_of_the_fair_coin_is_ln_3_rounded_up():
    assert FairCoinResponse().epsilon == LN_3
    assert exp_bounds(Fraction(LN_3))[0] >= 3 > exp_bounds(Fraction(math.nextafter(LN_3, 0)))[1]


@pytest.mark.parametrize("mechanism", [m for m in MECHANISMS if m.categories < 20], ids=repr)
def test_the_law_promises_epsilon_exactly(mechanism):
    rows = law(mechanism.categories, mechanism.epsilon)
    worst = max(np.log(a / b).max() for a in rows for b in rows)
    assert worst == pytest.approx(mechanism.epsilon, rel=1e-12)
    assert float(mechanism.keep_probability) == pytest.approx(rows[0, 0], rel=1e-12)


def twice_the_epsilon(codes, rng):
    return KaryRandomizedResponse(3, 2.0).respond(codes, rng)


def lies_among_all(codes, rng):
    """The other answer is drawn from all categories, the true one among them."""
    lies = rng.random(len(codes)) >= math.e / (math.e + 2)
    return np.where(lies, rng.integers(0, 3, len(codes)), codes).astype(np.int32)


def lies_to_the_next(codes, rng):
    lies = rng.random(len(codes)) >= math.e / (math.e + 2)
    return np.where(lies, (codes + 1) % 3, codes).astype(np.int32)


def keeps_by_k_instead_of_its_others(codes, rng):
    lies = rng.random(len(codes)) >= math.e / (math.e + 3)
    return np.where(lies, (codes + rng.integers(1, 3, len(codes))) % 3, codes).astype(np.int32)


@pytest.mark.parametrize("bug", [twice_the_epsilon, lies_among_all, lies_to_the_next, keeps_by_k_instead_of_its_others])
def test_planted_bugs_in_the_law_are_found(rng, bug):
    assert law_pvalue(lambda codes: bug(codes, rng), 3, 1.0) < SIGNIFICANCE


def test_planted_bug_of_a_truth_told_too_often_is_found(rng):
    """Truth with probability 3/4, else a fair coin: 7/8, not 3/4."""

    def bug(codes):
        return np.where(rng.random(len(codes)) < 0.75, codes, rng.integers(0, 2, len(codes))).astype(np.int32)

    assert law_pvalue(bug, 2, math.log(3)) < SIGNIFICANCE
    assert law_pvalue(lambda codes: FairCoinResponse().respond(codes, rng), 2, math.log(3)) > SIGNIFICANCE


@pytest.mark.parametrize(("no", "yes"), [(50, 50), (7, 3), (1, 0), (123_456, 654_321)])
def test_estimate_of_the_poll_is_the_textbook_formula(no, yes):
    n = no + yes
    share = yes / n
    estimates = FairCoinResponse().estimate([no, yes])
    assert estimates.shares[1] == pytest.approx(2 * share - 0.5, rel=1e-12, abs=1e-12)
    expected = 2 * math.sqrt(share * (1 - share) / n)
    assert estimates.standard_errors[1] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_estimates_invert_the_law(mechanism):
    """Of the expected counts the estimate is the truth itself."""
    k = mechanism.categories
    truth = np.arange(1, k + 1) / (k * (k + 1) / 2)
    n = 10**15
    counts = np.rint(truth @ law(k, mechanism.epsilon) * n).astype(np.int64)
    assert mechanism.estimate(counts).shares == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_standard_errors_are_the_binomial_ones_by_the_slope_of_the_law(mechanism):
    k, n = mechanism.categories, 4000
    counts = np.full(k, n // k)
    counts[0] += n - counts.sum()
    rows = law(k, mechanism.epsilon)
    observed = counts / n
    expected = np.sqrt(observed * (1 - observed) / n) / (rows[0, 0] - rows[0, 1])
    estimates = mechanism.estimate(counts)
    assert estimates.standard_errors == pytest.approx(expected, rel=1e-9)
    assert estimates.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("mechanism", [MECHANISMS[2], MECHANISMS[3], MECHANISMS[5]], ids=repr)
def test_estimates_are_unbiased_and_their_errors_are_as_stated(rng, mechanism):
    """Persons drawn from a population whose shares are known, 3000 polls of 500 of them."""
    k, polls, n = mechanism.categories, 3000, 500
    truth = np.arange(1, k + 1) / (k * (k + 1) / 2)
    answers = rng.choice(k, (polls, n), p=truth).astype(np.int32)
    responses = mechanism.respond(answers.ravel(), rng).reshape(polls, n)
    estimates = [mechanism.estimate(np.bincount(poll, minlength=k)) for poll in responses]
    errors = np.array([estimate.shares for estimate in estimates]) - truth
    stated = np.mean([np.square(estimate.standard_errors) for estimate in estimates], axis=0)
    limit = stats.norm.isf(SIGNIFICANCE / 2 / k)
    assert (np.abs(errors.mean(axis=0)) < limit * np.sqrt(stated / polls)).all()
    # The relative standard error of a variance of 3000 nearly normal errors is sqrt(2/3000); n - 1 for n is 0.2%.
    assert (np.abs(np.square(errors).mean(axis=0) / stated - 1) < limit * math.sqrt(2 / polls) + 0.01).all()


def test_a_poll_of_nobody_has_no_estimate():
    for mechanism in MECHANISMS:
        estimates = mechanism.estimate(np.zeros(mechanism.categories, np.int64))
        assert np.isnan(estimates.shares).all() and np.isnan(estimates.standard_errors).all()


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 40.0, 700.0, 1e6])
def test_extreme_epsilons(rng, epsilon):
    mechanism = KaryRandomizedResponse(4, epsilon)
    out = mechanism.respond(np.full(DRAWS, 3, np.int32), rng)
    if epsilon >= 40:
        assert (out == 3).all()
        assert mechanism.estimate([0, 0, 0, 5]).shares == pytest.approx([0, 0, 0, 1], abs=1e-12)
    else:
        assert counts_pvalue(np.bincount(out, minlength=4), law(4, epsilon)[3]) > SIGNIFICANCE
        # Equal counts say that the shares are equal, however small the slope is.
        assert mechanism.estimate([5, 5, 5, 5]).shares == pytest.approx([0.25] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1.0), "categories must be at least 2"),
        ((2.0, 1.0), "categories must be a whole number"),
        (((1 << 30) + 1, 1.0), "categories must be at most"),
        ((2, 0), "epsilon must be a finite number above 0"),
        ((2, -1), "epsilon"),
        ((2, math.inf), "epsilon"),
        ((2, None), "epsilon"),
    ],
)
def test_what_can_never_work_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        KaryRandomizedResponse(*arguments)


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, 3, 4], [1.0, 2.0, 3.0], [1, -1, 3], [[1, 2, 3]], ["a", "b", "c"]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ArgumentError, match="counts must be 3 whole numbers"):
        KaryRandomizedResponse(3, 1.0).estimate(counts)


@pytest.mark.parametrize("codes", [np.zeros(3, np.int64), np.zeros((3, 1), np.int32), np.zeros(3)])
@pytest.mark.parametrize("mechanism", [MECHANISMS[0], MECHANISMS[5]], ids=repr)
def test_codes_of_another_type_or_shape_are_refused(rng, codes, mechanism):
    with pytest.raises(ArgumentError, match="codes must be one array of int32"):
        mechanism.respond(codes, rng)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=repr)
def test_a_mechanism_is_a_value(mechanism, rng):
    mechanism.respond(np.zeros(5, np.int32), rng)
    copy = pickle.loads(pickle.dumps(mechanism))
    assert copy == mechanism and hash(copy) == hash(mechanism) and repr(copy) == repr(mechanism)
