"""Runs end on a signal, and whatever becomes of worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apache_beam.runners.portability.fn_api_runner.worker_handlers import ControlConnection

from beam_dp.errors import InputError
from pipelines.main import run_main
from pipelines.workers import EarlyEnd, late_workers_stop

ROOT = Path(__file__).parents[2]
TWO_PROCESSES = ["--engine=local-parallel", "--direct_num_workers=2"]

_JOB = """
import os, sys
import apache_beam as beam
from beam_dp.errors import InputError
from pipelines.main import run_main
from pipelines.options import parse_options


class Act(beam.DoFn):
    def __init__(self, act):
        self.act = act

    def process(self, driver):
        if self.act == "die" and os.getpid() != driver:
            os._exit(9)
        if self.act == "fail":
            raise InputError("column text is missing")
        yield driver


def body(argv):
    act = argv.pop(0)
    with beam.Pipeline(options=parse_options(argv)) as p:
        p | beam.Create([os.getpid()]) | beam.ParDo(Act(act))


def main():
    sys.exit(run_main(body))
"""
_LATE = """
import os, time
if os.environ.get("WORKER_ID") == "{worker}":
    time.sleep({seconds})
"""


def _run(folder: Path, act: str, late: str | None = None) -> tuple[int, str]:
    """The status and the last line of a run with two workers; ``late`` names one that starts after the run is over."""
    (folder / "workers_job.py").write_text(_JOB)
    if late is not None:
        (folder / "sitecustomize.py").write_text(_LATE.format(worker=late, seconds=5))
    run = subprocess.run(
        [sys.executable, "-c", "import workers_job; workers_job.main()", act, *TWO_PROCESSES],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    return run.returncode, run.stderr.rstrip("\n").split("\n")[-1]


@pytest.mark.fault
def test_a_worker_that_dies_ends_the_run(tmp_path: Path) -> None:
    status, last = _run(tmp_path, "die")
    assert status == 2
    assert last.startswith("error: a worker process died")


@pytest.mark.fault
@pytest.mark.parametrize("late", ["worker_0", "worker_1"])
def test_a_run_that_fails_before_a_worker_connects_ends(tmp_path: Path, late: str) -> None:
    assert _run(tmp_path, "fail", late) == (2, "error: column text is missing")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back what a run that ended early leaves to a process that is about to exit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook = threading.excepthook
    yield
    threading.excepthook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "wrapped", [None, RuntimeError("KeyboardInterrupt [while running 'x']"), SystemExit(7), InputError("x")]
)
@pytest.mark.parametrize(
    ("number", "status", "last"),
    [(signal.SIGINT, 130, "error: interrupted\n"), (signal.SIGTERM, 143, "error: terminated\n")],
)
@pytest.mark.usefixtures("handlers")
def test_a_signal_is_reported_whatever_becomes_of_its_exception(
    number: signal.Signals, status: int, last: str, wrapped: BaseException | None, capfd: pytest.CaptureFixture[str]
) -> None:
    cleaned: list[str] = []

    def body(_: list[str]) -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            cleaned.append("staging")
            if wrapped is not None:
                raise wrapped from None
            raise

    assert run_main(body, []) == status
    assert cleaned == ["staging"]
    late = threading.Thread(target=_die, name="run_worker")
    late.start()
    late.join()
    assert capfd.readouterr().err == last
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_another_thread_gets_ends_a_wait() -> None:
    """The system may give it to any thread; the main one then goes on waiting for its lock."""

    release, caught = threading.Event(), threading.Event()
    unheard: list[str] = []

    def send() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        if not caught.wait(10):
            unheard.append("signal")
        release.set()

    def body(_: list[str]) -> None:
        sender = threading.Timer(0.2, send)
        sender.start()
        try:
            release.wait()
        finally:
            caught.set()
            sender.join()

    assert run_main(body, []) == 143
    assert unheard == []


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_comes_twice_lets_the_clean_up_go_on() -> None:
    cleaned: list[str] = []

    def body(_: list[str]) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            cleaned.append("staging")

    assert run_main(body, []) == 143
    assert cleaned == ["staging"]


@pytest.mark.usefixtures("handlers")
def test_an_ignored_signal_stays_ignored() -> None:
    def body(_: list[str]) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run_main(body, []) == 0
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_off_the_main_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen: list[Any] = []

    def body(_: list[str]) -> None:
        seen.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))

    thread = threading.Thread(target=run_main, args=(body, []))
    thread.start()
    thread.join()
    assert seen == before


def _die() -> None:
    raise RuntimeError("Worker subprocess exited with return code -2")


@pytest.mark.usefixtures("handlers")
def test_a_worker_that_died_of_the_signal_is_no_crash(capfd: pytest.CaptureFixture[str]) -> None:
    """The death may be noticed first, for the signal waits for the main thread."""

    def body(_: list[str]) -> None:
        worker = threading.Thread(target=_die, name="run_worker")
        worker.start()
        worker.join(0.1)
        signal.raise_signal(signal.SIGINT)

    assert run_main(body, []) == 130
    assert capfd.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("ignored", [None, signal.SIGINT])
@pytest.mark.usefixtures("handlers")
def test_a_crash_ends_the_run_even_where_ctrl_c_is_ignored(ignored: signal.Signals | None) -> None:
    if ignored is not None:
        signal.signal(ignored, signal.SIG_IGN)
    early = EarlyEnd()
    with pytest.raises(KeyboardInterrupt), early.watched(False):
        threading.Thread(target=_die, name="run_worker").start()
        time.sleep(60)
    assert (early.crashed, early.signal) == (True, None)


@pytest.mark.usefixtures("handlers")
def test_other_threads_end_nothing() -> None:
    early = EarlyEnd()
    with early.watched(False):
        other = threading.Thread(target=_die, name="other")
        other.start()
        other.join()
    assert (early.crashed, early.signal) == (False, None)


def test_beam_is_left_as_it_was() -> None:
    before = (ControlConnection.close, threading.excepthook)
    with late_workers_stop():
        assert ControlConnection.close is not before[0]
    assert (ControlConnection.close, threading.excepthook) == before
