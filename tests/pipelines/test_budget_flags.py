"""--budget_store, --dataset, --run_id and --dry_run of pipelines: what is charged, said, refused, and left alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "accounting" / "budget"))
from budgets import ledger_that_costs
from commands import ROOT, run_module
from forking import Forks
from refusals import as_plain_user
from servers import free_port, postgres_programs, running_postgres

from beam_dp import resolve_index
from beam_dp.accounting.budget import BudgetStore, Limit, sqlite
from beam_dp.accounting.budget.records import NO_RECORD, make_line
from beam_dp.accounting.budget.sql import SqlLog
from pipelines import aggregate, private_vocabulary, privatize_text
from pipelines.main import run_main

UTTERANCES = ROOT / "pipelines" / "data" / "utterances.txt"
SECRET = "zanzibar-4711"
USER = Limit(model="central", privacy_unit="user", epsilon=1.5, delta=1e-5)
WORD = Limit(model="metric", privacy_unit="word", epsilon=15, metric="euclidean", index_digest=resolve_index().digest)


class Job(NamedTuple):
    """A pipeline, its flags, and a limit under which it may run once."""

    module: ModuleType
    flags: tuple[str, ...]
    limit: Limit
    said: str


JOBS = {
    "privatize_text": Job(
        privatize_text,
        (f"--input={UTTERANCES}", "--epsilon=10"),
        WORD,
        f"  metric, word, euclidean on index {WORD.index_digest[:12]}: epsilon 10.0; 5.0 LEFT of 15.0",
    ),
    "aggregate": Job(
        aggregate,
        (
            *("--privacy_unit=user", "--by=item", "--metrics=count", "--max_partitions=1"),
            *("--max_rows_per_partition=1", "--epsilon=1", "--delta=1e-6"),
        ),
        USER,
        "  central, user: epsilon 1.0, delta 1e-06; 0.5 and 9e-06 LEFT of 1.5 and 1e-05",
    ),
    "private_vocabulary": Job(
        private_vocabulary,
        ("--privacy_unit=user", "--text_column=item", "--max_partitions=1", "--epsilon=1", "--delta=1e-6"),
        USER,
        "  central, user: epsilon 1.0, delta 1e-06; 0.5 and 9e-06 LEFT of 1.5 and 1e-05",
    ),
}


class Place:
    """A folder with an input file and a budget store that is not there yet."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/budget.db"
        self.store = BudgetStore(self.url)
        self._capfd = capfd
        rows = [f"{number},{'tea' if number % 3 else 'jam'}" for number in range(300)]
        (folder / "in.csv").write_text("\n".join(["user,item", *rows]) + "\n")

    def flags(self, name: str, *more: str, url: str | None = None) -> list[str]:
        """The command line of a job, on the data set ``events``; what ``more`` says counts."""
        given = [f"--input={self.folder}/in.csv", f"--output={self.folder}/out", *JOBS[name].flags]
        return [*given, f"--budget_store={url or self.url}", "--dataset=events", *more]

    def run(self, name: str, *more: str, url: str | None = None) -> tuple[int, str, str]:
        """Status, stdout and stderr of a job that runs in this process."""
        status = run_main(JOBS[name].module.main, self.flags(name, *more, url=url))
        return status, *self._capfd.readouterr()

    def refused(self, name: str, *more: str, status: int = 2, url: str | None = None) -> str:
        """The message of a job that must be refused and leave everything as it is."""
        before = self.files()
        found, out, err = self.run(name, *more, url=url)
        assert found == status, (out, err)
        assert err.startswith("error: ") and err.count("\n") == 1
        assert self.files() == before
        return err.removeprefix("error: ").rstrip("\n")

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capfd)


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_run_is_charged_and_says_what_is_left(place: Place, name: str) -> None:
    job = JOBS[name]
    place.store.create("events", job.limit)
    before = place.files()

    status, out, err = place.run(name, "--run_id=first", "--dry_run")
    assert (status, err, place.files()) == (0, "", before)
    assert out.splitlines()[-1] == "dry run: nothing was charged, read or written"
    assert "would be charged to data set events:" in out and job.said.replace("LEFT", "would be left") in out

    status, out, err = place.run(name, "--run_id=first")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == [
        "charged to data set events as run first:",
        job.said.replace("LEFT", "is left"),
    ]
    (run,) = place.store.account("events").runs.values()
    assert (run.run_id, run.state, run.pipeline) == ("first", "committed", name)
    manifest = json.loads((place.folder / "out.manifest.json").read_text())
    assert run.plan_hash == manifest["ledger"]["plan_hash"]

    again = (f"--output={place.folder}/again",)
    for more in ((), ("--dry_run",)):
        said = place.refused(name, *again, *more, status=3)
        assert "is asked for" in said and "left of" in said
        assert f"run first of {name} is committed already" in place.refused(
            name, *again, "--run_id=first", *more, status=3
        )


