"""One launch: quotes, inputs, the token of its process, and what a worker gets of it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from forking import Forks
from memory_log import NOON, MemoryLog, StoreOn, user_charge, user_ledger, user_limit

from beam_dp.accounting import Ledger
from beam_dp.accounting.budget import BudgetRun, BudgetStore, Limit
from beam_dp.accounting.budget.inputs import normalised_prefixes
from beam_dp.errors import ArgumentError, BudgetExceededError, InputError
from beam_dp.guarantees import CentralGuarantee, MetricGuarantee

DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def store(log: MemoryLog) -> BudgetStore:
    store = StoreOn(log)
    store.create("reviews", user_limit(4.0, 1e-5))
    return store


def _text_ledger(max_words: int | None = 4) -> dict[str, Any]:
    ledger = Ledger()
    ledger.record(
        label="text",
        mechanism="MultivariateLaplace(epsilon=3.0)",
        guarantee=MetricGuarantee(basis="proved", epsilon=3.0, metric="euclidean", index_digest=DIGEST),
        max_applications=max_words,
        diameter=2.0,
        fingerprint="laplace",
    )
    ledger.record(
        label="counts",
        mechanism="Count()",
        guarantee=CentralGuarantee(basis="proved", epsilon=1.0, delta=1e-6, privacy_unit="user"),
        max_applications=1,
        fingerprint="count",
    )
    return ledger.to_dict()


def test_a_quote_says_what_would_be_left(store: BudgetStore) -> None:
    run = store.run("reviews", "r")
    quote = run.quote(user_ledger(1.0, 1e-6))
    assert quote.charges == (user_charge(1.0, 1e-6),)
    assert quote.lines == ("central, user: epsilon 1.0, delta 1e-06; 3.0 and 9e-06 would be left of 4.0 and 1e-05",)
    assert quote.refusal is None
    assert len(store.history("reviews")) == 2
    run.reserve(user_ledger(1.0, 1e-6))
    # What this process has reserved is not charged again.
    assert run.quote(user_ledger(1.0, 1e-6)) == quote
    assert store.run("reviews", "s").quote(user_ledger(1.0, 1e-6)).lines == (
        "central, user: epsilon 1.0, delta 1e-06; 2.0 and 8e-06 would be left of 4.0 and 1e-05",
    )


def test_a_quote_says_why_a_run_would_be_refused(store: BudgetStore) -> None:
    quote = store.run("reviews", "r").quote(user_ledger(5.0, 1e-6))
    assert quote.lines == ("central, user: epsilon 5.0, delta 1e-06; too much, 4.0 and 1e-05 is left of 4.0 and 1e-05",)
    assert quote.refusal == (
        "central, user: epsilon 5.0, delta 1e-06 is asked for, 4.0 and 1e-05 is left of 4.0 and 1e-05"
    )
    run = store.run("reviews", "s", pipeline="aggregate")
    run.reserve(user_ledger())
    run.start()
    assert run.quote(user_ledger()).refusal == "run s of aggregate is running already; another run_id is charged anew"


def test_a_quote_tells_all_units(store: BudgetStore) -> None:
    store.create("reviews", Limit(model="metric", privacy_unit="document", epsilon=100.0))
    assert store.run("reviews", "r").quote(_text_ledger()).lines == (
        "central, user: epsilon 1.0, delta 1e-06; 3.0 and 9e-06 would be left of 4.0 and 1e-05",
        "metric, word, euclidean on index 0123456789ab: epsilon 3.0; no limit of its own",
        "metric, document: epsilon 24.0; 76.0 would be left of 100.0",
    )
    quote = store.run("reviews", "r").quote(_text_ledger(max_words=None))
    why = "text declares no maximum of applications to one privacy unit"
    assert quote.lines[2] == f"metric, document: epsilon is not stated: {why}"
    assert quote.refusal == f"metric, document: what the run costs is not stated: {why}"


@pytest.mark.parametrize("ledger", [user_ledger(5.0), Ledger().to_dict()], ids=["too much", "empty"])
def test_a_refused_run_leaves_no_record(store: BudgetStore, ledger: dict[str, Any]) -> None:
    with pytest.raises(BudgetExceededError) as caught:
        store.run("reviews", "r").reserve(ledger)
    assert caught.value.exit_status == 3
    assert len(store.history("reviews")) == 2


@pytest.mark.parametrize("change", [{"totals": None}, {"plan_hash": None}, {"plan_hash": 7}], ids=str)
def test_what_is_no_ledger_is_not_reserved(store: BudgetStore, change: dict[str, Any]) -> None:
    for ask in (store.run("reviews", "r").reserve, store.run("reviews", "r").quote):
        with pytest.raises(InputError, match=r"^not a ledger: "):
            ask(user_ledger() | change)


def test_the_history_keeps_the_whole_ledger_once(store: BudgetStore) -> None:
    run = store.run("reviews", "r", pipeline="aggregate", inputs=["/data/a-secret.csv"])
    ledger = user_ledger()
    run.reserve(ledger)
    run.start()
    run.commit()
    run.published("a")
    records = store.history("reviews")[2:]
    assert [record.kind for record in records] == ["reserve", "start", "commit", "publish"]
    assert [record.body.get("ledger") for record in records] == [ledger, None, None, None]
    assert records[0].body["charges"] == [user_charge().to_json()]
    assert records[0].body["pipeline"] == "aggregate"
    assert records[0].body["plan_hash"] == ledger["plan_hash"]
    assert "a-secret" not in str(records)


def test_a_graph_may_be_constructed_twice_in_one_process(store: BudgetStore) -> None:
    first, second = store.run("reviews", "r"), store.run("reviews", "r")
    first.reserve(user_ledger())
    second.reserve(user_ledger())
    assert len(store.history("reviews")) == 3
    with pytest.raises(BudgetExceededError, match=r"^run r is reserved already; another run_id is charged anew$"):
        second.reserve(user_ledger(0.2))
    second.start()
    with pytest.raises(BudgetExceededError, match=r"^run r is running already: start needs one that is reserved$"):
        first.start()
    with pytest.raises(BudgetExceededError, match=r"^run r is running already; another run_id is charged anew$"):
        first.reserve(user_ledger())
    first.commit()
    second.commit()
    assert [record.kind for record in store.history("reviews")[2:]] == ["reserve", "start", "commit"]


@pytest.mark.parametrize("step", ["start", "commit"])
def test_steps_need_a_reservation(store: BudgetStore, step: str) -> None:
    with pytest.raises(BudgetExceededError, match=r"^data set reviews has no run r: reserve it first$"):
        getattr(store.run("reviews", "r"), step)()
    if step != "start":
        store.run("reviews", "r").reserve(user_ledger())
        with pytest.raises(BudgetExceededError, match=f"^run r is reserved already: {step} needs one that is running$"):
            getattr(store.run("reviews", "r"), step)()


def test_what_was_published_is_not_published_again(store: BudgetStore) -> None:
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    run.start()
    with pytest.raises(BudgetExceededError, match=r"^run r is running already: publish needs one that is committed$"):
        run.published("a")
    run.commit()
    run.require_unpublished("a")
    run.published("a")
    with pytest.raises(BudgetExceededError, match=r"^run r has published this output already"):
        run.require_unpublished("a")
    run.require_unpublished("b")


def test_a_reservation_that_says_less_than_the_plan_is_not_taken_for_it(store: BudgetStore) -> None:
    run, ledger = store.run("reviews", "r"), user_ledger(1.0)
    forged = json.loads(json.dumps(ledger))
    forged["totals"]["central"]["groups"][0]["epsilon"] = 1e-9
    run.reserve(forged)
    with pytest.raises(BudgetExceededError, match=r"^run r is reserved already"):
        run.reserve(ledger)


_FORKING = """
import os, sys
from memory_log import user_ledger
from beam_dp.accounting.budget import BudgetStore
from beam_dp.errors import BudgetExceededError

