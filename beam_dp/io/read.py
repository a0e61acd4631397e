"""`ReadBatches`: files of any supported format as RecordBatches, split over workers where the format allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput

from beam_dp.accounting.pipeline import LedgerPipeline
from beam_dp.errors import ArgumentError, InputError, require_count
from beam_dp.io.batches import Position, split_by_size, with_position
from beam_dp.io.files import InputFile, find_inputs, local_absolute
from beam_dp.io.formats import TEXT_COLUMN, common_format, is_splittable, quoted
from beam_dp.io.read_csv import check_csv, read_csv
from beam_dp.io.read_jsonl import check_jsonl, read_jsonl
from beam_dp.io.read_parquet import check_parquet, read_parquet
from beam_dp.io.read_text import check_text, check_tsv, read_text, read_tsv
from beam_dp.io.rejects import METRICS_NAMESPACE, count_reasons, rejects_batch
from beam_dp.io.source import Decoded, FileRange, ReadSpec, empty_batch

BATCHES = "batches"
REJECTED = "rejected"

BATCH_ROWS = 1 << 14
BATCH_BYTES = 8 << 20
_PIECES = 64
_LEAST_SPLIT_BYTES = 1 << 20
_MOST_SPLIT_BYTES = 64 << 20
MAX_ROW_BYTES = 256 << 20
_LARGEST_MAX_ROW_BYTES = 1 << 30


class _Format(NamedTuple):
    check: Callable[[InputFile, ReadSpec], ReadSpec]
    read: Callable[[FileRange, ReadSpec], Iterator[Decoded]]


_READERS = {
    "text": _Format(check_text, read_text),
    "jsonl": _Format(check_jsonl, read_jsonl),
    "csv": _Format(check_csv, read_csv),
    "tsv": _Format(check_tsv, read_tsv),
    "parquet": _Format(check_parquet, read_parquet),
}


class ReadResult(NamedTuple):
    """What `ReadBatches.with_rejects` gives.

    Attributes:
        batches: the rows; each batch carries its `Position`.
        rejected: batches of `REJECTS_SCHEMA`: which rows were rejected and why, never what they held.
    """

    batches: beam.PCollection[pa.RecordBatch]
    rejected: beam.PCollection[pa.RecordBatch]


@dataclass(frozen=True)
class _Source:
    """Everything that cutting the input into pieces depends on."""

    pattern: str
    paths: frozenset[str]
    format: str
    split_bytes: int | None


@dataclass(frozen=True)
class Piece:
    """A unit of work: ranges that follow each other in the input.

    Attributes:
        index: place in the order of the input.
        ranges: small files share a piece, large files make several.
    """

    index: int
    ranges: tuple[FileRange, ...]


def plan_pieces(files: Sequence[InputFile], format: str, split_bytes: int | None) -> Iterator[Piece]:
    """Cuts sorted files into pieces of about ``split_bytes`` stored bytes that together own every byte once.

    None means some 64 pieces, so that many workers find work, but of 1 to 64 MiB each.
    """
    if split_bytes is None:
        split_bytes = sum(file.size for file in files) // _PIECES
        split_bytes = min(max(split_bytes, _LEAST_SPLIT_BYTES), _MOST_SPLIT_BYTES)
    index, size = 0, 0
    ranges: list[FileRange] = []
    for source, file in enumerate(files):
        if is_splittable(format, file.is_compressed) and file.size > split_bytes:
            starts = range(0, file.size, split_bytes)
            parts = [FileRange(file, source, start, min(start + split_bytes, file.size)) for start in starts]
        else:
            parts = [FileRange(file, source)]
        for part in parts:
            part_size = (file.size if part.end is None else part.end) - part.start
            if ranges and size + part_size > split_bytes:
                yield Piece(index, tuple(ranges))
                index, size, ranges = index + 1, 0, []
            ranges.append(part)
            size += part_size
    if ranges:
        yield Piece(index, tuple(ranges))


def read_piece(piece: Piece, format: str, spec: ReadSpec) -> Iterator[tuple[str, pa.RecordBatch]]:
    """What a piece holds, as (``batches``, rows) and (``rejected``, rejects), each with its position, cut to size.

    A piece without rows gives one batch without rows, so that a sink knows the columns.
    """
    empty: pa.RecordBatch | None = None
    has_rows = False
    for part in piece.ranges:
        for decoded in _READERS[format].read(part, spec):
            batch = decoded.batch
            for start, rows in split_by_size(batch, spec.batch_rows, spec.batch_bytes) if batch.num_rows else ():
                has_rows = True
                yield BATCHES, with_position(rows, Position(part.source, int(decoded.positions[start]), piece.index))
            empty = batch if empty is None and not has_rows else empty
            if decoded.rejects:
                position = Position(part.source, decoded.rejects[0].position or 0, piece.index)
                yield REJECTED, with_position(rejects_batch(decoded.rejects, part.file.name), position)
    if not has_rows:
        position = Position(piece.ranges[0].source, piece.ranges[0].start, piece.index)
        yield BATCHES, with_position((empty_batch(spec) if empty is None else empty).slice(0, 0), position)


class ReadBatches(beam.PTransform):
    """Reads the files that match a glob as a PCollection of `pyarrow.RecordBatch`.

    A row that cannot be read (broken JSON, no valid UTF-8, a wrong number of columns) is *rejected*: it fails the
    pipeline, unless `with_rejects` asks for rejected rows as a second output.

    Files are taken in the order of their paths. Uncompressed text, jsonl and tsv files are split by bytes and parquet
    files by row groups; a compressed file or a csv file is read by one worker. Memory holds about one batch, or one row
    where a row is larger.

    Values come out as they stand in the file: csv and tsv columns are strings (an empty value is ``""``), parquet
    columns have the type that the file says, jsonl columns the type that their first values show. A file of
    format text has one column, ``text``.

    Args:
        pattern: a glob of Beam's FileSystems, e.g. ``/data/part-*.jsonl.gz`` or ``gs://bucket/in/*.parquet``.
        format: text, jsonl, csv, tsv or parquet; ``auto`` goes by the extension, which must say the same of all files.
        columns: the columns to read, in the order that batches shall have them.
        text_column: the one of them that is text: it comes out as ``string``, and rows where it is none are rejected.
        keys: those of them that are compared, and
        numbers: those that are reckoned with: of jsonl, which has no types, the former come out as text and the latter
            as numbers or text that spells them, each value read by itself. Otherwise a column has one type, so that a
            value can change how those of other rows are read.
        batch_rows: most rows of a batch.
        batch_bytes: most bytes of a batch of more than one row.
        split_bytes: how many stored bytes a worker takes at a time; None for what suits the size of the input.
        max_row_bytes: rows of text, jsonl and tsv above this are rejected; a csv row above it fails the run.

    Raises:
        ArgumentError: an argument that cannot be right, or a format that the extensions do not tell.
        InputError: no file matches, a column is not there, or the text column holds no text; in a worker: a file that
            is corrupt or truncated, or a rejected row (its reason code, file and position, never what it holds).
        ResourceError: a file cannot be read.
    """

    def __init__(
        self,
        pattern: str,
        *,
        format: str = "auto",
        columns: Sequence[str] = (TEXT_COLUMN,),
        text_column: str | None = None,
        keys: Sequence[str] = (),
        numbers: Sequence[str] = (),
        batch_rows: int = BATCH_ROWS,
        batch_bytes: int = BATCH_BYTES,
        split_bytes: int | None = None,
        max_row_bytes: int = MAX_ROW_BYTES,
    ) -> None:
        super().__init__()
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise ArgumentError("columns must be one or more different names")
        if text_column is not None and text_column not in names:
            raise ArgumentError(f"text_column must be one of columns ({quoted(names)}), not {text_column!r}")
        if not {*keys, *numbers} <= set(names) or text_column in (*keys, *numbers):
            raise ArgumentError(f"keys and numbers must be some of columns ({quoted(names)}), and not the text column")
        row_bytes = require_count("max_row_bytes", max_row_bytes)
        if row_bytes > _LARGEST_MAX_ROW_BYTES:
            raise ArgumentError(f"max_row_bytes must be at most {_LARGEST_MAX_ROW_BYTES}")
        files = find_inputs(pattern)
        self._paths = tuple(file.path for file in files)
        self._source = _Source(
            pattern=local_absolute(pattern),
            paths=frozenset(self._paths),
            format=common_format(format, files),
            split_bytes=None if split_bytes is None else require_count("split_bytes", split_bytes),
        )
        spec = ReadSpec(
            columns=names,
            text_column=text_column,
            batch_rows=require_count("batch_rows", batch_rows),
            batch_bytes=require_count("batch_bytes", batch_bytes),
            max_row_bytes=row_bytes,
            keys=tuple(keys),
            numbers=tuple(numbers),
        )
        first = next((file for file in files if file.size), None)
        self._spec = spec if first is None else _READERS[self._source.format].check(first, spec)
        self._with_rejects = False

    @property
    def format(self) -> str:
        """The format that is read, never ``auto``."""
        return self._source.format

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that matched at construction: these are read, and none that comes later.

        For ``WriteBatches(inputs=...)``, which then spares them.
        """
        return self._paths

    def with_rejects(self) -> ReadBatches:
        """The same transform, which returns `ReadResult` (batches, rejected) instead of failing on a rejected row."""
        twin = ReadBatches.__new__(ReadBatches)
        twin.__dict__.update(self.__dict__, _with_rejects=True)
        return twin

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[pa.RecordBatch] | ReadResult:
        """Plans the pieces, spreads them over the workers, reads them."""
        if isinstance(pbegin.pipeline, LedgerPipeline) and pbegin.pipeline.ledger.budget is not None:
            pbegin.pipeline.ledger.budget.reads(self._paths)
        pieces = pbegin | "Plan" >> beam.Create([self._source]) | "Cut" >> beam.ParDo(_Cut()) | beam.Reshuffle()
        do_fn = _Read(self._source.format, self._spec, fail_on_reject=not self._with_rejects)
        read = pieces | "Read" >> beam.ParDo(do_fn).with_outputs(REJECTED, main=BATCHES)
        for output in (read[BATCHES], read[REJECTED]):
            output.element_type = pa.RecordBatch
        return ReadResult(read[BATCHES], read[REJECTED]) if self._with_rejects else read[BATCHES]

    def display_data(self) -> dict[str, object]:
        """Format and columns."""
        return {"format": self._source.format, "columns": ", ".join(self._spec.columns)}


