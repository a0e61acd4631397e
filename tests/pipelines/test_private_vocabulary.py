"""Words and n-grams of a corpus through the command line."""

import json
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import pytest

from beam_dp.errors import ArgumentError
from pipelines import private_vocabulary
from pipelines.main import run_main
from pipelines.private_vocabulary import sizes_in

sys.path.insert(0, str(Path(__file__).parent))
from commands import refusal, run_here, run_module
from table_files import CANARY, FORMATS, holds_canary, leftovers, read_output, write_table

# No n-gram of these is dropped by the bounds of `command`, and at that epsilon no noise shows: its scale is 0.02.
SAID = ["Play some jazz, please!", "play SOME Zoë", "some jazz; some more jazz", "zoë, please"]
WORDS = [["play", "some", "jazz", "please"], ["play", "some", "zoë"], ["some", "jazz", "some", "more", "jazz"]]
WORDS.append(["zoë", "please"])


def corpus():
    """A text a row; each of them by its own person, who says it twice, and one of somebody nobody may hear of."""
    rows = [{"id": f"u{i % 4}", "body": SAID[i % 4]} for i in range(8)]
    rows += [{"id": None, "body": "play more zoë"}] * 3
    rows += [{"id": f"u{i}", "body": ""} for i in range(2)]
    return [row | {"note": CANARY} for row in [*rows, {"id": CANARY, "body": f"{CANARY} play"}]]


def by_hand(sizes):
    """Units and occurrences of the n-grams that two people or more use."""
    units, counts = defaultdict(set), Counter()
    for unit, words in enumerate([*WORDS, [CANARY.lower(), "play"]]):
        for size in sizes:
            for start in range(len(words) - size + 1):
                gram = " ".join(words[start : start + size])
                units[gram].add(unit)
                counts[gram] += 2 if unit < 4 else 1
    return {gram: (len(people), counts[gram]) for gram, people in units.items() if len(people) > 1}


def command(tmp_path, source, *more, epsilon=1500):
    return (
        f"--input={source}",
        f"--output={tmp_path}/out",
        "--privacy_unit=id",
        "--text_column=body",
        "--max_partitions=15",
        f"--epsilon={epsilon}",
        "--delta=1e-6",
        *more,
    )


@pytest.fixture
def run(capfd):
    """Runs the program in this process, as a command line: status and last line of stderr."""

    def call(*arguments):
        status = run_main(private_vocabulary.main, arguments)
        out, err = capfd.readouterr()
        assert CANARY not in out + err and len(err.splitlines()) == (status != 0)
        return status, err

    return call


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_what_people_share_and_nothing_of_one(tmp_path, format, capfd):
    source = write_table(tmp_path / f"in.{format}", corpus())
    # What a process says at its end does not depend on the format.
    apart = partial(run_module, "pipelines.private_vocabulary")
    run = apart if format == "jsonl" else partial(run_here, capfd, private_vocabulary)
    done = run(*command(tmp_path, source, "--ngrams=1/2"))
    assert (done.returncode, done.stderr) == (0, "")
    released = read_output(tmp_path / "out")
    expected = {gram: units for gram, (units, _) in by_hand((1, 2)).items()}
    assert {"some jazz", "play some", "please", "zoë"} <= set(expected)
    assert [(row["ngram"], row["privacy_unit_count"]) for row in released] == sorted(expected.items())
    names = ["ngram", *(f"privacy_unit_count{end}" for end in ("", "_noise_stddev", "_ci_low", "_ci_high"))]
    assert [list(row) for row in released] == [names] * len(expected)
    assert f"{len(expected)} n-grams released" in done.stdout
    assert leftovers(tmp_path) == [f"out-00000-of-00001.{format}", "out.manifest.json"]
    assert holds_canary(tmp_path) == [] and CANARY.lower() not in done.stdout.lower()
    ledger = json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]
    assert [entry["label"] for entry in ledger["entries"]] == ["Aggregate/selection", "Aggregate/privacy_unit_count"]
    assert (ledger["totals"]["central"]["privacy_unit"], ledger["totals"]["metric"]) == ("id", None)


def test_occurrences_with_two_processes(tmp_path):
    rows = corpus()
    write_table(tmp_path / "in.a.tsv", rows[:5])
    write_table(tmp_path / "in.b.tsv", rows[5:])
    flags = ("--metrics=count,privacy_unit_count", "--max_rows_per_partition=9", "--ngrams=2")
    engine = ("--engine=local-parallel", "--direct_num_workers=2")
    source = f"{tmp_path}/in.*.tsv"
    done = run_module("pipelines.private_vocabulary", *command(tmp_path, source, *flags, *engine, epsilon=9000))
    assert (done.returncode, done.stderr) == (0, "")
    released = {row["ngram"]: (row["privacy_unit_count"], row["count"]) for row in read_output(tmp_path / "out")}
    assert released == by_hand((2,))
    assert holds_canary(tmp_path) == []


