"""The release: exact sums of a block of partitions in, noisy rows out. Nothing exact gets past this module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from beam_dp.accounting.shares import Share
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.budget import SelectionRelease
from beam_dp.aggregate.noise import Release
from beam_dp.aggregate.partials import Partials, key_order
from beam_dp.aggregate.released import Metric, Noised, NoisyTree
from beam_dp.aggregate.statistics import Statistic, Total, UnitCount, shifted_total
from beam_dp.aggregate.windows import WindowLimit
from beam_dp.errors import ArgumentError


@dataclass(frozen=True)
class AggregationPlan:
    """All that is public about an aggregation: what it bounds, adds up, releases and with which noise.

    Attributes:
        by: the key columns.
        privacy_unit: the column whose values are protected.
        bounds: of a unit's contribution.
        metrics: what is shown of a partition.
        releases: the statistics of all metrics, each once, with its noise.
        selection: how partitions are selected; None where they are public.
        composition_delta: what of delta is set aside for composition.
        share: the share of the ledger's declared total that all of it is spent from, if it is from one.
        windows: in how many a unit is at most; None in the global window, and where nobody says it.
    """

    by: tuple[str, ...]
    privacy_unit: str
    bounds: Bounds
    metrics: tuple[Metric, ...]
    releases: tuple[Release, ...]
    selection: SelectionRelease | None
    composition_delta: float = 0.0
    share: Share | None = None
    windows: WindowLimit | None = None

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What is added up; the units come first where selection needs them."""
        units = () if self.selection is None else (UnitCount(),)
        return (*units, *(release.statistic for release in self.releases))

    @property
    def items(self) -> tuple[SelectionRelease | Release, ...]:
        """Everything that is released: the selection, if there is one, and the statistics."""
        return (*(() if self.selection is None else (self.selection,)), *self.releases)


def release_block(plan: AggregationPlan, sums: Partials, rng: np.random.Generator) -> pa.RecordBatch:
    """The noisy rows of a block of partitions: the key columns, then those of the metrics.

    Every partition of the block must be whole in ``sums``, and each block must be released once. Rows are in the order
    of their keys: that in which the data came in would say something of it.

    Args:
        plan: what to release.
        sums: exact sums, of selected partitions too; of all public ones, absent ones as zeros, where those are public.
        rng: the current generator of a `SecureSource`.

    Raises:
        ArgumentError: two columns would have one name, whatever the sums are.
    """
    if plan.selection is not None:
        kept = plan.selection.rule.keep(sums.dense[:, 0], rng)
        sums = sums.take(np.flatnonzero(kept))
    sums = sums.take(key_order(sums.keys))
    columns: dict[str, pa.Array] = dict(zip(plan.by, sums.keys, strict=True))
    released = dict(_add_noise(plan, sums, rng))
    for metric in plan.metrics:
        more = metric.columns([released[statistic] for statistic in metric.statistics.values()])
        twice = sorted(columns.keys() & more.keys())
        if twice:
            raise ArgumentError(f"two columns of the output would be {twice[0]!r}: give a metric another name=")
        columns |= more
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _add_noise(
    plan: AggregationPlan, sums: Partials, rng: np.random.Generator
) -> Iterator[tuple[Statistic, Noised | NoisyTree]]:
    """Each release of the plan, by its statistic; the noise of every integer is a draw of its own."""
    size = len(sums)
    column = 0 if plan.selection is None else 1
    trees = iter(sums.sparse)
    for release in plan.releases:
        statistic = release.statistic
        if statistic.is_sparse:
            yield statistic, NoisyTree(next(trees), size, release.noise, rng)
            continue
        exact = sums.dense[:, column : column + statistic.width]
        column += statistic.width
        if isinstance(statistic, Total):
            exact = shifted_total(exact, release.shift)[:, None]
        noise = release.noise.sample(exact.size, rng).reshape(exact.shape)
        yield statistic, Noised(exact + noise, release.noise, release.step, release.shift > 0)
