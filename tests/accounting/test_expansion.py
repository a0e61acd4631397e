"""The charge of a transform on a plain pipeline, which beam_dp does not see being run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given
from hypothesis import strategies as st

from beam_dp import Aggregate, Bounds, BudgetStore, Count, Ledger, Limit, RandomizedResponse
from beam_dp import Budget as PrivacyBudget
from beam_dp.accounting.budget.records import require_name
from beam_dp.accounting.expansion import budget_of, charged, run_id_of
from beam_dp.errors import ArgumentError, BudgetExceededError, GrantError, InputError
from pipelines.workers import late_workers_stop

ONE_PROCESS = ["--runner=FnApiRunner"]
WORKER_PROCESS = [*ONE_PROCESS, "--direct_num_workers=1", "--direct_running_mode=multi_processing"]
ROOT = Path(__file__).parents[2]


class Answers(beam.PTransform):
    """As others wrap a transform of beam_dp: the responses, charged when it expands."""

    def __init__(self, url: str, run_id: str, out: Path, epsilon: float = 1.0) -> None:
        super().__init__()
        self.url, self.run_id, self.out, self.epsilon = url, run_id, out, epsilon

    def expand(self, pcoll: beam.PCollection) -> beam.PCollection:
        budget = budget_of(self.label, name="Answers", budget_store=self.url, dataset="survey", run_id=self.run_id)
        with charged(budget) as ledger:
            responses = pcoll | RandomizedResponse(
                categories=["no", "yes"], epsilon=self.epsilon, column="answer", ledger=ledger
            )
        responses | beam.Map(_note, self.out)
        return responses


def _note(batch: pa.RecordBatch, out: Path) -> None:
    with out.open("a") as drawn:
        drawn.write("drawn\n")


def construct(transform: beam.PTransform, flags: list[str] = ONE_PROCESS, label: str = "Ask") -> beam.Pipeline:
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    batches = [pa.record_batch({"answer": ["yes", "no"]})]
    _ = pipeline | beam.Create(batches).with_output_types(pa.RecordBatch) | label >> transform
    return pipeline


def run(pipeline: beam.Pipeline) -> None:
    with late_workers_stop():
        pipeline.run().wait_until_finish()


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'budget.db'}"
    BudgetStore(url).create("survey", Limit(model="local", privacy_unit="user", epsilon=2.5))
    return url


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "drawn"


@pytest.fixture(autouse=True)
def _worker_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Worker processes must find this module and the package as this process does."""
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield


def kinds(url: str) -> list[str]:
    return [record.kind for record in BudgetStore(url).history("survey")[2:]]


@pytest.mark.parametrize("flags", [ONE_PROCESS, WORKER_PROCESS], ids=["this process", "another process"])
def test_charged_at_expansion_and_started_by_the_workers(url: str, out: Path, flags: list[str]) -> None:
    pipeline = construct(Answers(url, "r", out), flags)
    assert kinds(url) == ["reserve"]
    run(pipeline)
    assert kinds(url) == ["reserve", "start", "commit"]
    assert BudgetStore(url).account("survey").runs["r.Ask"].state == "committed"
    assert out.read_text() == "drawn\n"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first one first", "second one first"])
def test_of_graphs_made_twice_one_draws_and_one_is_charged(url: str, out: Path, order: tuple[int, int]) -> None:
    graphs = [construct(Answers(url, "r", out)), construct(Answers(url, "r", out))]
    assert kinds(url) == ["reserve"]
    run(graphs[order[0]])
    with pytest.raises(BudgetExceededError, match=r"run r\.Ask of Answers is committed already"):
        run(graphs[order[1]])
    assert out.read_text() == "drawn\n"
    assert kinds(url) == ["reserve", "start", "commit"]


def test_a_graph_made_after_another_ran_is_refused(url: str, out: Path) -> None:
    run(construct(Answers(url, "r", out)))
    with pytest.raises(
        BudgetExceededError, match=r"run r.Ask of Answers is committed already; another run_id is charged anew"
    ):
        construct(Answers(url, "r", out))


def test_another_mechanism_is_no_repetition(url: str, out: Path) -> None:
    construct(Answers(url, "r", out))
    with pytest.raises(
        BudgetExceededError, match=r"run r.Ask of Answers is reserved already; another run_id is charged anew"
    ):
        construct(Answers(url, "r", out, epsilon=0.5))


def test_each_transform_has_its_own_charge(url: str, out: Path) -> None:
    construct(Answers(url, "r", out), label="One")
    construct(Answers(url, "r", out), label="Two")
    assert list(BudgetStore(url).account("survey").runs) == ["r.One", "r.Two"]
    with pytest.raises(BudgetExceededError, match=r"epsilon"):
        construct(Answers(url, "r", out), label="Three")
    assert list(BudgetStore(url).account("survey").runs) == ["r.One", "r.Two"]


def test_a_refused_graph_that_is_run_all_the_same_does_not_draw(url: str, out: Path) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(ONE_PROCESS))
    rows = pipeline | beam.Create([pa.record_batch({"answer": ["yes"]})]).with_output_types(pa.RecordBatch)
    with pytest.raises(BudgetExceededError):
        _ = rows | Answers(url, "r", out, epsilon=3)
    with pytest.raises(GrantError, match="was not charged"):
        run(pipeline)
    assert not out.exists()


def test_a_charge_that_was_given_back_is_no_right_to_draw(url: str, out: Path) -> None:
    pipeline = construct(Answers(url, "r", out))
    BudgetStore(url).void("survey", "r.Ask")
    with pytest.raises(BudgetExceededError, match=r"run r\.Ask of Answers is void already"):
        run(pipeline)
    assert not out.exists()


