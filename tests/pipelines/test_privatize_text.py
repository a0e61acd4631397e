"""The main job through its command line: every format, every refusal, and a secret that must never show."""

import csv
import gzip
import json
import os
import resource
import shutil
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from beam_dp.embeddings import open_index, resolve_index
from pipelines import privatize_text

sys.path.insert(0, str(Path(__file__).parent))
from commands import ROOT, refusal, run_here, run_module
from table_files import CANARY, holds_canary, leftovers, write_table

# So little noise that every known word stays itself: rows can be told apart and their order checked.
FAITHFUL = "--epsilon=1e6"
TEXTS = ["Play some jazz, PLEASE!", f"call {CANARY} at noon", "", "the weather in paris"]
EXPECTED = ["play some jazz please", "call at noon", "", "the weather in paris"]


def privatize_apart(*arguments, **options):
    """In a process of its own."""
    return run_module("pipelines.privatize_text", *arguments, **options)


@pytest.fixture
def privatize(capfd):
    """In this process."""
    return partial(run_here, capfd, privatize_text)


def write_input(folder: Path, format: str, texts=TEXTS) -> Path:
    if format == "text":
        path = folder / "in.txt"
        path.write_text("".join(f"{t}\n" for t in texts))
        return path
    rows = [{"id": str(i), "text": t, "secret": CANARY} for i, t in enumerate(texts)]
    return write_table(folder / f"in.{format}", rows)


def read_output(prefix: Path, format: str):
    """Ids (None for text) and texts of the published shards, in shard order."""
    manifest = json.loads(Path(f"{prefix}.manifest.json").read_text())
    rows = []
    for shard in manifest["shards"]:
        path = prefix.parent / shard["name"]
        if format == "text":
            rows += [(None, line) for line in path.read_text().split("\n")[:-1]]
        elif format == "jsonl":
            rows += [(r["id"], r["text"]) for r in map(json.loads, path.read_text().splitlines())]
        elif format == "parquet":
            rows += [(r["id"], r["text"]) for r in pq.read_table(path).to_pylist()]
        else:
            with path.open(newline="") as stream:
                rows += [
                    (r["id"], r["text"]) for r in csv.DictReader(stream, delimiter="," if format == "csv" else "\t")
                ]
    assert manifest["rows"] == len(rows)
    return rows


@pytest.mark.parametrize("format", ["text", "jsonl", "csv", "tsv", "parquet"])
def test_every_format_comes_out_as_it_came_in_without_what_was_not_asked_for(tmp_path, format, privatize):
    source = write_input(tmp_path, format)
    keep = () if format == "text" else ("--keep_columns=id",)
    ledger = tmp_path / "ledger.json"
    # What a process says at its end does not depend on the format.
    run = privatize_apart if format == "jsonl" else privatize
    done = run(f"--input={source}", f"--output={tmp_path}/out", FAITHFUL, f"--ledger={ledger}", *keep)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = read_output(tmp_path / "out", format)
    assert [text for _, text in rows] == EXPECTED
    assert [key for key, _ in rows] == ([None] * 4 if format == "text" else ["0", "1", "2", "3"])
    extension = "txt" if format == "text" else format
    assert leftovers(tmp_path) == ["ledger.json", f"out-00000-of-00001.{extension}", "out.manifest.json"]
    assert holds_canary(tmp_path) == [] and CANARY not in done.stdout
    assert json.loads(ledger.read_text()) == json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]


def test_ledger_and_summary_say_what_it_cost(tmp_path, privatize):
    source = write_input(tmp_path, "text")
    done = privatize(
        f"--input={source}", f"--output={tmp_path}/out", "--epsilon=12", "--max_words=10", f"--ledger={tmp_path}/l"
    )
    ledger = json.loads((tmp_path / "l").read_text())
    assert ledger["schema_version"] == 1
    (entry,) = ledger["entries"]
    assert (entry["mechanism"], entry["model"], entry["epsilon"]) == (
        "MultivariateLaplace(epsilon=12.0)",
        "metric",
        12.0,
    )
    assert entry["index_digest"] == resolve_index().digest
    metric = ledger["totals"]["metric"]
    assert metric["epsilon_per_word"] == 12 and metric["max_words"] == 10 and metric["epsilon_per_document"] == 120
    assert metric["worst_case_per_document"] == pytest.approx(120 * metric["diameter"])
    assert ledger["totals"]["central"] is None and ledger["totals"]["local"] is None
    assert "4 rows and 11 words privatized" in done.stdout and "epsilon 12" in done.stdout


