"""The pipelines on a real Flink: two slots, two worker processes, compared with Beam's embedded runner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_dp.embeddings.manifest import DATA_FILES

sys.path.insert(0, str(Path(__file__).parent))
from engine_runs import (
    Engine,
    check_budget,
    check_certificate,
    check_items,
    check_noise_free,
    check_refusal,
    check_texts,
    noise_free,
    workers,
)
from engine_servers import (
    HERE,
    ROOT,
    RUN_SECONDS,
    end_group,
    environment,
    flink_cluster,
    flink_job_server,
    flink_job_service,
    job_states,
)

SLOTS = 2
# Workers that one stage leaves serve the next one.
PARALLEL = (f"--parallelism={SLOTS}", "--environment_cache_millis=10000")
SPREAD = (*PARALLEL, f"--sdk_worker_parallelism={SLOTS}")
LOOPBACK = ("--environment_type=LOOPBACK", "--experiments=use_loopback_process_worker")
LONG = 400  # times the utterances: some seconds on one worker
DATA = os.environ.get("BEAM_DP_DATA")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    """The address of a job server with a Flink in it."""
    with flink_job_service(folder, SLOTS) as address:
        yield address


@pytest.fixture(scope="module")
def external(pool: str) -> tuple[str, ...]:
    return ("--environment_type=EXTERNAL", f"--environment_config={pool}")


@pytest.fixture(scope="module")
def flink(folder: Path, service: str, external: tuple[str, ...]) -> Engine:
    """That one; workers are processes of the submitter for command lines, of the pool for the noise-free job."""
    server = (f"--job_endpoint={service}", *SPREAD)
    return Engine("flink", folder, ("--engine=flink", *server, *LOOPBACK), ("--runner=FlinkRunner", *server, *external))


@pytest.fixture(scope="module")
def embedded(folder: Path, external: tuple[str, ...]) -> Engine:
    """A Flink that the submitting process starts and ends, with the workers of a pool."""
    jar = f"--flink_job_server_jar={flink_job_server()}"
    return Engine("embedded", folder, ("--engine=flink", jar, *SPREAD, *external))


@pytest.fixture
def cluster(folder: Path) -> Iterator[Engine]:
    """A master and two task managers, each of which starts a worker process of its own.

    They may not share a pool: they call their workers by the same names, and end those of each other.
    """
    boot = folder / "boot"
    boot.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "boot_worker.py"} "$@"\n')
    boot.chmod(0o755)
    process = ("--environment_type=PROCESS", f"--environment_config={json.dumps({'command': str(boot)})}")
    with flink_cluster(folder, SLOTS) as master:
        flags = (f"--flink_master={master}", f"--flink_job_server_jar={flink_job_server()}", *PARALLEL)
        yield Engine("cluster", folder, (), ("--runner=FlinkRunner", *flags, *process))


def test_without_noise_two_workers_give_what_one_process_gives(flink: Engine, local: Engine) -> None:
    check_noise_free(flink, local)


def test_two_worker_processes_share_an_index_that_one_of_them_fetched(flink: Engine) -> None:
    noise_free(flink)
    noted = workers(flink)
    processes = {note["pid"] for note in noted}
    assert len(processes) == SLOTS
    # One object in a process, whichever thread; one file for all of them, mapped to be shared.
    assert len({(note["pid"], note["object"]) for note in noted}) == SLOTS
    mapped = {tuple(place) for note in noted for place in note["mapped"]}
    assert len(mapped) == 1
    assert {kind for kind, _, _ in mapped} == {"r--s"}
    opened = [line.split() for line in (flink.folder / "opened").read_text().splitlines()]
    fetched = Counter(name for pid, name in opened if int(pid) in processes and name in DATA_FILES)
    assert fetched == dict.fromkeys(DATA_FILES, 1)


def test_without_noise_a_cluster_gives_what_one_process_gives(cluster: Engine, local: Engine) -> None:
    check_noise_free(cluster, local)
    assert len({note["pid"] for note in workers(cluster)}) == SLOTS


def test_texts(flink: Engine, local: Engine) -> None:
    check_texts(flink, local, flink.folder / "utterances.txt")


def test_tables(embedded: Engine, local: Engine) -> None:
    check_items(embedded, local, embedded.folder / "in-*.jsonl", "user", "item")


def test_a_certificate(flink: Engine, local: Engine) -> None:
    check_certificate(flink, local)


def test_a_budget(embedded: Engine, local: Engine) -> None:
    check_budget(embedded, local)


def test_a_row_that_a_worker_refuses(flink: Engine, local: Engine) -> None:
    check_refusal(flink, local)


def test_a_run_that_is_told_to_stop_leaves_no_job_and_nothing_staged(flink: Engine, service: str) -> None:
    source = flink.folder / "long.txt"
    source.write_text(LONG * (flink.folder / "utterances.txt").read_text(encoding="utf-8"), encoding="utf-8")
    line = flink.line("privatize_text", "stopped", f"--input={source}", "--epsilon=8", "--run_id=r")
    env = environment(flink.folder)
    with subprocess.Popen(
        line, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + RUN_SECONDS
            while not list(flink.out.glob("stopped.tmp-r/*")) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=RUN_SECONDS)
        finally:
            end_group(process)
    assert (process.returncode, err) == (143, "error: terminated\n")
    assert not list(flink.out.glob("stopped*"))
    states = Counter(job_states(service))
    assert set(states) <= {"DONE", "FAILED", "CANCELLED"}
    assert states["CANCELLED"] == 1


@pytest.mark.skipif(not DATA, reason="BEAM_DP_DATA names no folder with the larger public data sets")
def test_texts_of_snips(flink: Engine, local: Engine) -> None:
    check_texts(flink, local, Path(str(DATA)) / "snips" / "train.tsv")


@pytest.mark.skipif(not DATA, reason="BEAM_DP_DATA names no folder with the larger public data sets")
def test_tables_of_snips(flink: Engine, local: Engine) -> None:
    check_items(flink, local, Path(str(DATA)) / "snips" / "train.tsv", "utterance", "intent")
