"""Fixtures of the tests of terraform/, which `make terraform-test` runs."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from schema_server import serve
from workspace import NEWEST, OLDEST, Outcome, Workspace

# They need terraform or tofu, which `make terraform-test` finds or builds; `make test` does without both.
BINARY = os.environ.get("BEAM_DP_TERRAFORM", "")
collect_ignore_glob = [] if BINARY else ["test_*.py"]

SCHEMAS = Path(__file__).with_name("schemas")


def schema(name: str) -> dict[str, Any]:
    """A stored schema, by the name of its file."""
    loaded: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return loaded


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Workspace]]:
    """The module at each end of the range of providers; not to be changed."""
    beta = schema(f"google-beta-{OLDEST}")
    with ExitStack() as servers:
        yield {
            version: Workspace.of_module(
                tmp_path_factory.mktemp("terraform") / "module",
                BINARY,
                servers.enter_context(serve({"google": schema(f"google-{version}"), "google-beta": beta})),
            )
            for version in (OLDEST, NEWEST)
        }


@pytest.fixture(scope="session")
def outcomes(modules: dict[str, Workspace]) -> Callable[[str], Outcome]:
    """What all tests of the module say with a version of the providers; each is run once."""
    return functools.cache(lambda version: modules[version].test())


@pytest.fixture
def newest(modules: dict[str, Workspace]) -> Workspace:
    """The module with the newest providers; not to be changed."""
    return modules[NEWEST]


@pytest.fixture
def changeable(newest: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the module with the newest providers, to be changed."""
    return newest.copy(tmp_path / "module")
