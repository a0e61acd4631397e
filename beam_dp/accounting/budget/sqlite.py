"""How the budget store uses a SQLite file: opening, locking, durability, and its failures in plain words."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from beam_dp.accounting.budget.missing import NoStoreError
from beam_dp.errors import ArgumentError, BudgetStoreError

# How long a call waits for others that hold the file.
BUSY_SECONDS = 10.0

# SQLite's own texts, which are fixed English: its error codes reach Python from 3.11 on only.
_REASONS = {
    "locked": f"it was locked by another process for {BUSY_SECONDS:.0f} s: end what holds it, then try again",
    "file is not a database": "it is not a SQLite file: name another file, or restore it from a copy",
    "malformed": "it is damaged: restore it from a copy, then run beam-dp budget verify",
    "no such table": "the table beam_dp_records is missing: restore the file from a copy",
    "readonly": "it is read-only: this user needs write rights on the file and on its folder",
    "disk is full": "the disk is full: free some space, then try again",
}


class SqliteFile:
    """A SQLite file. Each call opens it anew and closes it: no handle survives a fork."""

    clock: str | None = None

    def __init__(self, path: str) -> None:
        if not path or path == ":memory:" or "?" in path:
            raise ArgumentError("budget_store sqlite:///FILE must name a file, with no query: memory would forget")
        self._path = Path(path).absolute()
        self.shown = f"sqlite:///{self._path}"

    def engine(self, *, create: bool) -> Engine:
        """An engine that opens the file; one that is missing is made with ``create`` alone."""
        address = f"{self._path.as_uri()}?mode={'rwc' if create else 'rw'}"

        def open_file() -> sqlite3.Connection:
            # Without an isolation level the module starts no transactions of its own.
            return sqlite3.connect(
                address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )

        return create_engine("sqlite://", creator=open_file, poolclass=NullPool, hide_parameters=True)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Opens a transaction; a writer holds the file from its first read on."""
        # EXTRA is FULL that also syncs the folder after the journal is gone: a commit outlives a power cut.
        connection.exec_driver_sql("PRAGMA synchronous=EXTRA")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def lock_layout(self, connection: Connection) -> None:
        """Nothing to do: BEGIN IMMEDIATE has locked the whole file."""

    def lost_race(self, error: DBAPIError) -> bool:
        """Never: writers come one after the other."""
        return False

    def failure(self, error: DBAPIError, *, connecting: bool) -> BudgetStoreError:
        """What went wrong with the file and what would be right."""
        store, text = f"budget store {self.shown}", str(error.orig)
        for part, reason in _REASONS.items():
            if part in text:
                return BudgetStoreError(f"{store}: {reason}")
        if "unable to open" in text:
            return self._unopened(store)
        return BudgetStoreError(f"{store}: reading or writing it failed: check the disk that holds it")

    def _unopened(self, store: str) -> BudgetStoreError:
        reason = "it cannot be opened: this user needs read and write rights on the file and on its folder"
        try:
            if self._path.is_dir():
                reason = "it is a folder: name a file"
            elif not self._path.parent.is_dir():
                reason = "its folder does not exist: make the folder first"
            elif not self._path.exists():
                may = os.access(self._path.parent, os.W_OK)
                advice = "beam-dp budget create makes one" if may else "and this user may not make one in its folder"
                return NoStoreError(f"{store}: there is no such store: {advice}")
        except OSError:
            reason = "this user may not look into its folder"
        return BudgetStoreError(f"{store}: {reason}")