def test_several_files_in_the_order_of_their_paths_with_two_processes(tmp_path):
    texts = [[f"{word} {word}" for word in group] for group in (["one", "two"], ["three"], [], ["four", "five"])]
    for name, lines in zip("abcd", texts, strict=True):
        with gzip.open(tmp_path / f"in.{name}.txt.gz", "wt") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
    done = privatize_apart(
        f"--input={tmp_path}/in.*.txt.gz",
        f"--output={tmp_path}/out",
        FAITHFUL,
        "--direct_num_workers=2",
        "--direct_running_mode=multi_processing",
    )
    assert done.returncode == 0, done.stderr
    assert [text for _, text in read_output(tmp_path / "out", "text")] == [line for group in texts for line in group]


def test_portable_runner_runs_it_unchanged(tmp_path):
    source = write_input(tmp_path, "jsonl")
    done = privatize_apart(
        f"--input={source}",
        f"--output={tmp_path}/out",
        FAITHFUL,
        "--keep_columns=id",
        "--runner=PortableRunner",
        "--job_endpoint=embed",
        "--environment_type=LOOPBACK",
    )
    assert done.returncode == 0, done.stderr
    assert [text for _, text in read_output(tmp_path / "out", "jsonl")] == EXPECTED


def test_truncated_gumbel_and_its_parameters(tmp_path, small_index, privatize):
    source = write_input(tmp_path, "text")
    common = (f"--input={source}", "--mechanism=truncated_gumbel")
    flags = ("--scale=3", "--neighbours=8", f"--index={small_index}")
    assert privatize(*common, f"--output={tmp_path}/out", *flags).returncode == 0
    vocabulary = set(open_index(resolve_index(str(small_index))).words.to_pylist())
    texts = [text for _, text in read_output(tmp_path / "out", "text")]
    assert [len(t.split()) for t in texts] == [4, 3, 0, 4] and {w for t in texts for w in t.split()} <= vocabulary
    ledger = json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]
    assert ledger["entries"][0]["epsilon"] is None and "scale was given" in ledger["entries"][0]["reason"]
    assert ledger["totals"]["metric"]["epsilon_per_word"] is None
    too_small = privatize(*common, f"--output={tmp_path}/no", "--epsilon=40")
    assert "epsilon must be above 70.59" in refusal(too_small)
    both = privatize(*common, f"--output={tmp_path}/no", "--epsilon=80", "--scale=1")
    assert "epsilon or scale" in refusal(both)


@pytest.mark.parametrize(
    ("epsilon", "kind"),
    [
        ("0", "zero"),
        ("-1", "a negative number"),
        ("nan", "NaN"),
        ("inf", "infinite"),
        ("True", "float"),
        ("x", "float"),
    ],
)
def test_bad_epsilon(tmp_path, epsilon, kind, privatize):
    source = write_input(tmp_path, "text")
    line = refusal(privatize(f"--input={source}", f"--output={tmp_path}/out", f"--epsilon={epsilon}"))
    assert "epsilon" in line and kind in line
    assert leftovers(tmp_path) == []


def test_missing_epsilon_input_and_output(tmp_path, privatize):
    source = write_input(tmp_path, "text")
    assert "--epsilon" in refusal(privatize(f"--input={source}", f"--output={tmp_path}/out"))
    assert "--input" in refusal(privatize(f"--output={tmp_path}/out", FAITHFUL))
    assert "--output" in refusal(privatize(f"--input={source}", FAITHFUL))
    assert leftovers(tmp_path) == []


def test_missing_column_names_those_there_are(tmp_path, privatize):
    for format in ("jsonl", "csv", "parquet"):
        source = write_input(tmp_path, format)
        line = refusal(privatize(f"--input={source}", f"--output={tmp_path}/out", FAITHFUL, "--text_column=body"))
        assert "body" in line and "'id', 'text', 'secret'" in line and CANARY not in line
    assert leftovers(tmp_path) == []


def test_glob_that_matches_nothing(tmp_path, privatize):
    line = refusal(privatize(f"--input={tmp_path}/none*.txt", f"--output={tmp_path}/out", FAITHFUL))
    assert "none*.txt" in line


def test_unknown_flag_names_the_nearest(tmp_path):
    line = refusal(privatize_apart(f"--input={tmp_path}/x", f"--output={tmp_path}/out", "--epsilom=1"))
    assert "--epsilom" in line and "--epsilon" in line


def test_existing_output_is_kept_without_overwrite_and_wholly_replaced_with_it(tmp_path, privatize):
    source = write_input(tmp_path, "text")
    arguments = (f"--input={source}", f"--output={tmp_path}/out", FAITHFUL)
    stale = tmp_path / "out-00007-of-00009.txt"
    stale.write_text("stale")
    assert "out-00007-of-00009.txt" in refusal(privatize(*arguments))
    assert stale.read_text() == "stale"
    assert privatize(*arguments, "--overwrite").returncode == 0
    assert leftovers(tmp_path) == ["out-00000-of-00001.txt", "out.manifest.json"]


