"""Runs the command lines: as a person does, as processes of their own, and within this process, which costs less."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.main import run_main

ROOT = Path(__file__).resolve().parents[2]


def run_module(module: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
        **options,
    )


def run_here(
    capfd: pytest.CaptureFixture[str], program: ModuleType, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """``program`` as `run_module` runs it, but in this process, which has imported everything already.

    What the start and the end of a process do is left to the tests that start one.
    """
    capfd.readouterr()
    status = run_main(program.main, arguments)
    return subprocess.CompletedProcess([program.__name__, *arguments], status, *capfd.readouterr())


def refusal(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """The last line on stderr of a command that must have failed with ``status`` and without a traceback."""
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert lines and lines[-1].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1]
