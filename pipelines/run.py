"""The course of every pipeline that reads files and publishes an output: build, run, say what was done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, TestOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from beam_dp import Ledger, ReadBatches, WriteBatches
from beam_dp.accounting.budget import BudgetRun, BudgetStore
from beam_dp.errors import ArgumentError, BeamDpError, BudgetExceededError, ResourceError
from beam_dp.io.publish import discard_staging, require_writable
from pipelines.budget_views import charged_lines
from pipelines.engines import WORKER_LOST, lost_by_engine, require_engine
from pipelines.main import progress, summary
from pipelines.options import RunOptions, is_remote_engine, require_flags, require_remote_paths
from pipelines.pools import dead_workers_cancel

Build = Callable[[beam.Pipeline, Ledger, PipelineOptions], None]
Counter = Callable[[str], int]


def run_pipeline(
    options: PipelineOptions,
    build: Build,
    *,
    name: str,
    doing: str,
    done: Callable[[Counter], str],
    paths: Mapping[str, str | None] | None = None,
) -> None:
    """Builds a pipeline, charges it, runs it, and prints its ledger, what was done and what is left of the budget.

    With ``--dry_run`` it prints the ledger and what would be charged, and charges and runs nothing. With
    ``--template_location`` Dataflow gets the job, charged, in a file, and starts it. A run that fails leaves nothing
    staged; what it was charged stays charged.

    Args:
        options: of the command line.
        build: adds the transforms, `publish` as the last.
        name: of the pipeline, in the history of the budget.
        doing: what is being done, for the display of progress.
        done: the line that says what was done; it gets the counters of this package by name.
        paths: flags (with dashes) and paths, beside those of `RunOptions`, that workers read.

    Raises:
        ArgumentError: there is no ``--input`` or ``--output``, workers on other machines could not reach a path or the
            budget, or one of ``--budget_store`` and ``--dataset`` is missing.
        ResourceError: the engine cannot be started or does not answer; nothing is charged then.
        BudgetExceededError: the budget refuses the run, or, with ``--dry_run``, would refuse it.
    """
    require_flags(options, "input", "output")
    run = options.view_as(RunOptions)
    require_remote_paths(
        options, {**(paths or {}), "--input": run.input, "--output": run.output, "--ledger": run.ledger}
    )
    budget = budget_run(options, name)
    ledger = Ledger(budget=budget)
    pipeline = ledger.pipeline(options)
    build(pipeline, ledger, options)
    if options.view_as(TestOptions).dry_run:
        show_plan(ledger)
        return
    require_engine(options)
    require_writable(run.output, run.ledger)
    # Before the clean-up below is due: what is staged under this run id may be that of an earlier launch.
    pipeline.charge()
    try:
        with progress(doing, options):
            result = pipeline.run()
            state = ended(result, options)
        if state not in (None, PipelineState.DONE):
            raise BeamDpError(f"the pipeline ended in state {state}; the runner's log says why")
    except BaseException:
        # On another machine the job may go on without this process.
        if not is_remote_engine(options):
            discard_staging(run.output, run.run_id, run.ledger)
        if budget is not None:
            summary(
                f"run {budget.run_id} was charged to data set {budget.dataset}, since it may have drawn: "
                "'beam-dp budget show' says what became of the charge"
            )
        raise
    if options.view_as(GoogleCloudOptions).template_location:
        # In the launcher of a Flex Template: the job is written, Dataflow starts it, and nothing was counted yet.
        summary(ledger.report(), f"launched, to be published: {run.output}.manifest.json")
        return

    def counter(name: str) -> int:
        found = result.metrics().query(MetricsFilter().with_name(name))["counters"]
        return sum(item.result for item in found)

    summary(ledger.report(), done(counter), f"published: {run.output}.manifest.json")
    if budget is not None:
        summary(*charged_lines(budget))


def ended(result: PipelineResult, options: PipelineOptions) -> str:
    """The state in which the job ended; a job on this machine does not go on when this process is told to stop."""
    with dead_workers_cancel(result) as deaths:
        try:
            return result.wait_until_finish()
        except BaseException as error:
            if not is_remote_engine(options):
                # A job server knows jobs that have ended; Beam's own runners have nothing to cancel, and say so.
                with contextlib.suppress(Exception):
                    result.cancel()
            lost = ResourceError(WORKER_LOST) if deaths.in_vain else lost_by_engine(error)
            if lost is None:
                raise
            raise lost from error


def budget_run(options: PipelineOptions, name: str) -> BudgetRun | None:
    """The launch that ``--budget_store``, ``--dataset`` and ``--run_id`` name; None where there is no budget.

    Args:
        options: with ``--input``.
        name: of the pipeline.

    Raises:
        ArgumentError: only one of the two is given, the URL is no budget store's, or it names a file of this machine
            although workers are on others.
    """
    run = options.view_as(RunOptions)
    if run.budget_store is None and run.dataset is None:
        return None
    for flag, value, other in (
        ("--budget_store", run.budget_store, "--dataset"),
        ("--dataset", run.dataset, "--budget_store"),
    ):
        if not value:
            raise ArgumentError(f"{flag} is required where {other} is given: write {flag}=VALUE, or leave both out")
    store = BudgetStore(run.budget_store)
    if store.is_local and is_remote_engine(options):
        raise ArgumentError(
            "--budget_store is a file on this machine, which the workers of this engine cannot reach: keep the budget "
            "in postgresql:// or gs://"
        )
    return store.run(run.dataset, run.run_id, pipeline=name)


def show_plan(ledger: Ledger) -> None:
    """What a dry run says: the ledger and, where there is a budget, what it would be charged and would leave."""
    ledger.seal()
    budget = ledger.budget
    if budget is None:
        summary(ledger.report(), "dry run: nothing was read or written")
        return
    quote = budget.quote(ledger.to_dict())
    summary(
        ledger.report(),
        f"would be charged to data set {budget.dataset}:",
        *(f"  {line}" for line in quote.lines),
        "dry run: nothing was charged, read or written",
    )
    if quote.refusal is not None:
        raise BudgetExceededError(quote.refusal)


def publish(
    batches: beam.PCollection,
    rejected: beam.PCollection,
    *,
    source: ReadBatches,
    ledger: Ledger,
    options: PipelineOptions,
) -> None:
    """Writes ``batches`` in the format of ``source``, on the terms of `RunOptions`.

    Args:
        batches: the output.
        rejected: the rows of the input that were rejected.
        source: what was read.
        ledger: goes into the manifest.
        options: with ``--output``.
    """
    run = options.view_as(RunOptions)
    kept = [] if ledger.budget is None or ledger.budget.store.path is None else [ledger.budget.store.path]
    sink = WriteBatches(
        run.output,
        format=source.format,
        run_id=run.run_id,
        overwrite=run.overwrite,
        max_rejects=run.max_rejects,
        plan=ledger.plan(),
        ledger_path=run.ledger,
        # The budget store is read, too: an output that could replace it is refused.
        inputs=(*source.paths, *kept),
    )
    (batches, rejected) | "Write" >> sink
