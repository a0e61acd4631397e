"""Privacy losses: their curves against brute force, their grids against exact products, their JSON."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as reference
from scipy import special

from beam_dp.accounting.loss import (
    DiscreteGaussianLoss,
    DiscreteLaplaceLoss,
    ParametersLoss,
    PrivacyLoss,
    _discrete_gaussian_log_cdf,
    loss_from_json,
)
from beam_dp.errors import ArgumentError, InputError

Atoms = list[tuple[float, float]]  # of a pair of laws: (P, Q) at each outcome

NOISES = [
    DiscreteLaplaceLoss(scale=0.4, sensitivity=1),
    DiscreteLaplaceLoss(scale=2.0, sensitivity=1),
    DiscreteLaplaceLoss(scale=2.5, sensitivity=2),
    DiscreteLaplaceLoss(scale=7.0, sensitivity=19),
    DiscreteGaussianLoss(sigma=0.4, sensitivity=1),
    DiscreteGaussianLoss(sigma=1.7, sensitivity=3),
    DiscreteGaussianLoss(sigma=30.0, sensitivity=7),
    DiscreteGaussianLoss(sigma=255.5, sensitivity=100),  # the last table and the first series
    DiscreteGaussianLoss(sigma=256.0, sensitivity=100),
    DiscreteGaussianLoss(sigma=400.0, sensitivity=1500),
]


def _noise_law(loss: PrivacyLoss) -> dict[int, float]:
    """The masses of the noise, as its definition says."""
    if isinstance(loss, DiscreteLaplaceLoss):
        weights = {
            k: math.exp(-abs(k) / loss.scale) for k in range(-int(60 * loss.scale) - 9, int(60 * loss.scale) + 9)
        }
    else:
        assert isinstance(loss, DiscreteGaussianLoss)
        bound = int(16 * loss.sigma) + 9
        weights = {k: math.exp(-(k**2) / (2 * loss.sigma**2)) for k in range(-bound, bound + 1)}
    total = math.fsum(weights.values())
    return {k: weight / total for k, weight in weights.items()}


def _atoms(loss: PrivacyLoss, shift: int | None = None) -> Atoms:
    """The pair (noise, noise + shift); without a shift, the pair that the loss claims to dominate with."""
    if isinstance(loss, ParametersLoss):
        high, low = 1 / (1 + math.exp(-loss.epsilon)), 1 / (1 + math.exp(loss.epsilon))
        kept = 1 - loss.delta
        return [(loss.delta, 0.0), (kept * high, kept * low), (kept * low, kept * high), (0.0, loss.delta)]
    assert isinstance(loss, (DiscreteLaplaceLoss, DiscreteGaussianLoss))
    law, shift = _noise_law(loss), loss.sensitivity if shift is None else shift
    outcomes = range(min(law), max(law) + 1 + abs(shift))
    return [(law.get(k, 0.0), law.get(k - shift, 0.0)) for k in outcomes]


def _product(*pairs: Atoms) -> Atoms:
    return [
        (math.prod(p for p, _ in outcome), math.prod(q for _, q in outcome)) for outcome in itertools.product(*pairs)
    ]


def _divergence(atoms: Atoms, epsilon: float) -> float:
    return math.fsum(max(p - math.exp(epsilon) * q, 0.0) for p, q in atoms)


def _epsilons(loss: PrivacyLoss, count: int = 15) -> np.ndarray:
    return np.linspace(0, min(loss.reach, 40.0) * 1.1, count)


@pytest.mark.parametrize("loss", [*NOISES, ParametersLoss(0.3), ParametersLoss(2.0, 0.01)], ids=repr)
def test_a_curve_is_the_divergence_of_its_pair(loss: PrivacyLoss) -> None:
    epsilons = _epsilons(loss)
    exact = [_divergence(_atoms(loss), epsilon) for epsilon in epsilons]
    np.testing.assert_allclose(loss.divergence(epsilons), exact, rtol=1e-9, atol=2e-14)


@pytest.mark.parametrize(
    "loss", [DiscreteLaplaceLoss(scale=3.0, sensitivity=6), DiscreteGaussianLoss(sigma=2.0, sensitivity=6)], ids=repr
)
def test_a_curve_dominates_every_smaller_change_in_both_directions(loss: PrivacyLoss) -> None:
    epsilons = _epsilons(loss)
    before = np.zeros(len(epsilons))
    for change in range(1, 7):
        up = [_divergence(_atoms(loss, change), epsilon) for epsilon in epsilons]
        down = [_divergence([(q, p) for p, q in _atoms(loss, change)], epsilon) for epsilon in epsilons]
        np.testing.assert_allclose(up, down, rtol=1e-9, atol=1e-14)
        assert np.all(before <= np.array(up) + 1e-14)
        assert np.all(np.array(up) <= loss.divergence(epsilons) + 1e-14)
        before = np.array(up)
    # And the largest change is met, so a sensitivity that is too small by one would be seen.
    np.testing.assert_allclose(before, loss.divergence(epsilons), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("loss", [*NOISES, ParametersLoss(0.3), ParametersLoss(2.0, 0.01)], ids=repr)
@pytest.mark.parametrize("interval", [2.0**-3, 0.01, 2.0**-9])
def test_a_grid_never_loses_less_than_the_pair(loss: PrivacyLoss, interval: float) -> None:
    epsilons = _epsilons(loss)
    exact = loss.divergence(epsilons)
    found = np.array([loss.distribution(interval).get_delta_for_epsilon(float(epsilon)) for epsilon in epsilons])
    assert np.all(found >= exact - 1e-14)
    # A chord of a falling curve is below the curve's value at the chord's left end.
    assert np.all(found <= loss.divergence(np.maximum(epsilons - interval, 0)) + 1e-10)


@pytest.mark.parametrize("loss", NOISES[1:3] + NOISES[5:7], ids=repr)
@pytest.mark.parametrize("interval", [0.07, 2.0**-8])
def test_a_grid_is_the_librarys_grid(loss: PrivacyLoss, interval: float) -> None:
    if isinstance(loss, DiscreteLaplaceLoss):
        other = reference.from_discrete_laplace_mechanism(
            1 / loss.scale, loss.sensitivity, value_discretization_interval=2.0**-12, use_connect_dots=True
        )
    else:
        assert isinstance(loss, DiscreteGaussianLoss)
        other = reference.from_discrete_gaussian_mechanism(
            loss.sigma, loss.sensitivity, value_discretization_interval=2.0**-12, use_connect_dots=True
        )
    mine = loss.distribution(interval, 10)
    for delta in (1e-2, 1e-6):
        library, found = other.self_compose(10).get_epsilon_for_delta(delta), mine.get_epsilon_for_delta(delta)
        assert library - 1e-4 <= found
        assert found <= library + 1e-4 + 10 * interval


@pytest.mark.parametrize(
    "loss",
    [
        DiscreteLaplaceLoss(scale=1.0, sensitivity=2, times=3),
        DiscreteGaussianLoss(sigma=0.9, sensitivity=1, times=3),
        ParametersLoss(0.7, 0.01, times=3),
    ],
    ids=repr,
)
def test_times_is_the_product_of_as_many_coordinates(loss: PrivacyLoss) -> None:
    # Outcomes below 1e-13 cost the exact side less than 1e-11.
    atoms = [(p, q) for p, q in _atoms(loss) if p + q > 1e-13]
    exact = _product(atoms, atoms, atoms)
    for epsilon in (0.0, 0.5, 1.3, 2.9):
        expected = _divergence(exact, epsilon)
        coarse, fine = (loss.distribution(interval).get_delta_for_epsilon(epsilon) for interval in (2.0**-3, 2.0**-11))
        assert coarse >= fine - 1e-9
        assert expected - 1e-11 <= fine <= expected * (1 + 1e-4) + 1e-11
        once = replace(loss, times=1).distribution(2.0**-11, 3)  # type: ignore[type-var]
        assert once.get_delta_for_epsilon(epsilon) == fine


def test_unequal_changes_of_several_coordinates_are_dominated() -> None:
    loss = DiscreteLaplaceLoss(scale=1.5, sensitivity=3, times=3)
    whole = loss.distribution(2.0**-10)
    for changes in ((1, 2, 3), (0, 3, 3), (-3, 2, 3), (3, 3, 3)):
        pairs = [[(p, q) for p, q in _atoms(loss, change) if p + q > 1e-9] for change in changes]
        # A change downwards is the same pair read the other way.
        product = _product(*pairs)
        for epsilon in (0.0, 1.0, 3.0):
            assert _divergence(product, epsilon) <= whole.get_delta_for_epsilon(epsilon) + 1e-12


def test_many_applications_are_composed_in_stages() -> None:
    # The exact law of n binary outcomes: the number of likely ones is binomial.
    loss, count = ParametersLoss(0.05), 5000
    likely = 1 / (1 + math.exp(-0.05))
    successes = np.arange(count + 1)
    log_mass = (
        special.gammaln(count + 1)
        - special.gammaln(successes + 1)
        - special.gammaln(count - successes + 1)
        + successes * math.log(likely)
        + (count - successes) * math.log1p(-likely)
    )
    losses = (2 * successes - count) * 0.05
    for interval in (2.0**-8, 2.0**-10):
        composed = loss.distribution(interval, count)
        for epsilon in (0.0, 5.0, 20.0):
            exact = np.sum(np.exp(log_mass) * -np.expm1(np.minimum(epsilon - losses, 0)))
            found = composed.get_delta_for_epsilon(epsilon)
            assert exact - 1e-11 <= found <= exact * 1.02 + 1e-11


def test_size_does_not_matter() -> None:
    """Where the integers are fine, both noises are the continuous ones, in closed form."""
    epsilons = np.linspace(0, 0.999, 50)
    laplace = DiscreteLaplaceLoss(scale=2.0**90, sensitivity=2**90)
    np.testing.assert_allclose(laplace.divergence(epsilons), -np.expm1((epsilons - 1) / 2), rtol=1e-9)
    gaussian = DiscreteGaussianLoss(sigma=2.0**90, sensitivity=2**88)
    ratio = 0.25
    exact = special.ndtr(ratio / 2 - epsilons / ratio) - np.exp(epsilons) * special.ndtr(-ratio / 2 - epsilons / ratio)
    np.testing.assert_allclose(gaussian.divergence(epsilons), exact, rtol=1e-7, atol=1e-16)


@pytest.mark.parametrize("sigma", [250.0, 256.0, 300.0])
def test_tails_of_the_gaussian_have_all_their_digits(sigma: float) -> None:
    """At thirty sigmas each term of the series counts; the table next to it is summed from the small end."""
    weights = np.exp(-(np.arange(int(37 * sigma)) ** 2) / (2 * sigma**2))
    total = 2 * math.fsum(weights) - 1
    for sigmas in (0.0, 0.5, 3.0, 12.0, 30.0):
        last = int(sigmas * sigma)
        beyond = math.fsum(weights[last:]) / total
        found = _discrete_gaussian_log_cdf(np.array([-float(last), last - 1.0]), sigma)
        assert math.exp(found[0]) == pytest.approx(beyond, rel=3e-13, abs=0)
        assert -math.expm1(found[1]) == pytest.approx(beyond, rel=3e-13, abs=1e-16)


@pytest.mark.parametrize("loss", [noise for noise in NOISES if isinstance(noise, DiscreteGaussianLoss)], ids=repr)
def test_what_reaches_farther_is_charged(loss: DiscreteGaussianLoss) -> None:
    beyond = loss.divergence(np.array([loss.reach]))[0]
    assert 0 <= beyond < 1e-21
    assert loss.distribution(2.0**-6).get_epsilon_for_delta(1e-40) == math.inf


@pytest.mark.parametrize(
    "loss",
    [
        DiscreteLaplaceLoss(scale=1e6 / 3, sensitivity=2**40, times=8),
        DiscreteGaussianLoss(sigma=0.1, sensitivity=1),
        ParametersLoss(1 / 3, 1e-300, times=2),
        ParametersLoss(5),
    ],
    ids=repr,
)
def test_json_comes_back_equal(loss: PrivacyLoss) -> None:
    assert loss_from_json(json.loads(json.dumps(loss.to_json()))) == loss


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "laplace", "scale": 1.0, "sensitivity": 1},
        {"kind": "discrete_laplace", "scale": 1.0},
        {"kind": "discrete_laplace", "scale": 1.0, "sensitivity": 1, "sigma": 1.0},
        {"kind": "discrete_gaussian", "sigma": -1.0, "sensitivity": 1},
        {"kind": "parameters", "epsilon": "1"},
        {"kind": []},
        "parameters",
    ],
)
def test_damaged_json_is_refused(fields: Any) -> None:
    with pytest.raises(InputError, match="incomplete or holds a field of the wrong kind"):
        loss_from_json(fields)


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    [
        (DiscreteLaplaceLoss, {"scale": 0.0, "sensitivity": 1}, "scale"),
        (DiscreteLaplaceLoss, {"scale": math.inf, "sensitivity": 1}, "scale"),
        (DiscreteLaplaceLoss, {"scale": 1.0, "sensitivity": 0}, "sensitivity"),
        (DiscreteLaplaceLoss, {"scale": 1.0, "sensitivity": 1.5}, "sensitivity"),
        (DiscreteLaplaceLoss, {"scale": 1.0, "sensitivity": 2**127}, "sensitivity"),
        (DiscreteLaplaceLoss, {"scale": 1.0, "sensitivity": 1, "times": 0}, "times"),
        (DiscreteGaussianLoss, {"sigma": math.nan, "sensitivity": 1}, "sigma"),
        (DiscreteGaussianLoss, {"sigma": 1.0, "sensitivity": True}, "sensitivity"),
        (DiscreteGaussianLoss, {"sigma": 1.0, "sensitivity": 1, "times": 2.0}, "times"),
        (ParametersLoss, {"epsilon": 0}, "epsilon"),
        (ParametersLoss, {"epsilon": 1.0, "delta": 1.0}, "delta"),
        (ParametersLoss, {"epsilon": 1.0, "delta": math.nan}, "delta"),
        (ParametersLoss, {"epsilon": 1.0, "times": None}, "times"),
    ],
)
def test_a_loss_that_cannot_be_right_is_refused(kind: Any, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{named} must be"):
        kind(**arguments)
