"""Files to files through real pipelines."""

import gzip
import json
import logging
import os
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from io_support import content, copy, manifest, parquet_rows, pipeline, rejects, shards

from beam_dp.accounting import Ledger
from beam_dp.errors import ArgumentError, BeamDpError, InputError, ResourceError
from beam_dp.guarantees import CentralGuarantee
from beam_dp.io import ReadBatches, ReadResult, WriteBatches
from beam_dp.io.publish import discard_staging
from beam_dp.io.rejects import Reject, rejects_batch

FORMATS = ["text", "jsonl", "csv", "tsv", "parquet"]
TEXTS = [
    "plain words",
    "",
    'with "quotes" in it',
    "naïve café 日本語",
    "comma, semicolon; pipe|",
    "\0 and \x1f",
    "last",
]
SECRET = "canary7f3a"


def write_input(path: Path, format: str, texts: list[str]) -> Path:
    if format == "parquet":
        pq.write_table(pa.table({"id": [str(i) for i in range(len(texts))], "text": texts}), path, row_group_size=3)
        return path
    rows = {
        "text": lambda i, text: text,
        "jsonl": lambda i, text: json.dumps({"id": str(i), "text": text}),
        "csv": lambda i, text: f'{i},"{text.replace(chr(34), 2 * chr(34))}"',
        "tsv": lambda i, text: f"{i}\t{text}",
    }[format]
    header = {"csv": "id,text\n", "tsv": "id\ttext\n"}.get(format, "")
    path.write_text(header + "".join(rows(i, text) + "\n" for i, text in enumerate(texts)), newline="")
    return path


