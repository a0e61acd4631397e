"""The shell around every runnable: exit statuses, the last line, and silence."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_dp.accounting.budget.missing import NoStoreError
from beam_dp.errors import (
    ArgumentError,
    BeamDpError,
    BudgetExceededError,
    BudgetStoreError,
    GrantError,
    IndexArtifactError,
    InputError,
    ResourceError,
)
from benchmarks.measure import BLAS_VARIABLES
from pipelines.main import explain, progress, run_main, summary
from pipelines.options import parse_options

ROOT = Path(__file__).parents[2]
SECRET = "zanzibar-4711"

_JOB = f"""
import logging, os, sys, time
import apache_beam as beam
from beam_dp.errors import InputError
from pipelines.main import run_main, summary
from pipelines.options import parse_options

SECRET = {SECRET!r}


class Act(beam.DoFn):
    def __init__(self, act):
        self.act = act

    def process(self, element):
        logging.critical(SECRET)
        os.write(2, SECRET.encode())
        if self.act == "stay":
            print("ready", flush=True)
            time.sleep(60)
        if self.act == "ours":
            raise InputError("column text is missing")
        if self.act == "foreign":
            raise KeyError(SECRET)
        if self.act == "full":
            raise OSError(28, SECRET)
        yield element


def body(argv):
    act = argv.pop(0)
    options = parse_options(argv)
    if act == "wait":
        print("ready", flush=True)
        time.sleep(60)
    with beam.Pipeline(options=options) as p:
        p | beam.Create([os.getpid()]) | beam.Reshuffle() | beam.ParDo(Act(act))
    summary("wrote 3 shards")


def main():
    sys.exit(run_main(body))
"""
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
ONE_PROCESS = ["--engine=local"]
WORKER_PROCESS = ["--engine=local-parallel", "--direct_num_workers=1"]
TWO_PROCESSES = ["--engine=local-parallel", "--direct_num_workers=2"]


# Each program in a process of its own, of which all but the imports that all share is new.
_EACH = """
import os, runpy, sys
import beam_dp, pipelines.main

for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.argv, status = [name, "--nonsense"], 0
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
        os._exit(status)  # there is nothing to tidy up, and libraries take their time to
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def job(tmp_path: Path) -> Any:
    """Starts the program above as a user would, in a process of its own."""
    (tmp_path / "example_job.py").write_text(_JOB)
    environment = _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def start(act: str, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "import example_job; example_job.main()", act, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
        )

    return start


