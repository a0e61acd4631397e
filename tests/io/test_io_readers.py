"""Each format read piece by piece, without Beam."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from io_support import read_batches, read_file, spec_of

from beam_dp.aggregate.columns import number_column
from beam_dp.errors import ArgumentError, InputError
from beam_dp.io import ReadBatches, position_of
from beam_dp.io.files import InputFile, find_inputs
from beam_dp.io.formats import resolve_format
from beam_dp.io.lines import LineBlock
from beam_dp.io.read import BATCHES, plan_pieces
from beam_dp.io.read_jsonl import check_jsonl, decode_block
from beam_dp.io.read_parquet import check_parquet
from beam_dp.io.source import ReadSpec

VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\t"), max_size=8)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
    "zstd": zstandard.compress,
    "deflate": zlib.compress,
    "xz": lzma.compress,
}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def as_input(path: Path) -> InputFile:
    return InputFile(str(path), path.name, path.stat().st_size)


# Splitting


@given(st.lists(VALUE, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_text_at_every_split(tmp_path_factory, values, line_end, last_end):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    content = line_end.join(values) + (line_end if last_end and values else "")
    path.write_bytes(content.encode())
    lines = content.split("\n")
    rows = [{"text": line.removesuffix("\r")} for line in (lines[:-1] if lines[-1] == "" else lines)]
    if content.startswith("\ufeff"):
        rows = [{"text": row["text"].removeprefix("\ufeff") if i == 0 else row["text"]} for i, row in enumerate(rows)]
        rows = [] if content == "\ufeff" else rows
    for size in range(1, len(content.encode()) + 2):
        assert read_file(path, "text", spec_of("text", batch_bytes=7), size) == (rows, [])


@given(st.lists(st.tuples(VALUE, VALUE), max_size=8))
@settings(max_examples=10, deadline=None)
def test_tsv_at_every_split(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    content = "".join(f"{a}\t{b}\n" for a, b in [("text", "id"), *values]).encode()
    path.write_bytes(content)
    rows = [{"id": b, "text": a} for a, b in values]
    for size in range(1, len(content) + 2):
        assert read_file(path, "tsv", spec_of("id", "text", batch_bytes=9), size) == (rows, [])


@given(st.lists(st.tuples(st.none() | TEXT, st.integers(-9, 9)), max_size=6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_jsonl_at_every_split(tmp_path_factory, values, ascii_only):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    rows = [{"text": text, "n": number} for text, number in values]
    content = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows).encode()
    path.write_bytes(content)
    for size in range(1, len(content) + 2, 3):
        assert read_file(path, "jsonl", spec_of("text", "n", batch_bytes=50), size) == (rows, [])


@pytest.mark.parametrize("split_bytes", [100, 1000, 4000, 10**6])
def test_parquet_row_groups_belong_to_one_piece_each(tmp_path, split_bytes):
    table = pa.table({"n": range(1000), "text": [f"text {i}" for i in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    found = read_batches(tmp_path / "a.parquet", "parquet", spec_of("text", "n", batch_rows=40), split_bytes)
    full = [batch for tag, batch in found if tag == BATCHES and batch.num_rows]
    assert [row["n"] for batch in full for row in batch.to_pylist()] == list(range(1000))
    assert all(batch.num_rows <= 40 for batch in full)
    assert [position_of(batch).offset for batch in full] == [batch.column("n")[0].as_py() for batch in full]
    pieces = {position_of(batch).piece for batch in full}
    assert len(pieces) == 1 if split_bytes == 10**6 else len(pieces) > 1


def test_a_parquet_range_that_begins_with_a_row_group_owns_it(tmp_path):
    pq.write_table(pa.table({"text": [str(i) for i in range(30)]}), tmp_path / "a.parquet", row_group_size=10)
    second = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0)
    rows, _ = read_file(tmp_path / "a.parquet", "parquet", spec_of("text"), second.dictionary_page_offset)
    assert rows == [{"text": str(i)} for i in range(30)]


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=8), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_pieces_own_every_byte_once_in_order(sizes, split_bytes):
    files = [InputFile(f"f{i}.txt{'.gz' if packed else ''}", f"f{i}", size) for i, (size, packed) in enumerate(sizes)]
    pieces = list(plan_pieces(files, "text", split_bytes))
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    ranges = [part for piece in pieces for part in piece.ranges]
    assert [(part.source, part.start) for part in ranges] == sorted({(part.source, part.start) for part in ranges})
    for index, file in enumerate(files):
        own = [part for part in ranges if part.source == index]
        assert own[0].start == 0
        assert own[-1].end in (None, file.size)
        assert [part.end for part in own[:-1]] == [part.start for part in own[1:]]
        assert len(own) == 1 or not file.is_compressed
    for piece in pieces:
        sized = [
            (file.size if part.end is None else part.end) - part.start for part in piece.ranges for file in [part.file]
        ]
        assert len(sized) == 1 or sum(sized) <= split_bytes


@pytest.mark.parametrize(("size", "pieces"), [(10, 1), (10 << 20, 10), (1 << 30, 64), (64 << 30, 1024)])
def test_pieces_suit_the_size_of_the_input(size, pieces):
    assert len(list(plan_pieces([InputFile("a.txt", "a.txt", size)], "text", None))) == pieces


def test_csv_files_are_never_split():
    assert len(list(plan_pieces([InputFile("a.csv", "a.csv", 10**6)], "csv", 10))) == 1


# Values


@pytest.mark.parametrize("extension", list(COMPRESS))
@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "tsv"])
def test_compressed_files(tmp_path, format, extension):
    plain = {
        "text": "".join(f"line {i}\n" for i in range(500)),
        "jsonl": "".join(f'{{"text": "line {i}"}}\n' for i in range(500)),
        "csv": "text\n" + "".join(f"line {i}\n" for i in range(500)),
        "tsv": "text\n" + "".join(f"line {i}\n" for i in range(500)),
    }[format].encode()
    compress = COMPRESS[extension]
    middle = plain.index(b"\n", len(plain) // 2) + 1
    path = written(tmp_path, f"a.{format}.{extension}", compress(plain[:middle]) + compress(plain[middle:]))
    rows, rejected = read_file(path, format, spec_of("text"))
    assert rows == [{"text": f"line {i}"} for i in range(500)]
    assert rejected == []
    damaged = written(tmp_path, f"b.{format}.{extension}", path.read_bytes()[:-7])
    with pytest.raises(InputError, match=rf"cannot read b\.{format}\.{extension}: .* corrupt or truncated"):
        read_file(damaged, format, spec_of("text"))


def test_something_else_under_a_compressed_name(tmp_path):
    with pytest.raises(InputError, match="corrupt or truncated"):
        read_file(written(tmp_path, "a.txt.gz", b"secret" * 100), "text", spec_of("text"))


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("compressed", [False, True])
def test_empty_files_give_one_batch_without_rows(tmp_path, format, compressed):
    path = written(tmp_path, "empty.gz" if compressed else "empty", gzip.compress(b"") if compressed else b"")
    [(tag, batch)] = read_batches(path, format, spec_of("text"))
    assert (tag, batch.num_rows, batch.schema.names, batch.schema.types) == (BATCHES, 0, ["text"], [pa.string()])


def test_text_rejects_bytes_that_are_not_utf8(tmp_path):
    path = written(tmp_path, "a.txt", b"\xef\xbb\xbfone\n\xfftwo\nth\0ree\r\n\xc3\n")
    assert read_file(path, "text", spec_of("text")) == (
        [{"text": "one"}, {"text": "th\0ree"}],
        [("invalid_unicode", 7), ("invalid_unicode", 20)],
    )


@pytest.mark.parametrize("format", ["text", "jsonl", "tsv"])
def test_rows_above_the_limit_are_rejected(tmp_path, format):
    wrap = {"text": "{}", "jsonl": '{{"text": "{}"}}', "tsv": "{}"}[format].format
    head = "text\n" if format == "tsv" else ""
    content = head + "".join(wrap(value) + "\n" for value in ("short", "x" * 300, "last"))
    path = written(tmp_path, "a", content.encode())
    rows, rejected = read_file(path, format, spec_of("text", max_row_bytes=100, batch_bytes=64))
    assert rows == [{"text": "short"}, {"text": "last"}]
    assert rejected == [("row_too_large", len(head) + len(wrap("short")) + 1)]


def test_tsv_quotes_are_data_and_ragged_rows_are_rejected(tmp_path):
    content = b'id\ttext\n1\t"quoted\n2\ta "b" c\r\n3\n4\ta\tb\n\n007\t\n\xff\tx\n'
    rows, rejected = read_file(written(tmp_path, "a.tsv", content), "tsv", spec_of("text", "id"))
    assert rows == [{"text": '"quoted', "id": "1"}, {"text": 'a "b" c', "id": "2"}, {"text": "", "id": "007"}]
    lines = {number: content.split(b"\n", number)[number] for number in (3, 4, 7)}
    offsets = {number: len(content) - len(rest) for number, rest in lines.items()}
    assert sorted(rejected) == [
        ("invalid_unicode", offsets[7]),
        ("wrong_column_count", offsets[3]),
        ("wrong_column_count", offsets[4]),
    ]


def test_tsv_of_one_column_keeps_empty_values(tmp_path):
    rows, _ = read_file(written(tmp_path, "a.tsv", b"text\na\n\nb\n"), "tsv", spec_of("text"))
    assert rows == [{"text": "a"}, {"text": ""}, {"text": "b"}]


@pytest.mark.parametrize(
    ("block", "values"),
    [
        (76, ["", "", "", "", "", "0", "", "0\x80\x80\x80\x80\x80𐀀𐀀", "00\x80𐀀", "0000000", "", "\0"]),
        (30, ["", "", "", "0𐀀", "", "00\x80", "0\x80𐀀", "0\x80\x80𐀀", "0000\x80\x80\0𐀀", ""]),
    ],
)
def test_csv_with_nul_at_the_end_of_a_block(tmp_path, block, values):
    pairs = list(zip(values[::2], values[1::2], strict=True))
    data = '"text","id"\n' + "".join(f'"{text}","{key}"\n' for text, key in pairs)
    path = written(tmp_path, "a.csv", data.encode() + b'"\xff\0","last"\n')
    for size in range(block - 3, block + 40):
        rows, rejected = read_file(path, "csv", spec_of("id", "text", batch_bytes=size))
        assert [(row["text"], row["id"]) for row in rows] == pairs
        assert rejected == [("invalid_unicode", len(pairs) + 2)]


@given(st.lists(st.tuples(TEXT, TEXT), max_size=10), st.sampled_from(["\n", "\r\n"]), st.integers(30, 200))
@settings(max_examples=60, deadline=None)
def test_csv_gives_back_what_the_csv_module_wrote(tmp_path_factory, values, line_end, block):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "id"), *values])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(out.getvalue().encode())
    rows, rejected = read_file(path, "csv", spec_of("id", "text", batch_bytes=block))
    assert rows == [{"id": b, "text": a} for a, b in values]
    assert rejected == []


def test_csv_rejects(tmp_path):
    content = b'a,text\n1,x\nsecret\n\n2,"two\nlines"\n3,\xff\n4,y,z\n007,""\n"open,1\n2,3\n'
    for block in (1 << 20, 40, 16):
        rows, rejected = read_file(written(tmp_path, "a.csv", content), "csv", spec_of("text", "a", batch_bytes=block))
        assert rows == [{"text": "x", "a": "1"}, {"text": "two\nlines", "a": "2"}, {"text": "", "a": "007"}]
        assert sorted(rejected) == [
            ("invalid_unicode", 5),
            ("unterminated_quote", 8),
            ("wrong_column_count", 3),
            ("wrong_column_count", 6),
        ]


@pytest.mark.parametrize("last", ['"open', 'a,"open', '"open\n2,3', 'a,"open\nb"",c\n', 'a,b,"open', '"closed","open'])
@pytest.mark.parametrize("columns", [("text",), ("id",), ("id", "text")])
def test_csv_quote_that_is_never_closed(tmp_path, last, columns):
    path = written(tmp_path, "a.csv", f"text,id\n1,2\n{last}".encode())
    rows, rejected = read_file(path, "csv", spec_of(*columns))
    assert rows == [{name: {"text": "1", "id": "2"}[name] for name in columns}]
    assert rejected == [("unterminated_quote", 3)]


def test_csv_of_one_column(tmp_path):
    rows, rejected = read_file(written(tmp_path, "a.csv", b'text\n"a"\n""\n\nb\n"open'), "csv", spec_of("text"))
    assert rows == [{"text": "a"}, {"text": ""}, {"text": "b"}]
    assert rejected == [("unterminated_quote", 5)]


def test_csv_rows_above_a_block_are_read_once(tmp_path):
    values = [f"{i} " * random.Random(i).choice([1, 1, 1, 2000]) for i in range(200)]
    lines = [f'"{value}",{i}\n' + ("short\n" if i % 7 == 0 else "") for i, value in enumerate(values)]
    path = written(tmp_path, "a.csv", ("text,n\n" + "".join(lines)).encode())
    rows, rejected = read_file(path, "csv", spec_of("text", "n", batch_bytes=256))
    assert rows == [{"text": value, "n": str(i)} for i, value in enumerate(values)]
    assert [reason for reason, _ in rejected] == ["wrong_column_count"] * 29


@pytest.mark.parametrize("row", ['"never closed ' + "secret " * 500, "secret " * 500])
def test_csv_row_above_the_limit_fails(tmp_path, row):
    path = written(tmp_path, "a.csv", f"text,n\na,1\n{row},2\nb,3\n".encode())
    with pytest.raises(InputError, match=r"a\.csv: a row after record \d+ is larger than 500 bytes") as caught:
        read_file(path, "csv", spec_of("text", batch_bytes=64, max_row_bytes=500))
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_jsonl_rejects_and_line_by_line(tmp_path):
    lines = [
        b'{"text": "a", "n": 1}',
        b"",
        b"not json secret",
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b'{"n": 2}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "b", "n": NaN}',
        b'{"text": "c", "n": null}  ',
        b'{"text": "d", "n": "\\udc00"}',
        b"[" * 100_000,
        b'{"text": "e"} {"text": "f"}',
        b"   ",
    ]
    rows, rejected = read_file(written(tmp_path, "a.jsonl", b"\n".join(lines)), "jsonl", spec_of("text", "n"))
    assert rows == [{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "c", "n": None}]
    starts = [sum(len(line) + 1 for line in lines[:index]) for index in range(len(lines))]
    reasons = {2: "malformed_json", 3: "not_text", 4: "invalid_unicode", 6: "malformed_json", 7: "invalid_unicode"}
    reasons |= {8: "malformed_json", 10: "invalid_unicode", 11: "malformed_json", 12: "malformed_json"}
    assert rejected == [(reason, starts[index]) for index, reason in reasons.items()]


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        (b'{"text": "a"}\n{"text": "b"} {"text": "c"}\n', [14]),
        (b'{"text": "a"}\n{"text":\n"d"}\n', [14, 23]),
        (b'{"text": "a"}\n{"text": "b"} {"text": "c"}\n{"text":\n"d"}\n', [14, 42, 51]),
    ],
)
def test_jsonl_lines_that_are_not_one_object_each(tmp_path, content, bad):
    rows, rejected = read_file(written(tmp_path, "a.jsonl", content), "jsonl", spec_of("text"))
    assert rows == [{"text": "a"}]
    assert rejected == [("malformed_json", position) for position in bad]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (["2020-01-01", "2021-02-03T04:05:06Z"], ["2020-01-01", "2021-02-03T04:05:06Z"]),
        ([1, 2.5], [1.0, 2.5]),
        ([2**53 + 1, 7], [2**53 + 1, 7]),
        ([2**53 + 1, 0.5], ["9007199254740993", "0.5"]),
        ([12345678901234567890123, 1], ["12345678901234567890123", "1"]),
        ([1, "x"], ["1", "x"]),
        ([True, None], [True, None]),
        ([None, None], [None, None]),
        ([[1, 2], []], [[1, 2], []]),
        ([{"d": "2020-01-01"}, {"d": "x"}], [{"d": "2020-01-01"}, {"d": "x"}]),
        ([{"a": 1}, [1]], ['{"a": 1}', "[1]"]),
        (["é", "\u0000"], ["é", "\u0000"]),
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_jsonl_kept_values_lose_nothing(tmp_path, values, read, damaged):
    content = "".join(json.dumps({"text": "t", "v": value}) + "\n" for value in values)
    path = written(tmp_path, "a.jsonl", (content + ("{\n" if damaged else "")).encode())
    rows, rejected = read_file(path, "jsonl", spec_of("text", "v"))
    assert [row["v"] for row in rows] == read
    assert len(rejected) == damaged


def test_jsonl_types_hold_from_block_to_block(tmp_path):
    rows = [{"text": "t", "n": i, "s": None if i > 5 else "2020-01-01", "x": i / 2} for i in range(200)]
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    spec = check_jsonl(as_input(path), spec_of("text", "n", "s", "x", batch_bytes=500))
    assert spec.types == pa.schema([("text", pa.string()), ("n", pa.int64()), ("s", pa.string()), ("x", pa.float64())])
    batches = [batch for _, batch in read_batches(path, "jsonl", spec)]
    assert len(batches) > 5
    assert all(batch.schema.equals(spec.types) for batch in batches)
    assert [row for batch in batches for row in batch.to_pylist()] == rows


def test_jsonl_kinds_that_change_between_blocks_do_not_fail(tmp_path):
    rows = [{"text": "t", "v": i if i < 100 else f"v{i}"} for i in range(200)]
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    spec = check_jsonl(as_input(path), spec_of("text", "v", batch_bytes=400))
    read, rejected = read_file(path, "jsonl", spec)
    assert [str(row["v"]) for row in read] == [str(row["v"]) for row in rows]
    assert rejected == []


# Parquet


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_of_any_kind_comes_out_as_string(tmp_path, kind):
    values = ["one", None, "", "zwölf"]
    if pa.types.is_dictionary(kind):
        column = pa.array(values).dictionary_encode()
    else:
        column = pa.array(values, pa.string()).cast(kind)
    pq.write_table(pa.table({"other": [1, 2, 3, 4], "text": column}), tmp_path / "a.parquet")
    spec = check_parquet(as_input(tmp_path / "a.parquet"), spec_of("text", "other"))
    [(_, batch)] = read_batches(tmp_path / "a.parquet", "parquet", spec)
    assert batch.schema.names == ["text", "other"]
    assert batch.schema.field("text").type == pa.string()
    assert batch.column("text").to_pylist() == values


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.timestamp("us"), pa.bool_()])
def test_parquet_text_column_of_another_type_is_refused(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.nulls(2, kind)}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' of a\.parquet must be string, binary .* not "):
        ReadBatches(str(tmp_path / "a.parquet"), text_column="text")


def test_parquet_rejects_strings_that_are_not_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    bad = pa.array([b"a", b"\xff", b"c", b"d"]).view(pa.string())
    pq.write_table(pa.table({"text": bad, "label": pa.array([b"x", b"x", b"\xfe", b"x"]).view(pa.string())}), path)
    rows, rejected = read_file(path, "parquet", spec_of("text", "label"))
    assert rows == [{"text": "a", "label": "x"}, {"text": "d", "label": "x"}]
    assert sorted(rejected) == [("invalid_unicode", 1), ("invalid_unicode", 2)]


def test_parquet_batches_are_bounded_by_bytes(tmp_path):
    pq.write_table(pa.table({"text": ["x" * 1000] * 500}), tmp_path / "a.parquet")
    batches = read_batches(tmp_path / "a.parquet", "parquet", spec_of("text", batch_bytes=20_000))
    assert sum(batch.num_rows for _, batch in batches) == 500
    assert max(batch.nbytes for _, batch in batches) <= 20_000


@pytest.mark.parametrize("cut", [0, 3, 8, 100, -1, -9, -40])
def test_truncated_parquet(tmp_path, cut):
    pq.write_table(pa.table({"text": [f"secret {i}" for i in range(1000)]}), tmp_path / "whole.parquet")
    path = written(tmp_path, "a.parquet", (tmp_path / "whole.parquet").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"^cannot read parquet file a\.parquet: corrupt or truncated$"):
        read_file(path, "parquet", spec_of("text"))


def test_damaged_parquet_never_speaks_with_the_reader_s_words(tmp_path):
    pq.write_table(pa.table({"text": [f"secret {i}" for i in range(1000)]}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    failed = 0
    for seed in range(150):
        generator = random.Random(seed)
        start = generator.randrange(4, len(whole))
        damage = generator.randbytes(generator.choice([1, 4, 40]))
        path = written(tmp_path, "a.parquet", whole[:start] + damage + whole[start + len(damage) :])
        try:
            read_file(path, "parquet", spec_of("text"))
        except InputError as error:
            failed += 1
            assert "secret" not in str(error)
            assert error.__suppress_context__ or error.__context__ is None
    assert failed > 50


# Finding and choosing


def test_names_of_inputs_begin_at_the_wildcard(tmp_path):
    for name in ("b/2.txt", "a/1.txt", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.name for file in find_inputs(f"{tmp_path}/*/*.txt")] == ["a/1.txt", "a/3.txt", "b/2.txt"]
    assert [file.name for file in find_inputs(f"{tmp_path}/a/1.txt")] == ["1.txt"]
    with pytest.raises(InputError, match="no file matches"):
        find_inputs(f"{tmp_path}/*/*.csv")
    with pytest.raises(ArgumentError, match="no file system is installed"):
        find_inputs("nosuch://bucket/*.csv")


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("a.txt", "text"),
        ("a.JSONL.GZ", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.tab", "tsv"),
        ("x.y.parquet", "parquet"),
    ],
)
def test_auto_goes_by_the_extension(path, format):
    assert resolve_format("auto", path) == format


@pytest.mark.parametrize(
    ("format", "path", "message"),
    [
        ("auto", "a.dat", "--format"),
        ("auto", "a", "--format"),
        ("xml", "a.txt", "must be one of"),
        ("auto", "a.parquet.gz", "compressed"),
    ],
)
def test_formats_that_cannot_be(format, path, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_format(format, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "id,label\n"), ("a.tsv", "id\tlabel\n"), ("a.jsonl", '{"id": 1}\n{"label": 2}\n')],
)
def test_a_missing_column_is_refused_with_the_columns_there(tmp_path, name, content):
    path = written(tmp_path, name, content.encode())
    with pytest.raises(InputError, match=rf"column 'text' is not in {name}: its columns are 'id', 'label'"):
        ReadBatches(str(path), columns=["id", "text"])


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_first_line_of_data_is_not_quoted(tmp_path, name, separator):
    path = written(tmp_path, name, f"ham{separator}my secret message\n".encode())
    with pytest.raises(InputError, match="do not look like a header") as caught:
        ReadBatches(str(path))
    assert "secret" not in str(caught.value)


def test_columns_of_a_schema_are_named_whatever_they_are_called(tmp_path):
    pq.write_table(pa.table({"review text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' is not in a\.parquet: its columns are 'review text'"):
        ReadBatches(f"{tmp_path}/a.parquet")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="more than once"):
        ReadBatches(str(written(tmp_path, "a.csv", b"text,text\n1,2\n")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": []}, "columns"),
        ({"columns": ["a", "a"]}, "columns"),
        ({"text_column": "other"}, "text_column"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"batch_bytes": "many"}, "batch_bytes"),
        ({"split_bytes": -1}, "split_bytes"),
        ({"max_row_bytes": 2**31}, "max_row_bytes"),
    ],
)
def test_arguments_are_checked_at_construction(tmp_path, options, message):
    path = written(tmp_path, "a.txt", b"x")
    with pytest.raises(ArgumentError, match=message):
        ReadBatches(str(path), **options)


def test_one_column_of_text_files(tmp_path):
    with pytest.raises(InputError, match="its columns are 'text'"):
        ReadBatches(str(written(tmp_path, "a.txt", b"x")), columns=["body"])


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "7", "true", "7.0", "2020-01-01", "é", "1e3"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=1),
)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(ODD, min_size=1, max_size=6), extra=ODD, place=st.integers(0, 6))
def test_jsonl_keys_and_numbers_are_read_value_by_value(values, extra, place):
    """What becomes of a row's key and number is the same whatever rows are beside it, and if there are none."""

    def read(column):
        data = "".join(json.dumps({"k": v, "n": v}) + "\n" for v in column).encode()
        spec = ReadSpec(("k", "n"), None, 100, 1 << 20, 1 << 20, keys=("k",), numbers=("n",))
        batch = decode_block(LineBlock(data, 0), spec).batch
        assert batch.column("k").type in (pa.string(), pa.null())
        numbers = number_column(batch.column("n"), "n").to_pylist()
        return [(key, repr(number)) for key, number in zip(batch.column("k").to_pylist(), numbers, strict=True)]

    with_extra = [*values[:place], extra, *values[place:]]
    alone = [read([value])[0] for value in with_extra]
    assert read(with_extra) == alone
    assert read(values) == alone[: min(place, len(values))] + alone[min(place, len(values)) + 1 :]
