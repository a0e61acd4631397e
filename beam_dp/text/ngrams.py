"""The n-grams of texts: n words that follow each other in one text, joined by single spaces."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.text.tokenizer import Words


def ngrams_of(words: Words, size: int, max_words: int | None = None) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """Every n-gram of each text, with its repetitions, in the order of the texts; none spans two texts.

    A text of m words has max(m - size + 1, 0) of them. Words hold no spaces, so n-grams of different words or sizes
    are different strings.

    Args:
        words: the words of n texts.
        size: n-grams of so many words; at least 1.
        max_words: look at so many words of each text only; None for all.

    Returns:
        (m,) string, and for each n-gram the index of its text, (m,) int64 ascending.
    """
    lengths = np.diff(words.offsets)
    if max_words is not None:
        lengths = np.minimum(lengths, max_words)
    counts = np.maximum(lengths - (size - 1), 0)
    texts = np.repeat(np.arange(len(counts)), counts)
    # The place in its text, moved to where the text's words begin.
    first = np.arange(len(texts)) + np.repeat(words.offsets[:-1] - (np.cumsum(counts) - counts), counts)
    columns = [words.words.take(pa.array(first + place)) for place in range(size)]
    return columns[0] if size == 1 else pc.binary_join_element_wise(*columns, " "), texts
