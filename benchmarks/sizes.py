"""How the cost of a job grows with its size, and what that makes of a billion and a trillion words, on paper.

    python -m benchmarks.sizes [--words=1000000,10000000,100000000] [--mechanism=truncated_gumbel] [--json[=FILE]]

Each size is the job `pipelines.privatize_text`, parquet to parquet in this process, on one pinned core with one BLAS
thread. The same job on one word is its start-up, which is subtracted. Sizes take turns, small ones more often, and the
median counts. Then each runs once more as a command line, for its peak memory; that on one word is the start-up of a
fresh process.

The lines on paper assume that a word costs there what it costs in the largest job measured here, that each process pays
one start-up, one process a virtual processor with 4 GB, and Dataflow's list prices of batch workers in us-central1 as
Beam keeps them for its own cost benchmarks. A virtual processor of a cloud is often half a core: then a word costs up
to twice as much.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.testing.load_tests.dataflow_cost_consts import MEM_PER_GB_HR_BATCH, VCPU_PER_HR_BATCH

from beam_dp import MultivariateLaplace, WordMechanism
from beam_dp.embeddings import EmbeddingIndex, open_index
from beam_dp.errors import ArgumentError, BeamDpError
from benchmarks.measure import (
    Report,
    alternate,
    cpu_seconds,
    declare_cores,
    load_indexes,
    load_texts,
    machine,
    number,
    one_word,
    peak_resident_memory,
    pin,
    restart_with_one_blas_thread,
    table,
    write_workload,
)
from benchmarks.words import gumbel_for, job_flags, run_job
from pipelines.main import run_main
from pipelines.options import parse_flags

MECHANISMS = ("multivariate_laplace", "truncated_gumbel")
ON_PAPER = (10**9, 10**12)
WORKERS = (1, 100, 1_000, 10_000)
MEMORY_GB = 4

_ROOT = Path(__file__).parents[1]
_WORDS_A_FILE = 4_000_000
_MOST_ROUNDS = 15
_HOUR = 3600


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this benchmark to ``parser``."""
    sizes = "1000000,10000000,100000000"
    parser.add_argument("--words", default=sizes, metavar="N,N", help=f"sizes of the job, ascending (default: {sizes})")
    parser.add_argument("--mechanism", choices=MECHANISMS, default=MECHANISMS[1], help=f"(default: {MECHANISMS[1]})")
    parser.add_argument("--epsilon", type=float, default=10.0, help="of multivariate Laplace (default: 10)")
    parser.add_argument("--gumbel_epsilon", type=float, default=40.0, help="of truncated Gumbel (default: 40)")
    parser.add_argument("--index", action="append", default=[], metavar="DIR", help="measure on this index")
    parser.add_argument("--rounds", type=int, default=3, help="how often the largest job runs (default: 3)")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON to stdout, or to FILE beside tables")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")
    declare_cores(parser, "the last")


def main(argv: list[str]) -> None:
    """Measures each size, then draws the lines on."""
    flags = parse_flags(argv, declare, description="Measures how the cost of a job grows with its size.")
    sizes = sizes_in(flags.words)
    report = Report(machine(pin(flags.cores, 1)), flags.json)
    name, ref = load_indexes(flags.index)[-1]
    index = open_index(ref)
    mechanism: WordMechanism = MultivariateLaplace(flags.epsilon)
    if flags.mechanism != mechanism.name:
        mechanism = gumbel_for(index, flags.gumbel_epsilon)
    mechanism.bind(index)
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as scratch:
        rows = measured(Path(scratch), index, job_flags(mechanism, ref, Path("IN"), Path("OUT")), sizes, flags)
    title = f"{mechanism!r}: {name}, {index.size:,} x {index.dimension}\n{load_texts()[0]}; index {index.digest[:16]}"
    headings = ("words", "CPU s", "words/CPU-s", "of the first", "peak MB")
    report.section(f"measured, {title}", table(headings, map(_cells, rows)), rows)
    start_up = rows[0]["start_up_cpu_seconds"]
    paper = [on_paper(words, rows[-1]["words_per_cpu_second"], start_up) for words in ON_PAPER]
    lines = [[f"{row['words']:,}", number(row["cpu_hours"]), f"{row['dollars']:,.2f}", *_walls(row)] for row in paper]
    walls = (f"on {workers:,}, h" for workers in WORKERS)
    report.section("on paper", table(("words", "CPU h", "$", *walls), lines), paper)
    report.finish()


