"""The quantile tree: what its search finds without noise, how it uses noise, what its bounds of ranks promise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from beam_dp.aggregate.partials import Sparse
from beam_dp.aggregate.quantile_tree import QuantileEstimates, rank_error_bounds, tree_quantiles
from beam_dp.aggregate.statistics import LeafCounts
from beam_dp.mechanisms.discrete_noise import DiscreteLaplace

HEIGHT, BRANCHING = 4, 16
LEAVES = BRANCHING**HEIGHT
NO_SLACK = [0.0] * HEIGHT


def tree_of(partitions: list[list[int]]) -> Sparse:
    """The tree of lists of leaves."""
    codes = np.array([p * LEAVES + leaf for p, leaves in enumerate(partitions) for leaf in leaves], np.int64)
    return Sparse(*np.unique(codes, return_counts=True))


def exact(partitions: list[list[int]], quantiles: list[float]) -> QuantileEstimates:
    slack = [NO_SLACK] * len(quantiles)
    return tree_quantiles(tree_of(partitions), len(partitions), quantiles, lambda n: np.zeros(n, np.int64), slack)


leaf = st.one_of(st.integers(0, LEAVES - 1), st.sampled_from([0, 15, 16, 255, 256, 4095, 4096, LEAVES - 1]))
few_rows = st.lists(leaf, min_size=1, max_size=60)


@settings(deadline=None, max_examples=200)
@given(st.lists(few_rows, min_size=1, max_size=4), st.lists(st.floats(0, 1), min_size=1, max_size=4))
@example([[0], [LEAVES - 1], [7, 7, 7]], [0.0, 0.5, 1.0])
def test_without_noise_the_leaf_of_the_quantile_is_found(partitions: list[list[int]], quantiles: list[float]) -> None:
    # Up to 200 rows a single one is half a per cent and counts: then nothing is left out of the search.
    found = exact(partitions, quantiles)
    assert found.estimate.shape == (len(partitions), len(quantiles))
    for p, leaves in enumerate(partitions):
        ordered = sorted(leaves)
        for i, q in enumerate(quantiles):
            # Where q·n is a whole number up to rounding, both its neighbours will do.
            ranks = {max(math.ceil(q * len(leaves) * (1 + s)) - 1, 0) for s in (-1e-8, 1e-8)}
            wanted = {ordered[min(rank, len(leaves) - 1)] for rank in ranks}
            place = found.estimate[p, i] * LEAVES
            assert any(leaf - 1e-6 <= place <= leaf + 1 + 1e-6 for leaf in wanted)


def reference(leaves: list[int], q: float) -> tuple[float, float]:
    """The leaf in which the search ends, as shares of the range: children of less than half a per cent are left out."""
    share, node, members = Fraction(q), 0, leaves
    for level in range(1, HEIGHT + 1):
        below = BRANCHING ** (HEIGHT - level)
        counts = Counter(leaf // below for leaf in members)
        counted = sorted((child, count) for child, count in counts.items() if 200 * count >= len(members))
        wanted, before = share * sum(count for _, count in counted), 0
        while before + counted[0][1] < wanted:
            before += counted.pop(0)[1]
        node, count = counted[0]
        share = (wanted - before) / count
        members = [leaf for leaf in members if leaf // below == node]
    return node / LEAVES, (node + 1) / LEAVES


@pytest.mark.parametrize("q", [0, 0.1, 0.25, 0.5, 0.75, 0.875, 0.99, 1])
def test_children_of_less_than_half_a_per_cent_are_left_out_at_every_level(q: float, rng: np.random.Generator) -> None:
    values = np.abs(rng.standard_t(1.5, 3000))
    leaves = LeafCounts(column="v", low=0, high=200).leaves(values).tolist()
    low, high = reference(leaves, q)
    assert low <= exact([leaves], [q]).estimate[0, 0] <= high
    # 4 of 1000 are left out, 5 of 1000 are not.
    body, tail = [100] * 1000, [LEAVES - 1]
    assert exact([body + tail * 4, body + tail * 6], [1.0]).estimate[:, 0] * LEAVES == pytest.approx([101, LEAVES])


def test_partitions_without_rows_are_interpolated() -> None:
    found = exact([[], [5], []], [0.0, 0.25, 1.0])
    assert found.estimate[0].tolist() == found.estimate[2].tolist() == [0.0, 0.25, 1.0]
    assert found.estimate[1] * LEAVES == pytest.approx([5, 5.25, 6])


@settings(deadline=None)
@given(st.lists(few_rows, min_size=1, max_size=3), st.floats(0, 1))
def test_without_noise_the_bounds_enclose_the_quantile(partitions: list[list[int]], q: float) -> None:
    one_rank = [[1.0] * HEIGHT]
    found = tree_quantiles(tree_of(partitions), len(partitions), [q], lambda n: np.zeros(n, np.int64), one_rank)
    for p, leaves in enumerate(partitions):
        ordered = np.sort(leaves)
        low, high = (round(float(ends[p, 0]) * LEAVES) for ends in (found.low, found.high))
        rank = q * len(leaves)
        assert low == 0 or np.sum(ordered < low) <= rank - 1 + 1e-9
        assert high == LEAVES or np.sum(ordered < high) >= rank + 1 - 1e-9
        # Its lower neighbour, itself if it is one, and its upper neighbour among the rows.
        for index in (math.ceil(rank) - 1, math.floor(rank)):
            value = ordered[min(max(index, 0), len(ordered) - 1)]
            assert low <= value + 1 and value <= high
        # No leaf's edge further in has such a rank.
        assert np.sum(ordered < low + 1) > rank - 1 - 1e-9
        assert np.sum(ordered < high - 1) < rank + 1 + 1e-9


class Counted:
    """Noise that remembers how much of it was drawn."""

    def __init__(self, draw: Callable[[int], np.ndarray]) -> None:
        self.drawn = 0
        self._draw = draw

    def __call__(self, n: int) -> np.ndarray:
        self.drawn += n
        return self._draw(n)


def test_a_node_is_noised_once_however_many_searches_come_by(rng: np.random.Generator) -> None:
    draw = Counted(lambda n: np.zeros(n, np.int64))
    quantiles = [0.5] * 7
    tree = tree_of([[100] * 50, [9000] * 50])
    tree_quantiles(tree, 2, quantiles, draw, [NO_SLACK] * 7)
    # All searches go the same way: the 16 children of one node a level, in each of two trees.
    assert draw.drawn == 2 * HEIGHT * BRANCHING


def test_equal_quantiles_agree_whatever_the_noise(rng: np.random.Generator) -> None:
    noise = DiscreteLaplace(20.0)
    tree = tree_of([rng.integers(0, LEAVES, 500).tolist() for _ in range(20)])
    found = tree_quantiles(tree, 20, [0.3, 0.3], lambda n: noise.sample(n, rng), [[50.0] * HEIGHT] * 2)
    for ends in (found.estimate, found.low, found.high):
        assert ends[:, 0].tolist() == ends[:, 1].tolist()


@settings(deadline=None)
@given(
    st.lists(few_rows, min_size=1, max_size=3), st.lists(st.floats(0, 1), min_size=1, max_size=3), st.integers(0, 99)
)
def test_whatever_the_noise_results_are_in_the_range(
    partitions: list[list[int]], quantiles: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    noise = DiscreteLaplace(50.0)
    slack = [rank_error_bounds(noise, q, 0.9) for q in quantiles]
    found = tree_quantiles(tree_of(partitions), len(partitions), quantiles, lambda n: noise.sample(n, rng), slack)
    for ends in (found.estimate, found.low, found.high):
        assert ends.shape == (len(partitions), len(quantiles))
        assert np.all((ends >= 0) & (ends <= 1))


@pytest.mark.parametrize("scale", [0.5, 4.0, 60.0])
@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 1.0])
def test_ranks_of_the_edges_that_bound_searches_end_at_are_within_the_error(
    scale: float, q: float, rng: np.random.Generator
) -> None:
    # What `rank_error_bounds` promises, on the law of its docstring: noise of nodes along the worst path of a search.
    noise, confidence, runs = DiscreteLaplace(scale), 0.9, 4000
    for depth, bound in enumerate(rank_error_bounds(noise, q, confidence), 1):
        error = np.zeros(runs)
        for level in range(depth):
            sums = np.cumsum(noise.sample(runs * BRANCHING, rng).reshape(runs, BRANCHING), axis=1)
            ranks = np.concatenate([np.zeros((runs, 1)), sums], axis=1)
            error += (ranks - q * sums[:, -1:] if level == 0 else ranks).max(axis=1)
        beyond = int(np.sum(error > bound))
        promised = (1 - confidence) / HEIGHT
        assert stats.binomtest(beyond, runs, promised, alternative="greater").pvalue > 1e-4
