"""Composition by privacy loss distributions, against exact laws and other implementations."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from beam_dp.accounting.loss import DiscreteGaussianLoss, DiscreteLaplaceLoss, ParametersLoss, PrivacyLoss
from beam_dp.accounting.pld import pld_epsilon


def _epsilon(loss: PrivacyLoss, applications: int, delta: float) -> float:
    found = pld_epsilon(((loss, applications),), delta)
    assert found is not None
    return found


def _binary_delta(epsilon: float, each: float, count: int) -> float:
    """The exact delta of ``count`` pure mechanisms of two outcomes: the number of likely ones is binomial."""
    likely = 1 / (1 + math.exp(-each))
    return math.fsum(
        math.comb(count, k)
        * likely**k
        * (1 - likely) ** (count - k)
        * -math.expm1(min(epsilon - (2 * k - count) * each, 0))
        for k in range(count + 1)
    )


def test_a_hundred_laplace_mechanisms() -> None:
    """ε = 0.1 each: basic composition says 10. The continuous law, which the library knows, is a limit."""
    continuous = reference.from_laplace_mechanism(10).self_compose(100).get_epsilon_for_delta(1e-6)
    fine = _epsilon(DiscreteLaplaceLoss(scale=10 * 2.0**17, sensitivity=2**17), 100, 1e-6)
    assert fine == pytest.approx(4.69, abs=0.005)
    assert fine == pytest.approx(continuous, abs=1e-4)
    # At sensitivity 1 the two outcomes that matter are those of randomised response, the worst of all ε = 0.1.
    worst = optimize.brentq(lambda epsilon: _binary_delta(epsilon, 0.1, 100) - 1e-6, 1, 9, xtol=1e-12)
    for loss in (DiscreteLaplaceLoss(scale=10.0, sensitivity=1), ParametersLoss(0.1)):
        assert _epsilon(loss, 100, 1e-6) == pytest.approx(worst, abs=1e-4)
        assert _epsilon(loss, 100, 1e-6) >= worst


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-3])
def test_one_pure_mechanism(epsilon: float, delta: float) -> None:
    # P[likely] - e^x·P[unlikely] = δ for the two outcomes of the worst pure mechanism.
    exact = max(math.log(math.exp(epsilon) - delta * (1 + math.exp(epsilon))), 0)
    found = _epsilon(ParametersLoss(epsilon), 1, delta)
    assert exact <= found <= exact + epsilon * 1e-4


def test_one_gaussian_is_the_analytic_one() -> None:
    ratio = 0.2

    def excess(epsilon: float) -> float:
        near, far = special.ndtr(ratio / 2 - epsilon / ratio), special.ndtr(-ratio / 2 - epsilon / ratio)
        return float(near - math.exp(epsilon) * far) - 1e-6

    exact = optimize.brentq(excess, 0.1, 3, xtol=1e-12)
    assert _epsilon(DiscreteGaussianLoss(sigma=5e8, sensitivity=10**8), 1, 1e-6) == pytest.approx(exact, abs=1e-5)
    # Four coordinates of half the change are one of the whole.
    assert _epsilon(DiscreteGaussianLoss(sigma=1e9, sensitivity=10**8), 4, 1e-6) == pytest.approx(exact, abs=1e-5)


def test_coordinates_and_applications_multiply_and_their_order_does_not_matter() -> None:
    laplace, gaussian = DiscreteLaplaceLoss(scale=90.0, sensitivity=10, times=4), DiscreteGaussianLoss(40.0, 3)
    whole = pld_epsilon(((laplace, 3), (gaussian, 5)), 1e-7)
    single = DiscreteLaplaceLoss(scale=90.0, sensitivity=10)
    assert whole == pytest.approx(pld_epsilon(((gaussian, 2), (single, 12), (gaussian, 3)), 1e-7), abs=1e-9)
    assert whole == pytest.approx(
        pld_epsilon(((DiscreteGaussianLoss(40.0, 3, times=5), 1), (laplace, 3)), 1e-7), abs=1e-9
    )


@pytest.mark.parametrize("count", [10**4, 10**6])
def test_very_many_applications(count: int) -> None:
    """The central limit: the loss is Gaussian with mean n·ε²/2 and variance n·ε²."""
    ratio = 0.3
    limit = optimize.brentq(
        lambda epsilon: (
            special.ndtr(ratio / 2 - epsilon / ratio)
            - math.exp(epsilon) * special.ndtr(-ratio / 2 - epsilon / ratio)
            - 1e-5
        ),
        0.1,
        9,
    )
    found = _epsilon(ParametersLoss(0.3 / math.sqrt(count)), count, 1e-5)
    assert limit * 0.9999 <= found <= limit * 1.002


@pytest.mark.parametrize(
    ("loss", "applications", "delta"),
    [
        (ParametersLoss(1.0), 1, 0.0),
        (ParametersLoss(1.0), 1, 1e-17),  # below the rounding
        (ParametersLoss(1.0, 1e-6), 1, 1e-6),  # all of delta is spent on infinite losses
        (ParametersLoss(1.0), 2**40, 1e-6),
        (ParametersLoss(1e300), 1, 1e-6),
        (DiscreteGaussianLoss(sigma=1e-300, sensitivity=10**9), 1, 1e-6),
        (DiscreteLaplaceLoss(scale=1e-300, sensitivity=10**9, times=3), 1, 1e-6),
    ],
)
def test_where_there_is_no_answer(loss: PrivacyLoss, applications: int, delta: float) -> None:
    assert pld_epsilon(((loss, applications),), delta) is None


def test_what_delta_covers_alone_has_epsilon_zero() -> None:
    assert _epsilon(ParametersLoss(1e-9), 100, 1e-3) == 0
    assert _epsilon(ParametersLoss(5e-324), 2, 1e-9) == 0
    assert _epsilon(ParametersLoss(0.5), 1, 0.9) == 0


_terms = st.lists(
    st.one_of(
        st.builds(DiscreteLaplaceLoss, st.floats(0.3, 20), st.integers(1, 4), st.integers(1, 2)),
        st.builds(DiscreteGaussianLoss, st.floats(0.5, 3), st.integers(1, 2), st.integers(1, 2)),
        st.builds(ParametersLoss, st.floats(0.01, 3), st.floats(0, 1e-3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=3,
)


def _law(loss: PrivacyLoss) -> tuple[np.ndarray, np.ndarray, float]:
    """Losses, merged where they agree to twelve digits, their masses, and the mass of infinite ones."""
    one: dict[float, float] = defaultdict(float)
    if isinstance(loss, ParametersLoss):
        one[loss.epsilon] = (1 - loss.delta) / (1 + math.exp(-loss.epsilon))
        one[-loss.epsilon] = (1 - loss.delta) / (1 + math.exp(loss.epsilon))
        lost = loss.delta
    elif isinstance(loss, DiscreteLaplaceLoss):
        norm, lost = math.tanh(1 / (2 * loss.scale)), 0.0
        for x in range(-math.ceil(45 * loss.scale), math.ceil(45 * loss.scale) + 1):
            one[(abs(x - loss.sensitivity) - abs(x)) / loss.scale] += norm * math.exp(-abs(x) / loss.scale)
    else:
        assert isinstance(loss, DiscreteGaussianLoss)
        outcomes, lost = range(-math.ceil(9 * loss.sigma), math.ceil(9 * loss.sigma) + 1), 0.0
        total = math.fsum(math.exp(-(x**2) / (2 * loss.sigma**2)) for x in outcomes)
        for x in outcomes:
            value = loss.sensitivity * (loss.sensitivity - 2 * x) / (2 * loss.sigma**2)
            one[value] += math.exp(-(x**2) / (2 * loss.sigma**2)) / total
    law: dict[float, float] = {0.0: 1.0}
    for _ in range(loss.times):
        composed: dict[float, float] = defaultdict(float)
        for before, mass in law.items():
            for more, share in one.items():
                composed[round(before + more, 12)] += mass * share
        law = composed
    return np.array(list(law)), np.array(list(law.values())), 1 - (1 - lost) ** loss.times


def _exact_delta(losses: list[PrivacyLoss], epsilon: float) -> float:
    """By all sums of the losses themselves."""
    values, masses, finite = np.zeros(1), np.ones(1), 1.0
    for loss in losses:
        more, shares, lost = _law(loss)
        values, masses = np.add.outer(values, more).ravel(), np.multiply.outer(masses, shares).ravel()
        finite *= 1 - lost
    return 1 - finite + float(np.sum(masses * -np.expm1(np.minimum(epsilon - values, 0))))


@settings(max_examples=60, deadline=None)
@given(losses=_terms, delta=st.floats(1e-8, 0.05))
def test_the_epsilon_holds_and_is_tight(losses: list[PrivacyLoss], delta: float) -> None:
    delta += sum(loss.times * loss.delta for loss in losses if isinstance(loss, ParametersLoss))
    epsilon = pld_epsilon(tuple((loss, 1) for loss in losses), delta)
    assert epsilon is not None
    # The reference rounds losses to twelve decimals.
    assert _exact_delta(losses, epsilon) <= delta * (1 + 1e-9) + 1e-11
    most = sum(loss.times * loss.reach for loss in losses)
    assert 0 <= epsilon <= most * (1 + 1e-3)
    if epsilon > 2e-3 * most:
        assert _exact_delta(losses, epsilon - 2e-3 * most) > delta


def test_more_delta_less_epsilon() -> None:
    losses = ((DiscreteLaplaceLoss(scale=50.0, sensitivity=7, times=8), 3),)
    found = np.array([pld_epsilon(losses, delta) for delta in (1e-12, 1e-9, 1e-6, 1e-3, 0.1)])
    assert np.all(np.diff(found) < 0)
