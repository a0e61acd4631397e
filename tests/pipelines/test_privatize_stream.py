"""privatize_stream: messages and payloads, what is refused, retries, and the command line on a Pub/Sub of the tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from commands import ROOT, refusal, run_here

from beam_dp import Ledger, resolve_index
from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.errors import ArgumentError
from beam_dp.io.rejects import INVALID_UNICODE, MALFORMED_JSON, ROW_TOO_LARGE
from pipelines import privatize_stream
from pipelines.options import parse_options
from pipelines.privatize_stream import (
    LARGEST_PART,
    PrivatizeStreamOptions,
    decoded_row,
    decoded_text,
    encoded_row,
    encoded_text,
    privatized,
    require_room,
    require_stream,
)

SUBSCRIPTION = "projects/acme-privacy/subscriptions/tickets"
TOPIC = "projects/acme-privacy/topics/private"
REJECTS = "projects/acme-privacy/topics/rejects"
FLAGS = (f"--input_subscription={SUBSCRIPTION}", f"--output_topic={TOPIC}", "--epsilon=8")
CANARY = "Xyzzy9Canary"


def options_of(*flags: str) -> Any:
    """As the command line has them, checked."""
    options = parse_options([*FLAGS, *flags], PrivatizeStreamOptions)
    require_stream(options)
    return options


@given(st.text())
def test_a_text_is_itself_and_an_empty_one_still_a_message(text: str) -> None:
    payload = encoded_text(text)
    assert payload
    assert decoded_text(payload) == (text or "\n", None)


KEPT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(KEPT, st.text())
def test_a_row_keeps_what_is_named_and_nothing_else(value: Any, text: str) -> None:
    payload = json.dumps({"body": text, "kept": value, "other": CANARY}).encode()
    assert decoded_row(payload, "body", ["kept", "absent"]) == ({"body": text, "kept": value, "absent": None}, None)
    assert json.loads(encoded_row({"body": text, "kept": value})) == {"body": text, "kept": value}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff{}", INVALID_UNICODE),
        (b'{"text": "a", "kept": "\\ud800"}', INVALID_UNICODE),
        (b"", MALFORMED_JSON),
        (b"play music", MALFORMED_JSON),
        (b'["text"]', MALFORMED_JSON),
        (b'{"text": "a"} {"text": "b"}', MALFORMED_JSON),
        (b'{"text": "a", "kept": NaN}', MALFORMED_JSON),
        (b'{"text": "a", "kept": 1e999}', MALFORMED_JSON),
        (b"[" * 100_000, MALFORMED_JSON),
        (b'{"text": "a", "kept": "' + b"x" * LARGEST_PART + b'"}', ROW_TOO_LARGE),
    ],
    ids=["bytes", "surrogate", "empty", "text", "list", "two", "NaN", "infinite", "deep", "large"],
)
def test_what_is_no_row_has_a_reason(payload: bytes, reason: str) -> None:
    assert decoded_row(payload, "text", ["kept"]) == ({}, reason)


def test_a_text_that_is_no_text_has_a_reason() -> None:
    assert decoded_text(b"\xff") == (None, INVALID_UNICODE)


NEEDED = {
    "no subscription": ([f"--output_topic={TOPIC}"], "--input_subscription is required"),
    "no topic": ([f"--input_subscription={SUBSCRIPTION}"], "--output_topic is required"),
    "a topic to read": ([*FLAGS, f"--input_subscription={TOPIC}"], "--input_subscription must be projects/PROJECT/sub"),
    "a short name": ([*FLAGS, "--output_topic=private"], "--output_topic must be projects/PROJECT/topics/NAME"),
    "rejects nowhere": ([*FLAGS, "--rejects_topic=private"], "--rejects_topic must be projects/PROJECT/topics/NAME"),
    "rejects with the rest": ([*FLAGS, f"--rejects_topic={TOPIC}"], "another topic than --output_topic"),
    "columns of a text": ([*FLAGS, "--keep_columns=id"], "--keep_columns goes with --format=jsonl"),
    "processes": ([*FLAGS, "--engine=local-parallel"], "'local-parallel' (choose from 'local', 'dataflow')"),
    "flink": ([*FLAGS, "--engine=flink"], "--engine: invalid choice: 'flink' (choose from 'local', 'dataflow')"),
    "another runner": ([*FLAGS, "--runner=FnApiRunner"], "--engine must be local or dataflow"),
    "ids here": ([*FLAGS, "--id_label=id"], "--id_label goes with --engine=dataflow"),
    "at least once": (
        [*FLAGS, "--engine=dataflow", "--dataflow_service_options=streaming_mode_at_least_once"],
        "would publish several draws of one text",
    ),
    "at least once, by its other name": (
        [*FLAGS, "--engine=dataflow", "--experiments=streaming_mode_at_least_once"],
        "would publish several draws of one text",
    ),
    "files": ([*FLAGS, "--input=a.txt"], "unknown option --input"),
    "no format of files": ([*FLAGS, "--format=csv"], "--format: invalid choice: 'csv'"),
}


@pytest.mark.parametrize("case", NEEDED)
def test_what_cannot_work_is_refused(case: str) -> None:
    flags, message = NEEDED[case]
    with pytest.raises(ArgumentError) as caught:
        require_stream(parse_options(flags, PrivatizeStreamOptions))
    assert message in str(caught.value)


def test_help_tells_of_nothing_that_a_stream_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--help"], PrivatizeStreamOptions)
    options = " ".join(capsys.readouterr().out.split("options:\n")[1].split())
    assert "--engine {local,dataflow} where to run: local is this process; dataflow is the service of Google" in options
    assert "--run_id ID names this run: its charge in --budget_store, where a launch that" in options
    assert "--overwrite replace a ledger that exists (default: refuse)" in options
    assert "unless --overwrite is given (default: it is printed as a report only)" in options
    for word in ("staging", "shard", "manifest", "PREFIX", "an output", "local-parallel"):
        assert word not in options


def test_a_text_that_might_not_fit_a_message_is_refused_before_it_is_drawn() -> None:
    require_room(options_of("--max_words=5000"))
    with pytest.raises(ArgumentError, match=r"--max_words must be at most [0-9,]+: a message holds 10 MB"):
        require_room(options_of("--max_words=1000000"))


class Publish(beam.DoFn):
    """A sink outside of Beam: whoever reads the folder sees what any attempt did."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, payload: bytes) -> Iterator[None]:
        with Path(self._folder, "published").open("ab") as seen:
            seen.write(payload + b"\n")
        yield from ()


