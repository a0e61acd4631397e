"""Keep probabilities, checked with whole numbers: every inequality here is exact, at every n there is."""

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from exact_numbers import SIGNIFICANCE, exp_bounds
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.partition_selection import LaplaceThreshold, TruncatedGeometric, scale_up

UNIT = Fraction(1, 1 << 64)
RULES = [TruncatedGeometric, LaplaceThreshold]
BUDGETS = [(1.0, 1e-6, 1), (0.1, 1e-5, 1), (1.0, 1e-6, 8), (3.7, 0.01, 3), (math.log(3), 0.3, 1), (20.0, 1e-12, 2)]


def keep_probabilities(rule):
    """π(0), π(1), ... up to the first that is 1, as exact rationals."""
    return [int(kept) * UNIT for kept in rule.table] + [Fraction(1)]


def broken_at(probabilities, epsilon, delta):
    """The n at which adding or removing the (n+1)-th unit breaks (epsilon, delta), by exact rational arithmetic.

    A partition of 0 units does not exist, so nothing else than 0 is right for it.
    """
    least, _ = exp_bounds(epsilon)
    broken = [0] if probabilities[0] else []
    for n, (p, q) in enumerate(itertools.pairwise(probabilities)):
        for here, there in ((p, q), (q, p), (1 - p, 1 - q), (1 - q, 1 - p)):
            if here > least * there + delta:
                broken.append(n)
    return broken


@pytest.mark.parametrize(("epsilon", "delta", "k"), BUDGETS)
def test_the_table_keeps_epsilon_and_delta_at_every_n_in_both_directions(epsilon, delta, k):
    rule = TruncatedGeometric(epsilon, delta, k)
    assert rule.partition_epsilon * k == Fraction(epsilon)
    assert broken_at(keep_probabilities(rule), rule.partition_epsilon, rule.partition_delta) == []


@pytest.mark.parametrize(("epsilon", "delta", "k"), BUDGETS)
def test_no_keep_probability_can_be_larger_by_one_part_in_2_to_the_64(epsilon, delta, k):
    rule = TruncatedGeometric(epsilon, delta, k)
    probabilities = keep_probabilities(rule)
    _, most = exp_bounds(rule.partition_epsilon)
    for before, kept in itertools.pairwise(probabilities):
        larger = kept + UNIT
        breaks_keeping = larger > most * before + rule.partition_delta
        breaks_dropping = 1 - before > most * (1 - larger) + rule.partition_delta
        assert kept == 1 or breaks_keeping or breaks_dropping


@pytest.mark.parametrize(
    ("epsilon", "delta", "k"), [(1.0, 1e-6, 1), (0.1, 1e-5, 1), (math.log(3), 0.3, 1), (5.0, 1e-9, 4)]
)
def test_the_table_is_the_closed_form_of_the_paper(epsilon, delta, k):
    """Desfontaines et al. 2022, Theorem 2."""
    rule = TruncatedGeometric(epsilon, delta, k)
    e, d = float(rule.partition_epsilon), float(rule.partition_delta)
    rise = 1 + math.floor(math.log((math.exp(e) + 2 * d - 1) / ((math.exp(e) + 1) * d)) / e)
    top = math.expm1(rise * e) / math.expm1(e) * d
    end = rise + math.floor(math.log1p(math.expm1(e) / d * (1 - top)) / e)
    assert len(rule.table) == end + 1
    for n, kept in enumerate(keep_probabilities(rule)[:-1]):
        if n <= rise:
            expected = math.expm1(n * e) / math.expm1(e) * d
        else:
            fall = math.exp(-(n - rise) * e)
            expected = (1 - fall) * (1 + d / math.expm1(e)) + fall * top
        assert float(kept) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_planted_bugs_in_the_table_are_found():
    rule = TruncatedGeometric(1.0, 1e-6)
    right = keep_probabilities(rule)
    epsilon, delta = rule.partition_epsilon, rule.partition_delta
    assert broken_at(right, epsilon, delta) == []
    off_by_one = right[1:]
    assert 0 in broken_at(off_by_one, epsilon, delta)
    off_by_one_but_nothing_at_zero = [Fraction(0), *right[2:]]
    assert 0 in broken_at(off_by_one_but_nothing_at_zero, epsilon, delta)
    for factor in (Fraction(2), Fraction(10001, 10000)):
        assert broken_at([min(p * factor, Fraction(1)) for p in right], epsilon, delta)
    # The epsilon and the delta of all partitions spent on each of them.
    whole, share = TruncatedGeometric(1.0, 1e-6, 1), TruncatedGeometric(1.0, 1e-6, 2)
    assert broken_at(keep_probabilities(whole), share.partition_epsilon, whole.partition_delta)
    assert 0 in broken_at(keep_probabilities(whole), whole.partition_epsilon, share.partition_delta)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.3, 1 - 2.0**-53])
