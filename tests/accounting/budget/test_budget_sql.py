"""The budget store in databases: what is made when, durability, rights, and every failure in plain words."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from refusals import as_plain_user, assert_clean, refusal
from sqlalchemy import Connection

from beam_dp.accounting.budget import sqlite as sqlite_module
from beam_dp.accounting.budget.missing import NoStoreError
from beam_dp.accounting.budget.sql import SCHEMA_VERSION, SqlLog
from beam_dp.errors import ArgumentError

SECRET = "projects/p/secrets/launcher-pw/versions/3"


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def filled(sqlite_url: str) -> Path:
    """A SQLite store with one record."""
    assert SqlLog(sqlite_url).append("reviews", 0, '"first"')
    return Path(sqlite_url.removeprefix("sqlite:///"))


def run_sql(url: str, statement: str) -> None:
    """Runs a statement beside the store, as an administrator would."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement)


# What exists when.


def test_no_call_but_the_first_append_makes_a_store(sql_url: str) -> None:
    log = SqlLog(sql_url)
    for act in (log.datasets, lambda: log.read("reviews"), lambda: log.append("reviews", 1, "{}")):
        refusal(act, kind=NoStoreError, match="beam-dp budget create makes one")
    log.now()
    if sql_url.startswith("sqlite"):
        assert not Path(sql_url.removeprefix("sqlite:///")).exists()
    else:
        with psycopg.connect(sql_url) as connection:
            assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    assert log.append("reviews", 0, "{}")


def test_reads_and_refused_appends_leave_the_file_as_it_is(filled: Path, sqlite_url: str) -> None:
    before = filled.read_bytes()
    log = SqlLog(sqlite_url)
    assert log.datasets() == ["reviews"]
    assert log.read("reviews") == ['"first"']
    assert not log.append("reviews", 0, '"other"')
    assert not log.append("reviews", 2, '"other"')
    assert filled.read_bytes() == before
    assert [path.name for path in filled.parent.iterdir()] == [filled.name]


def test_a_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = SqlLog("sqlite:///here #%41.db")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert log.append("reviews", 0, "{}")
    assert (tmp_path / "here #%41.db").exists()


@pytest.mark.parametrize("sequence", [0, 1])
def test_a_writer_that_dies_before_its_commit_wrote_nothing(sequence: int, sql_url: str) -> None:
    log = SqlLog(sql_url)
    log.append("tickets" if sequence == 0 else "reviews", 0, '"first"')

    def die() -> None:
        Connection.commit = lambda connection: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        log.append("reviews", sequence, '"never"')

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert log.read("reviews") == ['"first"'] * sequence
    assert log.append("reviews", sequence, '"second"')


def test_a_newer_layout_is_refused(sql_url: str) -> None:
    log = SqlLog(sql_url)
    log.append("reviews", 0, "{}")
    run_sql(sql_url, f"INSERT INTO beam_dp_schema VALUES ({SCHEMA_VERSION + 1})")
    for act in (log.datasets, lambda: log.read("reviews"), lambda: log.append("reviews", 1, "{}")):
        refusal(act, match="upgrade beam_dp")


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("DROP TABLE beam_dp_records", "beam_dp_records is missing: restore"),
        ("DELETE FROM beam_dp_schema", "version of its layout is missing"),
    ],
)
def test_half_a_store_is_refused(sql_url: str, statement: str, match: str) -> None:
    log = SqlLog(sql_url)
    log.append("reviews", 0, "{}")
    run_sql(sql_url, statement)
    refusal(lambda: log.read("reviews"), match=match)
    refusal(lambda: log.append("reviews", 1, "{}"), match=match)


# URLs.


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("budget.db", "must be a URL"),
        ("postgresql://user@host:port/d", "must be a URL"),
        ("mysql://host/d", "must be sqlite:///FILE or postgresql://"),
        ("sqlite://", "must be sqlite:///FILE"),
        ("sqlite://host/budget.db", "must be sqlite:///FILE"),
        ("sqlite:///", "memory would forget"),
        ("sqlite:///:memory:", "memory would forget"),
        ("sqlite:///budget.db?mode=ro", "with no query"),
        ("postgresql://user@host", "must name a database"),
        ("postgresql://user:hunter2@host/d", "must not hold a password"),
        ("postgresql://user:@host/d", "must not hold a password"),
        ("postgresql://user@host/d?password=hunter2", "must not hold a password"),
        ("postgresql://user@host/d?sslpassword=hunter2", "must not hold a password"),
        ("postgresql://user@host/d?password_secret=hunter2", "projects/P/secrets/S/versions/V"),
    ],
    ids=[f"url{number}" for number in range(14)],
)
def test_urls_that_can_never_be_right(url: str, match: str) -> None:
    refusal(lambda: SqlLog(url), "hunter2", kind=ArgumentError, match=match)


