"""What every refusal of a backend must be: one line of ours, with its status, and nothing of a driver or a secret."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from object_server import CANARY

from beam_dp.errors import BeamDpError, BudgetStoreError

NOBODY = 65534
_OF_DRIVERS = ("psycopg.", "sqlite3.", "sqlalche.me", "[SQL", "FATAL", "ERROR:", "google.", "Traceback", CANARY)


def assert_clean(error: BeamDpError, *secrets: str) -> str:
    """The message, which must be one line and hold no driver's text; nor do tracebacks show any."""
    message = str(error)
    assert message.isprintable()
    assert error.exit_status == 2
    shown = "".join(traceback.format_exception_only(error))
    assert not [text for text in (*_OF_DRIVERS, *secrets) if text in message or text in shown]
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return message


def refusal(act: Callable[[], object], *secrets: str, kind: type[BeamDpError] = BudgetStoreError, match: str) -> str:
    """The clean message of the refusal of exactly this kind that ``act`` meets."""
    with pytest.raises(kind, match=match) as caught:
        act()
    assert type(caught.value) is kind
    return assert_clean(caught.value, *secrets)


def as_plain_user(act: Callable[[], Any]) -> Any:
    """What ``act`` returns or raises in a forked process without root's rights, which no file mode stops."""
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            theirs.send(act())
        except BeamDpError as error:
            # Pickling would lose what a traceback shows.
            assert_clean(error)
            theirs.send(error)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    theirs.close()
    answer = ours.recv()
    process.join()
    if isinstance(answer, BeamDpError):
        raise answer
    return answer
