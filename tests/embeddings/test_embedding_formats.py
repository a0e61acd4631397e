from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_dp.embeddings import formats
from beam_dp.embeddings.formats import read_vectors
from beam_dp.errors import ArgumentError, InputError

WORDS = ["the", "naïve", "日本", "x'\"y", "0"]
VECTORS = np.array([[1.5, -2, 0.25], [0, 1e-3, 3], [-1, -1, -1], [7, 8, 9], [1e5, 0, 1]], dtype=np.float32)


def text(header: bool, end: str = "\n") -> bytes:
    lines = [f"{len(WORDS)} 3"] if header else []
    lines += [" ".join([word, *map(str, row.tolist())]) for word, row in zip(WORDS, VECTORS, strict=True)]
    return "".join(line + end for line in lines).encode()


def binary(end: bytes) -> bytes:
    records = [word.encode() + b" " + row.tobytes() + end for word, row in zip(WORDS, VECTORS, strict=True)]
    return b"5 3\n" + b"".join(records)


def collect(vectors: Path, words: Path | None = None, format: str = "auto") -> tuple[list[str], np.ndarray, list[int]]:
    blocks = list(read_vectors(str(vectors), None if words is None else str(words), format))
    return (
        [word for block in blocks for word in block.words.to_pylist()],
        np.concatenate([block.vectors for block in blocks]),
        [line for block in blocks for line in block.lines.tolist()],
    )


def check(found: tuple[list[str], np.ndarray, list[int]], first_line: int) -> None:
    words, vectors, lines = found
    assert words == WORDS
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, VECTORS)
    assert lines == list(range(first_line, first_line + len(WORDS)))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "case",
    [
        ("v.txt", text(False), "glove", 1),
        ("v.txt", text(False), "auto", 1),
        ("v.txt", text(False, "\r\n"), "auto", 1),
        ("v.txt", b"\xef\xbb\xbf" + text(False), "auto", 1),
        ("v.txt", text(False)[:-1], "auto", 1),
        ("v.txt", text(True), "word2vec_text", 2),
        ("v.txt", text(True), "auto", 2),
        ("v.vec", text(True, " \n"), "auto", 2),
        ("v.vec", text(True), "fasttext_vec", 2),
        ("v.bin", binary(b"\n"), "auto", 1),
        ("v.dat", binary(b""), "word2vec_binary", 1),
    ],
)
def test_reads_every_format(tmp_path: Path, packed: bool, case: tuple[str, bytes, str, int]) -> None:
    name, content, format, first_line = case
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    check(collect(path, format=format), first_line)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_a_matrix_and_its_words(tmp_path: Path, packed: bool, dtype: str, order: str) -> None:
    vectors, words = tmp_path / "v.npy", tmp_path / "w.txt"
    small = VECTORS.copy()
    small[4, 0] = 12.0  # 1e5 is beyond float16
    np.save(vectors, small.astype(dtype, order=order))
    words.write_bytes("\n".join(WORDS).encode())
    if packed:
        for path in (vectors, words):
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        vectors, words = tmp_path / "v.npy.gz", tmp_path / "w.txt.gz"
    found, matrix, lines = collect(vectors, words)
    assert (found, lines) == (WORDS, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(matrix, small.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("model", [False, True], ids=["vectors", "model"])
def test_reads_gensim(tmp_path: Path, model: bool) -> None:
    from gensim.models import KeyedVectors, Word2Vec

    if model:
        trained = Word2Vec([WORDS], vector_size=3, min_count=1)
        trained.save(str(tmp_path / "v.model"))
        words, vectors, lines = collect(tmp_path / "v.model")
        assert words == trained.wv.index_to_key
        np.testing.assert_array_equal(vectors, trained.wv.vectors)
        assert lines == [1, 2, 3, 4, 5]
    else:
        keyed = KeyedVectors(3)
        keyed.add_vectors(WORDS, VECTORS)
        keyed.save(str(tmp_path / "v.kv"))
        check(collect(tmp_path / "v.kv"), 1)


def test_gensim_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(ArgumentError, match=r"pip install 'beam_dp\[gensim\]'"):
        read_vectors(str(tmp_path / "v.kv"))


def test_gensim_refuses_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "v.kv").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match=r"v\.kv cannot be read as gensim KeyedVectors"):
        read_vectors(str(tmp_path / "v.kv"))


