"""Steps that draw, a bundle for each, and an output whose stages are run by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from bundle_harness import Attempt, Stage, inputs_of, steps_of
from fault_oracle import CANARY, DATASET, RUN_ID, holds_canary, read_output

from beam_dp import (
    Aggregate,
    Bounds,
    Budget,
    Count,
    DPCombinePerKey,
    LaplaceCount,
    Ledger,
    MostFrequent,
    MultivariateLaplace,
    PrivatizeText,
    RandomizedResponse,
    WriteBatches,
    resolve_index,
)
from beam_dp.accounting.budget import BudgetRun, BudgetStore, Limit
from beam_dp.accounting.drawing import DrawingDoFn
from beam_dp.accounting.pipeline import LedgerPipeline
from beam_dp.io import with_position
from beam_dp.io.batches import Position
from beam_dp.io.write import _Publish, _Stage

OPTIONS = ["--runner=FnApiRunner"]
TEXTS = [f"the weather in paris {CANARY} is fine"] * 6
ANSWERS = ["yes", "no", "no", "maybe"] * 12
ITEMS = [f"item {number}" for number in range(24)]


def batches(column: str, values: Sequence[str], size: int) -> list[pa.RecordBatch]:
    """Batches of so many rows, each a piece of the input."""
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [
        with_position(pa.record_batch({column: part, "id": [CANARY] * len(part)}), Position(0, piece, piece))
        for piece, part in enumerate(map(list, parts))
    ]


def texts(kind: str | None = None) -> PrivatizeText:
    return PrivatizeText(MultivariateLaplace(epsilon=0.5), input_kind=kind)


def responses(column: str | None, kind: str) -> RandomizedResponse:
    return RandomizedResponse(categories=["yes", "no", "maybe"], epsilon=0.1, column=column, input_kind=kind)


def counts() -> Aggregate:
    return Aggregate(
        by="item",
        privacy_unit="user",
        bounds=Bounds(partitions=1, rows_per_partition=1),
        metrics=[Count()],
        budget=Budget(epsilon=0.01),
        partitions=ITEMS,
        buckets=2,
    )


def favourites() -> MostFrequent:
    return MostFrequent("item", privacy_unit="user", candidates=ITEMS, epsilon=0.001, k=12, buckets=2)


def combined() -> DPCombinePerKey:
    return DPCombinePerKey(
        LaplaceCount(),
        bounds=Bounds(partitions=1, rows_per_partition=1),
        budget=Budget(epsilon=0.01),
        public_keys=ITEMS,
        privacy_unit="user",
    )


TABLE = pa.record_batch({"user": [f"{CANARY} {n}" for n in range(240)], "item": [f"item {n % 24}" for n in range(240)]})


@dataclass(frozen=True)
class Case:
    """A step that draws.

    Attributes:
        transform: with the step.
        elements: of a bundle; of the transform's input, if the step is behind others.
        rows: how many come out.
        telling: so many rows are the same in two independent draws with probability below 1e-18.
        limit: enough for one run, and not for two.
        behind: whether the step is behind others.
    """

    transform: Callable[[], beam.PTransform]
    elements: Sequence[Any]
    rows: int
    telling: int
    limit: Limit
    behind: bool = False


WORD = Limit(model="metric", privacy_unit="word", epsilon=0.9, metric="euclidean", index_digest=resolve_index().digest)
ANSWER = Limit(model="local", privacy_unit="user", epsilon=0.19)
USER = Limit(model="central", privacy_unit="user", epsilon=0.019)
CASES = {
    "text batches": Case(lambda: texts("record_batch"), batches("text", TEXTS, 2), len(TEXTS), 1, WORD),
    "text rows": Case(lambda: texts("dict"), [{"text": text, "id": CANARY} for text in TEXTS], len(TEXTS), 1, WORD),
    "response batches": Case(
        lambda: responses("answer", "record_batch"), batches("answer", ANSWERS, 24), len(ANSWERS), 40, ANSWER
    ),
    "response rows": Case(lambda: responses(None, "str"), ANSWERS, len(ANSWERS), 40, ANSWER),
    "releases": Case(counts, [TABLE], len(ITEMS), 12, USER, behind=True),
    "choices": Case(favourites, [TABLE], 12, 12, USER, behind=True),
    "combined values": Case(combined, [(item, 1) for item in ITEMS] * 9, len(ITEMS), 12, USER, behind=True),
}


def built(case: Case, budget: BudgetRun | None = None) -> tuple[LedgerPipeline, beam.PCollection]:
    """A pipeline with the step of a case."""
    pipeline = Ledger(budget=budget).pipeline(PipelineOptions(OPTIONS))
    return pipeline, pipeline | beam.Create(list(case.elements)) | "Draw" >> case.transform()


def bundle_of(case: Case) -> tuple[list[Any], list[list[Any]]]:
    """The elements of a bundle of the drawing step, and its side inputs."""
    if not case.behind:
        return list(case.elements), []
    pipeline, _ = built(case)
    return inputs_of(pipeline, steps_of(pipeline, DrawingDoFn)[0])


def rows_in(outputs: Sequence[Any]) -> list[Any]:
    """Rows, one by one: of batches, of numbered batches, or as they are."""
    found: list[Any] = []
    for output in outputs:
        batch = output[1] if isinstance(output, tuple) else output
        found += batch.to_pylist() if isinstance(batch, pa.RecordBatch) else [output]
    return [tuple(row.values()) if isinstance(row, dict) else row for row in found]


class Output:
    """A pipeline that writes, with a budget for one run; its stages are run by hand."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        folder.mkdir()
        self.prefix = folder / "out"
        self.store = BudgetStore(f"sqlite:///{folder}/budget.db")
        self.store.create(DATASET, case.limit)
        self.pipeline, drawn = built(case, self.store.run(DATASET, RUN_ID))
        if case.behind:
            drawn.element_type = pa.RecordBatch
        drawn | WriteBatches(f"{self.prefix}", format="jsonl", run_id=RUN_ID, ledger_path=f"{folder}/ledger.json")
        self.pipeline.charge()
        (self.drawing,) = steps_of(self.pipeline, DrawingDoFn)
        (self.staging,) = steps_of(self.pipeline, _Stage)
        (self.publishing,) = steps_of(self.pipeline, _Publish)

    def publish(self, kept: Attempt, records: Sequence[str]) -> Stage:
        """The last stage, run to its end on what was kept of the others."""
        stage = Stage([self.publishing])
        assert stage.attempt([self.group(kept, records)]).main == [f"{self.prefix}.manifest.json"]
        return stage

    @staticmethod
    def group(kept: Attempt, records: Sequence[str]) -> tuple[None, list[Any]]:
        return None, [None, *records, *(staged for _, staged in kept.main)]

    def check(self, rows: Sequence[Any]) -> None:
        """The output is these rows, whole; nothing else is there; the budget is charged once."""
        manifest = json.loads(Path(f"{self.prefix}.manifest.json").read_text())
        names = [shard["name"] for shard in manifest["shards"]]
        there = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("budget.db"))
        assert there == sorted(["ledger.json", "out.manifest.json", *names])
        assert [tuple(row.values()) for row in read_output(self.prefix)] == list(rows)
        assert holds_canary(self.folder) == []
        self.check_charged_once("committed")

    def check_charged_once(self, state: str) -> None:
        kinds = [record.kind for record in self.store.history(DATASET)]
        assert (kinds.count("reserve"), kinds.count("publish")) == (1, int(state == "committed"))
        assert self.store.account(DATASET).runs[RUN_ID].state == state
