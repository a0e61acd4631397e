"""An engine that cannot be started or reached is found out before anything is charged."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from commands import ROOT, refusal, run_here

from beam_dp import resolve_index
from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.errors import ArgumentError, ResourceError
from pipelines import privatize_text
from pipelines.engines import require_engine
from pipelines.options import parse_options

JAVA = f"--job_server_java_launcher={sys.executable}"  # a program that is there


@pytest.fixture
def address() -> Iterator[str]:
    """Where something listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_address() -> str:
    """Where nothing does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def require(*flags: str) -> None:
    require_engine(parse_options(flags))


@pytest.mark.parametrize(
    "flags",
    [
        ("--engine=local",),
        ("--engine=local-parallel", "--job_endpoint=nowhere"),
        ("--engine=dataflow",),
        ("--runner=PrismRunner",),
        ("--runner=PortableRunner", "--job_endpoint=embed"),
    ],
    ids=["local", "local-parallel", "dataflow", "prism", "embed"],
)
def test_other_engines_are_left_to_beam(flags: tuple[str, ...]) -> None:
    require(*flags)


@pytest.mark.parametrize("runner", ["--engine=flink", "--runner=PortableRunner", "--runner=PrismRunner"])
def test_a_job_server_must_answer(runner: str, address: str, silent_address: str) -> None:
    require(runner, f"--job_endpoint={address}")
    with pytest.raises(ResourceError, match=f"^--job_endpoint: nothing answers at {silent_address}; start a Beam job"):
        require(runner, f"--job_endpoint={silent_address}")


@pytest.mark.parametrize("endpoint", ["localhost", "8099", ":8099", "localhost:", "localhost:x", "http://localhost"])
def test_an_endpoint_is_a_host_and_a_port(endpoint: str) -> None:
    with pytest.raises(ArgumentError, match="--job_endpoint must be HOST:PORT"):
        require("--engine=flink", f"--job_endpoint={endpoint}")


def test_a_port_that_no_machine_has() -> None:
    with pytest.raises(ResourceError, match=r"nothing answers at 127\.0\.0\.1:70000"):
        require("--engine=flink", "--job_endpoint=127.0.0.1:70000")


def test_flink_needs_java_and_a_jar(tmp_path: Path, silent_address: str) -> None:
    jar = tmp_path / "server.jar"
    jar.touch()
    require("--engine=flink", JAVA, f"--flink_job_server_jar={jar}")
    with pytest.raises(ResourceError, match="Flink needs Java"):
        require("--engine=flink", f"--job_server_java_launcher={tmp_path}/java", f"--flink_job_server_jar={jar}")
    with pytest.raises(ArgumentError, match="--flink_job_server_jar names no file"):
        require("--engine=flink", JAVA, f"--flink_job_server_jar={tmp_path}/other.jar")
    url = f"http://{silent_address}/server.jar"
    with pytest.raises(ResourceError, match=f"job server for Flink cannot be fetched .{url}.: name a copy"):
        require("--engine=flink", JAVA, f"--flink_job_server_jar={url}", f"--jar_cache_dir={tmp_path}/cache")


def test_a_jar_that_flink_gets_from_us_needs_no_java(tmp_path: Path) -> None:
    jar = tmp_path / "server.jar"
    jar.touch()
    flags = ("--flink_master=host:8081", "--flink_submit_uber_jar", f"--job_server_java_launcher={tmp_path}/java")
    require("--engine=flink", *flags, f"--flink_job_server_jar={jar}")


@pytest.mark.parametrize("missing", ["job server", "worker pool"])
def test_nothing_is_charged_for_an_engine_that_is_not_there(
    missing: str, tmp_path: Path, silent_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    digest = resolve_index().digest
    store.create("d", Limit(model="metric", privacy_unit="word", epsilon=20, metric="euclidean", index_digest=digest))
    pool = silent_address.replace("127.0.0.1", "localhost")
    flags = {
        "job server": (f"--job_endpoint={silent_address}",),
        "worker pool": (
            *(JAVA, f"--flink_job_server_jar={__file__}"),
            *("--environment_type=EXTERNAL", f"--environment_config={pool}"),
        ),
    }
    done = run_here(
        capfd,
        privatize_text,
        *("--epsilon=8", f"--input={ROOT}/pipelines/data/utterances.txt", f"--output={tmp_path}/out"),
        *(f"--budget_store={store.url}", "--dataset=d", "--engine=flink", *flags[missing]),
    )
    assert {"job server": "nothing answers", "worker pool": "no worker pool answers"}[missing] in refusal(done)
    assert not store.account("d").runs
    assert [path.name for path in tmp_path.iterdir()] == ["budget.db"]