store = BudgetStore(sys.argv[1])
run = store.run("reviews", "r")
run.reserve(user_ledger())
sys.stdout.flush()
pid = os.fork()
if not pid:
    other = store.run("reviews", "r")
    for step in (lambda: other.reserve(user_ledger()), other.start):
        try:
            step()
            print("let in", flush=True)
        except BudgetExceededError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
run.start()
print("started")
"""


def test_a_fork_is_another_launch(forks: Forks, sqlite_url: str) -> None:
    BudgetStore(sqlite_url).create("reviews", user_limit())
    (process,) = forks.run(_FORKING, sqlite_url)
    assert process.printed.splitlines() == [
        "run r is reserved already; another run_id is charged anew",
        "run r is reserved already by another launch; another run_id is charged anew",
        "started",
    ]
    assert process.status == 0


_WORKER = """
import pickle, sys
from pathlib import Path

run = pickle.loads(Path(sys.argv[1]).read_bytes())
run.commit()
run.commit()
run.published("a")
run.published("a")
"""


def test_a_worker_in_another_process_commits_what_was_started_here(
    forks: Forks, sqlite_url: str, tmp_path: Path
) -> None:
    store = BudgetStore(sqlite_url)
    store.create("reviews", user_limit(), inputs=[str(tmp_path)])
    run = store.run("reviews", "r", inputs=[str(tmp_path / "a-file.csv")])
    run.reserve(user_ledger())
    run.start()
    (tmp_path / "run").write_bytes(pickle.dumps(run))
    assert b"a-file" not in (tmp_path / "run").read_bytes()
    (process,) = forks.run(_WORKER, str(tmp_path / "run"))
    assert process.status == 0
    assert store.account("reviews").runs["r"].state == "committed"
    again: BudgetRun = pickle.loads((tmp_path / "run").read_bytes())
    assert (again.dataset, again.run_id, again.store.url) == ("reviews", "r", sqlite_url)
    with pytest.raises(InputError, match=r"^data set reviews names its inputs"):
        again.quote(user_ledger())


_STARTING_WORKER = """
import pickle, sys
from pathlib import Path
from beam_dp.errors import BudgetExceededError

