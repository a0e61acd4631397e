"""`WriteBatches`: RecordBatches as staged shards, published together when all of them are whole."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.typehints import typehints
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.accounting.grants import Plan
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.pipeline import LedgerPipeline
from beam_dp.errors import ArgumentError, describe_kind, require_choice, require_count
from beam_dp.io.formats import FORMATS
from beam_dp.io.publish import (
    REJECTS,
    ROWS,
    Staged,
    Target,
    publish,
    published_manifest,
    refuse_existing,
    refuse_unpublishable,
)
from beam_dp.io.rejects import METRICS_NAMESPACE
from beam_dp.io.stage import Stager, stage_empty


class WriteBatches(beam.PTransform):
    """Writes batches as one output that appears whole or not at all; see `beam_dp.io.publish`.

    Apply it to ``(batches, rejected)`` as `ReadBatches.with_rejects` gives them (transforms in between copy the schema
    metadata), to ``(batches, rejected, more rejected, ...)`` or to batches alone. The output is
    ``PREFIX-SSSSS-of-NNNNN.EXT``, ``PREFIX-rejects-SSSSS-of-NNNNN.jsonl`` where rows were rejected, and
    ``PREFIX.manifest.json``. Shards are in the order of the input as long as no transform in between shuffles batches.
    No rows make one shard without rows. How values look in each format: `beam_dp.io.encode`.

    On a pipeline with a ledger nothing is published before the usage records of all steps that were applied so far are
    in and agree with the plan (`beam_dp.accounting.usage`); if the ledger has a budget, the run is committed in
    between. That happens in the pipeline's last stage, so no process need wait for it. With a budget, `WriteBatches`
    comes after all transforms that draw.

    Args:
        prefix: local path or URI that the output names begin with.
        format: text, jsonl, csv, tsv or parquet.
        run_id: names the staging folder ``PREFIX.tmp-RUN_ID``; None for a random one.
        overwrite: replace an earlier output, stale shards included.
        max_rejects: more rejected rows than this fail the run, and nothing is published.
        plan: the ledger that goes into the manifest: a `beam_dp.Ledger` or its plan; None for that of the pipeline, if
            it has one.
        ledger_path: where the ledger goes as a file of its own, too.
        schema: columns of an output for which no batch at all arrives.
        inputs: files that the pipeline reads, as `ReadBatches.paths`: an output that could replace one is refused.

    Raises:
        ArgumentError: an argument that cannot be right; when applied: elements that are not RecordBatches, or a
            ``ledger_path`` without a ledger.
        ResourceError: there is an output or a ledger already; in a worker: the file system refuses, e.g. the disk is
            full.
        GrantError: in a worker: what steps drew differs from the plan.
        BudgetExceededError: in a worker: the run was voided, or has published this output before.
        InputError: in a worker: too many rejects, or columns that the format cannot hold.
    """

    def __init__(
        self,
        prefix: str,
        *,
        format: str,
        run_id: str | None = None,
        overwrite: bool = False,
        max_rejects: int = 0,
        plan: Ledger | Plan | None = None,
        ledger_path: str | None = None,
        schema: pa.Schema | None = None,
        inputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if isinstance(inputs, str):
            raise ArgumentError("inputs must be a list of paths, not one string")
        self._target = Target(
            prefix=prefix,
            format=require_choice("format", format, FORMATS),
            run_id=secrets.token_hex(8) if run_id is None else run_id,
            attempt=secrets.token_hex(16),
            overwrite=overwrite,
            max_rejects=require_count("max_rejects", max_rejects, minimum=0),
            ledger_path=ledger_path,
        )
        self._plan = None if plan is None else _plan_of(plan)
        self._schema = schema
        self._target.refuse_overlaps(inputs)
        if not overwrite:
            refuse_existing(self._target)

    def expand(
        self, collections: beam.PCollection[pa.RecordBatch] | tuple[beam.PCollection[pa.RecordBatch], ...]
    ) -> beam.PCollection[str]:
        """Stages batches and rejects where they are, brings the records of the shards together, publishes.

        Returns:
            One element, the path of the manifest, when the output is published.
        """
        batches, *rejects = collections if isinstance(collections, tuple) else (collections,)
        if not all(collection.is_bounded for collection in (batches, *rejects)):
            raise ArgumentError("WriteBatches publishes once, at the end, so its input must be bounded")
        for kind in (collection.element_type for collection in (batches, *rejects)):
            if kind is not None and not typehints.is_consistent_with(kind, pa.RecordBatch):
                name = getattr(kind, "__name__", kind)
                raise ArgumentError(f"WriteBatches takes PCollections of pyarrow.RecordBatch, not of {name}")
        plan, pipeline = self._plan, batches.pipeline
        usages = []
        if isinstance(pipeline, LedgerPipeline):
            usages = pipeline.reconciled()
            if plan is not None and not plan.is_of(pipeline.ledger):
                raise ArgumentError("plan is that of another ledger than the pipeline's: leave plan= out")
            plan = pipeline.ledger.plan()
        if plan is None and self._target.ledger_path is not None:
            raise ArgumentError("ledger_path needs a ledger: run on Ledger().pipeline(...) or pass plan=LEDGER")
        staged = [_stage(batches, self._target, ROWS, "Rows")]
        staged += [_stage(some, self._target, REJECTS, f"Rejects{index}") for index, some in enumerate(rejects)]
        nothing = pipeline | "Nothing" >> beam.Create([(None, None)])
        records = [record for usage in usages for record in usage.records]
        used = [some | f"Usage{index}" >> beam.WithKeys(None) for index, some in enumerate(records)]
        labels = tuple(label for usage in usages for label in usage.labels)
        return (
            (*staged, *used, nothing)
            | beam.Flatten()
            | "Barrier" >> beam.GroupByKey()
            | "Publish" >> beam.ParDo(_Publish(self._target, plan, self._schema, labels)).with_output_types(str)
        )

    def display_data(self) -> dict[str, object]:
        """Format and terms."""
        target = self._target
        return {"format": target.format, "overwrite": target.overwrite, "max_rejects": target.max_rejects}


def _plan_of(given: object) -> Plan:
    """``given`` if it is a plan, or the plan of a ledger."""
    if isinstance(given, Plan):
        return given
    if isinstance(given, Ledger):
        return given.plan()
    raise ArgumentError(f"plan must be a Ledger or the plan of one, not {describe_kind(given)}")


def _stage(batches: beam.PCollection[pa.RecordBatch], target: Target, kind: str, name: str) -> beam.PCollection[Any]:
    return (
        batches
        | f"{name}InOneWindow" >> beam.WindowInto(GlobalWindows())
        | f"Stage{name}" >> beam.ParDo(_Stage(target, kind))
    )


class _Stage(beam.DoFn):
    def __init__(self, target: Target, kind: str) -> None:
        self._target = target
        self._kind = kind
        self._stager: Stager | None = None

    def start_bundle(self) -> None:
        self._stager = Stager(self._target, self._kind)

    def process(self, batch: pa.RecordBatch) -> None:
        assert self._stager is not None
        self._stager.add(batch)
        if self._kind == ROWS:
            Metrics.counter(METRICS_NAMESPACE, "rows").inc(batch.num_rows)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        assert self._stager is not None
        stager, self._stager = self._stager, None
        window = GlobalWindow()
        for staged in stager.finish():
            yield WindowedValue((None, staged), window.max_timestamp(), (window,))

    def teardown(self) -> None:
        if self._stager is not None:
            self._stager.abandon()


class _Publish(beam.DoFn):
    def __init__(self, target: Target, plan: Plan | None, schema: pa.Schema | None, labels: tuple[str, ...]) -> None:
        self._target = target
        self._plan = plan
        self._schema = schema
        self._labels = labels

    def process(self, group: tuple[None, Iterable[Staged | str | None]]) -> Iterator[str]:
        items = list(group[1])
        records = [item for item in items if isinstance(item, str)]
        staged = [item for item in items if isinstance(item, Staged)]
        if self._plan is None:
            self._publish(staged, None)
        else:
            # What can be refused is refused before the charge is final.
            refuse_unpublishable(self._target, staged)
            in_place = published_manifest(self._target) is not None
            with self._plan.publishing(records, self._labels, attempt=self._target.attempt, in_place=in_place):
                self._publish(staged, self._plan.ledger_json())
        yield self._target.manifest_path

    def _publish(self, staged: list[Staged], ledger: dict[str, Any] | None) -> None:
        if not any(item.kind == ROWS for item in staged):
            staged.append(stage_empty(self._target, pa.schema([]) if self._schema is None else self._schema))
        publish(self._target, staged, ledger)
