"""Rules of the accountant that would break without any other test noticing, each by the smallest case that shows it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.testing.util import assert_that

from beam_dp import (
    Aggregate,
    Bounds,
    Budget,
    Count,
    DPCombineGlobally,
    LaplaceCount,
    Ledger,
    MostFrequent,
    MultivariateLaplace,
    PrivatizeText,
    RandomizedResponse,
    ReadBatches,
    WriteBatches,
)
from beam_dp.accounting import ParametersLoss
from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.accounting.budget.charges import Charge, charges_of
from beam_dp.accounting.budget.history import UNSEEN, fold, is_done, refusal
from beam_dp.accounting.budget.records import NO_RECORD, Record, format_time, make_line, parse_lines
from beam_dp.accounting.composition import compose_metric
from beam_dp.accounting.drawing import DrawingDoFn
from beam_dp.accounting.pipeline import _seen
from beam_dp.errors import ArgumentError, BeamDpError, BudgetExceededError, GrantError, InputError
from beam_dp.guarantees import LocalGuarantee, MetricGuarantee
from pipelines.options import parse_options
from pipelines.run import publish, run_pipeline

ONE_PROCESS = ["--runner=FnApiRunner"]
NOON = datetime(2024, 5, 17, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)
LIMIT = Limit(model="central", privacy_unit="user", epsilon=1.0, renew_days=30)
ROWS = [{"user": number, "item": "tea" if number % 2 else "jam"} for number in range(20)]
CHARGE = Charge(model="central", privacy_unit="user", epsilon=0.25, delta=0.0)
RESERVATION = {
    "run_id": "r",
    "token": "t",
    "plan_hash": "p",
    "pipeline": "",
    "ledger": {
        "totals": {
            "central": {"groups": [{"privacy_unit": "user", "epsilon": 0.25, "delta": 0.0, "reason": None}]},
            "local": None,
            "metric": None,
        }
    },
    "charges": [CHARGE.to_json()],
}


def history(*steps: tuple[datetime, str, dict[str, Any]]) -> list[Record]:
    """The records of a data set with these kinds and bodies, written without asking any rule."""
    lines: list[str] = []
    previous = NO_RECORD
    for sequence, (at, kind, body) in enumerate(steps):
        line = make_line(dataset="reviews", sequence=sequence, at=at, kind=kind, body=body, previous=previous)
        previous = json.loads(line)["hash"]
        lines.append(line)
    return list(parse_lines(lines, dataset="reviews"))


def reserved_at(at: datetime) -> list[Record]:
    return history(
        (NOON, "create", {"schema": 1, "inputs": []}),
        (NOON, "limit", {"limit": LIMIT.to_json()}),
        (at, "reserve", RESERVATION),
    )


def test_a_clock_that_is_behind_does_not_show_an_earlier_period() -> None:
    account = fold("reviews", reserved_at(NOON + 31 * DAY))
    assert account is not None
    # What would be reserved now gets the time of the last record, so that is the period which counts.
    assert account.spent(LIMIT, NOON) == CHARGE.amount
    assert account.unfinished(LIMIT, NOON) == CHARGE.amount
    assert account.renews_at(LIMIT, NOON) == NOON + 60 * DAY


def test_a_lease_that_is_over_when_it_begins_is_refused_however_long_ago_the_run_was_reserved() -> None:
    account = fold("reviews", reserved_at(NOON))
    started = NOON + 3 * DAY
    for until, may in ((started - DAY, False), (started, True)):
        body = {"run_id": "r", "token": "t", "lease_until": format_time(until)}
        assert (refusal(account, "start", body, started) is None) == may


@pytest.mark.parametrize("over", ["commit", "void"])
def test_a_worker_of_a_run_that_is_over_does_not_start_it_again(over: str) -> None:
    mine = {"run_id": "r", "token": "t"}
    until, late = NOON + DAY, NOON + 2 * DAY
    start = mine | {"launch": "l", "lease_until": format_time(until)}
    signed = {"run_id": "r", "was": "running", "signed_by": "A. Person", "statement": UNSEEN}
    running = [(NOON, "create", {"schema": 1, "inputs": []}), (NOON, "limit", {"limit": LIMIT.to_json()})]
    running += [(NOON, "reserve", RESERVATION), (NOON, "start", start)]
    ended = [*running, (late, over, signed if over == "void" else mine)]
    # What is committed is charged for good, so that its workers may go on.
    for steps, may in ((running, True), (ended, over == "commit")):
        account = fold("reviews", history(*steps))
        assert account is not None
        assert is_done(account, "start", start) == may
        assert refusal(account, "start", start, late) is not None


@pytest.mark.parametrize(("applications", "diameter"), [(None, 2.0), (4, None)], ids=["no words", "no diameter"])
def test_a_document_on_two_indexes_is_not_charged_where_one_is_unbounded(
    applications: int | None, diameter: float | None
) -> None:
    ledger = Ledger()
    for label, digest, words, far in (("a", "a" * 64, 4, 2.0), ("b", "b" * 64, applications, diameter)):
        ledger.record(
            label=label,
            mechanism="Example()",
            guarantee=MetricGuarantee(basis="proved", epsilon=3.0, metric="euclidean", index_digest=digest),
            max_applications=words,
            diameter=far,
            fingerprint="example",
        )
    total = compose_metric(ledger.entries)
    assert total is not None
    assert total["worst_case_per_document"] is None
    (document,) = [charge for charge in charges_of(ledger.to_dict()) if charge.privacy_unit == "document"]
    assert document.amount is None


def test_what_a_sink_does_to_its_copy_of_the_ledger_stays_there() -> None:
    ledger = Ledger()
    ledger.record(
        label="x",
        mechanism="Example()",
        guarantee=MetricGuarantee(basis="proved", epsilon=3.0, metric="euclidean", index_digest="a" * 64),
        max_applications=1,
        fingerprint="example",
    )
    pickled = pickle.dumps(ledger.plan())
    del ledger
    plan = pickle.loads(pickled)
    plan.ledger_json()["entries"][0]["epsilon"] = 0.1
    plan.ledger_json()["entries"].clear()
    assert [entry["epsilon"] for entry in plan.ledger_json()["entries"]] == [3.0]


def test_a_graph_that_was_never_finished_is_neither_run_nor_committed(tmp_path: Path) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    store.create("answers", Limit(model="local", privacy_unit="user", epsilon=1.0))
    run = store.run("answers", "r")
    ledger = Ledger(budget=run)
    with pytest.raises(LookupError, match="of the body"), ledger.pipeline(PipelineOptions(ONE_PROCESS)) as pipeline:
        pipeline | beam.Create(["a"]) | RandomizedResponse(categories=["a", "b"], epsilon=1)
        raise LookupError("of the body")
    assert not store.account("answers").runs


def test_every_input_of_a_sink_must_end() -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(ONE_PROCESS))
    ends = pipeline | "Ends" >> beam.Create([pa.record_batch({"a": [1]})]).with_output_types(pa.RecordBatch)
    never = pipeline | "Never" >> beam.Create([pa.record_batch({"a": [1]})]).with_output_types(pa.RecordBatch)
    never.is_bounded = False
    for label, inputs in (("Rows", (never, ends)), ("Rejects", (ends, never))):
        with pytest.raises(ArgumentError, match="must be bounded"):
            inputs | label >> WriteBatches("out", format="csv")


def chosen_twice() -> tuple[Ledger, DrawingDoFn]:
    """A ledger with two choices of the exponential mechanism, and the step that makes them."""
    ledger = Ledger()
    pipeline = ledger.pipeline(PipelineOptions(ONE_PROCESS))
    rows = pipeline | beam.Create([pa.RecordBatch.from_pylist(ROWS)]).with_output_types(pa.RecordBatch)
    rows | MostFrequent("item", privacy_unit="user", candidates=["tea", "jam"], epsilon=0.5, k=2, buckets=2)
    found: list[DrawingDoFn] = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, node: AppliedPTransform) -> None:
            if isinstance(node.transform, beam.ParDo) and isinstance(node.transform.fn, DrawingDoFn):
                found.append(node.transform.fn)

    pipeline.visit(Visitor())
    (fn,) = found
    return ledger, fn


def test_every_choice_counts_in_composition_by_losses_too() -> None:
    ledger, _ = chosen_twice()
    (entry,) = ledger.entries
    assert entry.loss == ParametersLoss(0.5, 0.0, times=2)


def test_more_choices_than_the_entry_says_are_not_drawn() -> None:
    _, fn = chosen_twice()
    fn.setup()
    fn._k = 3  # type: ignore[attr-defined]
    with pytest.raises(GrantError, match="another mechanism"):
        fn.setup()


# Every step that draws says so to the sinks of its pipeline.


def text_rows(pipeline: beam.Pipeline) -> Any:
    texts = pipeline | beam.Create(["some words", "more words"]).with_output_types(str)
    return texts | "Draw" >> PrivatizeText(MultivariateLaplace(epsilon=50))


def text_batches(pipeline: beam.Pipeline) -> Any:
    batch = pa.record_batch({"text": ["some words", "more words"]})
    batches = pipeline | beam.Create([batch]).with_output_types(pa.RecordBatch)
    return batches | "Draw" >> PrivatizeText(MultivariateLaplace(epsilon=50))


def answer_rows(pipeline: beam.Pipeline) -> Any:
    answers = pipeline | beam.Create(["a", "b", "a"]).with_output_types(str)
    return answers | "Draw" >> RandomizedResponse(categories=["a", "b"], epsilon=1)


def answer_batches(pipeline: beam.Pipeline) -> Any:
    batches = pipeline | beam.Create([pa.record_batch({"x": ["a", "b"]})]).with_output_types(pa.RecordBatch)
    return batches | "Draw" >> RandomizedResponse(categories=["a", "b"], epsilon=1, column="x")


def most_frequent(pipeline: beam.Pipeline) -> Any:
    rows = pipeline | beam.Create([pa.RecordBatch.from_pylist(ROWS)]).with_output_types(pa.RecordBatch)
    return rows | "Draw" >> MostFrequent("item", privacy_unit="user", candidates=["tea", "jam"], epsilon=1, buckets=2)


def aggregated(pipeline: beam.Pipeline) -> Any:
    rows = pipeline | beam.Create([pa.RecordBatch.from_pylist(ROWS)]).with_output_types(pa.RecordBatch)
    return rows | "Draw" >> Aggregate(
        "item",
        privacy_unit="user",
        bounds=Bounds(partitions=1, rows_per_partition=1),
        metrics=[Count()],
        budget=Budget(epsilon=1),
        partitions=["tea", "jam"],
        buckets=2,
    )


def combined(pipeline: beam.Pipeline) -> Any:
    numbers = pipeline | beam.Create([1, 2, 3])
    return numbers | "Draw" >> DPCombineGlobally(LaplaceCount(), rows_per_unit=1, budget=Budget(epsilon=1))


@pytest.mark.parametrize(
    "step",
    [text_rows, text_batches, answer_rows, answer_batches, most_frequent, aggregated, combined],
    ids=lambda step: step.__name__,
)
def test_every_step_that_draws_leaves_a_record_of_each_entry(step: Callable[[beam.Pipeline], Any]) -> None:
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(ONE_PROCESS)) as pipeline:
        step(pipeline)
        labels = {entry.label for entry in ledger.entries}
        assert labels
        (usage,) = pipeline.usages
        assert set(usage.labels) == labels

        def drawn(found: list[str]) -> None:
            records = [json.loads(text) for text in found]
            assert {record["label"] for record in records if record["node"] is not None} == labels
            assert {record["label"] for record in records if record["node"] is None} == labels

        assert_that(usage.records | beam.Flatten(), drawn)


def test_a_worker_that_only_shows_its_plan_checks_it_too() -> None:
    ledger = Ledger()
    grant = ledger.record(
        label="x",
        mechanism="Example()",
        guarantee=MetricGuarantee(basis="proved", epsilon=3.0, metric="euclidean", index_digest="a" * 64),
        max_applications=1,
        fingerprint="example",
    )
    assert [json.loads(record)["node"] for record in _seen(b"", [(grant, "example")])] == [None]
    with pytest.raises(GrantError, match="another mechanism"):
        list(_seen(b"", [(grant, "another example")]))


# The course of a pipeline of the command line.


def answers(folder: Path, build: Callable[..., None], *flags: str) -> None:
    """Runs a pipeline of two texts, charged to a data set of its own."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "one.txt").write_text("a\nb\n")
    options = parse_options(
        [
            f"--input={folder}/in/*.txt",
            f"--output={folder}/out",
            f"--budget_store=sqlite:///{folder}/budget.db",
            "--dataset=answers",
            "--run_id=r",
            *flags,
        ]
    )
    run_pipeline(options, build, name="answers", doing="asking", done=lambda count: "done")


