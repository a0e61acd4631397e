"""The command beam-dp: what it answers in each of its forms, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from budgets import launch, ledger_that_costs, let_time_pass
from commands import ROOT, run_module

from beam_dp import resolve_index
from beam_dp.accounting.budget import BudgetStore, Limit
from pipelines.accountant import COMMANDS, main
from pipelines.main import run_main

SECRET = "zanzibar-4711"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/budget.db"


@pytest.fixture
def store(url: str) -> BudgetStore:
    """A store with the data set reviews: central, user, epsilon 4 and delta 1e-5."""
    store = BudgetStore(url)
    store.create("reviews", Limit(model="central", privacy_unit="user", epsilon=4.0, delta=1e-5))
    return store


class Ask:
    """Runs the command in this process, on one store."""

    def __init__(self, capfd: pytest.CaptureFixture[str], url: str) -> None:
        self._capfd = capfd
        self._url = url

    def plainly(self, *arguments: str, status: int = 0) -> str:
        """What it says: all of stdout, or the only line of stderr where it must refuse."""
        found = run_main(main, arguments)
        out, err = self._capfd.readouterr()
        assert found == status, (out, err)
        if status == 0:
            assert err == ""
            return out
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1
        return err.removeprefix("error: ").rstrip("\n")

    def __call__(self, *arguments: str, status: int = 0) -> str:
        return self.plainly("budget", *arguments, f"--budget_store={self._url}", status=status)

    def json(self, *arguments: str) -> dict:
        return json.loads(self(*arguments, "--format=json"))

    def tsv(self, *arguments: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self(*arguments, "--format=tsv")), delimiter="\t"))


@pytest.fixture
def ask(capfd: pytest.CaptureFixture[str], url: str) -> Ask:
    return Ask(capfd, url)


def test_as_a_process_of_its_own(url: str) -> None:
    flags = ("--epsilon=4", "--delta=1e-5", f"--budget_store={url}", "--format=json")
    made = run_module("pipelines.accountant", "budget", "create", "reviews", *flags)
    assert (made.returncode, made.stderr) == (0, "")
    (dataset,) = json.loads(made.stdout)["datasets"]
    assert dataset["limits"][0]["left"] == {"epsilon": 4.0, "delta": 1e-5}


def test_what_was_committed_is_not_given_back(ask: Ask, store: BudgetStore) -> None:
    launch(store.url, "reviews", "r", 1.0)
    assert "committed" in ask("void", "reviews", "--run_id=r", status=3)
    assert "no data set views" in ask("show", "views", status=2)


def test_the_script_is_this_program() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    ((module, function),) = re.findall(r'"beam-dp=([\w.]+):(\w+)"', setup)
    script = f"import sys; from {module} import {function}; sys.argv[0] = 'beam-dp'; sys.exit({function}())"
    done = subprocess.run(
        [sys.executable, "-c", script, "budget", "show", "--budget_store=sqlite:///no/such/budget.db"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: budget store sqlite:////")


def test_a_further_create_adds_a_limit_and_never_changes_one(ask: Ask, store: BudgetStore) -> None:
    assert "limits never change" in ask("create", "reviews", "--epsilon=5", status=2)
    ask("create", "reviews", "--epsilon=2", "--model=local", "--renew_days=30")
    (dataset,) = ask.json("create", "reviews", "--epsilon=3", "--privacy_unit=household")["datasets"]
    assert [(limit["model"], limit["privacy_unit"], limit["epsilon"]) for limit in dataset["limits"]] == [
        ("central", "user", 4.0),
        ("local", "user", 2.0),
        ("central", "household", 3.0),
    ]
    assert [limit["renew_days"] for limit in dataset["limits"]] == [None, 30, None]
    assert store.account("reviews").records == 4


def test_metric_limits_of_words_are_of_one_index_and_those_of_documents_of_none(ask: Ask) -> None:
    index = resolve_index()
    ask("create", "texts", "--model=metric", "--privacy_unit=word", "--epsilon=20")
    ask("create", "texts", "--model=metric", "--privacy_unit=document", "--epsilon=9000")
    ask("create", "others", "--model=metric", f"--index={index.uri}", "--epsilon=20")
    ask("create", "others", "--model=metric", "--metric=mahalanobis(lambda=0.2)", "--epsilon=9")
    limits = [limit for dataset in ask.json("show")["datasets"] for limit in dataset["limits"]]
    found = [(limit["privacy_unit"], limit["metric"], limit["index_digest"]) for limit in limits]
    of_word = ("word", "euclidean", index.digest)
    own = ("word", "mahalanobis(lambda=0.2)", index.digest)
    assert found == [of_word, own, of_word, ("document", None, None)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--epsilon is required"),
        (["--epsilon=0"], "epsilon must be a finite number above 0, not zero"),
        (["--epsilon=much"], "--epsilon: invalid float value"),
        (["--epsilon=1", "--delta=1"], "delta must be a number in [0, 1)"),
        (["--epsilon=1", "--renew_days=0"], "renew_days must be at least 1"),
        (["--epsilon=1", "--model=metric"], "--privacy_unit is required with --model=metric: write word or document"),
        (["--epsilon=1", "--model=metric", "--privacy_unit=user"], "privacy_unit must be one of word, document"),
        (["--epsilon=1", "--metric=x"], "--metric goes with --model=metric --privacy_unit=word only"),
        (["--epsilon=1", "--index=x"], "--index goes with --model=metric --privacy_unit=word only"),
        (["--epsilon=1", "--model=metric", "--index=no/such"], "no index at"),
        (["--epsilon=1", "--model=global"], "--model: invalid choice"),
        (["--epsilom=1"], "unknown option --epsilom; did you mean --epsilon?"),
        (["--epsilon=1", "other"], "unexpected argument 'other'"),
        (["--epsilon=1", "--inputs=gs://b/../c"], "inputs must be URIs"),
    ],
)
def test_limits_that_cannot_be_right(tmp_path: Path, ask: Ask, flags: list[str], said: str) -> None:
    assert said in ask("create", "reviews", *flags, status=2)
    assert list(tmp_path.iterdir()) == []


def test_show_tells_committed_from_open_and_what_is_left(ask: Ask, store: BudgetStore) -> None:
    launch(store.url, "reviews", "monday", 1.0, 1e-6)
    launch(store.url, "reviews", "tuesday", 0.5, 2e-6, last="start")
    launch(store.url, "reviews", "wednesday", 0.25, last="reserve")
    (row,) = ask.tsv("show", "reviews")
    assert [row[name] for name in ("dataset", "model", "privacy_unit", "epsilon", "delta")] == [
        *("reviews", "central", "user", "4.0", "1e-05")
    ]
    spent = {"committed": (1.0, 1e-6), "open": (0.75, 2e-6), "left": (2.25, 7e-6)}
    assert {name: (float(row[f"{name}_epsilon"]), float(row[f"{name}_delta"])) for name in spent} == spent
    assert (row["open_runs"], row["head"]) == ("tuesday wednesday", store.account("reviews").head)
    (dataset,) = ask.json("show")["datasets"]
    (limit,) = dataset["limits"]
    assert {name: tuple(limit[name].values()) for name in spent} == spent
    assert [(run["run_id"], run["state"], run["lease_expired"]) for run in dataset["open_runs"]] == [
        ("tuesday", "running", False),
        ("wednesday", "reserved", False),
    ]
    text = ask("show", "reviews")
    assert "central, user: epsilon 4.0, delta 1e-05, for good" in text
    assert "left       epsilon 2.25, delta 7e-06" in text
    assert "run tuesday of example: running, reserved" in text and "run wednesday of example: reserved since" in text
    assert "monday" not in text
    assert f"head {dataset['head']} of {dataset['records']} records" in text


def test_a_renewed_limit_shows_its_period_alone(ask: Ask, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("create", "visits", "--epsilon=1", "--renew_days=7")
    launch(url, "visits", "first", 1.0)
    (limit,) = ask.json("show", "visits")["datasets"][0]["limits"]
    assert (limit["committed"]["epsilon"], limit["left"]["epsilon"]) == (1.0, 0.0)
    let_time_pass(monkeypatch, days=8)
    (renewed,) = ask.json("show", "visits")["datasets"][0]["limits"]
    assert (renewed["committed"]["epsilon"], renewed["left"]["epsilon"]) == (0.0, 1.0)
    assert limit["renews_at"] < renewed["renews_at"]
    launch(url, "visits", "second", 0.5, last="start")
    (renewed,) = ask.json("show", "visits")["datasets"][0]["limits"]
    assert (renewed["committed"]["epsilon"], renewed["open"]["epsilon"], renewed["left"]["epsilon"]) == (0.0, 0.5, 0.5)
    assert "every 7 days, next" in ask("show", "visits")


def test_history_has_a_line_for_each_record(ask: Ask, store: BudgetStore) -> None:
    launch(store.url, "reviews", "monday", 1.0, 1e-6)
    records = store.history("reviews")
    kinds = ["create", "limit", "reserve", "start", "commit"]
    assert [record.kind for record in records] == kinds
    text = ask("history", "reviews").splitlines()
    assert [line.split()[4].rstrip(":") for line in text] == kinds
    assert all("monday" in line for line in text[2:])
    assert "run monday of example: central, user: epsilon 1.0, delta 1e-06" in text[2]
    rows = ask.tsv("history", "reviews")
    assert [row["kind"] for row in rows] == kinds
    assert [row["state"] for row in rows] == ["", "", "reserved", "running", "committed"]
    assert [row["hash"] for row in rows] == [record.hash for record in records]
    assert rows[2]["what"] == "central, user: epsilon 1.0, delta 1e-06"
    document = ask.json("history", "reviews")
    assert document["dataset"] == "reviews"
    assert [record["at"] for record in document["records"]] == [record.at for record in records]
    assert document["records"][2]["charges"][0]["epsilon"] == 1.0
    # What would let somebody else act as the launch is its own.
    token = records[2].body["token"]
    assert not [form for form in ("text", "tsv", "json") if token in ask("history", "reviews", f"--format={form}")]


def test_what_never_started_is_given_back_without_a_signature(ask: Ask, store: BudgetStore) -> None:
    launch(store.url, "reviews", "r", 3.0, last="reserve")
    assert "left       epsilon 4.0" in ask("void", "reviews", "--run_id=r")
    assert "is void already" in ask("void", "reviews", "--run_id=r", status=3)
    assert ask("history", "reviews").splitlines()[-1].endswith("void  run r of example: given back, never started")


def test_what_was_started_is_given_back_by_a_person_alone_and_after_its_lease(
    ask: Ask, store: BudgetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(store.url, "reviews", "r", 3.0, last="start")
    signed = ("--signed_by=Ada Example", "--neither_output_nor_staging_was_seen")
    assert "may still publish" in ask("void", "reviews", "--run_id=r", *signed, status=3)
    let_time_pass(monkeypatch, days=2)
    assert "lease expired" in ask("show", "reviews")
    for part in ((), signed[:1], signed[1:]):
        assert "signed_by must name the person" in ask("void", "reviews", "--run_id=r", *part, status=2)
    assert ask.json("void", "reviews", "--run_id=r", *signed)["datasets"][0]["limits"][0]["left"]["epsilon"] == 4.0
    last = ask.tsv("history", "reviews")[-1]
    assert (last["state"], last["signed_by"]) == ("void", "Ada Example")
    assert "neither output nor staging of this run was seen by anyone" in last["what"]
    assert ask("history", "reviews").splitlines()[-1].endswith("signed by Ada Example")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["void", "reviews"], "--run_id is required"),
        (["void", "reviews", "--run_id=nobody"], "data set reviews has no run nobody"),
        (["void", "--run_id=r"], "the following arguments are required: NAME"),
        (["history", "views"], "no data set views"),
        (["verify", "--head=" + 64 * "0"], "head goes with the name of a data set"),
        (["show", "re views"], "dataset must be 1 to 64 letters"),
    ],
)
def test_questions_that_have_no_answer(ask: Ask, store: BudgetStore, arguments: list[str], said: str) -> None:
    assert said in ask(*arguments, status=2)
    assert store.account("reviews").records == 2


def test_verify_says_ok_with_head_and_number_of_records(ask: Ask, store: BudgetStore) -> None:
    ask("create", "others", "--epsilon=1")
    old = store.account("reviews").head
    launch(store.url, "reviews", "monday", 1.0)
    heads = {name: store.account(name).head for name in ("others", "reviews")}
    expected = [f"ok others {heads['others']} 2 records", f"ok reviews {heads['reviews']} 5 records"]
    assert ask("verify").splitlines() == expected
    assert ask("verify", "reviews", f"--head={old}").splitlines() == expected[1:]
    assert ask.tsv("verify")[1] == {"dataset": "reviews", "head": heads["reviews"], "records": "5"}
    assert ask.json("verify", "others")["datasets"][0]["records"] == 2


def test_verify_finds_what_was_changed_and_what_was_cut_off(ask: Ask, store: BudgetStore, tmp_path: Path) -> None:
    launch(store.url, "reviews", "monday", 4.0)
    head = store.account("reviews").head
    (column,) = _line_columns(tmp_path / "budget.db")
    with sqlite3.connect(tmp_path / "budget.db") as database:
        for trigger in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger[0]}")
        database.execute("DELETE FROM beam_dp_records WHERE sequence >= 2")
    assert "or is another one: none of its records" in ask("verify", "reviews", f"--head={head}", status=2)
    assert ask("verify", "reviews").startswith("ok reviews ")
    with sqlite3.connect(tmp_path / "budget.db") as database:
        database.execute(f"UPDATE beam_dp_records SET {column} = replace({column}, '4.0', '9.0') WHERE sequence = 1")
    for arguments in (("verify",), ("show",), ("history", "reviews")):
        assert "reviews is damaged at record 1" in ask(*arguments, status=2)


def _line_columns(path: Path) -> list[str]:
    """The columns of a store's table that hold lines of the history."""
    with sqlite3.connect(path) as database:
        cursor = database.execute("SELECT * FROM beam_dp_records LIMIT 1")
        (row,) = cursor.fetchall()
    return [name for (name, *_), value in zip(cursor.description, row, strict=True) if str(value).startswith("{")]


