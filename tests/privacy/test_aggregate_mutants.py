"""Planted bugs: each is put into the product by replacing one function, and an audit that the product passes finds it.

`test_aggregate_audit` has the same audits on the product as it is. A bug that none of them found would say that they
could not fail.
"""

from collections.abc import Callable
from dataclasses import replace

import aggregate_audits as audits
import numpy as np
import pytest

from beam_dp.aggregate import bounds, budget, noise, partials, planning, quantile_tree, release, sums, transform
from beam_dp.aggregate.buckets import cut
from beam_dp.aggregate.columns import hash_keys
from beam_dp.aggregate.noise import LaplaceNoise
from beam_dp.aggregate.public import PublicPartitions
from beam_dp.aggregate.statistics import QUANTISED_BITS, TREE_HEIGHT, TREE_LEAVES, LeafCounts, Total, UnitCount
from beam_dp.mechanisms.discrete_noise import DiscreteGaussian, DiscreteLaplace
from beam_dp.mechanisms.partition_selection import LaplaceThreshold, TruncatedGeometric

LAPLACE = DiscreteLaplace.sample
GAUSSIAN = DiscreteGaussian.sample
LEVEL = quantile_tree._Level
LIMIT = 1 << QUANTISED_BITS


def noise_times(factor):
    def plant(patch):
        patch.setattr(
            DiscreteLaplace,
            "sample",
            lambda self, n, rng: LAPLACE(DiscreteLaplace(self.scale * factor), n, rng),
        )
        patch.setattr(
            DiscreteGaussian,
            "sample",
            lambda self, n, rng: GAUSSIAN(DiscreteGaussian(self.sigma * factor), n, rng),
        )

    return plant


def float_noise(patch):
    patch.setattr(DiscreteLaplace, "sample", lambda self, n, rng: rng.laplace(0, self.scale, n))


def one_draw_for_a_block(patch):
    patch.setattr(DiscreteLaplace, "sample", lambda self, n, rng: np.repeat(LAPLACE(self, 1, rng), n))


def one_draw_for_all_metrics(patch):
    patch.setattr(DiscreteLaplace, "sample", lambda self, n, rng: LAPLACE(self, n, np.random.default_rng(n)))


def no_clamp(patch):
    def quantise(self, values):
        return np.rint(np.nan_to_num(values) / self.magnitude * LIMIT).astype(np.int64)

    patch.setattr(Total, "quantise", quantise)


def mean_not_centred(patch):
    """Clamped to [low, high] and scaled as if it were to ±half of the range."""

    def quantise(self, values):
        return np.rint(np.nan_to_num(np.clip(values, self.low, self.high)) / self.magnitude * LIMIT).astype(np.int64)

    patch.setattr(Total, "quantise", quantise)


def ignored(**most):
    """Bounds that are claimed, and not enforced."""

    def plant(patch):
        def bound(units, partitions, wanted, rng):
            return bounds.bound_contributions(units, partitions, replace(wanted, **most), rng)

        patch.setattr(partials, "bound_contributions", bound)

    return plant


def partitions_left_out_of_the_scale(patch):
    plan = LaplaceNoise.plan

    def one_partition(self, label, statistic, wanted, unit, *, epsilon, delta):
        return plan(self, label, statistic, replace(wanted, partitions=1), unit, epsilon=epsilon, delta=delta)

    patch.setattr(LaplaceNoise, "plan", one_partition)


def budget_spent_twice(patch):
    """Every metric gets all of it."""

    def split(whole, metrics, *rest):
        parts = [budget.split_budget(whole, (metric,), *rest) for metric in metrics]
        return replace(parts[0], releases=tuple(item for part in parts for item in part.releases))

    patch.setattr(planning, "split_budget", split)


def keeps_one_too_early(patch):
    table = TruncatedGeometric.__dict__["table"].func
    threshold = LaplaceThreshold.__dict__["threshold"].func
    patch.setattr(TruncatedGeometric, "table", property(lambda self: table(self)[1:]))
    patch.setattr(LaplaceThreshold, "threshold", property(lambda self: threshold(self) - 1))


def rows_counted_for_units(patch):
    patch.setattr(UnitCount, "add_up", lambda self, rows: rows.count()[:, None])


def whole_epsilon_for_each_level(patch):
    patch.setattr(LeafCounts, "partition_sensitivity", lambda self, wanted: wanted.rows_per_partition)


