"""`RandomizedResponse` and `EstimateFrequencies`: local differential privacy on any PCollection of answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.grants import Grant
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.pipeline import full_label, leave_usage, ledger_of
from beam_dp.accounting.shares import Share, epsilon_or_share, require_basic
from beam_dp.aggregate.categories import OUTSIDE, Categories
from beam_dp.errors import ArgumentError, InputError, describe_kind, require_choice, require_count
from beam_dp.guarantees import LocalGuarantee
from beam_dp.io.rejects import METRICS_NAMESPACE
from beam_dp.io.rows import (
    KINDS,
    RowBuffer,
    RowShape,
    infer_kind,
    output_hint,
    require_column,
    require_one_window,
    row_fields,
    value_of,
    with_column,
)
from beam_dp.mechanisms.randomized_response import (
    LN_3,
    Codes,
    FairCoinResponse,
    KaryRandomizedResponse,
    ResponseMechanism,
)

Counts = npt.NDArray[np.int64]


class RandomizedResponse(beam.PTransform):
    """Replaces every answer by a randomized response: whoever sees the output cannot tell what anyone answered.

    ``answers | RandomizedResponse(column="smokes", categories=["no", "yes"], epsilon=1)`` takes a PCollection of dict,
    NamedTuple or `beam.Row`, `pyarrow.RecordBatch` (fastest), or str, and gives the same kind back: the column of
    responses and the columns that ``keep_columns`` names; every other one is dropped, that of the privacy unit too. The
    mechanism is `beam_dp.mechanisms.randomized_response.KaryRandomizedResponse`; `fair_coin` makes the polling form.

    A null and a value that is no category get a uniformly drawn category first, so that nothing about them shows: their
    responses are uniform. One row in, one row out: how many rows there are is public in the local model, and so are
    their order, timestamps, windows and kept columns.

    Each run draws anew and spends anew, also one that fails. A runner may run a bundle twice; the ledger counts one
    response, so only one may become visible: write with `WriteBatches`, which publishes one attempt, or put a
    `beam.Reshuffle()` before a step with side effects, which makes the runner settle on one.

    Args:
        categories: the public list of possible answers: two or more strings, integers or booleans.
        epsilon: of one response; or a `Share` of what the ledger declares for the local model, for all
            ``max_responses`` alike.
        column: the column or field of answers; needed unless the elements are str.
        privacy_unit: whose answers they are, as the ledger names it.
        max_responses: how many rows one privacy unit has at most, in all windows together; nothing enforces it. None
            where nobody knows: then the ledger states no epsilon for all of a unit's responses.
        keep_columns: other columns that are passed on *unchanged*; nothing protects them.
        input_kind: ``str``, ``dict``, ``row`` or ``record_batch``, where the PCollection does not declare its type.
        ledger: where the mechanism is recorded; needed on a plain `beam.Pipeline` (which must run once), else the
            pipeline's own.

    Raises:
        ArgumentError, InputError: at construction, for whatever can never work.
        ArgumentError: when applied, for a share that cannot be drawn.
        GrantError: when applied, if there is no ledger.
        InputError: in a worker: a row lacks a column, or a batch's column is of another type than the categories.
    """

    def __init__(
        self,
        *,
        categories: Sequence[Any],
        epsilon: float | Share,
        column: str | None = None,
        privacy_unit: str = "user",
        max_responses: int | None = 1,
        keep_columns: Sequence[str] = (),
        input_kind: str | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        self._answers = _Answers.of(categories, column, keep_columns)
        number, self._share = epsilon_or_share(epsilon)
        self._mechanism: ResponseMechanism = KaryRandomizedResponse(len(self._answers.categories), number)
        # Whether the numbers of the mechanism are those of the share.
        self._drawn = self._share is None
        if not isinstance(privacy_unit, str) or not privacy_unit.strip():
            raise ArgumentError(f"privacy_unit must be a name, not {describe_kind(privacy_unit)}")
        self._privacy_unit = privacy_unit
        self._max_responses = None if max_responses is None else require_count("max_responses", max_responses)
        if self._share is not None and self._max_responses is None:
            raise ArgumentError("max_responses must be given where epsilon is a share: it says how often that is spent")
        self._input_kind = None if input_kind is None else require_choice("input_kind", input_kind, KINDS)
        self._ledger = ledger

    @classmethod
    def fair_coin(
        cls,
        *,
        categories: Sequence[Any],
        column: str | None = None,
        privacy_unit: str = "user",
        max_responses: int | None = 1,
        keep_columns: Sequence[str] = (),
        input_kind: str | None = None,
        share: Share | None = None,
        ledger: Ledger | None = None,
    ) -> RandomizedResponse:
        """The polling form for two categories, no first: a fair coin says "the truth" or "what a second coin says".

        Its epsilon is ln 3; see `beam_dp.mechanisms.randomized_response.FairCoinResponse`. Arguments as above, but for
        ``share``: the one that ``max_responses`` times that must fit.
        """
        transform = cls(
            categories=categories,
            epsilon=LN_3,
            column=column,
            privacy_unit=privacy_unit,
            max_responses=max_responses,
            keep_columns=keep_columns,
            input_kind=input_kind,
            ledger=ledger,
        )
        if len(transform._answers.categories) != FairCoinResponse.categories:
            raise ArgumentError("categories must be two, no and yes, for the fair coin")
        transform._mechanism = FairCoinResponse()
        transform._share = None if share is None else require_basic("share", share)
        return transform

    @property
    def guarantee(self) -> LocalGuarantee:
        """What one response promises.

        Raises:
            ArgumentError: epsilon is that of a share, which the transform draws when it is applied, and it was not.
        """
        self._require_drawn()
        return LocalGuarantee(epsilon=self._mechanism.epsilon, basis="proved", privacy_unit=self._privacy_unit)

    def estimator(self) -> EstimateFrequencies:
        """The transform that estimates the shares of the true answers from this one's responses.

        Raises:
            ArgumentError: as `guarantee`.
        """
        self._require_drawn()
        answers = self._answers
        estimator = EstimateFrequencies(
            answers.categories.values, epsilon=self._mechanism.epsilon, column=answers.shape.column or None
        )
        estimator._mechanism = self._mechanism
        return estimator

    def _require_drawn(self) -> None:
        if not self._drawn:
            raise ArgumentError(f"apply RandomizedResponse first: its epsilon is that of {self._share!r}")

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Records the ledger entry and builds the graph."""
        kind = self._input_kind or infer_kind(pcoll.element_type)
        answers = self._answers
        answers.require(kind, pcoll.element_type)
        require_one_window(pcoll, kind, "RandomizedResponse")
        ledger, label = ledger_of(pcoll, self._ledger), full_label(pcoll.pipeline, self.label)
        self._draw_share(ledger, label)
        work = _Work(self._mechanism, answers, kind)
        work.grant = ledger.record(
            label=label,
            mechanism=repr(self._mechanism),
            guarantee=self.guarantee,
            max_applications=self._max_responses,
            fingerprint=work.fingerprint,
            share=self._share,
            parameters={
                "column": answers.shape.column or None,
                "categories": len(answers.categories),
                "keep_columns": list(answers.shape.keep_columns),
            },
        )
        do_fn = _RespondBatches if kind == "record_batch" else _RespondRows
        fn = do_fn(work)
        outputs = pcoll | "Respond" >> beam.ParDo(fn).with_outputs(USAGE, main="responses")
        leave_usage(fn, outputs[USAGE])
        responses = outputs.responses
        responses.element_type = output_hint(kind, answers.shape, pcoll.element_type, answers.categories.value_type)
        return responses

    def _draw_share(self, ledger: Ledger, label: str) -> None:
        if self._share is None:
            return
        part = ledger.draw(self._share, label, LocalGuarantee.model).split(self._max_responses or 1)
        if isinstance(self._mechanism, KaryRandomizedResponse):
            self._mechanism = KaryRandomizedResponse(self._mechanism.categories, part.epsilon)
        self._drawn = True

    def display_data(self) -> dict[str, Any]:
        """Mechanism, guarantee and column, for the runner's user interface."""
        return {
            "mechanism": DisplayDataItem(repr(self._mechanism), label="Mechanism"),
            "guarantee": DisplayDataItem(self.guarantee.sentence(), label="Guarantee"),
            "column": DisplayDataItem(self._answers.shape.column, label="Column of answers"),
        }


