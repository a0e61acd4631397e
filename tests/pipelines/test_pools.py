"""Workers that cannot start are found out before a charge, and those that die before they connect end a job."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, endpoints_pb2
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

from beam_dp.errors import ArgumentError, ResourceError
from pipelines import pools
from pipelines.engines import lost_by_engine
from pipelines.options import parse_options
from pipelines.pools import dead_workers_cancel, pools_noted, require_workers

PROCESSES = ("--environment_type=LOOPBACK", "--experiments=use_loopback_process_worker")
GOOD = f'exec {sys.executable} "$@"'
WAIT_SECONDS = 60


def python_that(folder: Path, does: str) -> str:
    """A PATH on which ``python`` is a script of one line."""
    folder.mkdir()
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def require(*flags: str) -> None:
    require_workers(parse_options(["--engine=flink", *flags]))


def external(port: int) -> tuple[str, str]:
    return "--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"


@pytest.fixture
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[psutil.Process, int]]:
    """A pool of Beam's whose ``python`` is as the parameter says, and its port."""
    port = free_port()
    path = python_that(tmp_path / "path", request.param)
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with subprocess.Popen(command, env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL) as process:
        try:
            with grpc.insecure_channel(f"localhost:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=WAIT_SECONDS)
            yield psutil.Process(process.pid), port
        finally:
            process.kill()


@pytest.mark.parametrize("pool", [GOOD], indirect=True, ids=["good"])
def test_a_pool_that_starts_workers_is_left_without_one(pool: tuple[psutil.Process, int]) -> None:
    process, port = pool
    require(*external(port))
    assert not process.children(recursive=True)


@pytest.mark.fault
@pytest.mark.parametrize("pool", ["exit 1", "sleep 600"], indirect=True, ids=["ends", "waits"])
def test_a_pool_whose_workers_do_not_connect(pool: tuple[psutil.Process, int], monkeypatch: pytest.MonkeyPatch) -> None:
    process, port = pool
    monkeypatch.setattr(pools, "_START_SECONDS", 0.5)
    with pytest.raises(ResourceError, match=f"^--environment_config: the worker pool at localhost:{port} cannot start"):
        require(*external(port))
    assert not process.children(recursive=True)


def test_where_no_pool_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with pytest.raises(
        ResourceError, match=f"^--environment_config: no worker pool answers at localhost:{port}: start"
    ):
        require(*external(port))
    monkeypatch.setattr(pools, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("localhost", port)), pytest.raises(ResourceError, match="no worker pool answers"):
        require(*external(port))


def test_processes_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", python_that(tmp_path / "good", GOOD))
    before = set(psutil.Process().children(recursive=True))
    require(*PROCESSES)
    assert set(psutil.Process().children(recursive=True)) <= before
    for path in (python_that(tmp_path / "ends", "exit 1"), str(tmp_path)):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(ResourceError, match=r"^--experiments=use_loopback_process_worker cannot start a worker"):
            require(*PROCESSES)
    # Threads of this process need no program.
    require("--environment_type=LOOPBACK")


def process(config: str) -> tuple[str, str]:
    return "--environment_type=PROCESS", f"--environment_config={config}"


def test_a_program_of_workers_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "boot"
    program.write_text("#!/bin/sh\n")
    config = json.dumps({"command": str(program)})
    with pytest.raises(ResourceError, match=f"^--environment_config: there is no program {program} that can be run"):
        require(*process(config))
    program.chmod(0o755)
    require(*process(config))
    monkeypatch.setenv("PATH", str(tmp_path))
    require(*process('{"command": "boot"}'))
    require("--environment_type=PROCESS", "--environment_options=process_command=boot")
    # On other machines there may be what is not here.
    require("--flink_master=host:8081", *process('{"command": "/nowhere/boot"}'))


@pytest.mark.parametrize("config", ["", "boot", "{}", "[]", '{"command": 7}'])
def test_a_program_of_workers_must_be_named(config: str) -> None:
    with pytest.raises(ArgumentError, match=r"^--environment_config must name a program for PROCESS"):
        require(*process(config))


class Job:
    """A job that notes that it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(pools, "_DEAD_SECONDS", 0.2)


def request_for(name: str) -> beam_fn_api_pb2.StartWorkerRequest:
    nowhere = endpoints_pb2.ApiServiceDescriptor(url="localhost:1")
    return beam_fn_api_pb2.StartWorkerRequest(worker_id=name, control_endpoint=nowhere)


@pytest.mark.usefixtures("watching")
def test_a_worker_that_died_unasked_cancels_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", python_that(tmp_path / "waits", "exec sleep 600"))
    with pools_noted():
        pool: Any = BeamFnExternalWorkerPoolServicer(use_process=True)
    job = Job()
    with dead_workers_cancel(job) as deaths:  # type: ignore[arg-type]
        for name in ("stopped", "killed"):
            pool.StartWorker(request_for(name), None)
        pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="stopped"), None)
        assert not job.cancelled.wait(0.5)
        pool._worker_processes["killed"].kill()
        assert job.cancelled.wait(WAIT_SECONDS)
    assert deaths.in_vain


@pytest.mark.usefixtures("watching")
def test_a_worker_that_is_told_to_stop_after_its_death_cancels_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flink ends workers whose bundles failed, and may run the job again."""
    monkeypatch.setattr(pools, "_DEAD_SECONDS", 2.0)
    monkeypatch.setenv("PATH", python_that(tmp_path / "ends", "exit 1"))
    with pools_noted():
        pool: Any = BeamFnExternalWorkerPoolServicer(use_process=True)
    job = Job()
    with dead_workers_cancel(job) as deaths:  # type: ignore[arg-type]
        pool.StartWorker(request_for("w"), None)
        pool._worker_processes["w"].wait(WAIT_SECONDS)
        time.sleep(0.2)
        pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="w"), None)
        assert not job.cancelled.wait(2.5)
    assert not deaths.in_vain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Pipeline x failed in state FAILED: a.b.C: a.b.C: CANCELLED: client cancelled", "lost a worker"),
        ("Pipeline x failed in state FAILED: a.b.C: UNAVAILABLE: io exception", "lost a worker"),
        ("Pipeline x failed in state FAILED: a.b.C: Process died with exit code 1", "lost a worker"),
        ("Pipeline x failed in state FAILED: a.b.C: Error received from SDK harness: CANCELLED: x", None),
        ("Pipeline x failed in state CANCELLED: unknown error", None),
    ],
)
def test_what_the_end_of_a_job_says_of_its_workers(text: str, says: str | None) -> None:
    found = lost_by_engine(RuntimeError(text))
    assert (found is None) == (says is None)
    assert found is None or says in str(found)  # type: ignore[operator]


def test_a_job_server_that_is_gone() -> None:
    with grpc.insecure_channel(f"localhost:{free_port()}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/any/method")(b"", timeout=WAIT_SECONDS)
    assert str(lost_by_engine(caught.value)).startswith("the job server no longer answers")
