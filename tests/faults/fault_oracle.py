"""What every fault must leave behind, whatever it was, and the runs that are looked at.

The oracle: the exit status and the last line; an output that is whole, or none; the budget charged once; no canary in
anything that the run has written; and an end in time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from beam_dp import resolve_index
from beam_dp.accounting.budget import BudgetStore, Limit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
from commands import ROOT, refusal
from table_files import CANARY, holds_canary, read_output, write_table

HERE = Path(__file__).resolve().parent
END_SECONDS = 120
TWO_PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
DATASET, RUN_ID = "events", "first"
FILES, ROWS_A_FILE = 12, 60
ROWS = FILES * ROWS_A_FILE
_POLL_SECONDS = 0.05
_MORE_SECONDS = 20
_WORDS = ["the", "weather", "in", "paris", "is", "fine", "and", "the", "trains", "are", "late", "today"]
_FLAGS = {
    "privatize_text": ("--epsilon=10",),
    "aggregate": (
        *("--privacy_unit=user", "--by=item", "--metrics=count,sum:amount:0:10", "--max_partitions=2"),
        *("--max_rows_per_partition=2", "--epsilon=1", "--delta=1e-6"),
    ),
}


def limit_of(module: str) -> Limit:
    """Enough for one run of a pipeline, and not for two."""
    if module == "aggregate":
        return Limit(model="central", privacy_unit="user", epsilon=1.5, delta=1.5e-6)
    digest = resolve_index().digest
    return Limit(model="metric", privacy_unit="word", epsilon=15, metric="euclidean", index_digest=digest)


class Place:
    """A folder with an input, the canary in its texts, ids and values, and a budget for one run.

    Attributes:
        folder: of all that a run may write.
        prefix: of its output.
        stalled: where a worker that stalls says so; beside `folder`.
    """

    def __init__(self, folder: Path, module: str = "privatize_text") -> None:
        self.module = module
        self.folder = folder / "run"
        self.folder.mkdir()
        self.prefix = self.folder / "out"
        self.stalled = folder / "stalled"
        self.store = BudgetStore(f"sqlite:///{self.folder}/budget.db")
        self.store.create(DATASET, limit_of(module))
        for part in range(FILES):
            rows = [_row(part * ROWS_A_FILE + number) for number in range(ROWS_A_FILE)]
            write_table(self.folder / f"in.{part}.jsonl", rows)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE / "planted"), str(ROOT)]),
            "OPENBLAS_NUM_THREADS": "1",
            "FAULTS_STALLED": str(self.stalled),
        }

    def line(self, *more: str) -> list[str]:
        """The command line; what ``more`` says counts."""
        common = (f"--input={self.folder}/in.*", f"--output={self.prefix}", f"--ledger={self.folder}/ledger.json")
        budget = (f"--budget_store={self.store.url}", f"--dataset={DATASET}", f"--run_id={RUN_ID}")
        return [sys.executable, "-m", f"pipelines.{self.module}", *common, *budget, *_FLAGS[self.module], *more]

    @contextlib.contextmanager
    def started(self, *more: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """The command line while it runs, in a session of its own; it and all its workers end with the block."""
        process = subprocess.Popen(
            self.line(*more),
            cwd=ROOT,
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run(self, *more: str, file_bytes: int = -1, **variables: str) -> subprocess.CompletedProcess[str]:
        """The command line, run to its end, which must come in time; no file may grow beyond ``file_bytes``."""
        with self.started(*more, **variables) as process:
            limit_files(process.pid, file_bytes)
            return ended(process)

    def stalled_workers(self, wanted: int = 1) -> list[int]:
        """The processes that stall, once there is one; a little later, where more than that are wanted."""
        wait_for(self._stalled, "a worker stalls in its bundle")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: len(self._stalled()) >= wanted, "so many workers stall", _MORE_SECONDS)
        return self._stalled()

    def _stalled(self) -> list[int]:
        notes = self.stalled.parent.glob(f"{self.stalled.name}.*")
        return [int(note.suffix[1:]) for note in notes if note.suffix != ".go"]

    def let_go(self) -> None:
        """Lets all who stall go on."""
        Path(f"{self.stalled}.go").touch()

    def outputs(self) -> list[str]:
        """The names of what a run has made beside its budget."""
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(("in.", "budget.db")))

    def state(self) -> str | None:
        """What the budget says of the run; None if it was never charged."""
        run = self.store.account(DATASET).runs.get(RUN_ID)
        return None if run is None else run.state


def _row(number: int) -> dict[str, Any]:
    words = [_WORDS[(number + step) % len(_WORDS)] for step in range(6)]
    # The canary is a value of one user alone, so that no partition may show it.
    canary = number % ROWS_A_FILE == 7
    return {
        "id": f"{CANARY}-{number}",
        "user": f"{CANARY}-{number % 400}",
        "item": f"{CANARY}-{number}" if canary else ("tea", "jam", "bread")[number % 3],
        "amount": number % 10,
        "text": " ".join([*words, CANARY] if number % 5 == 0 else words),
    }


def wait_for(condition: Callable[[], Any], what: str, seconds: float = END_SECONDS) -> None:
    """Waits until ``condition`` holds; fails the test if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        time.sleep(_POLL_SECONDS)


