"""Errors of released aggregates beside PipelineDP's: public partitions, the same bounds, the same budget.

No user goes beyond the bounds, so that the truth is known and all error comes from the release. Runs are independent
copies of one table, with users and partitions of their own, so that many of them fit in one call of either package.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import Ledger
from beam_dp.aggregate import Aggregate, Bounds, Budget, Count, Mean, Quantiles, Sum, Variance
from beam_dp.aggregate.metrics import Metric
from beam_dp.errors import BeamDpError
from benchmarks.contenders import pipeline_dp_aggregate
from benchmarks.tables import LARGEST_AMOUNT, Purchase

Floats = npt.NDArray[np.float64]
Release = Callable[["Trial", Sequence[str], int], Mapping[str, Floats]]

MAX_PARTITIONS = 2
MAX_ROWS_PER_PARTITION = 2
FIGURES = ("count", "sum", "mean", "variance", "median")
CONFIDENCE = 0.99

_RUNS_AT_ONCE = 20
_RESAMPLES = 10_000
_SEED = 20240517
# A skewed law: on a symmetric one, whoever pulls quantiles to the middle of the bounds would look accurate.
_BETA = (2, 6)

_COLUMNS = {
    "count": "count_amount",
    "sum": "sum_amount",
    "mean": "mean_amount",
    "variance": "variance_amount",
    "median": "quantile_amount_0.5",
}
_PIPELINE_DP = {
    "count": ("COUNT", "count"),
    "sum": ("SUM", "sum"),
    "mean": ("MEAN", "mean"),
    "variance": ("VARIANCE", "variance"),
    "median": ("PERCENTILE", "percentile_50"),
}


@dataclass(frozen=True)
class Trial:
    """One table, and how often it is released.

    Attributes:
        epsilon: the budget of each release.
        runs: how often.
        partitions: of the table.
        users: each has `MAX_ROWS_PER_PARTITION` rows in each of `MAX_PARTITIONS` partitions.
    """

    epsilon: float
    runs: int
    partitions: int
    users: int

    @cached_property
    def columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
        """Users, items and amounts of the table, each (rows,)."""
        rng = np.random.default_rng(_SEED)
        first = rng.integers(0, self.partitions, (self.users, 1))
        steps = rng.permuted(np.tile(np.arange(1, self.partitions), (self.users, 1)), axis=1)[:, : MAX_PARTITIONS - 1]
        chosen = np.hstack([first, (first + steps) % self.partitions])
        items = np.repeat(chosen.ravel(), MAX_ROWS_PER_PARTITION)
        users = np.repeat(np.arange(self.users), MAX_PARTITIONS * MAX_ROWS_PER_PARTITION)
        return users, items, LARGEST_AMOUNT * rng.beta(*_BETA, len(items))

    @cached_property
    def truth(self) -> dict[str, Floats]:
        """Every figure of every partition, each (partitions,)."""
        _, items, amounts = self.columns
        groups = [amounts[items == item] for item in range(self.partitions)]
        if not all(map(len, groups)):
            raise BeamDpError("a partition of the trial has no rows: give it more users")
        each: dict[str, Callable[[Floats], Any]] = {
            "count": len,
            "sum": np.sum,
            "mean": np.mean,
            "variance": np.var,
            "median": np.median,
        }
        return {name: np.array([figure(group) for group in groups], dtype=np.float64) for name, figure in each.items()}

    def copies(self, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
        """The columns of ``count`` copies; partition p of copy r is item r·partitions + p."""
        users, items, amounts = self.columns
        copy = np.arange(count)[:, None]
        return (
            (copy * self.users + users).ravel(),
            (copy * self.partitions + items).ravel(),
            np.tile(amounts, count),
        )


class _Save(beam.DoFn):
    """Writes each batch to a file of its own."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, batch: pa.RecordBatch) -> None:
        pq.write_table(pa.Table.from_batches([batch]), Path(self._folder) / f"{uuid.uuid4()}.parquet")


