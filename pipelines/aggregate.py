"""Publishes differentially private statistics of groups of rows.

    python -m pipelines.aggregate --input=GLOB --output=PREFIX --privacy_unit=user --by=item
        --metrics=count,mean:amount:0:100,quantiles:amount:0:100:0.5/0.9
        --max_partitions=4 --max_rows_per_partition=2 --epsilon=1 --delta=1e-6

Reads jsonl, csv, tsv or parquet. The output has a row for each partition, that is for each distinct value of the --by
columns that enough privacy units have, or that --public_partitions lists: the --by columns, then each metric with its
_noise_stddev, _ci_low and _ci_high. epsilon and delta hold for all rows of one privacy unit together.

Each run spends epsilon and delta anew, also one that fails. What a run says about rows that it cannot use is exact and
for your eyes only: how many were rejected and where (manifest, PREFIX-rejects, error), or the error that it fails with.
"""

from __future__ import annotations

import contextlib
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import Ledger
from beam_dp.aggregate import PrivacyUnitCount
from beam_dp.aggregate.ordered import InKeyOrder
from beam_dp.errors import ArgumentError, InputError
from beam_dp.io.files import InputFile, last_component, local_absolute, open_input, reading, require_file_system
from beam_dp.io.lines import BOM, LineBlock, invalid_utf8, split_lines
from pipelines.main import run_main
from pipelines.metrics import NO_METRICS
from pipelines.options import names_in, parse_options, require_flags
from pipelines.run import publish, run_pipeline
from pipelines.unit_options import UnitOptions, aggregate_from, metrics_from, unit_files, unit_source, with_unit


class AggregateOptions(PipelineOptions):
    """The options of this pipeline alone."""

    shared = (UnitOptions, *UnitOptions.shared)

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--by", metavar="A,B", help="the columns whose distinct values are the partitions")
        parser.add_argument(
            "--public_partitions",
            metavar="FILE",
            help="release exactly these partitions, absent ones as noised zeros: one key a line, UTF-8, with tabs "
            "between the columns of --by (default: select partitions privately)",
        )


def read_partitions(path: str, by: Sequence[str]) -> pa.Table:
    """The public partitions in a file: a key a line, tabs between its columns; empty lines are skipped.

    Returns:
        one string column for each name in ``by``.

    Raises:
        ArgumentError: no file system knows the path.
        InputError: a line has another number of columns or is no UTF-8 (names its number), or there is no key.
        ResourceError: the file cannot be read.
    """
    require_file_system("--public_partitions", path)
    name = last_component(path)
    with contextlib.closing(open_input(InputFile(local_absolute(path), name, size=0))) as stream, reading(name):
        lines, _ = split_lines(LineBlock(stream.read().removeprefix(BOM), 0))
    numbers = np.flatnonzero(pc.greater(pc.binary_length(lines), 0).to_numpy(zero_copy_only=False))
    keys = lines.take(pa.array(numbers))
    if not len(keys):
        raise InputError(f"--public_partitions: there is no key in {name}")
    invalid = invalid_utf8(keys)
    if invalid:
        raise InputError(f"--public_partitions: line {numbers[invalid[0]] + 1} of {name} is no valid UTF-8")
    keys = keys.view(pa.string())
    widths = pc.count_substring(keys, "\t").to_numpy() + 1
    wrong = np.flatnonzero(widths != len(by))
    if len(wrong):
        raise InputError(
            f"--public_partitions: line {numbers[wrong[0]] + 1} of {name} has {widths[wrong[0]]} columns between tabs, "
            f"but --by names {len(by)}"
        )
    values = pc.split_pattern(keys, "\t").flatten()
    places = np.arange(len(keys)) * len(by)
    return pa.table([values.take(pa.array(places + i)) for i in range(len(by))], names=list(by))


def build(pipeline: beam.Pipeline, ledger: Ledger, options: PipelineOptions) -> None:
    """Adds read, aggregate and publish to ``pipeline``."""
    require_flags(options, "privacy_unit", "by")
    own, units = options.view_as(AggregateOptions), options.view_as(UnitOptions)
    by, metrics = names_in(own.by), metrics_from(options)
    if any(not isinstance(metric, PrivacyUnitCount) for metric in metrics):
        require_flags(options, "max_rows_per_partition")
    public = None
    if own.public_partitions is not None:
        _require_no_selection(units, bool(metrics))
        public = read_partitions(own.public_partitions, by)
    aggregate = aggregate_from(options, unit_files(options), by, metrics, public)
    numbers = [s.column for metric in metrics for s in metric.statistics.values() if s.column is not None]
    source = unit_source(options, by, numbers)
    read = pipeline | "Read" >> source.with_rejects()
    released = with_unit(read.batches, source, units.privacy_unit) | "Aggregate" >> aggregate
    publish(released | "Order" >> InKeyOrder(by), read.rejected, source=source, ledger=ledger, options=options)


def _require_no_selection(units: UnitOptions, has_metrics: bool) -> None:
    """Refuses what says something about private selection where the partitions are public."""
    for flag, value in (("--selection", units.selection), ("--pre_threshold", units.pre_threshold)):
        if value is not None:
            raise ArgumentError(f"{flag} is about private selection, but --public_partitions is given: leave one out")
    if not has_metrics:
        raise ArgumentError(f"--metrics={NO_METRICS} with --public_partitions would release nothing: name a metric")


def main(argv: list[str]) -> None:
    """Parses the options, runs the pipeline, and says what was done."""
    options = parse_options(argv, AggregateOptions, description=str(__doc__))
    run_pipeline(
        options,
        build,
        name="aggregate",
        doing="aggregating",
        done=lambda count: f"{count('rows'):,} partitions released",
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
