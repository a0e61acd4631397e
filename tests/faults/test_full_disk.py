"""Disks that are full: where shards are staged, where the index is cached, the ledger, the budget.

On a tmpfs, which is a real small disk, where this machine lets one be mounted; and everywhere on a file system of the
tests, or under a limit on the size of files.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_oracle import (
    DATASET,
    RUN_ID,
    TWO_PROCESSES,
    Place,
    check_charged_once,
    check_failed,
    check_nothing_published,
    ended,
    limit_files,
    limit_of,
)

import beam_dp.embeddings.broadcast
from beam_dp.accounting.budget import BudgetStore

pytestmark = pytest.mark.fault

INDEX = Path(beam_dp.embeddings.broadcast.__file__).parent / "default"
ADVICE = "no space left on device, while writing {place}; free some space"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size, as ``64k``; skips where that is refused."""
    mounted = contextlib.ExitStack()

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        except FileNotFoundError:
            pytest.skip("no tmpfs: there is no mount program")
        if done.returncode:
            pytest.skip(f"no tmpfs: mounting is refused ({done.stderr.strip()})")
        mounted.callback(subprocess.run, ["umount", "-l", str(folder)], check=True, timeout=20)
        return folder

    with mounted:
        yield mount


def fill(folder: Path) -> None:
    """Fills a disk."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            continue


def remaining(disk: Path) -> list[str]:
    return sorted(path.name for path in disk.iterdir() if path.name != "filler")


def test_a_real_full_disk_under_the_output(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    place, folder = Place(tmp_path), disk("16k")
    done = place.run(f"--output={folder}/out")
    check_failed(place, done, ADVICE.format(place=f"{folder}/out"))
    check_nothing_published(place)
    assert remaining(folder) == []
    check_charged_once(place, "running")


def test_a_real_full_disk_under_the_ledger(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    place, folder = Place(tmp_path, "aggregate"), disk("64k")
    fill(folder)
    done = place.run(f"--ledger={folder}/ledger.json")
    check_failed(place, done, ADVICE.format(place=f"{folder}/ledger.json.tmp-{RUN_ID}"))
    check_nothing_published(place)
    assert remaining(folder) == []
    check_charged_once(place, "committed")


def test_a_real_full_disk_under_the_budget(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    """It is not charged, so nothing runs; and the store is as it was."""
    place, folder = Place(tmp_path, "aggregate"), disk("128k")
    store = BudgetStore(f"sqlite:///{folder}/budget.db")
    store.create(DATASET, limit_of("aggregate"))
    fill(folder)
    done = place.run(f"--budget_store={store.url}")
    check_failed(place, done, f"budget store {store.url}: the disk is full: free some space, then try again")
    check_nothing_published(place)
    (folder / "filler").unlink()
    assert not store.account(DATASET).runs
    store.verify(DATASET)


def test_a_real_full_disk_under_the_cache(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    """Found out before the run is charged."""
    place, folder = Place(tmp_path), disk("64k")
    fill(folder)
    done = place.run(f"--index=full://{INDEX}", BEAM_DP_CACHE=str(folder))
    check_failed(place, done, f"no room for a copy of the index in {folder}", "free some space")
    check_nothing_published(place)
    assert place.state() is None


def test_a_full_disk_under_the_output_of_worker_processes(tmp_path: Path) -> None:
    place = Place(tmp_path)
    done = place.run(f"--output=full://{place.prefix}", *TWO_PROCESSES, FAULTS_ROOM="5000")
    check_failed(place, done, ADVICE.format(place=f"full://{place.prefix}"))
    check_nothing_published(place)
    check_charged_once(place, "running")


def test_a_full_disk_under_the_ledger(tmp_path: Path) -> None:
    place = Place(tmp_path, "aggregate")
    done = place.run(f"--ledger=full://{place.folder}/ledger.json", FAULTS_ROOM="100")
    check_failed(place, done, ADVICE.format(place=f"full://{place.folder}/ledger.json.tmp-{RUN_ID}"))
    check_nothing_published(place)
    check_charged_once(place, "committed")


def test_a_budget_that_can_be_written_no_more_when_the_run_is_to_be_committed(tmp_path: Path) -> None:
    place = Place(tmp_path, "aggregate")
    with place.started(f"--output=stalling://{place.prefix}") as process:
        place.stalled_workers()
        limit_files(process.pid, 1024)
        place.let_go()
        done = ended(process)
    check_failed(place, done, f"budget store {place.store.url}: ", "check the disk that holds it")
    check_nothing_published(place)
    check_charged_once(place, "running")


def test_a_cache_without_room_for_the_index(tmp_path: Path) -> None:
    place, cache = Place(tmp_path), tmp_path / "cache"
    done = place.run(f"--index=full://{INDEX}", file_bytes=1 << 20, BEAM_DP_CACHE=str(cache))
    check_failed(place, done, f"no room for a copy of the index in {cache}", "free some space")
    check_nothing_published(place)
    assert place.state() is None
    # Nothing half copied is left, that takes the room of something else.
    assert sum(path.stat().st_size for path in cache.rglob("*")) < 1 << 16
