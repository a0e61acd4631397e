"""kill -9 of a worker in its bundle, and of the submitting process: the run ends, and nothing half done is seen."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_oracle import (
    RUN_ID,
    TWO_PROCESSES,
    Place,
    check_charged_once,
    check_failed,
    check_nothing_published,
    check_silent,
    ended,
    refusal,
    session,
    wait_for,
)

pytestmark = pytest.mark.fault

STAGING = f"out.tmp-{RUN_ID}"


def flags(place: Place) -> tuple[str, ...]:
    """Two worker processes, which stop in the middle of their bundles: rows are drawn and staged."""
    return (*TWO_PROCESSES, f"--output=stalling://{place.prefix}")


def test_a_worker_that_is_killed_in_its_bundle_ends_the_run(tmp_path: Path) -> None:
    """The other worker is in a bundle that never ends, so that a run that waits for it hangs."""
    place = Place(tmp_path)
    with place.started(*flags(place)) as process:
        victim = place.stalled_workers(2)[0]
        assert place.outputs() == [STAGING]
        os.kill(victim, signal.SIGKILL)
        done = ended(process)
        assert session(process.pid) == []
    line = check_failed(place, done)
    assert line.startswith("error: a worker process died")
    assert f"run {RUN_ID} was charged" in done.stdout
    check_nothing_published(place)
    check_charged_once(place, "running")


@pytest.mark.parametrize(
    ("module", "kill"), [("privatize_text", os.kill), ("aggregate", os.killpg)], ids=["submitter alone", "whole tree"]
)
def test_a_submitter_that_dies_before_the_publish_publishes_nothing(
    tmp_path: Path, module: str, kill: Callable[[int, int], None]
) -> None:
    place = Place(tmp_path, module)
    with place.started(*flags(place)) as process:
        place.stalled_workers()
        kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not session(process.pid), "workers without a submitter end by themselves")
        done = ended(process)
    assert done.returncode == -signal.SIGKILL
    check_silent(place, done)
    # Nobody was left to remove what is staged, and it is named by no manifest.
    check_nothing_published(place, left=(STAGING,))
    check_charged_once(place, "running")


def test_a_submitter_that_is_told_to_end_takes_busy_workers_with_it(tmp_path: Path) -> None:
    """Their bundles never end, so that a run that waits for them hangs."""
    place = Place(tmp_path)
    with place.started(*flags(place)) as process:
        place.stalled_workers(2)
        process.terminate()
        done = ended(process)
        assert session(process.pid) == []
    assert refusal(done, 143) == "error: terminated"
    check_silent(place, done)
    check_nothing_published(place)
    check_charged_once(place, "running")
