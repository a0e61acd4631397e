"""What the tests of engines start on this machine, and how it ends: whole process groups, also when a test fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

import apache_beam
import grpc
from apache_beam.options.pipeline_options import FlinkRunnerOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.utils.subprocess_server import JavaJarServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "beam_dp_engines"
POM = HERE / "flink_pom.xml"
JOB_SERVER_CLASS = "org.apache.beam.runners.flink.FlinkJobServerDriver"
PRISM_PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
START_SECONDS = 120
RUN_SECONDS = 280
_END_SECONDS = 10
_BUILD_SECONDS = 1500


def environment(folder: Path, cache: str = "cache") -> dict[str, str]:
    """Of every process: the interpreter of the tests is ``python``, the doors of the tests can be imported."""
    paths = (ROOT, HERE, ROOT / "tests" / "aggregate")
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "BEAM_DP_CACHE": str(folder / cache),
        "OPENBLAS_NUM_THREADS": "1",
    }


def end_group(process: subprocess.Popen) -> None:
    """Ends a process that leads a group, and all others of the group: JVMs and workers that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(
    command: Sequence[str], port: int | None, log: Path, env: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens at ``port``, if any; it and what it started are ended afterwards."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=dict(env), start_new_session=True
        )
    try:
        if port is not None:
            _await_port(port, process, log)
        yield process
    finally:
        end_group(process)


def _await_port(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{log.stem} did not start: {log.read_text(errors='replace')[-2000:]}")


def submit(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command line to its end; a JVM or worker that it leaves behind is ended too."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=RUN_SECONDS)
    finally:
        end_group(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def flink_job_server() -> Path:
    """The jar of Beam's Flink job server: the one that BEAM_DP_FLINK_JAR names, that of the installed Beam version, or
    one that is put together from the parts that `POM` names.
    """
    named = os.environ.get("BEAM_DP_FLINK_JAR")
    return Path(named) if named else _published_job_server() or _assembled_job_server()


def _published_job_server() -> Path | None:
    """The jar in Beam's cache, fetched from Maven Central if need be; None where there is none of this version."""
    version = FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1]
    url = JavaJarServer.path_to_beam_jar(f":runners:flink:{version}:job-server:shadowJar")
    kept = Path(JavaJarServer.JAR_CACHE) / url.rpartition("/")[2]
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        with urlopen(url, timeout=60) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
        part.replace(kept)
    except OSError:
        return None
    finally:
        part.unlink(missing_ok=True)
    return kept


def _assembled_job_server() -> Path:
    """A jar that only names its parts, which Maven fetches; kept as long as the parts are where they were."""
    folder = CACHE / f"flink-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"
    listed, jar = folder / "parts.txt", folder / "job-server.jar"
    parts = [Path(line) for line in listed.read_text().splitlines()] if listed.exists() else []
    if not (parts and jar.exists() and all(part.exists() for part in parts)):
        folder.mkdir(parents=True, exist_ok=True)
        goal = ["dependency:build-classpath", f"-Dmdep.outputFile={listed}", "-Dmdep.pathSeparator=\n"]
        subprocess.run(["mvn", "-B", "-q", "-f", str(POM), *goal], check=True, timeout=_BUILD_SECONDS)
        parts = [Path(line) for line in listed.read_text().splitlines()]
        _write_launcher(jar, parts)
    return jar


def _write_launcher(jar: Path, parts: Sequence[Path]) -> None:
    headers = {
        "Manifest-Version": "1.0",
        "Main-Class": JOB_SERVER_CLASS,
        "Class-Path": " ".join(part.as_uri() for part in parts),
    }
    # A manifest has lines of at most 72 bytes; what goes on begins with a space.
    lines = [f"{name}: {value}" for name, value in headers.items()]
    folded = ["\r\n ".join([line[:70], *(line[i : i + 70] for i in range(70, len(line), 70))]) for line in lines]
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "\r\n".join(folded) + "\r\n")


def prism() -> Path | None:
    """The Prism that BEAM_DP_PRISM names, or one built from the Go module proxy; None without it and without Go."""
    named = os.environ.get("BEAM_DP_PRISM")
    if named:
        return Path(named)
    folder = CACHE / f"prism-{apache_beam.__version__}"
    if not (folder / "prism").exists():
        if shutil.which("go") is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["go", "install", f"{PRISM_PACKAGE}@v{apache_beam.__version__}"],
            env={**os.environ, "GOBIN": str(folder)},
            check=True,
            timeout=_BUILD_SECONDS,
        )
    return folder / "prism"