def release_ours(trial: Trial, figures: Sequence[str], count: int) -> dict[str, Floats]:
    """The figures of ``count`` copies, each (count·partitions,), by `beam_dp.Aggregate`."""
    bounds = ("amount", 0, LARGEST_AMOUNT)
    make: dict[str, Callable[[], Metric]] = {
        # Of values, which a mean counts too; without nulls they are as many as the rows, which PipelineDP counts.
        "count": lambda: Count("amount"),
        "sum": lambda: Sum(*bounds),
        "mean": lambda: Mean(*bounds),
        "variance": lambda: Variance(*bounds),
        "median": lambda: Quantiles(*bounds, quantiles=(0.5,)),
    }
    aggregate = Aggregate(
        by=["item"],
        privacy_unit="user",
        bounds=Bounds(partitions=MAX_PARTITIONS, rows_per_partition=MAX_ROWS_PER_PARTITION),
        metrics=[make[name]() for name in figures],
        budget=Budget(epsilon=trial.epsilon),
        partitions=list(range(count * trial.partitions)),
    )
    batch = pa.RecordBatch.from_arrays([pa.array(column) for column in trial.copies(count)], names=Purchase._fields)
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as folder:
        with Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
            _ = pipeline | beam.Create([batch]) | aggregate | beam.ParDo(_Save(folder))
        released = pq.read_table(folder).sort_by("item")
    return {name: released[_COLUMNS[name]].to_numpy() for name in figures}


def release_pipeline_dp(trial: Trial, figures: Sequence[str], count: int) -> dict[str, Floats]:
    """The figures of ``count`` copies, each (count·partitions,), by PipelineDP without Beam."""
    purchases = [Purchase(*row) for row in zip(*(column.tolist() for column in trial.copies(count)), strict=True)]
    released = dict(
        pipeline_dp_aggregate(
            purchases,
            "LocalBackend",
            epsilon=trial.epsilon,
            delta=0.0,
            metrics=[_PIPELINE_DP[name][0] for name in figures],
            max_partitions=MAX_PARTITIONS,
            max_rows_per_partition=MAX_ROWS_PER_PARTITION,
            public_partitions=list(range(count * trial.partitions)),
        )
    )
    ordered = [released[item] for item in range(count * trial.partitions)]
    return {name: np.array([getattr(figure, _PIPELINE_DP[name][1]) for figure in ordered]) for name in figures}


def squared_errors(trial: Trial, figures: Sequence[str], release: Release) -> dict[str, Floats]:
    """The mean square error of each figure in each run, (runs,).

    Raises:
        BeamDpError: a figure was not released, or is not finite.
    """
    parts: dict[str, list[Floats]] = {name: [] for name in figures}
    for start in range(0, trial.runs, _RUNS_AT_ONCE):
        count = min(_RUNS_AT_ONCE, trial.runs - start)
        for name, values in release(trial, figures, count).items():
            errors = values.astype(float).reshape(count, trial.partitions) - trial.truth[name]
            if not np.isfinite(errors).all():
                raise BeamDpError(f"a released {name} is missing or not finite")
            parts[name].append((errors**2).mean(axis=1))
    return {name: np.concatenate(part) for name, part in parts.items()}


def rmse_ratio(ours: Floats, theirs: Floats) -> tuple[float, float]:
    """The ratio of two root mean square errors, and its one-sided upper bound at `CONFIDENCE`.

    Args:
        ours: mean square errors of independent runs, (runs,).
        theirs: likewise; the ratio is ours over theirs.

    Returns:
        the ratio, and the quantile of its bootstrap distribution over runs (Efron 1979; the percentile bound).
    """
    rng = np.random.default_rng(_SEED)

    def resampled(errors: Floats) -> Floats:
        return np.array([errors[rng.integers(0, len(errors), len(errors))].mean() for _ in range(_RESAMPLES)])

    bound = np.quantile(np.sqrt(resampled(ours) / resampled(theirs)), CONFIDENCE)
    return float(np.sqrt(ours.mean() / theirs.mean())), float(bound)
