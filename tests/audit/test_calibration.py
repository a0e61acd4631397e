from __future__ import annotations

import numpy as np
import pytest
from laws import BoundMatrix, MatrixMechanism, exponential_matrix
from scipy import stats

from beam_dp.audit import calibrate
from beam_dp.audit.calibration import clopper_pearson
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import MultivariateLaplace, TruncatedGumbel
from beam_dp.mechanisms.word_exponential import Exponential, TruncatedExponential


def points(size: int, dimension: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(size, dimension))


class OnlyDrawn(MatrixMechanism):
    """An exponential mechanism whose law is known to the test alone."""

    def bind(self, space):
        bound = BoundMatrix(np.array(self.matrix))
        return type("Sampler", (), {"sample": bound.sample, "law_digest": bound.law_digest})()


def stays(distances: np.ndarray, epsilon: float) -> np.ndarray:
    return exponential_matrix(distances, epsilon / 2).diagonal()


@pytest.mark.parametrize("target", [0.2, 0.5, 0.95])
def test_an_exact_law_is_hit_exactly(plain_space, target):
    space = plain_space(points(20, 2))
    for statistic, over in (("mean", np.mean), ("worst", np.max)):
        found = calibrate(Exponential, space, target, statistic=statistic)
        assert found.mechanism == Exponential(found.epsilon)
        assert over(stays(space.distances, found.epsilon)) == pytest.approx(target, abs=1e-6)
        assert found.found.share == pytest.approx(target, abs=1e-6)
        assert (found.runs, found.confidence) == (None, None)
        assert "from the exact law" in found.sentence()


def test_words_and_other_parameters_are_those_that_are_given(plain_space):
    space = plain_space(points(20, 2))
    words = [3, 8, 19]
    found = calibrate(lambda epsilon: TruncatedExponential(epsilon, 0.5), space, 0.5, words=words)
    assert found.mechanism == TruncatedExponential(found.epsilon, 0.5)
    diagonal = exponential_matrix(space.distances, found.epsilon / 2, 0.5).diagonal()
    assert diagonal[words].mean() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("statistic", ["mean", "worst"])
def test_draws_hit_the_target_within_the_interval_that_is_told(plain_space, rng, statistic):
    space = plain_space(points(20, 2))

    def drawn(epsilon: float) -> OnlyDrawn:
        return OnlyDrawn.of(exponential_matrix(space.distances, epsilon / 2), epsilon)

    found = calibrate(drawn, space, 0.5, statistic=statistic, runs=500, rng=rng)
    over = np.mean if statistic == "mean" else np.max
    low, high = found.found.interval
    assert low <= 0.5 <= high
    assert (found.runs, found.confidence) == (500, 0.95)
    # The intervals hold together, so all of them hold the exact value, for all but one calibration in twenty.
    for tried in found.tried:
        assert tried.interval[0] <= over(stays(space.distances, tried.epsilon)) <= tried.interval[1]
    assert len(found.tried) > 3
    finer = calibrate(drawn, space, 0.5, statistic=statistic, runs=8_000, rng=rng)
    assert finer.found.interval[1] - finer.found.interval[0] < (high - low) / 3
    assert abs(over(stays(space.distances, finer.epsilon)) - 0.5) < 0.03


def test_of_words_that_differ_the_worst_decides(plain_space, rng):
    space = plain_space([[0.0], [0.1], [0.2], [9.0]])
    mean, worst = (calibrate(Exponential, space, 0.6, statistic=statistic) for statistic in ("mean", "worst"))
    assert worst.epsilon < mean.epsilon / 5
    drawn = calibrate(MultivariateLaplace, space, 0.6, statistic="worst", runs=4_000, rng=rng)
    # The last of the words keeps all noise beyond the middle of the gap at 4.6.
    kept = 1 - stats.laplace(scale=1 / drawn.epsilon).sf(4.4)
    assert drawn.found.interval[0] <= kept <= drawn.found.interval[1]


def test_intervals_are_those_of_clopper_and_pearson():
    counts = np.array([0, 1, 17, 99, 100])
    low, high = clopper_pearson(counts, 100, 0.01)
    for count, *ends in zip(counts, low, high, strict=True):
        expected = stats.binomtest(int(count), 100).proportion_ci(0.99, method="exact")
        assert ends == pytest.approx([expected.low, expected.high], abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0}, "target must be a number between 0 and 1"),
        ({"target": True}, "target must be a number"),
        ({"target": 0.5, "confidence": 1.0}, "confidence must be a number between 0 and 1"),
        ({"target": 0.5, "statistic": "median"}, "statistic must be one of mean, worst"),
        ({"target": 0.5, "runs": 0}, "runs must be at least 1"),
        ({"target": 0.5, "words": [12]}, "words must be ids"),
        ({"target": 0.5, "between": (2.0, 1.0)}, "between must be two finite numbers"),
        ({"target": 0.5, "between": (1e-6, 2e-6)}, "target: the mean N_w is 0.0833 at epsilon 1e-06 and 0.0833 at"),
        ({"target": 0.01}, "so 0.01 is not between"),
    ],
    ids=["zero", "truth", "confidence", "statistic", "runs", "words", "between", "narrow", "below"],
)
def test_arguments_out_of_range_are_refused(plain_space, arguments, message):
    target = arguments.pop("target")
    with pytest.raises(ArgumentError, match=message):
        calibrate(Exponential, plain_space(points(12, 2)), target, **arguments)


def test_a_mechanism_that_is_not_valid_at_one_end_says_where_it_is(plain_space):
    space = plain_space(points(12, 2))
    with pytest.raises(ArgumentError, match="epsilon must be above"):
        calibrate(lambda epsilon: TruncatedGumbel(epsilon=epsilon), space, 0.5)
    with pytest.raises(ArgumentError, match="between is required"):
        calibrate(Exponential, plain_space([[1.0], [1.0]]), 0.5)


def test_the_error_is_shared_among_steps_and_words(plain_space, rng):
    space = plain_space(points(4, 2))

    def all_or_nothing(epsilon: float) -> OnlyDrawn:
        return OnlyDrawn.of(np.eye(4) if epsilon > 1 else np.roll(np.eye(4), 1, axis=1), epsilon)

    for statistic, error, draws in (("mean", 0.1 / 40, 4 * 30), ("worst", 0.1 / 40 / 4, 30)):
        found = calibrate(
            all_or_nothing, space, 0.9, statistic=statistic, between=(0.5, 2.0), runs=30, confidence=0.9, rng=rng
        )
        never, always = found.tried[:2]
        assert (never.share, always.share) == (0, 1)
        assert never.interval == pytest.approx((0, 1 - (error / 2) ** (1 / draws)))
        assert always.interval == pytest.approx(((error / 2) ** (1 / draws), 1))
