from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from laws import (
    HalfDropped,
    MatrixMechanism,
    decimal_epsilon,
    defined_delta,
    defined_epsilon,
    exponential_matrix,
)

from beam_dp.audit import certify
from beam_dp.audit.certificates import plan_certificate
from beam_dp.audit.pairs import ClosedForm, DensePairs, SparsePairs, Worst, have_same_outputs
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import Mahalanobis, MultivariateLaplace, TruncatedGumbel
from beam_dp.mechanisms.density_prior import DensityPrior
from beam_dp.mechanisms.knn_truncated import KnnTruncated
from beam_dp.mechanisms.laws import SparseLaw
from beam_dp.mechanisms.row_laws import Weights
from beam_dp.mechanisms.word_exponential import Exponential, TruncatedExponential

SHAPES = [(3, 1), (12, 1), (25, 2), (60, 10)]


def points(size: int, dimension: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, dimension))


def above(bound: float, exact: float, closeness: float = 1e-9) -> bool:
    """Whether ``bound`` is an upper bound of ``exact``, and a close one."""
    return exact <= bound <= exact * (1 + closeness)


@pytest.mark.parametrize(("size", "dimension"), SHAPES)
@pytest.mark.parametrize("epsilon", [0.3, 4.0])
def test_closed_forms_are_what_every_output_of_every_pair_says(plain_space, size, dimension, epsilon):
    space = plain_space(points(size, dimension))
    exact = defined_epsilon(exponential_matrix(space.distances, epsilon / 2), space.distances)
    found = certify(Exponential(epsilon), space)
    assert above(found.epsilon, exact)
    assert found.method == "closed form"
    assert (found.delta, found.holds, found.pairs) == (0, True, size * (size - 1))
    assert found.slack == found.epsilon / epsilon
    # The worst pair lies within the threshold, and beyond it.
    for cap in (float(np.median(space.distances)), space.min_distance / 2):
        exact = defined_epsilon(exponential_matrix(space.distances, epsilon / 2, cap), space.distances)
        assert above(certify(TruncatedExponential(epsilon, cap), space).epsilon, exact)


@pytest.mark.parametrize(("size", "dimension"), SHAPES)
def test_a_base_measure_counts_in_the_normalisers_alone(plain_space, size, dimension):
    space = plain_space(points(size, dimension))
    mechanism = DensityPrior(2.0, bandwidth=0.7)
    density = np.exp(-((space.distances / 0.7) ** 2) / 2).mean(axis=1)
    matrix = exponential_matrix(space.distances, 1.0) * density
    matrix /= matrix.sum(axis=1, keepdims=True)
    # The mechanism has its density from float32 distances.
    assert certify(mechanism, space).epsilon == pytest.approx(defined_epsilon(matrix, space.distances), rel=1e-5)
    matrix = mechanism.bind(space).law_rows(np.arange(size, dtype=np.int32))
    assert above(certify(mechanism, space).epsilon, defined_epsilon(matrix, space.distances))


def test_the_metric_is_that_of_the_index(plain_space):
    space = plain_space(np.random.default_rng(3).uniform(-0.55, 0.55, size=(15, 2)), metric="poincare")
    squares, norms = space.distances**2, (space.vectors.astype(float) ** 2).sum(axis=1)
    space.distances = np.arccosh(1 + 2 * squares / np.outer(1 - norms, 1 - norms))
    space.diameter = float(space.distances.max())
    found = certify(Exponential(4.0), space)
    assert found.metric == "poincare" and "unit of poincare distance" in found.sentence()
    assert above(found.epsilon, defined_epsilon(exponential_matrix(space.distances, 2.0), space.distances))


def test_the_worst_pair_is_named(plain_space):
    # Seen from 0, everything is at 1: nearly all of epsilon is needed there, and in that order.
    space = plain_space([[0.0], *[[1.0]] * 50])
    found = certify(Exponential(1.0), space)
    assert found.pair[0] == 0 and found.pair[1] != 0
    assert 0.9 < found.slack < 1
    mirrored = certify(Exponential(1.0), plain_space(space.vectors[::-1].copy()))
    assert mirrored.pair[0] == 50
    assert mirrored.epsilon == pytest.approx(found.epsilon, rel=1e-9)