def test_a_refused_dry_run_shows_the_ledger_first(place: Place) -> None:
    place.store.create("events", USER)
    status, out, err = place.run("aggregate", "--epsilon=2", "--dry_run")
    assert (status, err.count("\n")) == (3, 1)
    assert "Aggregate" in out
    assert "  central, user: epsilon 2.0, delta 1e-06; too much, 1.5 and 1e-05 is left of 1.5 and 1e-05" in out


def test_a_dry_run_makes_no_store(place: Place) -> None:
    assert "no such store" in place.refused("aggregate", "--dry_run")
    assert "no such store" in place.refused("aggregate")


def test_without_a_budget_a_dry_run_says_what_it_did_before(place: Place) -> None:
    flags = [flag for flag in place.flags("aggregate", "--dry_run") if not flag.startswith(("--budget", "--dataset"))]
    status = run_main(aggregate.main, flags)
    out, err = place._capfd.readouterr()
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "dry run: nothing was read or written"
    assert "charged" not in out


def test_a_run_that_fails_stays_charged_and_says_so(place: Place) -> None:
    place.store.create("events", USER)
    (place.folder / "in.csv").write_text("user,item\n1,tea\n2\n")
    status, out, err = place.run("aggregate", "--run_id=first")
    assert status == 2 and "rejected rows: 1" in err
    assert out == (
        "run first was charged to data set events, since it may have drawn: 'beam-dp budget show' says what became of "
        "the charge\n"
    )
    assert [run.state for run in place.store.account("events").runs.values()] == ["running"]
    assert "0.5 and 9e-06 is left" in place.refused("aggregate", status=3)


def test_only_declared_files_are_read(place: Place) -> None:
    other = place.folder / "other"
    other.mkdir()
    place.store.create("events", USER, inputs=[str(other)])
    for more in ((), ("--dry_run",)):
        assert "1 of the input files do not belong to data set events" in place.refused("aggregate", *more)
    shutil.copy(place.folder / "in.csv", other / "in.csv")
    assert place.run("aggregate", f"--input={other}/*.csv", "--dry_run")[0] == 0
    assert "1 of the input files" in place.refused("aggregate", f"--input={place.folder}/*/../in.csv")


def test_no_flag_replaces_the_store(place: Place) -> None:
    place.store.create("events", USER)
    for flag in (f"--ledger={place.folder}/budget.db", f"--ledger={place.folder}/./budget.db"):
        assert "must not be budget.db: it is read" in place.refused("aggregate", flag, "--overwrite")


@pytest.mark.parametrize("flag", ["--output={0}/in.csv/out", "--ledger={0}/in.csv/ledger.json", "--output=/dev/null/x"])
def test_a_place_that_cannot_be_written_costs_nothing(place: Place, flag: str) -> None:
    place.store.create("events", USER)
    assert "not a directory, while writing" in place.refused("aggregate", flag.format(place.folder))
    assert not place.store.account("events").runs


def test_both_flags_or_none(place: Place) -> None:
    flags = [*JOBS["aggregate"].flags, f"--input={place.folder}/in.csv", f"--output={place.folder}/out"]
    for given, missing in ((f"--budget_store={place.url}", "--dataset"), ("--dataset=events", "--budget_store")):
        assert run_main(aggregate.main, [*flags, given]) == 2
        assert place._capfd.readouterr().err.startswith(f"error: {missing} is required where {given.split('=')[0]}")
    assert "dataset must be 1 to 64 letters" in place.refused("aggregate", "--dataset=../x")


def test_a_store_of_this_machine_is_not_for_workers_on_others(place: Place) -> None:
    far = ("--engine=dataflow", "--input=gs://bucket/in.csv", "--output=gs://bucket/out")
    assert place.refused("aggregate", *far).startswith("--budget_store is a file on this machine")


@pytest.mark.parametrize(
    "given",
    ["postgresql://u:SECRET@h/d", "postgresql://h/d?password=SECRET", "mysql://u:SECRET@h/d", "u:SECRET@h/d"],
)
def test_a_password_is_refused_and_echoed_nowhere(place: Place, given: str) -> None:
    for more in ((), ("--dry_run",)):
        before = place.files()
        status, out, err = place.run("aggregate", *more, url=given.replace("SECRET", SECRET))
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "budget_store" in err and SECRET not in err
        assert place.files() == before


def _not_a_database(place: Place) -> None:
    (place.folder / "budget.db").write_bytes(b"no database " * 100)


def _changed_record(place: Place) -> None:
    place.store.create("events", USER)
    SqlLog(place.url).append("events", 2, "{}")


def _newer_schema(place: Place) -> None:
    body = {"schema": 99, "inputs": []}
    at = place.store.now()
    SqlLog(place.url).append(
        "events", 0, make_line(dataset="events", sequence=0, at=at, kind="create", body=body, previous=NO_RECORD)
    )


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_not_a_database, "not a SQLite file"),
        (_changed_record, "damaged at record 2"),
        (_newer_schema, "upgrade beam_dp"),
    ],
    ids=["no database", "changed record", "newer schema"],
)
def test_a_store_that_cannot_be_trusted_starts_nothing(place: Place, break_it, said: str) -> None:
    break_it(place)
    for more in ((), ("--dry_run",)):
        assert said in place.refused("aggregate", *more)


