"""Audits of hyperbolic Laplace: of the noisy point that it searches for, before the projection."""

import numpy as np
import pytest
from auditing import audited_epsilon

from beam_dp.mechanisms import HyperbolicLaplace, hyperbolic_laplace
from beam_dp.mechanisms.hyperbolic_laplace import hyperbolic_noise

CLAIM, N = 4.0, 300_000


class Recorder:
    """Two words of the Poincaré ball; keeps what is searched for."""

    metric = "poincare"
    digest = "0" * 64

    def __init__(self, vectors):
        self.vectors = np.asarray(vectors, dtype=np.float32)
        self.size, self.dimension = self.vectors.shape
        self.queries = []

    def nearest(self, queries):
        self.queries.append(queries.copy())
        return np.zeros(len(queries), np.int32)

    def derived(self, _name, compute):
        return compute()


def hyperboloid(points):
    """(1 + |x|², 2x) / (1 - |x|²) of points of the ball, with more digits than float64."""
    points = points.astype(np.longdouble)
    square = np.square(points).sum(axis=1, keepdims=True)
    return np.concatenate([1 + square, 2 * points], axis=1) / (1 - square)


def distance(one, others):
    inner = others[:, 0] * one[0] - others[:, 1:] @ one[1:]
    return np.arccosh(np.maximum(inner, 1)).astype(np.float64)


def audited_bound(vectors, rng):
    """The audited epsilon * distance of words 0 and 1 from their noisy points, where CLAIM is promised."""
    space = Recorder(vectors)
    here, there = hyperboloid(space.vectors)
    epsilon = CLAIM / distance(here, there[None])[0]
    bound = HyperbolicLaplace(epsilon).bind(space)
    samples = []
    for word in (0, 1):
        space.queries.clear()
        bound.sample(np.full(N, word, np.int32), rng)
        logs = np.concatenate(space.queries).astype(np.longdouble)
        # A point far out says no more than one at a distance of 20 in its direction.
        radius = np.sqrt(np.square(logs).sum(axis=1, keepdims=True))
        near = np.minimum(radius, 20)
        points = np.concatenate([np.cosh(near), np.sinh(near) * logs / np.maximum(radius, 1e-300)], axis=1)
        # The likelihood ratio depends on the difference of the two distances alone.
        samples.append(distance(there, points) - distance(here, points))
    return audited_epsilon(*samples)


# One pair in the middle, one near the boundary, 0.6 to 1.1 apart.
PAIRS = {
    (1, "middle"): [[0.1], [0.5]],
    (1, "boundary"): [[0.999999], [0.999997]],
    (2, "middle"): [[0.1, 0.0], [0.5, 0.2]],
    (2, "boundary"): [[0.9999, 0.0], [0.9999, 0.0001]],
}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]} {pair[1]}")
def test_audit_reaches_the_claim_and_never_exceeds_it(rng, pair):
    assert 0.8 * CLAIM <= audited_bound(PAIRS[pair], rng) <= CLAIM


@pytest.mark.parametrize("factor", [0.5, 0.8])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]} {pair[1]}")
def test_audit_convicts_noise_that_is_too_small(monkeypatch, rng, pair, factor):
    def too_small(n, dimension, epsilon, rng):
        return hyperbolic_noise(n, dimension, epsilon / factor, rng)

    monkeypatch.setattr(hyperbolic_laplace, "hyperbolic_noise", too_small)
    assert audited_bound(PAIRS[pair], rng) > CLAIM


@pytest.mark.parametrize("place", ["middle", "boundary"])
def test_audit_convicts_noise_that_is_added_in_the_ball(monkeypatch, rng, place):
    """A Euclidean shift of the noise is no isometry: near the boundary it moves words far too little."""

    def shifted(radius, direction, home, heading):
        points = np.tanh(radius / 2)[:, None] * direction * 0.5 + np.tanh(home / 2)[:, None] * heading
        norm = np.minimum(np.linalg.norm(points, axis=1, keepdims=True), 1 - 1e-12)
        points *= norm / np.linalg.norm(points, axis=1, keepdims=True)
        return points * (2 * np.arctanh(norm) / norm)

    monkeypatch.setattr(hyperbolic_laplace, "moved", shifted)
    bound = audited_bound(PAIRS[2, place], rng)
    assert not 0.8 * CLAIM <= bound <= CLAIM