class _Cut(beam.DoFn):
    def process(self, source: _Source) -> Iterator[Piece]:
        files = [file for file in find_inputs(source.pattern) if file.path in source.paths]
        if len(files) < len(source.paths):
            raise InputError(
                f"input: of {len(source.paths)} files that matched when the pipeline was made, "
                f"{len(source.paths) - len(files)} are gone"
            )
        yield from plan_pieces(files, source.format, source.split_bytes)


class _Read(beam.DoFn):
    def __init__(self, format: str, spec: ReadSpec, *, fail_on_reject: bool) -> None:
        self._format = format
        self._spec = spec
        self._fail_on_reject = fail_on_reject

    def process(self, piece: Piece) -> Iterator[pa.RecordBatch | TaggedOutput]:
        for tag, batch in read_piece(piece, self._format, self._spec):
            if tag == REJECTED:
                for reason, count in count_reasons(batch).items():
                    Metrics.counter(METRICS_NAMESPACE, f"rejects/{reason}").inc(count)
                if self._fail_on_reject:
                    first = batch.slice(0, 1).to_pylist()[0]
                    raise InputError(
                        f"a row was rejected ({first['reason']} in {first['source']} at {first['position']}); "
                        "ReadBatches(...).with_rejects() returns such rows as a second output"
                    )
                yield TaggedOutput(REJECTED, batch)
            else:
                Metrics.counter(METRICS_NAMESPACE, "batches").inc()
                yield batch
