"""Audits of the mechanisms that add noise to a vector and project: of the noisy vector, and of what looks at the word.

What is audited is what `sample` searches for, so nothing between the mechanism and the search is left out.
"""

import math

import numpy as np
import pytest
from auditing import audited_epsilon, directed_epsilon

from beam_dp.mechanisms import Mahalanobis, MultivariateLaplace, RankCorrectedLaplace, Vickrey
from beam_dp.mechanisms import mahalanobis as mahalanobis_module
from beam_dp.mechanisms import multivariate_laplace as laplace_module
from beam_dp.mechanisms import rank_corrected_laplace as rank_module
from beam_dp.mechanisms import vickrey as vickrey_module
from beam_dp.mechanisms.mahalanobis import regularised_matrix
from beam_dp.mechanisms.multivariate_laplace import multivariate_laplace_noise, noisy_blocks
from beam_dp.mechanisms.vickrey import BoundVickrey, takes_second

CLAIM, N = 4.0, 300_000
MECHANISMS = {
    "multivariate_laplace": (MultivariateLaplace, laplace_module),
    "mahalanobis": (lambda epsilon: Mahalanobis(epsilon, 0.8), mahalanobis_module),
    "vickrey": (lambda epsilon: Vickrey(epsilon, 0.7), vickrey_module),
    "rank_corrected_laplace": (lambda epsilon: RankCorrectedLaplace(epsilon, 0.1), rank_module),
}


def audited_bound(name, space, rng):
    """The audited epsilon * distance of words 0 and 1 from their noisy vectors, where CLAIM is promised."""
    captured = []

    def nearest(queries):
        captured.append(queries.astype(np.float64))
        return np.zeros(len(queries), np.int32)

    def nearest_two(queries):
        return np.tile(nearest(queries)[:, None], (1, 2)), np.ones((len(queries), 2))

    space.nearest, space.nearest_two = nearest, nearest_two
    here, there = space.vectors[:2].astype(np.float64)
    to_norm = np.eye(space.dimension)
    if name == "mahalanobis":
        values, directions = np.linalg.eigh(regularised_matrix(space, 0.8))
        to_norm = directions / np.sqrt(values)
    epsilon = CLAIM / np.linalg.norm((here - there) @ to_norm)
    bound = MECHANISMS[name][0](epsilon).bind(space)
    samples = []
    for word in (0, 1):
        captured.clear()
        bound.sample(np.full(N, word, np.int32), rng)
        z = np.concatenate(captured)
        # The likelihood ratio depends on the difference of the two distances alone.
        samples.append(np.linalg.norm((z - there) @ to_norm, axis=1) - np.linalg.norm((z - here) @ to_norm, axis=1))
    return audited_epsilon(*samples)


def anisotropic(plain_space, dimension):
    """Words 0 and 1 differ along the axis on which the vocabulary varies least."""
    points = np.array([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [-9.0, 0.5], [5.0, 1.0]])
    return plain_space(points[:, 2 - dimension :] if dimension == 2 else points[:, 1:] + [[0], [0], [2], [3], [4]])


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("name", MECHANISMS)
def test_audit_reaches_the_claim_and_never_exceeds_it(plain_space, rng, name, dimension):
    assert 0.8 * CLAIM <= audited_bound(name, anisotropic(plain_space, dimension), rng) <= CLAIM


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("factor", [0.5, 0.8])
@pytest.mark.parametrize("name", MECHANISMS)
def test_audit_convicts_noise_that_is_too_small(monkeypatch, plain_space, rng, name, dimension, factor):
    def too_small(n, dimension, epsilon, rng):
        return multivariate_laplace_noise(n, dimension, epsilon / factor, rng)

    monkeypatch.setattr(MECHANISMS[name][1], "multivariate_laplace_noise", too_small)
    assert audited_bound(name, anisotropic(plain_space, dimension), rng) > CLAIM


def test_audit_convicts_mahalanobis_noise_that_is_renormalised(monkeypatch, plain_space, rng):
    """The narrow direction then has more noise than is claimed and the wide one less: audited along the wide one."""

    def renormalised(n, root, epsilon, rng):
        noise = multivariate_laplace_noise(n, len(root), epsilon, rng)
        length = np.linalg.norm(noise, axis=1, keepdims=True)
        noise = noise @ root
        return noise * (length / np.linalg.norm(noise, axis=1, keepdims=True))

    monkeypatch.setattr(mahalanobis_module, "mahalanobis_noise", renormalised)
    space = plain_space(np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0], [-9.0, 0.5], [5.0, 1.0]]))
    assert audited_bound("mahalanobis", space, rng) > CLAIM


def never_itself(self, ids, rng):
    """A peer's fault: the original word is struck from the candidates after the noise."""
    return _without_the_original(self, ids, rng, only_as_first=False)


def itself_only_as_second(self, ids, rng):
    """The same, milder: where the nearest word is the original one, the second is always taken."""
    return _without_the_original(self, ids, rng, only_as_first=True)


def _without_the_original(self, ids, rng, *, only_as_first):
    out = np.empty(len(ids), np.int32)
    vectors = self._space.vectors.astype(np.float64)

    def noise(n):
        return multivariate_laplace_noise(n, self._space.dimension, self._epsilon, rng)

    for block, noisy in noisy_blocks(ids, self._space.vectors, noise):
        distances = np.linalg.norm(noisy[:, None] - vectors[None], axis=2)
        own = ids[block]
        if not only_as_first:
            distances[np.arange(len(own)), own] = np.inf
        order = np.argsort(distances, axis=1)[:, :2]
        second = takes_second(np.take_along_axis(distances, order, axis=1), self._second_weight, rng)
        if only_as_first:
            second |= order[:, 0] == own
        out[block] = order[np.arange(len(own)), second.astype(int)]
    return out


def near_twins(plain_space, rng):
    """Words 0 and 1 a thousandth of 1/epsilon apart: nothing may be more than 1.001 times as likely for one of them."""
    points = np.concatenate([[[0.0, 0.0], [0.001, 0.0]], rng.normal(size=(28, 2)) * 2])
    return plain_space(points)


def twins_bound(space, rng):
    """The audited ln ratio of the output 1 between the words 0 and 1, in both directions the worse."""
    bound = Vickrey(1.0, 0.3).bind(space)
    hit = [(bound.sample(np.full(N // 3, word, np.int32), rng) == 1).astype(float) for word in (0, 1)]
    return max(directed_epsilon(hit[0], hit[1]), directed_epsilon(hit[1], hit[0]))


def test_vickrey_treats_near_twins_alike(plain_space, rng):
    assert twins_bound(near_twins(plain_space, rng), rng) <= 0.001


@pytest.mark.parametrize("bug", [never_itself, itself_only_as_second])
def test_vickrey_that_strikes_out_the_original_word_is_convicted(monkeypatch, plain_space, rng, bug):
    """At least twice as likely for one twin as for the other, where 1.001 times is allowed."""
    monkeypatch.setattr(BoundVickrey, "sample", bug)
    assert twins_bound(near_twins(plain_space, rng), rng) > math.log(2)
