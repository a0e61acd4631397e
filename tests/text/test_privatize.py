from itertools import repeat

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.errors import ArgumentError
from beam_dp.text.privatize import TextOptions, TextPrivatizer, encode


class Words:
    """A vocabulary of a list of words."""

    def __init__(self, *words):
        self.words = pa.array(words)
        self._ids = {word: i for i, word in enumerate(words)}

    def lookup(self, words):
        return np.fromiter(map(self._ids.get, words.to_pylist(), repeat(-1)), np.int32, len(words))


class Identity:
    """Draws the word itself: the tests' door to see what goes in and comes out."""

    def sample(self, ids, rng):
        return ids


class Next:
    """Draws the next word of the vocabulary."""

    def __init__(self, size):
        self.size = size

    def sample(self, ids, rng):
        return ((ids + 1) % self.size).astype(np.int32)


VOCABULARY = Words("one", "two", "three", "zoë")


def privatize(texts, rng, mechanism=None, **options):
    privatizer = TextPrivatizer(VOCABULARY, mechanism or Identity(), TextOptions(**options))
    out, words = privatizer.privatize(pa.array(texts, pa.string()), rng)
    out.validate(full=True)
    assert out.null_count == 0 and out.type == pa.string()
    return out.to_pylist(), words


def test_each_word_is_replaced_and_nothing_else_of_the_text_remains(rng):
    texts = ["One,  TWO!\tthree", "", None, "Zoë's"]
    assert privatize(texts, rng, Next(4)) == (["two three zoë", "", "", "one"], 4)


def test_unknown_words_are_dropped_by_default(rng):
    assert privatize(["one secret two", "secret"], rng) == (["one two", ""], 2)


def test_unknown_words_can_become_uniform_ones(rng):
    (text,), words = privatize(["one " + "secret " * 8000 + "two"], rng, oov="random", max_words=9000)
    drawn = text.split(" ")
    assert words == len(drawn) == 8002 and drawn[0] == "one" and drawn[-1] == "two"
    counts = np.array([drawn[1:-1].count(w) for w in VOCABULARY.words.to_pylist()])
    assert np.all(np.abs(counts - 2000) < 6 * np.sqrt(2000 * 0.75))


def test_random_words_go_through_the_mechanism_too(rng):
    class Constant:
        def sample(self, ids, rng):
            return np.zeros_like(ids)

    assert privatize(["secret two"], rng, Constant(), oov="random") == (["one one"], 2)


@pytest.mark.parametrize(("oov", "kept"), [("drop", ["two one", "one"]), ("random", None)])
def test_max_words_counts_after_the_policy(rng, oov, kept):
    texts, words = privatize(["secret two one three", "one"], rng, oov=oov, max_words=2)
    if kept:
        assert texts == kept and words == 3
    else:
        assert len(texts[0].split(" ")) == 2 and texts[0].split(" ")[1] == "two" and words == 3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.none() | st.lists(st.sampled_from(["one", "two", "zoë", "secret", "?"]), max_size=6), max_size=6),
    st.integers(1, 5),
)
def test_identity_gives_back_the_known_words_of_each_row(rows, max_words):
    texts = [None if row is None else " ".join(row) for row in rows]
    known = [[w for w in row or [] if w in ("one", "two", "zoë")][:max_words] for row in rows]
    out, words = privatize(texts, np.random.default_rng(0), max_words=max_words)
    assert out == [" ".join(row) for row in known] and words == sum(map(len, known))


def test_ids_are_int32_with_row_offsets(rng):
    rows = encode(pa.array(["two secret", None, "one"]), VOCABULARY, TextOptions(), rng)
    assert rows.ids.dtype == np.int32 and rows.ids.tolist() == [1, 0] and rows.offsets.tolist() == [0, 1, 1, 2]


def test_a_huge_text_is_read_up_to_its_limit_only(rng):
    (text,), words = privatize(["?" * (1 << 20) + " one"], rng)
    assert (text, words) == ("", 0)
    assert TextOptions(max_words=1 << 20).max_bytes == 64 << 20


@pytest.mark.parametrize("bad", [0, -1, 1.5, "3", True, None])
def test_max_words_must_be_a_count(bad):
    with pytest.raises(ArgumentError, match="max_words must be"):
        TextOptions(max_words=bad)


@pytest.mark.parametrize("bad", ["keep", None, 1])
def test_there_is_no_policy_that_passes_words_through(bad):
    with pytest.raises(ArgumentError, match="oov must be one of drop, random"):
        TextOptions(oov=bad)
