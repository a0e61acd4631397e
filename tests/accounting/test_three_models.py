"""Texts, tables and answers in one graph: one ledger with three totals, one charge with a part for each model."""

from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import (
    Aggregate,
    Bounds,
    Budget,
    Ledger,
    Mean,
    MultivariateLaplace,
    PrivatizeText,
    RandomizedResponse,
    WriteBatches,
    resolve_index,
)
from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.errors import BudgetExceededError

USERS = 40
ROWS = pa.record_batch(
    {
        "user": list(range(USERS)),
        "text": ["play some jazz music", "book a table"] * (USERS // 2),
        "smokes": ["no", "yes", "no", "no"] * (USERS // 4),
        "item": ["tea", "jam"] * (USERS // 2),
        "price": [float(n % 7) for n in range(USERS)],
    }
)


def build(pipeline: beam.Pipeline, folder: Path) -> None:
    rows = pipeline | beam.Create([ROWS]).with_output_types(pa.RecordBatch)
    texts = rows | "Texts" >> PrivatizeText(MultivariateLaplace(epsilon=8), max_words=4)
    prices = rows | "Prices" >> Aggregate(
        by="item",
        privacy_unit="user",
        bounds=Bounds(partitions=1, rows_per_partition=1),
        metrics=[Mean("price", 0, 10)],
        budget=Budget(epsilon=1.5),
        partitions=["tea", "jam"],
        buckets=2,
    )
    answers = rows | "Answers" >> RandomizedResponse(categories=["no", "yes"], epsilon=0.5, column="smokes")
    for name, batches in (("texts", texts), ("prices", prices), ("answers", answers)):
        batches | f"Write {name}" >> WriteBatches(f"{folder}/{name}", format="jsonl", run_id="r")


def limits(local_epsilon: float) -> list[Limit]:
    digest = resolve_index().digest
    return [
        Limit(model="central", privacy_unit="user", epsilon=2.0),
        Limit(model="local", privacy_unit="user", epsilon=local_epsilon),
        Limit(model="metric", privacy_unit="word", epsilon=10.0, metric="euclidean", index_digest=digest),
    ]


def test_one_ledger_has_three_totals_and_one_charge(tmp_path: Path) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    store.create("people", *limits(local_epsilon=0.5))
    ledger = Ledger(budget=store.run("people", "r"))
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        build(pipeline, tmp_path / "out")

    written = [json.loads((tmp_path / "out" / f"{name}.manifest.json").read_text()) for name in ("texts", "prices")]
    assert written[0]["ledger"] == written[1]["ledger"] == json.loads(ledger.report("json"))
    totals = written[0]["ledger"]["totals"]
    assert totals["metric"]["epsilon_per_word"] == 8
    assert totals["metric"]["epsilon_per_document"] == 32
    assert totals["central"]["basic"]["epsilon"] == 1.5
    assert totals["local"]["epsilon"] == 0.5

    account = store.account("people")
    assert account.runs["r"].state == "committed"
    left = {limit.model: account.remaining(limit, store.now()) for limit in account.limits}
    assert {model: amount.nano_epsilon for model, amount in left.items()} == {
        "central": 500_000_000,
        "local": 0,
        "metric": 2_000_000_000,
    }


def test_a_part_that_does_not_fit_refuses_the_whole(tmp_path: Path) -> None:
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    store.create("people", *limits(local_epsilon=0.4))
    pipeline = Ledger(budget=store.run("people", "r")).pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    build(pipeline, tmp_path / "out")
    with pytest.raises(BudgetExceededError, match="local"):
        pipeline.run()
    assert not (tmp_path / "out").exists()
    assert store.account("people").runs == {}
