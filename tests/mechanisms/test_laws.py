import math
from decimal import Decimal, localcontext

import numpy as np

from beam_dp.mechanisms.laws import SparseLaw, disjoint_pair, metric_delta


def dense_delta(matrix, points, epsilon):
    """The definition, written out over every pair."""
    worst = 0.0
    for p, v in zip(matrix, points, strict=True):
        for q, u in zip(matrix, points, strict=True):
            factor = math.exp(epsilon * float(np.linalg.norm(v - u)))
            worst = max(worst, sum(max(0.0, a - factor * b) for a, b in zip(p, q, strict=True)))
    return worst


def test_delta_is_the_largest_hockey_stick_sum(rng):
    size, outputs = 12, 5
    points = rng.normal(size=(size, 2)).astype(np.float32)
    ids = np.array([rng.permutation(size)[:outputs] for _ in range(size)], dtype=np.int32)
    probabilities = rng.dirichlet(np.ones(outputs), size)
    matrix = np.zeros((size, size))
    np.put_along_axis(matrix, ids.astype(int), probabilities, axis=1)
    for epsilon in (0.1, 1.0, 5.0):
        exact = dense_delta(matrix, points.astype(np.float64), epsilon)
        delta = metric_delta(SparseLaw(ids, probabilities), points, epsilon)
        assert exact <= delta <= exact * (1 + 1e-10)


def test_both_orders_of_a_pair_count():
    points = np.array([[0.0], [1.0]], dtype=np.float32)
    ids = np.array([[0, 1], [0, 1]], dtype=np.int32)
    for rows in ([[0.5, 0.5], [1.0, 0.0]], [[1.0, 0.0], [0.5, 0.5]]):
        # The word that can give 1 is betrayed by it; the other one by nothing more than a factor of 2.
        assert math.isclose(metric_delta(SparseLaw(ids, np.array(rows)), points, math.log(2)), 0.5, rel_tol=1e-9)


def test_delta_of_randomised_response_is_zero_from_its_epsilon_on():
    points = np.array([[0.0], [1.0]], dtype=np.float32)
    ids = np.array([[0, 1], [1, 0]], dtype=np.int32)
    law = SparseLaw(ids, np.array([[0.75, 0.25]] * 2))
    assert metric_delta(law, points, math.log(3) + 1e-9) == 0
    assert 0 < metric_delta(law, points, math.log(3) * 0.9) < 0.1


def test_words_without_a_common_output_are_found_and_have_delta_one():
    ids = np.array([[0, 1], [1, 0], [2, 1]], dtype=np.int32)
    overlapping = SparseLaw(ids, np.full((3, 2), 0.5))
    assert disjoint_pair(overlapping) is None
    apart = SparseLaw(ids, np.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]))
    assert disjoint_pair(apart) == (0, 2)
    assert metric_delta(apart, np.arange(3, dtype=np.float32)[:, None], 50.0) == 1


def test_delta_of_differences_that_cancel_is_an_upper_bound(rng):
    """Where exp(epsilon * d) lies within a unit of 1, its rounding is as large as what it is taken from."""
    with localcontext() as context:
        context.prec = 60
        for _ in range(100):
            share, distance = rng.random(), float(np.float32(1.2e-16 + 1e-16 * rng.random()))
            laws = np.array([[share, 1 - share], [share * (1 + 3e-16), 1 - share * (1 + 3e-16)]])
            law = SparseLaw(np.array([[0, 1], [0, 1]], np.int32), laws)
            found = Decimal(metric_delta(law, np.array([[0.0], [distance]], np.float32), 1.0))
            factor = Decimal(distance).exp()
            for mine, others in (laws, laws[::-1]):
                sides = zip(mine.tolist(), others.tolist(), strict=True)
                exact = sum(max(Decimal(0), Decimal(a) - factor * Decimal(b)) for a, b in sides)
                assert exact <= found < 1e-14