def test_a_log_shows_no_query() -> None:
    log = SqlLog(f"postgresql://user@host:5432/d?password_secret={SECRET}&sslmode=require")
    assert repr(log) == "SqlLog('postgresql://user@host:5432/d')"


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [
        ("psycopg", "postgresql://user@host/d", "beam_dp\\[postgres\\]"),
        ("google.cloud.secretmanager", f"postgresql://user@host/d?password_secret={SECRET}", "beam_dp\\[gcp\\]"),
    ],
    ids=["psycopg", "secretmanager"],
)
def test_a_missing_package_is_named_by_its_extra(
    module: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refusal(lambda: SqlLog(url).datasets(), SECRET, kind=ArgumentError, match=extra)


# SQLite.


def test_sqlite_commits_are_on_disk(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []

    class Watched(sqlite3.Connection):
        def close(self) -> None:
            levels.append(self.execute("PRAGMA synchronous").fetchone()[0])
            super().close()

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Watched, **kwargs))
    assert SqlLog(sqlite_url).append("reviews", 0, "{}")
    # 2 is FULL, 3 is EXTRA: FULL and the folder.
    assert levels == [3]


@pytest.mark.parametrize("hold", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_locked_file_is_waited_for_and_then_refused(
    hold: str, filled: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_SECONDS", 0.05)
    log = SqlLog(sqlite_url)
    with closing(sqlite3.connect(filled, isolation_level=None)) as other:
        other.execute(hold)
        refusal(lambda: log.append("reviews", 1, "{}"), match="locked by another process")
        if hold == "BEGIN EXCLUSIVE":
            refusal(lambda: log.read("reviews"), match="locked by another process")
        else:
            assert log.read("reviews") == ['"first"']
        other.execute("ROLLBACK")
    assert log.append("reviews", 1, "{}")


def test_a_reader_that_never_ends_holds_the_commit_up_and_nothing_is_written(
    filled: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_SECONDS", 0.05)
    log = SqlLog(sqlite_url)
    with closing(sqlite3.connect(filled, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM beam_dp_records").fetchone()
        refusal(lambda: log.append("reviews", 1, "{}"), match="locked by another process")
    assert log.read("reviews") == ['"first"']


def test_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("user 4711 likes differential privacy\n" * 200)
    log = SqlLog(f"sqlite:///{path}")
    for act in (log.datasets, lambda: log.read("reviews"), lambda: log.append("reviews", 0, "{}")):
        refusal(act, "4711", match="not a SQLite file")
    assert path.read_text().startswith("user 4711")


def test_a_damaged_file_is_refused(filled: Path, sqlite_url: str) -> None:
    log = SqlLog(sqlite_url)
    for number in range(1, 4):
        log.append("reviews", number, '"' + "x" * 20_000 + '"')
    data = filled.read_bytes()
    filled.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    refusal(lambda: log.read("reviews"), match="damaged: restore it from a copy")
    refusal(lambda: log.append("reviews", 4, "{}"), match="damaged: restore it from a copy")


def test_a_file_that_is_cut_off_is_refused(filled: Path, sqlite_url: str) -> None:
    log = SqlLog(sqlite_url)
    for number in range(1, 4):
        log.append("reviews", number, '"' + "x" * 20_000 + '"')
    filled.write_bytes(filled.read_bytes()[:8192])
    refusal(lambda: log.read("reviews"), match="damaged: restore it from a copy")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("nowhere/budget.db", "folder does not exist"),
        ("", "it is a folder"),
        ("file/budget.db", "folder does not exist"),
    ],
    ids=["no-folder", "folder", "file-as-folder"],
)
def test_paths_where_no_file_can_be(path: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = SqlLog(f"sqlite:///{tmp_path / path}")
    refusal(lambda: log.read("reviews"), match=match)
    refusal(lambda: log.append("reviews", 0, "{}"), match=match)


def test_a_read_only_file_can_be_read_but_not_written(open_folder: Path) -> None:
    path = open_folder / "budget.db"
    log = SqlLog(f"sqlite:///{path}")
    log.append("reviews", 0, '"first"')
    path.chmod(0o444)
    assert as_plain_user(lambda: log.read("reviews")) == ['"first"']
    refusal(lambda: as_plain_user(lambda: log.append("reviews", 1, "{}")), match="read-only: this user needs write")


def test_a_folder_without_write_rights(open_folder: Path) -> None:
    path = open_folder / "budget.db"
    log = SqlLog(f"sqlite:///{path}")
    log.append("reviews", 0, '"first"')
    path.chmod(0o666)
    open_folder.chmod(0o555)
    assert as_plain_user(lambda: log.read("reviews")) == ['"first"']
    match = "write rights on the file and on its folder"
    refusal(lambda: as_plain_user(lambda: log.append("reviews", 1, "{}")), match=match)
    new = SqlLog(f"sqlite:///{open_folder / 'new.db'}")
    refusal(lambda: as_plain_user(lambda: new.append("reviews", 0, "{}")), kind=NoStoreError, match="may not make")
    open_folder.chmod(0o700)
    if os.getuid() == 0:
        refusal(lambda: as_plain_user(lambda: log.read("reviews")), match="look into its folder")


def test_a_full_disk_is_named(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def connect_small(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        # As a disk with room for a few pages.
        connection.execute("PRAGMA max_page_count = 8")
        return connection

    log = SqlLog(sqlite_url)
    assert log.append("reviews", 0, "{}")
    monkeypatch.setattr(sqlite3, "connect", connect_small)
    refusal(lambda: log.append("reviews", 1, "x" * 100_000), match="disk is full")
    assert log.read("reviews") == ["{}"]


def test_what_a_refusal_may_hold() -> None:
    for text in ("FATAL: no", "two\nlines", "psycopg.OperationalError"):
        with pytest.raises(AssertionError):
            assert_clean(ArgumentError(text))
    with pytest.raises(AssertionError):
        assert_clean(ArgumentError("hunter2"), "hunter2")
