"""Launches at once, lost answers, and deaths at every step."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forking import Forks
from memory_log import NOON, LogAround, MemoryLog, StoreOn, launched, user_charge, user_ledger, user_limit

from beam_dp.accounting.budget import BudgetStore
from beam_dp.accounting.budget import store as store_module
from beam_dp.errors import BudgetExceededError, BudgetStoreError


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def store(log: MemoryLog) -> BudgetStore:
    store = StoreOn(log)
    store.create("reviews", user_limit())
    return store


def _threads(jobs: list[Callable[[], str]]) -> list[str]:
    """What the jobs return, all begun at one moment."""
    barrier = threading.Barrier(len(jobs))

    def begin(job: Callable[[], str]) -> str:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(begin, jobs))


def _launch(store: BudgetStore, run_id: str) -> str:
    run = store.run("reviews", run_id)
    try:
        run.reserve(user_ledger())
        run.start()
    except BudgetExceededError:
        return "refused"
    return "started"


def test_of_fifty_launches_of_one_run_exactly_one_starts(log: MemoryLog, store: BudgetStore) -> None:
    outcomes = _threads([lambda: _launch(StoreOn(log), "r")] * 50)
    assert sorted(outcomes) == ["refused"] * 49 + ["started"]
    assert [record.kind for record in store.history("reviews")] == ["create", "limit", "reserve", "start"]


def test_of_fifty_launches_at_once_as_many_run_as_fit(log: MemoryLog, store: BudgetStore) -> None:
    outcomes = _threads([lambda number=n: _launch(StoreOn(log), f"r{number}") for n in range(50)])
    assert sorted(outcomes) == ["refused"] * 40 + ["started"] * 10
    account = store.account("reviews")
    assert account.remaining(user_limit(), NOON).nano_epsilon == 0
    assert len(account.runs) == 10


def test_launches_at_once_on_every_kind_of_store(store_url: str) -> None:
    store = BudgetStore(store_url)
    store.create("reviews", user_limit(0.2))
    head = store.verify()["reviews"]
    outcomes = _threads([lambda number=n: _launch(store, f"r{number // 2}") for n in range(6)])
    assert sorted(outcomes) == ["refused"] * 4 + ["started"] * 2
    account = BudgetStore(store_url).account("reviews")
    assert account.remaining(user_limit(0.2), store.now()).nano_epsilon == 0
    assert [run.state for run in account.runs.values()] == ["running"] * 2
    assert store.verify("reviews", head=head) == {"reviews": account.head}


def test_a_record_whose_answer_was_lost_is_known_again() -> None:
    lost: list[str] = []

    def around(append: Callable[[], bool], sequence: int, line: str) -> bool:
        written = append()
        kind = json.loads(line)["kind"]
        if not written or lost.count(kind) >= 2:
            return written
        lost.append(kind)
        if lost.count(kind) == 1:
            raise BudgetStoreError("the connection broke")
        return False

    log = LogAround(around)
    store = StoreOn(log)
    for number in range(2):
        store.create(["reviews", "clicks"][number], user_limit())
        run = store.run("reviews", f"r{number}")
        run.reserve(user_ledger())
        run.start()
        run.commit()
        run.published("a")
        store.run("reviews", f"s{number}").reserve(user_ledger())
        store.void("reviews", f"s{number}")
    assert sorted(set(lost)) == ["commit", "create", "limit", "publish", "reserve", "start", "void"]
    assert len(lost) == 14
    kinds = [record.kind for record in store.history("reviews")]
    assert kinds == ["create", "limit"] + ["reserve", "start", "commit", "publish", "reserve", "void"] * 2


def test_of_two_starts_in_one_process_at_one_moment_one_is_refused() -> None:
    """Equal in all that they say, so that only a nonce tells whose record it is that stands there."""
    started = threading.Barrier(2)

    def around(append: Callable[[], bool], sequence: int, line: str) -> bool:
        if json.loads(line)["kind"] == "start" and sequence == 3:
            started.wait()
        return append()

    log = LogAround(around)
    store = StoreOn(log)
    store.create("reviews", user_limit())
    store.run("reviews", "r").reserve(user_ledger())
    outcomes = _threads([lambda: _launch_reserved(StoreOn(log)), lambda: _launch_reserved(StoreOn(log))])
    assert sorted(outcomes) == ["refused", "started"]


def _launch_reserved(store: BudgetStore) -> str:
    try:
        store.run("reviews", "r").start()
    except BudgetExceededError:
        return "refused"
    return "started"


def test_an_append_that_failed_is_not_taken_for_done(log: MemoryLog) -> None:
    def around(append: Callable[[], bool], sequence: int, line: str) -> bool:
        if json.loads(line)["kind"] == "start":
            raise BudgetStoreError("the disk is full")
        return append()

    broken = LogAround(around)
    store = StoreOn(broken)
    store.create("reviews", user_limit())
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    with pytest.raises(BudgetStoreError, match=r"^the disk is full$"):
        run.start()
    assert store.account("reviews").runs["r"].state == "reserved"


def test_a_record_that_arrives_late_is_not_written_twice() -> None:
    """The first try is on its way still when the second is decided, and overtakes it."""
    late: list[Callable[[], bool]] = []

    def around(append: Callable[[], bool], sequence: int, line: str) -> bool:
        if json.loads(line)["kind"] != "reserve":
            return append()
        if not late:
            late.append(append)
            return False
        assert late[0]()
        return append()

    store = StoreOn(LogAround(around))
    store.create("reviews", user_limit())
    store.run("reviews", "r").reserve(user_ledger())
    assert [record.kind for record in store.history("reviews")] == ["create", "limit", "reserve"]
    assert store.account("reviews").spent(user_limit(), NOON) == user_charge().amount


def test_a_store_that_is_always_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE_SECONDS", 0.05)
    log = LogAround(lambda append, sequence, line: sequence < 2 and append())
    store = StoreOn(log)
    store.create("reviews", user_limit())
    with pytest.raises(BudgetStoreError, match=r"^the budget store is too busy: .* nothing was written, try again$"):
        store.run("reviews", "r").reserve(user_ledger())
    assert len(store.history("reviews")) == 2


def test_others_that_come_first_are_counted() -> None:
    """Between reading and appending another launch takes what was left."""
    others: list[str] = []

    def around(append: Callable[[], bool], sequence: int, line: str) -> bool:
        if json.loads(line)["kind"] == "reserve" and not others:
            others.append("s")
            StoreOn(log).run("reviews", "s").reserve(user_ledger(0.95))
        return append()

    log = LogAround(around)
    store = StoreOn(log)
    store.create("reviews", user_limit())
    with pytest.raises(BudgetExceededError, match=r"epsilon 0.1, delta 1e-07 is asked for, 0.05 and 9e-07 is left"):
        store.run("reviews", "r").reserve(user_ledger())
    assert list(store.account("reviews").runs) == ["s"]


def test_what_was_checked_once_is_compared_and_not_parsed_again(store: BudgetStore) -> None:
    before = store.account("reviews")
    assert store.account("reviews") is before
    store.run("reviews", "r").reserve(user_ledger())
    after = store.account("reviews")
    assert (list(before.runs), list(after.runs)) == ([], ["r"])
    assert after == StoreOn(store._given).account("reviews")  # type: ignore[attr-defined]


_DYING = """
import os, signal, sys
from memory_log import user_ledger
from beam_dp.accounting.budget import BudgetStore

