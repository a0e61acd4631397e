"""Beam idioms for data whose contributions are bounded already: `DPCombinePerKey` and `DPCombineGlobally`.

They are `beam.CombinePerKey` and `beam.CombineGlobally` with noise: elements are (key, value), and nobody says whose
they are. So the bounds are the caller's word, which the ledger repeats; where rows still carry a privacy unit,
`Aggregate` enforces them. The combine functions add up exact integers; the noise is drawn after the combine, once a
key, and made firm by a reshuffle.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import BoundedWindow
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.grants import Grant, require_grant
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.pipeline import full_label, leave_usage, ledger_of
from beam_dp.accounting.shares import Share
from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.budget import Budget, Selection
from beam_dp.aggregate.metrics import Count, Mean, Metric, Sum
from beam_dp.aggregate.noise import LaplaceNoise
from beam_dp.aggregate.partials import Partials
from beam_dp.aggregate.planning import Planner
from beam_dp.aggregate.release import AggregationPlan, release_block
from beam_dp.aggregate.rows import numbers_of
from beam_dp.aggregate.statistics import Rows
from beam_dp.aggregate.transform import (
    granted_releases,
    record_plan,
    require_firing_once,
    require_selection,
    within_limit,
)
from beam_dp.aggregate.windows import FirstWindow, require_windows, window_limit
from beam_dp.errors import ArgumentError, describe_kind, require_count

_VALUE = "value"
_KEY = "key"
_COMPACT_VALUES = 1024
_BLOCK_KEYS = 1 << 14


# How many values came; the exact integers of the dense statistics of those that were added up; those that were not yet.
# A list of plain values, which Beam encodes many times as fast as an object, and which may be changed in place.
Accumulator: TypeAlias = list[Any]
Element: TypeAlias = tuple[Any, ...]


class LaplaceCombineFn(beam.CombineFn):
    """Adds up what one metric needs, exactly; used by `DPCombinePerKey`, and of no use without it.

    By itself, as in ``beam.CombinePerKey(LaplaceCount())``, it refuses to run: what it gives is exact.
    """

    metric: Metric

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._statistics = tuple(metric.statistics.values())
        self._plan: AggregationPlan | None = None
        self._grants: tuple[Grant, ...] = ()
        self._checked = False

    def granted(self, plan: AggregationPlan, grants: tuple[Grant, ...]) -> LaplaceCombineFn:
        """The same with the grants of the release that draws its noise."""
        twin = LaplaceCombineFn(self.metric)
        twin._plan, twin._grants = plan, grants
        return twin

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Checks the grants.

        Raises:
            GrantError: it was not made by `DPCombinePerKey` or `DPCombineGlobally`.
        """
        self._require_grants()

    def _require_grants(self) -> None:
        if self._checked:
            return
        if self._plan is None:
            require_grant(None)
        else:
            for grant, fingerprint in granted_releases(self._plan, self._grants):
                require_grant(grant).check(fingerprint)
        self._checked = True

    def create_accumulator(self) -> Accumulator:
        """Nothing."""
        return [0, [0] * sum(statistic.width for statistic in self._statistics), []]

    def add_input(self, accumulator: Accumulator, element: Element) -> Accumulator:
        """Adds a value, given as a tuple of one; an empty tuple stands for a key without values."""
        if not isinstance(element, tuple):
            # Runners may skip setup where they evaluate a combine outside a worker.
            self._require_grants()
        waiting = accumulator[2]
        waiting.extend(element)
        if len(waiting) >= _COMPACT_VALUES:
            self._add_up(accumulator)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Accumulator]) -> Accumulator:
        """The sum of accumulators."""
        whole = self.create_accumulator()
        for accumulator in accumulators:
            self._add_up(accumulator)
            whole[0] += accumulator[0]
            whole[1] = list(map(operator.add, whole[1], accumulator[1]))
        return whole

    def compact(self, accumulator: Accumulator) -> Accumulator:
        """The accumulator without waiting values."""
        self._add_up(accumulator)
        return accumulator

    def extract_output(self, accumulator: Accumulator) -> tuple[int, list[int]]:
        """The number of values and the exact integers, for the release."""
        self._require_grants()
        self._add_up(accumulator)
        return accumulator[0], accumulator[1]

    def _add_up(self, accumulator: Accumulator) -> None:
        rows_before, sums_before, waiting = accumulator
        count = len(waiting)
        if not count:
            return
        values = numbers_of(waiting).to_numpy()
        rows = Rows(np.zeros(count, np.int64), np.zeros(1, np.int64), {_VALUE: values}, 1)
        sums = [statistic.add_up(rows)[0] for statistic in self._statistics]  # type: ignore[attr-defined]
        more = np.concatenate(sums).tolist()
        accumulator[:] = rows_before + count, list(map(operator.add, sums_before, more)), []