@pytest.fixture
def run_here(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the program in this process."""
    monkeypatch.syspath_prepend(tmp_path)
    body = importlib.import_module("example_job").body

    def run(*arguments: str) -> tuple[int, str, str]:
        return run_main(body, arguments), *capfd.readouterr()

    return run


ENDS = {
    "none": (0, None),
    "ours": (2, "error: column text is missing"),
    "foreign": (1, "error: KeyError (unexpected); rerun with --verbose, which may show input data"),
    "full": (2, "error: No space left on device"),
}
CASES = [
    *(pytest.param("this process", ONE_PROCESS, act, id=f"{act}-this process") for act in ENDS),
    pytest.param("its own", ONE_PROCESS, "foreign", id="foreign-one process"),
    pytest.param("its own", TWO_PROCESSES, "foreign", id="foreign-two processes"),
    *(
        pytest.param("its own", TWO_PROCESSES, act, id=f"{act}-two processes", marks=pytest.mark.fault)
        for act in ("none", "ours", "full")
    ),
]


@pytest.mark.parametrize(("where", "engine", "act"), CASES)
def test_a_worker_decides_the_status_and_says_no_data(
    job: Any, run_here: Callable[..., tuple[int, str, str]], where: str, engine: list[str], act: str
) -> None:
    status, last = ENDS[act]
    if where == "this process":
        found, out, err = run_here(act, *engine)
    else:
        process = job(act, *engine)
        out, err = process.communicate(timeout=120)
        found = process.returncode
    assert found == status
    assert out == ("wrote 3 shards\n" if status == 0 else "")
    assert SECRET not in err
    assert "Traceback" not in err
    if last is not None:
        assert err.rstrip("\n").split("\n")[-1].startswith(last)


def test_every_program_ends_with_the_status_of_a_refusal_and_one_line() -> None:
    """As the shell sees it: tests that call ``main`` do not run what stands under ``if __name__``."""
    programs = [
        f"{folder}.{path.stem}"
        for folder in ("pipelines", "templates", "benchmarks")
        for path in sorted((ROOT / folder).glob("*.py"))
        # The arguments of benchmarks.peers are a protocol between two processes.
        if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8") and path.stem != "peers"
    ]
    run = subprocess.run(
        [sys.executable, "-c", _EACH, *programs],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        # So that no benchmark starts anew.
        env=_ENVIRONMENT | dict.fromkeys(BLAS_VARIABLES, "1"),
        timeout=120,
    )
    assert len(programs) >= 20
    assert run.stdout.splitlines() == [f"{name} 2" for name in programs]
    lines = run.stderr.splitlines()
    assert len(lines) == len(programs) and all(line.startswith("error: ") for line in lines), run.stderr


def test_verbose_shows_it_all(job: Any) -> None:
    process = job("foreign", "--verbose", *WORKER_PROCESS)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert SECRET in err
    assert "Traceback" in err
    assert err.rstrip("\n").split("\n")[-1].startswith("error: KeyError")


@pytest.mark.parametrize(
    ("act", "engine", "number", "ended"),
    [
        pytest.param(act, engine, number, ended, id=name, marks=() if name == "in one process" else pytest.mark.fault)
        for name, act, engine, number, ended in (
            ("before the pipeline", "wait", ONE_PROCESS, signal.SIGINT, (130, "error: interrupted")),
            ("in one process", "stay", ONE_PROCESS, signal.SIGINT, (130, "error: interrupted")),
            ("in two processes", "stay", TWO_PROCESSES, signal.SIGINT, (130, "error: interrupted")),
            ("terminated in two processes", "stay", TWO_PROCESSES, signal.SIGTERM, (143, "error: terminated")),
        )
    ],
)
def test_a_signal_to_the_whole_process_group(
    job: Any, act: str, engine: list[str], number: signal.Signals, ended: tuple[int, str]
) -> None:
    """As Ctrl-C in a terminal, which its workers get too."""
    process = job(act, *engine)
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.rstrip("\n").split("\n")[-1]) == ended
    assert "Traceback" not in err
    assert SECRET not in err


@pytest.mark.fault
@pytest.mark.parametrize(
    ("engine", "number", "send", "ended"),
    [
        (ONE_PROCESS, signal.SIGTERM, os.kill, (143, "error: terminated\n")),
        (TWO_PROCESSES, signal.SIGINT, os.killpg, (130, "error: interrupted\n")),
    ],
)
def test_a_signal_leaves_nothing_staged(
    tmp_path: Path, engine: list[str], number: signal.Signals, send: Any, ended: tuple[int, str]
) -> None:
    texts = (ROOT / "pipelines" / "data" / "utterances.txt").read_text(encoding="utf-8")
    (tmp_path / "in.txt").write_text(3_000 * texts, encoding="utf-8")
    flags = [f"--input={tmp_path}/in.txt", f"--output={tmp_path}/out", "--epsilon=12", "--run_id=r", *engine]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.privatize_text", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=_ENVIRONMENT,
        cwd=ROOT,
        start_new_session=True,
    )
    staging = tmp_path / "out.tmp-r"
    while not (staging.is_dir() and any(staging.iterdir())):
        assert process.poll() is None
        time.sleep(0.05)
    send(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == ended
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_workers_import_what_a_checkout_holds() -> None:
    """As ``python -m pipelines.x`` in a checkout that is not installed: the folder is the only thing on the path."""
    script = (
        "import apache_beam as beam, sys\n"
        "from beam_dp.errors import describe_kind\n"
        "from pipelines.main import run_main\n"
        "from pipelines.options import is_local_path, parse_options\n"
        "def body(argv):\n"
        "    with beam.Pipeline(options=parse_options(argv)) as p:\n"
        "        p | beam.Create(['a']) | beam.Map(describe_kind) | beam.Map(is_local_path)\n"
        "sys.exit(run_main(body))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", script, *WORKER_PROCESS],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ArgumentError("epsilon must be above 0"), 2, "epsilon must be above 0"),
        (InputError("no file matches [while running 'Read']"), 2, "no file matches"),
        (ResourceError("x"), 2, "x"),
        (IndexArtifactError("x"), 2, "x"),
        (BudgetExceededError("the plan needs 2"), 3, "the plan needs 2"),
        (BudgetStoreError("it is locked"), 2, "it is locked"),
        (NoStoreError("there is none"), 2, "there is none"),
        (GrantError("no grant"), 1, "no grant"),
        (RuntimeError("beam_dp.errors.BudgetExceededError: too much [while running 'A']"), 3, "too much"),
        (RuntimeError("beam_dp.errors.BudgetStoreError: it is locked [while running 'A']"), 2, "it is locked"),
        (RuntimeError("beam_dp.accounting.budget.missing.NoStoreError: gone [while running 'A']"), 2, "gone"),
        (
            RuntimeError(
                "Traceback (most recent call last):\n  x\nbeam_dp.errors.InputError: a\n\nDuring\n\n"
                "beam_dp.errors.InputError: a [while running 'ParDo(F)-ptransform-7']\n"
            ),
            2,
            "a",
        ),
        (
            Exception(
                "Pipeline failed in state FAILED: java.lang.RuntimeError: Error received from SDK harness for "
                "instruction 3: Traceback (most recent call last):\n  File\n"
                "beam_dp.errors.IndexArtifactError: index.ann is damaged [while running 'x']\n\n\tat java"
            ),
            2,
            "index.ann is damaged",
        ),
        (OSError(errno.ENOSPC, "quoted"), 2, "No space left on device: free some space"),
        (FileNotFoundError(errno.ENOENT, "quoted", "in.txt"), 2, "No such file or directory: in.txt"),
        (socket.gaierror(socket.EAI_NONAME, "quoted"), 2, "a host name is not known"),
        (
            RuntimeError("OSError: [Errno 28] quoted: '/x' [while running 'W']"),
            2,
            "No space left on device: free some space (in a worker)",
        ),
    ],
)
def test_errors_are_explained(error: Exception, status: int, message: str) -> None:
    assert explain(error) == (status, message)


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (ValueError(SECRET), 1, "ValueError"),
        (RuntimeError(f"Traceback\nKeyError: '{SECRET}'"), 1, "KeyError"),
        (RuntimeError(f"Traceback\npyarrow.lib.ArrowInvalid: {SECRET}"), 1, "ArrowInvalid"),
        (RuntimeError(f"{SECRET}Error: x\n{SECRET}: y"), 1, "RuntimeError"),
        (RuntimeError(f"some text about beam_dp.errors.InputError: {SECRET}"), 1, "RuntimeError"),
        (RuntimeError(f"beam_dp.errors.NoSuchError: {SECRET}"), 1, "RuntimeError"),
        (RuntimeError(f"beam_dp.errors.math: {SECRET}"), 1, "RuntimeError"),
        (RuntimeError(f"beam_dp.no_such.InputError: {SECRET}"), 1, "RuntimeError"),
        (RuntimeError(f"beam_dp.guarantees.Guarantee: {SECRET}"), 1, "RuntimeError"),
        (OSError(SECRET), 2, "OSError"),
        (RuntimeError(f"ConnectionResetError: {SECRET} [while running 'W']"), 2, "ConnectionResetError"),
    ],
)
def test_foreign_errors_are_named_and_not_quoted(error: Exception, status: int, name: str) -> None:
    expected = f"{name} (unexpected); rerun with --verbose, which may show input data"
    assert explain(error) == (status, expected)


def test_the_cause_of_a_foreign_error_counts() -> None:
    try:
        try:
            raise ResourceError("disk full")
        except BeamDpError as cause:
            raise RuntimeError(SECRET) from cause
    except RuntimeError as error:
        assert explain(error) == (2, "disk full")


def _raise(error: BaseException) -> Any:
    def body(_: list[str]) -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status", "last"),
    [
        (ArgumentError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (SystemExit(0), 0, ""),
        (SystemExit(None), 0, ""),
        (SystemExit(3), 3, ""),
    ],
)
def test_run_main_in_process(error: BaseException, status: int, last: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_main(_raise(error), []) == status
    assert capfd.readouterr().err == last


def test_arguments_and_status_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    assert run_main(seen.append, ["--a"]) == 0
    monkeypatch.setattr(sys, "argv", ["program", "--b"])
    assert run_main(lambda argv: len(argv) + 4) == 5
    assert run_main(seen.append) == 0
    assert seen == [["--a"], ["--b"]]


def test_silence_is_over_after_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> list[Any]:
        signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [logging.root.manager.disable, sys.stderr, threading.excepthook, list(warnings.filters), *signals]

    before = state()
    assert run_main(_raise(InputError("x")), []) == 2
    assert state() == before
    capfd.readouterr()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_the_log_of_this_process_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    def body(argv: list[str]) -> None:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger().addHandler(handler)
        logging.critical(SECRET)
        logging.getLogger().removeHandler(handler)

    assert run_main(body, []) == 0
    assert capsys.readouterr().err == ""
    assert run_main(body, ["--verbose"]) == 0
    assert SECRET in capsys.readouterr().err


def test_other_threads_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of workers in this process print tracebacks; what the thread of the body says stays."""

    def body(_: list[str]) -> None:
        worker = threading.Thread(target=lambda: print(SECRET, file=sys.stderr))
        worker.start()
        worker.join()
        print("heard", file=sys.stderr)

    assert run_main(body, []) == 0
    assert capsys.readouterr().err == "heard\n"
    assert run_main(body, ["--verbose"]) == 0
    assert SECRET in capsys.readouterr().err


def test_the_end_of_a_program_is_silent() -> None:
    """Runners end the servers that they started when the process exits, and log that."""
    script = (
        "import atexit, logging, sys\n"
        "from pipelines.main import run_main\n"
        "def body(argv):\n"
        f"    atexit.register(lambda: logging.critical({SECRET!r}))\n"
        f"    atexit.register(lambda: print({SECRET!r}, file=sys.stderr))\n"
        "    logging.error('makes the handler of the root')\n"
        "    raise OSError(28, 'x')\n"
        "sys.exit(run_main(body))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=_ENVIRONMENT, timeout=60
    )
    assert run.returncode == 2
    assert run.stderr == "error: No space left on device: free some space\n"


def test_warnings_are_silent() -> None:
    def body(_: list[str]) -> None:
        warnings.warn(SECRET, stacklevel=1)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert run_main(body, []) == 0
        assert seen == []
        assert run_main(body, ["--verbose"]) == 0
        assert [str(item.message) for item in seen] == [SECRET]


def test_summaries_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    summary("wrote 3 shards", "ledger: out.json")
    assert capsys.readouterr().out == "wrote 3 shards\nledger: out.json\n"


def test_progress_counts_staged_shards_on_a_terminal(tmp_path: Path) -> None:
    options = parse_options([f"--output={tmp_path}/out", "--run_id=r"])
    staging = tmp_path / "out.tmp-r"
    staging.mkdir()
    for number in range(3):
        (staging / f"{number}").touch()
    master, slave = pty.openpty()
    shown = b""
    with os.fdopen(slave, "w") as terminal, progress("privatizing", options, terminal):
        while b"3 shards staged" not in shown:
            shown += os.read(master, 1000)
    os.close(master)
    assert b"privatizing 00:0" in shown
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_progress_is_silent_elsewhere() -> None:
    stream = io.StringIO()
    with progress("privatizing", parse_options(["--output=gs://bucket/out"]), stream):
        time.sleep(0)
    assert stream.getvalue() == ""


def test_progress_ends_with_the_body() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, pytest.raises(InputError), progress("reading", None, terminal):
        raise InputError("x")
    os.close(master)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
