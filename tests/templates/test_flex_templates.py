"""The Flex Templates: metadata against the options, the specification, the launcher, and the jobs of Terraform."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_dp.errors import ArgumentError
from pipelines.main import run_main
from pipelines.options import parse_options
from templates import launch, metadata, spec
from templates.launch import PIPELINES
from templates.metadata import LEFT_OUT, REQUIRED, metadata_of, path_of, text_of

ROOT = Path(__file__).parents[2]
IMAGE = "europe-west1-docker.pkg.dev/acme-privacy/beam-dp/pipelines:0.1.0"

# What is required, as a user would write it.
VALUES = {
    "input": "gs://acme-in/a-*.csv",
    "output": "gs://acme-out/a",
    "privacy_unit": "user",
    "by": "shop,item",
    "metrics": "count,mean:amount:0:100,quantiles:amount:0:1e2:0.5/0.9",
    "max_partitions": "4",
    "epsilon": "1",
    "input_subscription": "projects/acme-privacy/subscriptions/tickets",
    "output_topic": "projects/acme-privacy/topics/private",
}
# Of each parameter with a form: what the command line takes, and what it never could.
FORMS = {
    "budget_store": (["postgresql://me@host/budgets", "gs://acme-budget/all"], ["sqlite:///b.db", "gs://acme"]),
    "buckets": (["64"], ["-1", "6.5"]),
    "composition": (["basic", "pld"], ["rdp", ""]),
    "dataset": (["reviews", "2024.a_b-c"], [".a", "a/b", "x" * 65]),
    "delta": (["1e-6", "0", ".5", "0.000001"], ["-1", "small", "1e"]),
    "epsilon": (["8", "0.5", "2.", "1E+1"], ["-1", "inf", "nan", ""]),
    "format": (["jsonl"], ["xml", ""]),
    "id_label": (["event-id"], ["", "x" * 257]),
    "index": (["gs://acme-index/glove"], ["index", "file:///index"]),
    "keep_columns": (["id", "id,day", "day of week"], [",", "id,"]),
    "max_rejects": (["0", "10"], ["-1", "many"]),
    "metrics": (["none", "count, sum:a:0:1", "vector_sum:a/b:3"], ["count,", ":a", "Count"]),
    "ngrams": (["1", "1/2/3"], ["1,2", "", "/"]),
    "overwrite": (["true", "false"], ["yes", ""]),
    "input_subscription": (["projects/acme-in/subscriptions/a"], ["a", "projects/acme-in/topics/a"]),
    "output": (["gs://acme-out/folder/a"], ["out/a", "gs://acme-out"]),
    "output_topic": (["projects/acme-out/topics/a.b"], ["a", "projects/acme-in/subscriptions/a"]),
    "public_partitions": (["gs://acme-in/shops.txt"], ["shops.txt"]),
    "run_id": (["week-7", "2024.05_b"], ["-a", "week 7"]),
    "text_column": (["text", "the text"], [""]),
}


def parameters(name: str) -> dict[str, dict[str, Any]]:
    return {parameter["name"]: parameter for parameter in metadata_of(name)["parameters"]}


def fits(parameter: dict[str, Any], value: str) -> bool:
    return all(re.search(regex, value) for regex in parameter["regexes"])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_committed_file_is_what_the_script_makes(name: str) -> None:
    assert path_of(name).read_text(encoding="utf-8") == text_of(name), "run python -m templates.metadata"


def test_the_script_writes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(metadata, "FOLDER", tmp_path / "templates")
    (tmp_path / "templates").mkdir()
    metadata.main([])
    assert capsys.readouterr().out.splitlines() == [f"written: templates/{name}/metadata.json" for name in PIPELINES]
    assert all((tmp_path / "templates" / name / "metadata.json").read_text() == text_of(name) for name in PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_option_of_the_pipeline_is_a_parameter(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        PIPELINES[name].main(["--help"])
    listed = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert parameters(name).keys() == listed - LEFT_OUT - {"dry_run"} | {"pipeline"}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_parameter_is_described(name: str) -> None:
    for parameter in metadata_of(name)["parameters"]:
        assert re.fullmatch(r"[A-Z][a-z ]+", parameter["label"]), parameter
        assert re.fullmatch(r"[A-Z][^\n]+\.", parameter["helpText"]), parameter
        assert parameter["regexes"]
        assert len(parameter["helpText"]) < 700


@pytest.mark.parametrize("name", PIPELINES)
def test_defaults_are_those_of_the_command_line(name: str) -> None:
    given = [f"--{flag}={VALUES[flag]}" for flag in REQUIRED[name]]
    options = parse_options(["--runner=FnApiRunner", *given], PIPELINES[name].options).get_all_options()
    for flag, parameter in parameters(name).items():
        if flag == "pipeline" or flag in REQUIRED[name] or flag == "run_id":
            continue
        default = parameter.get("defaultValue")
        assert options[flag] in (None, False) if default is None else str(options[flag]) in (default, f"{default}.0")
        assert default is None or fits(parameter, default)


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_required_the_command_line_requires(name: str, tmp_path: Path) -> None:
    known = parameters(name)
    required = {flag for flag, parameter in known.items() if not parameter["isOptional"]} - {"pipeline"}
    assert required == REQUIRED[name]
    (tmp_path / "a.csv").write_text("user,shop,item,amount,text\n1,a,b,1,words\n")
    local = VALUES | {"input": str(tmp_path / "a.csv"), "output": str(tmp_path / "out"), "by": "item"}
    enough = [f"--{flag}={local[flag]}" for flag in sorted(required)]
    more = ["--delta=1e-6", "--max_rows_per_partition=1"] if "privacy_unit" in required else ["--epsilon=8"]
    if name == "private_vocabulary":
        more.remove("--max_rows_per_partition=1")
    PIPELINES[name].main([*enough, *more, "--dry_run"])
    for flag in sorted(required):
        rest = [item for item in enough if not item.startswith(f"--{flag}=")]
        with pytest.raises(ArgumentError, match=f"--{flag} is required"):
            PIPELINES[name].main([*rest, *more, "--dry_run"])


@pytest.mark.parametrize("flag", FORMS)
def test_forms_let_in_what_the_command_line_takes(flag: str) -> None:
    right, wrong = FORMS[flag]
    having = [known[flag] for known in map(parameters, PIPELINES) if flag in known]
    assert having
    for parameter in having:
        assert all(fits(parameter, value) for value in right)
        assert not any(fits(parameter, value) for value in wrong)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_form_is_among_those(name: str) -> None:
    known = parameters(name)
    forms = {
        regex
        for flag in FORMS
        for each in map(parameters, PIPELINES)
        if flag in each
        for regex in each[flag]["regexes"]
    }
    free = {"^.+$"}
    enums = {flag for flag, parameter in known.items() if parameter["paramType"] == "ENUM"}
    for flag, parameter in known.items():
        assert flag == "pipeline" or flag in enums or set(parameter["regexes"]) <= forms | free, flag
    for flag in enums:
        assert [option["value"] for option in known[flag]["enumOptions"]]
        assert all(fits(known[flag], option["value"]) for option in known[flag]["enumOptions"])


@pytest.mark.parametrize("name", PIPELINES)
def test_a_specification_is_image_and_metadata(name: str) -> None:
    assert spec.spec_of(name, IMAGE) == {
        "image": IMAGE,
        "metadata": json.loads(path_of(name).read_text()),
        "sdkInfo": {"language": "PYTHON"},
        "defaultEnvironment": {"sdkContainerImage": IMAGE},
    }


def test_specifications_are_written_where_they_are_asked_for(tmp_path: Path, capfd: Any) -> None:
    flags = [f"--image={IMAGE}", f"--output={tmp_path}/specs/"]
    assert run_main(spec.main, flags) == 0
    assert capfd.readouterr().out.splitlines() == [f"written: {tmp_path}/specs/{name}.json" for name in PIPELINES]
    assert json.loads((tmp_path / "specs" / "aggregate.json").read_text()) == spec.spec_of("aggregate", IMAGE)
    assert run_main(spec.main, flags) == 2
    assert "error: output already exists: aggregate.json" in capfd.readouterr().err
    assert run_main(spec.main, [*flags, "--overwrite"]) == 0


@pytest.mark.parametrize(
    "image",
    ["pipelines", "pipelines:1", "gcr.io/acme/pipelines", "gcr.io/acme/pipelines:latest", "gcr.io/a/p@sha256:ab"],
)
def test_images_have_a_registry_and_a_version_that_stays(image: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^--image must be REGISTRY/NAME:TAG"):
        spec.main([f"--image={image}", f"--output={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["image", "output"])
def test_a_specification_needs_both(missing: str, tmp_path: Path) -> None:
    flags = {"image": IMAGE, "output": str(tmp_path)}
    with pytest.raises(ArgumentError, match=f"--{missing} is required"):
        spec.main([f"--{flag}={value}" for flag, value in flags.items() if flag != missing])


def test_the_launcher_picks_the_pipeline_and_passes_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []
    for name, pipeline in PIPELINES.items():
        noting = launch.Pipeline(lambda argv, name=name: calls.append((name, argv)), pipeline.options, "")
        monkeypatch.setitem(PIPELINES, name, noting)
    flags = ["--input=gs://a/b", "--overwrite=true", "--project=acme", "--no_use_public_ips"]
    for name in PIPELINES:
        launch.main([flags[0], f"--pipeline={name}", *flags[1:]])
    passed = [flags[0], "--overwrite", *flags[2:], "--no_save_main_session"]
    assert calls == [(name, passed) for name in PIPELINES]


@pytest.mark.parametrize(
    ("value", "flags"), [("true", ["--overwrite"]), ("False", []), ("TRUE", ["--overwrite"])], ids=["yes", "no", "big"]
)
def test_flags_without_a_value_take_true_and_false(value: str, flags: list[str]) -> None:
    actions = PIPELINES["aggregate"].actions()
    assert list(launch.without_switch_values([f"--overwrite={value}"], actions)) == flags


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"^--pipeline must be one of aggregate, private_vocabulary, privatize_stream, privatize_text, not None"),
        (["--pipeline=demo"], r"^--pipeline must be one of .*, not 'demo'"),
        (["--pipeline=aggregate", "--pipeline=aggregate"], r"^--pipeline must be one of"),
        (["--pipeline=aggregate", "--overwrite=maybe"], r"^--overwrite must be true or false"),
        (["--pipeline=aggregate", "--epsilom=1"], r"^unknown option --epsilom; did you mean --epsilon\?"),
    ],
    ids=["none", "other", "twice", "maybe", "unknown"],
)
def test_what_the_launcher_refuses(argv: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        launch.main(argv)


def test_what_flex_launchers_pass_on_is_known() -> None:
    flags = [
        "--runner=DataflowRunner",
        "--project=acme",
        "--region=europe-west1",
        "--job_name=a",
        "--temp_location=gs://staging/temp",
        "--staging_location=gs://staging/staging",
        "--template_location=gs://staging/job_object",
        "--service_account_email=worker@acme",
        "--sdk_container_image=image",
        "--dataflow_kms_key=key",
        "--network=net",
        "--subnetwork=regions/r/subnetworks/s",
        "--no_use_public_ips",
        "--machine_type=n2-standard-4",
        "--num_workers=2",
        "--max_num_workers=10",
        "--labels=pipeline=aggregate",
        "--experiments=use_runner_v2",
    ]
    given = [f"--{flag}={VALUES[flag]}" for flag in REQUIRED["aggregate"]]
    options = parse_options([*given, *flags], PIPELINES["aggregate"].options)
    assert options.view_as(GoogleCloudOptions).template_location == "gs://staging/job_object"


def test_the_stream_alone_is_launched_as_one_and_in_the_mode_that_publishes_one_draw() -> None:
    modes = ("streaming", "supportsExactlyOnce", "supportsAtLeastOnce")
    found = {name: tuple(metadata_of(name).get(mode) for mode in modes) for name in PIPELINES}
    assert found.pop("privatize_stream") == (True, True, False)
    assert set(found.values()) == {(None, None, None)}


def test_google_s_console_lists_subscriptions_and_topics() -> None:
    known = parameters("privatize_stream")
    listed = {flag: each["paramType"] for flag, each in known.items() if each["paramType"].startswith("PUBSUB")}
    topics = {"output_topic": "PUBSUB_TOPIC", "rejects_topic": "PUBSUB_TOPIC"}
    assert listed == topics | {"input_subscription": "PUBSUB_SUBSCRIPTION"}
    assert known["rejects_topic"]["regexes"] == known["output_topic"]["regexes"]


class _Writes(FnApiRunner):
    """As DataflowRunner does with --template_location: the job is written, and there is none to ask about."""

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        Path(options.view_as(GoogleCloudOptions).template_location).write_text("a job")
        return _NoJob()


class _NoJob:
    def wait_until_finish(self) -> str:
        return "DONE"

    def metrics(self) -> Any:
        raise AssertionError("there is no job to ask")


def test_a_launch_that_writes_the_job_says_so(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.txt").write_text("where is it\n")
    where = [f"--input={tmp_path}/a.txt", f"--output={tmp_path}/out", f"--template_location={tmp_path}/job"]
    runner = f"--runner={_Writes.__module__}.{_Writes.__name__}"
    launch.main(["--pipeline=privatize_text", *where, "--epsilon=8", runner, "--environment_type=LOOPBACK"])
    assert (tmp_path / "job").read_text() == "a job"
    assert capsys.readouterr().out.splitlines()[-1] == f"launched, to be published: {tmp_path}/out.manifest.json"


class _WritesForDataflow(_Writes):
    """The same, by a name that says where the job goes."""


def test_a_stream_is_launched_and_left_to_dataflow(tmp_path: Path, capsys: Any) -> None:
    where = [f"--{flag}={VALUES[flag]}" for flag in sorted(REQUIRED["privatize_stream"])]
    runner = f"--runner={_Writes.__module__}.{_WritesForDataflow.__name__}"
    flags = [f"--template_location={tmp_path}/job", "--id_label=event-id", "--overwrite=false"]
    launch.main(["--pipeline=privatize_stream", *where, "--epsilon=8", runner, *flags])
    assert (tmp_path / "job").read_text() == "a job"
    assert capsys.readouterr().out.splitlines()[-1] == "publishing to projects/acme-privacy/topics/private"


# Terraform.

JOBS_OF_THE_EXAMPLE = ROOT / "terraform" / "examples" / "complete" / "jobs.tf"


def jobs_of(text: str) -> list[tuple[str, dict[str, str]]]:
    """Pipeline and parameters of each job in a text of Terraform."""
    found = re.findall(r"pipeline\s+= \"(\w+)\".*?parameters\s*= \{\n(.*?)\n\s+\}", text, flags=re.DOTALL)
    return [(name, dict(re.findall(r"(\w+)\s*= \"([^\"]*)\"", block))) for name, block in found]


def added_by_the_module() -> set[str]:
    """The parameters that the module sets on every job."""
    text = (ROOT / "terraform" / "jobs.tf").read_text()
    (block,) = re.findall(r"parameters = merge\(each\.value\.parameters, \{(.*?)\}\)", text, flags=re.DOTALL)
    return set(re.findall(r"^\s*(\w+)\s*=", block, flags=re.MULTILINE))


def test_the_jobs_of_the_example_are_what_templates_take() -> None:
    jobs = jobs_of(JOBS_OF_THE_EXAMPLE.read_text())
    assert [name for name, _ in jobs] == ["privatize_text", "aggregate", "private_vocabulary"]
    for name, given in jobs:
        known = parameters(name)
        assert given.keys() <= known.keys() - added_by_the_module()
        required = {flag for flag, parameter in known.items() if not parameter["isOptional"]}
        assert required <= given.keys() | added_by_the_module()
        for flag, value in given.items():
            assert fits(known[flag], value.replace("${local.bucket_prefix}", "acme-privacy-beam-dp")), flag


def test_the_module_adds_parameters_that_every_template_has() -> None:
    assert added_by_the_module() == {"pipeline", "budget_store", "dataset", "run_id"}
    for name in PIPELINES:
        assert added_by_the_module() <= parameters(name).keys()


def test_the_module_knows_the_templates_and_keeps_its_own_from_them() -> None:
    variables = (ROOT / "terraform" / "variables.tf").read_text()
    (names,) = re.findall(r"contains\(\[([^]]*)\], job\.pipeline\)", variables)
    assert set(re.findall(r"\w+", names)) == PIPELINES.keys()
    (block,) = re.findall(r"setintersection\(keys\(job\.parameters\), \[(.*?)\]\)", variables, flags=re.DOTALL)
    kept = set(re.findall(r"\"(\w+)\"", block))
    assert added_by_the_module() <= kept
    for name in PIPELINES:
        assert kept & parameters(name).keys() == added_by_the_module()