def test_a_store_without_data_sets_and_none_at_all(ask: Ask, tmp_path: Path) -> None:
    assert "there is no such store" in ask("show", status=2)
    assert "--budget_store is required" in ask.plainly("budget", "show", status=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", sorted(name.removeprefix("budget ") for name in COMMANDS if " " in name))
@pytest.mark.parametrize("place", ["user:SECRET@host/db", "host/db?password=SECRET", "host/db?sslpassword=SECRET"])
def test_a_password_in_the_url_is_refused_and_echoed_nowhere(ask: Ask, command: str, place: str) -> None:
    flags = {"create": ["--epsilon=1"], "void": ["--run_id=r"]}.get(command, [])
    url = f"--budget_store=postgresql://{place.replace('SECRET', SECRET)}"
    said = ask.plainly("budget", command, "reviews", *flags, url, status=2)
    assert "must not hold a password" in said
    assert SECRET not in said
    # Nor where it stands in the wrong place.
    bare = url.removeprefix("--budget_store=")
    for wrong in (["budget", command, "reviews", *flags, bare], ["budget", command, bare, *flags, url], [bare]):
        assert SECRET not in ask.plainly(*wrong, status=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is missing: write one of beam-dp budget create, "),
        (["--format=json"], "a command is missing"),
        (["budget"], "a command is missing: write one of beam-dp budget create, "),
        (["budget", "crate", "x"], "unknown command 'budget crate'; did you mean budget create?"),
        (["bugdet", "show"], "did you mean budget show?"),
        (["rapport", "x"], "did you mean report?"),
        (["zzz"], "unknown command 'zzz'; the commands are budget create"),
        (["budget", "show", "--fromat=tsv"], "unknown option --fromat; did you mean --format?"),
        (["report"], "the following arguments are required: LEDGER"),
        (["explain", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_commands_that_nobody_knows(ask: Ask, arguments: list[str], said: str) -> None:
    assert said in ask.plainly(*arguments, status=2)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(ask: Ask, name: str) -> None:
    out = ask.plainly(*name.split(), "--help")
    assert out.startswith(f"usage: beam-dp {name} ")
    assert COMMANDS[name].says in out and "--verbose" in out


def test_help_lists_the_commands(ask: Ask) -> None:
    out = ask.plainly("--help")
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.fixture
def ledgers(tmp_path: Path) -> list[str]:
    """The ledgers of two runs: a ledger file, and the manifest of an output."""
    (tmp_path / "first.json").write_text(ledger_that_costs(1.0).to_json())
    manifest = {"format_version": 1, "shards": [], "ledger": ledger_that_costs(0.5, 1e-6).to_dict()}
    (tmp_path / "second.manifest.json").write_text(json.dumps(manifest))
    return [f"{tmp_path}/first.json", f"{tmp_path}/second.manifest.json"]


def test_reports_add_ledgers_and_manifests_up(ask: Ask, tmp_path: Path, ledgers: list[str]) -> None:
    assert "1.5" in ask.plainly("report", *ledgers)
    (total,) = json.loads(ask.plainly("report", *ledgers, "--format=json"))["sums"]
    assert (total["epsilon"], total["delta"]) == (1.5, 1e-6)
    rows = list(csv.DictReader(io.StringIO(ask.plainly("report", *ledgers, "--format=tsv")), delimiter="\t"))
    assert [row["epsilon"] for row in rows] == ["1.0", "0.5", "1.5"]
    output = tmp_path / "page.html"
    assert ask.plainly("report", *ledgers, "--format=html", f"--output={output}") == f"published: {output}\n"
    page = output.read_text(encoding="utf-8")
    assert "<html" in page and "1.5" in page
    assert "already exists: page.html" in ask.plainly("report", *ledgers, f"--output={output}", status=2)
    said = ask.plainly("report", *ledgers, f"--output={ledgers[0]}", "--overwrite", status=2)
    assert "--output must not be one of the ledgers" in said
    assert output.read_text(encoding="utf-8") == page
    ask.plainly("report", *ledgers, f"--output={output}", "--overwrite")
    assert output.read_text(encoding="utf-8") == ask.plainly("report", *ledgers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "page.html", "second.manifest.json"]


def test_explain_says_it_in_words(ask: Ask, ledgers: list[str]) -> None:
    for path, epsilon in zip(ledgers, ("1", "0.5"), strict=True):
        said = ask.plainly("explain", path)
        assert "user" in said and epsilon in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read l.json: no such file or directory"),
        (f"{SECRET}", "l.json is neither a ledger nor a manifest: it is not JSON"),
        (f'["{SECRET}"]', "l.json: not a ledger"),
        (json.dumps({"shards": [], "ledger": None}), "l.json: not a ledger"),
        (ledger_that_costs(2.0).to_json().replace("2.0", "1.0"), "l.json: this ledger was changed"),
    ],
    ids=["no file", "no JSON", "no object", "no ledger", "changed"],
)
def test_what_is_no_ledger(ask: Ask, tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "l.json"
    if content is not None:
        path.write_text(content)
    for command in ("report", "explain"):
        found = ask.plainly(command, str(path), status=2)
        assert said in found and SECRET not in found


def test_a_report_that_cannot_be_written(ask: Ask, tmp_path: Path, ledgers: list[str]) -> None:
    assert "--output: no file system is installed for xyz://a/b" in ask.plainly(
        "report", *ledgers, "--output=xyz://a/b", status=2
    )
    (tmp_path / "file").touch()
    assert "while writing" in ask.plainly("report", *ledgers, f"--output={tmp_path}/file/page.html", status=2)
