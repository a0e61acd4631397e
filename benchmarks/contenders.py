"""Who takes part in the aggregate benchmark: pipelines that count and sum purchases by item, private or not.

All of them get the same table, in the form they take: Beam's own combiners and PipelineDP get rows. The private ones
have the same bounds and budget and select the partitions they release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection

from beam_dp import Ledger
from beam_dp.aggregate import Aggregate, Bounds, Budget, Count, Mean, PrivateSelection, Sum
from beam_dp.errors import BeamDpError
from benchmarks.measure import version_of
from benchmarks.tables import LARGEST_AMOUNT, Kind, Purchase, PurchaseTable, read

EPSILON = 1.0
DELTA = 1e-6
MAX_PARTITIONS = 8
MAX_ROWS_PER_PARTITION = 2

_RELEASED = "released"


@dataclass(frozen=True)
class Contender:
    """A pipeline from purchases to figures of each item.

    Attributes:
        key: how the command line calls it.
        title: how the tables call it.
        kind: the form of the purchases that it takes.
        build: from the purchases to the figures: record batches, or anything else, one element a partition.
        strings: whether users and items are named by strings.
        private: whether its pipeline has a ledger.
        distribution: the package that must be installed.
    """

    key: str
    title: str
    kind: Kind
    build: Callable[[PCollection], PCollection]
    strings: bool = False
    private: bool = False
    distribution: str | None = None

    @property
    def installed(self) -> bool:
        """Whether it can take part here."""
        return self.distribution is None or version_of(self.distribution) is not None

    def run(self, table: PurchaseTable, *, prepare: bool = True) -> int:
        """Runs it on the FnApiRunner in this process and returns how many partitions it released."""
        options = PipelineOptions(["--runner=FnApiRunner"])
        pipeline = Ledger().pipeline(options) if self.private else beam.Pipeline(options=options)
        purchases = pipeline | "Read" >> read(table, self.kind, prepare=prepare)
        _ = self.build(purchases) | "Tally" >> beam.ParDo(_Tally())
        result = pipeline.run()
        result.wait_until_finish()
        counters = result.metrics().query(MetricsFilter().with_name(_RELEASED))["counters"]
        return sum(counter.result for counter in counters)


class _Tally(beam.DoFn):
    """Counts partitions in a metric; emits nothing."""

    def __init__(self) -> None:
        self._released = Metrics.counter("benchmarks", _RELEASED)

    def process(self, element: Any) -> None:
        self._released.inc(element.num_rows if isinstance(element, pa.RecordBatch) else 1)


def _aggregate(purchases: PCollection) -> PCollection:
    return purchases | Aggregate(
        by=["item"],
        privacy_unit="user",
        bounds=Bounds(partitions=MAX_PARTITIONS, rows_per_partition=MAX_ROWS_PER_PARTITION),
        metrics=[Count("amount"), Sum("amount", 0, LARGEST_AMOUNT), Mean("amount", 0, LARGEST_AMOUNT)],
        budget=Budget(epsilon=EPSILON, delta=DELTA),
        partitions=PrivateSelection(),
    )


def _item_and_amount(purchase: Purchase) -> tuple[int, float]:
    return purchase.item, purchase.amount


class _CountAndSum(beam.CombineFn):
    """Count and sum of floats in one list, which Beam allows to be changed in place: the cheapest way it has."""

    def create_accumulator(self) -> list[float]:
        return [0, 0.0]

    def add_input(self, accumulator: list[float], amount: float) -> list[float]:
        accumulator[0] += 1
        accumulator[1] += amount
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[float]]) -> list[float]:
        merged = [0, 0.0]
        for count, total in accumulators:
            merged[0] += count
            merged[1] += total
        return merged

    def extract_output(self, accumulator: list[float]) -> tuple[float, float]:
        return accumulator[0], accumulator[1]


def _combine(purchases: PCollection) -> PCollection:
    keyed = purchases | beam.Map(_item_and_amount).with_output_types(tuple[int, float])
    return keyed | beam.CombinePerKey(_CountAndSum())


def _combine_twice(purchases: PCollection) -> PCollection:
    keyed = purchases | beam.Map(_item_and_amount).with_output_types(tuple[int, float])
    figures = {"count": keyed | beam.combiners.Count.PerKey(), "sum": keyed | beam.CombinePerKey(sum)}
    return figures | beam.CoGroupByKey()


def pipeline_dp_aggregate(
    purchases: Any,
    backend: str,
    *,
    epsilon: float,
    delta: float,
    metrics: Sequence[str],
    max_partitions: int,
    max_rows_per_partition: int,
    public_partitions: Sequence[int] | None = None,
) -> Any:
    """PipelineDP's aggregates of purchases by item, as its documentation says: pairs of the item and a named tuple.

    Args:
        purchases: rows, in the form that the backend takes.
        backend: the name of a class of PipelineDP, e.g. ``BeamBackend``.
        epsilon: of all metrics, and of the selection of partitions where they are not public.
        delta: likewise.
        metrics: names of PipelineDP's metrics; ``PERCENTILE`` is the median.
        max_partitions: of a user.
        max_rows_per_partition: of a user.
        public_partitions: the items; None to select them privately.
    """
    package: Any = import_module("pipeline_dp")
    known = package.Metrics
    accountant = package.NaiveBudgetAccountant(total_epsilon=epsilon, total_delta=delta)
    engine = package.DPEngine(accountant, getattr(package, backend)())
    parameters = package.AggregateParams(
        metrics=[known.PERCENTILE(50) if name == "PERCENTILE" else getattr(known, name) for name in metrics],
        max_partitions_contributed=max_partitions,
        max_contributions_per_partition=max_rows_per_partition,
        min_value=0,
        max_value=LARGEST_AMOUNT,
    )
    extractors = package.DataExtractors(
        privacy_id_extractor=lambda purchase: purchase.user,
        partition_extractor=lambda purchase: purchase.item,
        value_extractor=lambda purchase: purchase.amount,
    )
    result = engine.aggregate(purchases, parameters, extractors, public_partitions=public_partitions)
    accountant.compute_budgets()
    return result


def _pipeline_dp(purchases: PCollection) -> PCollection:
    return pipeline_dp_aggregate(
        purchases,
        "BeamBackend",
        epsilon=EPSILON,
        delta=DELTA,
        metrics=("COUNT", "SUM", "MEAN"),
        max_partitions=MAX_PARTITIONS,
        max_rows_per_partition=MAX_ROWS_PER_PARTITION,
    )


CONTENDERS = (
    Contender("batches", "Aggregate, batches in", "batches", _aggregate, private=True),
    Contender("rows", "Aggregate, rows in", "rows", _aggregate, private=True),
    Contender("strings", "Aggregate, strings in batches", "batches", _aggregate, strings=True, private=True),
    Contender("plain", "plain Beam, one CombineFn", "rows", _combine),
    Contender("plain_two", "plain Beam, two CombinePerKey", "rows", _combine_twice),
    Contender("pipeline_dp", "PipelineDP", "rows", _pipeline_dp, distribution="pipeline-dp"),
)
"""Everybody, in the order of their turns."""


def contender(key: str) -> Contender:
    """The contender of this key."""
    for one in CONTENDERS:
        if one.key == key:
            return one
    raise BeamDpError(f"no contender {key!r}")
