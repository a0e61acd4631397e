"""What tests of benchmarks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipelines.main import Body, run_main


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[Body, Sequence[str]], str]]:
    """The last line of a benchmark that must refuse its flags; in this process, which benchmarks pin to a processor."""
    allowed = os.sched_getaffinity(0)

    def call(main: Body, flags: Sequence[str]) -> str:
        assert run_main(main, flags) == 2
        return capfd.readouterr().err.splitlines()[-1]

    yield call
    os.sched_setaffinity(0, allowed)