def test_a_certificate_is_an_upper_bound_where_rounding_counts_most(plain_space):
    # The worst pair is of words that are nearly the same, seen from a crowd that all look the same way: what rounding
    # moves their normalisers by is divided by next to nothing.
    generator = np.random.default_rng(8)
    for _ in range(30):
        line = np.array([1.0, 1.0 + 2.0**-23, *[1.0 + generator.uniform(0.003, 0.008)] * 8], dtype=np.float32)
        space = plain_space(line[:, None])
        exact = decimal_epsilon(line, 40.0)
        matrix = Exponential(80.0).bind(space).law_rows(np.arange(10, dtype=np.int32))
        for mechanism in (Exponential(80.0), MatrixMechanism.of(matrix, 80.0)):
            found = certify(mechanism, space)
            assert set(found.pair) == {0, 1}
            assert exact <= Decimal(found.epsilon) <= exact + Decimal("1e-4")
            assert exact - Decimal("1e-4") <= Decimal(found.epsilon_at_least) <= exact


def test_equal_vectors_have_equal_laws(plain_space):
    vectors = points(20, 2)
    vectors[7] = vectors[3]
    vectors[15] = vectors[3]
    space = plain_space(vectors)
    matrix = exponential_matrix(space.distances, 1.0)
    for mechanism in (Exponential(2.0), MatrixMechanism.of(matrix, 2.0)):
        found = certify(mechanism, space)
        assert found.holds
        assert above(found.epsilon, defined_epsilon(matrix, space.distances))


def test_equal_vectors_with_different_laws_have_no_epsilon(plain_space):
    vectors = points(6, 2)
    vectors[4] = vectors[1]
    space = plain_space(vectors)
    matrix = exponential_matrix(space.distances, 1.0)
    matrix[4] = matrix[[1, 1, 1, 2]].mean(axis=0)
    found = certify(MatrixMechanism.of(matrix, 2.0), space)
    assert found.holds is False
    assert found.pure_epsilon is None
    assert above(found.delta, defined_delta(matrix, space.distances, 2.0))
    log_normalisers = np.zeros(6)
    log_normalisers[4] = 1e-6
    ids = np.arange(6, dtype=np.int32)
    assert ClosedForm(space, Weights(1.0)).worst(ids, log_normalisers).epsilon == math.inf


@pytest.mark.parametrize(("size", "dimension"), SHAPES)
def test_dense_laws_are_what_every_output_of_every_pair_says(plain_space, size, dimension):
    space = plain_space(points(size, dimension))
    matrix = np.random.default_rng(size).dirichlet(np.ones(size), size)
    exact = defined_epsilon(matrix, space.distances)
    found = certify(MatrixMechanism.of(matrix, 1.0), space)
    assert found.method == "dense rows"
    assert above(found.pure_epsilon, exact)
    assert (found.epsilon, found.delta, found.holds) == (found.pure_epsilon, 0, exact <= 1)
    for claimed in (exact / 7, exact / 2):
        with_delta = certify(MatrixMechanism.of(matrix, claimed, 0.5), space)
        assert with_delta.epsilon == claimed
        assert above(with_delta.delta, defined_delta(matrix, space.distances, claimed))
        assert with_delta.holds == (with_delta.delta <= 0.5)


@pytest.mark.parametrize("neighbours", [2, 5, 11])
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_tables_are_what_every_output_of_every_pair_says(plain_space, neighbours, epsilon):
    space = plain_space(points(12, 2))
    mechanism = KnnTruncated(epsilon, neighbours)
    matrix = mechanism.bind(space).law_rows(np.arange(12, dtype=np.int32))
    found = certify(mechanism, space)
    assert found.method == "sparse tables"
    assert (found.epsilon, found.pure_epsilon) == (epsilon, None)
    assert above(found.delta, defined_delta(matrix, space.distances, epsilon))
    apart = (matrix > 0).astype(int) @ (matrix > 0).astype(int).T == 0
    assert found.disjoint_pairs == apart.sum()
    assert (found.delta == 1) == apart.any()
    together = np.where(apart, 0.0, 1.0)
    by_hand = max(
        defined_delta(matrix[[w, v]], space.distances[np.ix_([w, v], [w, v])], epsilon)
        for w, v in zip(*np.nonzero(together), strict=True)
        if w < v
    )
    assert above(found.overlap_delta, by_hand)
    # The same law, by the other way.
    dense = certify(MatrixMechanism.of(matrix, epsilon), space)
    assert dense.delta == pytest.approx(found.delta, rel=1e-9)
    assert (dense.disjoint_pairs, dense.pure_epsilon) == (found.disjoint_pairs, None)
    assert dense.overlap_delta == pytest.approx(found.overlap_delta, rel=1e-9)


