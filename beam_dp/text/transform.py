"""`PrivatizeText`: word-level privacy, metric or local, on any PCollection of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.internal import pickler
from apache_beam.metrics import Metrics
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.utils.windowed_value import WindowedValue

from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.grants import Grant
from beam_dp.accounting.ledger import Ledger
from beam_dp.accounting.pipeline import full_label, leave_usage, ledger_of
from beam_dp.accounting.shares import Share, require_basic
from beam_dp.embeddings.broadcast import IndexRef, open_index, resolve_index
from beam_dp.embeddings.index import EmbeddingIndex
from beam_dp.errors import ArgumentError, GrantError, InputError, describe_kind, require_choice
from beam_dp.guarantees import MetricGuarantee
from beam_dp.io.lines import invalid_utf8
from beam_dp.io.rejects import INVALID_UNICODE, METRICS_NAMESPACE, Reject, rejects_batch
from beam_dp.io.rows import (
    KINDS,
    RowBuffer,
    RowShape,
    infer_kind,
    output_hint,
    require_column,
    require_one_window,
    row_fields,
    with_column,
)
from beam_dp.mechanisms import WordMechanism
from beam_dp.mechanisms.base import diameter_of
from beam_dp.text.privatize import OovPolicy, TextOptions, TextPrivatizer
from beam_dp.text.rows import text_of
from beam_dp.text.tokenizer import as_string

_REJECTED = "rejected"


class Privatized(NamedTuple):
    """What `PrivatizeText.with_rejects` returns.

    Attributes:
        rows: the privatized rows.
        rejected: RecordBatches of `beam_dp.io.REJECTS_SCHEMA`: why a row was rejected, never what it held.
    """

    rows: beam.PCollection
    rejected: beam.PCollection


class PrivatizeText(beam.PTransform):
    """Replaces every word of a text by a draw of ``mechanism``, and records what that promises in the ledger.

    ``texts | PrivatizeText(MultivariateLaplace(epsilon=12))`` takes a PCollection of str, dict, NamedTuple or
    `beam.Row`, or `pyarrow.RecordBatch` (fastest), and gives the same kind back: the privatized text and the columns
    that ``keep_columns`` names; every other column is dropped. One row in, one row out; timestamps and windows stay.
    A null text becomes an empty one. What a text is made of, and what of it is public, is described in
    `beam_dp.text.tokenizer` and `beam_dp.text.TextOptions`.

    A row that holds no valid text (another type, invalid Unicode, a missing field) is *rejected*: it fails the
    pipeline, unless `with_rejects` asks for rejected rows as a second output.

    Each run draws anew and spends anew, also one that fails. A runner may run a bundle twice; the ledger counts one
    draw, so only one may become visible: write with `WriteBatches`, which publishes one attempt, or put a
    `beam.Reshuffle()` before a step with side effects, which makes the runner settle on one.

    Args:
        mechanism: what to draw for each word.
        index: the embedding index: a folder, a URI, an `IndexRef`, or None for the one that ships with beam_dp.
        text_column: the column or field that is privatized.
        keep_columns: other columns that are passed on *unchanged*; nothing protects them.
        max_words: a text keeps at most this many words.
        oov: ``drop`` or ``random``: what becomes of words outside the vocabulary.
        search: ``auto``, ``exact`` or ``annoy``: how the nearest word is found.
        input_kind: ``str``, ``dict``, ``row`` or ``record_batch``, where the PCollection does not declare its type.
        share: the share of the mechanism's model, metric or local, that holds what it promises (local: to a whole
            document of ``max_words``); needed where the ledger has some.
        ledger: where the mechanism is recorded; needed on a plain `beam.Pipeline` (which must run once), else the
            pipeline's own.

    Raises:
        ArgumentError, InputError, IndexArtifactError: at construction, for whatever can never work.
        ArgumentError: when applied, for a share that cannot be drawn.
        BudgetExceededError: when applied, if the share is too small.
        GrantError: when applied, if there is no ledger.
    """

    def __init__(
        self,
        mechanism: WordMechanism,
        *,
        index: str | IndexRef | None = None,
        text_column: str = "text",
        keep_columns: Sequence[str] = (),
        max_words: int = 64,
        oov: OovPolicy = "drop",
        search: str = "auto",
        input_kind: str | None = None,
        share: Share | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__()
        _require_mechanism(mechanism)
        self._mechanism = mechanism
        self._shape = RowShape(require_column("text_column", text_column), keep_columns)
        self._options = TextOptions(max_words, oov)
        self._input_kind = None if input_kind is None else require_choice("input_kind", input_kind, KINDS)
        self._share = None if share is None else require_basic("share", share)
        self._ledger = ledger
        self._search = search
        self._index = index if isinstance(index, IndexRef) else resolve_index(index)
        opened = open_index(self._index, search)
        self._guarantee = mechanism.guarantee(opened)
        self._diameter = None
        if isinstance(self._guarantee, MetricGuarantee):
            self._diameter = diameter_of(mechanism, opened, self._guarantee.metric)
        # A finite claim that was computed from tables holds for these tables alone.
        computed = self._guarantee.epsilon is not None and self._guarantee.basis == "computed"
        self._law = mechanism.bind(opened).law_digest() if computed else None
        self._with_rejects = False

    def with_rejects(self) -> PrivatizeText:
        """The same transform, which returns `Privatized` (rows, rejected) instead of failing on a rejected row."""
        twin = PrivatizeText.__new__(PrivatizeText)
        twin.__dict__.update(self.__dict__, _with_rejects=True)
        return twin

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection | Privatized:
        """Records the ledger entry and builds the graph."""
        kind = self._input_kind or infer_kind(pcoll.element_type)
        fields = row_fields(pcoll.element_type) if kind == "row" else None
        if fields is not None:
            self._shape.require([name for name, _ in fields])
        require_one_window(pcoll, kind, "PrivatizeText")
        do_fn = _PrivatizeBatches if kind == "record_batch" else _PrivatizeRows
        work = _Work(
            self._mechanism,
            self._index,
            self._search,
            self._options,
            self._shape,
            kind,
            law=self._law,
            fail_on_reject=not self._with_rejects,
        )
        ledger, label = ledger_of(pcoll, self._ledger), full_label(pcoll.pipeline, self.label)
        if self._share is not None:
            ledger.draw(self._share, label, self._guarantee.model)
        work.grant = ledger.record(
            label=label,
            mechanism=repr(self._mechanism),
            guarantee=self._guarantee,
            max_applications=self._options.max_words,
            fingerprint=work.fingerprint,
            diameter=self._diameter,
            share=self._share,
            parameters={
                "max_words": self._options.max_words,
                "oov": self._options.oov,
                "keep_columns": list(self._shape.keep_columns),
                # Names the law that a computed claim is of, as a certificate does.
                **({} if self._law is None else {"law_digest": self._law}),
            },
        )
        fn = do_fn(work)
        outputs = pcoll | "Privatize" >> beam.ParDo(fn).with_outputs(_REJECTED, USAGE, main="rows")
        leave_usage(fn, outputs[USAGE])
        outputs.rows.element_type = output_hint(kind, self._shape, pcoll.element_type, str)
        outputs[_REJECTED].element_type = pa.RecordBatch
        return Privatized(outputs.rows, outputs[_REJECTED]) if self._with_rejects else outputs.rows

    def display_data(self) -> dict[str, Any]:
        """Mechanism, index and options, for the runner's user interface."""
        return {
            "mechanism": DisplayDataItem(repr(self._mechanism), label="Mechanism"),
            "guarantee": DisplayDataItem(self._guarantee.sentence(), label="Guarantee"),
            "index_digest": DisplayDataItem(self._index.digest, label="Index digest"),
            "max_words": DisplayDataItem(self._options.max_words, label="Words kept per text"),
            "oov": DisplayDataItem(self._options.oov, label="Words outside the vocabulary"),
        }