url, kind, moment = sys.argv[1:]

class Dying(BudgetStore):
    def _make_log(self):
        log = super()._make_log()
        append = log.append
        def dying(dataset, sequence, line):
            mine = f'"kind":"{kind}"' in line
            if mine and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            written = append(dataset, sequence, line)
            if mine and moment == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return written
        log.append = dying
        return log

run = Dying(url).run("reviews", "r", pipeline="dying")
run.reserve(user_ledger())
print("reserved", flush=True)
run.start()
print("started", flush=True)
run.commit()
print("committed", flush=True)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["reserve", "start", "commit"])
def test_a_launch_that_is_killed_leaves_a_legal_account_and_nothing_uncharged(
    forks: Forks, sqlite_url: str, kind: str, moment: str
) -> None:
    store = BudgetStore(sqlite_url)
    store.create("reviews", user_limit())
    launched(store, "earlier")
    (child,) = forks.run(_DYING, sqlite_url, kind, moment)
    assert child.status == -signal.SIGKILL
    said = child.printed.split()
    states = {"reserve": ["absent", "reserved"], "start": ["reserved", "running"], "commit": ["running", "committed"]}
    expected = states[kind][moment == "after"]
    account = BudgetStore(sqlite_url).account("reviews")
    assert store.verify() == {"reviews": account.head}
    assert account.runs["earlier"].state == "committed"
    assert (account.runs["r"].state if "r" in account.runs else "absent") == expected
    charged = account.spent(user_limit(), account.at)
    once = user_charge().amount
    assert once is not None
    assert charged == (once if expected == "absent" else once.plus(once))
    # Whoever was told that a step is done finds it done.
    assert "reserved" not in said or expected != "absent"
    assert "started" not in said or expected in ("running", "committed")
    again = store.run("reviews", "r")
    if expected == "absent":
        again.reserve(user_ledger())
    else:
        with pytest.raises(
            BudgetExceededError, match=f"^run r of dying is {expected} already; another run_id is charged anew$"
        ):
            again.reserve(user_ledger())
        with pytest.raises(BudgetExceededError):
            again.start()
    launched(store, "later")


