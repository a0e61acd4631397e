"""The budget store's records in a database: a SQLite file of this machine or a PostgreSQL server.

One table holds the lines, with the primary key (dataset, sequence): of two writers of one record number one alone
succeeds, so an append is a compare-and-swap. Another table holds the version of this layout. Nothing here updates or
deletes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Protocol

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError as UrlError
from sqlalchemy.exc import DBAPIError

from beam_dp.accounting.budget.missing import NoStoreError
from beam_dp.accounting.budget.postgres import PostgresServer
from beam_dp.accounting.budget.sqlite import SqliteFile
from beam_dp.errors import ArgumentError, BudgetStoreError

SCHEMA_VERSION = 1
_SQLITE = "sqlite:///"
_RIGHT_URLS = "sqlite:///FILE or postgresql://USER@HOST:PORT/DATABASE"

_METADATA = MetaData()
_RECORDS = Table(
    "beam_dp_records",
    _METADATA,
    Column("dataset", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("line", Text, nullable=False),
)
_SCHEMA = Table("beam_dp_schema", _METADATA, Column("version", Integer, primary_key=True, autoincrement=False))


class _Database(Protocol):
    """What differs between the databases."""

    shown: str  # the URL without anything secret
    clock: str | None  # SQL for the server's time, naive in UTC; None where that is this machine's

    def engine(self, *, create: bool) -> Engine: ...

    def begin(self, connection: Connection, *, write: bool) -> None: ...

    def lock_layout(self, connection: Connection) -> None: ...

    def lost_race(self, error: DBAPIError) -> bool: ...

    def failure(self, error: DBAPIError, *, connecting: bool) -> BudgetStoreError: ...


class SqlLog:
    """Records in a database, by its SQLAlchemy URL.

    ``sqlite:///budget.db`` (relative) or ``sqlite:////srv/budget.db`` (absolute): a file of this machine, made by the
    first append of a record number 0. It needs a file system with working locks, which network file systems often
    lack. Whoever writes needs write rights on the file and on its folder.

    ``postgresql://user@host:port/database``: a server, reached through psycopg. The password comes from libpq's own
    places (``PGPASSWORD``, ``PGPASSFILE``) or, with ``?password_secret=projects/P/secrets/S/versions/V``, from Secret
    Manager; never from the URL. Other query parameters are libpq's, e.g. ``sslmode=verify-full``. The first append of
    a record number 0 makes the tables, in the first schema of the role's search path, and needs CREATE there. From
    then on a role that launches pipelines needs no more than this, and should have no more, so that nobody who
    launches can rewrite what was spent::

        GRANT USAGE ON SCHEMA public TO launcher;
        GRANT SELECT ON beam_dp_schema TO launcher;
        GRANT SELECT, INSERT ON beam_dp_records TO launcher;

    Every call opens a connection of its own and closes it: an instance may be shared by threads, forked and pickled.

    Raises:
        ArgumentError: the URL is of another kind, lacks a part, or holds a password; psycopg or the client of Secret
            Manager is not installed.
        BudgetStoreError: as `beam_dp.accounting.budget.log.RecordLog` says.
    """

    def __init__(self, url: str) -> None:
        self._database = _database_of(url)

    def __repr__(self) -> str:
        return f"SqlLog({self._database.shown!r})"

    def datasets(self) -> list[str]:
        """The names of the data sets that have records, sorted."""
        with self._transaction() as connection:
            self._require_layout(connection)
            return sorted(connection.scalars(select(_RECORDS.c.dataset).distinct()))

    def read(self, dataset: str) -> list[str]:
        """The lines of a data set in order, of one moment; empty if there is no such data set."""
        lines = select(_RECORDS.c.line).where(_RECORDS.c.dataset == dataset).order_by(_RECORDS.c.sequence)
        with self._transaction() as connection:
            self._require_layout(connection)
            return list(connection.scalars(lines))

    def append(self, dataset: str, sequence: int, line: str) -> bool:
        """Writes ``line`` as record number ``sequence``; False if there is one already or the one before is missing.

        Record number 0 makes the store where there is none; no other call does.
        """
        count = select(func.count()).select_from(_RECORDS).where(_RECORDS.c.dataset == dataset)
        try:
            with self._transaction(write=True, create=sequence == 0) as connection:
                self._require_layout(connection, create=sequence == 0)
                if connection.scalar(count) != sequence:
                    return False
                connection.execute(insert(_RECORDS).values(dataset=dataset, sequence=sequence, line=line))
                return True
        except _RaceLostError:
            return False

    def now(self) -> datetime:
        """The time in UTC: a server's own, for a file this machine's."""
        if self._database.clock is None:
            return datetime.now(timezone.utc)
        with self._transaction() as connection:
            time: datetime = connection.exec_driver_sql(self._database.clock).scalar_one()
            return time.replace(tzinfo=timezone.utc)

    @contextmanager
    def _transaction(self, *, write: bool = False, create: bool = False) -> Iterator[Connection]:
        """A connection in a transaction, which is committed at the end of the block and rolled back by an error."""
        connecting = True
        try:
            with self._database.engine(create=create).connect() as connection:
                connecting = False
                self._database.begin(connection, write=write)
                yield connection
                connection.commit()
        except DBAPIError as error:
            if self._database.lost_race(error):
                raise _RaceLostError("another writer came first") from None
            raise self._database.failure(error, connecting=connecting) from None

    def _require_layout(self, connection: Connection, *, create: bool = False) -> None:
        """Checks that the tables are there and of this version; with ``create`` makes them where they are missing."""
        if create and not inspect(connection).has_table(_SCHEMA.name):
            self._database.lock_layout(connection)
            if not inspect(connection).has_table(_SCHEMA.name):
                _METADATA.create_all(connection, checkfirst=False)
                connection.execute(insert(_SCHEMA).values(version=SCHEMA_VERSION))
        store = f"budget store {self._database.shown}"
        if not inspect(connection).has_table(_SCHEMA.name):
            raise NoStoreError(f"{store}: this user sees no budget store in it: beam-dp budget create makes one")
        version = connection.scalar(select(func.max(_SCHEMA.c.version)))
        if version is None:
            raise BudgetStoreError(f"{store}: the version of its layout is missing: restore it from a copy")
        if version > SCHEMA_VERSION:
            raise BudgetStoreError(
                f"{store}: its layout has version {version}, newer than {SCHEMA_VERSION}: upgrade beam_dp"
            )


class _RaceLostError(BudgetStoreError):
    """Another writer was faster; nothing was written. Only `SqlLog.append` can meet it."""


def _database_of(url: str) -> _Database:
    if url.startswith(_SQLITE):
        # The rest as it stands: versions of SQLAlchemy differ in what they take for an escape or a query.
        return SqliteFile(url.removeprefix(_SQLITE))
    try:
        parsed = make_url(url)
    except (UrlError, ValueError):
        raise ArgumentError(f"budget_store must be a URL: {_RIGHT_URLS}") from None
    if parsed.drivername in {"postgresql", "postgresql+psycopg"}:
        return PostgresServer(parsed)
    raise ArgumentError(f"budget_store in a database must be {_RIGHT_URLS}")
