"""Servers that the tests of the budget store start: PostgreSQL, objects in the manner of Cloud Storage, secrets."""

from __future__ import annotations

import base64
import itertools
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psycopg
from object_server import CANARY, ManyServer

_DEBIAN = Path("/usr/lib/postgresql")
# The durability of these databases ends with the test.
_SETTINGS = ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "unix_socket_directories=", "jit=off")


def postgres_programs() -> Path | None:
    """The folder of initdb and postgres, the newest where there are several; None if there is none."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    versions = [folder for folder in _DEBIAN.glob("*") if folder.name.isdecimal()]
    folders += [folder / "bin" for folder in sorted(versions, key=lambda folder: -int(folder.name))]
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@dataclass
class Postgres:
    """A running server. ``owner`` signs in with ``password`` and may do everything."""

    port: int
    owner: str = "owner"
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def connect(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> Any:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database,
            user=user or self.owner,
            password=password or self.password,
            autocommit=True,
            connect_timeout=5,
        )

    def make_database(self) -> str:
        """The name of a new database: some megabytes, for the few tests that need more than a schema."""
        name = f"budgets_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return name

    def make_role(self) -> tuple[str, str]:
        """The name and the password of a new role, with no rights but those of everyone."""
        name, password = f"role_{next(self._numbers)}", secrets.token_urlsafe(16)
        with self.connect() as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        return name, password

    def url(self, database: str = "postgres", user: str | None = None) -> str:
        return f"postgresql://{user or self.owner}@127.0.0.1:{self.port}/{database}"


@contextmanager
def running_postgres(programs: Path) -> Iterator[Postgres]:
    """A new server on a free port of this machine, gone at the end with all its data."""
    home = Path(tempfile.mkdtemp(prefix="beam_dp_postgres_"))
    server = Postgres(free_port())
    # The programs refuse to run as root.
    who: dict[str, Any] = {}
    if os.getuid() == 0:
        user = next(name for name in ("postgres", "nobody") if _is_user(name))
        who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        os.chown(home, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    try:
        initialise = [
            *(programs / "initdb", "-D", home / "data", "--username", server.owner, "--pwfile", home / "pw"),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
        ]
        (home / "pw").write_text(server.password)
        subprocess.run(initialise, check=True, capture_output=True, cwd=home, **who)
        with (home / "log").open("w") as log:
            settings = [part for setting in _SETTINGS for part in ("-c", setting)]
            command = [programs / "postgres", "-D", home / "data", "-h", "127.0.0.1", "-p", str(server.port), *settings]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home, **who)
        try:
            _wait_until_ready(server, process, home / "log")
            yield server
        finally:
            # At once: what it has not written yet goes with the folder.
            process.send_signal(signal.SIGQUIT)
            process.wait(60)
    finally:
        shutil.rmtree(home)


def _is_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


def _wait_until_ready(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    last_try = time.monotonic() + 60
    while True:
        try:
            server.connect().close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > last_try:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()}") from None
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running_objects() -> Iterator[str]:
    """The address of a server of objects, in a process of its own: tests fork, and threads do not survive that."""
    program = Path(__file__).with_name("object_server.py")
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate()


@contextmanager
def running_secrets(payloads: dict[str, bytes | int]) -> Iterator[str]:
    """The address of a server that answers AccessSecretVersion: a payload, or a status that it refuses with."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/v1/")
            payload = payloads.get(name.removesuffix(":access"), 404) if name.endswith(":access") else 501
            if isinstance(payload, int):
                code, answer = payload, {"error": {"code": payload, "message": CANARY}}
            else:
                code, answer = 200, {"name": name, "payload": {"data": base64.b64encode(payload).decode()}}
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the requests of a test are no news."""

    with ManyServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
