"""The graph up to the exact sums: buckets of units, contribution bounding, blocks of partitions.

Rows are cut by hash(unit) into buckets and meet once, in one GroupByKey of Arrow slices; a bucket is bounded and added
up to partial sums of partitions; these meet in a second GroupByKey by hash(partition) in blocks, in which every
partition is whole.

The samples of bounding are drawn anew by each attempt. So a runner that computes a bundle of it again must also run
again all that read the first attempt, as Flink's region failover is documented to do, for this very reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.transforms.window import BoundedWindow, GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.aggregate.buckets import Columns, bucket_sums, cut, cut_by_unit
from beam_dp.aggregate.columns import common_type, hash_keys
from beam_dp.aggregate.partials import Merger, Partials, SumPlan, merge, zeros
from beam_dp.aggregate.public import PublicPartitions
from beam_dp.aggregate.rows import RowsToBatches, WindowedRowsToBatches
from beam_dp.errors import BeamDpError, InputError
from beam_dp.io import batches as _coder  # noqa: F401  (registers the coder of RecordBatch)
from beam_dp.randomness import SecureSource

DEFAULT_BUCKETS = 64
BUCKETS_PER_BLOCK = 8

_TYPES = "types"
# Rows that a worker holds before it cuts them into slices: some hundred a slice, however many buckets there are.
_LEAST_HELD_ROWS = 1 << 19
_MOST_HELD_ROWS = 1 << 22
_SLICE_ROWS = 256
_FLUSH_PARTITIONS = 1 << 20


@dataclass(frozen=True)
class SumWork:
    """What the DoFns carry to the workers.

    Attributes:
        plan: what is bounded and added up.
        public: the partitions, where they are public; rows of others are dropped.
        buckets: into how many parts the units are cut.
        blocks: into how many parts the partitions are cut.
        in_one_window: whether all rows are in the global window.
    """

    plan: SumPlan
    public: PublicPartitions | None
    buckets: int
    blocks: int
    in_one_window: bool


def as_batches(rows: beam.PCollection, kind: str, work: SumWork) -> beam.PCollection:
    """Rows of a kind as batches of the columns that the plan needs; batches as they are."""
    if kind == "record_batch":
        return rows
    columns = Columns.of(work.plan)
    types = {} if work.public is None else dict(zip(columns.by, work.public.types, strict=True))
    types.pop(columns.unit, None)
    in_one_window = isinstance(rows.windowing.windowfn, GlobalWindows)
    door = (RowsToBatches if in_one_window else WindowedRowsToBatches)(
        kind, rows.element_type, columns.key_names, columns.numbers, types
    )
    return rows | "Batch" >> beam.ParDo(door).with_output_types(pa.RecordBatch)


def bounded_sums(rows: beam.PCollection, work: SumWork) -> tuple[beam.PCollection, beam.PCollection]:
    """Batches to exact sums.

    Returns:
        (block, its partial sums), grouped, every block once a window; and the key types that occur: both for
        `block_sums`.
    """
    cut_up = rows | "Cut" >> beam.ParDo(_Cut(work)).with_outputs(_TYPES, main="slices")
    cut_up.slices.element_type = beam.typehints.KV[int, pa.RecordBatch]
    cut_up[_TYPES].element_type = bytes
    sums = (
        cut_up.slices
        | "GroupUnits" >> beam.GroupByKey()
        | "Bound" >> beam.ParDo(_Bound(work)).with_output_types(tuple[int, pa.RecordBatch])
    )
    if work.in_one_window:
        # Every block is released, also one without rows.
        empty = beam.FlatMap(_empty_blocks, work.blocks).with_output_types(tuple[int, pa.RecordBatch])
        every = rows.pipeline | "Once" >> beam.Impulse() | "Blocks" >> empty
        sums = (sums, every) | "Flatten" >> beam.Flatten()
    return sums | "GroupPartitions" >> beam.GroupByKey(), cut_up[_TYPES]


def _empty_blocks(_: bytes, blocks: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    for block in range(blocks):
        yield block, pa.RecordBatch.from_arrays([], names=[])


def materialised(released: beam.PCollection) -> beam.PCollection:
    """(block, batch) as batches, made firm: whatever comes after sees one attempt of the draws."""
    grouped = released | "Materialise" >> beam.GroupByKey()
    return grouped | "Batches" >> beam.FlatMapTuple(_batches_of_block).with_output_types(pa.RecordBatch)


def _batches_of_block(_: int, batches: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    return batches


class _Cut(beam.DoFn):
    """Batches to (bucket, slice): the columns needed, the rows of public partitions, large slices."""

    def __init__(self, work: SumWork) -> None:
        self._work = work
        self._columns = Columns.of(work.plan)
        self._most_rows = min(max(_SLICE_ROWS * work.buckets, _LEAST_HELD_ROWS), _MOST_HELD_ROWS)

    def start_bundle(self) -> None:
        self._held: dict[BoundedWindow, list[pa.RecordBatch]] = {}
        self._rows = 0
        self._types: dict[BoundedWindow, dict[bytes, None]] = {}

    def process(
        self, batch: pa.RecordBatch, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[tuple[int, pa.RecordBatch]]:
        there = batch.schema.names
        wrong = [n for n in (*self._columns.key_names, *self._columns.numbers) if there.count(n) != 1]
        if wrong:
            how_often = "more than one" if wrong[0] in there else "no"
            raise InputError(f"{how_often} column {wrong[0]!r} in the input; a batch must have each that is named once")
        selected = self._columns.select(batch)
        keys = pa.schema([selected.schema.field(i) for i in range(1 + len(self._columns.by))])
        self._types.setdefault(window, {})[keys.serialize().to_pybytes()] = None
        self._held.setdefault(window, []).append(selected)
        self._rows += selected.num_rows
        return self._flush(window) if self._rows >= self._most_rows else ()

    def finish_bundle(self) -> Iterator[WindowedValue | pvalue.TaggedOutput]:
        for one, types in self._types.items():
            for kinds in types:
                yield pvalue.TaggedOutput(_TYPES, WindowedValue(kinds, one.max_timestamp(), (one,)))
        for one in list(self._held):
            for item in self._flush(one):
                yield WindowedValue(item, one.max_timestamp(), (one,))

    def _flush(self, window: BoundedWindow) -> Iterator[tuple[int, pa.RecordBatch]]:
        held = self._held.pop(window, [])
        self._rows -= sum(batch.num_rows for batch in held)
        if held:
            rows = self._columns.concat(held)
            if self._work.public is not None:
                rows = self._work.public.keep(rows, self._columns.keys(rows), self._columns.by)
            yield from cut_by_unit(self._columns, rows, self._work.buckets)


class _Bound(beam.DoFn):
    """(bucket, slices) to (block, partial sums); sums of several buckets are added before they go on."""

    def __init__(self, work: SumWork) -> None:
        self._work = work

    def setup(self) -> None:
        self._source = SecureSource()

    def start_bundle(self) -> None:
        self._source.rekey()
        self._mergers: dict[BoundedWindow, Merger] = {}

    def process(
        self, bucket: tuple[int, Iterable[pa.RecordBatch]], window: Any = beam.DoFn.WindowParam
    ) -> Iterable[tuple[int, pa.RecordBatch]]:
        merger = self._mergers.setdefault(window, Merger(self._work.plan.by))
        merger.add(bucket_sums(self._work.plan, bucket[1], self._work.buckets, self._source.generator))
        return self._flush(merger) if len(merger) > _FLUSH_PARTITIONS else ()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for one, merger in self._mergers.items():
            for item in self._flush(merger):
                yield WindowedValue(item, one.max_timestamp(), (one,))

    def _flush(self, merger: Merger) -> Iterator[tuple[int, pa.RecordBatch]]:
        # Every block, in order: which of them a runner meets first, and so their order in the output, must not be what
        # the data decide.
        yield from _empty_blocks(b"", self._work.blocks)
        sums = merger.result()
        if sums is not None and len(sums):
            yield from cut(sums.to_batch(), blocks_of(sums.keys, self._work.blocks), self._work.blocks)


def blocks_of(keys: Sequence[pa.Array], blocks: int) -> np.ndarray:
    """The block of each partition, (P,) int64."""
    # Other bits than those that make buckets of units: a unit may be its own partition.
    return (hash_keys(keys) // np.uint64(1 << 32) % np.uint64(blocks)).astype(np.int64)


def block_sums(work: SumWork, block: int, batches: Iterable[pa.RecordBatch], types: Iterable[bytes]) -> Partials:
    """The whole sums of a block: all of its public partitions, or all that have rows.

    Raises:
        InputError: key columns were of different types in different batches, so that one unit may have counted as two.
    """
    plan = work.plan
    schemas = [pa.ipc.read_schema(pa.py_buffer(kind)) for kind in types]
    names = Columns.of(plan).key_names
    _, *found = [common_type([schema.field(i).type for schema in schemas], name) for i, name in enumerate(names)]
    merger = Merger(plan.by)
    merger.add(Partials.from_batch(batch) for batch in batches if batch.num_rows)
    sums = merger.result()
    if work.public is None:
        # Also where no row of this block has a key of its own: all blocks are of one type.
        kinds = [pa.string() if pa.types.is_null(kind) else kind for kind in found]
        if sums is None:
            return zeros(plan, [pa.array([], kind) for kind in kinds])
        return replace(sums, keys=tuple(key.cast(kind) for key, kind in zip(sums.keys, kinds, strict=True)))
    keys = work.public.typed(found, plan.by)
    mine = pa.array(blocks_of(keys, work.blocks) == block)
    public = zeros(plan, [key.filter(mine) for key in keys])
    if sums is None:
        return public
    whole = merge([public, sums], plan.by)
    if len(whole) != len(public):
        raise BeamDpError("a block has partitions that are not public")
    return whole
