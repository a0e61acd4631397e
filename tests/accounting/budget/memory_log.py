"""A budget store in memory: the protocol of a backend under one lock, and a clock that a test sets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from beam_dp.accounting import Ledger
from beam_dp.accounting.budget import BudgetStore, Charge, Limit
from beam_dp.accounting.budget.log import RecordLog
from beam_dp.guarantees import CentralGuarantee

NOON = datetime(2024, 5, 17, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)


class MemoryLog:
    """Lines in a dict."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}
        self.time = NOON
        self._lock = threading.Lock()

    def datasets(self) -> list[str]:
        with self._lock:
            return sorted(self.lines)

    def read(self, dataset: str) -> list[str]:
        with self._lock:
            return list(self.lines.get(dataset, ()))

    def append(self, dataset: str, sequence: int, line: str) -> bool:
        with self._lock:
            lines = self.lines.get(dataset, [])
            if len(lines) != sequence:
                return False
            self.lines[dataset] = [*lines, line]
            return True

    def now(self) -> datetime:
        return self.time


class StoreOn(BudgetStore):
    """A budget store on a log that is given."""

    def __init__(self, log: RecordLog) -> None:
        self._given = log
        super().__init__("sqlite:////never/opened.db")

    def _make_log(self) -> RecordLog:
        return self._given


class LogAround(MemoryLog):
    """A log whose appends a test comes between: ``around(append, sequence, line)`` is called for each."""

    def __init__(self, around: Callable[[Callable[[], bool], int, str], bool]) -> None:
        super().__init__()
        self.around = around

    def append(self, dataset: str, sequence: int, line: str) -> bool:
        return self.around(lambda: super(LogAround, self).append(dataset, sequence, line), sequence, line)


def user_limit(epsilon: float = 1.0, delta: float = 1e-6, **more: Any) -> Limit:
    return Limit(model="central", privacy_unit="user", epsilon=epsilon, delta=delta, **more)


def user_charge(epsilon: float = 0.1, delta: float = 1e-7) -> Charge:
    return Charge(model="central", privacy_unit="user", epsilon=epsilon, delta=delta)


def user_ledger(epsilon: float = 0.1, delta: float = 1e-7, label: str = "aggregate") -> dict[str, Any]:
    """The ledger of a plan with one central mechanism."""
    ledger = Ledger()
    ledger.record(
        label=label,
        mechanism="Count()",
        guarantee=CentralGuarantee(basis="proved", epsilon=epsilon, delta=delta, privacy_unit="user"),
        max_applications=1,
        fingerprint="count",
    )
    return ledger.to_dict()


def launched(store: BudgetStore, run_id: str) -> None:
    run = store.run("reviews", run_id)
    run.reserve(user_ledger())
    run.start()
    run.commit()
