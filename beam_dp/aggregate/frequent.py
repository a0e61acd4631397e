"""`MostFrequent`: which of a public set of candidates most privacy units have, by the exponential mechanism."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.transforms.display import DisplayDataItem

from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.grants import Grant
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.loss import ParametersLoss
from beam_dp.accounting.pipeline import full_label, leave_usage, ledger_of
from beam_dp.accounting.shares import Share, epsilon_or_share
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.partials import key_order
from beam_dp.aggregate.public import public_partitions
from beam_dp.aggregate.statistics import Statistic, UnitCount
from beam_dp.aggregate.sums import DEFAULT_BUCKETS, SumWork, as_batches, block_sums, bounded_sums, materialised
from beam_dp.aggregate.transform import KINDS, require_buckets, require_firing_once
from beam_dp.errors import ArgumentError, describe_kind, require_choice, require_count
from beam_dp.guarantees import CentralGuarantee
from beam_dp.io.rows import infer_kind
from beam_dp.mechanisms.exponential import ExponentialMechanism
from beam_dp.mechanisms.partition_selection import scale_up


@dataclass(frozen=True)
class _CountPlan:
    """What is added up: how many units have each candidate."""

    by: tuple[str, ...]
    privacy_unit: str
    bounds: Bounds
    statistics: tuple[Statistic, ...] = (UnitCount(),)


class MostFrequent(beam.PTransform):
    """The k candidates that most privacy units have, approximately and privately: (k·epsilon, 0) for one unit.

    A unit counts once for a candidate, however often she has it, so one unit changes each count by at most one, and an
    added unit lowers none: the exponential mechanism with sensitivity 1 for monotone scores, k times, each time without
    what was chosen before (`beam_dp.mechanisms.exponential`). No bound on the candidates of one unit is needed, and no
    count is released.

    It takes what `Aggregate` takes, in the global window, and gives one `pyarrow.RecordBatch` of k rows: ``rank`` from
    1, and the candidate under the name of ``column``. Candidates that are one value in the type of the column (as
    "1" and "01" are in integers) count as one, and then there may be fewer rows.

    Args:
        column: where the candidates are.
        privacy_unit: the column that says whose a row is.
        candidates: the public list; rows with something else are dropped.
        epsilon: of one choice; or a `Share` of what the ledger declares, for all k choices alike.
        k: how many to choose.
        buckets: see `Aggregate`.
        input_kind: see `Aggregate`.
        ledger: see `Aggregate`.

    Raises:
        ArgumentError: at construction, for whatever can never work; when applied, unless in the global window, or for
            a share that cannot be drawn.
        InputError: in a worker: a column is missing or of a type that cannot serve.
        GrantError: when applied, if there is no ledger.
    """

    def __init__(
        self,
        column: str,
        *,
        privacy_unit: str,
        candidates: Sequence[Any],
        epsilon: float | Share,
        k: int = 1,
        buckets: int = DEFAULT_BUCKETS,
        input_kind: str | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("column", column), ("privacy_unit", privacy_unit)):
            if not isinstance(value, str) or not value:
                raise ArgumentError(f"{name} must be the name of a column, not {describe_kind(value)}")
        self._public = public_partitions(candidates, (column,), "candidates")
        number, self._share = epsilon_or_share(epsilon)
        self._mechanism = ExponentialMechanism(number, 1.0, monotone=True)
        self._k = require_count("k", k)
        if self._k > len(self._public):
            raise ArgumentError(f"k must be at most the number of different candidates, {len(self._public)}, not {k}")
        bounds = Bounds(partitions=len(self._public), rows_per_partition=1)
        self._plan = _CountPlan((column,), privacy_unit, bounds)
        self._buckets = require_buckets(buckets)
        self._input_kind = None if input_kind is None else require_choice("input_kind", input_kind, KINDS)
        self._ledger = ledger

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Records the ledger entry and builds the graph."""
        kind = require_choice("input_kind", self._input_kind or infer_kind(pcoll.element_type), KINDS)
        if not require_firing_once(pcoll, "MostFrequent"):
            raise ArgumentError("MostFrequent needs the global window: which windows have rows would show")
        ledger, label = ledger_of(pcoll, self._ledger), full_label(pcoll.pipeline, self.label)
        if self._share is not None:
            part = ledger.draw(self._share, label, CentralGuarantee.model).split(self._k)
            self._mechanism = ExponentialMechanism(part.epsilon, 1.0, monotone=True)
        mechanism, plan, k = self._mechanism, self._plan, self._k
        grant = ledger.record(
            label=label,
            mechanism=f"{mechanism!r}, {k} choices",
            guarantee=CentralGuarantee(
                epsilon=scale_up(k * Fraction(mechanism.epsilon)), basis="proved", privacy_unit=plan.privacy_unit
            ),
            max_applications=1,
            fingerprint=_fingerprint(mechanism, k, plan),
            loss=ParametersLoss(mechanism.epsilon, 0.0, k),
            share=self._share,
            parameters={"candidates": len(self._public), "choices": k, "sensitivity": {"units_per_candidate": 1}},
        )
        work = SumWork(plan, self._public, self._buckets, 1, in_one_window=True)
        sums, types = bounded_sums(as_batches(pcoll, kind, work), work)
        fn = _Choose(work, mechanism, k, plan, grant)
        outputs = sums | "Choose" >> beam.ParDo(fn, pvalue.AsIter(types)).with_outputs(USAGE, main="chosen")
        leave_usage(fn, outputs[USAGE])
        outputs.chosen.element_type = beam.typehints.KV[int, pa.RecordBatch]
        return materialised(outputs.chosen)

    def display_data(self) -> dict[str, Any]:
        """Mechanism and number of candidates, for the runner's user interface."""
        return {
            "mechanism": DisplayDataItem(repr(self._mechanism), label="Mechanism"),
            "candidates": DisplayDataItem(len(self._public), label="Candidates"),
            "k": DisplayDataItem(self._k, label="Choices"),
        }


def _fingerprint(mechanism: ExponentialMechanism, k: int, plan: _CountPlan) -> str:
    return f"{mechanism!r} {k} {plan!r}"


class _Choose(DrawingDoFn):
    """The exact counts of all candidates to those that are chosen: the one place where it is drawn."""

    def __init__(self, work: SumWork, mechanism: ExponentialMechanism, k: int, plan: _CountPlan, grant: Grant) -> None:
        super().__init__()
        self._work = work
        self._mechanism = mechanism
        self._k = k
        self._plan = plan
        self._grant = grant

    def granted(self) -> list[tuple[Grant | None, str]]:
        return [(self._grant, _fingerprint(self._mechanism, self._k, self._plan))]

    def process(
        self, block: tuple[int, Iterable[pa.RecordBatch]], types: Iterable[bytes]
    ) -> Iterator[tuple[int, pa.RecordBatch] | pvalue.TaggedOutput]:
        yield from self.usage(piece=block[0])
        sums = block_sums(self._work, block[0], block[1], types)
        sums = sums.take(key_order(sums.keys))
        chosen = self._mechanism.top_k(sums.dense[:, 0], min(self._k, len(sums)), self.rng)
        ranks = pa.array(np.arange(1, len(chosen) + 1))
        (column,) = self._plan.by
        yield block[0], pa.RecordBatch.from_arrays([ranks, sums.keys[0].take(pa.array(chosen))], names=["rank", column])
