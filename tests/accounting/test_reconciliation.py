"""What a pipeline does about draws that its plan does not allow: nothing is published, and the entry is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import Aggregate, Bounds, Budget, Count, Ledger, RandomizedResponse, ReadBatches, WriteBatches
from beam_dp.accounting.budget import BudgetRun, BudgetStore, Limit
from beam_dp.accounting.drawing import DrawingDoFn
from beam_dp.accounting.pipeline import LedgerPipeline
from beam_dp.aggregate import local as local_module
from beam_dp.aggregate import transform as aggregate_module
from beam_dp.errors import ArgumentError, BudgetExceededError, GrantError, InputError
from pipelines.workers import late_workers_stop

ROWS = pa.record_batch({"user": list(range(60)), "item": ["tea", "jam"] * 30})
ROOT = Path(__file__).parents[2]
ONE_PROCESS = ["--runner=FnApiRunner"]
WORKER_PROCESS = [*ONE_PROCESS, "--direct_num_workers=1", "--direct_running_mode=multi_processing"]
TWO_PROCESSES = [*ONE_PROCESS, "--direct_num_workers=2", "--direct_running_mode=multi_processing"]


@pytest.fixture(autouse=True)
def _worker_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Worker processes must find this module and the package as this process does, and must end when a run fails."""
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with late_workers_stop():
        yield


def counted() -> Aggregate:
    return Aggregate(
        by="item",
        privacy_unit="user",
        bounds=Bounds(partitions=1, rows_per_partition=1),
        metrics=[Count()],
        budget=Budget(epsilon=1),
        partitions=["tea", "jam"],
        buckets=2,
    )


def build(pipeline: beam.Pipeline, prefix: Path) -> None:
    rows = pipeline | "Rows" >> beam.Create([ROWS]).with_output_types(pa.RecordBatch)
    rows | "Items" >> counted() | WriteBatches(f"{prefix}", format="csv", run_id="r")


def outputs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_of(folder: Path, epsilon: float = 1.0, run_id: str = "r1") -> BudgetRun:
    store = BudgetStore(f"sqlite:///{folder}/budget.db")
    if not (folder / "budget.db").exists():
        store.create("users", Limit(model="central", privacy_unit="user", epsilon=epsilon))
    return store.run("users", run_id)


def state_of(folder: Path, run_id: str = "r1") -> str | None:
    run = BudgetStore(f"sqlite:///{folder}/budget.db").account("users").runs.get(run_id)
    return None if run is None else run.state


@pytest.mark.parametrize("flags", [ONE_PROCESS, TWO_PROCESSES], ids=["one process", "two processes"])
def test_what_was_planned_is_published_and_committed(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "store").mkdir()
    ledger = Ledger(budget=run_of(tmp_path / "store"))
    pipeline = ledger.pipeline(PipelineOptions(flags))
    build(pipeline, tmp_path / "out" / "items")
    assert state_of(tmp_path / "store") is None
    # No process that waits for the end commits here: the last stage does.
    pipeline.run().wait_until_finish()
    assert outputs(tmp_path / "out") == ["items-00000-of-00001.csv", "items.manifest.json"]
    assert state_of(tmp_path / "store") == "committed"


def test_a_pipeline_without_a_sink_of_ours_is_committed_before_it_runs(tmp_path: Path) -> None:
    """Nobody knows when its output is seen, so that it must never become void."""
    pipeline = Ledger(budget=run_of(tmp_path)).pipeline(PipelineOptions(ONE_PROCESS))
    pipeline | beam.Create([ROWS]).with_output_types(pa.RecordBatch) | counted()
    pipeline.charge()
    assert state_of(tmp_path) == "committed"
    pipeline.run().wait_until_finish()


