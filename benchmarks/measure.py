"""What the benchmarks share: a quiet process, fair timing, the data, and figures as tables and JSON."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from beam_dp import IndexRef, build_index, resolve_index
from beam_dp.embeddings import EmbeddingIndex
from beam_dp.embeddings.cache import require_cache
from beam_dp.errors import ArgumentError, IndexArtifactError, InputError
from beam_dp.mechanisms.base import WordIds
from beam_dp.randomness import SecureSource
from beam_dp.text.privatize import TextOptions, encode

DATA_VARIABLE = "BEAM_DP_DATA"

# Rows of the matrix product that everything exact is compared with.
SGEMM_ROWS = 512

BLAS_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_UTTERANCES = Path(__file__).parents[1] / "pipelines" / "data" / "utterances.txt"
_GLOVE = "glove_840b_300d"
_GLOVE_TREES = 5
_SAMPLE_SECONDS = 0.005
_ROW_GROUP_ROWS = 1 << 16
_PACKAGES = ("apache-beam", "numpy", "pyarrow", "annoy", "randomgen")


def restart_with_one_blas_thread() -> None:
    """Starts this program anew with one BLAS thread, unless it has one: BLAS reads its setting when it is loaded."""
    if any(os.environ.get(name) != "1" for name in BLAS_VARIABLES):
        os.execve(sys.executable, sys.orig_argv, os.environ | dict.fromkeys(BLAS_VARIABLES, "1"))


def declare_cores(parser: ArgumentParser, default: str) -> None:
    """Adds ``--cores`` to a benchmark's flags."""
    parser.add_argument("--cores", metavar="A,B", help=f"cores to run on, e.g. 0 or 0,1 (default: {default})")


def pin(cores: str | None, default_count: int) -> list[int] | None:
    """Keeps this process and its children on ``cores``, as ``0`` or ``0,1``; None: the last ``default_count``.

    Returns:
        the cores, or None where the operating system cannot pin.

    Raises:
        ArgumentError: ``cores`` is no list of cores that this process may use.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if cores is None:
        chosen = allowed[-default_count:]
    else:
        listed = [part.strip() for part in cores.split(",")]
        if not all(part.isdecimal() and int(part) in allowed for part in listed):
            raise ArgumentError(f"--cores must be some of {', '.join(map(str, allowed))}, e.g. --cores={allowed[-1]}")
        chosen = sorted({int(part) for part in listed})
    os.sched_setaffinity(0, chosen)
    return chosen


def machine(cores: Sequence[int] | None) -> dict[str, Any]:
    """What the figures depend on: processor, cores, load (1, 5 and 15 minutes), versions."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "cores": None if cores is None else list(cores),
        "blas_threads": 1,
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "blas": f"{blas['name']} {blas['version']}",
        "packages": {name: version_of(name) for name in _PACKAGES},
    }


