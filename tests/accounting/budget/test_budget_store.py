"""The store: making data sets, verifying, giving back, concurrent launches, lost answers, and deaths at every step."""

from __future__ import annotations

import json
import pickle
import signal
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from forking import Forks
from memory_log import DAY, NOON, LogAround, MemoryLog, StoreOn, user_charge, user_ledger, user_limit

from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.accounting.budget import store as store_module
from beam_dp.accounting.budget.history import UNSEEN
from beam_dp.accounting.budget.store import Draft
from beam_dp.errors import ArgumentError, BudgetExceededError, BudgetStoreError, InputError

DOCUMENTS = Limit(model="metric", privacy_unit="document", epsilon=100.0)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def store(log: MemoryLog) -> BudgetStore:
    store = StoreOn(log)
    store.create("reviews", user_limit())
    return store


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/budgets.db", "sqlite:////srv/budgets.db"),
        ("sqlite:////srv/a/../b u/x#1.db", "sqlite:////srv/b u/x#1.db"),
        ("SQLITE:////srv/budgets.db", "sqlite:////srv/budgets.db"),
        ("postgresql://user@host:5432/budgets?sslmode=verify-full", None),
        ("postgresql+psycopg://user@[::1]/budgets", None),
        ("postgresql://user%40project.iam@host/budgets?password_secret=projects/p/secrets/s/versions/1", None),
        ("gs://bucket_1/folder", None),
    ],
)
def test_urls(url: str, shown: str | None) -> None:
    store = BudgetStore(url)
    assert store.url == (shown or url)
    assert repr(store) == f"BudgetStore({shown or url!r})"
    assert store.is_local == url.lower().startswith("sqlite")
    assert pickle.loads(pickle.dumps(store)).url == store.url