def test_tables_over_all_words_have_an_epsilon_without_delta(plain_space):
    space = plain_space(points(12, 2))
    mechanism = KnnTruncated(3.0, 12)
    matrix = mechanism.bind(space).law_rows(np.arange(12, dtype=np.int32))
    found = certify(mechanism, space)
    assert (found.method, found.holds) == ("dense rows", True)
    assert above(found.epsilon, defined_epsilon(matrix, space.distances))


def test_tables_with_impossible_entries_are_joined_by_what_is_possible(plain_space):
    space = plain_space(points(4, 2))
    ids = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 2], [0, 1, 2]], np.int32)
    mass = np.array([[0.5, 0.5, 0], [0.25, 0.75, 0], [1, 0, 0], [0, 0, 1]], float)
    law = SparseLaw(ids, mass)
    assert not have_same_outputs(law)
    assert have_same_outputs(SparseLaw(ids[:2], mass[:2]))
    matrix = np.zeros((4, 4))
    np.put_along_axis(matrix, ids.astype(int), mass, axis=1)
    found = SparsePairs(space, law, 1.0).worst(np.arange(4, dtype=np.int32), None)
    assert found.disjoint == 6
    assert found.delta == 1
    for radius in np.unique(space.distances)[1:]:
        near = SparsePairs(space, law, 1.0, radius).worst(np.arange(4, dtype=np.int32), None)
        assert above(near.delta, defined_delta(matrix, space.distances, 1.0, radius))


def test_a_radius_leaves_out_the_pairs_beyond_it(plain_space):
    space = plain_space(points(25, 2))
    matrix = np.random.default_rng(1).dirichlet(np.ones(25), 25)
    exponential = exponential_matrix(space.distances, 1.5)
    tables = KnnTruncated(3.0, 6)
    rows = tables.bind(space).law_rows(np.arange(25, dtype=np.int32))
    for radius in (0.4, 1.1):
        near = (space.distances <= radius).sum() - 25
        closed = certify(Exponential(3.0), space, radius=radius)
        assert above(closed.epsilon, defined_epsilon(exponential, space.distances, radius))
        assert above(defined_epsilon(exponential, space.distances, radius), closed.epsilon_at_least)
        dense = certify(MatrixMechanism.of(matrix, 1.0, 0.1), space, radius=radius)
        assert above(dense.pure_epsilon, defined_epsilon(matrix, space.distances, radius))
        assert above(defined_epsilon(matrix, space.distances, radius), dense.epsilon_at_least)
        assert above(dense.delta, defined_delta(matrix, space.distances, 1.0, radius))
        sparse = certify(tables, space, radius=radius)
        assert above(sparse.delta, defined_delta(rows, space.distances, 3.0, radius))
        for found in (closed, dense, sparse):
            assert (found.radius, found.pairs) == (radius, near)
            assert f"for d <= {radius:g}" in found.sentence()
    assert certify(Exponential(3.0), space, radius=0.4).epsilon < certify(Exponential(3.0), space).epsilon
    with pytest.raises(ArgumentError, match="no two words are so close"):
        certify(tables, space, radius=1e-6)