def machine_lines(found: dict[str, Any]) -> list[str]:
    """`machine` for people."""
    cores = "not pinned" if found["cores"] is None else f"pinned to {', '.join(map(str, found['cores']))}"
    load = " ".join(f"{value:.2f}" for value in found["load"])
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        f"{found['processor']}, {found['processors']} cores: {cores}; one BLAS thread; load {load}",
        f"Python {found['python']}, {found['blas']}",
        versions,
    ]


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds, user and system, of all threads of this process, and of children that end, while ``call`` runs."""
    gc.collect()
    begin = _process_seconds()
    call()
    return _process_seconds() - begin


def _process_seconds() -> float:
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def alternate(
    calls: Sequence[Callable[[int], object]], rounds: int | Sequence[int], *, warm_up: bool = True
) -> npt.NDArray[np.float64]:
    """CPU seconds (len(calls), most rounds) of each call with 0, 1, ..., taking turns.

    On a machine whose speed drifts, calls that take turns drift together, so that their ratios hold.

    Args:
        calls: what is timed.
        rounds: how often, for all calls or for each; NaN fills the rounds that a call does not take part in.
        warm_up: whether one turn goes first that does not count.
    """
    counts = [rounds] * len(calls) if isinstance(rounds, int) else list(rounds)
    if warm_up:
        for call in calls:
            call(0)
    seconds = np.full((len(calls), max(counts, default=0)), np.nan)
    for turn in range(seconds.shape[1]):
        for row, (call, count) in enumerate(zip(calls, counts, strict=True)):
            if turn < count:
                seconds[row, turn] = cpu_seconds(lambda call=call, turn=turn: call(turn))  # type: ignore[misc]
    return seconds


def sgemm(vectors: npt.NDArray[np.float32], rows: int) -> Callable[[], None]:
    """The bare float32 product of ``rows`` (a multiple of 512) query vectors with all ``vectors`` (V, d).

    Made of blocks (512, d) x (d, V), both contiguous, into one buffer: no noise, no norms, no argmax.
    """
    size, dimension = vectors.shape
    queries = np.random.default_rng(0).standard_normal((SGEMM_ROWS, dimension), dtype=np.float32)
    transposed = np.ascontiguousarray(vectors.T)
    scores = np.empty((SGEMM_ROWS, size), dtype=np.float32)

    def run() -> None:
        for _ in range(rows // SGEMM_ROWS):
            np.dot(queries, transposed, out=scores)

    return run


def peak_anonymous_memory(process: subprocess.Popen[bytes]) -> tuple[int, list[int]]:
    """Bytes of anonymous memory, at its peak, of a process and of each Python program below it, until it ends.

    Sampled from /proc (Linux), every few milliseconds; what is mapped from files is shared and not counted.
    """
    own, others = 0, dict[int, int]()
    while process.poll() is None:
        own = max(own, _memory(process.pid, "RssAnon"))
        for child in _descendants(process.pid):
            if _is_another_program(child, process.pid):
                others[child] = max(others.get(child, 0), _memory(child, "RssAnon"))
        time.sleep(_SAMPLE_SECONDS)
    return own, sorted(others.values())


def peak_resident_memory(process: subprocess.Popen[bytes]) -> int:
    """Bytes of resident memory, at its peak, of a process and all below it together, until it ends.

    Sampled like `peak_anonymous_memory`; a page that several of them map counts for each.
    """
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(_memory(member, "VmRSS") for member in (process.pid, *_descendants(process.pid))))
        time.sleep(_SAMPLE_SECONDS)
    return peak


def _descendants(process: int) -> Iterator[int]:
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread or process that has ended meanwhile
            for child in map(int, path.read_text(encoding="ascii").split()):
                yield child
                yield from _descendants(child)


def _is_another_program(child: int, parent: int) -> bool:
    """Whether ``child`` runs Python with a command line of its own: no shell, and no fork that has yet to start one."""
    with contextlib.suppress(OSError):
        command, parents_command = (Path(f"/proc/{process}/cmdline").read_bytes() for process in (child, parent))
        return command != parents_command and Path(f"/proc/{child}/exe").samefile(sys.executable)
    return False


def _memory(process: int, field: str) -> int:
    """Bytes of one field of /proc/PID/status; 0 for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def load_texts() -> tuple[str, list[str]]:
    """The texts to privatize and what they are: SNIPS where ``$BEAM_DP_DATA`` has it, else the shipped utterances."""
    folder = os.environ.get(DATA_VARIABLE)
    snips = None if not folder else Path(folder) / "snips" / "train.tsv"
    if snips is None or not snips.is_file():
        return "the utterances that ship with the pipelines", _UTTERANCES.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in snips.read_text(encoding="utf-8").splitlines()]
    column = rows[0].index("utterance")
    return "SNIPS", [row[column] for row in rows[1:]]


@dataclass(frozen=True)
class Workload:
    """Texts on disk and what is in them.

    Attributes:
        path: the parquet file, or a glob of several, with the column ``text``.
        ids: the ids of all their words in the vocabulary, in order.
    """

    path: Path
    ids: WordIds


