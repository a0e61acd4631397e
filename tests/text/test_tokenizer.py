import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_dp.errors import InputError
from beam_dp.text.tokenizer import tokenize


def by_the_rule(text):
    """The documented rule, one character at a time."""
    letters = [
        c if unicodedata.category(c)[0] in "LMN" else " " for c in map(lower, unicodedata.normalize("NFKC", text or ""))
    ]
    return "".join(letters).split()


def lower(character):
    """Simple case mapping: one character to one character."""
    low = character.lower()
    return low if len(low) == 1 else "i"


def words_by_row(texts, **options):
    tokens = tokenize(texts, **options)
    tokens.words.validate(full=True)
    words = tokens.words.to_pylist()
    return [words[a:b] for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


alphabet = st.characters(codec="utf-8", exclude_categories=["Cn"]) | st.sampled_from("aB9 .'\n\t\0éÅñ½ﬁİΣשلمक्षि한ᄒ ́")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | st.text(alphabet, max_size=12), max_size=8))
@example(["a\nb", "c", "\n", "é\nü"])
@example(["", None, ""])
@example(["e", "\u0301x", "e\u0301"])
def test_every_text_is_cut_by_the_documented_rule(texts):
    known = [t for t in texts if t is None or all(unicodedata.unidata_version and ord(c) < 0x1C80 for c in t)]
    assert words_by_row(pa.array(known, pa.string())) == [by_the_rule(t) for t in known]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, Zoë!", ["don", "t", "stop", "zoë"]),
        ("e\u0301te\u0301", ["été"]),
        ("ﬁne ½ Å", ["fine", "1", "2", "å"]),
        ("a\0b", ["a", "b"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("日本語 テスト", ["日本語", "テスト"]),
        ("a\u00a0b\u2028c\u3000d", ["a", "b", "c", "d"]),
        ("x_y-z@w.com", ["x", "y", "z", "w", "com"]),
        ("👩‍💻 hi", ["hi"]),
        ("  ", []),
        ("…", []),
    ],
)
def test_examples(text, words):
    assert words_by_row(pa.array([text])) == [words]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab é", max_size=6), min_size=1, max_size=8), st.data())
def test_a_slice_has_its_own_words(texts, data):
    start = data.draw(st.integers(0, len(texts)))
    length = data.draw(st.integers(0, len(texts) - start))
    array = pa.array(texts, pa.string())
    assert words_by_row(array.slice(start, length)) == words_by_row(array)[start : start + length]


@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["A b", None], pa.large_string()),
        pa.array(["A b", None]).dictionary_encode(),
        pa.array(["A b", None], pa.string()),
    ],
)
def test_all_arrow_types_of_text(texts):
    assert words_by_row(texts) == [["a", "b"], []]


def test_column_of_nulls_has_no_words():
    assert words_by_row(pa.nulls(3)) == [[], [], []]


def test_what_is_not_text_is_refused_without_its_content():
    with pytest.raises(InputError, match="must hold text, not int64") as refused:
        tokenize(pa.array([4242]))
    assert "4242" not in str(refused.value)


def test_no_text_at_all():
    tokens = tokenize(pa.array([], pa.string()))
    assert len(tokens.words) == 0 and np.array_equal(tokens.offsets, [0])


@pytest.mark.parametrize("limit", range(1, 12))
def test_long_texts_are_cut_between_characters(limit):
    texts = ["éé éé éé", "ab", None]
    kept = [(t or "").encode()[:limit].decode(errors="ignore") for t in texts]
    assert words_by_row(pa.array(texts), max_bytes=limit) == [by_the_rule(t) for t in kept]