def respond(pipeline: beam.Pipeline, ledger: Ledger, options: PipelineOptions) -> None:
    source = ReadBatches(options.get_all_options()["input"])
    read = pipeline | "Read" >> source.with_rejects()
    responses = read.batches | RandomizedResponse(categories=["a", "b"], epsilon=1, column="text")
    publish(responses, read.rejected, source=source, ledger=ledger, options=options)


def answer_store(folder: Path) -> BudgetStore:
    store = BudgetStore(f"sqlite:///{folder}/budget.db")
    store.create("answers", Limit(model="local", privacy_unit="user", epsilon=1.0), inputs=[str(folder / "in")])
    return store


def test_a_launch_that_is_refused_leaves_what_an_earlier_one_of_its_name_has_staged(tmp_path: Path) -> None:
    store = answer_store(tmp_path)
    ledger = Ledger()
    ledger.record(
        label="x",
        mechanism="Example()",
        guarantee=LocalGuarantee(basis="proved", epsilon=0.5, privacy_unit="user"),
        max_applications=1,
        fingerprint="example",
    )
    store.run("answers", "r", inputs=[str(tmp_path / "in" / "one.txt")]).reserve(ledger.to_dict())
    staged = tmp_path / "out.tmp-r" / "rows-of-the-first"
    staged.parent.mkdir()
    staged.touch()
    with pytest.raises(BudgetExceededError, match="run r is reserved already"):
        answers(tmp_path, respond)
    assert staged.exists()


def test_a_file_that_comes_while_the_pipeline_is_made_must_belong_to_the_data_set_too(tmp_path: Path) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    one = Limit(model="local", privacy_unit="user", epsilon=1.0)
    store.create("answers", one, inputs=[str(tmp_path / "in" / "one.txt")])

    def late(pipeline: beam.Pipeline, ledger: Ledger, options: PipelineOptions) -> None:
        (tmp_path / "in" / "two.txt").write_text("a\n")
        respond(pipeline, ledger, options)

    with pytest.raises(InputError, match="1 of the input files do not belong to data set answers"):
        answers(tmp_path, late)
    assert not store.account("answers").runs
    assert not list(tmp_path.glob("out*"))


def test_a_job_that_ends_badly_without_an_error_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = answer_store(tmp_path)

    class Cancelled(PipelineResult):
        def wait_until_finish(self, duration: int | None = None) -> str:
            return PipelineState.CANCELLED

    monkeypatch.setattr(FnApiRunner, "run_pipeline", lambda *_: Cancelled(PipelineState.RUNNING))
    with pytest.raises(BeamDpError, match="ended in state CANCELLED"):
        answers(tmp_path, respond)
    assert store.account("answers").runs["r"].state == "running"
