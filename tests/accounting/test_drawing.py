"""What every DoFn that draws has in common."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_dp import Ledger, RandomizedResponse, WriteBatches
from beam_dp.accounting import Grant
from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.pipeline import leave_usage, ledger_of
from beam_dp.errors import GrantError, LedgerSealedError
from beam_dp.guarantees import LocalGuarantee

ONE_PROCESS = ["--runner=FnApiRunner"]


class Draws(DrawingDoFn):
    """Gives a fresh number for each element."""

    def __init__(self, grant: Grant, runs: str = "Draws") -> None:
        super().__init__()
        self._grant = grant
        self.runs = runs

    def granted(self) -> list[tuple[Grant | None, str]]:
        return [(self._grant, self.runs)]

    def process(self, element: Any) -> Any:
        return self.told([int(self.rng.integers(1 << 62))])


def recorded(ledger: Ledger, label: str = "Draws") -> Grant:
    return ledger.record(
        label=label,
        mechanism="Draws()",
        guarantee=LocalGuarantee(epsilon=1.0, basis="proved", privacy_unit="user"),
        max_applications=1,
        fingerprint="Draws",
    )


def test_a_step_that_runs_something_else_than_was_recorded_does_not_start() -> None:
    step = Draws(recorded(Ledger()))
    step.setup()
    step.runs = "Draws with half the noise"
    with pytest.raises(GrantError, match="another mechanism"):
        step.setup()


def test_each_bundle_has_a_key_of_its_own_and_tells_once() -> None:
    step = Draws(recorded(Ledger()))
    step.setup()
    drawn = set()
    for _ in range(20):
        step.start_bundle()
        usage, first = step.process("a")
        (second,) = step.process("b")
        assert usage.tag == USAGE
        drawn |= {first, second}
    assert len(drawn) == 40


def test_a_new_key_forgets_the_old_stream() -> None:
    step = Draws(recorded(Ledger()))
    step.setup()
    step.start_bundle()
    state = json.dumps(step.rng.bit_generator.state, default=str)
    step.start_bundle()
    assert json.dumps(step.rng.bit_generator.state, default=str) != state


def test_two_steps_are_told_apart() -> None:
    grant = recorded(Ledger())
    nodes = {json.loads(next(iter(Draws(grant).usage())).value)["node"] for _ in range(5)}
    assert len(nodes) == 5


def test_a_pipeline_runs_once() -> None:
    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    pipeline | beam.Create(["a"]) | RandomizedResponse(categories=["a", "b"], epsilon=1)
    pipeline.run().wait_until_finish()
    with pytest.raises(LedgerSealedError, match="ran already"):
        pipeline.run()


def test_a_step_without_input_shows_its_plan_too() -> None:
    with Ledger().pipeline(PipelineOptions(ONE_PROCESS)) as pipeline:
        empty = pipeline | beam.Create([]).with_output_types(str)
        empty | "Answers" >> RandomizedResponse(categories=["a", "b"], epsilon=1)
        (usage,) = pipeline.usages
        assert usage.labels == ("Answers",)
        records = usage.records | beam.Flatten()

        def shown(found: list[str]) -> None:
            assert [(json.loads(record)["label"], json.loads(record)["node"]) for record in found] == [
                ("Answers", None)
            ]

        assert_that(records, shown)


def test_a_sink_waits_for_the_records_of_every_step_before_it(tmp_path: Any) -> None:
    class Silent(Draws):
        def told(self, outputs: Any) -> Any:
            return outputs

    pipeline = Ledger().pipeline(PipelineOptions(ONE_PROCESS))
    numbers = pipeline | beam.Create(["a"])
    fn = Silent(recorded(ledger_of(numbers)))
    outputs = numbers | "Draws" >> beam.ParDo(fn).with_outputs(USAGE, main="drawn")
    leave_usage(fn, outputs[USAGE])
    # As if the records of the step had been lost on their way.
    pipeline.usages[:] = [replace(usage, records=()) for usage in pipeline.usages]
    batches = outputs.drawn | beam.Map(lambda n: pa.record_batch({"n": [n]})).with_output_types(pa.RecordBatch)
    batches | WriteBatches(f"{tmp_path}/out", format="csv")
    with pytest.raises(Exception, match="Draws left no usage record"):
        pipeline.run()
    assert not list(tmp_path.glob("out*.json"))
