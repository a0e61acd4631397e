"""Whether the engine of a run can be started, or is there, before a budget is charged; and whether it was lost."""

from __future__ import annotations

import re
import shutil
import socket

import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    JobServerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.portability.flink_runner import FlinkJarJobServer

from beam_dp.errors import ArgumentError, ResourceError
from pipelines.options import EMBEDDED_JOB_SERVICE, runner_name
from pipelines.pools import require_workers

WORKER_LOST = (
    "the engine lost a worker: its memory ran out (try fewer workers, --parallelism), or it could not start; see the "
    "log of the engine"
)
_ENGINE_LOST = "the job server no longer answers: see its log for why it ended"
# Flink gives the last cause of a failure: the traceback of a worker, or that the connection to one broke, or, where it
# started the worker's program itself, that this ended.
_LOST = re.compile(r"in state FAILED: (?:[\w.$]+: )*(?:(?:CANCELLED|UNAVAILABLE): |Process died with exit code )")
_CONNECT_SECONDS = 10.0
_PORTABLE_RUNNERS = ("portable", "flink", "spark", "prism")


def require_engine(options: PipelineOptions) -> None:
    """Looks for the job server that takes the job, and for workers; fetches Beam's for Flink, as the runner would.

    Raises:
        ArgumentError: ``--job_endpoint``, ``--flink_job_server_jar`` or ``--environment_config`` cannot be right.
        ResourceError: nothing answers there, or what starts a job server or a worker is not to be had.
    """
    runner = runner_name(options.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER)
    endpoint = options.view_as(PortableOptions).job_endpoint
    if runner not in _PORTABLE_RUNNERS or endpoint == EMBEDDED_JOB_SERVICE:
        return
    if endpoint:
        _require_answer(endpoint)
    elif runner == "flink":
        _require_flink_job_server(options)
    require_workers(options)


def lost_by_engine(error: BaseException) -> ResourceError | None:
    """What became of a job that failed without an error of a worker; None if that is not known.

    Args:
        error: with which the wait for the job ended.
    """
    if isinstance(error, grpc.RpcError):
        return ResourceError(_ENGINE_LOST)
    return ResourceError(WORKER_LOST) if _LOST.search(str(error)) else None


def _require_answer(endpoint: str) -> None:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise ArgumentError("--job_endpoint must be HOST:PORT of a Beam job server, e.g. localhost:8099")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        raise ResourceError(
            f"--job_endpoint: nothing answers at {endpoint}; start a Beam job server there, or correct the address"
        ) from None


def _require_flink_job_server(options: PipelineOptions) -> None:
    launcher = options.view_as(JobServerOptions).job_server_java_launcher
    if not options.view_as(FlinkRunnerOptions).flink_submit_uber_jar and shutil.which(launcher) is None:
        raise ResourceError(
            "Flink needs Java, and there is none: install a JRE, name its program in --job_server_java_launcher, or "
            "name a running job server in --job_endpoint"
        )
    server = FlinkJarJobServer(options)
    try:
        jar = server.path_to_jar()
    except ValueError:
        raise ArgumentError("--flink_job_server_jar names no file: give the path or the URL of a jar") from None
    try:
        server.local_jar(jar, options.view_as(JobServerOptions).jar_cache_dir)
    except (OSError, RuntimeError):
        raise ResourceError(
            f"Beam's job server for Flink cannot be fetched ({jar}): name a copy in --flink_job_server_jar, or a "
            "running job server in --job_endpoint"
        ) from None