def test_one_person_counts_for_max_partitions_ngrams(tmp_path, run):
    source = write_table(tmp_path / "in.csv", [{"id": f"u{i}", "body": "a b c d " * 3} for i in range(400)])
    flags = ("--max_partitions=1", "--max_words=3")
    assert run(*command(tmp_path, source, *flags))[0] == 0
    counts = {row["ngram"]: row["privacy_unit_count"] for row in read_output(tmp_path / "out")}
    assert set(counts) == {"a", "b", "c"} and sum(counts.values()) == 400
    # Uniform choice among the three: binomial of standard deviation 9.4.
    assert max(abs(count - 400 / 3) for count in counts.values()) < 60


def test_vocabulary_alone(tmp_path, run):
    source = write_table(tmp_path / "in.jsonl", corpus())
    assert run(*command(tmp_path, source, "--metrics=none"))[0] == 0
    assert {row["ngram"] for row in read_output(tmp_path / "out")} == set(by_hand((1,)))


def test_a_text_that_is_none_is_rejected_without_content(tmp_path, capfd):
    source = write_table(tmp_path / "in.jsonl", [{"id": CANARY, "body": CANARY}, {"id": 5, "body": 17}])
    done = run_here(capfd, private_vocabulary, *command(tmp_path, source))
    assert "rejected rows: 1, more than max_rejects=0 (not_text: 1" in refusal(done)
    assert CANARY not in done.stdout + done.stderr and leftovers(tmp_path) == []


def test_dry_run_writes_nothing(tmp_path, run):
    source = write_table(tmp_path / "in.jsonl", corpus())
    assert run(*command(tmp_path, source, "--dry_run"))[0] == 0
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ngrams=0"], "sizes must be at least 1"),
        (["--ngrams=1/1"], "sizes must be one or more different numbers of words, from 1 to 8"),
        (["--ngrams=9"], "sizes must be one or more different numbers of words, from 1 to 8"),
        (["--ngrams=1,2"], "--ngrams must be whole numbers with slashes between them"),
        (["--ngrams="], "--ngrams must be whole numbers"),
        (["--max_words=0"], "max_words must be at least 1"),
        (["--max_partitions=0"], "--max_partitions must be at least 1"),
        (["--delta=0"], "--delta must be above 0 for private selection"),
        (["--metrics=mean:body:0:1"], "--metrics: n-grams can be counted"),
        (["--metrics=words"], "unknown metric 'words'"),
        (["--privacy_unit=body"], "privacy_unit must be another column than text_column"),
        (["--privacy_unit=ngram"], "not be called 'ngram'"),
        (["--privacy_unit=person"], "column 'person' is not in in.jsonl"),
        (["--text_column=text"], "column 'text' is not in in.jsonl"),
        (["--format=text"], "--format: files of format text have one column"),
        (["--by=body"], "unknown option --by"),
        (["--epsilon=x"], "--epsilon: invalid float value"),
    ],
)
def test_arguments_that_cannot_be_right(tmp_path, run, flags, message):
    source = write_table(tmp_path / "in.jsonl", corpus())
    names = {flag.split("=")[0] for flag in flags}
    status, err = run(*[a for a in command(tmp_path, source) if a.split("=")[0] not in names], *flags)
    assert status == 2 and message in err
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("missing", "named"),
    [("--privacy_unit", "--privacy_unit"), ("--max_partitions", "--max_partitions"), ("--epsilon", "--epsilon")],
)
def test_what_must_be_given(tmp_path, run, missing, named):
    source = write_table(tmp_path / "in.jsonl", corpus())
    status, err = run(*[a for a in command(tmp_path, source) if not a.startswith(missing)])
    assert status == 2 and f"{named} is required: write {named}=VALUE" in err


@pytest.mark.parametrize(("text", "sizes"), [("1", (1,)), ("1/2/3", (1, 2, 3)), ("10/2", (10, 2))])
def test_sizes_of_ngrams(text, sizes):
    assert sizes_in(text) == sizes


@pytest.mark.parametrize("text", ["", "/", "1/", "one", "-1", "1.5", "٣", "1" * 10])
def test_sizes_that_are_none(text):
    with pytest.raises(ArgumentError, match="--ngrams must be whole numbers"):
        sizes_in(text)
