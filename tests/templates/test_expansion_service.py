"""The expansion service, through its protocol: as a process that is asked, and whose answers are run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pytest
from apache_beam.coders import RowCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import (
    beam_expansion_api_pb2,
    beam_expansion_api_pb2_grpc,
    beam_runner_api_pb2,
    external_transforms_pb2,
)
from apache_beam.runners.pipeline_context import PipelineContext
from apache_beam.testing.util import assert_that
from apache_beam.transforms.external import ExternalTransform, ImplicitSchemaPayloadBuilder
from apache_beam.typehints.row_type import RowTypeConstraint

from beam_dp import BudgetStore, Limit
from pipelines.expansion_service import TRANSFORMS

ROOT = Path(__file__).parents[2]
BY_NAME = "beam:transforms:python:fully_qualified_named"
CANARY = "canary-7f3a"
ANSWERS = {"column": "smokes", "categories": ["no", "yes"], "epsilon": 1.0}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    # A pool of workers starts `python`.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OPENBLAS_NUM_THREADS": "1",
}


@contextlib.contextmanager
def started(module: str, *flags: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    """``python -m module``, with what it starts, until the body ends."""
    command = [sys.executable, "-m", module, *flags]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where workers for the transforms of others are started."""
    port = free_port()
    log = tmp_path_factory.mktemp("pool") / "log"
    with started("apache_beam.runners.worker.worker_pool_main", f"--service_port={port}", log=log):
        yield f"localhost:{port}"


