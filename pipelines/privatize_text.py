"""Privatizes a file of texts word by word.

    python -m pipelines.privatize_text --input=GLOB --output=PREFIX --mechanism=multivariate_laplace --epsilon=12

Reads text, jsonl, csv, tsv or parquet, replaces every word of the text column by a draw of the mechanism, and
publishes the shards, a manifest and the ledger together. Columns that are not named in --keep_columns are dropped.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import ArgumentParser

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from beam_dp import MECHANISMS, Ledger, PrivatizeText, ReadBatches, WordMechanism, WriteBatches
from beam_dp.errors import ArgumentError, BeamDpError
from beam_dp.io.publish import discard_staging
from beam_dp.text import OOV_POLICIES
from pipelines.main import progress, run_main, summary
from pipelines.options import RunOptions, is_remote_engine, parse_options, require_flags, require_remote_paths

MECHANISM_PARAMETERS = ("epsilon", "scale", "neighbours")


class PrivatizeTextOptions(PipelineOptions):
    """The options of this pipeline alone."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--mechanism",
            choices=sorted(MECHANISMS),
            default="multivariate_laplace",
            help="what is drawn for each word (default: multivariate_laplace)",
        )
        parser.add_argument("--epsilon", type=float, help="privacy parameter, in units of 1/distance")
        parser.add_argument("--scale", type=float, help="truncated_gumbel: noise scale instead of --epsilon")
        parser.add_argument("--neighbours", type=int, help="truncated_gumbel: candidates of a word (default: 40)")
        parser.add_argument(
            "--index", metavar="DIR_OR_URI", help="embedding index (default: the one inside the package)"
        )
        parser.add_argument("--text_column", default="text", help="the column to privatize (default: text)")
        parser.add_argument("--keep_columns", metavar="A,B", help="columns to pass on unchanged and unprotected")
        parser.add_argument("--max_words", type=int, default=64, help="words kept of a text (default: 64)")
        parser.add_argument(
            "--oov",
            choices=OOV_POLICIES,
            default="drop",
            help="unknown words vanish or become random ones (default: drop)",
        )
        parser.add_argument(
            "--search",
            choices=("auto", "exact", "annoy"),
            default="auto",
            help="how the nearest word is found (default: auto)",
        )


def mechanism_from(options: PipelineOptions) -> WordMechanism:
    """The mechanism that ``--mechanism`` and its parameters name.

    Raises:
        ArgumentError: a parameter is out of range, missing, or one that the mechanism does not have.
    """
    own = options.view_as(PrivatizeTextOptions)
    mechanism = MECHANISMS[own.mechanism]
    known = {field.name for field in dataclasses.fields(mechanism)}  # type: ignore[arg-type]
    given = {name: getattr(own, name) for name in MECHANISM_PARAMETERS if getattr(own, name) is not None}
    for name in given:
        if name not in known:
            raise ArgumentError(f"--{name} is not a parameter of {own.mechanism}: leave it out")
    if "epsilon" not in given and "scale" not in given:
        raise ArgumentError("--epsilon is required: write --epsilon=VALUE")
    return mechanism(**given)


def build(pipeline: beam.Pipeline, ledger: Ledger, options: PipelineOptions) -> None:
    """Adds read, privatize and publish to ``pipeline``."""
    run, own = options.view_as(RunOptions), options.view_as(PrivatizeTextOptions)
    keep = tuple(name.strip() for name in (own.keep_columns or "").split(",") if name.strip())
    privatize = PrivatizeText(
        mechanism_from(options),
        index=own.index,
        text_column=own.text_column,
        keep_columns=keep,
        max_words=own.max_words,
        oov=own.oov,
        search=own.search,
    )
    source = ReadBatches(run.input, format=run.format, columns=(own.text_column, *keep), text_column=own.text_column)
    read = pipeline | "Read" >> source.with_rejects()
    write = WriteBatches(
        run.output,
        format=source.format,
        run_id=run.run_id,
        overwrite=run.overwrite,
        max_rejects=run.max_rejects,
        plan=ledger.plan(),
        ledger_path=run.ledger,
        inputs=source.paths,
    )
    (read.batches | "Privatize" >> privatize, read.rejected) | "Write" >> write


def main(argv: list[str]) -> None:
    """Parses the options, runs the pipeline, and says what was done."""
    options = parse_options(argv, PrivatizeTextOptions, description=str(__doc__))
    require_flags(options, "input", "output")
    run, own = options.view_as(RunOptions), options.view_as(PrivatizeTextOptions)
    require_remote_paths(
        options,
        {"--index": own.index, "--input": run.input, "--output": run.output, "--ledger": run.ledger},
    )
    ledger = Ledger()
    pipeline = ledger.pipeline(options)
    build(pipeline, ledger, options)
    if options.view_as(TestOptions).dry_run:
        ledger.seal()
        summary(ledger.table(), "dry run: nothing was read or written")
        return
    try:
        with progress("privatizing", options):
            result = pipeline.run()
            state = result.wait_until_finish()
        if state not in (None, PipelineState.DONE):
            raise BeamDpError(f"the pipeline ended in state {state}; the runner's log says why")
    except BaseException:
        # On another machine the job may go on without this process.
        if not is_remote_engine(options):
            discard_staging(run.output, run.run_id, run.ledger)
        raise
    summary(ledger.table(), *_counts(result), f"published: {run.output}.manifest.json")


def _counts(result: PipelineResult) -> list[str]:
    """Rows and words, where the runner reports them."""
    totals = {
        name: sum(counter.result for counter in result.metrics().query(MetricsFilter().with_name(name))["counters"])
        for name in ("privatized_rows", "privatized_words")
    }
    return [f"{totals['privatized_rows']:,} rows and {totals['privatized_words']:,} words privatized"]


if __name__ == "__main__":
    sys.exit(run_main(main))
