"""How the budget store uses a PostgreSQL server: signing in, time limits, and its failures in plain words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from beam_dp.errors import ArgumentError, BudgetStoreError

if TYPE_CHECKING:
    from google.cloud.secretmanager import SecretManagerServiceClient

CONNECT_SECONDS = 10
STATEMENT_SECONDS = 30
# For the password, with repetitions.
SECRET_SECONDS = 20.0
# A server that vanishes while it is waited for is noticed after half a minute, not after hours.
_LINK: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "application_name": "beam_dp",
}
_SECRET_NAME = re.compile(r"projects/[^/]+/secrets/[^/]+/versions/[^/]+")
# Any number will do as long as it stays: it names the lock under which the tables are made.
_LAYOUT_LOCK = int.from_bytes(b"beam_dp", "big")

# SQLSTATE, whole or the class (its first two characters), to what would be right.
_REASONS = {
    "42501": "the role lacks a right: it needs SELECT on beam_dp_schema, SELECT and INSERT on beam_dp_records, and "
    "CREATE on the schema for the first data set alone",
    "42P01": "the table beam_dp_records is missing: restore the database from a copy",
    "25006": "the server takes no writes: name the primary, not a standby",
    "57014": f"a statement took more than {STATEMENT_SECONDS} s: see what holds locks on its tables, then try again",
    "53": "the server has run out of disk, memory or connections: free some, then try again",
    "57": "the server is shutting down or starting: try again",
    "08": "the connection broke: try again",
}


class PostgresServer:
    """A database on a PostgreSQL server. Each call opens a connection and closes it: none survives a fork."""

    clock: str | None = "SELECT clock_timestamp() AT TIME ZONE 'UTC'"

    def __init__(self, url: URL) -> None:
        query = dict(url.query)
        if url.password is not None or {"password", "sslpassword"} & query.keys():
            raise ArgumentError(
                "budget_store must not hold a password: set PGPASSWORD or PGPASSFILE, or add ?password_secret="
                "projects/P/secrets/S/versions/V to the URL"
            )
        if not url.database:
            raise ArgumentError("budget_store must name a database: postgresql://user@host:5432/database")
        secret = query.pop("password_secret", None)
        if secret is not None and not (isinstance(secret, str) and _SECRET_NAME.fullmatch(secret)):
            raise ArgumentError("budget_store's password_secret must be projects/P/secrets/S/versions/V")
        try:
            import psycopg  # noqa: F401, PLC0415 - an optional package
        except ImportError:
            raise ArgumentError("budget_store postgresql:// needs psycopg: pip install 'beam_dp[postgres]'") from None
        self._secret = secret
        self._url = url.set(drivername="postgresql+psycopg", query=query)
        self.shown = url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)

    def engine(self, *, create: bool) -> Engine:
        """An engine that signs in with the password of this moment."""
        arguments = {name: value for name, value in _LINK.items() if name not in self._url.query}
        if self._secret is not None:
            arguments["password"] = _secret_text(self._secret, f"budget store {self.shown}")
        return create_engine(
            self._url,
            connect_args=arguments,
            poolclass=NullPool,
            hide_parameters=True,
            isolation_level="READ COMMITTED",
            use_native_hstore=False,
        )

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Opens a transaction with a time limit, and durable even where the server's default is not."""
        connection.exec_driver_sql(
            f"SELECT set_config('statement_timeout', '{STATEMENT_SECONDS}s', true), set_config('synchronous_commit', "
            "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
            "ELSE current_setting('synchronous_commit') END, true)"
        )

    def lock_layout(self, connection: Connection) -> None:
        """Waits for others that make the tables at this moment."""
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LAYOUT_LOCK})")

    def lost_race(self, error: DBAPIError) -> bool:
        """Whether another transaction came first: unique violation, serialization failure or deadlock."""
        return getattr(error.orig, "sqlstate", None) in {"23505", "40001", "40P01"}

    def failure(self, error: DBAPIError, *, connecting: bool) -> BudgetStoreError:
        """What went wrong with the server and what would be right."""
        state = getattr(error.orig, "sqlstate", None)
        if connecting:
            reason = self._why_refused(error)
        elif state is None:
            reason = _REASONS["08"]
        else:
            known = _REASONS.get(state) or _REASONS.get(state[:2])
            reason = known or f"the server refused a statement (SQLSTATE {state}): see its log"
        return BudgetStoreError(f"budget store {self.shown}: {reason}")

    def _why_refused(self, error: DBAPIError) -> str:
        import psycopg  # noqa: PLC0415 - an optional package, present where this is reached

        if isinstance(error.orig, psycopg.ProgrammingError):
            return "a query parameter of its URL is unknown to libpq or has a wrong value"
        # The server names its reason in its own language; what libpq had to do says enough.
        link = getattr(error.orig, "pgconn", None)
        if link is not None and link.needs_password:
            return "the server wants a password: set PGPASSWORD or PGPASSFILE, or add ?password_secret= to the URL"
        if link is not None and link.used_password:
            return "the server refused the sign-in: check the password, the user and that the database exists"
        return (
            f"no connection within {CONNECT_SECONDS} s: check host and port, that the database exists, and that the "
            "server lets this user in from this machine (pg_hba.conf, sslmode)"
        )


def secret_client() -> SecretManagerServiceClient:
    """A client of Secret Manager, with the application default credentials."""
    from google.cloud.secretmanager import SecretManagerServiceClient  # noqa: PLC0415 - an optional package

    # Over REST: a process that is forked after its parent has used gRPC may hang in it.
    return SecretManagerServiceClient(transport="rest")


def _secret_text(name: str, store: str) -> str:
    """The payload of a version of a secret, without the line break that often ends it."""
    try:
        import google.cloud.secretmanager  # noqa: F401, PLC0415 - optional packages, here and below
        from google.api_core import exceptions, retry  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415
        from requests import RequestException  # noqa: PLC0415
    except ImportError:
        raise ArgumentError(
            "budget_store's password_secret needs google-cloud-secret-manager: pip install 'beam_dp[gcp]'"
        ) from None
    try:
        with secret_client() as client:
            again = retry.Retry(predicate=retry.if_transient_error, timeout=SECRET_SECONDS)
            version = client.access_secret_version(name=name, retry=again, timeout=CONNECT_SECONDS)
        return version.payload.data.decode().rstrip("\r\n")
    except (exceptions.Forbidden, exceptions.Unauthorized, GoogleAuthError):
        reason = "this account may not read it: it needs credentials with roles/secretmanager.secretAccessor"
    except exceptions.ClientError:
        reason = "there is no such secret, or its version is disabled: name an enabled version"
    except UnicodeDecodeError:
        reason = "it is not text: store the password as UTF-8"
    except (exceptions.GoogleAPIError, RequestException):
        reason = "Secret Manager cannot be reached: check the network, then try again"
    raise BudgetStoreError(f"{store}: password_secret: {reason}")
