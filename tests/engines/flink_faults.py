"""Runs of privatize_text on Flink that meet a fault, and what each of them must have left."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from engine_servers import ROOT, end_group, environment

from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.embeddings import resolve_index

CANARY = "Xyzzy9Canary"
EPSILON = 8.0
RUN_ID = "r"
# The longest that a run may go on after a fault.
END_SECONDS = 120
START_SECONDS = 120
_POLL_SECONDS = 0.05
_JOB = "import fault_job; fault_job.main()"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status.
        out: what it wrote to standard output.
        err: what it wrote to standard error.
    """

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.err.strip().splitlines()[-1]


class Case:
    """One run with a folder and a budget of its own.

    Args:
        folder: of the case; it is made.
        source: the texts, in which `CANARY` is.
        index: of the run.
        flags: where to run.
    """

    def __init__(self, folder: Path, source: Path, index: str, *flags: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._source = source
        self._index = index
        self._flags = flags
        self.store = BudgetStore(f"sqlite:///{folder}/budget.db")
        limit = Limit(
            model="metric",
            privacy_unit="word",
            epsilon=10 * EPSILON,
            metric="euclidean",
            index_digest=resolve_index(index).digest,
        )
        self.store.create("d", limit)

    @property
    def output(self) -> Path:
        return self.folder / "out" / "texts"

    @property
    def staging(self) -> Path:
        return Path(f"{self.output}.tmp-{RUN_ID}")

    @contextlib.contextmanager
    def started(
        self, *, job: bool = False, index: str | None = None, env: Mapping[str, str] | None = None, **how: Any
    ) -> Iterator[subprocess.Popen[str]]:
        """The command line, or, with ``job``, that of `fault_job`; it and what it started end with the context."""
        program = ["-c", _JOB] if job else ["-m", "pipelines.privatize_text"]
        budget = [f"--budget_store={self.store.url}", "--dataset=d", f"--run_id={RUN_ID}"]
        line = [sys.executable, *program, f"--input={self._source}", f"--output={self.output}", *budget]
        process = subprocess.Popen(
            [*line, f"--index={index or self._index}", f"--epsilon={EPSILON}", *self._flags],
            cwd=ROOT,
            env={**environment(self.folder.parent), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **how,
        )
        try:
            yield process
        finally:
            end_group(process)

    def worker_with_a_bundle(self, process: subprocess.Popen[str], killed: Collection[int] = ()) -> psutil.Process:
        """The first process under ``process`` that is writing a shard, rows in it already, and so is amid a bundle.

        Args:
            process: the command.
            killed: identifiers of processes that have been, of which something may be left.
        """
        found: list[psutil.Process] = []

        def look() -> bool:
            workers = (worker for worker in descendants(process.pid) if worker.pid not in killed)
            found.extend(worker for worker in workers if self._stages(worker))
            return bool(found)

        await_that(look, while_runs=process)
        return found[0]

    def _stages(self, worker: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            files = (Path(file.path) for file in worker.open_files())
            return any(file.parent == self.staging and file.stat().st_size for file in files)
        return False

    def has_manifest(self) -> bool:
        return Path(f"{self.output}.manifest.json").exists()

    def check_nothing_published(self, *, staged: bool = False) -> None:
        """Nothing is at the output's place and, unless ``staged``, nothing is left of what was on its way there."""
        left = set(self.output.parent.glob("*"))
        assert left <= ({self.staging} if staged else set())
        assert self._kinds().count("publish") == 0
        (run,) = self.store.account("d").runs.values()
        assert run.state in ("running", "committed")
        self._check_charge()

    def check_published_once(self) -> None:
        """All rows of the input, each once, under the digests of the manifest; nothing else is left."""
        manifest = json.loads(Path(f"{self.output}.manifest.json").read_text())
        shards = [self.output.parent / shard["name"] for shard in manifest["shards"]]
        assert {*shards, Path(f"{self.output}.manifest.json")} == set(self.output.parent.glob("*"))
        texts = self._source.read_text(encoding="utf-8").splitlines()
        rows = [line for shard in shards for line in shard.read_text(encoding="utf-8").splitlines()]
        assert manifest["rows"] == len(rows) == len(texts)
        # Words are replaced one by one, and unknown ones vanish: the order of rows shows in their lengths.
        lengths = [len(line.split()) for line in rows]
        period = len(lengths) // REPEATS
        assert lengths == REPEATS * lengths[:period]
        assert sum(lengths[:period]) > period
        assert manifest["rejects"] == {}
        assert manifest["ledger"]["totals"]["metric"]
        kinds = self._kinds()
        assert (kinds.count("commit"), kinds.count("publish")) == (1, 1)
        (run,) = self.store.account("d").runs.values()
        assert (run.state, len(run.published)) == ("committed", 1)
        self._check_charge()

    def _kinds(self) -> list[str]:
        return [record.kind for record in self.store.history("d")]

    def _check_charge(self) -> None:
        kinds = self._kinds()
        assert (kinds.count("reserve"), kinds.count("start")) == (1, 1)
        (run,) = self.store.account("d").runs.values()
        assert run.run_id == RUN_ID
        assert [charge.epsilon for charge in run.charges if charge.privacy_unit == "word"] == [EPSILON]
        assert list(self.store.verify())

    def check_silent(self, logs: Sequence[Path], *said: str) -> None:
        """The canary is neither in what was said, nor in a log, nor in any file of the case."""
        assert not [text for text in said if CANARY in text]
        files = [*logs, *(path for path in self.folder.rglob("*") if path.is_file())]
        assert len(files) > len(logs)
        assert not [file for file in files if CANARY.encode() in file.read_bytes()]


# Times that the source repeats its texts: some seconds of work for two workers.
REPEATS = 250


def write_source(path: Path, texts: Sequence[str]) -> Path:
    """The texts, and one with the canary, again and again."""
    path.write_text(REPEATS * "".join(f"{text}\n" for text in [*texts, f"play {CANARY} music"]), encoding="utf-8")
    return path


def ended(process: subprocess.Popen[str]) -> Ended:
    """Waits for the end of a command that has met its fault, for as long as it may take."""
    out, err = process.communicate(timeout=END_SECONDS)
    return Ended(process.returncode, out, err)


def descendants(pid: int) -> list[psutil.Process]:
    """The processes under ``pid``; those that end meanwhile are left out."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def running(pid: int, words: str) -> list[psutil.Process]:
    """Those of them that have ``words`` in their command line."""
    found = []
    for each in descendants(pid):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or is a zombie
            if words in " ".join(each.cmdline()):
                found.append(each)
    return found


def await_that(
    true: Callable[[], bool], *, while_runs: subprocess.Popen[str] | None = None, seconds: float = START_SECONDS
) -> None:
    """Waits until ``true()`` is; fails after ``seconds``, or when the process has ended before."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        assert while_runs is None or while_runs.poll() is None, while_runs.communicate()
        time.sleep(_POLL_SECONDS)
