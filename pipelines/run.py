"""The course of every pipeline that reads files and publishes an output: build, run, say what was done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.runners.runner import PipelineState

from beam_dp import Ledger, ReadBatches, WriteBatches
from beam_dp.errors import BeamDpError
from beam_dp.io.publish import discard_staging
from pipelines.main import progress, summary
from pipelines.options import RunOptions, is_remote_engine, require_flags, require_remote_paths

Build = Callable[[beam.Pipeline, Ledger, PipelineOptions], None]
Counter = Callable[[str], int]


def run_pipeline(
    options: PipelineOptions,
    build: Build,
    *,
    doing: str,
    done: Callable[[Counter], str],
    paths: Mapping[str, str | None] | None = None,
) -> None:
    """Builds a pipeline, runs it, and prints its ledger and what was done.

    With ``--dry_run`` it prints the ledger and runs nothing. A run that fails leaves nothing staged.

    Args:
        options: of the command line.
        build: adds the transforms, `publish` as the last.
        doing: what is being done, for the display of progress.
        done: the line that says what was done; it gets the counters of this package by name.
        paths: flags (with dashes) and paths, beside those of `RunOptions`, that workers read.

    Raises:
        ArgumentError: there is no ``--input`` or ``--output``, or workers on other machines could not reach a path.
    """
    require_flags(options, "input", "output")
    run = options.view_as(RunOptions)
    require_remote_paths(
        options, {**(paths or {}), "--input": run.input, "--output": run.output, "--ledger": run.ledger}
    )
    ledger = Ledger()
    pipeline = ledger.pipeline(options)
    build(pipeline, ledger, options)
    if options.view_as(TestOptions).dry_run:
        ledger.seal()
        summary(ledger.report(), "dry run: nothing was read or written")
        return
    # Before the clean-up below is due: what is staged under this run id may be that of an earlier launch.
    pipeline.charge()
    try:
        with progress(doing, options):
            result = pipeline.run()
            state = result.wait_until_finish()
        if state not in (None, PipelineState.DONE):
            raise BeamDpError(f"the pipeline ended in state {state}; the runner's log says why")
    except BaseException:
        # On another machine the job may go on without this process.
        if not is_remote_engine(options):
            discard_staging(run.output, run.run_id, run.ledger)
        raise

    def counter(name: str) -> int:
        found = result.metrics().query(MetricsFilter().with_name(name))["counters"]
        return sum(item.result for item in found)

    summary(ledger.report(), done(counter), f"published: {run.output}.manifest.json")


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
    sink = WriteBatches(
        run.output,
        format=source.format,
        run_id=run.run_id,
        overwrite=run.overwrite,
        max_rejects=run.max_rejects,
        plan=ledger.plan(),
        ledger_path=run.ledger,
        inputs=source.paths,
    )
    (batches, rejected) | "Write" >> sink
