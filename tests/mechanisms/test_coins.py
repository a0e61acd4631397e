"""Exact coins, driven word by word: what a float could not tell apart is told apart here."""

from fractions import Fraction

import numpy as np
import pytest
from exact_numbers import LARGEST, SIGNIFICANCE, ChosenWords, counts_pvalue, exp_bounds
from scipy import stats

from beam_dp.mechanisms.coins import (
    Coin,
    enclose_exp,
    exp_enclosure,
    flip_exp,
    is_below,
    logistic_enclosure,
    random_below,
    random_words,
)


def digits(p, count):
    """The first ``count`` words of the binary digits of p, from two rationals around it that agree on them."""
    low, high = (int(bound * (1 << (64 * count))) for bound in p)
    assert low == high
    return [low >> (64 * (count - 1 - i)) & LARGEST for i in range(count)]


def flip(coin, *words):
    """One flip that uses exactly these words."""
    rng = ChosenWords(*words)
    (heads,) = coin.flip(1, rng)
    assert not rng.words
    return bool(heads)


EXPONENTS = [
    Fraction(n) for n in ("0", "-1/3", "-1", "-20", "-100.125", "-1/1180591620717411303424", "5/7", "1", "97.5")
]


@pytest.mark.parametrize("bits", [1, 64, 320])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_enclosure_of_the_exponential_holds_it_and_is_narrow(exponent, bits):
    low, high = enclose_exp(exponent, bits)
    least, most = exp_bounds(exponent)
    assert 0 <= low <= least and most <= high
    assert high - low <= max(1, most) / (1 << bits)


@pytest.mark.parametrize("exponent", [Fraction(-(10**9)), Fraction(-(10**300)), Fraction(-1e9) - Fraction(1, 3)])
def test_enclosure_of_a_number_too_small_to_write_down(exponent):
    for bits in (64, 256):
        low, high = enclose_exp(exponent, bits)
        # exp(-x) < 2^-x, and x is far more than the bits.
        assert low == 0 < high <= Fraction(1, 1 << bits)


@pytest.mark.parametrize("weight", [1, 9, (1 << 40) + 1])
@pytest.mark.parametrize("exponent", [Fraction(n) for n in ("0", "-1/7", "-3", "-90", "2/3", "8")])
def test_enclosure_of_the_logistic_function(exponent, weight):
    least, most = exp_bounds(exponent)
    for bits in (1, 64, 256):
        low, high = logistic_enclosure(exponent, weight)(bits)
        assert 0 <= low <= 1 / (1 + weight * most) and 1 / (1 + weight * least) <= high
        assert high - low <= Fraction(1, 1 << bits)


@pytest.mark.parametrize("exponent", [Fraction(-1), Fraction(-1, 1000), Fraction(-40)])
def test_a_word_decides_unless_it_equals_the_first_digits_of_p(exponent):
    coin = Coin(exp_enclosure(exponent))
    first, second, third = digits(exp_bounds(exponent), 3)
    assert flip(coin, first - 1) and not flip(coin, first + 1)
    assert flip(coin, 0) and not flip(coin, LARGEST)
    assert flip(coin, first, second - 1) and not flip(coin, first, second + 1)
    assert flip(coin, first, second, third - 1) and not flip(coin, first, second, third + 1)


def test_ties_of_a_block_are_settled_each_by_itself():
    exponent = Fraction(-1)
    first, second = digits(exp_bounds(exponent), 2)
    rng = ChosenWords(first, 0, first, LARGEST, second + 1, second - 1)
    assert Coin(exp_enclosure(exponent)).flip(4, rng).tolist() == [False, True, True, False]
    assert not rng.words


def test_logistic_coin():
    least, most = exp_bounds(Fraction(1, 3))
    first, second = digits((1 / (1 + most), 1 / (1 + least)), 2)
    coin = Coin(logistic_enclosure(Fraction(1, 3)))
    assert flip(coin, first - 1) and not flip(coin, first + 1)
    assert flip(coin, first, second - 1) and not flip(coin, first, second + 1)


@pytest.mark.parametrize("p", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 1 << 64)])
def test_dyadic_p_is_exact(p):
    word = int(p * (1 << 64))
    coin = Coin(lambda bits: (p, p))
    assert flip(coin, word - 1) and not flip(coin, word)


def test_dyadic_p_whose_enclosure_never_closes_is_settled_by_more_digits():
    p, word = Fraction(1, 4), 1 << 62
    coin = Coin(lambda bits: (p - Fraction(1, 4 << bits), p + Fraction(1, 4 << bits)))
    assert flip(coin, word - 2) and not flip(coin, word + 1)
    # Zeros after the digits of p leave U at p's own place, ones just below it: the next word settles it.
    assert not flip(coin, word, 0, 5) and flip(coin, word - 1, LARGEST, 7)


@pytest.mark.parametrize("exponent", [Fraction(-70), Fraction(-100), Fraction(-500)])
def test_tiny_p(exponent):
    coin = Coin(exp_enclosure(exponent))
    words = digits(exp_bounds(exponent), 12)
    zeros = next(i for i, word in enumerate(words) if word)
    assert zeros >= 1
    assert not flip(coin, 1) and not flip(coin, LARGEST)
    nothing = [0] * zeros
    assert flip(coin, *nothing, words[zeros] - 1) and not flip(coin, *nothing, words[zeros] + 1)


