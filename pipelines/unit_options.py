"""Options of the pipelines that release statistics of privacy units, and what they stand for."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import ReadBatches
from beam_dp.aggregate import Aggregate, Bounds, Budget, PrivateSelection
from beam_dp.aggregate.metrics import Metric
from beam_dp.errors import ArgumentError, require_count
from beam_dp.io.files import InputFile, find_inputs
from beam_dp.io.formats import common_format
from pipelines.metrics import NO_METRICS, USAGE, parse_metrics
from pipelines.options import EpsilonOptions, RunOptions, require_flags

_BUCKET_BYTES = 32 << 20
_LEAST_BUCKETS = 16
_MOST_BUCKETS = 1 << 16
_WITHOUT_NULLS = ("csv", "tsv")


class UnitOptions(PipelineOptions):
    """The options of the pipelines that release statistics of privacy units."""

    shared = (EpsilonOptions,)

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--privacy_unit",
            metavar="COLUMN",
            help="the column that says whose a row is; rows without a value there (csv and tsv: an empty one) are "
            "dropped",
        )
        parser.add_argument(
            "--metrics",
            metavar="M,M,...",
            help=f"what to show of each partition; {NO_METRICS} shows the keys alone. The metrics: {USAGE}. Numbers "
            "are clamped to LOW and HIGH; text that is no number counts as none. Selection and what the metrics need "
            "share epsilon equally: --dry_run shows how (default: privacy_unit_count in private_vocabulary; required "
            "in aggregate)",
        )
        parser.add_argument(
            "--max_partitions",
            type=int,
            metavar="N",
            help="use at most N partitions (private_vocabulary: n-grams) of one privacy unit, a random choice",
        )
        parser.add_argument(
            "--max_rows_per_partition",
            type=int,
            metavar="N",
            help="use at most N rows of one privacy unit in a partition, a random choice (default: 1; aggregate "
            "requires it for metrics other than privacy_unit_count)",
        )
        parser.add_argument(
            "--delta",
            type=float,
            default=0.0,
            help="above 0 for private selection of partitions and for gaussian noise (default: 0)",
        )
        parser.add_argument(
            "--noise", choices=("laplace", "gaussian"), default="laplace", help="of the metrics (default: laplace)"
        )
        parser.add_argument(
            "--selection",
            choices=("truncated_geometric", "laplace_threshold"),
            help="how it is decided which partitions are shown (default: truncated_geometric)",
        )
        parser.add_argument(
            "--pre_threshold", type=int, metavar="N", help="never show partitions of fewer privacy units (default: 1)"
        )
        parser.add_argument(
            "--composition",
            choices=("basic", "pld"),
            default="basic",
            help="how the shares of the budget add up to it; pld allows less noise (default: basic)",
        )
        parser.add_argument(
            "--buckets",
            type=int,
            metavar="N",
            help="parts that the privacy units are cut into, each held in memory by a worker (default: one for each "
            f"32 MiB of input, from {_LEAST_BUCKETS} to {_MOST_BUCKETS})",
        )


def buckets_for(stored_bytes: int) -> int:
    """How many buckets suit an input: one for each 32 MiB stored, from 16 to 65,536."""
    return min(max(-(-stored_bytes // _BUCKET_BYTES), _LEAST_BUCKETS), _MOST_BUCKETS)


def metrics_from(options: PipelineOptions, default: str | None = None) -> tuple[Metric, ...]:
    """What ``--metrics`` names; ``default`` where it was not given.

    Raises:
        ArgumentError: it is neither given nor right.
    """
    given = options.view_as(UnitOptions).metrics
    text = default if given is None else given
    if not text:
        raise ArgumentError(f"--metrics is required: write --metrics=count, or --metrics={NO_METRICS} for keys alone")
    return parse_metrics(text)


def unit_files(options: PipelineOptions) -> list[InputFile]:
    """The files that ``--input`` matches.

    Raises:
        ArgumentError: they are of format text, whose one column is not enough for a privacy unit and anything else.
    """
    run = options.view_as(RunOptions)
    files = find_inputs(run.input)
    if common_format(run.format, files) == "text":
        raise ArgumentError("--format: files of format text have one column, but a privacy unit needs one of its own")
    return files


def unit_source(
    options: PipelineOptions, by: Sequence[str] = (), numbers: Sequence[str] = (), text_column: str | None = None
) -> ReadBatches:
    """Reads ``--input``: the column of the privacy unit, those of ``by``, ``numbers`` and texts."""
    run, unit = options.view_as(RunOptions), options.view_as(UnitOptions).privacy_unit
    keys = tuple(dict.fromkeys((unit, *by)))
    numbers = tuple(name for name in dict.fromkeys(numbers) if name not in keys)
    texts = () if text_column is None else (text_column,)
    return ReadBatches(
        run.input,
        format=run.format,
        columns=(*keys, *numbers, *texts),
        text_column=text_column,
        keys=keys,
        numbers=numbers,
    )


def with_unit(batches: beam.PCollection, source: ReadBatches, unit: str) -> beam.PCollection:
    """``batches`` with null for an empty privacy unit where the format has no null of its own.

    Aggregates drop rows whose unit is null. Taken for a unit, the empty string would be everybody without an id.
    """
    if source.format not in _WITHOUT_NULLS:
        return batches
    return batches | "EmptyUnits" >> beam.Map(_null_where_empty, unit).with_output_types(pa.RecordBatch)


def _null_where_empty(batch: pa.RecordBatch, name: str) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    units = columns[name]
    columns[name] = pc.if_else(pc.equal(units, ""), pa.scalar(None, units.type), units)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def aggregate_from(
    options: PipelineOptions,
    files: Sequence[InputFile],
    by: str | Sequence[str],
    metrics: Sequence[Metric],
    public: pa.Table | None = None,
) -> Aggregate:
    """The aggregation that the options ask for.

    Args:
        options: of the command line.
        files: what is read.
        by: the key columns.
        metrics: what to show of each partition.
        public: the public partitions; None to select them privately.

    Raises:
        ArgumentError: an option is missing, out of range, or does not go with another.
    """
    require_flags(options, "privacy_unit", "max_partitions", "epsilon")
    own = options.view_as(UnitOptions)
    buckets = buckets_for(sum(file.size for file in files))
    return Aggregate(
        by,
        privacy_unit=own.privacy_unit,
        bounds=Bounds(
            require_count("--max_partitions", own.max_partitions),
            require_count(
                "--max_rows_per_partition", 1 if own.max_rows_per_partition is None else own.max_rows_per_partition
            ),
        ),
        metrics=metrics,
        budget=Budget(options.view_as(EpsilonOptions).epsilon, _delta(own, public), own.composition),
        partitions=_selection(own) if public is None else public,
        noise=own.noise,
        buckets=buckets if own.buckets is None else require_count("--buckets", own.buckets),
    )


def _delta(own: UnitOptions, public: pa.Table | None) -> float:
    for needed, what in ((public is None, "private selection"), (own.noise == "gaussian", "gaussian noise")):
        if needed and own.delta == 0:
            raise ArgumentError(f"--delta must be above 0 for {what}: write --delta=1e-6")
    return own.delta


def _selection(own: UnitOptions) -> PrivateSelection:
    given = {"strategy": own.selection, "pre_threshold": own.pre_threshold}
    return PrivateSelection(**{name: value for name, value in given.items() if value is not None})
