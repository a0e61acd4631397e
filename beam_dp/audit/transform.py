"""`certify` spread over the workers of a Beam pipeline: blocks of words, two passes, one certificate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam import pvalue

from beam_dp.audit.certificates import CertificatePlan
from beam_dp.audit.pairs import PairLaw, Worst
from beam_dp.embeddings import EmbeddingIndex, IndexRef, open_index
from beam_dp.mechanisms.base import WordIds

# Small enough that workers end together, large enough that a block is work for half a second.
_BLOCKS = 200
_BLOCK_WORDS = (16, 512)

Normalisers = tuple[int, bytes]


class CertifyPairs(beam.PTransform):
    """The certificate of a plan, as the JSON of `Certificate.to_json`: one element.

    The first pass gives the normalisers of blocks of words, where the law has any to compute; the second, with all of
    them as a side input, the worst pair of each block. What is found does not depend on blocks or workers.

    Args:
        plan: from `plan_certificate` on the index that ``index`` names.
        index: carried to the workers, which open it once each.
    """

    def __init__(self, plan: CertificatePlan, index: IndexRef) -> None:
        super().__init__()
        self._plan = plan
        self._index = index

    def expand(self, begin: pvalue.PBegin) -> beam.PCollection[str]:
        """See the class."""
        index = open_index(self._index)
        block = min(max(-(-index.size // _BLOCKS), _BLOCK_WORDS[0]), _BLOCK_WORDS[1])
        starts = begin | "Blocks" >> beam.Create(range(0, index.size, block)) | "Spread" >> beam.Reshuffle()
        normalisers: Sequence[Normalisers] | pvalue.AsList = ()
        if self._plan.pair_law(index).has_normalisers:
            summed = starts | "Normalise" >> beam.ParDo(_Normalise(self._plan, self._index, block))
            normalisers = pvalue.AsList(summed)
        return (
            starts
            | "Compare" >> beam.ParDo(_Compare(self._plan, self._index, block), normalisers)
            | "Worst" >> beam.CombineGlobally(_merged)
            | "Certify" >> beam.ParDo(_Certify(self._plan, self._index, block)).with_output_types(str)
        )


class _OnIndex(beam.DoFn):
    """What works with the law on the index."""

    def __init__(self, plan: CertificatePlan, ref: IndexRef, block: int) -> None:
        self._plan = plan
        self._ref = ref
        self._block = block
        self._index: EmbeddingIndex | None = None
        self._law: PairLaw | None = None

    def setup(self) -> None:
        self._index = open_index(self._ref)
        self._law = self._plan.pair_law(self._index)

    def _opened(self) -> tuple[EmbeddingIndex, PairLaw]:
        assert self._index is not None and self._law is not None
        return self._index, self._law

    def _words(self, start: int) -> WordIds:
        index, _ = self._opened()
        return np.arange(start, min(start + self._block, index.size), dtype=np.int32)


class _Normalise(_OnIndex):
    """The start of a block to the start and ln Z of its words, float64."""

    def process(self, start: int) -> Iterator[Normalisers]:
        found = self._opened()[1].log_normalisers(self._words(start))
        assert found is not None
        yield start, found.tobytes()


class _Compare(_OnIndex):
    """The start of a block to its worst pair."""

    def process(self, start: int, normalisers: Sequence[Normalisers]) -> Iterator[Worst]:
        every = np.frombuffer(b"".join(found for _, found in sorted(normalisers))) if normalisers else None
        yield self._opened()[1].worst(self._words(start), every)


class _Certify(_OnIndex):
    """The worst of all pairs to the certificate."""

    def process(self, worst: Worst) -> Iterator[str]:
        yield self._plan.certificate(*self._opened(), worst).to_json()


def _merged(found: Iterable[Worst]) -> Worst:
    whole = Worst()
    for part in found:
        whole = whole.merged(part)
    return whole
