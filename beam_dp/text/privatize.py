"""Texts in, privatized texts out, as functions on Arrow arrays: no Beam, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.errors import BeamDpError, require_choice, require_count
from beam_dp.mechanisms import BoundMechanism
from beam_dp.mechanisms.base import WordIds
from beam_dp.text.tokenizer import tokenize

OovPolicy: TypeAlias = Literal["drop", "random"]
OOV_POLICIES = ("drop", "random")

_MIN_READ_BYTES = 1 << 20
_READ_BYTES_PER_WORD = 64


class Vocabulary(Protocol):
    """The public words, as texts need them."""

    words: pa.StringArray

    def lookup(self, words: pa.StringArray) -> WordIds:
        """The id of each word, -1 where it is not in the vocabulary."""


@dataclass(frozen=True)
class TextOptions:
    """What happens to a text around the mechanism. All of it is public.

    Attributes:
        max_words: a text keeps at most this many words, counted after the policy for unknown words.
        oov: what becomes of a word outside the vocabulary. ``drop``: it vanishes, so the number of words in the
            vocabulary is public. ``random``: a uniform word of the vocabulary takes its place before the mechanism,
            so the number of words up to ``max_words`` is public; that a word was unknown is hidden as well as one
            word is hidden behind another, that is up to epsilon * diameter.
    """

    max_words: int = 64
    oov: OovPolicy = "drop"

    def __post_init__(self) -> None:
        require_count("max_words", self.max_words)
        require_choice("oov", self.oov, OOV_POLICIES)

    @property
    def max_bytes(self) -> int:
        """How much of one text is read: max(1 MiB, 64 bytes a word of ``max_words``), so that memory is bounded."""
        return max(_MIN_READ_BYTES, _READ_BYTES_PER_WORD * self.max_words)


@dataclass(frozen=True, eq=False)
class WordRows:
    """The word ids of n texts, one after the other.

    Attributes:
        ids: (m,) int32.
        offsets: (n + 1,) int64; text i has ``ids[offsets[i]:offsets[i + 1]]``.
    """

    ids: WordIds
    offsets: npt.NDArray[np.int64]


def encode(texts: pa.Array, vocabulary: Vocabulary, options: TextOptions, rng: np.random.Generator) -> WordRows:
    """The word ids of each text (n,), after the policy for unknown words and ``max_words``.

    Raises:
        InputError: ``texts`` is not an Arrow array of text.
    """
    tokens = tokenize(texts, options.max_bytes)
    distinct = tokens.words.dictionary_encode()
    known = vocabulary.lookup(distinct.dictionary)
    ids = known[distinct.indices.to_numpy(zero_copy_only=False)]
    offsets = tokens.offsets
    missing = ids < 0
    if missing.any():
        if options.oov == "random":
            ids[missing] = rng.integers(0, len(vocabulary.words), size=int(missing.sum()), dtype=np.int32)
        else:
            ids, offsets = _keep(ids, offsets, ~missing)
    if len(offsets) > 1 and np.diff(offsets).max() > options.max_words:
        place = np.arange(len(ids)) - np.repeat(offsets[:-1], np.diff(offsets))
        ids, offsets = _keep(ids, offsets, place < options.max_words)
    return WordRows(ids, offsets)


def _keep(
    ids: WordIds, offsets: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]
) -> tuple[WordIds, npt.NDArray[np.int64]]:
    """The ids where ``mask`` is set, and the offsets that go with them."""
    before = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum(mask, out=before[1:])
    return ids[mask], before[offsets]


class TextPrivatizer:
    """A bound mechanism on whole texts; made once in each worker process.

    The output of a text is its words, each replaced by an independent draw of the mechanism, joined by one space.
    Casing, punctuation and spacing of the input do not reach it.
    """

    def __init__(self, vocabulary: Vocabulary, mechanism: BoundMechanism, options: TextOptions) -> None:
        self._vocabulary = vocabulary
        self._mechanism = mechanism
        self._options = options
        # Every word twice, with a space before it and without: one gather then writes whole texts.
        words = vocabulary.words
        spaced = pc.binary_join_element_wise("", words, " ")
        self._spellings = pa.concat_arrays([spaced, words])

    def privatize(self, texts: pa.Array, rng: np.random.Generator) -> tuple[pa.StringArray, int]:
        """The privatized texts (n,), no nulls, and the number of words drawn.

        Raises:
            InputError: ``texts`` is not an Arrow array of text.
            BeamDpError: the mechanism does not keep to its protocol.
        """
        rows = encode(texts, self._vocabulary, self._options, rng)
        drawn = self._mechanism.sample(rows.ids, rng)
        if drawn.shape != rows.ids.shape or drawn.dtype != np.int32:
            raise BeamDpError("sample of this mechanism does not give one int32 id for each id")
        return self._decode(drawn, rows.offsets), len(rows.ids)

    def _decode(self, ids: WordIds, offsets: npt.NDArray[np.int64]) -> pa.StringArray:
        """The texts whose words are ``ids``."""
        spelling = ids.copy()
        spelling[offsets[:-1][np.diff(offsets) > 0]] += np.int32(len(self._vocabulary.words))
        words = self._spellings.take(pa.array(spelling))
        ends = np.frombuffer(words.buffers()[1], dtype=np.int32)[: len(words) + 1]
        return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(ends[offsets]), words.buffers()[2])