def test_a_bundle_that_is_run_again_publishes_the_words_that_it_published_before(tmp_path: Path) -> None:
    """The runner runs every bundle three times, and passes on what the last attempt gave."""
    texts = [f"where is the order of {name}".encode() for name in ("alice", "bob", "carol", "dave")]
    options = parse_options(
        [*FLAGS, "--epsilon=4", "--runner=FnApiRunner", "--direct_runner_bundle_repeat=2"], PrivatizeStreamOptions
    )
    with Ledger().pipeline(options) as pipeline:
        payloads = pipeline | beam.Create(texts).with_output_types(bytes)
        published, rejected = privatized(payloads, options)
        published | beam.ParDo(Publish(str(tmp_path)))
        rejected | "Rejects" >> beam.ParDo(Publish(str(tmp_path)))
    seen = Counter((tmp_path / "published").read_bytes().splitlines())
    # Six words each, drawn nearly at random: two attempts agree by chance less than once in 10^6.
    assert sorted(seen.values()) == [3] * len(texts)
    assert not seen.keys() & set(texts)


@contextlib.contextmanager
def streaming(folder: Path, *flags: str) -> Iterator[tuple[Any, subprocess.Popen]]:
    """The command line, on a Pub/Sub of its own, in a process of its own."""
    pytest.importorskip("google.cloud.pubsub", reason="google-cloud-pubsub is not installed (pip install beam_dp[gcp])")
    import pubsub_server

    with pubsub_server.pubsub_server() as (state, address), (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.privatize_stream", *FLAGS, f"--rejects_topic={REJECTS}", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": _path(), "OPENBLAS_NUM_THREADS": "1", "PUBSUB_EMULATOR_HOST": address},
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield state, process
        finally:
            process.kill()
            process.communicate()


