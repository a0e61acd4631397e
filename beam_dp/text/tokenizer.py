"""The public tokeniser: texts to words, in Arrow kernels and numpy, without a Python step per row.

The rule, which is part of what is public:

1. Unicode NFKC, then lower case (simple case mapping).
2. A word is a longest run of letters, marks and numbers (Unicode categories L, M and N). Everything else (white space,
   punctuation, symbols, control characters, NUL) separates words and is not kept. So ``Don't stop, Zoë!`` is
   ``don t stop zoë``.
3. A null text has no words, like an empty one.

Right-to-left text is in logical order, as it is stored; combining marks are composed by NFKC where Unicode has a
composed letter, and stay part of the word where it has not.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.errors import InputError

_NOT_WORD = r"[^\p{L}\p{M}\p{N}]+"


def _byte_table() -> npt.NDArray[np.uint8]:
    """ASCII letters to lower case, digits and bytes of longer UTF-8 sequences as they are, the rest to 0."""
    table = np.zeros(256, dtype=np.uint8)
    table[0x80:] = np.arange(0x80, 0x100)
    for byte in b"0123456789abcdefghijklmnopqrstuvwxyz":
        table[byte] = byte
    table[ord("A") : ord("Z") + 1] = table[ord("a") : ord("z") + 1]
    return table


_BYTES = _byte_table()


@dataclass(frozen=True, eq=False)
class Words:
    """The words of n texts, one after the other.

    Attributes:
        words: (m,) string, all words of all texts.
        offsets: (n + 1,) int64; text i has ``words[offsets[i]:offsets[i + 1]]``.
    """

    words: pa.StringArray
    offsets: npt.NDArray[np.int64]


def tokenize(texts: pa.Array, max_bytes: int | None = None) -> Words:
    """The words of each text by the rule of this module.

    Args:
        texts: (n,) string, large_string or dictionary of either; may have nulls.
            All of it must be valid UTF-8, which pyarrow does not check when it reads.
        max_bytes: read each text up to this many bytes of UTF-8 only (cut between characters); None reads it all.

    Raises:
        InputError: ``texts`` holds something else than text.
    """
    column = as_string(texts)
    if max_bytes is not None:
        column = _cut(column, max_bytes)
    column = _normalize(column)
    offsets, data = _string_buffers(column)
    lower = _BYTES[data]
    inside = lower != 0
    before = np.empty_like(inside)
    before[:1] = False
    before[1:] = inside[:-1]
    before[offsets[:-1][offsets[:-1] < len(data)]] = False
    starts = np.flatnonzero(inside & ~before)
    after = np.empty_like(inside)
    after[-1:] = False
    after[:-1] = inside[1:] & before[1:]
    lengths = np.flatnonzero(inside & ~after) - starts
    lengths += 1
    ends = np.zeros(len(starts) + 1, dtype=np.int32)
    np.cumsum(lengths, out=ends[1:])
    words = pa.StringArray.from_buffers(len(starts), pa.py_buffer(ends), pa.py_buffer(lower[inside]))
    return Words(words, np.searchsorted(starts, offsets))


def as_string(texts: pa.Array) -> pa.StringArray:
    """``texts`` (string, large_string, dictionary of either, or nulls) as a string array without nulls.

    Raises:
        InputError: ``texts`` holds something else than text.
    """
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    if pa.types.is_large_string(texts.type):
        texts = texts.cast(pa.string())
    if pa.types.is_null(texts.type):
        return pa.nulls(len(texts), pa.string()).fill_null("")
    if not pa.types.is_string(texts.type):
        # Of nested types the names of their fields may be data.
        raise InputError(f"the text column must hold text, not {str(texts.type).split('<')[0]}")
    return texts.fill_null("") if texts.null_count else texts


def _cut(texts: pa.StringArray, max_bytes: int) -> pa.StringArray:
    """``texts``, each cut to at most ``max_bytes`` bytes between two characters."""
    long = np.flatnonzero(np.diff(_offsets(texts)) > max_bytes)
    if not len(long):
        return texts
    # Only texts of a megabyte and more come here, so a step per text costs nothing beside reading it.
    heads = [texts[int(i)].as_buffer()[:max_bytes].to_pybytes().decode("utf-8", errors="ignore") for i in long]
    mask = np.zeros(len(texts), dtype=bool)
    mask[long] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(heads, pa.string()))


def _normalize(texts: pa.StringArray) -> pa.StringArray:
    """NFKC, lower case and separators for the texts beyond ASCII; ASCII is done bytewise later."""
    _, data = _string_buffers(texts)
    if not len(data) or data.max() < 0x80:
        return texts
    beyond = pc.invert(pc.string_is_ascii(texts))
    # pyarrow's utf8_normalize leaves NFKC decomposed (measured up to 25.0), so Python's does it, for all rows at once:
    # a line feed composes with nothing, and it only separates words, so it can stand between the rows.
    rows = pc.replace_substring(texts.filter(beyond), "\n", " ")
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows), "\n")
    normal = pc.split_pattern(pa.array([unicodedata.normalize("NFKC", joined[0].as_py())]), "\n").values
    words_only = pc.replace_substring_regex(pc.utf8_lower(normal), _NOT_WORD, " ")
    return pc.replace_with_mask(texts, beyond, words_only)


def _offsets(texts: pa.StringArray) -> npt.NDArray[np.int64]:
    """(n + 1,) byte offsets into the values buffer."""
    buffer = texts.buffers()[1]
    if not len(texts) or buffer is None:
        return np.zeros(len(texts) + 1, dtype=np.int64)
    raw = np.frombuffer(buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return raw.astype(np.int64)


def _string_buffers(texts: pa.StringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """(n + 1,) offsets from 0 and the bytes they point into."""
    offsets = _offsets(texts)
    buffer = texts.buffers()[2]
    if buffer is None or offsets[-1] == offsets[0]:
        return np.zeros(len(texts) + 1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    data = np.frombuffer(buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], data