def write_workload(folder: Path, index: EmbeddingIndex, words: int, files: int = 1) -> Workload:
    """The texts, repeated until they hold ``words`` words of the vocabulary, as parquet without dictionaries.

    Repeated texts would make dictionary pages tiny; real texts have none.
    """
    texts = pa.array(load_texts()[1])
    unseeded = SecureSource().generator
    counts = np.diff(encode(texts, index, TextOptions(), unseeded).offsets)
    if not counts.any():
        raise InputError(f"no word of the texts is in the vocabulary of {index}")
    totals = np.cumsum(np.tile(counts, math.ceil(words / counts.sum())))
    rows = int(np.searchsorted(totals, words)) + 1
    column = texts.take(pa.array(np.arange(rows) % len(texts)))
    step = math.ceil(rows / files)
    for start in range(0, rows, step):
        part = pa.table({"text": column.slice(start, step)})
        name = folder / f"texts-{start // step:03d}.parquet"
        pq.write_table(part, name, row_group_size=_ROW_GROUP_ROWS, use_dictionary=False)
    path = folder / ("texts-000.parquet" if files == 1 else "texts-*.parquet")
    return Workload(path, encode(column, index, TextOptions(), unseeded).ids if files == 1 else np.empty(0, np.int32))


def one_word(folder: Path, index: EmbeddingIndex) -> Workload:
    """The workload whose cost is that of the start-up."""
    (folder / "one").mkdir()
    return write_workload(folder / "one", index, 1)


def load_indexes(extra: Sequence[str]) -> list[tuple[str, IndexRef]]:
    """Names and references: the index in the package, GloVe 840B where ``$BEAM_DP_DATA`` has it, then ``extra``."""
    found = [("embedded", resolve_index())]
    folder = os.environ.get(DATA_VARIABLE)
    vectors = None if not folder else Path(folder) / f"{_GLOVE}.f16.npy"
    if vectors is not None and vectors.is_file():
        found.append((_GLOVE, _built(vectors, vectors.with_name(f"{_GLOVE}.words.txt"), _GLOVE)))
    return found + [(Path(uri.rstrip("/")).name, resolve_index(uri)) for uri in extra]


def _built(vectors: Path, words: Path, name: str) -> IndexRef:
    """The index of these vectors in the cache of the machine, built there by the first run."""
    content = hashlib.sha256(vectors.read_bytes() + words.read_bytes()).hexdigest()[:12]
    output = require_cache() / "benchmarks" / f"{name}-{_GLOVE_TREES}-{content}"
    try:
        return resolve_index(str(output))
    except IndexArtifactError:
        build_index(str(vectors), str(output), words=str(words), trees=_GLOVE_TREES, progress=False, overwrite=True)
        return resolve_index(str(output))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def number(value: float | None) -> str:
    """A figure for people: three significant digits below 100, whole thousands with commas above; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Report:
    """Collects the rows of a run; prints tables as they come, or all of it as JSON at the end.

    Args:
        found: from `machine`.
        target: None for tables only; ``-`` for JSON on stdout instead; else the file that gets the JSON as well.
    """

    def __init__(self, found: dict[str, Any], target: str | None) -> None:
        self._machine = found
        self._target = target
        self._rows: list[dict[str, Any]] = []
        self.say(*machine_lines(found))

    def say(self, *lines: str) -> None:
        """Prints lines for people, unless stdout is for JSON."""
        if self._target != "-":
            print("\n".join(lines), flush=True)

    def section(self, title: str, lines: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
        """Prints a table and keeps its ``rows``, whose values are JSON values."""
        self._rows += rows
        self.say("", title, "", *lines)

    def finish(self) -> None:
        """Writes the JSON, if it was asked for."""
        text = json.dumps({"machine": self._machine, "rows": self._rows}, indent=2)
        if self._target == "-":
            print(text, flush=True)
        elif self._target is not None:
            Path(self._target).write_text(f"{text}\n", encoding="utf-8")
