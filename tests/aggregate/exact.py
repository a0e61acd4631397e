"""The door that only tests have: no noise, every partition kept, and how a test runs an aggregation.

What goes through it says NOT PRIVATE in its ledger. Nothing of the product reaches this module.
"""

from __future__ import annotations

import pickle
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from beam_dp import Ledger
from beam_dp.aggregate import Aggregate, Bounds, Budget, Count, PrivateSelection
from beam_dp.aggregate.buckets import Columns
from beam_dp.aggregate.budget import SelectionRelease
from beam_dp.aggregate.metrics import Metric
from beam_dp.aggregate.noise import NoiseFamily, Release
from beam_dp.aggregate.partials import Partials, add_up
from beam_dp.aggregate.release import AggregationPlan
from beam_dp.aggregate.statistics import LIMB_BITS, Statistic, Total
from beam_dp.guarantees import CentralGuarantee
from beam_dp.mechanisms.partition_selection import KeepRule

Row = dict[str, Any]
NO_GUARANTEE = "NOT PRIVATE: a test without noise"


@dataclass(frozen=True)
class Zero:
    """The law of an integer that is always 0."""

    stddev: float = 0.0
    largest_exponent: float = 1e9

    def sample(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        return np.zeros(n, np.int64)

    def half_width(self, confidence: float) -> int:
        return 0

    def at_most(self, k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (k >= 0).astype(np.float64)

    def log_mgf(self, t: float) -> float:
        return 0.0


@dataclass(frozen=True)
class NoNoise:
    """Releases exact statistics, with totals in their finest steps: 2^15 of the largest magnitude."""

    needs_delta: ClassVar[bool] = False

    def plan(
        self, label: str, statistic: Statistic, bounds: Bounds, unit: str, *, epsilon: float, delta: float
    ) -> Release:
        shift = LIMB_BITS if isinstance(statistic, Total) else 0
        return Release(label, statistic, bounds, Zero(), shift, not_private(unit), None)


@dataclass(frozen=True)
class Sums:
    """A plan that ends with exact sums."""

    statistics: tuple[Statistic, ...]
    bounds: Bounds
    by: tuple[str, ...] = ("item",)
    privacy_unit: str = "user"


@dataclass(frozen=True)
class KeepPresent:
    """Keeps what at least one unit is in."""

    def keep(self, units: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        return units >= 1


@dataclass(frozen=True)
class KeepAll:
    """A selection that hides nothing."""

    weight: float = 1.0

    def rule(self, bounds: Bounds, *, epsilon: float, delta: float) -> KeepPresent:
        return KeepPresent()

    def guarantee(self, unit: str, *, epsilon: float, delta: float) -> CentralGuarantee:
        return not_private(unit)

    def loss(self, bounds: Bounds, *, epsilon: float, delta: float) -> None:
        return None


def plan_of(
    metrics: Sequence[Metric],
    bounds: Bounds,
    *,
    family: NoiseFamily | None = None,
    epsilon: float = 1.0,
    delta: float = 0.0,
    keep: KeepRule | None = None,
    by: tuple[str, ...] = ("item",),
) -> AggregationPlan:
    """A plan in which every statistic has an epsilon of its own; without noise unless a family is given."""
    family = NoNoise() if family is None else family
    statistics = {s: f"{m.title}/{name}" for m in metrics for name, s in m.statistics.items()}
    releases = tuple(
        family.plan(label, s, bounds, "user", epsilon=epsilon, delta=delta) for s, label in statistics.items()
    )
    selection = None if keep is None else SelectionRelease(keep, not_private("user"), None)
    return AggregationPlan(by, "user", bounds, tuple(metrics), releases, selection)


def sums_of(plan: AggregationPlan, batch: pa.RecordBatch, seed: int = 0) -> Partials:
    """The bounded sums of all rows of a batch."""
    columns = Columns.of(plan)
    rows = columns.select(batch)
    keys, values = columns.keys(rows), columns.values(rows)
    return add_up(columns.units(rows), keys, values, plan.statistics, plan.bounds, np.random.default_rng(seed))


def not_private(unit: str) -> CentralGuarantee:
    return CentralGuarantee(epsilon=None, basis="none", reason=NO_GUARANTEE, privacy_unit=unit)


@dataclass(frozen=True)
class Run:
    """What a pipeline left behind.

    Attributes:
        results: the elements of the output, in the order in which they came.
        ledger: of the pipeline.
        outcome: Beam's result.
    """

    results: list[Any]
    ledger: Ledger
    outcome: PipelineResult

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all batches."""
        return [row for batch in self.results for row in batch.to_pylist()]


def run(
    elements: Sequence[Any],
    transform: beam.PTransform,
    *,
    element_type: Any = pa.RecordBatch,
    window: beam.PTransform | None = None,
    flags: Sequence[str] = (),
) -> Run:
    """``transform`` on a PCollection of ``elements`` in a pipeline of its own."""
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="beam_dp_run_") as folder:
        pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner", *flags]))
        rows = pipeline | beam.Create(list(elements), reshuffle=False).with_output_types(element_type)
        rows = rows if window is None else rows | window
        rows | transform | "Store" >> beam.Map(_store, folder)
        outcome = pipeline.run()
        outcome.wait_until_finish()
        return Run([pickle.loads(path.read_bytes()) for path in sorted(Path(folder).iterdir())], ledger, outcome)


def _store(element: Any, folder: str) -> None:
    # Files, so that results arrive from other processes too.
    Path(folder, f"{time.time_ns():020d}-{uuid.uuid4().hex}").write_bytes(pickle.dumps(element))


LOOSE = Bounds(1000, 1000)


def aggregate(by: str | Sequence[str] = "item", **options: Any) -> Aggregate:
    """Without noise and selection, and with bounds that nobody reaches, unless options say otherwise."""
    usual: dict[str, Any] = {
        "privacy_unit": "user",
        "bounds": LOOSE,
        "metrics": [Count()],
        "budget": Budget(1, 1e-6),
        "partitions": KeepAll(),
        "noise": NoNoise(),
    }
    return Aggregate(by, **usual | options)


def private(**options: Any) -> Aggregate:
    """As a user writes it."""
    usual: dict[str, Any] = {"partitions": PrivateSelection(), "noise": "laplace", "bounds": Bounds(2, 3)}
    return aggregate(**usual | options)


def batches_of(
    rows: list[Row], sizes: Iterable[int] = (7, 100, 1), schema: pa.Schema | None = None
) -> list[pa.RecordBatch]:
    """The rows in batches of some sizes and a last one of the rest."""
    table = pa.RecordBatch.from_pylist(rows, schema)
    batches, start = [], 0
    for size in [*sizes, len(rows)]:
        batches.append(table.slice(start, size))
        start += size
    return batches


def declared(element_type: Any = dict[str, Any]) -> tuple[Ledger, beam.PCollection]:
    """A ledger and an empty PCollection of its pipeline, for what is decided before anything runs."""
    ledger = Ledger()
    pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    return ledger, pipeline | beam.Create([]).with_output_types(element_type)
