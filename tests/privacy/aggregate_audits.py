"""Audits of aggregates through the real transform: one run of a pipeline holds thousands of independent trials.

A trial is a few partitions that no other trial has. In the first half of the trials a unit of its own, the *target*,
has rows there, in the second half it has none. Trials do not touch each other, so the released rows of the two halves
are samples of the output on two data sets that differ by one unit, and an audit of them speaks of adding one and of
removing one.

Every audit is a function of nothing that gives a `Verdict`; `test_aggregate_audit` asks the product for it, and
`test_aggregate_mutants` the product with a planted bug.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from auditing import directed_epsilon

from beam_dp import Ledger
from beam_dp.accounting import drawing
from beam_dp.aggregate import (
    Aggregate,
    Bounds,
    Budget,
    Count,
    Histogram,
    Mean,
    PrivacyUnitCount,
    PrivateSelection,
    Quantiles,
    Sum,
    Variance,
    VectorSum,
    combine,
    sums,
)
from beam_dp.aggregate.metrics import NoisyTree
from beam_dp.aggregate.quantile_tree import _Level
from beam_dp.aggregate.statistics import TREE_BRANCHING, TREE_HEIGHT, LeafCounts, Statistic

SEED = 20240517
Floats = npt.NDArray[np.float64]


class SeededSource:
    """Stands in for `SecureSource` in tests alone: a new stream at every key, the same ones in every run."""

    made: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self) -> None:
        self.rekey()

    def rekey(self) -> None:
        self.generator = np.random.default_rng([SEED, next(SeededSource.made)])


@contextmanager
def seeded() -> Iterator[None]:
    """The product with `SeededSource`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sums, drawing):
            patch.setattr(module, "SecureSource", SeededSource)
        SeededSource.made = itertools.count()
        yield


_elements: list[Any] = []
_results: list[Any] = []


def _give(_: None) -> list[Any]:
    return _elements


def _collect(result: Any) -> None:
    _results.append(result)


def run(elements: Sequence[Any], what: beam.PTransform, element_type: Any = pa.RecordBatch) -> tuple[list[Any], Ledger]:
    """What a transform gives, seeded, and its ledger; in this process, in which the lists above are found."""
    _results.clear()
    _elements[:] = elements
    ledger = Ledger()
    with seeded(), ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        # `Create` with large elements takes seconds.
        rows = p | beam.Create([None], reshuffle=False) | beam.FlatMap(_give).with_output_types(element_type)
        rows | what | beam.Map(_collect)
    return list(_results), ledger


@dataclass(frozen=True)
class Verdict:
    """What an audit found.

    Attributes:
        claim: the epsilon that the budget allows.
        added: the audited lower bound of epsilon, of an event that an added unit makes more likely.
        removed: the same for a removed unit.
        ledger: the epsilon that the ledger states.
    """

    claim: float
    added: float
    removed: float
    ledger: float

    @property
    def convicts(self) -> bool:
        """Whether the claim is refuted."""
        return max(self.added, self.removed) > self.claim

    @property
    def power(self) -> float:
        """The part of the claim that was found in both directions."""
        return min(self.added, self.removed) / self.claim


@dataclass(frozen=True)
class Trials:
    """Trials of ``width`` partitions, ``n`` with the target and ``n`` without.

    Attributes:
        target: the rows of the target, (partition, value).
        others: rows of other units of the trial, (unit, partition, value).
    """

    n: int
    target: tuple[tuple[int, float], ...]
    width: int = 1
    others: tuple[tuple[int, int, float], ...] = ()

    def rows(self) -> pa.RecordBatch:
        """All rows: units ``u``, keys ``p`` (trial·width + partition), values ``x``."""
        there, everyone = np.arange(self.n), np.arange(2 * self.n)
        rows = [(there, there * self.width + place, value) for place, value in self.target]
        rows += [(everyone + (unit + 1) * 2 * self.n, everyone * self.width + at, v) for unit, at, v in self.others]
        columns = {
            "u": np.concatenate([units for units, _, _ in rows]),
            "p": np.concatenate([keys for _, keys, _ in rows]),
            "x": np.concatenate([np.full(len(units), value) for units, _, value in rows]),
        }
        return pa.record_batch(columns)

    @property
    def partitions(self) -> pa.Table:
        """The public list."""
        return pa.table({"p": np.arange(2 * self.n * self.width)})

    def split(self, column: pa.ChunkedArray | Floats) -> tuple[Floats, Floats]:
        """A released column, in the order of keys, as (n, width, ...) with the target and without."""
        values = np.asarray(column.to_pylist() if isinstance(column, pa.ChunkedArray) else column, np.float64)
        values = values.reshape(2 * self.n, self.width, *values.shape[1:])
        return values[: self.n], values[self.n :]


