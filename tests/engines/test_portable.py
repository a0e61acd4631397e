"""The pipelines on Prism and on Beam's embedded job service, compared with Beam's embedded runner."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from engine_runs import (
    Engine,
    check_budget,
    check_certificate,
    check_items,
    check_noise_free,
    check_refusal,
    check_texts,
)
from engine_servers import prism_server

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["prism", "embed"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    """One of the two, with the workers in the submitting process."""
    if request.param == "prism":
        flags = ("--runner=PrismRunner", f"--prism_location={request.getfixturevalue('prism_binary')}")
    else:
        flags = ("--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK")
    return Engine(request.param, folder, flags, flags)


def test_without_noise_it_gives_what_the_embedded_runner_gives(engine: Engine, local: Engine) -> None:
    check_noise_free(engine, local)


def test_without_noise_prism_gives_it_with_a_worker_process(
    folder: Path, prism_binary: Path, pool: str, local: Engine
) -> None:
    with prism_server(folder, prism_binary) as address:
        external = ("--environment_type=EXTERNAL", f"--environment_config={pool}")
        engine = Engine("prism-pool", folder, (), ("--runner=PortableRunner", f"--job_endpoint={address}", *external))
        check_noise_free(engine, local)


def test_texts(engine: Engine, local: Engine) -> None:
    check_texts(engine, local, engine.folder / "utterances.txt")


def test_tables(engine: Engine, local: Engine) -> None:
    check_items(engine, local, engine.folder / "in-*.jsonl", "user", "item")


def test_a_certificate(engine: Engine, local: Engine) -> None:
    check_certificate(engine, local)


def test_a_budget(engine: Engine, local: Engine) -> None:
    check_budget(engine, local)


def test_a_row_that_a_worker_refuses(engine: Engine, local: Engine) -> None:
    check_refusal(engine, local)
