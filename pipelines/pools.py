"""Workers that an engine waits for without end: those that cannot start, and those that die before they connect.

Flink asks a worker pool for a worker, and then waits until one connects; nobody tells it that the process has ended.
So `require_workers` starts one before a budget is charged, and `dead_workers_cancel` looks after the pool that Beam
makes in this process for ``--experiments=use_loopback_process_worker``.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, PortableOptions
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.runner import PipelineResult
from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer
from apache_beam.transforms.environments import ExternalEnvironment

from beam_dp.errors import ArgumentError, ResourceError
from pipelines.options import is_remote_engine

_START_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.1
# Flink ends workers whose bundles failed, and may start others in their stead; what it waits for it does not end.
_DEAD_SECONDS = 30.0
_WATCH_SECONDS = 1.0
_HINT = "it starts the 'python' of its PATH: put the environment that has beam_dp first there"
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def require_workers(options: PipelineOptions) -> None:
    """Starts a worker, and ends it again, where workers come from a pool; looks for the program where one starts them.

    Only on this machine: nothing is found out about workers on others, nor where Beam's containers are used.

    Args:
        options: of a runner that gives the job to a job server.

    Raises:
        ArgumentError: ``--environment_config`` cannot be right.
        ResourceError: the program is not there, the pool does not answer, or its worker does not.
    """
    if is_remote_engine(options):
        return
    environment = options.view_as(PortableOptions)
    if environment.environment_type == "PROCESS":
        _require_program(environment)
    elif environment.environment_type == "EXTERNAL":
        _require_pool(environment)
    elif environment.environment_type == "LOOPBACK":
        experiment = options.view_as(DebugOptions).lookup_experiment("use_loopback_process_worker", False)
        if experiment:
            _require_processes()


class WorkerDeaths:
    """What `dead_workers_cancel` finds out.

    Attributes:
        in_vain: whether the job was cancelled, since it waited for a worker that is dead.
    """

    def __init__(self) -> None:
        self.in_vain = False


@contextlib.contextmanager
def pools_noted() -> Iterator[None]:
    """Lets `dead_workers_cancel` know the worker pools that Beam makes in this process meanwhile."""
    pool_class: Any = BeamFnExternalWorkerPoolServicer
    original = pool_class.__init__

    def note(pool: Any, *args: Any, **kwargs: Any) -> None:
        original(pool, *args, **kwargs)
        _pools.add(pool)

    pool_class.__init__ = note
    try:
        yield
    finally:
        pool_class.__init__ = original


@contextlib.contextmanager
def dead_workers_cancel(result: PipelineResult) -> Iterator[WorkerDeaths]:
    """Cancels a job when a worker process of this process has been dead for a while and was not told to stop.

    Args:
        result: of the job that runs meanwhile.
    """
    deaths, over = WorkerDeaths(), threading.Event()
    if not _pools:
        yield deaths
        return

    def watch() -> None:
        dead_since: dict[tuple[int, str], float] = {}
        while not over.wait(_WATCH_SECONDS):
            now = time.monotonic()
            dead = {
                (id(pool), name)
                for pool in list(_pools)
                for name, process in list(getattr(pool, "_worker_processes", {}).items())
                if process.poll() is not None
            }
            dead_since = {which: dead_since.get(which, now) for which in dead}
            if any(now - since > _DEAD_SECONDS for since in dead_since.values()):
                deaths.in_vain = True
                # The job may be over by now.
                with contextlib.suppress(Exception):
                    result.cancel()
                return

    watcher = threading.Thread(target=watch, name="dead workers", daemon=True)
    watcher.start()
    try:
        yield deaths
    finally:
        over.set()
        watcher.join()


def _require_program(environment: PortableOptions) -> None:
    command = environment.lookup_environment_option("process_command")
    if environment.environment_config:
        with contextlib.suppress(ValueError, AttributeError):
            command = json.loads(environment.environment_config).get("command")
    if not command or not isinstance(command, str):
        raise ArgumentError('--environment_config must name a program for PROCESS, as in \'{"command": "/opt/boot"}\'')
    if shutil.which(command) is None:
        raise ResourceError(f"--environment_config: there is no program {command} that can be run: correct its path")


def _require_pool(environment: PortableOptions) -> None:
    try:
        address = ExternalEnvironment.from_options(environment).url
    except (ValueError, AttributeError):
        address = None
    if not address:
        raise ArgumentError("--environment_config must be HOST:PORT of a worker pool, e.g. localhost:50000")
    with grpc.insecure_channel(address) as channel, _door() as (reached, request):
        stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
        try:
            answer = stub.StartWorker(request, timeout=_ANSWER_SECONDS)
            started = not answer.error and reached.wait(_START_SECONDS)
            stub.StopWorker(_stop(request), timeout=2 * _ANSWER_SECONDS)
        except grpc.RpcError:
            raise ResourceError(
                f"--environment_config: no worker pool answers at {address}: start one there, or correct the address"
            ) from None
    if not started:
        raise ResourceError(f"--environment_config: the worker pool at {address} cannot start a worker; {_HINT}")


def _require_processes() -> None:
    """As the pool that Beam makes in this process for ``--experiments=use_loopback_process_worker``."""
    pool: Any = BeamFnExternalWorkerPoolServicer(use_process=True)
    with _door() as (reached, request):
        pool.StartWorker(request, None)
        process = pool._worker_processes.get(request.worker_id)
        deadline = time.monotonic() + _START_SECONDS
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            if reached.wait(_POLL_SECONDS):
                break
        pool.StopWorker(_stop(request), None)
    if not reached.is_set():
        raise ResourceError(f"--experiments=use_loopback_process_worker cannot start a worker; {_HINT}")


def _stop(request: beam_fn_api_pb2.StartWorkerRequest) -> beam_fn_api_pb2.StopWorkerRequest:
    return beam_fn_api_pb2.StopWorkerRequest(worker_id=request.worker_id)


class _Control(beam_fn_api_pb2_grpc.BeamFnControlServicer):
    """Has no work for the worker that connects, which therefore ends."""

    def __init__(self, reached: threading.Event) -> None:
        self._reached = reached

    def Control(  # noqa: N802 - its name in the protocol
        self, responses: Any, context: Any
    ) -> Iterator[beam_fn_api_pb2.InstructionRequest]:
        self._reached.set()
        return iter(())


@contextlib.contextmanager
def _door() -> Iterator[tuple[threading.Event, beam_fn_api_pb2.StartWorkerRequest]]:
    """What is set when a worker has connected, and the request for a worker that does."""
    reached = threading.Event()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(_Control(reached), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        here = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{port}")
        yield (
            reached,
            beam_fn_api_pb2.StartWorkerRequest(
                worker_id=f"probe-{secrets.token_hex(8)}",
                control_endpoint=here,
                logging_endpoint=here,
                artifact_endpoint=here,
                provision_endpoint=here,
            ),
        )
    finally:
        server.stop(None)
