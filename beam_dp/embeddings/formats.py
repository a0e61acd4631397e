"""Readers of word vectors: each streams blocks of (words, vectors, line numbers) in the order of the file.

====================  =================================================================================
format                what it is
====================  =================================================================================
``glove``             text, a word and d numbers a line, no header
``word2vec_text``     the same after a header line ``V d``
``fasttext_vec``      fastText's ``.vec``: as ``word2vec_text``
``word2vec_binary``   a header line ``V d``, then for each word its bytes, a space and d little-endian float32
``gensim``            a saved gensim ``KeyedVectors``, or a model that has one, ``PoincareModel`` among them (needs
                      the extra ``gensim``)
``npy``               a ``.npy`` matrix (V, d) and a text file with one word a line
====================  =================================================================================

All but ``gensim`` may be gzipped, which is told from the first bytes. A text line is read from the right, since words
may hold spaces: the last d fields are the vector. What a word may be is not decided here but by
`beam_dp.embeddings.vocabulary`; a reader refuses what it cannot tell apart: ragged lines, fields that are not numbers,
headers that disagree with the content, and words that are not UTF-8. Every refusal names the file and the line (of a
binary file, the record). A gensim file is a pickle: load only those you trust.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_dp.embeddings.files import open_binary
from beam_dp.errors import ArgumentError, InputError, require_choice

FORMATS = ("auto", "glove", "word2vec_text", "word2vec_binary", "fasttext_vec", "gensim", "npy")

_READ_BYTES = 1 << 22
_BLOCK_BYTES = 1 << 23
_GZIP_MAGIC = b"\x1f\x8b"
_FASTTEXT_MODEL_MAGIC = b"\xba\x16\x4f\x2f"
_BOM = b"\xef\xbb\xbf"
_NPY_HEADERS: dict[tuple[int, int], Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Block:
    """Some consecutive words of a source.

    Attributes:
        words: (n,) strings, valid UTF-8, otherwise as in the source.
        vectors: (n, d) float32, otherwise as in the source.
        lines: (n,) int64, the line (record) of each, from 1.
    """

    words: pa.StringArray
    vectors: npt.NDArray[np.float32]
    lines: npt.NDArray[np.int64]


def read_vectors(vectors: str, words: str | None = None, format: str = "auto") -> Iterator[Block]:
    """The blocks of the file ``vectors``; opens it at once, so that a wrong argument fails at the call.

    Args:
        vectors: path or URI (any Beam file system; ``gensim`` reads local files only).
        words: for ``npy`` alone: the file with one word a line.
        format: one of `FORMATS`; ``auto`` goes by the name and the first line.

    Raises:
        ArgumentError: an unknown format, ``words`` missing or out of place, or gensim not installed.
        InputError: the file is missing, or (while iterating) holds something a reader refuses.
    """
    require_choice("format", format, FORMATS)
    if format == "auto":
        format = detect_format(vectors)
    if (words is not None) != (format == "npy"):
        raise ArgumentError(
            "words must name the file with one word a line that goes with a .npy matrix"
            if words is None
            else f"words goes with a .npy matrix only, and {vectors} is read as {format}"
        )
    if format == "gensim":
        return _gensim_blocks(vectors)
    stream = _open(vectors)
    if format == "npy":
        return _npy_blocks(stream, vectors, _open(cast("str", words)), cast("str", words))
    if format == "word2vec_binary":
        return _binary_blocks(stream, vectors)
    return _text_blocks(stream, vectors, header=format != "glove")


def detect_format(vectors: str) -> str:
    """The format of the file ``vectors``, by its name and, for text, its first line."""
    name = PurePosixPath(vectors).name.lower().removesuffix(".gz")
    by_suffix = {
        ".npy": "npy", ".vec": "fasttext_vec", ".bin": "word2vec_binary",
        ".kv": "gensim", ".model": "gensim", ".wordvectors": "gensim",
    }  # fmt: skip
    found = by_suffix.get(PurePosixPath(name).suffix)
    if found:
        return found
    with contextlib.closing(_open(vectors)) as stream:
        first, _, _ = _read(stream, _READ_BYTES, vectors).partition(b"\n")
    return "glove" if _header(first) is None else "word2vec_text"


def _open(path: str) -> BinaryIO:
    raw = io.BufferedReader(cast("io.RawIOBase", open_binary(path)), _READ_BYTES)
    start = raw.peek(4)[:4]
    if start == _FASTTEXT_MODEL_MAGIC:
        raise InputError(f"{path} is a fastText model, which also holds subwords: give its .vec file")
    return cast("BinaryIO", gzip.GzipFile(fileobj=raw) if start.startswith(_GZIP_MAGIC) else raw)


def _header(line: bytes) -> tuple[int, int] | None:
    """(V, d) of a header line, or None if it is none."""
    fields = line.split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _read(stream: BinaryIO, count: int, path: str) -> bytes:
    try:
        return stream.read(count)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is not a whole gzip file ({error}): get it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _checked_words(words: pa.StringArray, lines: npt.NDArray[np.int64], path: str, unit: str) -> pa.StringArray:
    """``words`` if they are UTF-8, else InputError with the first line that is not."""
    try:
        words.validate(full=True)
    except pa.ArrowInvalid:
        for word, line in zip(words.cast(pa.binary()).to_pylist(), lines.tolist(), strict=True):
            try:
                word.decode()
            except UnicodeDecodeError:
                raise InputError(f"{path}, {unit} {line}: the word is not UTF-8") from None
        raise InputError(f"{path}: a word from {unit} {lines[0]} on is not UTF-8") from None
    return words


def _string_array(data: npt.NDArray[np.uint8] | bytes, lengths: npt.NDArray[np.int64]) -> pa.StringArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(data))


# Text


def _text_blocks(stream: BinaryIO, path: str, header: bool) -> Iterator[Block]:
    with contextlib.closing(stream):
        line, expected, dimension = 1, None, None
        rest = _read(stream, _READ_BYTES, path).removeprefix(_BOM)
        if header:
            first, _, rest = rest.partition(b"\n")
            found = _header(first)
            if found is None or found[1] < 1:
                raise InputError(f"{path}, line 1: not the header 'number-of-words dimension'")
            line, (expected, dimension) = 2, found
        done = 0
        while True:
            more = _read(stream, _READ_BYTES, path)
            text = rest + more
            if not text:
                break
            cut = text.rfind(b"\n") + 1 if more else len(text)
            text, rest = text[:cut], text[cut:]
            if not text:
                continue
            text = (text if text.endswith(b"\n") else text + b"\n").replace(b"\r\n", b"\n").replace(b" \n", b"\n")
            if dimension is None:
                dimension = text[: text.index(b"\n")].count(b" ")
                if dimension < 1:
                    raise InputError(f"{path}, line 1: not a word and its numbers, separated by single spaces")
            block = _parse_lines(text, dimension, line, path)
            yield block
            line += len(block.words)
            done += len(block.words)
    if expected is not None and done != expected:
        raise InputError(f"{path}, line 1: the header says {expected} words, the file holds {done}")


def _parse_lines(text: bytes, dimension: int, line: int, path: str) -> Block:
    """The block of whole lines ``text``, of which the first is number ``line`` of the file."""
    data = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate(([0], ends[:-1] + 1))
    spaces = np.flatnonzero(data == ord(" "))
    before = np.searchsorted(spaces, ends)
    fields = before - np.searchsorted(spaces, starts)
    if (fields < dimension).any():
        at = int((fields < dimension).argmax())
        raise InputError(
            f"{path}, line {line + at}: a word and {dimension} numbers expected, as line 1 has it, "
            f"not {fields[at] + 1} fields"
        )
    cuts = spaces[before - dimension]
    edges = np.zeros(len(data), dtype=np.int8)
    edges[starts] += 1
    edges[cuts] -= 1
    in_word = np.cumsum(edges, dtype=np.int8).view(bool)
    lines = np.arange(line, line + len(ends))
    words = _checked_words(_string_array(data[in_word], cuts - starts), lines, path, "line")
    numbers = np.where(in_word, np.uint8(ord(" ")), data)
    values = _parse_numbers(numbers)
    if values is None or len(values) != len(ends) * dimension:
        at = _first_bad_line(numbers, starts, ends, dimension)
        raise InputError(
            f"{path}, line {line + at}: the last {dimension} fields are not {dimension} numbers separated by single "
            "spaces"
        )
    _refuse_long_lines(words, lines, fields > dimension, dimension, path)
    return Block(words, values.reshape(-1, dimension), lines)


def _parse_numbers(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
    """The numbers in ``text``, which spaces and line ends separate; None if something else is among them."""
    if ((text < ord(" ")) & (text != ord("\n"))).any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.fromstring(text.tobytes(), dtype=np.float32, sep=" ")
        except (ValueError, DeprecationWarning):
            return None


def _first_bad_line(
    numbers: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], dimension: int
) -> int:
    """The first line of a block that does not hold ``dimension`` numbers; there is one if the block does not parse."""
    for at, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        values = _parse_numbers(numbers[start:end])
        if values is None or len(values) != dimension:
            return at
    raise AssertionError("a block that does not parse has a line that does not parse")


def _refuse_long_lines(
    words: pa.StringArray, lines: npt.NDArray[np.int64], long: npt.NDArray[np.bool_], dimension: int, path: str
) -> None:
    """InputError for a line with more numbers than d: what is read as a word with spaces ends in a number."""
    for at in np.flatnonzero(long).tolist():
        last = words[at].as_py().rpartition(" ")[2]
        try:
            float(last)
        except ValueError:
            continue
        raise InputError(f"{path}, line {lines[at]}: more than {dimension} numbers")


# Binary


def _binary_blocks(stream: BinaryIO, path: str) -> Iterator[Block]:
    with contextlib.closing(stream):
        buffer = _read(stream, _READ_BYTES, path)
        first, _, buffer = buffer.partition(b"\n")
        found = _header(first)
        if found is None or found[1] < 1:
            raise InputError(f"{path}, line 1: not the header 'number-of-words dimension' of a word2vec file")
        expected, dimension = found
        width = 4 * dimension
        per_block = max(1, _BLOCK_BYTES // width)
        position = done = 0
        while done < expected:
            words: list[bytes] = []
            vectors: list[bytes] = []
            for _ in range(min(per_block, expected - done)):
                space = buffer.find(b" ", position)
                while space < 0 or space + 1 + width > len(buffer):
                    more = _read(stream, _READ_BYTES, path)
                    if not more:
                        raise InputError(
                            f"{path}, record {done + len(words) + 1}: the file ends here, "
                            f"its header says {expected} words"
                        )
                    buffer, position = buffer[position:] + more, 0
                    space = buffer.find(b" ")
                # The C tool ends each vector with a line end, others do not.
                words.append(buffer[position:space].removeprefix(b"\n"))
                vectors.append(buffer[space + 1 : space + 1 + width])
                position = space + 1 + width
            lines = np.arange(done + 1, done + 1 + len(words))
            lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
            matrix = np.frombuffer(b"".join(vectors), dtype="<f4").astype(np.float32).reshape(-1, dimension)
            yield Block(_checked_words(_string_array(b"".join(words), lengths), lines, path, "record"), matrix, lines)
            done += len(words)
        if (buffer[position:] + _read(stream, 2, path)).strip(b"\n"):
            raise InputError(f"{path}: data after record {expected}, the number of words in the header")


# NumPy


def _npy_blocks(stream: BinaryIO, path: str, words_stream: BinaryIO, words_path: str) -> Iterator[Block]:
    with contextlib.closing(stream), contextlib.closing(words_stream):
        lines = _word_lines(words_stream, words_path)
        done = 0
        for size, rows in _npy_rows(stream, path):
            words = list(islice(lines, len(rows)))
            if len(words) < len(rows):
                raise InputError(f"{words_path} holds {done + len(words)} words, {path} has {size} rows")
            numbers = np.arange(done + 1, done + 1 + len(rows))
            lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
            checked = _checked_words(_string_array(b"".join(words), lengths), numbers, words_path, "line")
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused later
                yield Block(checked, rows.astype(np.float32, order="C"), numbers)
            done += len(rows)
        if next(lines, None) is not None:
            raise InputError(f"{words_path} holds more than the {done} words that {path} has rows")


def _npy_rows(stream: BinaryIO, path: str) -> Iterator[tuple[int, npt.NDArray]]:
    """The number of rows of a matrix, with some of them at a time; in Fortran order the file is held in memory."""
    try:
        shape, fortran, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError, EOFError, gzip.BadGzipFile):
        raise InputError(f"{path} is not a .npy file of format 1.0 or 2.0") from None
    if len(shape) != 2 or shape[1] < 1 or dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(
            f"{path} must hold a matrix (words, dimension) of float16, float32 or float64, not {dtype} {shape}"
        )
    size, dimension = shape
    width = dtype.itemsize * dimension
    step = max(1, size if fortran else _BLOCK_BYTES // width)
    for start in range(0, size, step):
        count = min(step, size - start)
        data = _read_exactly(stream, count * width, path)
        if len(data) < count * width:
            where = "early" if fortran else f"in row {start + len(data) // width + 1}"
            raise InputError(f"{path}: the file ends {where}, its header says {size} rows")
        yield size, np.frombuffer(data, dtype=dtype).reshape(count, dimension, order="F" if fortran else "C")
    if _read(stream, 1, path):
        raise InputError(f"{path}: data after row {size}, the number of rows in its header")


def _read_exactly(stream: BinaryIO, count: int, path: str) -> bytes:
    """``count`` bytes, or what is left."""
    parts: list[bytes] = []
    while count and (part := _read(stream, count, path)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _word_lines(stream: BinaryIO, path: str) -> Iterator[bytes]:
    """The lines of a words file, without their line ends."""
    rest = _read(stream, _READ_BYTES, path).removeprefix(_BOM)
    while rest:
        more = _read(stream, _READ_BYTES, path)
        *lines, rest = (rest + more).split(b"\n")
        if not more and rest:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.removesuffix(b"\r")


# gensim


def _gensim_blocks(path: str) -> Iterator[Block]:
    try:
        from gensim.models import KeyedVectors  # noqa: PLC0415 (an optional dependency)
    except ImportError:
        raise ArgumentError("format gensim needs the extra: pip install 'beam_dp[gensim]'") from None
    try:
        loaded = KeyedVectors.load(path)
        keyed = getattr(loaded, "wv", getattr(loaded, "kv", loaded))
        words, matrix = list(keyed.index_to_key), keyed.vectors
    except Exception as error:
        raise InputError(f"{path} cannot be read as gensim KeyedVectors: {type(error).__name__}") from None
    return _gensim_slices(words, matrix, path)


def _gensim_slices(words: list[str], matrix: npt.NDArray, path: str) -> Iterator[Block]:
    step = max(1, _BLOCK_BYTES // (4 * max(1, matrix.shape[1])))
    for start in range(0, len(words), step):
        part = words[start : start + step]
        lines = np.arange(start + 1, start + 1 + len(part))
        try:
            block = pa.array(part, pa.string())
        except (pa.ArrowException, UnicodeError, TypeError):
            raise InputError(f"{path}, records {lines[0]} to {lines[-1]}: a key is not a UTF-8 string") from None
        yield Block(block, np.asarray(matrix[start : start + len(part)], dtype=np.float32), lines)