_LAUNCHING = """
import sys
from memory_log import user_ledger
from beam_dp.accounting.budget import BudgetStore
from beam_dp.errors import BudgetExceededError

store = BudgetStore(sys.argv[1])
for number in range(5):
    try:
        run = store.run("reviews", f"r{number}")
        run.reserve(user_ledger())
        run.start()
        print("started", number)
    except BudgetExceededError:
        print("refused", number)
"""


def test_processes_at_once_on_one_file(forks: Forks, sqlite_url: str) -> None:
    store = BudgetStore(sqlite_url)
    store.create("reviews", user_limit(0.3))
    ended = forks.run(_LAUNCHING, sqlite_url, count=3)
    assert [process.status for process in ended] == [0, 0, 0]
    said = [line for process in ended for line in process.printed.splitlines()]
    started = [line for line in said if line.startswith("started")]
    # Each id is reserved by one process, which alone may start it.
    assert len(started) == len(set(started)) == len(store.account("reviews").runs) == 3
    assert len(said) == 15


def test_a_file_from_which_a_record_was_deleted(sqlite_url: str) -> None:
    store = BudgetStore(sqlite_url)
    store.create("reviews", user_limit())
    launched(store, "r")
    head = store.verify("reviews")["reviews"]
    file = sqlite_url.removeprefix("sqlite:///")
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM beam_dp_records WHERE sequence = 2")
    with pytest.raises(BudgetStoreError, match="damaged at record 2: "):
        BudgetStore(sqlite_url).account("reviews")
    with sqlite3.connect(file) as connection:
        connection.execute("DELETE FROM beam_dp_records WHERE sequence > 1")
    assert BudgetStore(sqlite_url).account("reviews").records == 2
    with pytest.raises(BudgetStoreError, match="was cut"):
        BudgetStore(sqlite_url).verify("reviews", head=head)


def test_a_store_is_made_by_create_alone(sqlite_url: str) -> None:
    store = BudgetStore(sqlite_url)
    for ask in (
        lambda: store.account("reviews"),
        store.datasets,
        store.verify,
        lambda: store.run("reviews", "r").reserve(user_ledger()),
        lambda: store.void("reviews", "r"),
    ):
        with pytest.raises(BudgetStoreError, match="there is no such store: beam-dp budget create makes"):
            ask()
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()
    store.create("reviews", user_limit())
    assert store.datasets() == ["reviews"]