def _path() -> str:
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def stop(process: subprocess.Popen) -> None:
    """As an operator stops a stream."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "error: terminated\n")


def budget(folder: Path, *inputs: str) -> tuple[BudgetStore, tuple[str, ...]]:
    """A budget of epsilon 12, and the flags that charge it."""
    store = BudgetStore(f"sqlite:///{folder}/budget.db")
    digest = resolve_index(None).digest
    limit = Limit(model="metric", privacy_unit="word", epsilon=12, metric="euclidean", index_digest=digest)
    store.create("tickets", limit, inputs=inputs)
    return store, (f"--budget_store={store.url}", "--dataset=tickets", "--run_id=night-7")


def test_texts_from_end_to_end(tmp_path: Path) -> None:
    store, flags = budget(tmp_path, f"pubsub://{SUBSCRIPTION}")
    ledger = tmp_path / "ledger.json"
    texts = [f"where is order {n}".encode() for n in range(10, 40)]
    with streaming(tmp_path, *flags, f"--ledger={ledger}") as (pubsub, process):
        pubsub.send(*texts, CANARY.encode(), b"\xff" + CANARY.encode(), agent=CANARY)
        # What comes later finds the pipeline at work.
        pubsub.wait_for(lambda: len(pubsub.payloads(TOPIC)) == 31, lambda: process.poll() is None)
        pubsub.send(b"and where is mine")
        pubsub.wait_for(
            lambda: (len(pubsub.payloads(TOPIC)), len(pubsub.payloads(REJECTS))) == (32, 1),
            lambda: process.poll() is None,
        )
        stop(process)
        assert pubsub.acknowledged == 33
        assert pubsub.payloads(REJECTS) == [b'{"reason": "invalid_unicode"}']
        private = pubsub.payloads(TOPIC)
        assert b"\n" in private
        assert Counter(len(text.split()) for text in private) == {0: 1, 4: 31}
        assert len(set(private) & set(texts)) < 15
        published = [message for topic in pubsub.published.values() for message in topic]
        assert not any(message.attributes or message.ordering_key for message in published)
        assert CANARY not in repr(published)
    said = (tmp_path / "said").read_text()
    assert CANARY not in said
    assert f"publishing to {TOPIC}" in said
    assert "charged to data set tickets as run night-7:" in said
    (entry,) = json.loads(ledger.read_text())["entries"]
    assert (entry["label"], entry["epsilon"], entry["model"]) == ("Privatize", 8.0, "metric")
    run = store.account("tickets").runs["night-7"]
    assert run.state == "committed"
    assert [charge.amount.epsilon for charge in run.charges if "word" in charge.key] == [8.0]

    with streaming(tmp_path, *flags, f"--ledger={tmp_path}/other.json") as (pubsub, process):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "night-7" in err
        assert not pubsub.attempts
    assert not (tmp_path / "other.json").exists()


def test_a_budget_that_names_its_inputs_is_for_their_subscription_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, flags = budget(tmp_path, "pubsub://projects/acme-privacy/subscriptions/other")
    done = run_here(capfd, privatize_stream, *FLAGS, *flags, "--dry_run")
    assert "1 of the input files do not belong to data set tickets" in refusal(done)


def test_rows_from_end_to_end_when_publishing_fails_at_first(tmp_path: Path) -> None:
    rows = [{"id": n, "body": "where is my order", "name": CANARY} for n in range(12)]
    odd = [{"body": 7}, {"id": 3}, {"body": None}]
    with streaming(tmp_path, "--format=jsonl", "--text_column=body", "--keep_columns=id") as (pubsub, process):
        pubsub.failing = 1
        pubsub.send(*(json.dumps(row).encode() for row in (*rows, *odd)))
        pubsub.wait_for(
            lambda: (len(pubsub.payloads(TOPIC)), len(pubsub.payloads(REJECTS))) == (13, 2),
            lambda: process.poll() is None,
        )
        stop(process)
        private = [json.loads(payload) for payload in pubsub.payloads(TOPIC)]
        # A null text is an empty one.
        assert Counter(row.pop("id") for row in private) == Counter([*range(12), None])
        assert sorted(len(row["body"].split()) for row in private) == [0, *[4] * 12]
        assert all(row.keys() == {"body"} for row in private)
        reasons = sorted(json.loads(payload)["reason"] for payload in pubsub.payloads(REJECTS))
        assert reasons == ["missing_column", "not_text"]
        # The failed call was made again, with the same words.
        attempts = Counter(payload for topic, batch in pubsub.attempts for payload in batch)
        repeated = [payload for payload, count in attempts.items() if count > 1]
        assert repeated
        assert set(attempts) == set(pubsub.payloads(TOPIC)) | set(pubsub.payloads(REJECTS))
    assert CANARY not in (tmp_path / "said").read_text()


def test_a_dry_run_shows_the_plan_and_charges_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store, flags = budget(tmp_path)
    done = run_here(capfd, privatize_stream, *FLAGS, *flags, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "MultivariateLaplace(epsilon=8.0)" in done.stdout
    assert "would be charged to data set tickets" in done.stdout
    assert not store.account("tickets").runs


def test_a_ledger_that_exists_stays_and_nothing_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, flags = budget(tmp_path)
    monkeypatch.setattr(privatize_stream.pubsub, "pubsub", object())
    (tmp_path / "ledger.json").write_text("mine")
    with pytest.raises(Exception, match="--ledger exists already"):
        privatize_stream.main([*FLAGS, *flags, f"--ledger={tmp_path}/ledger.json"])
    assert (tmp_path / "ledger.json").read_text() == "mine"
    assert not store.account("tickets").runs


def test_without_the_client_nothing_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, flags = budget(tmp_path)
    monkeypatch.setattr(privatize_stream.pubsub, "pubsub", None)
    with pytest.raises(Exception, match=r"pip install 'beam_dp\[gcp\]'"):
        privatize_stream.main([*FLAGS, *flags])
    assert not store.account("tickets").runs