def test_deltas_of_the_partitions_compose_to_delta_and_to_hardly_less(k, delta):
    part = LaplaceThreshold(1.0, delta, k).partition_delta
    assert 1 - (1 - part) ** k <= Fraction(delta)
    more = part + Fraction(1, 1 << 158)
    assert k == 1 or 1 - (1 - more) ** k > Fraction(delta)


@pytest.mark.parametrize(("epsilon", "delta", "k"), BUDGETS)
def test_laplace_threshold_is_the_least_whose_exact_probability_fits(epsilon, delta, k):
    """P[1 + X >= T] = α^(T-1) / (1 + α) with α = exp(-1/scale): at most delta' at T, above it at T - 1."""
    rule = LaplaceThreshold(epsilon, delta, k)
    rate = 1 / Fraction(rule.noise.scale)
    assert rate <= rule.partition_epsilon < rate * (1 + Fraction(1, 1 << 51))
    low, high = exp_bounds(-rate)

    def bounds(threshold):
        least, most = exp_bounds(-(threshold - 1) * rate)
        return least / (1 + high), most / (1 + low)

    assert bounds(rule.threshold)[1] <= rule.partition_delta
    assert rule.threshold == 1 or bounds(rule.threshold - 1)[0] > rule.partition_delta


@pytest.mark.parametrize("k", [1, 10**4, 10**6])
def test_laplace_thresholds_of_wide_noise_are_found_at_once(k):
    """One step a unit would take minutes here."""
    rule = LaplaceThreshold(0.001, 1e-6, k)
    scale = rule.noise.scale
    delta = float(rule.partition_delta)
    assert rule.threshold == pytest.approx(
        1 - scale * math.log(delta * (1 + math.exp(-1 / scale))), abs=1.01, rel=1e-12
    )


@pytest.mark.parametrize("pre_threshold", [1, 4])
def test_frequencies_of_keeping_are_the_table(rng, pre_threshold):
    rule = TruncatedGeometric(0.5, 0.01, 1, pre_threshold)
    probabilities = keep_probabilities(rule)
    draws = 20_000
    limit = SIGNIFICANCE / len(probabilities)
    for n, p in enumerate(probabilities):
        kept = rule.keep(np.full(draws, n + pre_threshold - 1), rng)
        assert kept.dtype == bool and kept.shape == (draws,)
        assert stats.binomtest(int(kept.sum()), draws, float(p)).pvalue > limit
    assert rule.keep(np.array([len(probabilities) + pre_threshold, 1 << 62]), rng).all()


@pytest.mark.parametrize("pre_threshold", [1, 4])
def test_frequencies_of_reaching_the_threshold(rng, pre_threshold):
    rule = LaplaceThreshold(0.5, 0.01, 1, pre_threshold)
    alpha, draws = math.exp(-1 / rule.noise.scale), 20_000
    counts = range(1, 2 * rule.threshold)
    for n in counts:
        missing = rule.threshold - n
        p = alpha**missing / (1 + alpha) if missing >= 0 else 1 - alpha ** (1 - missing) / (1 + alpha)
        kept = rule.keep(np.full(draws, n + pre_threshold - 1), rng)
        assert kept.dtype == bool
        assert stats.binomtest(int(kept.sum()), draws, p).pvalue > SIGNIFICANCE / len(counts)