def released(trials: Trials, *, bounds: Bounds, metrics: Sequence[Any], budget: Budget, **options: Any) -> Any:
    """The rows of all trials in the order of their keys, as a table, and the epsilon of the ledger."""
    what = Aggregate(
        "p",
        privacy_unit="u",
        bounds=bounds,
        metrics=metrics,
        budget=budget,
        **({"partitions": trials.partitions, "buckets": 16} | options),
    )
    batches, ledger = run([trials.rows()], what)
    return pa.Table.from_batches(batches).sort_by("p"), ledger.total()["central"]["epsilon"]


def likelihood(values: Floats, shift: float, scale: float) -> Floats:
    """(n, ...) to (n,): ln of the likelihood ratio of ``shift`` and 0 in every coordinate, with Laplace noise."""
    ratios = (2 * np.clip(values, 0, shift) - shift) / scale
    return ratios.reshape(len(ratios), -1).sum(axis=1)


def judged(pair: tuple[Floats, Floats], claim: float, ledger: float, delta: float = 0.0) -> Verdict:
    """The verdict on samples of a statistic with the target and without."""
    one, other = pair
    return Verdict(claim, directed_epsilon(one, other, delta), directed_epsilon(other, one, delta), ledger)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The one that is nearest to a conviction, or beyond."""
    return max(verdicts, key=lambda verdict: max(verdict.added, verdict.removed) - verdict.claim)


# --- one metric, one partition: here an audit has power ---


def count(epsilon: float = 1.0, n: int = 20_000) -> Verdict:
    """One row more or less."""
    trials = Trials(n, ((0, 0.0),))
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[Count()], budget=Budget(epsilon))
    return judged(_single(trials, table["count"]), epsilon, ledger)


def low_bits() -> Verdict:
    """One row more or less, seen in the last bits of what is shown (Mironov 2012).

    Floating-point noise around 1 that comes out near 0 is a multiple of 2^-53; around 0, few values near 0 are.
    """
    trials = Trials(20_000, ((0, 0.0),))
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[Count()], budget=Budget(1.0))

    def coarse(values: Floats) -> Floats:
        return ((np.abs(values) < 1 / 16) & (values * 2.0**53 % 1 == 0)).astype(float)

    one, other = _single(trials, table["count"])
    return judged((coarse(one), coarse(other)), 1.0, ledger)


def many_rows() -> Verdict:
    """Ten rows of the target in one partition, of which three count."""
    trials = Trials(20_000, ((0, 0.0),) * 10)
    table, ledger = released(trials, bounds=Bounds(1, 3), metrics=[Count()], budget=Budget(1.0))
    return judged(_single(trials, table["count"]), 1.0, ledger)


def unit_count() -> Verdict:
    """Five rows of the target in one partition, of which all count, and the unit once."""
    trials = Trials(20_000, ((0, 0.0),) * 5)
    table, ledger = released(trials, bounds=Bounds(1, 5), metrics=[PrivacyUnitCount()], budget=Budget(1.0))
    return judged(_single(trials, table["privacy_unit_count"]), 1.0, ledger)


def sum_of_one(value: float = 1e9, low: float = 0.0, high: float = 100.0) -> Verdict:
    """One value far beyond the bounds, which counts as the bound of largest magnitude."""
    trials = Trials(20_000, ((0, value),))
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[Sum("x", low, high)], budget=Budget(1.0))
    one, other = _single(trials, table["sum_x"])
    sign, magnitude = np.sign(value), max(-low, high)
    return judged((np.clip(sign * one, 0, magnitude), np.clip(sign * other, 0, magnitude)), 1.0, ledger)


def sum_on_a_base() -> Verdict:
    """One value of 1 beside another unit's 0.25: totals that rounding to steps might drive apart."""
    trials = Trials(20_000, ((0, 1.0),), others=((0, 0, 0.25),))
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[Sum("x", 0, 1)], budget=Budget(1.0))
    return judged(_single(trials, table["sum_x"]), 1.0, ledger)