@contextlib.contextmanager
def worker_pool(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """Beam's worker pool, which starts a process for each worker that an engine asks for; gives its address.

    Args:
        folder: of its log and of its index cache.
        more: variables of its environment.
    """
    port = free_port()
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with server(command, port, folder / "pool.log", {**environment(folder, "cache-of-the-pool"), **(more or {})}):
        yield f"localhost:{port}"


@contextlib.contextmanager
def flink_job_service(
    folder: Path, slots: int, name: str = "job-server", settings: Mapping[str, object] | None = None
) -> Iterator[str]:
    """A job server that has a Flink of ``slots`` slots in its own JVM, and its log in FOLDER/NAME.log.

    Gives its address.
    """
    port, conf = free_port(), folder / f"flink-of-the-{name}"
    _configure(conf, {"taskmanager.numberOfTaskSlots": slots, "parallelism.default": slots, **(settings or {})})
    command = ["java", "-Xmx2g", "-jar", str(flink_job_server()), "--flink-master=[local]", f"--job-port={port}"]
    command += ["--artifact-port=0", "--expansion-port=-1", f"--flink-conf-dir={conf}"]
    command += [f"--artifacts-dir={conf / 'artifacts'}"]
    with server(command, port, folder / f"{name}.log", environment(folder)):
        yield f"localhost:{port}"


def job_states(service: str) -> list[str]:
    """The states of the jobs that a job server knows."""
    with grpc.insecure_channel(service) as channel:
        jobs = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(beam_job_api_pb2.GetJobsRequest()).job_info
    return [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in jobs]


@contextlib.contextmanager
def flink_cluster(folder: Path, task_managers: int) -> Iterator[str]:
    """A Flink of a JVM for the job manager and one for each task manager, of one slot; gives the master's address."""
    port, conf = free_port(), folder / "flink-cluster"
    hosts = (
        "jobmanager.rpc.address",
        "jobmanager.bind-host",
        "rest.address",
        "taskmanager.host",
        "taskmanager.bind-host",
    )
    # All sizes, since no script of Flink's works them out here.
    megabytes = {
        **{"task.heap.size": 512, "task.off-heap.size": 0, "framework.heap.size": 128, "framework.off-heap.size": 128},
        **{"managed.size": 128, "network.min": 256, "network.max": 256},
        **{"jvm-metaspace.size": 256, "jvm-overhead.min": 192, "jvm-overhead.max": 192},
    }
    numbers = {"jobmanager.rpc.port": free_port(), "rest.port": port, "taskmanager.cpu.cores": 1.0}
    memory = {f"taskmanager.memory.{name}": f"{size}m" for name, size in megabytes.items()}
    _configure(conf, {**dict.fromkeys(hosts, "localhost"), **numbers, **memory, "taskmanager.numberOfTaskSlots": 1})
    java = ["java", "-Xmx1g", "-XX:MaxDirectMemorySize=1g", "-cp", str(flink_job_server())]
    with contextlib.ExitStack() as stack:

        def start(role: str, name: str, listens: int | None) -> None:
            command = [*java, f"org.apache.flink.runtime.{role}", "-c", str(conf)]
            stack.enter_context(server(command, listens, folder / f"{name}.log", environment(folder)))

        start("entrypoint.StandaloneSessionClusterEntrypoint", "job-manager", port)
        for number in range(task_managers):
            start("taskexecutor.TaskManagerRunner", f"task-manager-{number}", None)
        _await_slots(f"http://localhost:{port}/overview", task_managers)
        yield f"localhost:{port}"


def _configure(conf: Path, settings: Mapping[str, object]) -> None:
    conf.mkdir()
    for name in ("flink-conf.yaml", "config.yaml"):  # before Flink 2.0, and since
        (conf / name).write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))


def _await_slots(overview: str, slots: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urlopen(overview, timeout=5) as answer:
            if json.load(answer)["slots-available"] == slots:
                return
        time.sleep(0.2)
    raise RuntimeError("the task managers did not come up")


@contextlib.contextmanager
def prism_server(folder: Path, binary: Path) -> Iterator[str]:
    """A Prism that takes jobs; gives its address."""
    port = free_port()
    command = [str(binary), f"-job_port={port}", "-serve_http=false"]
    with server(command, port, folder / "prism.log", environment(folder)):
        yield f"localhost:{port}"