def test_blocks_together_find_what_one_block_finds(plain_space):
    space = plain_space(points(60, 2))
    ids = np.arange(60, dtype=np.int32)
    matrix = np.random.default_rng(1).dirichlet(np.ones(60), 60)
    table = KnnTruncated(2.0, 9).bind(space).law()
    for law in (
        ClosedForm(space, Weights(1.0)),
        DensePairs(space, lambda words: matrix[words], 0.5),
        SparsePairs(space, table, 2.0),
    ):
        parts = [ids[start : start + 7] for start in range(0, 60, 7)]
        every = law.log_normalisers(ids)
        if every is not None:
            assert np.array_equal(every, np.concatenate([law.log_normalisers(part) for part in parts]))
        whole = law.worst(ids, every)
        found = [law.worst(part, every) for part in parts]
        for order in (found, found[::-1]):
            merged = Worst()
            for part in order:
                merged = merged.merged(part)
            assert merged == whole


def test_small_blocks_of_each_way_find_the_same(plain_space, monkeypatch):
    space = plain_space(points(40, 2))
    mechanisms = (
        Exponential(3.0),
        KnnTruncated(3.0, 6),
        MatrixMechanism.of(np.random.default_rng(1).dirichlet(np.ones(40), 40), 1.0, 0.1),
    )
    before = [certify(mechanism, space) for mechanism in mechanisms]
    for name, cells in (("_BLOCK_CELLS", 90), ("_DENSE_CELLS", 130), ("_SPARSE_CELLS", 200), ("_DENSE_FIRST", 3)):
        monkeypatch.setattr(f"beam_dp.audit.pairs.{name}", cells)
    assert [certify(mechanism, space) for mechanism in mechanisms] == before


# Planted bugs: what a certificate is for.


def test_a_half_that_is_missing_shows_as_twice_the_claim(plain_space):
    space = plain_space([[0.0], *[[1.0]] * 50])
    right, wrong = certify(Exponential(1.0), space), certify(HalfDropped(1.0), space)
    assert right.holds and not wrong.holds
    assert 1.5 < wrong.slack < 2
    assert "DOES NOT HOLD" in wrong.sentence()
    matrix = exponential_matrix(space.distances, 1.0)
    assert certify(MatrixMechanism.of(matrix, 1.0), space).epsilon == pytest.approx(wrong.epsilon, rel=1e-9)


def test_a_tail_that_is_left_out_shows(plain_space):
    space = plain_space(points(30, 2))
    matrix = exponential_matrix(space.distances, 1.5) * (space.distances < 1.0)
    matrix /= matrix.sum(axis=1, keepdims=True)
    found = certify(MatrixMechanism.of(matrix, 3.0), space)
    assert found.holds is False
    assert (found.pure_epsilon, found.epsilon) == (None, 3.0)
    assert above(found.delta, defined_delta(matrix, space.distances, 3.0))
    assert found.delta > 0.1


def test_a_row_in_the_place_of_another_shows(plain_space):
    space = plain_space(points(30, 2))
    matrix = exponential_matrix(space.distances, 1.5)
    assert certify(MatrixMechanism.of(matrix, 3.0), space).holds
    matrix[[4, 9]] = matrix[[9, 4]]
    assert certify(MatrixMechanism.of(matrix, 3.0), space).holds is False


def test_outputs_that_have_nothing_in_common_have_delta_one(plain_space):
    space = plain_space(points(30, 2))
    for mechanism in (KnnTruncated(1e4, 3), TruncatedGumbel(scale=0.1, neighbours=3)):
        found = certify(mechanism, space, epsilon=1e6 if isinstance(mechanism, TruncatedGumbel) else None)
        assert found.delta == 1
        assert found.disjoint_pairs > 0
        assert f"{found.disjoint_pairs:,} of them have no output in common" in found.sentence()
        rows = mechanism.bind(space).law_rows(np.array(found.pair, np.int32)) > 0
        assert not rows.all(axis=0).any()


def test_a_claimed_delta_is_held_against_the_computed_one(plain_space):
    # All words but the farthest are candidates: a small delta, which the mechanism claims itself.
    space = plain_space(points(201, 2))
    mechanism = KnnTruncated(0.01, 200)
    claim = mechanism.guarantee(space)
    found = certify(mechanism, space)
    assert 0 < claim.delta < 0.01
    assert found.holds and found.delta == pytest.approx(claim.delta, rel=1e-9)
    matrix = mechanism.bind(space).law_rows(np.arange(201, dtype=np.int32))
    assert not certify(MatrixMechanism.of(matrix, 0.01, claim.delta / 1.001), space).holds


