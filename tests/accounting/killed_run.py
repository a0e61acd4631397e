"""A program that runs a small pipeline with a budget and kills itself with SIGKILL at the moment that it is told.

    python killed_run.py FOLDER RUN_ID MOMENT

Moments: before or after one of ``reserve``, ``start``, ``draw``, ``commit``, ``publish`` and ``published``, or
``never``.
FOLDER/drawn is there if noise was drawn.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import Ledger, RandomizedResponse, WriteBatches
from beam_dp.accounting.budget import BudgetRun, BudgetStore
from beam_dp.io import write
from beam_dp.mechanisms.randomized_response import KaryRandomizedResponse

MOMENTS = [
    f"{when} {what}"
    for what in ("reserve", "start", "draw", "commit", "publish", "published")
    for when in ("before", "after")
]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(original: Callable[..., Any], when: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            kill()
        result = original(*args, **kwargs)
        if when == "after":
            kill()
        return result

    return call


def marking(original: Callable[..., Any], path: Path) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        path.touch()
        return original(*args, **kwargs)

    return call


def plant(moment: str, folder: Path) -> None:
    KaryRandomizedResponse.respond = marking(KaryRandomizedResponse.respond, folder / "drawn")
    when, _, what = moment.partition(" ")
    if what in ("reserve", "start", "commit", "published"):
        setattr(BudgetRun, what, deadly(getattr(BudgetRun, what), when))
    elif what == "draw":
        KaryRandomizedResponse.respond = deadly(KaryRandomizedResponse.respond, when)
    elif what == "publish":
        write.publish = deadly(write.publish, when)


def main(folder: Path, run_id: str, moment: str) -> None:
    plant(moment, folder)
    ledger = Ledger(budget=BudgetStore(f"sqlite:///{folder}/budget.db").run("answers", run_id))
    batch = pa.record_batch({"answer": ["yes", "no"] * 8})
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        rows = pipeline | beam.Create([batch]).with_output_types(pa.RecordBatch)
        responses = rows | RandomizedResponse(categories=["no", "yes"], epsilon=1, column="answer")
        responses | WriteBatches(f"{folder}/out/answers", format="csv", run_id=run_id, overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