def limit_files(pid: int, size: int) -> None:
    """From now on no file can grow beyond so many bytes for a process and those that it will start."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What a process said when it ended; a hang fails the test."""
    out, err = process.communicate(timeout=END_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def session(leader: int) -> list[int]:
    """The processes of a session that are alive, its leader apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != leader:
            with contextlib.suppress(OSError):
                state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == leader and state not in "ZX":
                    found.append(int(entry.name))
    return found


def check_failed(place: Place, done: subprocess.CompletedProcess[str], *words: str) -> str:
    """Status 2 and a last line that holds ``words``; nothing shows what the input holds."""
    line = refusal(done)
    for word in words:
        assert word in line, line
    check_silent(place, done)
    return line


def check_nothing_published(place: Place, *, left: tuple[str, ...] = ()) -> None:
    """No shard, manifest or ledger is at its place, and nothing is left but what ``left`` names."""
    assert place.outputs() == sorted(left)


def check_whole(place: Place) -> None:
    """One output: as many rows as the input has, all shards named by the manifest, and nothing else."""
    manifest = json.loads(Path(f"{place.prefix}.manifest.json").read_text())
    shards = [shard["name"] for shard in manifest["shards"]]
    assert place.outputs() == sorted(["ledger.json", "out.manifest.json", *shards])
    rows = read_output(place.prefix)
    if place.module == "privatize_text":
        assert len(rows) == ROWS
        assert json.loads((place.folder / "ledger.json").read_text()) == manifest["ledger"]
    else:
        assert sorted(row["item"] for row in rows) == ["bread", "jam", "tea"]


def check_charged_once(place: Place, state: str) -> None:
    """The run is in ``state``, its price was taken once, and no second run can have what is gone."""
    kinds = [record.kind for record in place.store.history(DATASET)]
    assert kinds.count("reserve") == 1
    assert place.state() == state
    limit, account = limit_of(place.module), place.store.account(DATASET)
    (run,) = account.runs.values()
    (charge,) = (charge for charge in run.charges if charge.key == limit.key)
    assert account.spent(limit, account.at) == charge.amount
    assert charge.amount is not None and limit.epsilon / 2 < charge.amount.epsilon <= limit.epsilon
    place.store.verify(DATASET)


def check_silent(place: Place, *ended: subprocess.CompletedProcess[str]) -> None:
    """No canary in what was said, nor in any file that the run has written, staged and budget included."""
    for done in ended:
        assert CANARY.lower() not in (done.stdout + done.stderr).lower()
    assert holds_canary(place.folder) == []
