"""Budgets for the tests of command lines: launches that stop where a test wants them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from beam_dp import Ledger
from beam_dp.accounting.budget import BudgetStore
from beam_dp.guarantees import CentralGuarantee

STEPS = ("reserve", "start", "commit")


def ledger_that_costs(epsilon: float, delta: float = 0.0, unit: str = "user") -> Ledger:
    """A sealed ledger with one central entry."""
    ledger = Ledger()
    guarantee = CentralGuarantee(basis="proved", epsilon=epsilon, delta=delta, privacy_unit=unit)
    ledger.record(label="Noise", mechanism="Example()", guarantee=guarantee, max_applications=1, fingerprint="f")
    ledger.seal()
    return ledger


def launch(url: str, dataset: str, run_id: str, epsilon: float, delta: float = 0.0, *, last: str = "commit") -> None:
    """One launch up to its step ``last``."""
    run = BudgetStore(url).run(dataset, run_id, pipeline="example")
    run.reserve(ledger_that_costs(epsilon, delta).to_dict())
    for step in STEPS[1 : STEPS.index(last) + 1]:
        getattr(run, step)()


def let_time_pass(monkeypatch: pytest.MonkeyPatch, **time: float) -> None:
    """Sets the clock of the budget store so much ahead of the real one."""
    monkeypatch.setattr(BudgetStore, "now", lambda _: datetime.now(timezone.utc) + timedelta(**time))
