"""The rules, by random histories: launches against a model that is nothing like the code."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from memory_log import DAY, NOON, MemoryLog, StoreOn, user_ledger

from beam_dp.accounting.budget import BudgetRun, Limit
from beam_dp.errors import ArgumentError, BudgetExceededError


class Launches(RuleBasedStateMachine):
    """Launches on one data set, checked against a model that counts whole thousandths of epsilon in plain lists.

    The limits: 3.0 for good and 1.0 each seven days, of two privacy units. Delta is in millionths, 9 and 4 of them.
    """

    FOR_GOOD = Limit(model="central", privacy_unit="user", epsilon=3.0, delta=9e-6)
    WEEKLY = Limit(model="central", privacy_unit="shop", epsilon=1.0, delta=4e-6, renew_days=7)

    def __init__(self) -> None:
        super().__init__()
        self.log = MemoryLog()
        self.store = StoreOn(self.log)
        self.store.create("reviews", self.FOR_GOOD, self.WEEKLY)
        self.states: list[str] = []
        self.costs: list[tuple[str, int, int]] = []
        self.weeks: list[int] = []
        self.leases: list[datetime] = []
        self.handles: list[BudgetRun] = []

    def _records(self) -> int:
        return len(self.log.lines["reviews"])

    def _week(self) -> int:
        return (self.log.time - NOON).days // 7

    def _spent(self, unit: str) -> tuple[int, int]:
        counted = [
            (epsilon, delta)
            for state, (of, epsilon, delta), week in zip(self.states, self.costs, self.weeks, strict=True)
            if of == unit and state != "void" and (unit == "user" or week == self._week())
        ]
        return sum(epsilon for epsilon, _ in counted), sum(delta for _, delta in counted)

    @rule(unit=st.sampled_from(["user", "shop"]), epsilon=st.integers(1, 900), delta=st.integers(0, 3))
    def reserve(self, unit: str, epsilon: int, delta: int) -> None:
        run = self.store.run("reviews", f"run-{len(self.handles)}-{self._records()}")
        ledger = user_ledger()
        ledger["totals"]["central"]["groups"] = [
            {"privacy_unit": unit, "epsilon": epsilon / 1000, "delta": delta / 10**6, "reason": None}
        ]
        most_epsilon, most_delta = {"user": (3000, 9), "shop": (1000, 4)}[unit]
        spent_epsilon, spent_delta = self._spent(unit)
        fits = spent_epsilon + epsilon <= most_epsilon and spent_delta + delta <= most_delta
        before = self._records()
        if not fits:
            with pytest.raises(BudgetExceededError, match=f"^central, {unit}: "):
                run.reserve(ledger)
            assert self._records() == before
            return
        run.reserve(ledger)
        self.states.append("reserved")
        self.costs.append((unit, epsilon, delta))
        self.weeks.append(self._week())
        self.leases.append(self.log.time)
        self.handles.append(run)
        run.reserve(ledger)
        assert self._records() == before + 1

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), step=st.sampled_from(["start", "commit"]))
    def go_on(self, data: st.DataObject, step: str) -> None:
        number = data.draw(st.integers(0, len(self.handles) - 1))
        state = self.states[number]
        silent = state == "committed" and step != "start"
        allowed = silent or (step, state) in {("start", "reserved"), ("commit", "running")}
        before = self._records()
        if allowed:
            getattr(self.handles[number], step)()
            assert self._records() == before + (not silent)
            if step == "commit":
                self.states[number] = "committed"
            elif not silent:
                self.states[number] = "running"
                self.leases[number] = self.log.time + DAY
        else:
            with pytest.raises(BudgetExceededError):
                getattr(self.handles[number], step)()
            assert self._records() == before

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), sign=st.booleans())
    def void(self, data: st.DataObject, sign: bool) -> None:
        number = data.draw(st.integers(0, len(self.handles) - 1))
        state = self.states[number]
        over = self.log.time >= self.leases[number]
        name = self.handles[number].run_id
        signature: dict[str, Any] = {"signed_by": "A. Person", "unseen": True} if sign else {}
        if state == "reserved" or (state == "running" and over and sign):
            self.store.void("reviews", name, **signature)
            self.states[number] = "void"
            return
        with pytest.raises(ArgumentError if state == "running" and over else BudgetExceededError):
            self.store.void("reviews", name, **signature)

    @rule(hours=st.integers(1, 60))
    def wait(self, hours: int) -> None:
        self.log.time += timedelta(hours=hours)

    @rule()
    def read_anew(self) -> None:
        self.store = StoreOn(self.log)

    @invariant()
    def the_account_is_what_the_model_says(self) -> None:
        account = StoreOn(self.log).account("reviews")
        assert [run.state for run in account.runs.values()] == self.states
        for limit, most in ((self.FOR_GOOD, (3000, 9)), (self.WEEKLY, (1000, 4))):
            spent = account.spent(limit, self.log.time)
            model = self._spent(limit.privacy_unit)
            assert (spent.nano_epsilon, spent.exact_delta * 10**6) == (model[0] * 10**6, model[1])
            assert model[0] <= most[0]
            assert model[1] <= most[1]


TestLaunches = Launches.TestCase
TestLaunches.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