def test_blocks_join_where_a_read_ends_inside_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_READ_BYTES", 37)
    monkeypatch.setattr(formats, "_BLOCK_BYTES", 24)
    for name, content, first in (
        ("v.txt", text(False), 1), ("v.vec", text(True), 2), ("v.bin", binary(b"\n"), 1), ("w.bin", binary(b""), 1),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        check(collect(tmp_path / name), first)
    np.save(tmp_path / "v.npy", VECTORS)
    (tmp_path / "w.txt").write_text("\n".join(WORDS) + "\n")
    check(collect(tmp_path / "v.npy", tmp_path / "w.txt"), 1)


def test_a_word_may_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("a 1 2\n. . . 3 4\nat name@domain.com 5 6\n 7 8\n")
    words, vectors, _ = collect(tmp_path / "v.txt")
    assert words == ["a", ". . .", "at name@domain.com", ""]
    np.testing.assert_array_equal(vectors, [[1, 2], [3, 4], [5, 6], [7, 8]])


def test_nan_and_infinity_are_numbers_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("a 1 2\nb nan -inf\n")
    _, vectors, _ = collect(tmp_path / "v.txt")
    np.testing.assert_array_equal(vectors[1], [np.nan, -np.inf])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"a 1 2\nb 1\n", r"v\.txt, line 2: a word and 2 numbers expected.* not 2 fields"),
        ("v.txt", b"a 1 2\nb 1 2 3\n", r"v\.txt, line 2: more than 2 numbers"),
        ("v.txt", b"a 1 2\n\nb 1 2\n", r"v\.txt, line 2: a word and 2 numbers expected"),
        ("v.txt", b"a 1 2\nb 1 x\nc 1 2\n", r"v\.txt, line 2: the last 2 fields are not 2 numbers"),
        ("v.txt", b"a 1 2\nb 1  2\n", r"v\.txt, line 2: the last 2 fields are not 2 numbers"),
        ("v.txt", b"a 1 2\nb 1\t2 3\nc 1  2\n", r"v\.txt, line 2: the last 2 fields are not 2 numbers"),
        ("v.txt", b"a 1 2\nb\xff 1 2\n", r"v\.txt, line 2: the word is not UTF-8"),
        ("v.txt", b"alone\n", r"v\.txt, line 1: not a word and its numbers"),
        ("v.txt", b"3 2\na 1 2\nb 1 2\n", r"v\.txt, line 1: the header says 3 words, the file holds 2"),
        ("v.vec", b"1 2\na 1 2\nb 1 2\n", r"v\.vec, line 1: the header says 1 words, the file holds 2"),
        ("v.vec", b"2 3\na 1 2\nb 1 2\n", r"v\.vec, line 2: a word and 3 numbers expected"),
        ("v.vec", b"2 1\na 1 2\nb 1 2\n", r"v\.vec, line 2: more than 1 numbers"),
        ("v.vec", b"a 1 2\n", r"v\.vec, line 1: not the header"),
        ("v.vec", b"5 0\n", r"v\.vec, line 1: not the header"),
        ("v.bin", b"five three\n", r"v\.bin, line 1: not the header"),
        ("v.bin", binary(b"\n")[:-9], r"v\.bin, record 5: the file ends here, its header says 5 words"),
        ("v.bin", binary(b"\n") + b"more", r"v\.bin: data after record 5"),
        ("v.bin", b"1 1\n\xff\xfe " + bytes(4), r"v\.bin, record 1: the word is not UTF-8"),
        ("v.bin", b"\xba\x16\x4f\x2f" + bytes(20), r"v\.bin is a fastText model.*\.vec"),
        ("v.txt.gz", gzip.compress(text(False), mtime=0)[:-12], r"v\.txt\.gz is not a whole gzip file"),
        ("v.txt.gz", gzip.compress(text(False), mtime=0)[:20] + b"\xff" * 40, r"v\.txt\.gz is not a whole gzip file"),
    ],
)
def test_refusals_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        collect(tmp_path / name)


@pytest.mark.parametrize(
    ("matrix", "words", "message"),
    [
        (np.zeros((2, 2), np.int32), "a\nb", r"v\.npy must hold a matrix .* not int32"),
        (np.zeros(2, np.float32), "a\nb", r"v\.npy must hold a matrix"),
        (np.ones((2, 2), np.float32), "a", r"w\.txt holds 1 words, .*v\.npy has 2 rows"),
        (np.ones((2, 2), np.float32), "a\nb\nc", r"w\.txt holds more than the 2 words"),
    ],
)
def test_matrix_refusals(tmp_path: Path, matrix: np.ndarray, words: str, message: str) -> None:
    np.save(tmp_path / "v.npy", matrix)
    (tmp_path / "w.txt").write_text(words)
    with pytest.raises(InputError, match=message):
        collect(tmp_path / "v.npy", tmp_path / "w.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"nothing", r"v\.npy is not a \.npy file"),
        (lambda data: data[:-1], r"v\.npy: the file ends in row 2, its header says 2 rows"),
        (lambda data: data + b"x", r"v\.npy: data after row 2"),
        (lambda data: data.replace(b"'fortran_order': False", b"'fortran_order': True ")[:-1], "the file ends early"),
    ],
)
def test_a_damaged_matrix(tmp_path: Path, change, message: str) -> None:
    np.save(tmp_path / "v.npy", np.ones((2, 2), np.float32))
    (tmp_path / "v.npy").write_bytes(change((tmp_path / "v.npy").read_bytes()))
    (tmp_path / "w.txt").write_text("a\nb")
    with pytest.raises(InputError, match=message):
        collect(tmp_path / "v.npy", tmp_path / "w.txt")


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(text(False))
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(ArgumentError, match="format must be one of"):
        read_vectors(str(tmp_path / "v.txt"), format="csv")
    with pytest.raises(ArgumentError, match=r"words goes with a \.npy matrix only"):
        read_vectors(str(tmp_path / "v.txt"), str(tmp_path / "v.txt"))
    with pytest.raises(ArgumentError, match="words must name the file"):
        read_vectors(str(tmp_path / "v.npy"))
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        read_vectors(str(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match="cannot be opened"):
        read_vectors("nosuchscheme://bucket/v.bin")


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters=" \n\r"), min_size=1, max_size=5),
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_text_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[float]]]) -> None:
    path = tmp_path_factory.mktemp("text") / "v.txt"
    path.write_bytes("".join(f"{word} {' '.join(map(repr, row))}\n" for word, row in rows).encode())
    words, vectors, lines = collect(path, format="glove")
    # A byte order mark at the start of the file is not part of the first word.
    assert words == [rows[0][0].removeprefix("\ufeff"), *(word for word, _ in rows[1:])]
    np.testing.assert_array_equal(vectors, np.array([row for _, row in rows], dtype=np.float32))
    assert lines == list(range(1, len(rows) + 1))