class EstimateFrequencies(beam.PTransform):
    """The shares of the true answers, estimated from randomized responses: one `pyarrow.RecordBatch` a window.

    ``responses | rr.estimator()``, or ``responses | EstimateFrequencies(["no", "yes"], epsilon=1, column="smokes")``,
    gives a row for each category: ``category``, ``estimate`` (float64), ``standard_error`` (float64) and ``n`` (int64,
    the number of responses, which is public in the local model). Estimates are unbiased, hence not clipped to [0, 1];
    they are null without responses. It is post-processing: it spends nothing, and needs no ledger.

    Args:
        categories: those of the responses, in any order.
        epsilon: of the responses.
        column: the column or field of responses; needed unless the elements are str.
        input_kind: as for `RandomizedResponse`.

    Raises:
        ArgumentError, InputError: at construction, for whatever can never work.
        InputError: in a worker: an element is not one of the categories, so it is no response.
    """

    def __init__(
        self,
        categories: Sequence[Any],
        *,
        epsilon: float,
        column: str | None = None,
        input_kind: str | None = None,
    ) -> None:
        super().__init__()
        self._answers = _Answers.of(categories, column, ())
        self._mechanism: ResponseMechanism = KaryRandomizedResponse(len(self._answers.categories), epsilon)
        self._input_kind = None if input_kind is None else require_choice("input_kind", input_kind, KINDS)

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """Counts each batch, adds up the counts, and takes the bias out."""
        kind = self._input_kind or infer_kind(pcoll.element_type)
        self._answers.require(kind, pcoll.element_type)
        count = beam.CombineGlobally(_CountResponses(self._answers, kind))
        if not isinstance(pcoll.windowing.windowfn, GlobalWindows):
            count = count.without_defaults()
        estimate = beam.Map(_frequencies, self._mechanism, self._answers.categories)
        return pcoll | "Count" >> count | "Estimate" >> estimate.with_output_types(pa.RecordBatch)