def mean(n: int = 100_000) -> Verdict:
    """The noisy count and the noisy centred sum that a mean is made of, as they show beside it, together."""
    trials = Trials(n, ((0, 100.0),))
    metrics = [Count("x"), Sum("x", 0, 100), Mean("x", 0, 100)]
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=metrics, budget=Budget(1.0))
    counts, totals = (np.asarray(table[name]) for name in ("count_x", "sum_x"))
    (count_one, count_other), (sum_one, sum_other) = trials.split(counts), trials.split(totals - 50 * counts)
    pair = [likelihood(c, 1, 2) + likelihood(s, 50, 100) for c, s in ((count_one, sum_one), (count_other, sum_other))]
    return worst([judged((pair[0], pair[1]), 1.0, ledger), judged(_single(trials, table["mean_x"]), 1.0, ledger)])


def selection(strategy: str = "truncated_geometric", n: int = 20_000) -> tuple[Verdict, ...]:
    """Whether a partition is kept, of k units and of k + 1: the first of all, and where the rule is at its steepest.

    Every unit has two rows there, which make it no more than one unit.
    """
    epsilon = 1.0
    # The threshold is 6: P[1 + X >= 6] = e^-5/(1 + 1/e) is just below 0.005.
    delta, steps = {"truncated_geometric": (0.01, (0, 3, 4)), "laplace_threshold": (0.005, (0, 4, 5))}[strategy]
    sizes = sorted({size for step in steps for size in (step, step + 1)})
    keys = np.concatenate([np.repeat(np.arange(n) + i * n, 2 * size) for i, size in enumerate(sizes)])
    rows = pa.record_batch({"u": np.repeat(np.arange(len(keys) // 2), 2), "p": keys})
    rule = PrivateSelection(strategy=strategy)  # type: ignore[arg-type]
    what = Aggregate(
        "p",
        privacy_unit="u",
        bounds=Bounds(1, 2),
        metrics=[],
        budget=Budget(epsilon, delta),
        partitions=rule,
    )
    batches, ledger = run([rows], what)
    kept = np.zeros((len(sizes), n))
    kept.reshape(-1)[np.concatenate([np.asarray(batch["p"]) for batch in batches])] = 1
    of = dict(zip(sizes, kept, strict=True))
    stated = ledger.total()["central"]["epsilon"]
    return tuple(judged((of[step + 1], of[step]), epsilon, stated, delta) for step in steps)


def selection_worst(strategy: str = "truncated_geometric") -> Verdict:
    """The worst of `selection`."""
    return worst(selection(strategy))


def combined() -> Verdict:
    """`count` by `DPCombinePerKey`."""
    trials = Trials(2_000, ((0, 0.0),))
    what = combine.DPCombinePerKey(
        combine.LaplaceCount(), bounds=Bounds(1, 1), budget=Budget(1.0), public_keys=list(range(2 * trials.n))
    )
    pairs, ledger = run([(key, 0) for key in range(trials.n)], what, tuple[int, int])
    counts = np.array([value for _, value in sorted(pairs)], np.float64)
    return judged(_single(trials, counts), 1.0, ledger.total()["central"]["epsilon"])


def shown_partitions() -> list[Any]:
    """The partitions that are released for the public list 0 to 4, of data that lack one of them and have others."""
    rows = pa.record_batch({"u": pa.array(range(6)), "p": pa.array([0, 1, 2, 3, 77, None])})
    what = Aggregate(
        "p", privacy_unit="u", bounds=Bounds(1, 1), metrics=[Count()], budget=Budget(1.0), partitions=list(range(5))
    )
    return sorted((key for batch in run([rows], what)[0] for key in batch["p"].to_pylist()), key=str)


# --- several partitions, several metrics ---


def one_of_four_partitions() -> Verdict:
    """A target in four partitions, of which one counts."""
    trials = Trials(10_000, tuple((place, 0.0) for place in range(4)), width=4)
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[Count()], budget=Budget(1.0))
    one, other = trials.split(table["count"])
    return judged((likelihood(one, 1, 1), likelihood(other, 1, 1)), 1.0, ledger)


def three_partitions() -> Verdict:
    """A target in three partitions, all of which count."""
    trials = Trials(10_000, tuple((place, 0.0) for place in range(3)), width=3)
    table, ledger = released(trials, bounds=Bounds(3, 1), metrics=[Count()], budget=Budget(1.0))
    one, other = trials.split(table["count"])
    return judged((likelihood(one, 1, 3), likelihood(other, 1, 3)), 1.0, ledger)


def beside_an_empty_partition() -> Verdict:
    """The difference of two partitions of one block, one of which is empty: noise that they share would cancel."""
    trials = Trials(20_000, ((0, 0.0),), width=2)
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[Count()], budget=Budget(1.0), buckets=8)
    one, other = (x[:, 0] - x[:, 1] for x in trials.split(table["count"]))
    return judged((one, other), 1.0, ledger)


def two_metrics() -> Verdict:
    """A count and a sum, together."""
    trials = Trials(20_000, ((0, 100.0),))
    metrics = [Count(), Sum("x", 0, 100)]
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=metrics, budget=Budget(1.0))
    (count_one, count_other), (sum_one, sum_other) = trials.split(table["count"]), trials.split(table["sum_x"])
    one, other = (
        likelihood(c, 1, 2) + likelihood(s, 100, 200) for c, s in ((count_one, sum_one), (count_other, sum_other))
    )
    return judged((one, other), 1.0, ledger)


def two_sums() -> Verdict:
    """The difference of two sums, in one of which the target is clamped to 0: noise that they share would cancel."""
    trials = Trials(20_000, ((0, 1.0),))
    metrics = [Sum("x", 0, 1), Sum("x", -1, 0, name="other")]
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=metrics, budget=Budget(1.0))
    one, other = _single(trials, np.asarray(table["sum_x"]) - np.asarray(table["other"]))
    return judged((one, other), 1.0, ledger)


