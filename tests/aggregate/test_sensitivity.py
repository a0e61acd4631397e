"""One user, whatever she does, changes exact sums by no more than the plan claims for its noise."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from exact import KeepPresent, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.aggregate import (
    Bounds,
    Count,
    Histogram,
    Mean,
    PrivacyUnitCount,
    Quantiles,
    Sum,
    Variance,
    VectorSum,
)
from beam_dp.aggregate.buckets import Columns, bucket_sums
from beam_dp.aggregate.noise import GaussianNoise, LaplaceNoise
from beam_dp.aggregate.partials import Partials, merge
from beam_dp.aggregate.release import AggregationPlan
from beam_dp.aggregate.statistics import LeafCounts, Total, shifted_total

LEAVES, BRANCHING = 16**4, 16
METRICS = (
    Count(),
    PrivacyUnitCount(),
    Sum("v", -3, 7),
    Mean("v", 0, 10),
    Variance("v", -1, 2),
    Histogram("v", (0, 1, 2, 5)),
    VectorSum(("v", "w"), 4.5),
    Quantiles("w", 0, 1),
)
EVERY_BOUNDS = [Bounds(p, r) for p in (1, 2, 5) for r in (1, 2, 4)]


@functools.cache
def plan_for(bounds: Bounds, family: LaplaceNoise | GaussianNoise) -> AggregationPlan:
    metrics = [m for m in METRICS if isinstance(family, LaplaceNoise) or all(s.single for s in m.statistics.values())]
    return plan_of(metrics, bounds, family=family, epsilon=0.3, delta=1e-6, keep=KeepPresent())


def claims(plan: AggregationPlan) -> list[int]:
    """By how much one unit changes one partition at most: units for the selection, the integers under the noise."""
    return [1, *(release.partition_sensitivity for release in plan.releases)]


def sums_of(plan: AggregationPlan, rows: list[tuple[int, int, float, float]], memory_rows: int, seed: int) -> Partials:
    columns = Columns.of(plan)
    names = ("user", "item", "v", "w")
    batch = pa.RecordBatch.from_pydict({name: pa.array([row[i] for row in rows]) for i, name in enumerate(names)})
    selected = columns.select(batch)
    slices = [selected.slice(start, 7) for start in range(0, selected.num_rows, 7)]
    return merge(list(bucket_sums(plan, slices, 64, np.random.default_rng(seed), memory_rows)), plan.by)


def by_release(plan: AggregationPlan, sums: Partials) -> list[dict[Any, np.ndarray]]:
    """For the selection and each release: partition to the integers under the noise."""
    keys = sums.keys[0].to_pylist()
    units = {key: sums.dense[i, :1] for i, key in enumerate(keys)}
    result, column, trees = [units], 1, iter(sums.sparse)
    for release in plan.releases:
        statistic = release.statistic
        if isinstance(statistic, LeafCounts):
            tree = next(trees)
            result.append({key: nodes_of(tree.codes, tree.counts, i) for i, key in enumerate(keys)})
            continue
        integers = sums.dense[:, column : column + statistic.width]
        column += statistic.width
        if isinstance(statistic, Total):
            integers = shifted_total(integers, release.shift)[:, None]
        result.append({key: integers[i] for i, key in enumerate(keys)})
    assert column == sums.dense.shape[1]
    return result


def nodes_of(codes: np.ndarray, counts: np.ndarray, partition: int) -> np.ndarray:
    """The counts of all nodes below the root, level after level."""
    mine = codes // LEAVES == partition
    leaves = np.bincount(codes[mine] % LEAVES, counts[mine], LEAVES).astype(np.int64)
    return np.concatenate([leaves.reshape(BRANCHING**level, -1).sum(axis=1) for level in (1, 2, 3, 4)])


# Within every bounds: one row of one item each.
OTHERS = [(user, user % 3, user / 7 - 1, user / 40) for user in range(1, 30)]
number = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([-1e300, -3.0, -1.0, 0.0, 1.0, 2.0, 7.0, 10.0, 1e300, float("nan"), float("inf")]),
)
adversary = st.lists(st.tuples(st.just(0), st.integers(-2, 8), number, number), max_size=60)


@pytest.mark.parametrize("family", [LaplaceNoise(), GaussianNoise()], ids=["laplace", "gaussian"])
@settings(deadline=None, max_examples=60)
@given(adversary, st.sampled_from(EVERY_BOUNDS), st.sampled_from([10**6] * 3 + [50]), st.integers(0, 9))
def test_whatever_a_user_does_sums_change_by_no_more_than_is_claimed(
    family: LaplaceNoise | GaussianNoise,
    rows: list[tuple[int, int, float, float]],
    bounds: Bounds,
    memory_rows: int,
    seed: int,
) -> None:
    plan = plan_for(bounds, family)
    without = by_release(plan, sums_of(plan, OTHERS, memory_rows, seed))
    with_her = by_release(plan, sums_of(plan, [*rows, *OTHERS, *rows], memory_rows, seed + 1))
    for before, after, claim in zip(without, with_her, claims(plan), strict=True):
        assert before.keys() <= after.keys()
        changes = {key: int(np.abs(integers - before.get(key, 0)).sum()) for key, integers in after.items()}
        assert max(changes.values()) <= claim
        assert sum(change > 0 for change in changes.values()) <= bounds.partitions


@pytest.mark.parametrize("bounds", EVERY_BOUNDS, ids=str)
def test_the_claims_are_reached(bounds: Bounds) -> None:
    # A claim that nobody can reach would be noise for nothing.
    plan = plan_for(bounds, LaplaceNoise())
    greedy = [(0, item, 1e300, 1e300) for item in range(20, 30)] * 10
    before = by_release(plan, sums_of(plan, OTHERS, 10**6, 0))
    after = by_release(plan, sums_of(plan, [*OTHERS, *greedy], 10**6, 0))
    for old, new, claim in zip(before, after, claims(plan), strict=True):
        changes = [int(np.abs(integers - old.get(key, 0)).sum()) for key, integers in new.items()]
        assert sorted(changes)[-bounds.partitions :] == [claim] * bounds.partitions
        assert sum(changes) == bounds.partitions * claim


@pytest.mark.parametrize("family", [LaplaceNoise(), GaussianNoise()], ids=["laplace", "gaussian"])
@pytest.mark.parametrize("bounds", EVERY_BOUNDS, ids=str)
def test_the_ledger_states_the_sensitivities(bounds: Bounds, family: LaplaceNoise | GaussianNoise) -> None:
    most, rows = bounds.partitions, bounds.rows_per_partition
    in_partition = {
        "count/rows": rows,
        "privacy_unit_count/units": 1,
        "sum_v/sum": 7 * rows,
        "mean_v/values": rows,
        "variance_v/values": rows,
        "mean_v/centred_sum": 5 * rows,
        "variance_v/centred_sum": 1.5 * rows,
        "variance_v/centred_squares": 1.5**2 / 2 * rows,
        "histogram_v/bins": rows,
        "vector_sum_v_w/v": 4.5 * rows,
        "vector_sum_v_w/w": 4.5 * rows,
        "quantile_w/tree": 4 * rows,
    }
    for release in plan_for(bounds, family).releases:
        stated = release.parameters()["sensitivity"]
        assert stated["l1"] == pytest.approx(most * in_partition[release.label])
        assert stated["l2"] == pytest.approx(most**0.5 * in_partition[release.label])
