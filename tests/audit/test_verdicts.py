"""What a certificate says of a claim: bounds above and below, and what is between them."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, replace
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

from beam_dp.audit import Certificate, certify
from beam_dp.audit.pairs import DensePairs, SparsePairs, Worst
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.density_prior import DensityPrior
from beam_dp.mechanisms.knn_truncated import KnnTruncated
from beam_dp.mechanisms.laws import SparseLaw
from beam_dp.mechanisms.word_exponential import Exponential, TruncatedExponential

# Two words that are nearly the same, seen from a crowd: of epsilon nearly all is needed there.
NEARLY_THE_SAME = np.array([0.0, 1e-12, *[1.0] * 50], dtype=np.float32)


def points(size: int, dimension: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, dimension))


@pytest.fixture
def near(plain_space):
    return plain_space(NEARLY_THE_SAME[:, None])


@pytest.mark.parametrize("way", ["closed form", "dense rows"])
def test_a_right_mechanism_on_words_that_are_nearly_the_same_is_not_decided(near, way):
    mechanism = Exponential(1.0)
    if way == "dense rows":
        mechanism = MatrixMechanism.of(exponential_matrix(near.distances, 0.5), 1.0)
    found = certify(mechanism, near)
    assert (found.method, set(found.pair)) == (way, {0, 1})
    exact = decimal_epsilon(NEARLY_THE_SAME, 0.5)
    assert Decimal("0.9") < Decimal(found.epsilon_at_least) <= exact < 1 < found.epsilon < 1.2
    assert (found.verdict, found.holds) == ("not decided", False)
    assert found.sentence().endswith(
        "the claim of epsilon 1 is not decided in float64: rounding may be all that exceeds it"
    )
    fields = json.loads(found.to_json())
    assert (fields["verdict"], fields["epsilon_at_least"]) == ("not decided", found.epsilon_at_least)


@pytest.mark.parametrize("mechanism", [TruncatedExponential(1.0), DensityPrior(1.0, 0.5)], ids=repr)
def test_nor_are_other_right_ones(near, mechanism):
    assert certify(mechanism, near).verdict == "not decided"


@pytest.mark.parametrize("way", ["closed form", "dense rows"])
def test_a_wrong_mechanism_on_words_that_are_nearly_the_same_does_not_hold(near, way):
    mechanism = HalfDropped(1.0)
    if way == "dense rows":
        mechanism = MatrixMechanism.of(exponential_matrix(near.distances, 1.0), 1.0)
    found = certify(mechanism, near)
    exact = decimal_epsilon(NEARLY_THE_SAME, 1.0)
    assert found.method == way
    assert Decimal("1.9") < Decimal(found.epsilon_at_least) <= exact <= Decimal(found.epsilon)
    assert (found.verdict, found.holds) == ("does not hold", False)
    assert found.sentence().endswith("the claim of epsilon 1 DOES NOT HOLD")


# Bounds below.


@pytest.mark.parametrize(("size", "dimension"), [(3, 1), (25, 2), (60, 10)])
def test_bounds_below_are_below_and_close(plain_space, size, dimension):
    space = plain_space(points(size, dimension))
    exact = defined_epsilon(exponential_matrix(space.distances, 1.0), space.distances)
    found = certify(Exponential(2.0), space)
    assert exact * (1 - 1e-9) <= found.epsilon_at_least <= exact
    matrix = np.random.default_rng(size).dirichlet(np.ones(size), size)
    exact = defined_epsilon(matrix, space.distances)
    for claimed, delta in ((exact, 0.0), (exact / 2, 0.1), (exact / 7, 0.1)):
        found = certify(MatrixMechanism.of(matrix, claimed, delta), space)
        assert exact * (1 - 1e-9) <= found.epsilon_at_least <= exact
        if delta:
            exact_delta = defined_delta(matrix, space.distances, claimed)
            assert exact_delta * (1 - 1e-9) <= found.delta_at_least <= exact_delta


@pytest.mark.parametrize("neighbours", [5, 11])
def test_bounds_below_of_tables_are_below_and_close(plain_space, neighbours):
    space = plain_space(points(12, 2))
    mechanism = KnnTruncated(0.5, neighbours)
    matrix = mechanism.bind(space).law_rows(np.arange(12, dtype=np.int32))
    found = certify(mechanism, space)
    exact = defined_delta(matrix, space.distances, 0.5)
    assert exact * (1 - 1e-9) - 1e-12 <= found.delta_at_least <= exact
    # Outputs that another word cannot become.
    assert found.epsilon_at_least is None


def test_tables_within_a_radius_in_which_all_outputs_are_shared(plain_space):
    space = plain_space([[0.0], [1.0], [5.0]])
    law = SparseLaw(np.array([[0, 1], [1, 0], [2, 1]], np.int32), np.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]))
    ids = np.arange(3, dtype=np.int32)
    near, all_pairs = (SparsePairs(space, law, 0.5, radius).worst(ids, None) for radius in (1.5, math.inf))
    exact = 0.9 - math.exp(0.5) * 0.1
    assert exact * (1 - 1e-11) <= near.delta_at_least <= exact <= near.delta
    assert (near.epsilon_at_least, all_pairs.epsilon_at_least) == (0, math.inf)


def test_a_factor_that_float64_does_not_hold_leaves_nothing_that_is_sure(plain_space):
    space = plain_space([[0.0], [1.0]])
    law = SparseLaw(np.array([[0, 1], [1, 0]], np.int32), np.array([[0.9, 0.1], [1.0, 1e-310]]))
    for epsilon, exact in ((600.0, 0.9 - math.exp(600) * 1e-310), (1000.0, 0.0), (1e30, 0.0)):
        found = SparsePairs(space, law, epsilon).worst(np.arange(2, dtype=np.int32), None)
        assert exact * (1 - 1e-9) <= found.delta_at_least <= exact <= found.delta


def test_the_largest_bounds_above_and_below_may_belong_to_two_pairs(plain_space):
    # 0 and 1 have the same law, and are so near that rounding might be a difference; 2 differs from both, surely.
    space = plain_space([[0.0], [1e-13], [1.0]])
    matrix = np.array([[0.3, 0.3, 0.4], [0.3, 0.3, 0.4], [0.5, 0.3, 0.2]])
    surely = math.log(0.4 / 0.2)
    verdicts = {}
    for claimed in (0.5, 0.8, 5.0):
        found = certify(MatrixMechanism.of(matrix, claimed), space)
        assert set(found.pair) == {0, 1} and 0.8 < found.epsilon < 5
        assert surely * (1 - 1e-9) <= found.epsilon_at_least <= surely
        verdicts[claimed] = found.verdict
    assert verdicts == {0.5: "does not hold", 0.8: "not decided", 5.0: "holds"}
    parts = [
        DensePairs(space, lambda ids: matrix[ids], 0.5).worst(np.array([word], np.int32), None) for word in range(3)
    ]
    whole = DensePairs(space, lambda ids: matrix[ids], 0.5).worst(np.arange(3, dtype=np.int32), None)
    for order in itertools.permutations(parts):
        merged = Worst()
        for part in order:
            merged = merged.merged(part)
        assert merged == whole


def test_merging_keeps_the_largest_bounds_below_of_either():
    one = Worst(pairs=2, epsilon=3.0, epsilon_pair=(0, 1), epsilon_at_least=0.0, delta=0.5, delta_at_least=0.4)
    other = Worst(pairs=2, epsilon=2.0, epsilon_pair=(4, 2), epsilon_at_least=1.9, delta=0.6, delta_at_least=0.1)
    assert one.merged(other) == other.merged(one)
    merged = one.merged(other)
    assert (merged.epsilon, merged.epsilon_pair, merged.epsilon_at_least) == (3.0, (0, 1), 1.9)
    assert (merged.delta, merged.delta_at_least) == (0.6, 0.4)


def test_what_underflows_is_not_held_against_a_claim(plain_space):
    space = plain_space([[0.0], [1.0], [2.5]])
    # exp(-1000) is 0 in float64: by the rows alone nobody knows.
    matrix = exponential_matrix(space.distances, 1000.0)
    assert matrix[0, 1] == 0
    right = certify(MatrixMechanism.of(matrix, 2000.0), space)
    assert (right.verdict, right.pure_epsilon) == ("not decided", None)
    assert 500 < right.epsilon_at_least < 1000
    # What is below 1e-308 is far below what a smaller claim allows.
    assert certify(MatrixMechanism.of(matrix, 300.0), space).verdict == "does not hold"
    # Numbers with few digits are no better.
    few = exponential_matrix(space.distances, 740.0)
    assert 0 < few[0, 1] < 1e-320
    found = certify(MatrixMechanism.of(few, 5000.0), space)
    assert found.epsilon_at_least < 710


def test_equal_vectors_with_different_laws_are_decided(plain_space):
    space = plain_space([[0.0], [0.0], [1.0]])
    matrix = np.array([[0.5, 0.3, 0.2], [0.5, 0.31, 0.19], [0.4, 0.3, 0.3]])
    found = certify(MatrixMechanism.of(matrix, 50.0), space)
    assert (found.epsilon_at_least, found.verdict) == (None, "does not hold")
    # Where a delta is claimed, the difference is what counts.
    for delta, verdict in ((0.011, "holds"), (0.009, "does not hold")):
        assert certify(MatrixMechanism.of(matrix, 50.0, delta), space).verdict == verdict


# The verdict.

NONE_CLAIMED = {"claimed_epsilon": None}
SURE, UNSURE = {"epsilon": 1.1, "epsilon_at_least": 1.05}, {"epsilon": 1.1, "epsilon_at_least": 0.9}
CLAIMS_DELTA = {"claimed_delta": 0.01}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (NONE_CLAIMED, "nothing claimed"),
        ({}, "holds"),
        ({"epsilon": 1 + 1e-10, "epsilon_at_least": 1 + 1e-11}, "holds"),
        ({"epsilon": 1 + 1e-8, "epsilon_at_least": 1 + 1e-10}, "not decided"),
        (UNSURE, "not decided"),
        (SURE, "does not hold"),
        ({"epsilon": None, "epsilon_at_least": 0.9}, "not decided"),
        ({"epsilon": None, "epsilon_at_least": None}, "does not hold"),
        # At the claimed epsilon.
        ({"delta": 1e-15}, "not decided"),
        ({"delta": 1e-15, "delta_at_least": 1e-16}, "does not hold"),
        ({"delta": 0.01, "epsilon_at_least": None} | CLAIMS_DELTA, "holds"),
        ({"delta": 0.011, "epsilon_at_least": None} | CLAIMS_DELTA, "not decided"),
        ({"delta": 0.011, "delta_at_least": 0.0101} | CLAIMS_DELTA, "does not hold"),
        # A claim with a delta is not broken by an epsilon alone.
        (SURE | CLAIMS_DELTA, "not decided"),
    ],
)
def test_a_verdict_follows_from_the_bounds(found, verdict):
    certificate = replace(
        Certificate(
            mechanism="m",
            metric="euclidean",
            index_digest="0" * 64,
            words=3,
            law_digest=None,
            method="dense rows",
            claimed_epsilon=1.0,
            claimed_delta=0.0,
            epsilon=1.0,
            delta=0.0,
            pair=None,
            pure_epsilon=None,
            pairs=6,
            disjoint_pairs=0,
            overlap_delta=0.0,
            radius=None,
            epsilon_at_least=0.9,
            delta_at_least=0.0,
        ),
        **found,
    )
    assert certificate.verdict == verdict
    assert certificate.holds is (None if verdict == "nothing claimed" else verdict == "holds")
    assert json.loads(certificate.to_json())["verdict"] == verdict


@dataclass(frozen=True)
class HalfClaimed(MatrixMechanism):
    """What promises at half of its parameter epsilon."""

    def guarantee(self, space):
        return replace(super().guarantee(space), epsilon=self.epsilon / 2)


def test_delta_is_computed_at_the_epsilon_that_is_claimed(plain_space):
    space = plain_space(points(25, 2))
    matrix = np.random.default_rng(25).dirichlet(np.ones(25), 25)
    claimed = defined_epsilon(matrix, space.distances) / 5
    exact = defined_delta(matrix, space.distances, claimed)
    for delta, verdict in ((exact * (1 + 1e-6), "holds"), (exact * (1 - 1e-6), "does not hold")):
        found = certify(HalfClaimed.of(matrix, 2 * claimed, delta), space)
        assert (found.epsilon, found.verdict) == (claimed, verdict)
        assert found.delta_at_least <= exact <= found.delta
    with pytest.raises(ArgumentError, match="epsilon must be left out"):
        certify(HalfClaimed.of(matrix, 2 * claimed, 0.1), space, epsilon=claimed)