def test_planted_bug_of_a_threshold_that_is_one_too_low_is_found(rng):
    """One draw in a hundred at n = 1, where delta' is 0.01: a threshold lower by one keeps exp(0.5) times as many."""
    rule = LaplaceThreshold(0.5, 0.01)
    alpha = math.exp(-1 / rule.noise.scale)
    p = alpha ** (rule.threshold - 1) / (1 + alpha)
    one_too_low = 1 + rule.noise.sample(50_000, rng) >= rule.threshold - 1
    assert stats.binomtest(int(one_too_low.sum()), 50_000, p).pvalue < SIGNIFICANCE
    right = rule.keep(np.ones(50_000, np.int64), rng)
    assert stats.binomtest(int(right.sum()), 50_000, p).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("pre_threshold", [1, 2, 7])
def test_what_is_below_the_pre_threshold_is_never_kept(rng, kind, pre_threshold):
    rule = kind(0.5, 0.9, 1, pre_threshold)
    for units in range(pre_threshold):
        assert not rule.keep(np.full(5000, units), rng).any()
    assert rule.keep(np.full(5000, pre_threshold), rng).mean() > 0.5


@pytest.mark.parametrize("kind", RULES)
def test_partitions_are_kept_independently_and_in_their_own_places(rng, kind):
    rule = kind(1.0, 0.05)
    certain = 1000
    units = np.array([0, certain, 0, certain, certain] * 100)
    assert rule.keep(units, rng).tolist() == [False, True, False, True, True] * 100
    middle = rule.keep(np.full(20_000, 3), rng)
    assert stats.spearmanr(middle[:-1], middle[1:]).pvalue > SIGNIFICANCE
    assert rule.keep(np.empty(0, np.int64), rng).shape == (0,)


@pytest.mark.parametrize("epsilon", [64.0, 1e3, 1e9, 1e300])
def test_epsilons_beyond_any_use_have_a_table_of_delta_and_almost_one(epsilon):
    rule = TruncatedGeometric(epsilon, 1e-6)
    kept = keep_probabilities(rule)
    assert len(kept) == 4 and kept[1] == math.floor(Fraction(1e-6) / UNIT) * UNIT and kept[2] == 1 - UNIT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1e-6), "epsilon must be a finite number above 0, not zero"),
        ((math.nan, 1e-6), "epsilon"),
        ((1, 0), "delta must be a finite number above 0, not zero"),
        ((1, 1.0), "delta must be below 1"),
        ((1, 1e-20), "delta must be at least 2"),
        ((1, 1e-18, 100), "over 100 partitions"),
        ((1, 1e-300, 2), "delta must be at least"),
        ((1, 1e-6, 0), "partitions must be at least 1"),
        ((1, 1e-6, 2.5), "partitions must be a whole number"),
        ((1, 1e-6, 1, 0), "pre_threshold must be at least 1"),
        ((1e-320, 1e-6), "epsilon of selection"),
    ],
)
@pytest.mark.parametrize("kind", RULES)
def test_what_can_never_work_is_refused(kind, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        kind(*arguments)


def test_epsilons_out_of_reach_are_refused():
    with pytest.raises(ArgumentError, match="too small: 1e-06 over 1 partitions would keep partitions of more than"):
        TruncatedGeometric(1e-6, 1e-6)
    for epsilon in (1e-13, 2000.0):
        with pytest.raises(ArgumentError, match=r"epsilon of selection, .* is out of range"):
            LaplaceThreshold(epsilon, 1e-6)


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_is_a_value(kind, rng):
    rule = kind(np.float64(1), 1e-3, np.int64(4))
    before = repr(rule)
    rule.keep(np.arange(10), rng)
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule == kind(1.0, 0.001, 4, 1) and repr(copy) == before
    assert copy.keep(np.array([0, 10_000]), rng).tolist() == [False, True]


@pytest.mark.parametrize("exact", [Fraction(1, 3), Fraction(2, 3), Fraction(10**30 + 1), Fraction(1, 4), Fraction(0.1)])
def test_scales_are_rounded_up_to_the_next_float(exact):
    scale = scale_up(exact)
    assert Fraction(scale) >= exact and Fraction(math.nextafter(scale, 0)) < exact
