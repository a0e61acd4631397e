"""`Aggregate`: differentially private statistics of groups of rows, with a privacy unit that has many rows.

The graph: `beam_dp.aggregate.sums` gives the exact sums of a block of partitions; a block is selected and noised in one
call, and made firm by a reshuffle, so that of several attempts one alone is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.transforms import trigger, window
from apache_beam.transforms.display import DisplayDataItem

from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.grants import Grant, require_grant
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.pipeline import full_label, leave_usage, ledger_of
from beam_dp.accounting.shares import Share
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.budget import SELECTION, Budget, PrivateSelection, Selection
from beam_dp.aggregate.metrics import Metric, shared_statistics
from beam_dp.aggregate.noise import GaussianNoise, LaplaceNoise, NoiseFamily
from beam_dp.aggregate.partials import zeros
from beam_dp.aggregate.planning import Planner
from beam_dp.aggregate.public import public_partitions
from beam_dp.aggregate.release import AggregationPlan, release_block
from beam_dp.aggregate.rows import batch_to_dicts, batch_to_rows, row_hint
from beam_dp.aggregate.sums import (
    BUCKETS_PER_BLOCK,
    DEFAULT_BUCKETS,
    SumWork,
    as_batches,
    block_sums,
    bounded_sums,
    materialised,
)
from beam_dp.aggregate.windows import FirstWindow, require_windows, window_limit
from beam_dp.errors import (
    ArgumentError,
    describe_kind,
    require_choice,
    require_count,
)
from beam_dp.io import batches as _coder  # noqa: F401  (registers the coder of RecordBatch)
from beam_dp.io.rows import infer_kind
from beam_dp.randomness import SecureSource

KINDS = ("dict", "row", "record_batch")
MOST_BUCKETS = 1 << 16
NOISES: dict[str, type[LaplaceNoise] | type[GaussianNoise]] = {"laplace": LaplaceNoise, "gaussian": GaussianNoise}


class Aggregate(beam.PTransform):
    """(ε, δ)-differentially private statistics for each partition, that is for each distinct value of ``by``.

    ``rows | Aggregate(by=["item"], privacy_unit="user", bounds=Bounds(partitions=4, rows_per_partition=2),
    metrics=[Count(), Mean("amount", 0, 100)], budget=Budget(epsilon=1, delta=1e-6))`` takes a PCollection of dict,
    NamedTuple or `beam.Row`, or `pyarrow.RecordBatch` (fastest), and gives the same kind back, one row a partition: the
    columns of ``by``, then for each metric its estimate, ``_noise_stddev``, ``_ci_low`` and ``_ci_high``.

    The promise is to one privacy unit, with all of her rows added or removed: the bounds are enforced, by uniform
    sampling; values are clamped and quantised; noise is exact and of integers (the proof: `beam_dp.aggregate.noise`).
    Rows without a unit are dropped. No number, of whatever kind or size, makes an error. A key that is of another kind
    than the others of its column does, where no public list says which kind is wanted; it is not named.

    Each run draws anew and spends anew, also one that fails.

    Args:
        by: the key columns; integers, strings, booleans, dates, timestamps, or in batches decimals.
        privacy_unit: the column that says whose a row is; of a type as ``by``.
        bounds: how much of one unit's rows is used.
        metrics: what to show of each partition; none for the keys alone (private selection then is the release).
        budget: what all of it may spend on one unit in one window; or a `Share` of what the ledger declares, for what
            it may spend on her in all windows together, which needs ``max_windows`` where there are several.
        partitions: `PrivateSelection` (partitions are shown if enough units are in them), or the public partitions: a
            list of keys (tuples where ``by`` has several columns), or a table with the columns of ``by``. All of them
            are shown, absent ones as noised zeros; others are dropped.
        noise: ``laplace`` or ``gaussian``.
        buckets: how many parts the units are cut into, each of which one worker holds in memory: some million rows a
            bucket are good. Larger ones spill to the worker's disk.
        max_windows: on fixed windows, in how many of them one unit has rows at most; unless it is declared, the ledger
            states no epsilon for all windows together. Without meaning in the global window.
        first_window: an instant (Beam's Timestamp, a datetime with a time zone, or RFC 3339 text) in the first of the
            ``max_windows`` consecutive fixed windows that are released; rows of all others are dropped before anything
            else. None on unbounded input: the window in which the graph is constructed, that is of the launch; a
            backlog from before it is dropped, so name the window where a job goes on where another one stopped. None on
            bounded input: all windows are released, and nothing enforces ``max_windows``.
        input_kind: ``dict``, ``row`` or ``record_batch``, where the PCollection does not declare its type.
        ledger: where the releases are recorded; needed on a plain `beam.Pipeline` (which must run once), else the
            pipeline's own.

    Raises:
        ArgumentError: at construction, for whatever can never work; when applied, for windows or triggers that would
            release a partition twice, and for a share that cannot be drawn, or cannot be split as needed.
        InputError: in a worker: a column is missing, of a type that cannot serve, or of two types.
        GrantError: when applied, if there is no ledger.
    """

    def __init__(
        self,
        by: str | Sequence[str],
        *,
        privacy_unit: str,
        bounds: Bounds,
        metrics: Sequence[Metric],
        budget: Budget | Share,
        partitions: Selection | Sequence[Any] | pa.Table = PrivateSelection(),  # noqa: B008  (a frozen value)
        noise: str | NoiseFamily = "laplace",
        buckets: int = DEFAULT_BUCKETS,
        max_windows: int | None = None,
        first_window: FirstWindow | None = None,
        input_kind: str | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        keys = _names("by", by)
        if not isinstance(privacy_unit, str) or not privacy_unit:
            raise ArgumentError(f"privacy_unit must be the name of a column, not {describe_kind(privacy_unit)}")
        selection = cast(Selection, partitions) if _is_selection(partitions) else None
        self._public = None if selection is not None else public_partitions(partitions, keys)
        chosen = _metrics(metrics, keys)
        if not chosen and selection is None:
            raise ArgumentError("metrics must not be empty where the partitions are public: nothing would be released")
        family = _family(noise)
        self._planner = Planner(keys, privacy_unit, bounds, chosen, selection, family, budget)
        self._plan = self._planner.preliminary
        self._schema = result_schema(self._plan)
        self._budget = budget
        self._buckets = require_buckets(buckets)
        self._max_windows, self._first_window = require_windows(max_windows, first_window)
        self._input_kind = None if input_kind is None else require_choice("input_kind", input_kind, KINDS)
        self._ledger = ledger

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Records the ledger entries and builds the graph."""
        kind = require_choice("input_kind", self._input_kind or infer_kind(pcoll.element_type), KINDS)
        in_one_window = require_firing_once(pcoll, "Aggregate")
        if self._public is not None and not in_one_window:
            raise ArgumentError(
                "partitions: public partitions need the global window, since which windows have rows would show; "
                "select privately, or put the window's start into a column of by"
            )
        ledger, label = ledger_of(pcoll, self._ledger), full_label(pcoll.pipeline, self.label)
        windows = 1 if in_one_window else self._max_windows
        limit = window_limit(pcoll, self._max_windows, self._first_window)
        plan = self._plan = replace(self._planner.final(ledger, label, windows), windows=limit)
        work = SumWork(plan, self._public, self._buckets, max(1, self._buckets // BUCKETS_PER_BLOCK), in_one_window)
        grants = record_plan(plan, ledger, label, max_applications=windows)
        sums, types = bounded_sums(as_batches(within_limit(pcoll, plan, grants), kind, work), work)
        fn = _Release(work, plan, grants)
        outputs = sums | "Release" >> beam.ParDo(fn, pvalue.AsIter(types)).with_outputs(USAGE, main="released")
        leave_usage(fn, outputs[USAGE])
        outputs.released.element_type = beam.typehints.KV[int, pa.RecordBatch]
        released = materialised(outputs.released)
        if kind == "dict":
            return released | "ToDicts" >> beam.FlatMap(batch_to_dicts).with_output_types(dict[str, Any])
        if kind == "row":
            hint = row_hint(self._schema, pcoll.element_type, plan.by)
            return released | "ToRows" >> beam.FlatMap(batch_to_rows).with_output_types(hint)
        return released

    def display_data(self) -> dict[str, Any]:
        """Metrics, bounds and budget, for the runner's user interface."""
        plan = self._plan
        public = None if self._public is None else f"{len(self._public)} public partitions"
        return {
            "by": DisplayDataItem(", ".join(plan.by), label="Partitions by"),
            "privacy_unit": DisplayDataItem(plan.privacy_unit, label="Privacy unit"),
            "metrics": DisplayDataItem(", ".join(map(repr, plan.metrics)), label="Metrics"),
            "bounds": DisplayDataItem(repr(plan.bounds), label="Contribution bounds"),
            "budget": DisplayDataItem(repr(self._budget), label="Budget"),
            "partitions": DisplayDataItem(public or repr(plan.selection and plan.selection.rule), label="Partitions"),
        }


class SelectPartitions(Aggregate):
    """The keys that enough privacy units have, and nothing else of them; see `Aggregate` for the arguments.

    Args:
        by: the key columns.
        privacy_unit: the column that says whose a row is.
        max_partitions: L0, the most partitions of one unit that are used.
        budget: delta above 0; or a `Share` with one.
        selection: how.
        buckets: see `Aggregate`.
        max_windows: see `Aggregate`.
        first_window: see `Aggregate`.
        input_kind: see `Aggregate`.
        ledger: see `Aggregate`.
    """

    def __init__(
        self,
        by: str | Sequence[str],
        *,
        privacy_unit: str,
        max_partitions: int,
        budget: Budget | Share,
        selection: Selection = PrivateSelection(),  # noqa: B008  (a frozen value)
        buckets: int = DEFAULT_BUCKETS,
        max_windows: int | None = None,
        first_window: FirstWindow | None = None,
        input_kind: str | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(
            by,
            privacy_unit=privacy_unit,
            bounds=Bounds(partitions=max_partitions, rows_per_partition=1),
            metrics=(),
            budget=budget,
            partitions=require_selection(selection),
            buckets=buckets,
            max_windows=max_windows,
            first_window=first_window,
            input_kind=input_kind,
            ledger=ledger,
        )


def _names(name: str, value: object) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
    if not names or len(set(names)) != len(names) or not all(isinstance(item, str) and item for item in names):
        raise ArgumentError(f"{name} must be one or more different names of columns")
    return names


def _is_selection(partitions: object) -> bool:
    methods = (getattr(partitions, name, None) for name in ("rule", "guarantee", "loss"))
    return not isinstance(partitions, type) and all(map(callable, methods))


def require_selection(selection: object) -> Selection:
    """``selection`` if it is a way to select partitions.

    Raises:
        ArgumentError: it is something else.
    """
    if not _is_selection(selection):
        raise ArgumentError(f"selection must be a PrivateSelection(...), not {describe_kind(selection)}")
    return cast(Selection, selection)


def require_buckets(buckets: object) -> int:
    """``buckets`` if it is a number of them that a runner can handle.

    Raises:
        ArgumentError: it is not.
    """
    number = require_count("buckets", buckets)
    if number > MOST_BUCKETS:
        raise ArgumentError(f"buckets must be at most {MOST_BUCKETS:,}")
    return number


def _family(noise: str | NoiseFamily) -> NoiseFamily:
    if isinstance(noise, str):
        return NOISES[require_choice("noise", noise, tuple(NOISES))]()
    if isinstance(noise, type) or not callable(getattr(noise, "plan", None)) or not hasattr(noise, "needs_delta"):
        raise ArgumentError(f"noise must be one of {', '.join(NOISES)}, not {describe_kind(noise)}")
    return noise


def _metrics(metrics: object, by: tuple[str, ...]) -> tuple[Metric, ...]:
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise ArgumentError(f"metrics must be a list of metrics such as Count(), not {describe_kind(metrics)}")
    for metric in metrics:
        if isinstance(metric, type) or not all(hasattr(metric, name) for name in ("statistics", "columns", "title")):
            raise ArgumentError(f"metrics must hold metrics such as Count(), not {describe_kind(metric)}")
    titles = [*by, *(metric.title for metric in metrics)]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ArgumentError(f"two columns of the output would be {twice!r}: give a metric another name=")
    return shared_statistics(metrics)


def require_firing_once(pcoll: beam.PCollection, what: str) -> bool:
    """Whether ``pcoll`` is in the global window, if each of its windows fires once.

    Raises:
        ArgumentError: windows that overlap, merge or may fire twice, or an unbounded global window.
    """
    windowing = pcoll.windowing
    in_one = isinstance(windowing.windowfn, window.GlobalWindows)
    if not in_one and not isinstance(windowing.windowfn, window.FixedWindows):
        raise ArgumentError(f"{what} takes global or fixed windows: in others a row counts more than once")
    fires = windowing.triggerfn
    once = isinstance(fires, trigger.DefaultTrigger) or fires == trigger.AfterWatermark()
    if not once or windowing.allowed_lateness > 0:
        raise ArgumentError(
            f"{what} needs a trigger that fires once a window: the default one, without allowed lateness; it would "
            "release a partition twice"
        )
    if in_one and not pcoll.is_bounded:
        raise ArgumentError(f"{what} on unbounded input needs fixed windows: the global window never ends")
    return in_one


def _fingerprints(plan: AggregationPlan) -> list[tuple[str, str]]:
    """What runs, for the comparison with the ledger: (name, fingerprint) of the selection and of each release."""
    names = [*(() if plan.selection is None else (SELECTION,)), *(release.label for release in plan.releases)]
    enforced = f"{plan.bounds!r} {plan.privacy_unit}"
    if plan.windows is not None:
        enforced += f" {plan.windows!r}"
    return [(name, f"{item!r} {enforced}") for name, item in zip(names, plan.items, strict=True)]


def record_plan(
    plan: AggregationPlan, ledger: Ledger, label: str, *, max_applications: int | None, enforced: bool = True
) -> tuple[Grant, ...]:
    """One ledger entry, and its grant, for the selection and for each release.

    Args:
        plan: what is released.
        ledger: where.
        label: of the transform.
        max_applications: how many windows a unit is in; None if unknown.
        enforced: whether contribution bounds are enforced, or what the caller says of the data.
    """
    grants: list[Grant] = []
    for (name, fingerprint), item in zip(_fingerprints(plan), plan.items, strict=True):
        grant = ledger.record(
            label=f"{label}/{name}",
            mechanism=item.mechanism,
            guarantee=item.guarantee,
            max_applications=max_applications,
            fingerprint=fingerprint,
            loss=item.loss,
            # For all of them together, so it stands once.
            composition_delta=0.0 if grants else plan.composition_delta,
            share=plan.share,
            parameters=item.parameters() | bounds_parameters(plan, enforced),
        )
        grants.append(grant)
    return tuple(grants)


def bounds_parameters(plan: AggregationPlan, enforced: bool) -> dict[str, Any]:
    """What the ledger says of the privacy unit and its bounds."""
    bounds, windows = plan.bounds, plan.windows
    how = _how(enforced)
    limit = {} if windows is None else {"windows": windows.parameters() | {"hold": _how(windows.enforced)}}
    return limit | {
        "neighbours": f"all rows of one {plan.privacy_unit} added or removed",
        "bounds": {"partitions": bounds.partitions, "rows_per_partition": bounds.rows_per_partition, "hold": how},
        "composition_over_partitions": f"{'parallel' if bounds.partitions == 1 else 'basic'}: a unit is in at most "
        f"{bounds.partitions} of them, {how}",
    }


def _how(enforced: bool) -> str:
    return "by enforcement" if enforced else "as the caller declares: nothing enforces it"


def granted_releases(plan: AggregationPlan, grants: Sequence[Grant]) -> list[tuple[Grant | None, str]]:
    """The grant and the fingerprint of the selection and of each release; no grant at all if their numbers differ."""
    fingerprints = [fingerprint for _, fingerprint in _fingerprints(plan)]
    return list(zip(grants, fingerprints, strict=True)) if len(grants) == len(fingerprints) else [(None, "")]


def result_schema(plan: AggregationPlan) -> pa.Schema:
    """The columns of the output; keys, whose types the data decide, as null.

    Raises:
        ArgumentError: two would have one name.
    """
    unselected = replace(plan, selection=None)
    nothing = zeros(unselected, [pa.nulls(0) for _ in plan.by])
    return release_block(unselected, nothing, SecureSource().generator).schema


def within_limit(rows: beam.PCollection, plan: AggregationPlan, grants: Sequence[Grant]) -> beam.PCollection:
    """``rows`` without those of windows that the plan does not release."""
    if plan.windows is None or not plan.windows.enforced:
        return rows
    return rows | "KeepWindows" >> beam.ParDo(_KeepWindows(plan, grants)).with_output_types(rows.element_type)


class _KeepWindows(beam.DoFn):
    """Drops what is in a window that is not released, whatever it is."""

    def __init__(self, plan: AggregationPlan, grants: Sequence[Grant]) -> None:
        self._plan = plan
        self._grants = grants

    def setup(self) -> None:
        for grant, fingerprint in granted_releases(self._plan, self._grants):
            require_grant(grant).check(fingerprint)

    def process(self, element: Any, within: Any = beam.DoFn.WindowParam) -> Iterable[Any]:
        windows = self._plan.windows
        assert windows is not None
        return (element,) if windows.keeps(within.start.micros, within.end.micros) else ()


class _Release(DrawingDoFn):
    """(block, partial sums) to noisy rows: the one place where noise is drawn."""

    def __init__(self, work: SumWork, plan: AggregationPlan, grants: Sequence[Grant]) -> None:
        super().__init__()
        self._work = work
        self._plan = plan
        self._grants = grants

    def granted(self) -> list[tuple[Grant | None, str]]:
        return granted_releases(self._plan, self._grants)

    def process(
        self, block: tuple[int, Iterable[pa.RecordBatch]], types: Iterable[bytes]
    ) -> Iterator[tuple[int, pa.RecordBatch] | pvalue.TaggedOutput]:
        # Of windows there may be many; of the blocks of one, each is drawn once.
        yield from self.usage(piece=block[0] if self._work.in_one_window else None)
        sums = block_sums(self._work, block[0], block[1], types)
        released = release_block(self._plan, sums, self.rng)
        # Of fixed windows, only those with partitions to show may be seen.
        if self._work.in_one_window or released.num_rows:
            yield block[0], released