def test_a_ledger_that_nobody_sealed_does_not_draw(url: str, out: Path) -> None:
    budget = budget_of("Ask", name="Answers", budget_store=url, dataset="survey", run_id="r")
    transform = RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer", ledger=Ledger(budget=budget))
    with pytest.raises(GrantError, match="Ask belongs to a ledger with a budget, which was not charged"):
        run(construct(transform))
    with pytest.raises(GrantError, match="no ledger"):
        construct(RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer"))


def test_a_budget_that_a_launching_process_starts_needs_its_pipeline(url: str) -> None:
    ledger = Ledger(budget=BudgetStore(url).run("survey", "r"))
    transform = RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer", ledger=ledger)
    with pytest.raises(ArgumentError, match=r"this ledger has a budget, which a plain beam.Pipeline does not charge"):
        construct(transform)


def test_a_pipeline_with_a_ledger_may_start_it_too(url: str, out: Path) -> None:
    ledger = Ledger(budget=BudgetStore(url).run("survey", "r", started_by_workers=True))
    with ledger.pipeline(PipelineOptions(ONE_PROCESS)) as p:
        rows = p | beam.Create([pa.record_batch({"answer": ["yes"]})]).with_output_types(pa.RecordBatch)
        rows | RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer") | beam.Map(_note, out)
    assert kinds(url) == ["reserve", "start", "commit"]
    assert out.read_text() == "drawn\n"


def test_every_release_of_an_aggregation_is_one_charge(url: str, tmp_path: Path) -> None:
    BudgetStore(url).create("survey", Limit(model="central", privacy_unit="user", epsilon=1, delta=1e-6))
    pipeline = beam.Pipeline(options=PipelineOptions(ONE_PROCESS))
    rows = pipeline | beam.Create([{"user": n, "item": n % 2} for n in range(9)]).with_output_types(dict)
    with charged(budget_of("All", name="Aggregate", budget_store=url, dataset="survey", run_id="r")) as ledger:
        _ = rows | "All" >> Aggregate(
            "item",
            privacy_unit="user",
            bounds=Bounds(partitions=1, rows_per_partition=1),
            metrics=[Count()],
            budget=PrivacyBudget(1, 1e-6),
            ledger=ledger,
        )
    run(pipeline)
    assert kinds(url) == ["limit", "reserve", "start", "commit"]
    (charge,) = BudgetStore(url).account("survey").runs["r.All"].charges
    assert charge.amount is not None
    assert 0.99 < float(charge.amount.epsilon) <= 1


def test_a_data_set_that_names_its_inputs_is_not_charged_unseen(url: str, out: Path, tmp_path: Path) -> None:
    store = BudgetStore(url)
    store.create("files", Limit(model="local", privacy_unit="user", epsilon=2), inputs=[str(tmp_path)])
    budget = budget_of("Ask", name="Answers", budget_store=url, dataset="files", run_id="r")
    with pytest.raises(InputError, match="data set files names its inputs"), charged(budget) as ledger:
        construct(RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer", ledger=ledger))


@pytest.mark.parametrize("missing", ["budget_store", "dataset", "run_id"])
@pytest.mark.parametrize("empty", [None, ""], ids=["none", "empty"])
def test_all_or_none(missing: str, empty: str | None) -> None:
    three = {"budget_store": "sqlite:///b.db", "dataset": "d", "run_id": "r"}
    with pytest.raises(
        ArgumentError, match=f"^{missing} is missing: give all of budget_store, dataset, run_id, or none"
    ):
        budget_of("Ask", name="Answers", **three | {missing: empty})
    assert budget_of("Ask", name="Answers", **dict.fromkeys(three, empty)) is None


def test_a_transform_without_a_budget_has_its_ledger_sealed() -> None:
    with charged(None) as ledger:
        construct(RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer", ledger=ledger))
    assert ledger.sealed
    assert [entry.label for entry in ledger.entries] == ["Ask"]


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Ask", "2024-05.Ask"),
        ("Chain/Ask", "2024-05.Chain.Ask"),
        ("Ask people", "2024-05.Ask-people-"),
        ("Größe", "2024-05.Gr-e-"),
        ("x" * 56, "2024-05." + "x" * 56),
        ("x" * 57, "2024-05." + "x" * 47 + "-"),
    ],
    ids=["plain", "nested", "space", "letters", "longest", "too long"],
)
def test_run_ids_say_whose_they_are(label: str, name: str) -> None:
    derived = run_id_of("2024-05", label)
    assert derived.startswith(name)
    assert len(derived) == len(name) + (8 if name.endswith("-") else 0)


@given(
    label=st.text(min_size=1), other=st.text(min_size=1), run_id=st.from_regex(r"[a-z][a-z.-]{0,39}", fullmatch=True)
)
def test_every_label_makes_a_run_id_of_its_own(label: str, other: str, run_id: str) -> None:
    derived = run_id_of(run_id, label)
    assert require_name("run_id", derived) == derived
    assert derived.startswith(f"{run_id}.")
    if label.replace("/", ".") != other.replace("/", "."):
        assert run_id_of(run_id, other) != derived


@pytest.mark.parametrize("run_id", ["x" * 41, "a/b", ".a"], ids=["long", "slash", "dot"])
def test_run_ids_that_leave_no_room(run_id: str) -> None:
    with pytest.raises(ArgumentError, match=r"^run_id must be"):
        run_id_of(run_id, "Ask")
