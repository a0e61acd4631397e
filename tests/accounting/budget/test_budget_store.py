"""The store: its URLs, making data sets, giving back, and verifying."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from memory_log import DAY, NOON, MemoryLog, StoreOn, launched, user_charge, user_ledger, user_limit

from beam_dp.accounting.budget import BudgetStore, Limit
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
        "postgresql://user@host/budgets?oauth_client_secret=hunter2",
        "postgresql://user@host/budgets?scram_client_key=hunter2",
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
    for step in (run.start, run.commit, lambda: run.reserve(user_ledger())):
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
    with pytest.raises(BudgetExceededError, match=r"^run r is void already: commit needs one that is running$"):
        run.commit()


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


def test_verify_returns_heads_and_finds_them_again(store: BudgetStore) -> None:
    store.create("clicks", user_limit())
    first = store.verify()
    assert first == {name: store.account(name).head for name in ("clicks", "reviews")}
    launched(store, "r")
    assert store.verify("reviews", head=first["reviews"]) == {"reviews": store.account("reviews").head}
    assert store.verify()["clicks"] == first["clicks"]


def test_a_cut_tail_is_found_by_a_head_that_was_kept(store: BudgetStore, log: MemoryLog) -> None:
    launched(store, "r")
    head = store.verify("reviews")["reviews"]
    log.lines["reviews"] = log.lines["reviews"][:-1]
    assert StoreOn(log).account("reviews").runs["r"].state == "running"
    with pytest.raises(BudgetStoreError, match=r"^the history of data set reviews was cut .*records, 0 to 3, has the"):
        StoreOn(log).verify("reviews", head=head)
    log.lines.clear()
    with pytest.raises(BudgetStoreError, match=r"^the history of data set reviews is gone"):
        StoreOn(log).verify("reviews", head=head)


def test_a_store_that_has_read_a_history_finds_by_itself_that_it_was_cut(store: BudgetStore, log: MemoryLog) -> None:
    launched(store, "r")
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
    launched(store, "r")
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