run = pickle.loads(Path(sys.argv[1]).read_bytes())
try:
    run.start()
    run.start()
    print("started", run.started_by_workers)
except BudgetExceededError as error:
    print(error)
"""


def test_workers_of_the_graph_that_comes_first_start_the_run(forks: Forks, sqlite_url: str, tmp_path: Path) -> None:
    store = BudgetStore(sqlite_url)
    store.create("reviews", user_limit())
    for name in ("graph", "twin"):
        run = store.run("reviews", "r", started_by_workers=True)
        run.reserve(user_ledger())
        (tmp_path / name).write_bytes(pickle.dumps(run))
    assert store.account("reviews").runs["r"].state == "reserved"
    workers = [forks.run(_STARTING_WORKER, str(tmp_path / name))[0] for name in ("graph", "graph", "twin", "graph")]
    assert [worker.printed.strip() for worker in workers] == [
        "started True",
        "started True",
        "run r is committed already: start needs one that is reserved",
        "started True",
    ]
    # Nobody knows when their output is seen, so the charge is final at once.
    assert [record.kind for record in store.history("reviews")[2:]] == ["reserve", "start", "commit"]


def test_a_worker_starts_nothing_that_is_not_charged(store: BudgetStore) -> None:
    run = store.run("reviews", "r", started_by_workers=True)
    with pytest.raises(BudgetExceededError, match=r"^data set reviews has no run r: reserve it first$"):
        run.start()
    run.reserve(user_ledger())
    store.void("reviews", "r")
    with pytest.raises(BudgetExceededError, match=r"^run r is void already: start needs one that is reserved$"):
        run.start()


def test_a_launch_shows_where_it_is_charged_and_no_token(sqlite_url: str) -> None:
    store = BudgetStore(sqlite_url)
    store.create("reviews", user_limit())
    run = store.run("reviews", "r")
    run.reserve(user_ledger())
    assert repr(run) == f"BudgetRun('reviews', 'r', {sqlite_url!r})"
    assert store.account("reviews").runs["r"].token not in repr(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "a/b"}, "dataset must be 1 to 64"),
        ({"run_id": ""}, "run_id must be 1 to 64"),
        ({"run_id": None}, "run_id must be a string"),
        ({"pipeline": "a\nb"}, "pipeline must be at most 200 printable characters"),
        ({"pipeline": "x" * 201}, "pipeline must be at most 200 printable characters"),
        ({"pipeline": None}, "pipeline must be at most 200 printable characters"),
        ({"inputs": "/data"}, "inputs must be a sequence of paths"),
        ({"store": "sqlite:///budget.db"}, "store must be a BudgetStore"),
    ],
    ids=str,
)
def test_what_a_launch_does_not_take(store: BudgetStore, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"store": store, "dataset": "reviews", "run_id": "r"} | changes
    with pytest.raises(ArgumentError, match=f"^{message}"):
        BudgetRun(**arguments)


def test_inputs_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = tmp_path.resolve()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [
        "real",
        "./x/../real",
        f"file://{tmp_path}/link",
        "link/",
        "~/real",
        "gs://Bucket/a//b/",
        "GS://Bucket/a//b",
    ]
    assert normalised_prefixes(given) == (f"{tmp_path}/real", "gs://Bucket/a//b")
    assert normalised_prefixes(["hdfs:///data", "gs://bucket", "/"]) == ("hdfs:///data", "gs://bucket", "/")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/a/../b", "inputs must be URIs of the form .* without '.' and '..'"),
        ("gs://bucket/..", "inputs must be URIs of the form .* without '.' and '..'"),
        ("gs://bucket/./a", "inputs must be URIs of the form .* without '.' and '..'"),
        ("gs://", "inputs must be URIs of the form"),
        ("://bucket/a", "inputs must be URIs of the form"),
        ("s3://[bucket/a", "inputs must be URIs of the form"),
        ("https://host/a?sig=hunter2", "inputs must not hold a user, password or query"),
        ("s3://key:hunter2@bucket/a", "inputs must not hold a user, password or query"),
        ("", "inputs must be paths that are not empty"),
        (" ", "inputs must be paths that are not empty"),
        (Path("/data"), "inputs must be paths that are not empty, not a value of type"),
        ("/data/\0", "inputs must be paths without a NUL"),
    ],
    ids=repr,
)
def test_paths_that_cannot_be_matched(store: BudgetStore, path: Any, message: str) -> None:
    store.create("texts", user_limit(), inputs=["/data"])
    for ask in (
        lambda: store.create("clicks", user_limit(), inputs=[path]),
        lambda: store.run("texts", "r", inputs=[path]).reserve(user_ledger()),
    ):
        with pytest.raises(ArgumentError, match=f"^{message}") as caught:
            ask()
        assert "hunter2" not in str(caught.value)
    assert store.datasets() == ["reviews", "texts"]


@pytest.mark.parametrize(
    ("prefix", "path", "inside"),
    [
        ("{tmp}/a", "{tmp}/a/x.csv", True),
        ("{tmp}/a/", "{tmp}/a/b/x.csv", True),
        ("{tmp}/a", "file://{tmp}/a/x.csv", True),
        ("{tmp}/a", "{tmp}/a/../a/x.csv", True),
        ("{tmp}/a/x.csv", "{tmp}/a/x.csv", True),
        ("{tmp}/a", "{tmp}/link/x.csv", True),
        ("{tmp}/link", "{tmp}/a/x.csv", True),
        ("{tmp}/a", "{tmp}/ab/x.csv", False),
        ("{tmp}/a", "{tmp}/a.csv", False),
        ("{tmp}/a", "{tmp}/a/../ab/x.csv", False),
        ("{tmp}/a", "{tmp}/a/out.csv", False),
        ("{tmp}/a", "{tmp}/x.csv", False),
        ("{tmp}/a", "gs://bucket{tmp}/a/x.csv", False),
        ("/", "gs://bucket/a", False),
        ("/", "{tmp}/x.csv", True),
        ("gs://bucket/a", "gs://bucket/a/x.csv", True),
        ("gs://bucket/a/", "gs://bucket/a", True),
        ("gs://bucket", "gs://bucket/a/x.csv", True),
        ("GS://bucket/a", "gs://bucket/a/x.csv", True),
        ("gs://bucket/a", "gs://bucket/ab/x.csv", False),
        ("gs://bucket/a", "gs://Bucket/a/x.csv", False),
        ("gs://bucket", "gs://bucket2/a/x.csv", False),
        ("gs://bucket/a", "s3://bucket/a/x.csv", False),
        ("gs://bucket/a", "/bucket/a/x.csv", False),
    ],
)
def test_files_belong_to_a_prefix_at_the_boundary_of_a_component(
    store: BudgetStore, tmp_path: Path, prefix: str, path: str, inside: bool
) -> None:
    for folder in ("a", "ab"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "out.csv").symlink_to(tmp_path / "ab" / "x.csv")
    store.create("texts", user_limit(), inputs=[prefix.format(tmp=tmp_path)])
    run = store.run("texts", "r", inputs=[path.format(tmp=tmp_path)])
    if inside:
        run.quote(user_ledger())
        run.reserve(user_ledger())
        assert "r" in store.account("texts").runs
        return
    for ask in (run.quote, run.reserve):
        with pytest.raises(InputError, match=r"^1 of the input files do not belong to data set texts, ") as caught:
            ask(user_ledger())
        assert "x.csv" not in str(caught.value)
    assert not store.account("texts").runs


def test_every_file_must_belong_to_one_of_the_prefixes(store: BudgetStore, tmp_path: Path) -> None:
    store.create("texts", user_limit(), inputs=["gs://bucket/a", "gs://bucket/b"])
    store.run("texts", "r", inputs=["gs://bucket/a/1", "gs://bucket/b/1"]).reserve(user_ledger())
    with pytest.raises(InputError, match=r"^2 of the input files .*: it is made of gs://bucket/a, gs://bucket/b$"):
        store.run("texts", "s", inputs=["gs://bucket/a/1", "gs://bucket/c/1", "/b"]).reserve(user_ledger())
    with pytest.raises(InputError, match=r"^data set texts names its inputs: tell the run which files it reads"):
        store.run("texts", "s").reserve(user_ledger())
    store.run("reviews", "s").reserve(user_ledger())
    assert store.account("reviews").spent(user_limit(), NOON) == user_charge().amount


def test_a_prefix_is_where_its_links_lead_now(store: BudgetStore, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    store.create("texts", user_limit(), inputs=[str(tmp_path / "old")])
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old").symlink_to(tmp_path / "new")
    store.run("texts", "r", inputs=[str(tmp_path / "old" / "x.csv")]).reserve(user_ledger())


def test_records_are_json_that_other_programs_can_check(store: BudgetStore, log: MemoryLog) -> None:
    store.run("reviews", "r").reserve(user_ledger())
    fields = json.loads(log.lines["reviews"][2])
    assert sorted(fields["body"]) == ["charges", "ledger", "pipeline", "plan_hash", "run_id", "token"]
    assert fields["body"]["token"] != str(os.getpid())
    assert len(fields["body"]["token"]) == 32
