"""Serves the transforms of `pipelines.transforms` to pipelines in other languages, which apply them by name.

    python -m pipelines.expansion_service --port=8097 --environment_config=IMAGE

In Java: PythonExternalTransform.from("pipelines.transforms.PrivatizeText", "localhost:8097").withKwarg("epsilon", 8.0),
on a PCollection of rows. A transform with a budget is charged when it is expanded, see `pipelines.transforms`.

Whoever reaches the port can run code as this user, as with every expansion service of Beam, so it listens on this
machine only unless --host says otherwise. It ends on SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import inspect
import logging
import signal
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from apache_beam.coders import RowCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_expansion_api_pb2,
    beam_expansion_api_pb2_grpc,
    external_transforms_pb2,
)
from apache_beam.runners.portability.artifact_service import ArtifactRetrievalService, BeamFilesystemHandler
from apache_beam.runners.portability.expansion_service import ExpansionServiceServicer
from apache_beam.transforms.fully_qualified_named_transform import (
    PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN,
    FullyQualifiedNamedTransform,
)
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

from beam_dp.errors import ArgumentError
from pipelines.main import explain, run_main, summary
from pipelines.options import parse_flags
from pipelines.transforms import Aggregate, PrivatizeText, RandomizedResponse

_LOGGER = logging.getLogger(__name__)

TRANSFORMS: dict[str, Callable[..., Any]] = {
    f"{transform.__module__}.{transform.__name__}": transform
    for transform in (PrivatizeText, Aggregate, RandomizedResponse)
}
"""What is served, by the names that callers use."""


class Servicer(ExpansionServiceServicer):
    """Beam's expansion service for `TRANSFORMS` alone, whose errors hold no traceback and no value of the request."""

    def Expand(self, request: Any, context: Any = None) -> Any:  # noqa: N802  (the name of the protocol)
        """The expansion of one transform, or why there is none."""
        try:
            _require_served(request.transform.spec)
        except ArgumentError as error:
            return beam_expansion_api_pb2.ExpansionResponse(error=str(error))
        response = super().Expand(request, context)
        if response.error:
            _LOGGER.error(response.error)
            _, response.error = explain(RuntimeError(response.error))
        return response


def _require_served(spec: Any) -> None:
    """ArgumentError unless a request asks for one of `TRANSFORMS`, with arguments that it has."""
    if spec.urn != PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN:
        raise ArgumentError(f"this service expands transforms by {PYTHON_FULLY_QUALIFIED_NAMED_TRANSFORM_URN} only")
    row = _row(spec.payload)
    transform = TRANSFORMS.get(getattr(row, "constructor", None) or "")
    if transform is None:
        raise ArgumentError(f"constructor must be one of {', '.join(TRANSFORMS)}")
    if any(getattr(row, "args", None) or ()):
        raise ArgumentError("arguments go by name: there are no args, only kwargs")
    kwargs = getattr(row, "kwargs", None)
    given = set(kwargs if isinstance(kwargs, dict) else getattr(kwargs, "_fields", ()))
    parameters = inspect.signature(transform).parameters
    unknown = sorted(given - parameters.keys())
    missing = [name for name, known in parameters.items() if known.default is known.empty and name not in given]
    if unknown or missing:
        what = f"no argument {unknown[0]}" if unknown else f"{missing[0]} is missing"
        raise ArgumentError(f"{row.constructor}: {what}; the arguments are {', '.join(parameters)}")


def _row(payload: bytes) -> Any:
    try:
        configuration = external_transforms_pb2.ExternalConfigurationPayload.FromString(payload)
        return RowCoder(configuration.schema).decode(configuration.payload)
    except Exception:
        # Whatever fails there quotes the bytes.
        raise ArgumentError("the payload must be an ExternalConfigurationPayload whose row fits its schema") from None


def _servicer(options: PipelineOptions) -> Servicer:
    try:
        return Servicer(options)
    except (ValueError, AttributeError):
        raise ArgumentError(
            "--environment_config must be what --environment_type takes: an image, a JSON object with a command, or "
            "host:port"
        ) from None


@contextmanager
def serving(host: str, port: int, options: PipelineOptions) -> Iterator[str]:
    """Serves meanwhile.

    Args:
        host: address to listen on.
        port: 0 for a free one.
        options: name the environment of the workers, which must have beam_dp.

    Yields:
        host:port.

    Raises:
        ArgumentError: nothing can listen there, or there is no such environment.
    """
    server = grpc.server(shared_unbounded_instance())
    beam_expansion_api_pb2_grpc.add_ExpansionServiceServicer_to_server(_servicer(options), server)
    artifacts = ArtifactRetrievalService(BeamFilesystemHandler(None).file_reader)
    beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(artifacts, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        raise ArgumentError(f"--port or --host: nothing can listen on {host}:{port}; choose another") from None
    # The servicer admits only what it knows; Beam admits nothing unless it is told.
    with FullyQualifiedNamedTransform.with_filter(f"{PrivatizeText.__module__}.*"):
        server.start()
        try:
            yield f"{host}:{bound}"
        finally:
            server.stop(grace=None).wait()


def declare(parser: ArgumentParser) -> None:
    """The flags."""
    parser.add_argument("--port", type=int, default=8097, help="to listen on; 0 for a free one (default: 8097)")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    parser.add_argument(
        "--environment_type",
        choices=("DOCKER", "PROCESS", "EXTERNAL"),
        default="DOCKER",
        help="how the runner starts the Python workers of these transforms (default: DOCKER)",
    )
    parser.add_argument(
        "--environment_config",
        metavar="CONFIG",
        help='of that environment, in which beam_dp is installed: an image, as templates/Dockerfile makes; {"command": '
        '"..."}; or host:port of a worker pool',
    )
    parser.add_argument("--verbose", action="store_true", help="show Beam's log and tracebacks (default: hide them)")


def main(argv: list[str]) -> None:
    """Serves until SIGTERM or Ctrl-C."""
    flags = parse_flags(argv, declare, description=str(__doc__))
    if not flags.environment_config:
        raise ArgumentError("--environment_config is required: Beam's own environments have no beam_dp")
    if flags.verbose:
        logging.basicConfig(level=logging.INFO)
    # The workers' environment has what they need: nothing is staged.
    options = PipelineOptions(
        [],
        sdk_location="container",
        environment_type=flags.environment_type,
        environment_config=flags.environment_config,
    )
    with serving(flags.host, flags.port, options) as address:
        summary(f"serving {', '.join(TRANSFORMS)} on {address}")
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        stop.wait()


if __name__ == "__main__":
    sys.exit(run_main(main))