def test_a_relative_file_is_the_same_one_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = BudgetStore("sqlite:///budgets.db")
    assert store.url == f"sqlite:///{tmp_path}/budgets.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BudgetStore("sqlite:///~/budgets.db").url == store.url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("budgets.db", "budget_store must be a URL: sqlite:///FILE"),
        ("/srv/budgets.db", "budget_store must be a URL: sqlite:///FILE"),
        ("hunter2@host://x", "budget_store must be a URL: sqlite:///FILE"),
        ("gs://bucket/\n", "budget_store must be a URL: sqlite:///FILE"),
        (None, "budget_store must be a URL, not None"),
        (Path("/srv/budgets.db"), "budget_store must be a URL, not a value of type"),
        ("s3://bucket/folder", "budget_store cannot be of the scheme s3: .*compare-and-swap"),
        ("file:///srv/budgets", "budget_store cannot be of the scheme file: .*compare-and-swap"),
        ("postgres://host/budgets", "budget_store cannot be of the scheme postgres: .* right are .*postgresql://"),
        ("mysql://host/budgets", "budget_store cannot be of the scheme mysql: "),
        ("sqlite://", "budget_store on SQLite must be a file"),
        ("sqlite:///", "budget_store on SQLite must be a file"),
        ("sqlite://budgets.db", "budget_store on SQLite must be a file"),
        ("sqlite:///:memory:", "budget_store on SQLite must be a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "budget_store on SQLite must be a file"),
        ("sqlite:////srv/budgets.db?mode=ro", "budget_store on SQLite must be a file"),
        ("gs://", "budget_store must be of the form gs://bucket"),
    ],
    ids=repr,
)
def test_urls_that_can_keep_no_budget(url: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        BudgetStore(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/budgets",
        "postgresql://user:@host/budgets",
        "postgresql://user:hunter2/x@host/budgets",
        "postgresql://user:22?hunter2@host/budgets",
        "postgresql://user:22/hunter2@host/budgets",
        "postgresql://user:22#hunter2@host/budgets",
        "postgresql://user:hunter2",
        "postgresql://user:hunter2[@host/budgets",
        "postgresql://user@host/budgets?password=hunter2",
        "postgresql://user@host/budgets?sslmode=require&PassWord=hunter2",
        "gs://user:hunter2@bucket/folder",
    ],
)
def test_passwords_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ArgumentError, match=r"^budget_store must not hold a password, .* use PGPASSWORD") as caught:
        BudgetStore(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_data_set_is_made_and_limits_are_added(log: MemoryLog) -> None:
    store = StoreOn(log)
    account = store.create("reviews", user_limit(), DOCUMENTS, inputs=["gs://bucket/reviews/"])
    assert (account.limits, account.inputs) == ((user_limit(), DOCUMENTS), ("gs://bucket/reviews",))
    local = Limit(model="local", privacy_unit="user", epsilon=2.0)
    assert store.create("reviews", local).limits == (user_limit(), DOCUMENTS, local)
    store.create("clicks", user_limit())
    assert store.datasets() == ["clicks", "reviews"]
    assert [record.kind for record in store.history("reviews")] == ["create", "limit", "limit", "limit"]
    assert store.account("clicks").inputs == ()
    assert store.now() == NOON


@pytest.mark.parametrize(
    ("limits", "more", "message"),
    [
        ([user_limit(2.0)], {}, "data set reviews has a limit for central, user already, and limits never change"),
        ([DOCUMENTS, user_limit(2.0)], {}, "data set reviews has a limit for central, user already"),
        ([DOCUMENTS, DOCUMENTS], {}, "limits must be of different models"),
        ([], {}, "limits must be one or more Limit"),
        ([1.0], {}, "limits must be one or more Limit"),
        ([DOCUMENTS], {"inputs": ["/data"]}, "inputs of data set reviews were set when it was made"),
        ([DOCUMENTS], {"inputs": "/data"}, "inputs must be a sequence of paths"),
    ],
)
def test_what_cannot_be_created_leaves_no_record(
    store: BudgetStore, limits: list[Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        store.create("reviews", *limits, **more)
    assert len(store.history("reviews")) == 2


def test_a_limit_below_what_was_spent_is_refused(store: BudgetStore) -> None:
    store.create("texts", DOCUMENTS)
    ledger = user_ledger()
    ledger["totals"] = {
        "central": None,
        "local": None,
        "metric": {
            "worst_case_per_document": 60.0,
            "delta_per_document": 0.0,
            "reason": None,
            "groups": [
                {"metric": "euclidean", "index_digest": "0" * 64, "epsilon_per_word": 3.0, "delta_per_word": 0.0}
                | {"reason": None}
            ],
        },
    }
    store.run("texts", "r").reserve(ledger)
    word = {"model": "metric", "privacy_unit": "word", "metric": "euclidean", "index_digest": "0" * 64}
    with pytest.raises(ArgumentError, match=r"epsilon 3.0 is spent already, more than the limit$"):
        store.create("texts", Limit(epsilon=2.0, **word))
    assert store.create("texts", Limit(epsilon=3.0, **word)).remaining(Limit(epsilon=3.0, **word), NOON).epsilon == 0.0


def test_there_must_be_a_data_set(store: BudgetStore) -> None:
    run = store.run("clicks", "r")
    asked: list[Callable[[], object]] = [
        lambda: store.account("clicks"),
        lambda: store.history("clicks"),
        lambda: store.verify("clicks"),
        lambda: store.void("clicks", "r"),
        lambda: run.reserve(user_ledger()),
        lambda: run.quote(user_ledger()),
        run.start,
        run.commit,
    ]
    for ask in asked:
        with pytest.raises(InputError, match=r"^there is no data set clicks .*'beam-dp budget create clicks'$"):
            ask()
    with pytest.raises(ArgumentError, match=r"^dataset must be "):
        store.account("a data set")


def test_the_time_of_records_never_goes_back(store: BudgetStore, log: MemoryLog) -> None:
    log.time = NOON - DAY
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    log.time = NOON + DAY
    run.start()
    assert [record.time for record in store.history("reviews")] == [NOON, NOON, NOON, NOON + DAY]
    assert store.account("reviews").runs["r"].at == NOON


def test_a_clock_of_another_zone_is_read_in_utc(store: BudgetStore, log: MemoryLog) -> None:
    log.time = NOON.astimezone(timezone(timedelta(hours=5)))
    store.run("reviews", "r").reserve(user_ledger())
    assert [record.at for record in store.history("reviews")] == ["2024-05-17T12:00:00.000000+00:00"] * 3


def test_what_no_reader_accepts_is_not_written(store: BudgetStore) -> None:
    with pytest.raises(BudgetStoreError, match=r"^the history of data set reviews is damaged at record 2: its kind is"):
        store.transact("reviews", lambda account, at: Draft("refund", {}))
    assert len(store.history("reviews")) == 2


def test_a_reserved_run_is_made_void_freely_and_can_do_nothing_more(store: BudgetStore) -> None:
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    account = store.void("reviews", "r")
    assert account.runs["r"].state == "void"
    assert account.spent(user_limit(), NOON).epsilon == 0.0
    body = store.history("reviews")[-1].body
    assert body == {"run_id": "r", "was": "reserved", "signed_by": None, "statement": None}
    for step in (run.start, run.renew, run.commit, lambda: run.reserve(user_ledger())):
        with pytest.raises(BudgetExceededError, match=r"^run r is void already"):
            step()
    with pytest.raises(BudgetExceededError, match=r"^run r is void already: only one that is reserved or running"):
        store.void("reviews", "r")


def test_a_running_run_is_given_back_by_a_person_after_its_lease(store: BudgetStore, log: MemoryLog) -> None:
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    run.start()
    with pytest.raises(BudgetExceededError, match="may still publish"):
        store.void("reviews", "r", signed_by="A. Person", unseen=True)
    log.time += 2 * DAY
    for signature in ({}, {"signed_by": "A. Person"}, {"unseen": True}):
        with pytest.raises(
            ArgumentError, match="signed_by must name the person who says with unseen=True that neither"
        ):
            store.void("reviews", "r", **signature)
    account = store.void("reviews", "r", signed_by="A. Person", unseen=True)
    assert account.spent(user_limit(), log.time).epsilon == 0.0
    body = store.history("reviews")[-1].body
    assert body == {"run_id": "r", "was": "running", "signed_by": "A. Person", "statement": UNSEEN}
    with pytest.raises(BudgetExceededError, match=r"^run r is void already: renew needs one that is running$"):
        run.renew()


def test_what_is_committed_is_never_given_back(store: BudgetStore, log: MemoryLog) -> None:
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    run.start()
    run.commit()
    log.time += 100 * DAY
    with pytest.raises(BudgetExceededError, match=r"^run r is committed already"):
        store.void("reviews", "r", signed_by="A. Person", unseen=True)


@pytest.mark.parametrize("signed_by", ["", " ", "a\nb", "x" * 201, 7], ids=repr)
def test_a_signature_is_a_name(store: BudgetStore, signed_by: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^signed_by must be the name of a person"):
        store.void("reviews", "r", signed_by=signed_by)
    with pytest.raises(ArgumentError, match=r"^run_id: data set reviews has no run r$"):
        store.void("reviews", "r", signed_by="A. Person")


def _launched(store: BudgetStore, run_id: str) -> None:
    run = store.run("reviews", run_id)
    run.reserve(user_ledger())
    run.start()
    run.commit()


def test_verify_returns_heads_and_finds_them_again(store: BudgetStore) -> None:
    store.create("clicks", user_limit())
    first = store.verify()
    assert first == {name: store.account(name).head for name in ("clicks", "reviews")}
    _launched(store, "r")
    assert store.verify("reviews", head=first["reviews"]) == {"reviews": store.account("reviews").head}
    assert store.verify()["clicks"] == first["clicks"]


def test_a_cut_tail_is_found_by_a_head_that_was_kept(store: BudgetStore, log: MemoryLog) -> None:
    _launched(store, "r")
    head = store.verify("reviews")["reviews"]
    log.lines["reviews"] = log.lines["reviews"][:-1]
    assert StoreOn(log).account("reviews").runs["r"].state == "running"
    with pytest.raises(BudgetStoreError, match=r"^the history of data set reviews was cut .*records, 0 to 3, has the"):
        StoreOn(log).verify("reviews", head=head)
    log.lines.clear()
    with pytest.raises(BudgetStoreError, match=r"^the history of data set reviews is gone"):
        StoreOn(log).verify("reviews", head=head)


def test_a_store_that_has_read_a_history_finds_by_itself_that_it_was_cut(store: BudgetStore, log: MemoryLog) -> None:
    _launched(store, "r")
    store.account("reviews")
    log.lines["reviews"] = log.lines["reviews"][:-1]
    with pytest.raises(BudgetStoreError, match="damaged at record 4: it was there and is gone or changed since"):
        store.run("reviews", "s").reserve(user_ledger())


@pytest.mark.parametrize(
    ("touch", "number"),
    [
        (lambda lines: [*lines[:1], lines[1].replace('"epsilon":1.0', '"epsilon":9.0'), *lines[2:]], 1),
        (lambda lines: [*lines[:2], *lines[3:]], 2),
        (lambda lines: [*lines[:2], lines[3], lines[2], lines[4]], 2),
        (lambda lines: [*lines[:4], "x"], 4),
    ],
    ids=["changed", "missing", "swapped", "garbage"],
)
def test_a_touched_history_is_refused_by_all_that_reads_it(
    store: BudgetStore, log: MemoryLog, touch: Callable[[list[str]], list[str]], number: int
) -> None:
    _launched(store, "r")
    before = list(log.lines["reviews"])
    log.lines["reviews"] = touch(before)
    assert log.lines["reviews"] != before
    other = StoreOn(log)
    run = other.run("reviews", "s")
    for ask in (
        lambda: other.account("reviews"),
        lambda: other.history("reviews"),
        other.verify,
        lambda: run.reserve(user_ledger()),
        lambda: other.void("reviews", "r"),
    ):
        with pytest.raises(BudgetStoreError, match=f"^the history of data set reviews is damaged at record {number}: "):
            ask()


def test_heads_are_hashes_and_go_with_a_data_set(store: BudgetStore) -> None:
    with pytest.raises(ArgumentError, match=r"^head goes with the name of a data set$"):
        store.verify(head="0" * 64)
    for head in ("0" * 63, "G" * 64, 7):
        with pytest.raises(ArgumentError, match=r"^head must be the 64 hexadecimal digits"):
            store.verify("reviews", head=head)  # type: ignore[arg-type]


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
        run.renew()
        run.commit()
        store.run("reviews", f"s{number}").reserve(user_ledger())
        store.void("reviews", f"s{number}")
    assert sorted(set(lost)) == ["commit", "create", "limit", "renew", "reserve", "start", "void"]
    assert len(lost) == 14
    kinds = [record.kind for record in store.history("reviews")]
    assert kinds == ["create", "limit"] + ["reserve", "start", "renew", "commit", "reserve", "void"] * 2


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
run.renew()
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
    _launched(store, "earlier")
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
        with pytest.raises(BudgetExceededError, match=f"^run r of dying is {expected} already: choose another run_id$"):
            again.reserve(user_ledger())
        with pytest.raises(BudgetExceededError):
            again.start()
    _launched(store, "later")


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
    _launched(store, "r")
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


def test_a_renewing_limit_is_renewed(log: MemoryLog) -> None:
    store = StoreOn(log)
    limit = user_limit(0.1, renew_days=7)
    store.create("reviews", limit)
    store.run("reviews", "r").reserve(user_ledger())
    log.time += 7 * DAY - timedelta(microseconds=1)
    with pytest.raises(BudgetExceededError, match=r"0.0 and 9e-07 is left of 0.1 and 1e-06"):
        store.run("reviews", "s").reserve(user_ledger())
    log.time += timedelta(microseconds=1)
    store.run("reviews", "s").reserve(user_ledger())
    assert store.account("reviews").spent(limit, log.time) == user_charge().amount