def everything(budget: Budget = Budget(4.0), **options: Any) -> Verdict:  # noqa: B008  (a frozen value)
    """All metrics: three partitions a unit, two rows in each, of a target that has three rows in each."""
    trials = Trials(3_000, tuple((place, 1.0) for place in range(3) for _ in range(3)), width=3)
    metrics = [
        Count(),
        PrivacyUnitCount(),
        Sum("x", 0, 1),
        Mean("x", 0, 1),
        Variance("x", 0, 1),
        Quantiles("x", 0, 1),
        Histogram("x", (0, 0.5, 1)),
        VectorSum(("x",), 1.0),
    ]
    table, ledger = released(trials, bounds=Bounds(3, 2), metrics=metrics, budget=budget, **options)
    together = [np.zeros(trials.n), np.zeros(trials.n)]
    for name, shift in {"count": 2, "privacy_unit_count": 1, "sum_x": 2, "histogram_x": 2, "vector_sum_x": 2}.items():
        scale = table[f"{name}_noise_stddev"][0].as_py() / math.sqrt(2)
        pair = (values[..., -1] if values.ndim == 3 else values for values in trials.split(table[name]))
        together = [sum_ + likelihood(values, shift, scale) for sum_, values in zip(together, pair, strict=True)]
    views = [together, *(map(_sum, trials.split(table[n])) for n in ("mean_x", "variance_x", "quantile_x_0.5"))]
    return worst([judged((one, other), budget.epsilon, ledger, budget.delta) for one, other in views])


