"""What tests of engines share: an input, and the same jobs on Beam's embedded runner to compare with."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import beam_dp.embeddings.broadcast
from pipelines import demo

sys.path.insert(0, str(Path(__file__).parent))
from engine_runs import Engine
from engine_servers import prism, worker_pool

FILES = 8


@pytest.fixture(scope="session", autouse=True)
def ended_in_order() -> Iterator[None]:
    """Ends what was started also when the tests are told to stop, as by a time limit."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped utterances, as they are and as rows in several files, and an index to be fetched."""
    folder = tmp_path_factory.mktemp("engines")
    texts = demo.UTTERANCES.read_text(encoding="utf-8").splitlines()
    shutil.copy(demo.UTTERANCES, folder / "utterances.txt")
    rows = [
        {"user": f"user {n}", "item": text.split()[0], "amount": len(text), "text": text}
        for n, text in enumerate(texts)
        if text.strip()
    ]
    for part in range(FILES):
        lines = [json.dumps(row) + "\n" for row in rows[part * len(rows) // FILES : (part + 1) * len(rows) // FILES]]
        (folder / f"in-{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copytree(Path(beam_dp.embeddings.broadcast.__file__).parent / "default", folder / "shelf" / "index")
    return folder


@pytest.fixture(scope="session")
def local(folder: Path) -> Engine:
    """Beam's embedded runner in the submitting process."""
    return Engine("local", folder, ("--engine=local",), ("--runner=FnApiRunner",))


@pytest.fixture(scope="session")
def pool(folder: Path) -> Iterator[str]:
    """The address of a worker pool."""
    with worker_pool(folder) as address:
        yield address


@pytest.fixture(scope="session")
def prism_binary() -> Path:
    binary = prism()
    if binary is None:
        pytest.skip("no Prism: BEAM_DP_PRISM names none, and there is no Go to build it with")
    return binary