def sizes_in(text: str) -> list[int]:
    """The numbers in ``--words``.

    Raises:
        ArgumentError: something that is no number of words, or not ascending.
    """
    parts = [part.strip() for part in text.split(",")]
    sizes = [int(part) for part in parts if part.isdecimal()]
    if len(sizes) < len(parts) or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise ArgumentError("--words must be ascending numbers of words, e.g. 1000000,10000000")
    return sizes


def measured(
    folder: Path, index: EmbeddingIndex, flags: list[str], sizes: list[int], asked: Namespace
) -> list[dict[str, Any]]:
    """One row for each size."""
    loads = [one_word(folder, index).path]
    for words in sizes:
        (folder / str(words)).mkdir()
        # Two files at least, so that the benchmark does not hold the ids of all words.
        files = max(2, -(-words // _WORDS_A_FILE))
        loads.append(write_workload(folder / str(words), index, words, files).path)
    lines = [
        [flag.replace("=IN", f"={load}").replace("=OUT", f"={folder / 'out'}") for flag in flags] for load in loads
    ]
    turns = [lambda _, line=line: run_job(line) for line in lines]
    run_job(lines[1])  # what the first job of a process pays for all
    # Jobs on this machine differ by a tenth of a second, whatever their size.
    rounds = [min(_MOST_ROUNDS, max(1, sizes[-1] // words)) * asked.rounds for words in (sizes[0], *sizes)]
    least, *whole = np.nanmedian(alternate(turns, rounds, warm_up=False), axis=1).tolist()
    peaks: list[int] = []

    def fresh(line: list[str]) -> None:
        peaks.append(peak_of(line))

    start_up, *_ = [cpu_seconds(partial(fresh, line)) for line in lines]
    rows: list[dict[str, Any]] = []
    for words, seconds, peak, count in zip(sizes, whole, peaks[1:], rounds[1:], strict=True):
        net = seconds - least
        rate = words / net if net > 0 else None
        first = rows[0]["words_per_cpu_second"] if rows else rate
        rows.append(
            {
                "benchmark": "sizes",
                "words": words,
                "cpu_seconds": net,
                "start_up_cpu_seconds": start_up,
                "words_per_cpu_second": rate,
                "of_the_first": None if rate is None or first is None else rate / first,
                "peak_resident_megabytes": peak / 1e6,
                "rounds": count,
            }
        )
    return rows


def peak_of(line: list[str]) -> int:
    """Peak resident memory, in bytes, of the command line with these flags.

    Raises:
        BeamDpError: it fails.
    """
    command = [sys.executable, "-m", "pipelines.privatize_text", *line, "--engine=local"]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL) as process:
        peak = peak_resident_memory(process)
    if process.returncode != 0:
        raise BeamDpError(f"the job ended with status {process.returncode}")
    return peak


def on_paper(words: int, rate: float | None, start_up: float) -> dict[str, Any]:
    """What ``words`` cost at ``rate`` words per CPU second; wall times include the start-up of each process."""
    if rate is None:
        raise BeamDpError("the jobs cost no more than their start-up: measure more --words")
    hours = words / rate / _HOUR
    return {
        "benchmark": "on paper",
        "words": words,
        "cpu_hours": hours,
        "dollars": hours * (VCPU_PER_HR_BATCH + MEMORY_GB * MEM_PER_GB_HR_BATCH),
        "wall_hours": {str(workers): hours / workers + start_up / _HOUR for workers in WORKERS},
    }


def _walls(row: dict[str, Any]) -> list[str]:
    return [number(hours) for hours in row["wall_hours"].values()]


def _cells(row: dict[str, Any]) -> list[str]:
    share = row["of_the_first"]
    return [
        f"{row['words']:,}",
        f"{row['cpu_seconds']:.2f}",
        number(row["words_per_cpu_second"]),
        "" if share is None else f"{share:.3f}",
        number(row["peak_resident_megabytes"]),
    ]


if __name__ == "__main__":
    restart_with_one_blas_thread()
    sys.exit(run_main(main))