def test_no_delta_at_all_passes_for_none(plain_space):
    space = plain_space(points(4, 2))
    matrix = np.full((4, 4), 0.25)
    matrix[0, 3] = 1e-14
    matrix[1, 3] = matrix[2, 3] = 0.0
    matrix /= matrix.sum(axis=1, keepdims=True)
    matrix[3] = matrix[1]
    found = certify(MatrixMechanism.of(matrix, 5.0), space)
    assert 0 < found.delta < 1e-13
    assert found.holds is False
    assert certify(MatrixMechanism.of(matrix, 5.0, 1e-6), space).holds


# The certificate.


def test_the_digest_is_of_all_that_is_said(plain_space):
    found = certify(Exponential(2.0), plain_space(points(9, 2)))
    fields = json.loads(found.to_json())
    assert fields["digest"] == found.digest
    assert fields["sentence"] == found.sentence()
    assert (fields["verdict"], fields["holds"], fields["certificate_version"]) == ("holds", True, 2)
    stated = {name: fields[name] for name in dataclasses.asdict(found)}
    assert found.digest == hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
    assert found.digest == certify(Exponential(2.0), plain_space(points(9, 2))).digest
    assert found.digest != dataclasses.replace(found, epsilon=found.epsilon / 2).digest
    assert found.digest != dataclasses.replace(found, index_digest="1" * 64).digest


def test_the_tables_of_a_law_are_named_by_their_digest(plain_space):
    space = plain_space(points(9, 2))
    assert certify(Exponential(2.0), space).law_digest is None
    first, second = (certify(KnnTruncated(epsilon, 4), space).law_digest for epsilon in (1.0, 2.0))
    assert len(first) == 64 and first != second


def test_a_claim_that_is_not_made_neither_holds_nor_fails(plain_space):
    found = certify(MatrixMechanism.of(np.full((3, 3), 1 / 3), None), plain_space(points(3, 2)))
    assert (found.verdict, found.holds, found.slack) == ("nothing claimed", None, None)
    assert (found.pure_epsilon, found.epsilon_at_least) == (found.epsilon, 0.0)
    assert found.epsilon < 1e-10
    assert "no finite guarantee is claimed" in found.sentence()


@pytest.mark.parametrize(
    ("mechanism", "arguments", "message"),
    [
        (
            MultivariateLaplace(1.0),
            {},
            "multivariate_laplace adds noise and projects it.*proved in the docstring of Mul",
        ),
        (Mahalanobis(1.0), {}, "mahalanobis adds noise"),
        (Exponential(1.0), {"radius": 0}, "radius must be a finite number above 0"),
        (Exponential(1.0), {"radius": 1e-6}, "radius 1e-06 is too small: no two words are so close"),
        (Exponential(1.0), {"epsilon": 2.0}, "epsilon must be left out"),
        (TruncatedGumbel(scale=0.1, neighbours=3), {}, "epsilon is required"),
        (TruncatedGumbel(scale=0.1, neighbours=3), {"epsilon": math.inf}, "epsilon must be a finite number above 0"),
    ],
    ids=["noise", "own metric", "radius", "no pair", "two epsilons", "no epsilon", "infinite epsilon"],
)
def test_what_cannot_be_certified_is_refused(plain_space, mechanism, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        certify(mechanism, plain_space(points(9, 2)), **arguments)


def test_all_pairs_of_too_many_words_need_a_radius(plain_space, monkeypatch):
    monkeypatch.setattr("beam_dp.audit.certificates.MAX_WORDS_FOR_ALL_PAIRS", 8)
    space = plain_space(points(9, 2))
    uniform = MatrixMechanism.of(np.full((9, 9), 1 / 9), 1.0)
    with pytest.raises(ArgumentError, match="radius is required beyond 8 words"):
        plan_certificate(uniform, space)
    assert certify(uniform, space, radius=1.0).radius == 1.0
    assert certify(Exponential(1.0), space).radius is None