@dataclass(frozen=True)
class _Answers:
    """Where the answers are and what they can be."""

    categories: Categories
    shape: RowShape

    @classmethod
    def of(cls, categories: Sequence[Any], column: str | None, keep_columns: Sequence[str]) -> _Answers:
        name = "" if column is None else require_column("column", column)
        return cls(Categories(categories), RowShape(name, keep_columns))

    def require(self, kind: str, element_type: Any) -> None:
        """ArgumentError or InputError unless elements of this kind can hold such answers."""
        if kind == "str":
            if self.categories.value_type is not str or self.shape.keep_columns:
                raise ArgumentError("categories must be strings, and keep_columns empty, where the elements are str")
            return
        if not self.shape.column:
            raise ArgumentError(f"column must be given: the elements are of kind {kind}")
        fields = row_fields(element_type) if kind == "row" else None
        if fields is not None:
            self.shape.require([name for name, _ in fields])

    def value(self, kind: str, element: Any) -> Any:
        """The answer in one row."""
        try:
            return value_of(kind, element, self.shape)
        except LookupError:
            raise InputError(f"a row lacks one of the columns {', '.join(map(repr, self.shape.columns))}") from None

    def codes(self, batch: pa.RecordBatch) -> Codes:
        """The answers of a batch."""
        self.shape.require(batch.schema.names)
        return self.categories.column_codes(batch.column(self.shape.column), self.shape.column)


@dataclass
class _Work:
    """What the DoFns carry to the workers."""

    mechanism: ResponseMechanism
    answers: _Answers
    kind: str
    grant: Grant | None = None

    @property
    def fingerprint(self) -> str:
        """What runs, for the comparison with the ledger entry."""
        return f"{self.mechanism!r} {self.answers!r}"


class _Respond(DrawingDoFn):
    """What both DoFns share."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def granted(self) -> list[tuple[Grant | None, str]]:
        return [(self._work.grant, self._work.fingerprint)]

    def setup(self) -> None:
        super().setup()
        self._responses = Metrics.counter(METRICS_NAMESPACE, "responses")

    def _draw(self, codes: Codes) -> pa.Array:
        drawn = self._work.mechanism.respond(codes, self.rng)
        self._responses.inc(len(codes))
        return self._work.answers.categories.column(drawn)


class _RespondBatches(_Respond):
    """RecordBatch in, RecordBatch out."""

    def process(self, batch: pa.RecordBatch) -> Iterable[Any]:
        answers = self._work.answers
        return self.told([with_column(batch, answers.shape, self._draw(answers.codes(batch)))])


class _RespondRows(_Respond):
    """Rows in, rows out: they wait in the bundle until they fill a batch; each keeps its timestamp and window."""

    def start_bundle(self) -> None:
        super().start_bundle()
        self._waiting = RowBuffer(self._work.kind, self._work.answers.shape, self._replace)

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[WindowedValue]:
        value = self._work.answers.value(self._work.kind, element)
        return self.told(self._waiting.add(WindowedValue(element, timestamp, (window,)), value))

    def finish_bundle(self) -> Iterable[WindowedValue]:
        return self._waiting.flush()

    def _replace(self, values: list[Any]) -> list[Any]:
        return self._draw(self._work.answers.categories.value_codes(values)).to_pylist()


class _CountResponses(beam.CombineFn):
    """How often each category was responded, (k,) int64."""

    def __init__(self, answers: _Answers, kind: str) -> None:
        self._answers, self._kind = answers, kind

    def create_accumulator(self) -> Counts:
        return np.zeros(len(self._answers.categories), np.int64)

    def add_input(self, accumulator: Counts, element: Any) -> Counts:
        if self._kind == "record_batch":
            codes = self._answers.codes(element)
        else:
            codes = self._answers.categories.value_codes([self._answers.value(self._kind, element)])
        if (codes == OUTSIDE).any():
            raise InputError(
                "an element is none of the categories: EstimateFrequencies takes the responses of RandomizedResponse"
            )
        accumulator += np.bincount(codes, minlength=len(accumulator))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Counts]) -> Counts:
        return sum(accumulators, self.create_accumulator())

    def extract_output(self, accumulator: Counts) -> Counts:
        return accumulator


def _frequencies(counts: Counts, mechanism: ResponseMechanism, categories: Categories) -> pa.RecordBatch:
    """One row a category; NaN becomes null."""
    shares, errors = mechanism.estimate(counts)
    return pa.RecordBatch.from_pydict(
        {
            "category": categories.column(np.arange(len(categories), dtype=np.int32)),
            "estimate": pa.array(shares, from_pandas=True),
            "standard_error": pa.array(errors, from_pandas=True),
            "n": pa.array(np.full(len(categories), counts.sum())),
        }
    )