@dataclass
class _Work:
    """What the DoFns carry to the workers, and open there."""

    mechanism: WordMechanism
    index: IndexRef
    search: str
    options: TextOptions
    shape: RowShape
    kind: str
    law: str | None
    fail_on_reject: bool
    grant: Grant | None = None

    @property
    def fingerprint(self) -> str:
        """What runs, for the comparison with the ledger entry."""
        return f"{self.mechanism!r} {self.index.digest} {self.options!r} {self.law}"

    def open(self) -> TextPrivatizer:
        """Maps the index and binds the mechanism.

        Raises:
            GrantError: the ledger's entry was computed from other tables.
        """
        opened: EmbeddingIndex = open_index(self.index, self.search)
        bound = self.mechanism.bind(opened)
        if self.law is not None and bound.law_digest() != self.law:
            raise GrantError(
                "this worker's tables are not those that the guarantee in the ledger was computed from: clear the "
                "folder that BEAM_DP_CACHE names, and use one version of beam_dp and numpy everywhere"
            )
        return TextPrivatizer(opened, bound, self.options)


class _Privatize(DrawingDoFn):
    """What both DoFns share: the index, opened once a process, and the counters."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def granted(self) -> list[tuple[Grant | None, str]]:
        return [(self._work.grant, self._work.fingerprint)]

    def setup(self) -> None:
        super().setup()
        self._privatizer = self._work.open()
        self._rows = Metrics.counter(METRICS_NAMESPACE, "privatized_rows")
        self._words = Metrics.counter(METRICS_NAMESPACE, "privatized_words")

    def _reject(self, rejects: list[Reject]) -> pvalue.TaggedOutput:
        """The rejected rows as an output; an error if the transform has no output for them."""
        for reject in rejects:
            Metrics.counter(METRICS_NAMESPACE, f"rejects/{reject.reason}").inc()
        if self._work.fail_on_reject:
            columns = ", ".join(self._work.shape.columns)
            raise InputError(
                f"a row was rejected ({rejects[0].reason}); the columns asked for are {columns}; "
                "PrivatizeText(...).with_rejects() returns such rows as a second output"
            )
        return pvalue.TaggedOutput(_REJECTED, rejects_batch(rejects, None))

    def _draw(self, texts: pa.Array) -> pa.StringArray:
        privatized, words = self._privatizer.privatize(texts, self.rng)
        self._rows.inc(len(texts))
        self._words.inc(words)
        return privatized


class _PrivatizeBatches(_Privatize):
    """RecordBatch in, RecordBatch out."""

    def process(self, batch: pa.RecordBatch) -> Iterable[Any]:
        return self.told(self._privatized(batch))

    def _privatized(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | pvalue.TaggedOutput]:
        shape = self._work.shape
        shape.require(batch.schema.names)
        texts = as_string(batch.column(shape.column))
        bad = invalid_utf8(texts)
        if bad:
            yield self._reject([Reject(INVALID_UNICODE, row) for row in bad])
            good = np.ones(batch.num_rows, dtype=bool)
            good[bad] = False
            batch, texts = batch.filter(pa.array(good)), texts.filter(pa.array(good))
        yield with_column(batch, shape, self._draw(texts))


class _PrivatizeRows(_Privatize):
    """Rows in, rows out: they wait in the bundle until they fill a batch; each keeps its timestamp and window."""

    def start_bundle(self) -> None:
        super().start_bundle()
        self._waiting = RowBuffer(self._work.kind, self._work.shape, self._replace)

    def process(
        self, element: Any, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterable[Any]:
        text, reason = text_of(self._work.kind, element, self._work.shape)
        if reason is not None:
            return [self._reject([Reject(reason, None)])]
        return self.told(self._waiting.add(WindowedValue(element, timestamp, (window,)), text))

    def finish_bundle(self) -> Iterable[WindowedValue]:
        return self._waiting.flush()

    def _replace(self, texts: list[Any]) -> list[str]:
        return self._draw(pa.array(texts, pa.string())).to_pylist()


def _require_mechanism(mechanism: object) -> None:
    """ArgumentError unless ``mechanism`` looks like a `WordMechanism` and is a value that workers can compare."""
    if not all(callable(getattr(mechanism, name, None)) for name in ("bind", "guarantee")):
        raise ArgumentError(f"mechanism must be a word mechanism, not {describe_kind(mechanism)}")
    if repr(pickler.loads(pickler.dumps(mechanism))) != repr(mechanism):
        raise ArgumentError(
            "mechanism must be a value whose repr says all of its parameters, such as a frozen dataclass: its copy in "
            "a worker has another repr"
        )