def test_p_too_small_to_write_down_is_settled_by_the_first_word_that_is_not_zero():
    coin = Coin(exp_enclosure(Fraction(-(10**9))))
    assert not flip(coin, 1)
    assert not flip(coin, 0, 0, 0, 1)


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(-1, 1 << 80)])
def test_p_of_one_or_almost_one(exponent):
    coin = Coin(exp_enclosure(exponent))
    assert all(flip(coin, word) for word in (0, 1 << 63, LARGEST - 1))
    if exponent:
        # 1 - p = 2^-80 - ...: sixteen more ones than the first word are still below p.
        assert flip(coin, LARGEST, 0) and not flip(coin, LARGEST, LARGEST)
    else:
        assert flip(coin, LARGEST)


def test_is_below_reads_no_word_when_the_first_decides():
    half = exp_enclosure(Fraction(-1))
    assert is_below(0, half, ChosenWords()) and not is_below(LARGEST, half, ChosenWords())


def test_flip_exp_asks_for_the_exact_probability_only_where_floats_cannot_tell():
    asked = []

    def enclosure(i):
        asked.append(i)
        return exp_enclosure(Fraction(-1, 2))

    first, second = digits(exp_bounds(Fraction(-1, 2)), 2)
    far = 1 << 40  # 6e-8 of the unit interval
    words = (first - far, first - 1, first, first + 1, first + far)
    rng = ChosenWords(*words, second + 1)
    assert flip_exp(np.full(5, 0.5), enclosure, rng).tolist() == [True, True, False, False, False]
    assert asked == [1, 2, 3] and not rng.words
    assert flip_exp(np.array([0.5]), enclosure, ChosenWords(first, second - 1)).tolist() == [True]


@pytest.mark.parametrize("error", [-1e-12, 1e-12])
def test_flip_exp_is_exact_though_its_exponents_are_not(error):
    """The float exponents are off by what `flip_exp` allows; each word still falls on the side where it belongs."""
    first = digits(exp_bounds(Fraction(-1, 2)), 1)[0]
    steps = [1 << 20, 1 << 10, 1]  # 6e-14, 6e-17 and 5e-20: the error is larger than all of them
    words = [first - step for step in steps] + [first + step for step in steps]
    heads = flip_exp(np.full(6, 0.5 + error), lambda i: exp_enclosure(Fraction(-1, 2)), ChosenWords(*words))
    assert heads.tolist() == [True] * 3 + [False] * 3


def test_flip_exp_of_zero_and_of_exponents_beyond_floats():
    never = exp_enclosure(Fraction(-(10**320)))
    sure = exp_enclosure(Fraction(0))
    gammas = np.array([0.0, 0.0, np.inf, 800.0])
    rng = ChosenWords(0, LARGEST, 1, 1 << 40)
    assert flip_exp(gammas, lambda i: sure if i < 2 else never, rng).tolist() == [True, True, False, False]


@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.97])
def test_frequencies(rng, p):
    n, exponent = 200_000, Fraction(np.log(p))
    for heads in (
        Coin(exp_enclosure(exponent)).flip(n, rng),
        flip_exp(np.full(n, -float(exponent)), lambda i: exp_enclosure(exponent), rng),
        Coin(logistic_enclosure(Fraction(np.log(1 / p - 1)))).flip(n, rng),
    ):
        assert heads.dtype == bool
        assert stats.binomtest(int(heads.sum()), n, p).pvalue > SIGNIFICANCE


def test_planted_bug_of_a_slightly_wrong_probability_is_found(rng):
    n = 2_000_000
    heads = Coin(exp_enclosure(Fraction(-1) * Fraction(99, 100))).flip(n, rng)
    assert stats.binomtest(int(heads.sum()), n, float(np.exp(-1))).pvalue < SIGNIFICANCE


def test_random_words_fill_all_64_bits(rng):
    ones = np.unpackbits(random_words(20_000, rng).view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").sum(axis=0)
    assert len(ones) == 64
    pvalues = [stats.binomtest(int(count), 20_000, 0.5).pvalue for count in ones]
    assert min(pvalues) * 64 > SIGNIFICANCE


def test_random_below_takes_the_top_bits_and_rejects_what_is_not_below():
    top_three = [7 << 61, 5 << 61, 6 << 61, (4 << 61) + 12345]
    rng = ChosenWords(*top_three)
    assert random_below(5, rng) == 4 and not rng.words
    # 66 bits of two words, the lower one first: the rest of it is thrown away.
    bound = 3 << 64
    assert bound.bit_length() == 66
    assert random_below(bound, ChosenWords(0, 3 << 62, 3 << 62, (1 << 62) + 1)) == (1 << 64) + 7
    assert random_below(1, ChosenWords(LARGEST, LARGEST >> 1)) == 0


@pytest.mark.parametrize("unit", [1, 10**30 + 7])
def test_random_below_is_uniform(rng, unit):
    drawn = [random_below(11 * unit, rng) // unit for _ in range(20_000)]
    assert counts_pvalue(np.bincount(drawn, minlength=11), np.full(11, 1 / 11)) > SIGNIFICANCE