def test_an_input_that_looks_like_the_output_survives_overwrite(tmp_path, privatize):
    source = tmp_path / "in-00000-of-00001.txt"
    source.write_text("the only copy\n")
    done = privatize(f"--input={source}", f"--output={tmp_path}/in", FAITHFUL, "--overwrite")
    assert "--input and --output overlap: in-00000-of-00001.txt" in refusal(done)
    done = privatize(f"--input={source}", f"--output={tmp_path}/out", FAITHFUL, f"--ledger={source}", "--overwrite")
    assert "--ledger" in refusal(done)
    assert source.read_text() == "the only copy\n"
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_truncated_parquet(tmp_path, privatize):
    good = write_input(tmp_path, "parquet", TEXTS * 1000)
    good.rename(tmp_path / "in.a.parquet")
    data = (tmp_path / "in.a.parquet").read_bytes()
    (tmp_path / "in.b.parquet").write_bytes(data[: len(data) // 2])
    done = privatize(f"--input={tmp_path}/in.*.parquet", f"--output={tmp_path}/out", FAITHFUL)
    line = refusal(done)
    assert "in.b.parquet" in line and "corrupt or truncated" in line
    assert leftovers(tmp_path) == []
    assert CANARY not in done.stderr


def test_rejected_rows_fail_the_run_or_are_listed_without_content(tmp_path, privatize):
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(['{"text": "one"}', '{"text": "' + CANARY + '"', '{"text": 5}', '{"text": "two"}']))
    done = privatize_apart(f"--input={source}", f"--output={tmp_path}/out", FAITHFUL)
    assert "malformed_json: 1" in refusal(done) and "not_text: 1" in refusal(done) and CANARY not in done.stderr
    assert leftovers(tmp_path) == []
    assert privatize(f"--input={source}", f"--output={tmp_path}/out", FAITHFUL, "--max_rejects=2").returncode == 0
    (rejects,) = tmp_path.glob("out-rejects-*.jsonl")
    assert [json.loads(line)["reason"] for line in rejects.read_text().splitlines()] == ["malformed_json", "not_text"]
    assert [json.loads(line)["text"] for line in (tmp_path / "out-00000-of-00001.jsonl").read_text().splitlines()] == [
        "one",
        "two",
    ]
    assert holds_canary(tmp_path) == []


def test_file_system_that_refuses_to_write_leaves_nothing_published(tmp_path, small_index):
    """A limit on the size of files is a full disk that needs no privileges."""
    source = write_input(tmp_path, "text", ["the weather in paris"] * 20_000)
    done = privatize_apart(
        f"--input={source}",
        f"--output={tmp_path}/out",
        "--mechanism=truncated_gumbel",
        "--scale=1",
        "--neighbours=2",
        f"--index={small_index}",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18)),
    )
    assert "file too large" in refusal(done)
    assert leftovers(tmp_path) == []


def flip(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_manifest(**changes):
    def edit(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flip(folder / "vectors.npy"), "vectors.npy is damaged"),
        (lambda folder: flip(folder / "words.arrow"), "words.arrow is damaged"),
        (lambda folder: os.truncate(folder / "index.ann", 100), "index.ann has 100 bytes"),
        (edit_manifest(dimension=49), "vectors.npy"),
        (edit_manifest(format_version=3), "version"),
        (lambda folder: (folder / "manifest.json").unlink(), "no index at"),
    ],
)
def test_damaged_index(tmp_path, small_index, damage, message, privatize):
    folder = tmp_path / "in.index"
    shutil.copytree(small_index, folder)
    damage(folder)
    source = write_input(tmp_path, "text")
    line = refusal(privatize(f"--input={source}", f"--output={tmp_path}/out", FAITHFUL, f"--index={folder}"))
    assert message in line
    assert leftovers(tmp_path) == []


def test_index_of_this_machine_on_a_remote_engine_is_refused(small_index, privatize):
    line = refusal(
        privatize(
            "--input=gs://bucket/x.txt",
            "--output=gs://bucket/out",
            FAITHFUL,
            f"--index={small_index}",
            "--engine=dataflow",
        )
    )
    assert "--index" in line


def test_dry_run_shows_the_ledger_and_writes_nothing(tmp_path, privatize):
    source = write_input(tmp_path, "text")
    done = privatize(f"--input={source}", f"--output={tmp_path}/out", "--epsilon=12", "--dry_run")
    assert done.returncode == 0 and "epsilon 12" in done.stdout and "dry run" in done.stdout
    assert leftovers(tmp_path) == []


def test_help_lists_the_options(privatize):
    done = privatize("--help")
    assert done.returncode == 0 and "--mechanism" in done.stdout and "--max_rejects" in done.stdout


def test_demo_shows_before_and_after():
    done = run_module("pipelines.demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  before  ") == done.stdout.count("  after   ") == 10
    assert "of them stay the same word" in done.stdout and "epsilon_per_document" in done.stdout
    assert (ROOT / "pipelines" / "data" / "utterances.txt").read_text().count("\n") == 300
