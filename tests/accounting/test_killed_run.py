"""kill -9 of a pipeline at every transition of its budget: no draw is uncharged, no charge is lost, none is doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killed_run import MOMENTS

from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.errors import BudgetExceededError

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("killed_run.py")
STATES = {
    "reserve": (None, "reserved"),
    "start": ("reserved", "running"),
    "draw": ("running", "running"),
    "commit": ("running", "committed"),
    "publish": ("committed", "committed"),
    "published": ("committed", "committed"),
}


def launch(folder: Path, run_id: str, moment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), run_id, moment],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )


def store_in(folder: Path) -> BudgetStore:
    store = BudgetStore(f"sqlite:///{folder}/budget.db")
    store.create("answers", Limit(model="local", privacy_unit="user", epsilon=1.0))
    return store


def ledger_of(store: BudgetStore) -> dict[str, Any]:
    """The ledger that the first run was charged for."""
    return next(record.body["ledger"] for record in store.history("answers") if record.kind == "reserve")


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=() if moment == "after draw" else pytest.mark.fault) for moment in MOMENTS],
)
def test_whatever_was_drawn_is_charged_and_stays_so(tmp_path: Path, moment: str) -> None:
    store = store_in(tmp_path)
    assert launch(tmp_path, "first", moment).returncode == -signal.SIGKILL
    when, what = moment.split(" ")
    account = store.account("answers")
    run = account.runs.get("first")
    expected = STATES[what][when == "after"]
    assert (None if run is None else run.state) == expected
    assert (tmp_path / "drawn").exists() == (
        MOMENTS.index(moment) >= MOMENTS.index("before draw") and moment != "before draw"
    )
    if (tmp_path / "drawn").exists():
        assert account.runs["first"].state in ("running", "committed")
    published = (tmp_path / "out" / "answers.manifest.json").exists()
    assert published == (MOMENTS.index(moment) >= MOMENTS.index("after publish"))
    if published:
        # Whatever can be seen is charged for good.
        assert account.runs["first"].state == "committed"
    head = store.verify("answers")["answers"]

    # Nobody gets the budget a second time, under the same name or another one.
    for run_id in ("first", "second") if run is not None else ():
        with pytest.raises(BudgetExceededError):
            store.run("answers", run_id).reserve(ledger_of(store))
    assert store.verify("answers")["answers"] == head


@pytest.mark.fault
def test_a_charge_of_which_nothing_ran_can_be_given_back(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    launch(tmp_path, "first", "after reserve")
    store.void("answers", "first")
    assert launch(tmp_path, "first", "never").returncode != 0
    assert launch(tmp_path, "second", "never").returncode == 0
    assert store.account("answers").runs["second"].state == "committed"