@pytest.fixture(scope="module")
def service(pool: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that is running."""
    flags = ["--port=0", "--environment_type=EXTERNAL", f"--environment_config={pool}"]
    log = tmp_path_factory.mktemp("service") / "log"
    with started("pipelines.expansion_service", *flags, log=log) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"serving {', '.join(TRANSFORMS)} on localhost:"), log.read_text()
        yield said.split()[-1]
        process.terminate()
        assert process.wait(timeout=60) == 0
        assert CANARY not in log.read_text()


@pytest.fixture
def stub(service: str) -> Iterator[Any]:
    with grpc.insecure_channel(service) as channel:
        yield beam_expansion_api_pb2_grpc.ExpansionServiceStub(channel)


def spec_of(name: str, **kwargs: Any) -> beam_runner_api_pb2.FunctionSpec:
    """What a client in another language sends: name and arguments as a row of a schema."""
    configuration = ImplicitSchemaPayloadBuilder({"constructor": f"pipelines.transforms.{name}", "kwargs": kwargs})
    return beam_runner_api_pb2.FunctionSpec(urn=BY_NAME, payload=configuration.payload())


def asked(stub: Any, spec: beam_runner_api_pb2.FunctionSpec, **fields: Any) -> Any:
    """The answer to a request to apply what ``spec`` says to rows with these fields."""
    pipeline = beam.Pipeline()
    rows = (
        pipeline
        | beam.Impulse()
        | beam.Map(lambda _: None).with_output_types(RowTypeConstraint.from_fields(list(fields.items())))
    )
    context = PipelineContext()
    rows_id = context.pcollections.get_id(rows)
    components = context.to_runner_api()
    # As clients do, who show no more of their pipeline than the input.
    components.transforms.clear()
    components.transforms["source"].CopyFrom(
        beam_runner_api_pb2.PTransform(
            unique_name="source",
            spec=beam_runner_api_pb2.FunctionSpec(urn="beam:transform:impulse:v1"),
            outputs={"out": rows_id},
        )
    )
    transform = beam_runner_api_pb2.PTransform(unique_name="Asked", spec=spec, inputs={"input": rows_id})
    request = beam_expansion_api_pb2.ExpansionRequest(components=components, transform=transform, namespace="asked")
    return stub.Expand(request)


def schema_of(answer: Any, output: str) -> list[str]:
    """The names of the fields of an output, as its coder has them for other languages."""
    components = answer.components
    coder = components.coders[components.pcollections[answer.transform.outputs[output]].coder_id]
    assert coder.spec.urn == "beam:coder:row:v1"
    return [field.name for field in RowCoder.from_runner_api(coder, PipelineContext(components)).schema.fields]


def test_an_expansion_is_components_with_coders_that_others_know(stub: Any, pool: str) -> None:
    answer = asked(stub, spec_of("RandomizedResponse", **ANSWERS, keep_columns=["user"]), user=int, smokes=str)
    assert answer.error == ""
    assert answer.transform.unique_name == "Asked"
    (output,) = answer.transform.outputs
    assert sorted(schema_of(answer, output)) == ["smokes", "user"]
    urns = {environment.urn for environment in answer.components.environments.values()}
    assert "beam:env:external:v1" in urns
    assert any(pool.encode() in environment.payload for environment in answer.components.environments.values())


def test_texts_and_their_rejected_rows_are_two_outputs(stub: Any) -> None:
    spec = spec_of("PrivatizeText", epsilon=8.0, error_handling=beam.Row(output="rejected"))
    answer = asked(stub, spec, text=str, user=int)
    assert answer.error == ""
    assert set(answer.transform.outputs) == {"good", "rejected"}
    assert schema_of(answer, "good") == ["text"]
    assert schema_of(answer, "rejected") == ["reason"]


def test_groups_are_rows(stub: Any) -> None:
    sold = {"by": ["item"], "privacy_unit": "user", "metrics": "count,mean:price:0:9", "max_partitions": 2}
    answer = asked(stub, spec_of("Aggregate", **sold, epsilon=1.0, delta=1e-6), user=int, item=str, price=float)
    assert answer.error == ""
    (output,) = answer.transform.outputs
    assert schema_of(answer, output)[:2] == ["item", "count"]
    assert "mean_price_ci_high" in schema_of(answer, output)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            spec_of("RandomizedResponse", **ANSWERS | {"epsilon": -1.0}),
            "epsilon must be a finite number above 0, not a negative",
        ),
        (
            spec_of("RandomizedResponse", **ANSWERS | {"epsilon": CANARY}),
            "epsilon must be a finite number above 0, not a value of type str",
        ),
        (spec_of("RandomizedResponse", **ANSWERS | {"categories": [CANARY]}), "categories must be two or more values"),
        (
            spec_of("RandomizedResponse", **ANSWERS | {"column": "drinks"}),
            "no column 'drinks'; the columns are: user, smokes",
        ),
        (
            spec_of("RandomizedResponse", column=CANARY),
            "pipelines.transforms.RandomizedResponse: categories is missing; the arguments are column, categories",
        ),
        (
            spec_of("RandomizedResponse", **ANSWERS, epsilom=1.0),
            "pipelines.transforms.RandomizedResponse: no argument epsilom;",
        ),
        (
            spec_of("RandomizedResponse", **ANSWERS, dataset="survey"),
            "budget_store is missing: give all of budget_store, dataset, run_id, or none of them",
        ),
        (spec_of("beam.Map", fn=CANARY), "constructor must be one of pipelines.transforms.PrivatizeText, "),
        (
            beam_runner_api_pb2.FunctionSpec(urn=BY_NAME, payload=CANARY.encode()),
            "the payload must be an ExternalConfigurationPayload whose row fits its schema",
        ),
        (
            beam_runner_api_pb2.FunctionSpec(
                urn=BY_NAME,
                payload=external_transforms_pb2.ExternalConfigurationPayload(payload=b"\x01").SerializeToString(),
            ),
            "constructor must be one of",
        ),
        (
            beam_runner_api_pb2.FunctionSpec(urn="beam:transform:pickled_python:v1", payload=b"x"),
            "this service expands transforms by beam:transforms:python:fully_qualified_named only",
        ),
    ],
    ids=[
        "number",
        "kind",
        "categories",
        "column",
        "missing argument",
        "unknown argument",
        "half a budget",
        "another callable",
        "no payload",
        "empty row",
        "another urn",
    ],
)
def test_bad_configurations_are_errors_without_data(stub: Any, spec: Any, message: str) -> None:
    answer = asked(stub, spec, user=int, smokes=str)
    assert answer.error.startswith(message)
    assert "\n" not in answer.error
    assert CANARY not in answer.error
    assert not answer.components.transforms


def test_arguments_without_names_are_refused(stub: Any) -> None:
    row = {"constructor": "pipelines.transforms.PrivatizeText", "args": beam.Row(arg0=CANARY)}
    spec = beam_runner_api_pb2.FunctionSpec(urn=BY_NAME, payload=ImplicitSchemaPayloadBuilder(row).payload())
    assert asked(stub, spec, text=str).error == "arguments go by name: there are no args, only kwargs"


def test_a_pipeline_of_others_draws_once_on_one_charge(service: str, tmp_path: Path) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    store.create("survey", Limit(model="local", privacy_unit="user", epsilon=5))
    spec = ANSWERS | {"keep_columns": ["user"], "budget_store": store.url, "dataset": "survey", "run_id": "week-7"}
    answers = ImplicitSchemaPayloadBuilder({"constructor": "pipelines.transforms.RandomizedResponse", "kwargs": spec})
    hint = RowTypeConstraint.from_fields([("user", int), ("smokes", str)])

    def construct() -> beam.Pipeline:
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        rows = pipeline | beam.Create([beam.Row(user=n, smokes=CANARY) for n in range(100)]).with_output_types(hint)
        responses = rows | "Ask" >> ExternalTransform(BY_NAME, answers, service)
        assert_that(responses, _all_answered)
        return pipeline

    first, twin = construct(), construct()
    assert [record.kind for record in store.history("survey")[2:]] == ["reserve"]
    first.run().wait_until_finish()
    assert [record.kind for record in store.history("survey")[2:]] == ["reserve", "start", "commit"]
    with pytest.raises(
        Exception,
        match=r"run week-7\.Ask\.RandomizedResponse of RandomizedResponse is committed already: start needs one",
    ):
        twin.run().wait_until_finish()
    with pytest.raises(
        RuntimeError,
        match=r"^run week-7\.Ask\.RandomizedResponse of RandomizedResponse is committed already; another run_id",
    ):
        construct()
    assert len(store.history("survey")) == 5


def _all_answered(responses: list[Any]) -> None:
    assert sorted(row.user for row in responses) == list(range(100))
    assert {row.smokes for row in responses} == {"no", "yes"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: --environment_config is required"),
        (["--environment_config=image", "--prot=1"], "error: unknown option --prot; did you mean --port?"),
        (["--environment_type=PROCESS", "--environment_config=/boot"], "error: --environment_config must be what"),
        (["--environment_config=image", "--host=no-such-host.invalid"], "error: --port or --host: nothing can listen"),
    ],
    ids=["no environment", "unknown flag", "no JSON", "host"],
)
def test_flags_that_cannot_be_right(flags: list[str], message: str, capfd: Any) -> None:
    from pipelines.expansion_service import main
    from pipelines.main import run_main

    assert run_main(main, flags) == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith(message)
