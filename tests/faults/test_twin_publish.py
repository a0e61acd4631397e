"""Two attempts at one publish, one after the other and at the same time: one output, whole."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from bundle_cases import CASES, Output, rows_in
from bundle_harness import Attempt, Stage
from fault_oracle import CANARY, END_SECONDS, RUN_ID

from beam_dp.accounting.drawing import USAGE
from beam_dp.errors import BeamDpError
from beam_dp.io import publish as publish_module
from beam_dp.io import with_position
from beam_dp.io.batches import Position

pytestmark = pytest.mark.fault

SHARDS = 40
AT_ONCE = 4
ROUNDS = 4


def staged(output: Output) -> tuple[Stage, Attempt, Any]:
    """The publish, what was staged for it by one attempt and abandoned by another, and the rows of the former."""
    batches = [
        with_position(pa.record_batch({"answer": ["yes", "no"], "id": [CANARY] * 2}), Position(0, piece, piece))
        for piece in range(SHARDS)
    ]
    stage = Stage([output.drawing, output.staging])
    stage.attempt(batches, kill_at=SHARDS)
    kept = stage.attempt(batches)
    return Stage([output.publishing]), kept, output.group(kept, kept.tagged[USAGE])


def test_a_twin_that_comes_later_changes_nothing(tmp_path: Path) -> None:
    output = Output(tmp_path / "run", CASES["response batches"])
    publish, kept, group = staged(output)
    first = publish.attempt([group])
    before = {path.name: path.stat().st_mtime_ns for path in output.folder.iterdir()}
    assert publish.attempt([group]).main == first.main == [f"{output.prefix}.manifest.json"]
    after = {path.name: path.stat().st_mtime_ns for path in output.folder.iterdir()}
    for name in before.keys() | after.keys():
        assert name.startswith("budget.db") or after[name] == before[name]
    output.check(rows_in(kept.drawn))


def test_a_twin_that_staged_anew_changes_nothing(tmp_path: Path) -> None:
    """As where a runner begins again from the source: other draws, which must not replace what may have been seen."""
    output = Output(tmp_path / "run", CASES["response batches"])
    publish, kept, group = staged(output)
    publish.attempt([group])
    _, _, other = staged(output)
    assert publish.attempt([other]).main == [f"{output.prefix}.manifest.json"]
    assert not (output.folder / f"out.tmp-{RUN_ID}").exists()
    output.check(rows_in(kept.drawn))


def test_twins_that_move_a_half_each_publish_one_whole_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither may take its half back because the other half is gone: the twin may be about to publish both."""
    output = Output(tmp_path / "run", CASES["response batches"])
    publish, kept, group = staged(output)
    rename = LocalFileSystem.rename
    moved: list[str] = []

    def halved(self: LocalFileSystem, sources: list[str], finals: list[str]) -> None:
        if len(sources) == SHARDS and not moved:
            moved.extend(finals[1::2])
            rename(self, sources[1::2], finals[1::2])
        rename(self, sources, finals)

    monkeypatch.setattr(LocalFileSystem, "rename", halved)
    assert publish.attempt([group]).main == [f"{output.prefix}.manifest.json"]
    assert len(moved) == SHARDS / 2
    output.check(rows_in(kept.drawn))


def _attempt(publish: Stage, group: Any, together: Any, answers: Any) -> None:
    together.wait()
    try:
        answers.put(len(publish.attempt([group]).main))
    except BeamDpError as error:
        answers.put(str(error))


def test_twins_at_the_same_time_publish_one_whole_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a process of its own; who is too late may fail, and is tried again, as by a runner."""
    monkeypatch.setattr(publish_module, "_MOVES_AT_ONCE", 7)
    fork = multiprocessing.get_context("fork")
    for number in range(ROUNDS):
        output = Output(tmp_path / f"{number}", CASES["response batches"])
        publish, kept, group = staged(output)
        together, answers = fork.Barrier(AT_ONCE), fork.Queue()
        twins = [fork.Process(target=_attempt, args=(publish, group, together, answers)) for _ in range(AT_ONCE)]
        for twin in twins:
            twin.start()
        found = [answers.get(timeout=END_SECONDS) for _ in twins]
        for twin in twins:
            twin.join(END_SECONDS)
            assert twin.exitcode == 0
        assert not any(CANARY in str(answer) for answer in found)
        if 1 not in found:
            publish.attempt([group])
        output.check(rows_in(kept.drawn))
