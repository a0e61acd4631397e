"""Beam YAML: the examples as a user runs them, and what a pipeline in YAML can get wrong."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.yaml import main as yaml_main
from apache_beam.yaml.yaml_provider import InlineProvider, load_providers
from apache_beam.yaml.yaml_transform import expand_pipeline

from beam_dp import BudgetStore, Limit, resolve_index
from beam_dp.embeddings.broadcast import read_manifest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "templates" / "yaml"
PROVIDERS = FOLDER / "providers.yaml"
CANARY = "canary-7f3a"


def flags_of(name: str, variables: dict[str, str]) -> list[str]:
    """What Beam's program for YAML is told to run an example."""
    where = [f"--yaml_pipeline_file={FOLDER / name}.yaml", "--runner=FnApiRunner"]
    return [*where, f"--jinja_variables={json.dumps(variables)}"]


def run_example(name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m apache_beam.yaml.main`` on an example, from another folder than the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "apache_beam.yaml.main", *flags_of(name, variables)],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What `run_example` does, in this process."""
    monkeypatch.chdir(FOLDER)
    return lambda name, **variables: yaml_main.run(flags_of(name, variables))


def rows_of(prefix: Path) -> list[dict[str, Any]]:
    """The rows of JSON lines that an example wrote."""
    shards = sorted(prefix.parent.glob(f"{prefix.name}-*-of-*"))
    assert shards
    return [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]


@pytest.fixture
def store(tmp_path: Path) -> BudgetStore:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    index = resolve_index(None)
    words = {"metric": read_manifest(index).metric, "index_digest": index.digest}
    store.create("tickets", Limit(model="metric", privacy_unit="word", epsilon=12, **words))
    return store


def test_texts_are_charged_once(tmp_path: Path, store: BudgetStore, run_here: Callable[..., None]) -> None:
    tickets = [{"id": n, "body": "where is my order", "name": CANARY} for n in range(20)]
    source = tmp_path / "tickets.jsonl"
    source.write_text("".join(json.dumps(ticket) + "\n" for ticket in tickets))
    names = {"input": str(source), "rejects": str(tmp_path / "rejects"), "budget_store": store.url, "run_id": "week-7"}
    done = run_example("privatize_text", output=str(tmp_path / "first"), **names)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert "MultivariateLaplace(epsilon=8.0)" in done.stderr
    private = rows_of(tmp_path / "first")
    assert sorted(row["id"] for row in private) == list(range(20))
    assert {tuple(row) for row in private} == {("body", "id")}
    assert all(len(row["body"].split()) == 4 for row in private)
    assert any(row["body"] != "where is my order" for row in private)
    assert not list(tmp_path.glob("rejects*"))
    assert [record.kind for record in store.history("tickets")[2:]] == ["reserve", "start", "commit"]
    assert list(store.account("tickets").runs) == ["week-7.Privatize"]

    again = r'transform "Privatize" at line 10: run week-7\.Privatize of PrivatizeText is committed already'
    with pytest.raises(ValueError, match=again):
        run_here("privatize_text", output=str(tmp_path / "second"), **names)
    assert not list(tmp_path.glob("second*"))
    assert len(store.history("tickets")) == 5


def test_groups_of_a_table(tmp_path: Path, run_here: Callable[..., None]) -> None:
    source = tmp_path / "events.csv"
    source.write_text("user,item,amount\n" + "".join(f"{n},{'tea' if n % 2 else 'jam'},{n % 90}\n" for n in range(900)))
    run_here("aggregate", input=str(source), output=str(tmp_path / "items"))
    groups = {row["item"]: row for row in rows_of(tmp_path / "items")}
    assert set(groups) == {"jam", "tea"}
    names = [
        f"{metric}{end}" for metric in ("count", "mean_amount") for end in ("", "_noise_stddev", "_ci_low", "_ci_high")
    ]
    assert all(list(row) == ["item", *names] for row in groups.values())
    # Discrete Laplace noise of less than 50 in standard deviation; 700 has probability below 1e-8.
    assert all(abs(row["count"] - 450) < 700 and row["count_noise_stddev"] < 50 for row in groups.values())


def test_answers(
    tmp_path: Path,
    run_here: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # As the program sets it.
    caplog.set_level(logging.INFO)
    source = tmp_path / "answers.csv"
    source.write_text("user,smokes\n" + "".join(f"{n},{CANARY}\n" for n in range(200)))
    run_here("randomized_response", input=str(source), output=str(tmp_path / "answers"))
    said = "".join(capfd.readouterr())
    assert "Running pipeline" in said
    assert "RandomizedResponse" in caplog.text
    assert CANARY not in said + caplog.text
    (shard,) = tmp_path.glob("answers-*-of-*")
    name, *answers = shard.read_text().split()
    assert name == "smokes"
    assert len(answers) == 200
    assert set(answers) == {"no", "yes"}


ROWS: list[dict[str, Any]] = [{"user": n, "text": "where is it", "item": "tea"} for n in range(3)]


def expand(*transforms: dict[str, Any], elements: list[dict[str, Any]] = ROWS) -> beam.Pipeline:
    """A pipeline of these transforms on ``elements``, constructed in this process."""
    graph = [{"type": "Create", "config": {"elements": elements}}, *transforms]
    spec = {"pipeline": {"transforms": graph}, "providers": [{"include": str(PROVIDERS)}]}
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    expand_pipeline(pipeline, yaml.safe_dump(spec, sort_keys=False))
    return pipeline


def privatize(**config: Any) -> dict[str, Any]:
    """The transform in YAML."""
    return {"type": "PrivatizeText", "input": "Create", "config": config}


def test_the_provider_file_exposes_three_transforms_with_described_arguments() -> None:
    (provider,) = load_providers(str(PROVIDERS))
    assert isinstance(provider, InlineProvider)
    assert list(provider.provided_transforms()) == ["PrivatizeText", "Aggregate", "RandomizedResponse"]
    for transform in provider.provided_transforms():
        fields = provider.config_schema(transform).fields
        assert {"budget_store", "dataset", "run_id"} <= {field.name for field in fields}
        assert all(field.description for field in fields), transform
        assert provider.description(transform)


def test_the_examples_are_all_run_and_name_categories_that_yaml_leaves_alone() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {
        "aggregate",
        "privatize_text",
        "providers",
        "randomized_response",
    }
    # A bare no is false to YAML.
    assert 'categories: ["no", "yes"]' in (FOLDER / "randomized_response.yaml").read_text()


def test_a_graph_made_twice_in_one_process_is_charged_once(store: BudgetStore) -> None:
    budget = {"budget_store": store.url, "dataset": "tickets", "run_id": "r"}
    expand(privatize(epsilon=8, **budget))
    twin = expand(privatize(epsilon=8, **budget))
    assert [record.kind for record in store.history("tickets")[2:]] == ["reserve"]
    assert list(store.account("tickets").runs) == ["r.PrivatizeText"]
    with pytest.raises(ValueError, match=r"run r\.PrivatizeText of PrivatizeText is reserved already"):
        expand(privatize(epsilon=7, **budget))
    twin.run().wait_until_finish()
    assert [record.kind for record in store.history("tickets")[2:]] == ["reserve", "start", "commit"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epsilon": 0}, "epsilon must be a finite number above 0, not zero"),
        ({"epsilom": 8}, "epsilom"),
        ({"epsilon": 8, "text_column": "body"}, "no column 'body'; the columns are: user, text, item"),
        ({"epsilon": 8, "run_id": "r"}, "budget_store is missing: give all of budget_store, dataset, run_id"),
    ],
    ids=["epsilon", "unknown argument", "column", "half a budget"],
)
def test_mistakes_are_named_with_the_transform(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r'"PrivatizeText"') as caught:
        expand(privatize(**config))
    assert message in str(caught.value)


def test_rejected_rows_are_reasons() -> None:
    elements = [{"text": "where is it"}, {"text": 7}, {"text": "on its way"}]
    graph = expand(
        privatize(epsilon=8, error_handling={"output": "rejected"}),
        {"type": "AssertEqual", "input": "PrivatizeText.rejected", "config": {"elements": [{"reason": "not_text"}]}},
        {
            "type": "Combine",
            "input": "PrivatizeText",
            "config": {"group_by": [], "combine": {"n": {"value": "text", "fn": "count"}}},
        },
        {"type": "AssertEqual", "name": "Rest", "input": "Combine", "config": {"elements": [{"n": 2}]}},
        elements=elements,
    )
    graph.run().wait_until_finish()


def test_rejected_rows_must_go_somewhere() -> None:
    with pytest.raises(ValueError, match="Unconsumed error output"):
        expand(privatize(epsilon=8, error_handling={"output": "rejected"}))