def test_a_pipeline_that_fails_stays_charged(tmp_path: Path) -> None:
    with (
        pytest.raises(Exception, match="division or modulo"),
        Ledger(budget=run_of(tmp_path)).pipeline(PipelineOptions(ONE_PROCESS)) as pipeline,
    ):
        released = pipeline | beam.Create([ROWS]).with_output_types(pa.RecordBatch) | counted()
        failing = released | beam.Map(lambda _: 1 // 0).with_output_types(pa.RecordBatch)
        failing | WriteBatches(f"{tmp_path}/out", format="csv")
    assert state_of(tmp_path) == "running"
    with (
        pytest.raises(BudgetExceededError),
        Ledger(budget=run_of(tmp_path, run_id="r2")).pipeline(PipelineOptions(ONE_PROCESS)) as second,
    ):
        second | beam.Create([ROWS]).with_output_types(pa.RecordBatch) | counted()


def test_a_run_that_was_voided_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    run = run_of(tmp_path / "store")
    ledger = Ledger(budget=run)
    pipeline = ledger.pipeline(PipelineOptions(ONE_PROCESS))
    build(pipeline, tmp_path / "out" / "items")
    ledger.seal()
    run.reserve(ledger.to_dict())
    run.store.void("users", "r1")
    with pytest.raises(BudgetExceededError):
        pipeline.run()
    assert not (tmp_path / "out").exists()


def test_a_ledger_with_a_budget_needs_its_own_pipeline(tmp_path: Path) -> None:
    ledger = Ledger(budget=run_of(tmp_path))
    transform = RandomizedResponse(categories=["a", "b"], epsilon=1, ledger=ledger)
    with pytest.raises(ArgumentError, match="does not charge"):
        beam.Pipeline() | beam.Create(["a"]) | transform
    assert state_of(tmp_path) is None


def test_a_grant_of_a_ledger_with_a_budget_is_refused_before_the_plan_is_charged(tmp_path: Path) -> None:
    ledger = Ledger(budget=run_of(tmp_path))
    grant = ledger.record(
        label="x",
        mechanism="Example()",
        guarantee=RandomizedResponse(categories=["a", "b"], epsilon=1).guarantee,
        max_applications=1,
        fingerprint="Example()",
    )
    with pytest.raises(GrantError, match="was not charged"):
        grant.check("Example()")


def test_an_entry_that_no_step_draws_under_is_refused_where_there_is_a_budget(tmp_path: Path) -> None:
    ledger = Ledger(budget=run_of(tmp_path))
    pipeline = ledger.pipeline(PipelineOptions(ONE_PROCESS))
    pipeline | beam.Create([ROWS]).with_output_types(pa.RecordBatch) | "Items" >> counted()
    ledger.record(
        label="Custom",
        mechanism="Example()",
        guarantee=RandomizedResponse(categories=["a", "b"], epsilon=1).guarantee,
        max_applications=1,
        fingerprint="Example()",
    )
    with pytest.raises(GrantError, match=r"^Custom: no step"):
        pipeline.run()
    assert state_of(tmp_path) is None


def test_a_runner_that_is_called_past_the_pipeline_draws_nothing_uncharged(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    options = PipelineOptions(ONE_PROCESS)
    ledger = Ledger(budget=run_of(tmp_path / "store"))
    pipeline = ledger.pipeline(options)
    build(pipeline, tmp_path / "out" / "items")
    ledger.seal()
    with pytest.raises(Exception, match="was not charged"):
        pipeline.runner.run_pipeline(pipeline, options).wait_until_finish()
    assert state_of(tmp_path / "store") is None
    assert not list(tmp_path.glob("out/items-*"))


def test_a_pipeline_that_the_budget_refused_draws_nothing_when_it_is_run_otherwise(tmp_path: Path) -> None:
    options = PipelineOptions(ONE_PROCESS)
    pipeline = Ledger(budget=run_of(tmp_path, epsilon=0.5)).pipeline(options)
    build(pipeline, tmp_path / "items")
    with pytest.raises(BudgetExceededError):
        pipeline.run()
    again = beam.Pipeline.from_runner_api(pipeline.to_runner_api(), pipeline.runner, options)
    with pytest.raises(Exception, match="was not charged"):
        again.run().wait_until_finish()


def submitted_again(pipeline: LedgerPipeline, options: PipelineOptions) -> None:
    """The same job once more, as a template file is launched again."""
    pipeline.runner.run_pipeline(pipeline, options).wait_until_finish()


def test_a_job_that_is_submitted_twice_publishes_once(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    options = PipelineOptions(ONE_PROCESS)
    pipeline = Ledger(budget=run_of(tmp_path / "store")).pipeline(options)
    build(pipeline, tmp_path / "out" / "items")
    pipeline.run().wait_until_finish()
    first = (tmp_path / "out" / "items-00000-of-00001.csv").read_bytes()
    submitted_again(pipeline, options)
    assert (tmp_path / "out" / "items-00000-of-00001.csv").read_bytes() == first

    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="has published this output already"):
        submitted_again(pipeline, options)
    assert not list(tmp_path.glob("out/items-*")) and not list(tmp_path.glob("out/*.json"))


def test_a_dry_run_of_ones_own_is_neither_charged_nor_run(tmp_path: Path) -> None:
    options = PipelineOptions([*ONE_PROCESS, "--dry_run=true"])
    pipeline = Ledger(budget=run_of(tmp_path)).pipeline(options)
    build(pipeline, tmp_path / "items")
    with pytest.raises(ArgumentError, match="dry_run"):
        pipeline.run()
    assert state_of(tmp_path) is None


def test_what_a_pipeline_reads_must_belong_to_the_data_set(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.csv").write_text("smokes\nyes\n")
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    store.create("mine", Limit(model="local", privacy_unit="user", epsilon=9), inputs=[str(tmp_path / "mine")])
    for run_id, read in (("r1", ["mine"]), ("r2", ["mine", "theirs"]), ("r3", [])):
        pipeline = Ledger(budget=store.run("mine", run_id)).pipeline(PipelineOptions(ONE_PROCESS))
        inputs = [pipeline | name >> ReadBatches(f"{tmp_path}/{name}/*.csv", columns=["smokes"]) for name in read] or [
            pipeline | beam.Create([pa.record_batch({"smokes": ["no"]})]).with_output_types(pa.RecordBatch)
        ]
        answers = inputs | beam.Flatten()
        answers | RandomizedResponse(categories=["no", "yes"], epsilon=1, column="smokes")
        if read == ["mine"]:
            pipeline.charge()
        else:
            with pytest.raises(InputError, match="data set mine"):
                pipeline.charge()
    assert list(store.account("mine").runs) == ["r1"]


def test_with_a_budget_what_draws_comes_before_the_sinks(tmp_path: Path) -> None:
    pipeline = Ledger(budget=run_of(tmp_path)).pipeline(PipelineOptions(ONE_PROCESS))
    build(pipeline, tmp_path / "items")
    late = pipeline | "Late rows" >> beam.Create([ROWS]).with_output_types(pa.RecordBatch)
    late | "Late" >> counted()
    with pytest.raises(GrantError, match="Late/count: drawn by a transform that no WriteBatches comes after"):
        pipeline.run()
    assert state_of(tmp_path) is None


def test_a_step_that_is_added_behind_the_charge_is_refused(tmp_path: Path) -> None:
    pipeline = Ledger(budget=run_of(tmp_path)).pipeline(PipelineOptions(ONE_PROCESS))
    build(pipeline, tmp_path / "items")
    pipeline.charge()
    (fn,) = drawing_dofns(pipeline)
    pipeline | "Again" >> beam.Create([(0, [])]) | "Twice" >> beam.ParDo(fn, ())
    with pytest.raises(GrantError, match="2 steps of this pipeline draw under it"):
        pipeline.run()


def test_a_step_is_seen_through_exception_handling() -> None:
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    answers = pipeline | beam.Create(["a", "b"])
    answers | "Answers" >> RandomizedResponse(categories=["a", "b"], epsilon=1)
    (fn,) = drawing_dofns(pipeline)
    answers | "Again" >> beam.ParDo(fn).with_exception_handling()
    with pytest.raises(GrantError, match=r"^Answers has one ledger entry, but 2 steps"):
        pipeline.run()


def test_a_charged_pipeline_whose_construction_fails_stays_charged(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with pytest.raises(ZeroDivisionError), Ledger(budget=run).pipeline(PipelineOptions(ONE_PROCESS)) as pipeline:
        build(pipeline, tmp_path / "items")
        pipeline.charge()
        raise ZeroDivisionError
    assert state_of(tmp_path) == "running"


def test_a_budget_is_what_a_store_gives() -> None:
    with pytest.raises(ArgumentError, match=r"budget must be what BudgetStore\.run returns, not a value of type str"):
        Ledger(budget="sqlite:///budget.db")


# The planted bugs.


def released_twice(original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def process(self: DrawingDoFn, *args: Any) -> Iterator[Any]:
        yield from original(self, *args)
        yield from original(self, *args)

    return process


def test_a_block_that_is_drawn_twice_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = aggregate_module._Release
    monkeypatch.setattr(step, "process", released_twice(step.process))
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    build(pipeline, tmp_path / "items")
    with pytest.raises(Exception, match="Items/count was drawn twice for the same part of the output"):
        pipeline.run()
    assert not [name for name in outputs(tmp_path) if name.startswith("items-") or name.endswith(".json")]


def test_one_dofn_in_two_steps_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    answers = pipeline | beam.Create(["a", "b"])
    answers | "Answers" >> RandomizedResponse(categories=["a", "b"], epsilon=1)
    (fn,) = drawing_dofns(pipeline)
    answers | "Again" >> beam.ParDo(fn) | beam.Map(lambda _: (tmp_path / "drawn").touch())
    with pytest.raises(GrantError, match=r"^Answers has one ledger entry, but 2 steps"):
        pipeline.run()
    assert not (tmp_path / "drawn").exists()


def drawing_dofns(pipeline: LedgerPipeline) -> list[DrawingDoFn]:
    found: list[DrawingDoFn] = []

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: beam.pipeline.AppliedPTransform) -> None:
            if isinstance(node.transform, beam.ParDo) and isinstance(node.transform.fn, DrawingDoFn):
                found.append(node.transform.fn)

    pipeline.visit(Visitor())
    return found


@pytest.mark.parametrize("flags", [ONE_PROCESS, WORKER_PROCESS], ids=["this process", "another process"])
def test_an_epsilon_that_changes_after_the_seal_draws_nothing(tmp_path: Path, flags: list[str]) -> None:
    ledger = Ledger()
    pipeline = ledger.pipeline(PipelineOptions(flags))
    build(pipeline, tmp_path / "items")
    ledger.seal()
    (entry,) = ledger.entries
    ledger._entries[entry.label] = replace(entry, loss=None, guarantee=replace(entry.guarantee, epsilon=0.1))
    with pytest.raises(Exception, match="changed after it was sealed"):
        pipeline.run()
    assert not [name for name in outputs(tmp_path) if name.startswith("items-") or name.endswith(".json")]


def test_an_epsilon_that_changes_before_the_seal_is_no_longer_what_was_granted(tmp_path: Path) -> None:
    ledger = Ledger()
    pipeline = ledger.pipeline(PipelineOptions(ONE_PROCESS))
    build(pipeline, tmp_path / "items")
    (entry,) = ledger.entries
    ledger._entries[entry.label] = replace(entry, loss=None, guarantee=replace(entry.guarantee, epsilon=0.1))
    with pytest.raises(Exception, match="would run another mechanism"):
        pipeline.run()


def test_a_step_with_a_grant_of_another_ledger_is_refused_before_anything_runs() -> None:
    other = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    other | beam.Create(["a"]) | "Answers" >> RandomizedResponse(categories=["a", "b"], epsilon=9)
    (strange,) = drawing_dofns(other)
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    pipeline | beam.Create(["a"]) | beam.ParDo(strange)
    with pytest.raises(GrantError, match="Answers: this step draws under a grant of another ledger"):
        pipeline.run()


def test_a_step_of_another_plan_is_refused_by_the_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    other | beam.Create(["a"]) | "Answers" >> RandomizedResponse(categories=["a", "b"], epsilon=9)
    (strange,) = drawing_dofns(other)
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    answers = pipeline | beam.Create(["a", "b"])
    drawn = answers | "Answers" >> RandomizedResponse(categories=["a", "b"], epsilon=1)
    # A copy of the step with the grants of the other plan, under the same label and with the same output.
    (fn,) = drawing_dofns(pipeline)
    monkeypatch.setattr(LedgerPipeline, "_require_one_step_an_entry", lambda self: None)
    fn._work = strange._work
    batches = drawn | beam.Map(lambda text: pa.record_batch({"answer": [text]})).with_output_types(pa.RecordBatch)
    batches | WriteBatches(f"{tmp_path}/answers", format="csv", run_id="r")
    with pytest.raises(Exception, match="Answers was drawn by another plan than the one that was sealed"):
        pipeline.run()
    assert not [name for name in outputs(tmp_path) if name.startswith("answers-") or name.endswith(".json")]


def test_a_draw_without_a_grant_fails_in_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module._Respond, "granted", lambda self: [(None, "")])
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    with pytest.raises(GrantError, match="has no grant"):
        pipeline | beam.Create(["a"]) | RandomizedResponse(categories=["a", "b"], epsilon=1)


def test_there_is_no_randomness_before_the_grants_are_checked() -> None:
    class Draws(DrawingDoFn):
        def granted(self) -> list[tuple[Any, str]]:
            return [(None, "x")]

    step = Draws()
    with pytest.raises(GrantError):
        step.setup()
    with pytest.raises(AttributeError):
        step.rng.random()