class LaplaceCount(LaplaceCombineFn):
    """The number of values of a key; an int, which noise can make negative."""

    def __init__(self) -> None:
        super().__init__(Count())


class LaplaceSum(LaplaceCombineFn):
    """The sum of the values of a key, each clamped to [low, high]; a float.

    Args:
        low: the public lower bound.
        high: the public upper bound; at least ``low``.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__(Sum(_VALUE, low, high))


class LaplaceMean(LaplaceCombineFn):
    """The mean of the values of a key, each clamped to [low, high]; a float in that range. See `Mean`.

    Args:
        low: the public lower bound.
        high: the public upper bound; at least ``low``.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__(Mean(_VALUE, low, high))


class DPCombinePerKey(beam.PTransform):
    """(ε, δ)-private `beam.CombinePerKey` on (key, value) elements, for data that hold to ``bounds`` already.

    ``pairs | DPCombinePerKey(LaplaceSum(0, 100), bounds=Bounds(partitions=3, rows_per_partition=1),
    budget=Budget(1), public_keys=["a", "b"])`` gives (key, noisy value), one for each public key, absent ones too; or,
    with ``selection=PrivateSelection()`` and a delta, for the keys that enough units have. How many have one is not
    known here, but at least ceil(values / rows_per_partition), a number that one unit changes by at most one.

    Args:
        fn: `LaplaceCount`, `LaplaceSum` or `LaplaceMean`.
        bounds: in how many keys one unit has values at most, and how many in each. *Nothing enforces it.*
        budget: what the result may spend on one unit, or a `Share`; see `Aggregate`.
        public_keys: the keys, known beforehand; values of others are dropped.
        selection: `PrivateSelection`, if the keys are not public. Exactly one of the two.
        privacy_unit: what the ledger calls the unit.
        max_windows: on fixed windows, in how many one unit has values at most; see `Aggregate`.
        first_window: which of them are released, where that is to be enforced; see `Aggregate`.
        ledger: where the release is recorded; needed on a plain `beam.Pipeline`.

    Raises:
        ArgumentError: at construction, for whatever can never work; when applied, for windows or triggers that would
            release a key twice, and for a share that cannot be drawn.
        GrantError: when applied, if there is no ledger.
    """

    def __init__(
        self,
        fn: LaplaceCombineFn,
        *,
        bounds: Bounds,
        budget: Budget | Share,
        public_keys: Sequence[Any] | None = None,
        selection: Selection | None = None,
        privacy_unit: str = "unit",
        max_windows: int | None = None,
        first_window: FirstWindow | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(fn, LaplaceCombineFn):
            raise ArgumentError(f"fn must be LaplaceCount(), LaplaceSum() or LaplaceMean(), not {describe_kind(fn)}")
        if (public_keys is None) == (selection is None):
            raise ArgumentError("exactly one of public_keys and selection must be given")
        self._public = None if public_keys is None else _public_keys(public_keys)
        chosen = None if selection is None else require_selection(selection)
        self._planner = Planner((_KEY,), privacy_unit, bounds, (fn.metric,), chosen, LaplaceNoise(), budget)
        self._plan = self._planner.preliminary
        self._fn = fn
        self._max_windows, self._first_window = require_windows(max_windows, first_window)
        self._ledger = ledger

    def expand(self, pairs: beam.PCollection) -> beam.PCollection:
        """Records the ledger entries and builds the graph."""
        in_one_window = require_firing_once(pairs, type(self).__name__)
        if self._public is not None and not in_one_window:
            raise ArgumentError(
                "public_keys need the global window, since which windows have values would show; use selection="
            )
        ledger, label = ledger_of(pairs, self._ledger), full_label(pairs.pipeline, self.label)
        windows = 1 if in_one_window else self._max_windows
        limit = window_limit(pairs, self._max_windows, self._first_window)
        plan = self._plan = replace(self._planner.final(ledger, label, windows), windows=limit)
        grants = record_plan(plan, ledger, label, max_applications=windows, enforced=False)
        values = within_limit(pairs, plan, grants) | "Wrap" >> beam.MapTuple(_wrapped)
        if self._public is not None:
            keys = self._public
            absent = pairs.pipeline | beam.Create([(key, ()) for key in keys], reshuffle=False)
            listed = values | "Public" >> beam.FlatMap(_listed, {key: key for key in keys})
            values = (listed, absent) | beam.Flatten()
        fn = _Release(plan, grants)
        combined = values | "Combine" >> beam.CombinePerKey(self._fn.granted(plan, grants))
        outputs = combined | "Release" >> beam.ParDo(fn).with_outputs(USAGE, main="released")
        leave_usage(fn, outputs[USAGE])
        # Whatever comes after sees one attempt of the draws.
        return outputs.released | "Materialise" >> beam.Reshuffle()

    def display_data(self) -> dict[str, Any]:
        """Metric and bounds, for the runner's user interface."""
        return {"metric": repr(self._fn.metric), "bounds": repr(self._plan.bounds)}


class DPCombineGlobally(beam.PTransform):
    """(ε, δ)-private `beam.CombineGlobally` on values, for data of which one unit has at most ``rows_per_unit``.

    It gives one noisy value, also of no values at all. Nothing in it needs a delta, unless composition by privacy loss
    distributions shall have one.

    Args:
        fn: `LaplaceCount`, `LaplaceSum` or `LaplaceMean`.
        rows_per_unit: how many values of one unit there are at most. *Nothing enforces it.*
        budget: what the result may spend on one unit, or a `Share`.
        privacy_unit: what the ledger calls the unit.
        ledger: where the release is recorded; needed on a plain `beam.Pipeline`.

    Raises:
        ArgumentError: as `DPCombinePerKey`; values must be in the global window.
        GrantError: when applied, if there is no ledger.
    """

    def __init__(
        self,
        fn: LaplaceCombineFn,
        *,
        rows_per_unit: int,
        budget: Budget | Share,
        privacy_unit: str = "unit",
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        self._per_key = DPCombinePerKey(
            fn,
            bounds=Bounds(partitions=1, rows_per_partition=require_count("rows_per_unit", rows_per_unit)),
            budget=budget,
            public_keys=[0],
            privacy_unit=privacy_unit,
            ledger=ledger,
        )

    def expand(self, values: beam.PCollection) -> beam.PCollection:
        """Combines all values under one key."""
        return values | beam.WithKeys(0) | "Combine" >> self._per_key | beam.Values()


def _wrapped(key: Any, value: Any) -> tuple[Any, Element]:
    return key, (value,)


def _listed(pair: tuple[Any, Element], keys: dict[Any, Any]) -> list[tuple[Any, Element]]:
    # Under the key of the list: 2.0 and True are equal to 2 and 1, but a runner may take them for keys of their own.
    return [(keys[pair[0]], pair[1])] if pair[0] in keys else []


def _public_keys(keys: Any) -> tuple[Any, ...]:
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Sequence) or not keys:
        raise ArgumentError(f"public_keys must be a list of one or more keys, not {describe_kind(keys)}")
    try:
        return tuple(dict.fromkeys(keys))
    except TypeError:
        raise ArgumentError("public_keys must be hashable, as tuples are and lists are not") from None


class _Release(DrawingDoFn):
    """(key, exact integers) to (key, noisy value), many keys at a time."""

    def __init__(self, plan: AggregationPlan, grants: tuple[Grant, ...]) -> None:
        super().__init__()
        self._plan = plan
        self._grants = grants

    def granted(self) -> list[tuple[Grant | None, str]]:
        return granted_releases(self._plan, self._grants)

    def start_bundle(self) -> None:
        super().start_bundle()
        self._held: dict[BoundedWindow, list[tuple[Any, tuple[int, list[int]]]]] = {}

    def process(self, pair: tuple[Any, tuple[int, list[int]]], window: Any = beam.DoFn.WindowParam) -> Iterable[Any]:
        held = self._held.setdefault(window, [])
        held.append(pair)
        return self.told(self._flush(window) if len(held) >= _BLOCK_KEYS else ())

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for one in list(self._held):
            for item in self._flush(one):
                yield WindowedValue(item, one.max_timestamp(), (one,))

    def _flush(self, window: BoundedWindow) -> list[tuple[Any, Any]]:
        plan, rng = self._plan, self.rng
        held = self._held.pop(window)
        # In no order: that in which the keys came says which of them have values.
        held = [held[i] for i in rng.permutation(len(held))]
        dense = np.array([sums for _, (_, sums) in held], np.int64)
        if plan.selection is not None:
            # The least number of units that so many values can come from.
            units = [-(-rows // plan.bounds.rows_per_partition) for _, (rows, _) in held]
            dense = np.concatenate([np.array(units, np.int64)[:, None], dense], axis=1)
        released = release_block(plan, Partials((pa.array(np.arange(len(held))),), dense, ()), rng)
        title = plan.metrics[0].title
        keys, values = released.column(_KEY).to_pylist(), released.column(title).to_pylist()
        return [(held[index][0], value) for index, value in zip(keys, values, strict=True)]
