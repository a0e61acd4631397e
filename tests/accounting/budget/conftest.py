"""Fixtures of the budget store's tests: servers of this test process, and places for one test each."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from forking import Forks
from servers import Postgres, postgres_programs, running_objects, running_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    programs = postgres_programs()
    if programs is None:
        if os.environ.get("BEAM_DP_REQUIRE_POSTGRES"):
            pytest.fail("no initdb in PATH or /usr/lib/postgresql (Debian: apt-get install postgresql)")
        pytest.skip("no initdb in PATH or /usr/lib/postgresql (Debian: apt-get install postgresql)")
    with running_postgres(programs) as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """The server, whose owner this test signs in as by PGPASSWORD."""
    monkeypatch.setenv("PGPASSWORD", postgres_server.password)
    monkeypatch.delenv("PGPASSFILE", raising=False)
    return postgres_server


@pytest.fixture
def postgres_url(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place without a store: the schema of a new role, whose password is in PGPASSWORD."""
    role, password = postgres.make_role()
    with postgres.connect() as connection:
        connection.execute(f"CREATE SCHEMA AUTHORIZATION {role}")
    monkeypatch.setenv("PGPASSWORD", password)
    return postgres.url(user=role)


@pytest.fixture(scope="session")
def object_server() -> Iterator[str]:
    with running_objects() as address:
        yield address


@pytest.fixture
def objects(object_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's client speaks to the server of this test process."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", object_server)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def object_url(objects: None, tmp_path: Path) -> str:
    # As the folder, so the prefix: new for each test.
    return f"gs://budgets/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'budget.db'}"


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Makes processes that may die."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of this machine can reach, unlike ``tmp_path``."""
    folder = Path(tempfile.mkdtemp(prefix="beam_dp_open_"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgres", "object"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of a store that is not there yet, of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
