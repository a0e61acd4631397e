"""Faults on a real Flink: whatever dies or goes away, a run ends, charged once, with all or nothing published."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine_servers import (
    HERE,
    environment,
    flink_cluster,
    flink_job_server,
    flink_job_service,
    free_port,
    worker_pool,
)
from flink_faults import END_SECONDS, Case, await_that, descendants, ended, running, write_source
from lost_shelf import PORT

from beam_dp.embeddings import build_index, open_index, resolve_index

SLOTS = 2
WORDS = 1000
DISK_BYTES = 1 << 18  # less than a shard
ATTEMPTS = 1
# Dead workers must have left Flink's cache when it tries again.
CACHE_MILLIS = 1000
DELAY = "4 s"
PARALLEL = (f"--parallelism={SLOTS}", f"--environment_cache_millis={CACHE_MILLIS}")
SPREAD = (*PARALLEL, f"--sdk_worker_parallelism={SLOTS}")
PROCESSES = ("--environment_type=LOOPBACK", "--experiments=use_loopback_process_worker")
LOST = "error: the engine lost a worker"
pytestmark = pytest.mark.engine

NewCase = Callable[..., Case]


@pytest.fixture(scope="module")
def index(folder: Path) -> str:
    """A small one, so that many rows are privatized in little time."""
    default = open_index(resolve_index())
    np.save(folder / "some.npy", default.vectors[:WORDS])
    (folder / "some.txt").write_text("".join(f"{word}\n" for word in default.words[:WORDS].to_pylist()))
    build_index(str(folder / "some.npy"), str(folder / "some"), words=str(folder / "some.txt"), trees=2, progress=False)
    return str(folder / "some")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return write_source(folder / "faults.txt", (folder / "utterances.txt").read_text(encoding="utf-8").splitlines())


@pytest.fixture
def case(folder: Path, source: Path, index: str, request: pytest.FixtureRequest) -> NewCase:
    """Makes a case of the test's name."""
    return lambda *flags, name="": Case(folder / f"{request.node.name}{name}", source, index, *flags)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    """A job server with a Flink that tries nothing twice."""
    with flink_job_service(folder, SLOTS, "faults") as address:
        yield address


@pytest.fixture(scope="module")
def retrying(folder: Path) -> Iterator[str]:
    """A job server with a Flink that runs a job again when a task of it fails."""
    strategy = {"type": "fixed-delay", "fixed-delay.attempts": ATTEMPTS, "fixed-delay.delay": DELAY}
    settings = {f"restart-strategy.{name}": value for name, value in strategy.items()}
    with flink_job_service(folder, SLOTS, "retries", settings) as address:
        yield address


@pytest.fixture(scope="module")
def logs(folder: Path) -> list[Path]:
    """Of the job servers."""
    return [folder / "faults.log"]


def on(service: str, *flags: str) -> tuple[str, ...]:
    return ("--engine=flink", f"--job_endpoint={service}", *SPREAD, *(flags or PROCESSES))


def jobs_over(logs: list[Path]) -> int:
    """How many jobs have ended, by Flink's log: the job server takes one whose submitter is gone for running."""
    return sum(log.read_text(errors="replace").count("reached terminal state") for log in logs)


def test_a_worker_killed_amid_a_bundle_ends_the_run(case: NewCase, service: str, logs: list[Path]) -> None:
    run = case(*on(service))
    with run.started() as process:
        run.worker_with_a_bundle(process).kill()
        done = ended(process)
    assert done.status == 2, done.err
    assert done.last_line.startswith(LOST)
    run.check_nothing_published()
    run.check_silent(logs, done.out, done.err)


def test_a_bundle_whose_worker_was_killed_is_run_again_and_counts_once(
    case: NewCase, retrying: str, folder: Path
) -> None:
    run = case(*on(retrying))
    with run.started() as process:
        killed = run.worker_with_a_bundle(process)
        killed.kill()
        # The first attempt's draws are still staged, and must not be published.
        assert any(shard.stat().st_size for shard in run.staging.glob("rows-*"))
        run.worker_with_a_bundle(process, {killed.pid})
        done = ended(process)
    assert done.status == 0, done.err
    run.check_published_once()
    run.check_silent([folder / "retries.log"], done.out, done.err)


def test_workers_killed_at_every_attempt_end_the_run(case: NewCase, retrying: str, folder: Path) -> None:
    run = case(*on(retrying))
    killed: set[int] = set()
    with run.started() as process:
        for _ in range(1 + ATTEMPTS):
            run.worker_with_a_bundle(process, killed)
            for each in descendants(process.pid):
                killed.add(each.pid)
                each.kill()
        done = ended(process)
    assert done.status == 2, done.err
    assert done.last_line.startswith(LOST)
    assert len(killed) >= 1 + ATTEMPTS
    run.check_nothing_published()
    run.check_silent([folder / "retries.log"], done.out, done.err)


def test_a_submitter_killed_with_its_workers_leaves_nothing_published(
    case: NewCase, service: str, logs: list[Path]
) -> None:
    """Its workers are its threads. What was staged stays, under the name of the run, and is no output."""
    run, before = case(*on(service, "--environment_type=LOOPBACK")), jobs_over(logs)
    with run.started() as process:
        await_that(lambda: any(run.staging.glob("rows-*")), while_runs=process)
        process.kill()
        out, err = process.communicate(timeout=END_SECONDS)
    await_that(lambda: jobs_over(logs) > before, seconds=END_SECONDS)
    run.check_nothing_published(staged=True)
    run.check_silent(logs, out, err)