def test_a_locked_store_starts_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.store.create("events", USER)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    with contextlib.closing(sqlite3.connect(place.folder / "budget.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert "locked by another process" in place.refused("aggregate")
    assert place.store.account("events").runs == {}


def test_an_unreachable_server_starts_nothing(place: Place) -> None:
    pytest.importorskip("psycopg", reason="the client of PostgreSQL, an extra of its own")
    url = f"postgresql://launcher@127.0.0.1:{free_port()}/budgets"
    assert f"budget store {url}: no connection" in place.refused("aggregate", url=url)


def test_a_read_only_store_starts_nothing_and_can_be_asked(capfd: pytest.CaptureFixture[str]) -> None:
    """In a folder that every user can reach, unlike ``tmp_path``, as one whom file modes stop."""
    folder = Path(tempfile.mkdtemp(prefix="beam_dp_budget_"))
    try:
        place = Place(folder, capfd)
        place.store.create("events", USER)
        (folder / "budget.db").chmod(0o444)
        folder.chmod(0o777)
        before = place.files()

        def run(*more: str) -> tuple[int, str]:
            with contextlib.redirect_stderr(io.StringIO()) as err:
                return run_main(aggregate.main, place.flags("aggregate", *more)), err.getvalue()

        assert run("--dry_run") == (0, "")  # also imports what the forks need
        status, err = as_plain_user(run)
        assert (status, err.count("\n")) == (2, 1)
        assert "it is read-only" in err
        assert as_plain_user(lambda: run("--dry_run")) == (0, "")
        assert place.files() == before
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """The URL of a new PostgreSQL database, and the password of its owner."""
    programs = postgres_programs()
    if programs is None:
        without = "no initdb in PATH or /usr/lib/postgresql (Debian: apt-get install postgresql)"
        if os.environ.get("BEAM_DP_REQUIRE_POSTGRES"):
            pytest.fail(without)
        pytest.skip(without)
    with running_postgres(programs) as server:
        yield server.url(), server.password


@pytest.fixture(params=["sqlite", "postgres"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/budget.db"
    url, password = request.getfixturevalue("servers")
    monkeypatch.setenv("PGPASSWORD", password)
    return str(url)


def test_of_launches_at_once_one_publishes(tmp_path: Path, shared_url: str) -> None:
    count = 3 if shared_url.startswith("sqlite") else 2
    BudgetStore(shared_url).create("tickets", WORD)
    (tmp_path / "in.txt").write_text("the order was late\n")
    command = [sys.executable, "-m", "pipelines.privatize_text", f"--input={tmp_path}/in.txt", "--epsilon=10"]
    budget = [f"--budget_store={shared_url}", "--dataset=tickets"]
    launches = [
        subprocess.Popen(
            [*command, *budget, f"--output={tmp_path}/out{number}", f"--run_id=r{number}"],
            cwd=ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]
    said = [process.communicate(timeout=280)[1] for process in launches]
    statuses = [process.returncode for process in launches]
    assert sorted(statuses) == [0] + [3] * (count - 1), said
    winner = statuses.index(0)
    assert all(text.startswith("error: metric, word, euclidean on index") for text in said if text != said[winner])
    assert [path.name for path in tmp_path.glob("out*.manifest.json")] == [f"out{winner}.manifest.json"]
    assert not list(tmp_path.glob("*.tmp-*"))
    account = BudgetStore(shared_url).account("tickets")
    assert [(run.run_id, run.state) for run in account.runs.values()] == [(f"r{winner}", "committed")]


_LAUNCH = """
import json, os, sys
from beam_dp.accounting.budget import BudgetStore
from beam_dp.errors import BeamDpError
url, ledger = sys.argv[1:]
run = BudgetStore(url).run("events", f"r{os.getpid()}")
try:
    run.reserve(json.loads(ledger))
    run.start()
    print(0)
except BeamDpError as error:
    print(error.exit_status)
"""


def test_of_twenty_processes_at_once_one_is_let_in(shared_url: str) -> None:
    store = BudgetStore(shared_url)
    store.create("events", USER)
    forks = Forks()
    ended = forks.run(_LAUNCH, shared_url, json.dumps(ledger_that_costs(1.0).to_dict()), count=20)
    forks.close()
    assert sorted(process.printed.strip() for process in ended) == ["0"] + ["3"] * 19
    assert [run.state for run in store.account("events").runs.values()] == ["running"]
    store.verify("events")


def test_as_a_process_of_its_own(place: Place) -> None:
    """With a worker process, the last stage of which commits the run."""
    place.store.create("events", USER)
    parallel = ("--engine=local-parallel", "--direct_num_workers=1")
    done = run_module("pipelines.aggregate", *place.flags("aggregate", "--run_id=first", *parallel))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert place.store.account("events").runs["first"].state == "committed"
