from __future__ import annotations

import numpy as np
import pytest
from laws import MatrixMechanism, exponential_matrix
from scipy import stats

from beam_dp.audit import plausible_deniability
from beam_dp.audit.deniability import Deniability
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MultivariateLaplace
from beam_dp.mechanisms.word_exponential import Exponential, TruncatedExponential

ALPHA = 1e-3


def points(size: int, dimension: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(size, dimension))


def unchanged_pvalue(found: Deniability, stays: np.ndarray) -> float:
    """The least two-sided binomial p-value of a word, corrected for their number."""
    pvalues = [
        stats.binomtest(int(count), found.runs, p).pvalue for count, p in zip(found.unchanged, stays, strict=True)
    ]
    return min(1.0, len(pvalues) * min(pvalues))


@pytest.mark.parametrize("mechanism", [Exponential(3.0), TruncatedExponential(3.0, 0.6)], ids=["exponential", "TEM"])
def test_words_stay_themselves_as_often_as_the_diagonal_says(plain_space, rng, mechanism):
    space = plain_space(points(20, 2))
    cap = getattr(mechanism, "gamma", None) or np.inf
    matrix = exponential_matrix(space.distances, 1.5, cap)
    found = plausible_deniability(mechanism, space, 20_000, rng=rng)
    assert np.array_equal(found.words, np.arange(20))
    assert unchanged_pvalue(found, matrix.diagonal()) > ALPHA
    # The test has the power to tell another exponent from this one.
    wrong = exponential_matrix(space.distances, 1.6, cap)
    assert unchanged_pvalue(found, wrong.diagonal()) < ALPHA


def test_the_number_of_different_outputs_is_what_a_law_over_them_gives(plain_space, rng):
    space = plain_space(points(6, 2))
    matrix = np.array(
        [
            [1, 0, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0.25, 0.25, 0.25, 0.25, 0, 0],
            [0.5, 0, 0, 0.5, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [1 / 6] * 6,
        ]
    )
    found = plausible_deniability(MatrixMechanism.of(matrix, 1.0), space, 400, rng=rng)
    assert found.distinct.tolist() == [1, 1, 4, 2, 1, 6]
    assert found.unchanged[[0, 1, 4]].tolist() == [400, 0, 0]
    assert np.array_equal(found.share_unchanged, found.unchanged / 400)
    assert found.least_protected(2).tolist() == [0, 3]
    assert len(found.least_protected()) == 6
    once = plausible_deniability(MatrixMechanism.of(matrix, 1.0), space, 1, rng=rng)
    assert once.distinct.tolist() == [1] * 6


def test_of_words_that_stay_as_often_the_one_that_becomes_fewer_comes_first():
    found = Deniability(np.array([9, 4, 7, 2], np.int32), 10, np.array([5, 8, 8, 8]), np.array([6, 3, 2, 3]))
    assert found.least_protected().tolist() == [2, 3, 1, 0]


def test_words_are_drawn_in_the_order_that_is_asked_for_in_any_blocks(plain_space, rng, monkeypatch):
    space = plain_space(points(30, 2))
    monkeypatch.setattr("beam_dp.audit.deniability._BLOCK_DRAWS", 50)
    stays = np.where(np.arange(30) % 2 == 0, 1.0, 0.0)
    matrix = np.diag(stays) + np.roll(np.diag(1 - stays), 1, axis=1)
    words = [4, 7, 7, 29, 0, 12, 1]
    found = plausible_deniability(MatrixMechanism.of(matrix, 1.0), space, 20, words=words, rng=rng)
    assert found.words.tolist() == words
    assert found.unchanged.tolist() == [20, 0, 0, 0, 20, 20, 0]


def test_draws_are_fresh_each_time(plain_space):
    space = plain_space(points(12, 2))
    first, second = (plausible_deniability(MultivariateLaplace(2.0), space, 500) for _ in range(2))
    assert not np.array_equal(first.unchanged, second.unchanged)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0}, "runs must be at least 1"),
        ({"runs": 5, "words": []}, "at least one word id"),
        ({"runs": 5, "words": [0.5]}, "whole numbers"),
        ({"runs": 5, "words": [[1]]}, "words must be a list"),
        ({"runs": 5, "words": [12]}, "words must be ids from 0 to 11"),
        ({"runs": 5, "words": [-1]}, "words must be ids from 0 to 11"),
    ],
    ids=["runs", "none", "fraction", "table", "large", "negative"],
)
def test_arguments_out_of_range_are_refused(plain_space, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        plausible_deniability(Exponential(1.0), plain_space(points(12, 2)), **arguments)
