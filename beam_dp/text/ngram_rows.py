"""`SplitIntoNgrams`: batches of texts as batches of (privacy unit, n-gram), one row for each n-gram."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints import typehints

from beam_dp.errors import ArgumentError, InputError, describe_kind, require_count
from beam_dp.io import batches as _coder  # noqa: F401  (registers the coder of RecordBatch)
from beam_dp.io.lines import invalid_utf8
from beam_dp.io.rows import require_column
from beam_dp.text.ngrams import ngrams_of
from beam_dp.text.privatize import TextOptions
from beam_dp.text.tokenizer import as_string, tokenize

NGRAM_COLUMN = "ngram"
LARGEST_SIZE = 8


class SplitIntoNgrams(beam.PTransform):
    """The n-grams of texts as rows, for `beam_dp.aggregate.Aggregate`; nothing here is private yet.

    Takes RecordBatches with the two columns named, and gives RecordBatches with the columns ``privacy_unit`` (as it
    was) and ``ngram``, a row for each n-gram of each text, repetitions too. Words are those of
    `beam_dp.text.tokenizer`; a text that is null or no valid UTF-8 has none.

    Args:
        privacy_unit: the column that says whose a text is.
        text_column: the column of texts.
        sizes: how many words an n-gram has; several sizes give the n-grams of each.
        max_words: n-grams are made of this many words of a text at most, the first ones.

    Raises:
        ArgumentError: at construction, for whatever can never work.
        InputError: in a worker: a column is missing, or the text column holds no text.
    """

    def __init__(
        self, *, privacy_unit: str, text_column: str = "text", sizes: Sequence[int] = (1,), max_words: int = 64
    ) -> None:
        super().__init__()
        if not isinstance(sizes, Sequence):
            raise ArgumentError(f"sizes must be a list of numbers of words, not {describe_kind(sizes)}")
        chosen = tuple(require_count("sizes", size) for size in sizes)
        if not chosen or len(set(chosen)) != len(chosen) or max(chosen) > LARGEST_SIZE:
            raise ArgumentError(f"sizes must be one or more different numbers of words, from 1 to {LARGEST_SIZE}")
        self._split = _Split(
            require_column("privacy_unit", privacy_unit),
            require_column("text_column", text_column),
            chosen,
            TextOptions(require_count("max_words", max_words)),
        )
        if privacy_unit in (text_column, NGRAM_COLUMN):
            raise ArgumentError(
                f"privacy_unit must be another column than text_column, and not be called {NGRAM_COLUMN!r}"
            )

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        """One stage."""
        if not typehints.is_consistent_with(pcoll.element_type, pa.RecordBatch):
            raise ArgumentError("SplitIntoNgrams takes a PCollection of pyarrow.RecordBatch")
        return pcoll | "Split" >> beam.FlatMap(self._split).with_output_types(pa.RecordBatch)


@dataclass(frozen=True)
class _Split:
    """A batch of texts to a batch of rows for each size."""

    privacy_unit: str
    text_column: str
    sizes: tuple[int, ...]
    options: TextOptions

    def __call__(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        missing = [name for name in (self.privacy_unit, self.text_column) if name not in batch.schema.names]
        if missing:
            raise InputError(f"no column {missing[0]!r} in the input; a batch must have all that are named")
        units = batch.column(self.privacy_unit)
        words = tokenize(_valid(as_string(batch.column(self.text_column))), self.options.max_bytes)
        for size in self.sizes:
            grams, texts = ngrams_of(words, size, self.options.max_words)
            columns = [units.take(pa.array(texts)), grams]
            yield pa.RecordBatch.from_arrays(columns, names=[self.privacy_unit, NGRAM_COLUMN])


def _valid(texts: pa.StringArray) -> pa.StringArray:
    """``texts``, empty where they are no valid UTF-8."""
    bad = invalid_utf8(texts)
    if not bad:
        return texts
    mask = np.zeros(len(texts), bool)
    mask[bad] = True
    return pc.if_else(pa.array(mask), "", texts)
