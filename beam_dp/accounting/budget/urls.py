"""Which URLs name a budget store, and that none of them holds a secret."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, urlsplit

from beam_dp.errors import ArgumentError, describe_kind

_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg", "gs")
_RIGHT = "sqlite:///FILE, postgresql://USER@HOST/DATABASE or gs://BUCKET/FOLDER"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(r"([^:@]*@)?([^:@\[\]]*|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")
# The parameters of libpq that hold no secret, by name: it gains new ones that do.
_PARAMETERS = (
    *("password_secret", "application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname"),
    *("gssencmode", "gsslib", "host", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle"),
    *("keepalives_interval", "krbsrvname", "load_balance_hosts", "passfile", "port", "require_auth", "requirepeer"),
    *("service", "sslcert", "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey", "sslmode"),
    *("sslnegotiation", "sslrootcert", "sslsni", "ssl_max_protocol_version", "ssl_min_protocol_version"),
    *("target_session_attrs", "tcp_user_timeout", "user"),
)


def require_url(url: object) -> str:
    """``url`` if it names a store that can keep a budget, with its local path made absolute.

    Raises:
        ArgumentError: it does not, or it holds a password. The message does not show it.
    """
    if not isinstance(url, str):
        raise ArgumentError(f"budget_store must be a URL, not {describe_kind(url)}; right are {_RIGHT}")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.fullmatch(scheme) or _CONTROL.search(url):
        raise ArgumentError(f"budget_store must be a URL: {_RIGHT}")
    if scheme not in _SCHEMES:
        raise ArgumentError(
            f"budget_store cannot be of the scheme {scheme}: a budget needs a store that appends only to what was read "
            f"(compare-and-swap); right are {_RIGHT}"
        )
    if scheme == "sqlite":
        return f"sqlite:///{_sqlite_file(rest)}"
    if _may_hold_password(f"{scheme}://{rest}"):
        raise ArgumentError(
            "budget_store must not hold a password, which would be shown and logged: use PGPASSWORD, ~/.pgpass or "
            "?password_secret=projects/P/secrets/S/versions/V; write an @ that does not end the user name as %40, and "
            "parameters that libpq has and that hold no secret"
        )
    return f"{scheme}://{rest}"


def _may_hold_password(url: str) -> bool:
    """Whether a URL has a password, or is so odd that a part of it may be one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    names = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    return (
        not _AUTHORITY.fullmatch(parts.netloc)
        or "@" in parts.path + parts.query + parts.fragment
        or not names.issubset(_PARAMETERS)
    )


def _sqlite_file(rest: str) -> str:
    """The absolute path of the file that ``sqlite://`` + ``rest`` names."""
    path = rest.removeprefix("/")
    if path == rest or not path or path.startswith((":memory:", "file:")) or "?" in path:
        raise ArgumentError("budget_store on SQLite must be a file and nothing else: sqlite:///FILE")
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - keeps the text of the path otherwise