def steps_that_do_not_divide(patch):
    """Steps of 0.6 of the largest magnitude, which a unit changes by up to two, claimed to be of all of it."""
    step = int(0.6 * LIMIT)
    patch.setattr(noise, "_shift", lambda statistic, magnitudes: QUANTISED_BITS)
    patch.setattr(
        release, "shifted_total", lambda limbs, shift: ((limbs[:, 0] << 15) + limbs[:, 1] + step // 2) // step
    )


def units_in_two_buckets(patch):
    def split(columns, rows, count):
        place = hash_keys([columns.units(rows)]) + np.random.default_rng(1).integers(0, 2, rows.num_rows, np.uint64)
        yield from cut(rows, (place % np.uint64(count)).astype(np.int64), count)

    patch.setattr(sums, "cut_by_unit", split)


CAUGHT: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], audits.Verdict]]] = {
    "noise x0.5": (noise_times(0.5), audits.count),
    "noise x0.8": (noise_times(0.8), audits.count),
    "noise x0.5 of a sum": (noise_times(0.5), audits.sum_of_one),
    "noise x0.8 of a sum": (noise_times(0.8), audits.sum_of_one),
    "noise x0.5 of a mean": (noise_times(0.5), lambda: audits.mean(20_000)),
    "noise x0.5 of a selection": (noise_times(0.5), lambda: audits.selection_worst("laplace_threshold")),
    "noise x0.5, gaussian": (noise_times(0.5), audits.gaussian),
    "noise x0.5, combine per key": (noise_times(0.5), audits.combined),
    "float noise": (float_noise, audits.low_bits),
    "one draw for a block": (one_draw_for_a_block, audits.beside_an_empty_partition),
    "one draw for all metrics": (one_draw_for_all_metrics, audits.two_sums),
    "no clamp": (no_clamp, audits.sum_of_one),
    "mean not centred": (mean_not_centred, lambda: audits.mean(20_000)),
    "partitions not bounded": (ignored(partitions=1 << 40), audits.one_of_four_partitions),
    "rows not bounded": (ignored(rows_per_partition=1 << 40), audits.many_rows),
    "partitions left out of the scale": (partitions_left_out_of_the_scale, audits.three_partitions),
    "budget spent twice": (budget_spent_twice, audits.two_metrics),
    "keeps one too early": (keeps_one_too_early, audits.selection_worst),
    "threshold one too low": (keeps_one_too_early, lambda: audits.selection_worst("laplace_threshold")),
    "rows counted for units": (rows_counted_for_units, audits.unit_count),
    "rows counted for units in a selection": (rows_counted_for_units, audits.selection_worst),
    "whole epsilon for each level": (whole_epsilon_for_each_level, audits.tree),
    "steps that do not divide": (steps_that_do_not_divide, audits.sum_on_a_base),
    "units in two buckets": (units_in_two_buckets, audits.many_rows),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_an_audit_convicts_a_planted_bug(name, monkeypatch):
    plant, audit = CAUGHT[name]
    plant(monkeypatch)
    assert audit().convicts


def test_rows_of_other_partitions_than_the_public_ones_are_dropped_and_a_bug_in_that_does_not_pass(monkeypatch):
    assert audits.shown_partitions() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(PublicPartitions, "keep", lambda self, rows, keys, names: rows)
    # The release has a guard of its own.
    with pytest.raises(Exception, match="partitions that are not public"):
        audits.shown_partitions()
    monkeypatch.setattr(transform, "SumWork", lambda plan, public, *rest: sums.SumWork(plan, None, *rest))
    assert audits.shown_partitions() != [0, 1, 2, 3, 4]


def equal_medians(rng):
    """Whether two searches of 200 trees for the same quantile see the same noise."""
    leaves = partials.Sparse(np.arange(200) * TREE_LEAVES, np.full(200, 20))
    errors = [1.0] * TREE_HEIGHT
    law = DiscreteLaplace(4.0)
    found = quantile_tree.tree_quantiles(leaves, 200, (0.5, 0.5), lambda n: law.sample(n, rng), (errors, errors))
    return bool((found.estimate[:, 0] == found.estimate[:, 1]).all())


def test_every_node_of_a_tree_has_one_noise_for_all_searches_and_a_bug_in_that_is_seen(rng, monkeypatch):
    assert equal_medians(rng)

    class Anew(LEVEL):
        def __init__(self, tree, depth, parents, draw):
            self._all = (tree, depth, draw)
            super().__init__(tree, depth, parents, draw)

        def of(self, parents):
            tree, depth, draw = self._all
            return LEVEL.of(LEVEL(tree, depth, parents, draw), parents)

    monkeypatch.setattr(quantile_tree, "_Level", Anew)
    assert not equal_medians(rng)
