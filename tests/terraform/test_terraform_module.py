"""The module and its example are formatted, valid, and right by their own tests, with old providers and new."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import MODULE, NEWEST, OLDEST, Outcome, Workspace

from pipelines import aggregate, private_vocabulary, privatize_text
from pipelines.options import parse_options
from templates.launch import PIPELINES

RUNS = sorted(
    f"{path.name.removesuffix('.tftest.hcl')}/{run}"
    for path in (MODULE / "tests").glob("*.tftest.hcl")
    for run in re.findall(r'^run "(\w+)"', path.read_text(), re.MULTILINE)
)
# Of the jobs of the example.
OPTIONS = {
    "privatize_text": privatize_text.PrivatizeTextOptions,
    "aggregate": aggregate.AggregateOptions,
    "private_vocabulary": private_vocabulary.VocabularyOptions,
}


def test_files_are_formatted(newest: Workspace) -> None:
    unformatted = newest.run("fmt", "-check", "-recursive")
    assert unformatted.returncode == 0, unformatted.stdout


def test_format_is_checked(changeable: Workspace) -> None:
    changeable.replace("network.tf", 'direction   = "INGRESS"', 'direction = "INGRESS"')
    assert changeable.run("fmt", "-check", "-recursive").returncode != 0


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_module_is_valid(modules: dict[str, Workspace], version: str) -> None:
    modules[version].run("validate", check=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_example_is_valid(modules: dict[str, Workspace], version: str, tmp_path: Path) -> None:
    copy = modules[version].copy(tmp_path / "module")
    example = "examples/complete"
    copy.run("init", "-backend=false", "-input=false", check=True, below=example)
    copy.run("validate", check=True, below=example)


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("storage.tf", "uniform_bucket_level_access = true", "uniform_access = true", "Unsupported argument"),
        ("storage.tf", "  location                    = var.region\n", "", "Missing required argument"),
        (
            "network.tf",
            "private_ip_google_access = true",
            "private_ip_google_access = []",
            "Incorrect attribute value type",
        ),
        ("jobs.tf", "sdk_container_image ", "sdk_image ", "Unsupported argument"),
        ("jobs.tf", "provider = google-beta\n", "provider = google\n", "Invalid resource type"),
        ("sql.tf", "password_wo  ", "password_wow  ", "Unsupported argument"),
        ("network.tf", "  log_config {\n", "  log_config {}\n\n  log_config {\n", "Too many log_config blocks"),
    ],
    ids=["argument", "missing", "type", "beta_argument", "provider", "write_only", "blocks"],
)
def test_schema_is_checked(changeable: Workspace, file: str, old: str, new: str, complaint: str) -> None:
    changeable.replace(file, old, new)
    refused = changeable.run("validate", "-no-color")
    assert refused.returncode != 0
    assert complaint in refused.stdout + refused.stderr


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_run_passes(outcomes: Callable[[str], Outcome], version: str) -> None:
    outcome = outcomes(version)
    assert outcome.status == dict.fromkeys(RUNS, "pass"), "\n".join(outcome.messages)
    assert outcome.returncode == 0


@pytest.mark.parametrize(("file", "check"), [("sql", "The server must survive"), ("example", "The example must keep")])
def test_all_can_be_made_and_destroyed_but_keys(changeable: Workspace, tmp_path: Path, file: str, check: str) -> None:
    if "OpenTofu" in changeable.run("version").stdout:
        pytest.skip("OpenTofu destroys what a test made without its mocks, and passes where that fails")
    assert changeable.keep_runs(file, containing=check) == 1
    changeable.replace(f"tests/{file}.tftest.hcl", "command = plan", "command = apply")
    unprotected = changeable.copy(tmp_path / "unprotected")
    unprotected.replace("kms.tf", "prevent_destroy = true", "prevent_destroy = false")

    outcome = changeable.test(file)
    assert list(outcome.status.values()) == ["pass"]
    assert outcome.returncode != 0
    assert any("google_kms_crypto_key" in text and "prevent_destroy" in text for text in outcome.messages)

    assert unprotected.test(file).returncode == 0


def test_pipelines_take_the_parameters_of_the_example(outcomes: Callable[[str], Outcome]) -> None:
    plan = outcomes(NEWEST).plans["example/launch"]
    jobs = [item["change"]["after"] for item in plan if item["type"] == "google_dataflow_flex_template_job"]
    assert {job["labels"]["pipeline"] for job in jobs} == set(OPTIONS)
    for job in jobs:
        # By which the launcher of the image picks it.
        assert job["parameters"]["pipeline"] == job["labels"]["pipeline"]
        flags = [f"--{name}={value}" for name, value in job["parameters"].items() if name != "pipeline"]
        values = parse_options(["--engine=dataflow", *flags], OPTIONS[job["labels"]["pipeline"]]).get_all_options()
        assert {name: str(values[name]) for name in ("run_id", "dataset", "budget_store")} == {
            name: job["parameters"][name] for name in ("run_id", "dataset", "budget_store")
        }


def test_every_pipeline_with_a_job_is_one(newest: Workspace) -> None:
    listed = re.search(r"contains\(\[([^]]*)\], job\.pipeline\)", (newest.folder / "variables.tf").read_text())
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed.group(1))) == set(PIPELINES)
