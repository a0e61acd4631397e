"""The host of the index: it refuses, it takes a call and never answers, it goes away when workers need it."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_oracle import (
    END_SECONDS,
    HERE,
    TWO_PROCESSES,
    Place,
    check_charged_once,
    check_failed,
    check_nothing_published,
)

import beam_dp.embeddings.broadcast
from beam_dp import resolve_index
from beam_dp.embeddings import IndexRef, broadcast, files, open_index
from beam_dp.embeddings.files import NoAnswerError

sys.path.insert(0, str(HERE / "planted"))
import faulty_files

pytestmark = pytest.mark.fault

INDEX = Path(beam_dp.embeddings.broadcast.__file__).parent / "default"
NO_ANSWER = "its host did not answer within {} seconds; see if it can be reached"


class Host:
    """A host that answers those whom it knows, and leaves all others waiting.

    Attributes:
        address: HOST:PORT.
        asked: how often by whom.
    """

    def __init__(self, *known: str) -> None:
        self._known = known
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: Counter[str] = Counter()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                who = connection.recv(64).decode(errors="replace")
                self.asked[who] += 1
                if who in self._known:
                    connection.sendall(b".")

    def close(self) -> None:
        """Resets those who wait."""
        # An accept that waits is not ended by the close of its socket alone.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in (self._listener, *self._open):
            connection.close()


@pytest.fixture
def silent() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def forsaking() -> Iterator[Host]:
    host = Host("driver")
    yield host
    host.close()


def test_no_wait_for_a_host_is_longer_than_a_run_may_hang() -> None:
    """One in the submitting process, or one in a worker while the others wait for it."""
    assert files._ANSWER_SECONDS <= END_SECONDS / 2


def test_a_host_that_refuses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    place = Place(tmp_path)
    done = place.run(f"--index=host://{INDEX}", FAULTS_HOST=f"127.0.0.1:{port}", BEAM_DP_CACHE=f"{tmp_path}/cache")
    check_failed(place, done, f"no index at host://{INDEX}", "Connection refused")
    check_nothing_published(place)
    assert place.state() is None


def test_a_host_that_never_answers(tmp_path: Path, silent: Host) -> None:
    place = Place(tmp_path)
    variables = {"FAULTS_HOST": silent.address, "FAULTS_PATIENCE": "2", "BEAM_DP_CACHE": f"{tmp_path}/cache"}
    done = place.run(f"--index=host://{INDEX}", **variables)
    check_failed(place, done, f"host://{INDEX}/manifest.json: {NO_ANSWER.format(2)}")
    check_nothing_published(place)
    assert place.state() is None
    assert silent.asked == {"driver": 1}


@pytest.mark.skipif(
    importlib.util.find_spec("google.cloud") is None or importlib.util.find_spec("google.cloud.storage") is None,
    reason="the client of Google Cloud Storage is not installed",
)
def test_a_bucket_that_never_answers(tmp_path: Path, silent: Host) -> None:
    """Google's client itself tries for longer than two minutes."""
    place = Place(tmp_path)
    variables = {"STORAGE_EMULATOR_HOST": f"http://{silent.address}", "FAULTS_PATIENCE": "4"}
    done = place.run("--index=gs://bucket/index", **variables)
    check_failed(place, done, f"gs://bucket/index/manifest.json: {NO_ANSWER.format(4)}")
    check_nothing_published(place)
    assert place.state() is None
    assert sum(silent.asked.values()) >= 1


def test_a_host_that_goes_away_before_the_workers_are_set_up(tmp_path: Path, forsaking: Host) -> None:
    """Workers have a cache of their own, as on another machine; one of them asks, and the others hear of it."""
    place = Place(tmp_path)
    done = place.run(
        f"--index=host://{INDEX}",
        *TWO_PROCESSES,
        FAULTS_HOST=forsaking.address,
        FAULTS_PATIENCE="3",
        FAULTS_WORKERS_CACHE=f"{tmp_path}/workers",
        BEAM_DP_CACHE=f"{tmp_path}/cache",
    )
    check_failed(place, done, NO_ANSWER.format(3))
    check_nothing_published(place)
    check_charged_once(place, "running")
    assert forsaking.asked["driver"] >= 2 and forsaking.asked["worker"] >= 1
    assert not list((tmp_path / "workers").rglob("vectors.npy"))


def _open(ref: IndexRef, together: Any, answers: Any) -> None:
    broadcast._handles.clear()
    together.wait()
    try:
        open_index(ref)
    except NoAnswerError as error:
        answers.put(str(error))


def test_one_process_of_a_machine_waits_for_a_host_and_the_others_hear_of_it(
    tmp_path: Path, silent: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each of them would wait in its turn."""
    monkeypatch.setattr(files, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setenv(faulty_files.HOST, silent.address)
    monkeypatch.setenv("BEAM_DP_CACHE", f"{tmp_path}/cache")
    ref = IndexRef(f"host://{INDEX}", resolve_index().digest)
    fork = multiprocessing.get_context("fork")
    for launch in (1, 2):
        together, answers = fork.Barrier(4), fork.Queue()
        workers = [fork.Process(target=_open, args=(ref, together, answers)) for _ in range(4)]
        for worker in workers:
            worker.start()
        found = [answers.get(timeout=END_SECONDS) for _ in workers]
        for worker in workers:
            worker.join(END_SECONDS)
        assert set(found) == {f"{ref.uri}/manifest.json: {NO_ANSWER.format(1)}"}
        # Those of a later launch ask anew.
        assert silent.asked == {"driver": launch}
    host = Host("driver")
    monkeypatch.setenv(faulty_files.HOST, host.address)
    monkeypatch.setattr(broadcast, "_handles", {})
    assert open_index(ref).size == 20_000
    assert {path.name for path in (tmp_path / "cache" / ref.digest).iterdir()} == {
        "index",
        "index.stamp",
        "fetch.lock",
    }
    host.close()


def test_a_file_that_falls_silent_is_not_waited_for_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for its close, which would wait for the read."""
    monkeypatch.setattr(files, "_ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("BEAM_DP_CACHE", f"{tmp_path}/cache")
    monkeypatch.setattr(broadcast, "_handles", {})
    ref = resolve_index(f"mute://{INDEX}")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            open_index(ref)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(END_SECONDS)
    assert not thread.is_alive()
    assert isinstance(failed[0], NoAnswerError)
    assert not list((tmp_path / "cache").rglob("vectors.npy"))