@pytest.mark.parametrize("source", FORMATS)
def test_every_format_into_every_format_and_back(tmp_path, source):
    path = write_input(tmp_path / "in", source, TEXTS)
    columns = ["text"] if source == "text" else ["id", "text"]
    rows = [{name: {"id": str(i), "text": text}[name] for name in columns} for i, text in enumerate(TEXTS)]
    options: dict[str, Any] = {"columns": columns, "text_column": "text"}
    formats = FORMATS if source == "text" else FORMATS[1:]
    with pipeline() as there:
        read = there | ReadBatches(str(path), **options, format=source).with_rejects()
        for format in formats:
            read | format >> WriteBatches(f"{tmp_path}/{format}", format=format, run_id="r")
    with pipeline() as back:
        for format in formats:
            again = back | f"Read {format}" >> ReadBatches(f"{tmp_path}/{format}-*", **options).with_rejects()
            again | f"Write {format}" >> WriteBatches(f"{tmp_path}/{format}.back", format="parquet", run_id="r")
    for format in formats:
        assert manifest(tmp_path / format)["rows"] == len(TEXTS)
        assert parquet_rows(tmp_path / f"{format}.back") == rows


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("flags", [(), ("--direct_num_workers=3", "--direct_running_mode=multi_threading")])
def test_shards_follow_the_order_of_files_and_pieces(tmp_path, format, flags):
    names = ["b/0", "a/1", "a/0", "c/0"]
    for number, name in enumerate(sorted(names)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_input(tmp_path / name, format, [f"file {number} line {i}" for i in range(200)])
    options = {"split_bytes": 1000, "batch_rows": 17, "format": format}
    running = pipeline(*flags)
    read = running | ReadBatches(f"{tmp_path}/*/*", **options).with_rejects()
    read | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
    running.run().wait_until_finish()
    expected = "".join(f"file {number} line {i}\n" for number in range(4) for i in range(200))
    assert content(tmp_path / "out") == expected
    assert len(shards(tmp_path / "out")) >= 4


def test_many_small_files_share_shards(tmp_path):
    for number in range(50):
        (tmp_path / f"in-{number:02d}.txt").write_text(f"{number}\n")
    copy(f"{tmp_path}/in-*.txt", tmp_path / "out", "text")
    assert content(tmp_path / "out") == "".join(f"{number}\n" for number in range(50))
    assert len(shards(tmp_path / "out")) == 1


def test_two_processes(tmp_path):
    source = write_input(tmp_path / "in.jsonl", "jsonl", [f"line {i}" for i in range(3000)])
    flags = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    options = {"columns": ["id", "text"], "text_column": "text", "split_bytes": 10_000}
    copy(source, tmp_path / "out", "parquet", flags=flags, **options)
    assert parquet_rows(tmp_path / "out") == [{"id": str(i), "text": f"line {i}"} for i in range(3000)]
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize(
    ("source", "format"),
    [
        *((source, "csv") for source in ("text", "jsonl", "csv", "tsv", "header.csv", "header.tsv", "parquet")),
        *(("header.csv", format) for format in FORMATS if format != "csv"),
    ],
)
def test_no_rows_make_one_empty_shard(tmp_path, source, format):
    path = tmp_path / "in"
    path.write_text("text\n" if source.startswith("header") else "")
    source = source.removeprefix("header.")
    if source == "parquet":
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    running = pipeline()
    running | ReadBatches(str(path), format=source) | WriteBatches(f"{tmp_path}/out", format=format, run_id="r")
    running.run().wait_until_finish()
    assert manifest(tmp_path / "out")["rows"] == 0
    [shard] = shards(tmp_path / "out")
    if format == "parquet":
        assert pq.read_schema(shard).names == ["text"]
    else:
        assert Path(shard).read_text() == {"csv": '"text"\n', "tsv": "text\n"}.get(format, "")


def test_no_batches_at_all_use_the_schema_that_was_given(tmp_path):
    with pipeline() as running:
        nothing = running | beam.Create([]).with_output_types(pa.RecordBatch)
        nothing | WriteBatches(f"{tmp_path}/out", format="csv", run_id="r", schema=pa.schema([("n", pa.int64())]))
        nothing | "Bare" >> WriteBatches(f"{tmp_path}/bare", format="parquet", run_id="r")
    assert content(tmp_path / "out") == '"n"\n'
    assert manifest(tmp_path / "bare")["rows"] == 0


def recorded() -> Ledger:
    """A ledger with one entry, which no step draws under."""
    ledger = Ledger()
    ledger.record(
        label="one",
        mechanism="Example()",
        guarantee=CentralGuarantee(epsilon=1.0, basis="proved", privacy_unit="user"),
        max_applications=1,
        fingerprint="Example()",
    )
    return ledger


def test_the_ledger_of_the_plan_is_published(tmp_path):
    source = write_input(tmp_path / "in.txt", "text", ["a"])
    ledger = recorded()
    copy(source, tmp_path / "out", "text", plan=ledger.plan(), ledger_path=f"{tmp_path}/ledger.json")
    assert manifest(tmp_path / "out")["ledger"] == ledger.to_dict()
    assert json.loads((tmp_path / "ledger.json").read_text()) == ledger.to_dict()
    batches = pipeline() | ReadBatches(str(source))
    with pytest.raises(ArgumentError, match="ledger_path needs a ledger"):
        batches | WriteBatches(f"{tmp_path}/other", format="text", ledger_path=f"{tmp_path}/other.json")
    with pytest.raises(ArgumentError, match="plan must be a Ledger or the plan of one, not a value of type str"):
        WriteBatches(f"{tmp_path}/other", format="text", plan="ledger.json")


def test_the_ledger_is_that_of_the_pipeline_or_the_one_given(tmp_path):
    source = write_input(tmp_path / "in.txt", "text", ["a"])
    with Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"])) as running:
        batches = running | ReadBatches(str(source))
        batches | WriteBatches(f"{tmp_path}/own", format="text", ledger_path=f"{tmp_path}/own.json")
        batches | "Given" >> WriteBatches(f"{tmp_path}/given", format="text", plan=running.ledger)
        with pytest.raises(ArgumentError, match="another ledger than the pipeline's"):
            batches | "Other" >> WriteBatches(f"{tmp_path}/other", format="text", plan=recorded())
    with pipeline() as plain:
        batches = plain | ReadBatches(str(source))
        batches | WriteBatches(f"{tmp_path}/plain", format="text", plan=Ledger())
        batches | "None" >> WriteBatches(f"{tmp_path}/none", format="text")
    assert manifest(tmp_path / "own")["ledger"] == json.loads((tmp_path / "own.json").read_text())
    for prefix in ("own", "plain", "given"):
        assert manifest(tmp_path / prefix)["ledger"]["schema_version"] == 1
        assert manifest(tmp_path / prefix)["ledger"]["entries"] == []
    assert manifest(tmp_path / "none")["ledger"] is None
    run_ids = {manifest(tmp_path / prefix)["run_id"] for prefix in ("own", "given", "plain", "none")}
    assert len(run_ids) == 4


def test_elements_that_are_no_batches_are_refused(tmp_path):
    running = pipeline("--auto_unique_labels")
    batches = running | beam.Create([pa.record_batch({"text": ["a"]})])
    texts = running | "Texts" >> beam.Create(["a"])
    rows = running | "Rows" >> beam.Create([beam.Row(text="a")])
    write = WriteBatches(f"{tmp_path}/out", format="text")
    for wrong in (texts, rows, (batches, texts)):
        with pytest.raises(ArgumentError, match=r"WriteBatches takes PCollections of pyarrow\.RecordBatch, not of "):
            wrong | write
    unknown = batches | beam.Map(lambda batch: batch).with_output_types(beam.typehints.Any)
    unknown | write
    running.run().wait_until_finish()
    assert content(tmp_path / "out") == "a\n"


def test_a_rejected_row_fails_the_run_unless_rejects_are_asked_for(tmp_path, caplog):
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"text": "a"}}\n{{"text": ["{SECRET}"]}}\n{SECRET}\n')
    running = pipeline()
    running | ReadBatches(str(source), text_column="text") | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
    with pytest.raises(
        InputError, match=r"a row was rejected \(not_text in in\.jsonl at 14\); .*with_rejects"
    ) as caught:
        running.run().wait_until_finish()
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert not (tmp_path / "out.manifest.json").exists()
    discard_staging(f"{tmp_path}/out", "r")
    reading = ReadBatches(str(source), text_column="text")
    with pipeline() as running:
        read = running | reading.with_rejects()
        assert isinstance(read, ReadResult)
        assert_that(read.rejected | beam.Map(lambda batch: batch.num_rows), equal_to([2]))
    assert isinstance(pipeline() | reading, beam.PCollection)