def test_a_submitter_killed_while_its_job_goes_on_is_published_once(
    case: NewCase, service: str, pool: str, logs: list[Path], folder: Path
) -> None:
    flags = ("--runner=FlinkRunner", f"--job_endpoint={service}", *SPREAD)
    run, before = case(*flags, "--environment_type=EXTERNAL", f"--environment_config={pool}"), jobs_over(logs)
    with run.started(job=True) as process:
        await_that(lambda: any(run.staging.glob("rows-*")), while_runs=process)
        assert not run.has_manifest()
        process.kill()
        out, err = process.communicate(timeout=END_SECONDS)
    await_that(lambda: jobs_over(logs) > before, seconds=END_SECONDS)
    run.check_published_once()
    run.check_silent([*logs, folder / "pool.log"], out, err)


def test_an_engine_killed_with_its_task_manager_ends_the_run(case: NewCase, folder: Path) -> None:
    """The JVM that the command itself started: job server, job manager and task manager in one."""
    run = case("--engine=flink", f"--flink_job_server_jar={flink_job_server()}", *SPREAD, *PROCESSES)
    with run.started() as process:
        run.worker_with_a_bundle(process)
        (engine,) = running(process.pid, " -jar ")
        engine.kill()
        done = ended(process)
    assert (done.status, done.last_line.startswith("error: the job server no longer answers")) == (2, True), done.err
    run.check_nothing_published()
    run.check_silent([], done.out, done.err)


def test_a_task_manager_of_a_cluster_killed_ends_the_job(case: NewCase, folder: Path) -> None:
    boot = folder / "boot-of-faults"
    boot.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "boot_worker.py"} "$@"\n')
    boot.chmod(0o755)
    process_environment = ("--environment_type=PROCESS", f"--environment_config={json.dumps({'command': str(boot)})}")
    place = folder / "cluster-of-faults"
    place.mkdir()
    with flink_cluster(place, SLOTS) as master:
        flags = (f"--flink_master={master}", f"--flink_job_server_jar={flink_job_server()}", *PARALLEL)
        run = case("--runner=FlinkRunner", *flags, *process_environment)
        with run.started(job=True) as process:
            await_that(lambda: any(run.staging.glob("rows-*")), while_runs=process)
            managers = running(os.getpid(), "taskexecutor.TaskManagerRunner")
            assert len(managers) == SLOTS
            managers[0].kill()
            done = ended(process)
    assert done.status == 1
    run.check_nothing_published(staged=True)
    run.check_silent([*place.glob("*.log")], done.out, done.err)


def test_a_worker_that_dies_before_it_connects_ends_the_run(case: NewCase, service: str, logs: list[Path]) -> None:
    """Flink waits for it without end. The first that is started is that of the check before the charge."""
    run = case(*on(service))
    programs = run.folder / "programs"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nmkdir {programs}/checked && exec {sys.executable} "$@"\nexit 9\n')
    (programs / "python").chmod(0o755)
    with run.started(env={"PATH": f"{programs}:{os.environ['PATH']}"}) as process:
        done = ended(process)
    assert done.status == 2, done.err
    assert done.last_line.startswith(LOST)
    assert (programs / "checked").exists()
    run.check_nothing_published()
    run.check_silent(logs, done.out, done.err)


def test_a_program_of_workers_that_ends_at_once_ends_the_run(case: NewCase) -> None:
    program = f"--environment_config={json.dumps({'command': shutil.which('false')})}"
    jar = f"--flink_job_server_jar={flink_job_server()}"
    run = case("--engine=flink", jar, *PARALLEL, "--environment_type=PROCESS", program)
    with run.started() as process:
        done = ended(process)
    assert done.status == 2, done.err
    assert done.last_line.startswith(LOST)
    run.check_nothing_published()
    run.check_silent([], done.out, done.err)


def test_a_full_disk(case: NewCase, service: str, logs: list[Path]) -> None:
    """A limit on the size of files, which workers inherit, is a full disk that needs no privileges."""

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))

    lines = []
    for run in (case(*on(service)), case("--engine=local", name="-locally")):
        with run.started(preexec_fn=fill) as process:
            done = ended(process)
        assert done.status == 2, done.err
        run.check_nothing_published()
        run.check_silent(logs, done.out, done.err)
        lines.append(done.last_line.replace(str(run.output), "OUTPUT"))
    assert lines[0].startswith("error: file too large, while writing OUTPUT")
    assert lines[0] == lines[1]


def test_an_index_whose_host_is_gone_when_workers_fetch_it(case: NewCase, index: str, tmp_path: Path) -> None:
    """The submitter still had it. Where that is the worker too, the run ends by the same words, and costs nothing."""
    (tmp_path / "sitecustomize.py").write_text("import lost_shelf\n")
    paths = {"PYTHONPATH": f"{tmp_path}:{environment(tmp_path)['PYTHONPATH']}"}
    uri, gone = f"lost-shelf://{index}", {**paths, PORT: str(free_port())}
    with socket.create_server(("localhost", 0), backlog=64) as host, worker_pool(tmp_path, gone) as pool:
        there = {**paths, PORT: str(host.getsockname()[1])}
        jar = f"--flink_job_server_jar={flink_job_server()}"
        external = ("--environment_type=EXTERNAL", f"--environment_config={pool}")
        run = case("--engine=flink", jar, *SPREAD, *external)
        with run.started(index=uri, env=there) as process:
            done = ended(process)
    assert done.status == 2, done.err
    run.check_nothing_published()
    run.check_silent([tmp_path / "pool.log"], done.out, done.err)
    locally = case("--engine=local", name="-locally")
    with locally.started(index=uri, env={**gone, "BEAM_DP_CACHE": str(tmp_path / "empty")}) as process:
        expected = ended(process)
    assert expected.status == 2
    assert not locally.store.account("d").runs
    assert uri in done.last_line
    assert done.last_line == expected.last_line