def histogram() -> Verdict:
    """A value in either bin."""
    trials = Trials(20_000, ((0, 0.0), (0, 2.5)))
    table, ledger = released(trials, bounds=Bounds(1, 2), metrics=[Histogram("x", (0, 1, 2, 3))], budget=Budget(1.0))
    one, other = (x[:, :, [0, 2]] for x in trials.split(table["histogram_x"]))
    return judged((likelihood(one, 1, 2), likelihood(other, 1, 2)), 1.0, ledger)


def vector_sum() -> Verdict:
    """A vector with both coordinates at their bound."""
    trials = Trials(20_000, ((0, 1.0),))
    rows = trials.rows()
    rows = rows.append_column("y", rows["x"])
    what = Aggregate(
        "p",
        privacy_unit="u",
        bounds=Bounds(1, 1),
        metrics=[VectorSum(("x", "y"), 1.0)],
        budget=Budget(1.0),
        partitions=trials.partitions,
    )
    batches, ledger = run([rows], what)
    one, other = trials.split(pa.Table.from_batches(batches).sort_by("p")["vector_sum_x_y"])
    epsilon = ledger.total()["central"]["epsilon"]
    return judged((likelihood(one, 1, 2), likelihood(other, 1, 2)), 1.0, epsilon)


@dataclass(frozen=True)
class TreePath:
    """The noisy counts of the four nodes above the first leaf, as a search for that leaf sees them."""

    title: ClassVar[str] = "path"
    statistic_weight: ClassVar[float] = 1.0

    @property
    def statistics(self) -> dict[str, Statistic]:
        return {"tree": LeafCounts(column="x", low=0.0, high=1.0)}

    def columns(self, found: Sequence[Any]) -> dict[str, pa.Array]:
        (tree,) = found
        assert isinstance(tree, NoisyTree)
        levels = [
            _Level(tree.tree, level, np.arange(tree.size) * TREE_BRANCHING ** (level - 1), self._draw(tree))
            for level in range(1, TREE_HEIGHT + 1)
        ]
        counts = np.stack([level.of(level._parents)[:, 0] for level in levels], axis=1)
        ends = pa.array(np.arange(tree.size + 1, dtype=np.int32) * TREE_HEIGHT)
        return {self.title: pa.ListArray.from_arrays(ends, pa.array(counts.reshape(-1)))}

    @staticmethod
    def _draw(tree: NoisyTree) -> Any:
        return lambda n: tree.noise.sample(n, tree.rng)


def tree() -> Verdict:
    """The four counts that a row changes in a quantile tree, together."""
    trials = Trials(20_000, ((0, 0.0),))
    table, ledger = released(trials, bounds=Bounds(1, 1), metrics=[TreePath()], budget=Budget(1.0))
    one, other = trials.split(table["path"])
    return judged((likelihood(one, 1, 4), likelihood(other, 1, 4)), 1.0, ledger)


def quantile() -> Verdict:
    """The median of two rows or three."""
    trials = Trials(20_000, ((0, 1.0),) * 2, others=((0, 0, 0.0), (1, 0, 0.5)))
    table, ledger = released(trials, bounds=Bounds(1, 2), metrics=[Quantiles("x", 0, 1)], budget=Budget(4.0))
    return judged(_single(trials, table["quantile_x_0.5"]), 4.0, ledger)


def gaussian(partitions: int = 1, n: int = 30_000) -> Verdict:
    """Counts with Gaussian noise."""
    budget = Budget(1.0, 0.01)
    trials = Trials(n // partitions, tuple((place, 0.0) for place in range(partitions)), width=partitions)
    table, ledger = released(trials, bounds=Bounds(partitions, 1), metrics=[Count()], budget=budget, noise="gaussian")
    one, other = map(_sum, trials.split(table["count"]))
    return judged((one, other), budget.epsilon, ledger, budget.delta)


def _sum(values: Floats) -> Floats:
    return values.sum(axis=1)


def _single(trials: Trials, column: pa.ChunkedArray | Floats) -> tuple[Floats, Floats]:
    one, other = trials.split(column)
    return one[:, 0], other[:, 0]