def test_counters_are_rows_batches_and_rejects(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n{"text": 1}\nx\n{"text": "b"}\n')
    result = copy(source, tmp_path / "out", "text", text_column="text", max_rejects=2)
    counters = {
        c.key.metric.name: c.committed
        for c in result.metrics().query()["counters"]
        if c.key.metric.namespace == "beam_dp"
    }
    assert counters == {"rows": 2, "batches": 1, "rejects/malformed_json": 1, "rejects/not_text": 1}
    assert [row["reason"] for row in rejects(tmp_path / "out")] == ["not_text", "malformed_json"]
    assert manifest(tmp_path / "out")["rejects"] == {"malformed_json": 1, "not_text": 1}
    assert content(tmp_path / "out") == "a\nb\n"


def test_rejects_of_several_transforms_count_together(tmp_path):
    source = write_input(tmp_path / "in.txt", "text", ["a", "b"])
    with pipeline() as running:
        read = running | ReadBatches(str(source)).with_rejects()
        later = rejects_batch([Reject("too_long", None)], None)
        more = read.batches | beam.Map(lambda batch: later).with_output_types(pa.RecordBatch)
        even_more = more | "Same" >> beam.Map(lambda batch: batch).with_output_types(pa.RecordBatch)
        (*read, more, even_more) | WriteBatches(f"{tmp_path}/out", format="text", run_id="r", max_rejects=2)
    assert manifest(tmp_path / "out")["rejects"] == {"too_long": 2}
    assert rejects(tmp_path / "out") == 2 * [{"reason": "too_long", "source": None, "position": None}]


def test_a_second_run_is_refused_without_overwrite(tmp_path):
    source = write_input(tmp_path / "in.txt", "text", [f"line {i}" for i in range(100)])
    copy(source, tmp_path / "out", "text", split_bytes=100)
    many = len(shards(tmp_path / "out"))
    assert many > 5
    with pytest.raises(ResourceError, match="output already exists"):
        copy(source, tmp_path / "out", "text")
    copy(source, tmp_path / "out", "text", overwrite=True)
    assert len(shards(tmp_path / "out")) == 1
    assert content(tmp_path / "out") == "".join(f"line {i}\n" for i in range(100))


def test_an_output_that_appears_during_the_run_is_not_overwritten(tmp_path):
    source = write_input(tmp_path / "in.txt", "text", ["new"])
    running = pipeline()
    running | ReadBatches(str(source)) | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
    (tmp_path / "out-00000-of-00001.txt").write_text("mine\n")
    with pytest.raises(ResourceError, match="output already exists"):
        running.run().wait_until_finish()
    assert content(tmp_path / "out") == "mine\n"
    assert not (tmp_path / "out.manifest.json").exists()


def test_windows_and_timestamps_do_not_matter(tmp_path):
    with pipeline() as running:
        batches = (
            running
            | beam.Create(["a", "b", "c"])
            | beam.Map(lambda text: beam.window.TimestampedValue(pa.record_batch({"text": [text]}), ord(text)))
            | beam.WindowInto(beam.window.FixedWindows(1))
            | beam.Map(lambda batch: batch).with_output_types(pa.RecordBatch)
        )
        batches | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
    assert sorted(content(tmp_path / "out").split()) == ["a", "b", "c"]


def test_unbounded_input_is_refused(tmp_path):
    running = pipeline()
    stream = running | beam.Create([pa.record_batch({"text": ["a"]})])
    stream.is_bounded = False
    with pytest.raises(ArgumentError, match="must be bounded"):
        stream | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")


# Silence

MALFORMED = {
    "wrong.csv": (f"id,text\n1,{SECRET},3\n", {}),
    "quote.csv": (f'id,text\n1,"{SECRET}\n', {}),
    "unicode.csv": (f"id,text\n1,{SECRET}\n".encode() + b"2,\xff" + SECRET.encode(), {}),
    "huge.csv": ("id,text\n1," + SECRET * 200, {"max_row_bytes": 100, "batch_bytes": 64}),
    "wrong.tsv": (f"id\ttext\n{SECRET}\n", {}),
    "unicode.tsv": (b"id\ttext\n1\t\xff" + SECRET.encode(), {}),
    "headerless.tsv": (f"ham\tthis is {SECRET}\n", {}),
    "syntax.jsonl": (f'{{"id": 1, "text": "{SECRET}\n', {}),
    "kind.jsonl": (f'{{"id": 1, "text": ["{SECRET}"]}}\n', {}),
    "surrogate.jsonl": (f'{{"id": 1, "text": "{SECRET}\\ud800"}}\n', {}),
    "unicode.jsonl": (b'{"id": 1, "text": "\xff' + SECRET.encode() + b'"}\n', {}),
    "unicode.txt": (b"\xff" + SECRET.encode() + b"\n", {"columns": ["text"]}),
    "huge.txt": (SECRET * 200, {"columns": ["text"], "max_row_bytes": 100}),
    "cut.txt.gz": (gzip.compress(SECRET.encode() * 10)[:-4], {"columns": ["text"]}),
    "cut.csv.gz": (gzip.compress(f"id,text\n1,{SECRET}\n".encode())[:-4], {}),
    "no.parquet": (SECRET, {}),
    "no.jsonl.gz": (SECRET, {}),
}


def everything_left(folder: Path) -> bytes:
    return b"".join(path.read_bytes() + path.name.encode() for path in folder.rglob("out*") if path.is_file())


@pytest.mark.parametrize("name", list(MALFORMED))
@pytest.mark.parametrize("max_rejects", [0, 100])
def test_a_secret_in_malformed_input_is_found_nowhere(tmp_path, caplog, capfd, name, max_rejects):
    body, options = MALFORMED[name]
    source = tmp_path / name
    source.write_bytes(body if isinstance(body, bytes) else body.encode())
    caplog.set_level(logging.DEBUG)
    said, left = "", b""
    options = {"columns": ["id", "text"], "text_column": "text"} | options
    try:
        result = copy(source, tmp_path / "out", "jsonl", max_rejects=max_rejects, **options)
    except BeamDpError as error:
        said = "".join(traceback.format_exception(error))
        assert error.exit_status == 2
        assert not (tmp_path / "out.manifest.json").exists()
        assert shards(tmp_path / "out") == []
    else:
        assert max_rejects == 100
        assert len(rejects(tmp_path / "out")) == 1
        said = str(result.metrics().query())
        good = b'{"id": "1", "text": "' + SECRET.encode() + b'"}'
        left = everything_left(tmp_path).replace(good, b"") if name == "unicode.csv" else everything_left(tmp_path)
    everything = said + caplog.text + "".join(capfd.readouterr())
    assert SECRET not in everything
    assert SECRET.encode() not in left


def test_damaged_parquet_fails_the_run_silently(tmp_path, caplog):
    pq.write_table(
        pa.table({"text": [f"{SECRET} {i}" for i in range(5000)]}), tmp_path / "in.parquet", compression="none"
    )
    whole = (tmp_path / "in.parquet").read_bytes()
    running = pipeline()
    read = running | ReadBatches(f"{tmp_path}/in.parquet", text_column="text").with_rejects()
    read | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
    (tmp_path / "in.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read parquet file in\.parquet: corrupt or truncated") as caught:
        running.run().wait_until_finish()
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text
    assert shards(tmp_path / "out") == []


def test_an_input_that_vanishes_is_an_error_of_the_environment(tmp_path):
    source = write_input(tmp_path / "in.parquet", "parquet", ["a"])
    running = pipeline()
    running | ReadBatches(f"{tmp_path}/in.*") | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
    source.unlink()
    with pytest.raises(InputError, match="no file matches"):
        running.run().wait_until_finish()
    (tmp_path / "in.txt").mkdir()
    with pytest.raises(InputError, match=rf"{tmp_path}/in\.txt is a directory: write {tmp_path}/in\.txt/\*$"):
        ReadBatches(f"{tmp_path}/in.txt")


# Resources

FULL_DISK = """
    import resource, sys
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from beam_dp.io import ReadBatches, WriteBatches

    source, folder, *formats = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    for format in formats:
        running = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        running | ReadBatches(source) | WriteBatches(f"{folder}/out.{format}", format=format, run_id="r")
        try:
            running.run().wait_until_finish()
        except Exception as error:
            print(type(error).__name__, error)
"""


def test_a_file_system_that_takes_no_more(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{SECRET} {os.urandom(40).hex()}\n" for _ in range(4000)))
    (tmp_path / "job.py").write_text(textwrap.dedent(FULL_DISK))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job.py"), str(source), str(tmp_path), *FORMATS],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    lines = [f"ResourceError file too large, while writing {tmp_path}/out.{format} " for format in FORMATS]
    assert [line[: len(start)] for line, start in zip(done.stdout.splitlines(), lines, strict=True)] == lines
    assert SECRET not in done.stdout + done.stderr
    assert not list(tmp_path.glob("out*-of-*"))
    assert not list(tmp_path.glob("out*manifest*"))
    copy(source, tmp_path / "out.text", "text")
    assert manifest(tmp_path / "out.text")["rows"] == 4000


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_of_seventy_megabytes(tmp_path, format):
    """Larger than a batch and than any piece of a file."""
    big = "0123456789" * 7_000_000
    source = write_input(tmp_path / "in", format, ["first", big, "last"])
    with pipeline() as running:
        read = running | ReadBatches(str(source), format=format, text_column="text").with_rejects()
        sizes = read.batches | beam.Map(lambda batch: pc.utf8_length(batch.column("text")).to_pylist())
        read | WriteBatches(f"{tmp_path}/out", format="text", run_id="r")
        assert_that(sizes | beam.combiners.ToList(), _has(5, 70_000_000, 4))
    assert content(tmp_path / "out") == f"first\n{big}\nlast\n"


def _has(*lengths: int):
    def check(found: list[list[list[int]]]) -> None:
        assert [length for batch in found[0] for length in batch] == list(lengths), found

    return check


def test_files_that_come_after_the_pipeline_was_made_are_not_read(tmp_path):
    write_input(tmp_path / "in-1.txt", "text", ["early"])
    with pipeline() as running:
        batches = running | ReadBatches(f"{tmp_path}/in-*.txt")
        write_input(tmp_path / "in-0.txt", "text", ["late"])
        batches | WriteBatches(f"{tmp_path}/out", format="text")
    assert content(tmp_path / "out") == "early\n"


def test_files_that_go_after_the_pipeline_was_made_are_missed(tmp_path):
    gone = write_input(tmp_path / "in-0.txt", "text", ["gone"])
    write_input(tmp_path / "in-1.txt", "text", ["there"])
    running = pipeline()
    running | ReadBatches(f"{tmp_path}/in-*.txt") | WriteBatches(f"{tmp_path}/out", format="text")
    gone.unlink()
    with pytest.raises(Exception, match="of 2 files that matched when the pipeline was made, 1 are gone"):
        running.run()
