"""n-grams against a loop over the words of each text."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.text.ngrams import ngrams_of
from beam_dp.text.tokenizer import Words, tokenize

texts_of_words = st.lists(st.lists(st.sampled_from(["a", "b", "ab", "é", "日本"]), max_size=7), max_size=6)


def as_words(texts):
    flat = [word for text in texts for word in text]
    return Words(pa.array(flat, pa.string()), np.cumsum([0, *map(len, texts)]))


def by_a_loop(texts, size, max_words=None):
    return [
        (" ".join(text[start : start + size]), index)
        for index, text in enumerate(text[:max_words] for text in texts)
        for start in range(len(text) - size + 1)
    ]


@settings(max_examples=200, deadline=None)
@given(texts_of_words, st.integers(1, 4), st.none() | st.integers(1, 8))
def test_every_ngram_of_every_text_and_none_across_two(texts, size, max_words):
    grams, owners = ngrams_of(as_words(texts), size, max_words)
    grams.validate(full=True)
    assert grams.type == pa.string() and owners.dtype == np.int64
    assert list(zip(grams.to_pylist(), owners.tolist(), strict=True)) == by_a_loop(texts, size, max_words)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | st.text("aB é,.", max_size=9), max_size=6), st.integers(1, 3))
def test_on_what_the_tokeniser_gives(texts, size):
    words = tokenize(pa.array(texts, pa.string()))
    grams, owners = ngrams_of(words, size)
    split = [words.words.to_pylist()[a:b] for a, b in zip(words.offsets[:-1], words.offsets[1:], strict=True)]
    assert list(zip(grams.to_pylist(), owners.tolist(), strict=True)) == by_a_loop(split, size)


@pytest.mark.parametrize("texts", [[], [[]], [["a"]]])
def test_texts_that_are_too_short_have_none(texts):
    grams, owners = ngrams_of(as_words(texts), 2)
    assert len(grams) == len(owners) == 0 and grams.type == pa.string()
