from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from beam_dp.embeddings.formats import Block
from beam_dp.embeddings.vocabulary import (
    DUPLICATE_WORD,
    EMPTY_WORD,
    UNUSABLE_CHARACTER,
    ZERO_VECTOR,
    Dropped,
    VocabularyFilter,
)
from beam_dp.errors import InputError


def block(words: list[str], vectors: list[list[float]] | None = None, first_line: int = 1) -> Block:
    rows = np.ones((len(words), 2), np.float32) if vectors is None else np.array(vectors, np.float32)
    return Block(pa.array(words, pa.string()), rows, np.arange(first_line, first_line + len(words)))


def test_each_reason_is_counted_with_its_lines() -> None:
    source = block(
        ["a", "", "b c", "d", "a", "e\xa0f", "", "g"],
        [[1, 2], [1, 1], [1, 1], [0, -0.0], [3, 4], [1, 1], [0, 0], [1, 2]],
        first_line=10,
    )
    vocabulary = VocabularyFilter("v.txt", "line", None)
    kept = vocabulary.apply(source)
    assert kept.words.to_pylist() == ["a", "g"]
    np.testing.assert_array_equal(kept.vectors, [[1, 2], [1, 2]])
    assert kept.lines.tolist() == [10, 17]
    assert set(vocabulary.dropped) == {
        Dropped(EMPTY_WORD, 2, (11, 16)),
        Dropped(UNUSABLE_CHARACTER, 2, (12, 15)),
        Dropped(ZERO_VECTOR, 1, (13,)),
        Dropped(DUPLICATE_WORD, 1, (14,)),
    }


def test_duplicates_across_blocks_and_the_first_lines_only() -> None:
    vocabulary = VocabularyFilter("v.txt", "line", None)
    assert len(vocabulary.apply(block(["a", "b"])).words) == 2
    for start in (3, 6, 9):
        assert len(vocabulary.apply(block(["a", "b", "a"], first_line=start)).words) == 0
    assert vocabulary.dropped == (Dropped(DUPLICATE_WORD, 9, (3, 4, 5, 6, 7)),)


def test_a_word_dropped_for_its_vector_may_come_again() -> None:
    vocabulary = VocabularyFilter("v.txt", "line", None)
    kept = vocabulary.apply(block(["a", "a"], [[0, 0], [1, 1]]))
    assert kept.lines.tolist() == [2]


def test_every_character_is_decided_as_str_sees_it() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    words = [f"x{character}y" for character in characters]
    kept = set(VocabularyFilter("v.txt", "line", None).apply(block(words)).words.to_pylist())
    unusable = {c for c in characters if c.isspace() or unicodedata.category(c) == "Cc"}
    assert "\xa0" in unusable
    assert kept == {f"x{c}y" for c in characters if c not in unusable}


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([float("nan"), 1], r"v\.txt, line 8: the vector holds a NaN or infinite number"),
        ([1, float("-inf")], r"v\.txt, line 8: the vector holds a NaN or infinite number"),
        ([1e30, 0], r"v\.txt, line 8: the length of the vector is not in"),
        ([1e-30, 0], r"v\.txt, line 8: the length of the vector is not in"),
    ],
)
def test_vectors_that_are_refused(vector: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VocabularyFilter("v.txt", "line", None).apply(block(["a", "b"], [[1, 1], vector], first_line=7))


def test_max_words_counts_words_that_pass() -> None:
    vocabulary = VocabularyFilter("v.txt", "line", 3)
    assert vocabulary.apply(block(["a", "", "a", "b"])).words.to_pylist() == ["a", "b"]
    assert not vocabulary.full
    assert vocabulary.apply(block(["b", "c", "d", "c"])).words.to_pylist() == ["c"]
    assert vocabulary.full
    assert {entry.reason: entry.count for entry in vocabulary.dropped} == {EMPTY_WORD: 1, DUPLICATE_WORD: 2}
