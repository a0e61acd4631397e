"""The budget store on PostgreSQL: rights, durability, passwords, and every failure in plain words."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager import SecretManagerServiceClient
from refusals import refusal
from servers import Postgres, free_port, running_secrets

from beam_dp.accounting.budget import postgres as postgres_module
from beam_dp.accounting.budget.sql import SqlLog

SECRET = "projects/p/secrets/launcher-pw/versions/3"


def run_sql(url: str, statement: str) -> None:
    """Runs a statement beside the store, as its owner would."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def grants_of_docstring(role: str) -> list[str]:
    found = re.findall(r"GRANT .* TO launcher;", SqlLog.__doc__ or "")
    assert len(found) == 3
    return [statement.replace("launcher", role) for statement in found]


@pytest.fixture
def launcher(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """A database, a role with the rights that the docstring of SqlLog gives, and its password, also in PGPASSWORD."""
    database = postgres.make_database()
    role, password = postgres.make_role()
    assert SqlLog(postgres.url(database)).append("reviews", 0, '"first"')
    with postgres.connect(database) as connection:
        for statement in grants_of_docstring(role):
            connection.execute(statement)
    monkeypatch.setenv("PGPASSWORD", password)
    return database, role, password


def test_a_launcher_appends_and_rewrites_nothing(postgres: Postgres, launcher: tuple[str, str, str]) -> None:
    database, role, password = launcher
    log = SqlLog(postgres.url(database, role))
    assert log.append("reviews", 1, '"second"')
    assert log.append("tickets", 0, '"first"')
    assert not log.append("reviews", 1, '"other"')
    assert log.read("reviews") == ['"first"', '"second"']
    assert log.datasets() == ["reviews", "tickets"]
    with postgres.connect(database, role, password) as connection:
        for statement in (
            "UPDATE beam_dp_records SET line = ''",
            "DELETE FROM beam_dp_records",
            "TRUNCATE beam_dp_records",
            "DROP TABLE beam_dp_records",
            "ALTER TABLE beam_dp_records ADD COLUMN more text",
            "INSERT INTO beam_dp_schema VALUES (9)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_missing_rights_are_named(postgres: Postgres, launcher: tuple[str, str, str]) -> None:
    database, role, password = launcher
    log = SqlLog(postgres.url(database, role))
    with postgres.connect(database) as connection:
        connection.execute(f"REVOKE INSERT ON beam_dp_records FROM {role}")
    assert log.read("reviews") == ['"first"']
    refusal(lambda: log.append("reviews", 1, "{}"), password, match="the role lacks a right: it needs SELECT on")
    with postgres.connect(database) as connection:
        connection.execute(f"REVOKE SELECT ON beam_dp_schema FROM {role}")
    refusal(lambda: log.read("reviews"), password, match="the role lacks a right")


def test_a_role_that_may_not_make_tables(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.make_database()
    with postgres.connect(database) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    role, password = postgres.make_role()
    monkeypatch.setenv("PGPASSWORD", password)
    log = SqlLog(postgres.url(database, role))
    refusal(lambda: log.append("reviews", 0, "{}"), password, match="CREATE on the schema")


def test_a_refused_password(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = os.environ["PGPASSWORD"]
    monkeypatch.setenv("PGPASSWORD", "hunter2-is-wrong")
    log = SqlLog(postgres_url)
    for act in (log.now, log.datasets, lambda: log.append("reviews", 0, "{}")):
        refusal(act, "hunter2", right, match="refused the sign-in: check the password")


def test_no_password_at_all(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    refusal(SqlLog(postgres_url).datasets, match="wants a password: set PGPASSWORD or PGPASSFILE")


def test_a_password_file(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pgpass"
    path.write_text(f"*:*:*:*:{os.environ['PGPASSWORD']}\n")
    path.chmod(0o600)
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(path))
    assert SqlLog(postgres_url).append("reviews", 0, "{}")


def test_an_unknown_database(postgres: Postgres) -> None:
    refusal(SqlLog(postgres.url("nothing")).datasets, postgres.password, match="that the database exists")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_unreachable_server(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    log = SqlLog(f"postgresql://user@{host}:{free_port()}/d")
    refusal(log.datasets, "hunter2", match="no connection within 10 s: check host and port")


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        log = SqlLog(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/d?connect_timeout=2")
        refusal(log.datasets, match="no connection within")


def test_query_parameters_reach_libpq(postgres_url: str) -> None:
    # This server has no certificate: whoever requires one must not be let in without.
    refusal(SqlLog(f"{postgres_url}?sslmode=require").datasets, match="sslmode")
    refusal(SqlLog(f"{postgres_url}?colour=red").datasets, match="query parameter of its URL is unknown")
    assert SqlLog(f"{postgres_url}?sslmode=disable&application_name=launch").append("reviews", 0, "{}")


def test_a_server_that_takes_no_writes(postgres_url: str) -> None:
    log = SqlLog(postgres_url)
    log.append("reviews", 0, '"first"')
    run_sql(postgres_url, "ALTER ROLE current_user SET default_transaction_read_only = on")
    assert log.read("reviews") == ['"first"']
    refusal(lambda: log.append("reviews", 1, "{}"), match="takes no writes: name the primary")


def test_a_held_table_is_waited_for_and_then_refused(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SqlLog(postgres_url)
    log.append("reviews", 0, "{}")
    monkeypatch.setattr(postgres_module, "STATEMENT_SECONDS", 0.1)
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE beam_dp_records IN ACCESS EXCLUSIVE MODE")
        refusal(lambda: log.append("reviews", 1, "{}"), match="see what holds locks on its tables")
        refusal(lambda: log.read("reviews"), match="see what holds locks on its tables")


def on_insert(url: str, body: str) -> None:
    """Has the server run statements of PL/pgSQL before each record that is written from now on."""
    run_sql(url, f"CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN new; END $$")
    run_sql(url, "CREATE TRIGGER act BEFORE INSERT ON beam_dp_records FOR EACH ROW EXECUTE FUNCTION act()")


@pytest.mark.parametrize(("default", "level"), [("off", "on"), ("local", "local"), ("on", "on")])
def test_postgres_commits_are_on_disk_whatever_the_default(default: str, level: str, postgres_url: str) -> None:
    log = SqlLog(postgres_url)
    log.append("reviews", 0, "{}")
    run_sql(postgres_url, "CREATE TABLE seen (level text)")
    on_insert(postgres_url, "INSERT INTO seen VALUES (current_setting('synchronous_commit'))")
    run_sql(postgres_url, f"ALTER ROLE current_user SET synchronous_commit = {default}")
    assert log.append("reviews", 1, "{}")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT level FROM seen").fetchall() == [(level,)]


@pytest.mark.parametrize("state", ["23505", "40001", "40P01"])
def test_a_transaction_that_lost_is_to_be_tried_again(state: str, postgres_url: str) -> None:
    log = SqlLog(postgres_url)
    log.append("reviews", 0, "{}")
    on_insert(postgres_url, f"RAISE EXCEPTION USING ERRCODE = '{state}'")
    assert not log.append("reviews", 1, "{}")
    assert log.read("reviews") == ["{}"]


def test_an_unforeseen_state_is_named_by_its_code(postgres_url: str) -> None:
    log = SqlLog(postgres_url)
    log.append("reviews", 0, "{}")
    run_sql(postgres_url, "ALTER TABLE beam_dp_records ADD CHECK (line <> 'hunter2')")
    refusal(lambda: log.append("reviews", 1, "hunter2"), "hunter2", match="SQLSTATE 23514")


def test_a_connection_that_breaks_is_named(postgres_url: str) -> None:
    log = SqlLog(postgres_url)
    log.append("reviews", 0, "{}")
    on_insert(postgres_url, "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(9)")
    refusal(
        lambda: log.append("reviews", 1, "{}"), match="shutting down or starting: try again|connection broke: try again"
    )
    assert log.read("reviews") == ["{}"]


# Passwords from Secret Manager.


@pytest.fixture
def secret_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes | int]]:
    """Payloads of a server of secrets that Google's client speaks to; PGPASSWORD is not set."""
    payloads: dict[str, bytes | int] = {SECRET: f"{os.environ['PGPASSWORD']}\n".encode()}
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("NO_PROXY", "*")
    with running_secrets(payloads) as address:
        monkeypatch.setattr(
            postgres_module,
            "secret_client",
            lambda: SecretManagerServiceClient(
                transport="rest", credentials=AnonymousCredentials(), client_options={"api_endpoint": address}
            ),
        )
        yield payloads


def test_a_password_from_secret_manager(secret_server: dict[str, bytes | int], postgres_url: str) -> None:
    log = SqlLog(f"{postgres_url}?password_secret={SECRET}&sslmode=disable")
    assert log.append("reviews", 0, '"first"')
    assert log.read("reviews") == ['"first"']
    # A password that was changed is used from the next call on: none is kept.
    secret_server[SECRET] = b"hunter2"
    refusal(log.datasets, "hunter2", SECRET, match="refused the sign-in")


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (404, "no such secret"),
        (400, "its version is disabled"),
        (403, "secretmanager.secretAccessor"),
        (401, "secretmanager.secretAccessor"),
        (500, "cannot be reached"),
        (b"\xff\xfe", "not text"),
    ],
    ids=["404", "400", "403", "401", "500", "binary"],
)
def test_a_secret_that_cannot_be_read(
    payload: bytes | int,
    match: str,
    secret_server: dict[str, bytes | int],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_module, "SECRET_SECONDS", 0.5)
    secret_server[SECRET] = payload
    log = SqlLog(f"{postgres_url}?password_secret={SECRET}")
    refusal(log.datasets, SECRET, match=match)


def test_secret_manager_without_credentials_or_network(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SqlLog(f"{postgres_url}?password_secret={SECRET}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    refusal(log.datasets, SECRET, match="secretmanager.secretAccessor")
    monkeypatch.setattr(postgres_module, "SECRET_SECONDS", 0.5)
    monkeypatch.setattr(
        postgres_module,
        "secret_client",
        lambda: SecretManagerServiceClient(
            transport="rest",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": f"http://127.0.0.1:{free_port()}"},
        ),
    )
    refusal(log.datasets, SECRET, match="Secret Manager cannot be reached")
