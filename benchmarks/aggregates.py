"""What private aggregates cost, beside plain Beam and PipelineDP, as ratios in one run.

    python -m benchmarks.aggregates [--json[=FILE]] [--rows=1000000 --users=50000 --partitions=1000]
                                    [--scale | --noise | --errors]

It runs on one core on the FnApiRunner in this process and counts the CPU seconds of whole pipelines, start-up
included, in turns, round by round; the median counts. The start-up, which is the same pipeline on one row, is shown
apart. The table of purchases is prepared beforehand (`benchmarks.tables`), so that nobody pays for making it.

* by default: count, sum and mean by item with private selection, by the contenders of `benchmarks.contenders`;
* ``--scale``: larger tables, batches in, each in a fresh process: rows per CPU second and peak memory;
* ``--noise``: discrete Laplace draws per CPU second;
* ``--errors``: root mean square errors beside PipelineDP's with public partitions (`benchmarks.accuracy`).
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beam_dp.errors import ArgumentError, BeamDpError
from beam_dp.mechanisms.discrete_noise import DiscreteLaplace
from beam_dp.randomness import SecureSource
from benchmarks.accuracy import (
    CONFIDENCE,
    FIGURES,
    Trial,
    release_ours,
    release_pipeline_dp,
    rmse_ratio,
    squared_errors,
)
from benchmarks.contenders import (
    CONTENDERS,
    DELTA,
    EPSILON,
    MAX_PARTITIONS,
    MAX_ROWS_PER_PARTITION,
    Contender,
    contender,
)
from benchmarks.measure import (
    Report,
    alternate,
    cpu_seconds,
    declare_cores,
    machine,
    number,
    peak_resident_memory,
    pin,
    restart_with_one_blas_thread,
    table,
    version_of,
)
from benchmarks.tables import PurchaseTable, prepared
from pipelines.main import run_main
from pipelines.options import parse_flags

_ROOT = Path(__file__).parents[1]
_WARM_UP_ROWS = 20_000
_ROWS_PER_USER = 20
_SCALES = (1.0, MAX_PARTITIONS * MAX_ROWS_PER_PARTITION * 3 / EPSILON, 1e6)
_DRAWS = 1 << 20
_TOGETHER = ("count", "sum", "mean")


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this benchmark to ``parser``."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table (default: 1,000,000)")
    parser.add_argument("--users", type=int, default=50_000, help="of the table (default: 50,000)")
    parser.add_argument("--partitions", type=int, default=1000, help="of the table (default: 1,000)")
    parser.add_argument("--only", metavar="A,B", help=f"of the contenders {', '.join(one.key for one in CONTENDERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    parser.add_argument("--peer_rounds", type=int, default=1, help="likewise, PipelineDP (default: 1; 0: without it)")
    parser.add_argument("--scale", action="store_true", help="only: larger tables, each in a fresh process")
    parser.add_argument(
        "--sizes", default="1000000,3000000,10000000,30000000", metavar="N,...", help="rows for --scale"
    )
    parser.add_argument("--noise", action="store_true", help="only: discrete Laplace draws per CPU second")
    parser.add_argument("--errors", action="store_true", help="only: root mean square errors beside PipelineDP's")
    parser.add_argument("--runs", type=int, default=200, help="for --errors (default: 200)")
    parser.add_argument("--error_partitions", type=int, default=200, help="for --errors (default: 200)")
    parser.add_argument("--error_users", type=int, default=6000, help="for --errors (default: 6,000)")
    parser.add_argument("--error_epsilon", type=float, default=4.0, help="for --errors, of a release (default: 4)")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON to stdout, or to FILE beside tables")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")
    declare_cores(parser, "the last")


def main(argv: list[str]) -> None:
    """Measures what the flags ask for."""
    flags = parse_flags(argv, declare, description="Measures what private aggregates cost.")
    report = Report(machine(pin(flags.cores, 1)), flags.json)
    if flags.scale:
        measure_scale(report, _sizes(flags.sizes), flags.partitions)
    if flags.noise:
        measure_noise(report, flags.rounds)
    if flags.errors:
        measure_errors(report, flags)
    if not (flags.scale or flags.noise or flags.errors):
        measure_cost(report, flags)
    report.finish()


def measure_cost(report: Report, flags: Namespace) -> None:
    """One table: everybody's whole pipeline, with the ratios to plain Beam and to PipelineDP."""
    asked = _asked(flags.only)
    rounds = {one.key: flags.rounds if one.distribution is None else flags.peer_rounds for one in asked}
    present = [one for one in asked if one.installed and rounds[one.key]]
    full, warm, one_row = (
        PurchaseTable(rows, flags.users, flags.partitions) for rows in (flags.rows, min(flags.rows, _WARM_UP_ROWS), 1)
    )
    released: dict[str, int] = {}
    for one in present:
        for each in (full, warm, one_row):
            prepared(_table_of(one, each), one.kind)
        one.run(_table_of(one, warm))
    # What is prepared is nobody's garbage: without this, every collection would go through millions of rows.
    gc.collect()
    gc.freeze()

    def start(one: Contender) -> None:
        one.run(_table_of(one, one_row))

    def whole(one: Contender) -> None:
        released[one.key] = one.run(_table_of(one, full))

    seconds = alternate(
        [lambda _, one=one, call=call: call(one) for one in present for call in (start, whole)],  # type: ignore[misc]
        [rounds[one.key] for one in present for _ in (start, whole)],
        warm_up=False,
    )
    medians = np.nanmedian(seconds, axis=1).reshape(-1, 2)
    taken = {one.key: (float(first), float(all_)) for one, (first, all_) in zip(present, medians, strict=True)}
    rows = []
    for one in asked:
        row: dict[str, Any] = {"benchmark": "aggregates", "contender": one.key, "what": one.title, "rows": full.rows}
        if one.distribution is not None:
            row["what"] = f"{one.title} {version_of(one.distribution) or ''}".strip()
        if one.key in taken:
            start_up, cpu = taken[one.key]
            row |= {
                "status": "measured",
                "rounds": rounds[one.key],
                "cpu_seconds": cpu,
                "start_up_cpu_seconds": start_up,
                "rows_per_cpu_second": full.rows / cpu,
                "of_plain_beam": cpu / taken["plain"][1] if "plain" in taken else None,
                "times_pipeline_dp": taken["pipeline_dp"][1] / cpu if "pipeline_dp" in taken else None,
                "released_partitions": released[one.key],
            }
        else:
            row["status"] = "left out" if one.installed else "not installed"
        rows.append(row)
    headings = ("", "CPU s", "start-up", "rows/CPU-s", "of plain", "x PipelineDP", "partitions")
    title = (
        f"count, sum and mean of {full.rows:,} rows, {full.users:,} users, {full.items:,} partitions (Zipf)\n"
        f"private: at most {MAX_PARTITIONS} partitions a user and {MAX_ROWS_PER_PARTITION} rows in each, "
        f"epsilon {EPSILON:g}, delta {DELTA:g}\nplain: count and sum"
    )
    report.section(title, table(headings, map(_cost_cells, rows)), rows)


def _asked(only: str | None) -> list[Contender]:
    known = {one.key: one for one in CONTENDERS}
    keys = list(known) if only is None else [part.strip() for part in only.split(",")]
    if not set(keys) <= set(known):
        raise ArgumentError(f"--only must be some of {', '.join(known)}, separated by commas")
    return [one for key, one in known.items() if key in keys]


def _table_of(one: Contender, plain: PurchaseTable) -> PurchaseTable:
    return PurchaseTable(plain.rows, plain.users, plain.items, one.strings)


def _cost_cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "measured":
        return [row["what"], "", "", row["status"], *[""] * 3]
    return [
        row["what"],
        f"{row['cpu_seconds']:.2f}",
        f"{row['start_up_cpu_seconds']:.2f}",
        number(row["rows_per_cpu_second"]),
        *("" if row[name] is None else f"{row[name]:.2f}" for name in ("of_plain_beam", "times_pipeline_dp")),
        number(row["released_partitions"]),
    ]


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ArgumentError("--sizes must be whole numbers of at least 1, separated by commas")
    return sizes


def measure_scale(report: Report, sizes: Sequence[int], partitions: int) -> None:
    """One table: rows per CPU second and peak memory of tables of these sizes, each in a fresh process."""
    rows = []
    for size in sizes:
        command = [
            sys.executable,
            "-c",
            f"from benchmarks.aggregates import run_alone; run_alone({size}, {partitions})",
        ]
        running = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE)
        peak = peak_resident_memory(running)
        output = running.communicate()[0]
        if running.returncode != 0:
            raise BeamDpError(f"the pipeline of {size:,} rows ended with status {running.returncode}")
        found = json.loads(output.splitlines()[-1])
        idle = found.pop("idle_bytes")
        rows.append(
            {
                "benchmark": "scale",
                "rows": size,
                **found,
                "rows_per_cpu_second": size / found["cpu_seconds"],
                "peak_bytes": peak,
                "peak_bytes_per_row": (peak - idle) / size,
            }
        )
    headings = ("rows", "users", "CPU s", "of it input", "rows/CPU-s", "peak GiB", "bytes/row")
    cells = [
        [
            number(row["rows"]),
            number(row["users"]),
            f"{row['cpu_seconds']:.2f}",
            f"{row['input_cpu_seconds']:.2f}",
            number(row["rows_per_cpu_second"]),
            f"{row['peak_bytes'] / (1 << 30):.2f}",
            number(row["peak_bytes_per_row"]),
        ]
        for row in rows
    ]
    title = (
        "batches in, integer keys, one row in twenty a new user; peak: resident memory of all processes together,\n"
        "bytes a row: what is above the same process before its pipeline"
    )
    report.section(title, table(headings, cells), rows)


def run_alone(rows: int, partitions: int) -> None:
    """Runs our pipeline on a table that is made as it is read; prints what it cost as JSON."""
    ours = contender("batches")
    purchases = PurchaseTable(rows, max(1, rows // _ROWS_PER_USER), partitions)

    def make_input() -> None:
        for block in range(purchases.blocks):
            purchases.batch(block)

    ours.run(PurchaseTable(1, 1, 1), prepare=False)
    idle = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
    figures = {
        "users": purchases.users,
        "input_cpu_seconds": cpu_seconds(make_input),
        "cpu_seconds": cpu_seconds(lambda: ours.run(purchases, prepare=False)),
        "idle_bytes": idle,
    }
    print(json.dumps(figures))


def measure_noise(report: Report, rounds: int) -> None:
    """One table: discrete Laplace draws per CPU second with the generator that workers use."""
    source = SecureSource()
    laws = [DiscreteLaplace(scale) for scale in _SCALES]
    seconds = alternate([lambda _, law=law: law.sample(_DRAWS, source.generator) for law in laws], rounds)  # type: ignore[misc]
    rows: list[dict[str, Any]] = [
        {"benchmark": "noise", "scale": law.scale, "draws": _DRAWS, "draws_per_cpu_second": _DRAWS / float(taken)}
        for law, taken in zip(laws, np.median(seconds, axis=1), strict=True)
    ]
    lines = table(
        ("scale", "draws/CPU-s"), [[f"{row['scale']:g}", number(row["draws_per_cpu_second"])] for row in rows]
    )
    report.section(f"discrete Laplace, {_DRAWS:,} draws at a time", lines, rows)


def measure_errors(report: Report, flags: Namespace) -> None:
    """One table: root mean square errors of each figure alone and of count, sum and mean together."""
    trial = Trial(flags.error_epsilon, flags.runs, flags.error_partitions, flags.error_users)
    asked = {one.key for one in _asked(flags.only)}
    theirs_too = version_of("pipeline-dp") is not None and "pipeline_dp" in asked
    rows: list[dict[str, Any]] = []
    for figures in (*((name,) for name in FIGURES), _TOGETHER):
        ours = squared_errors(trial, figures, release_ours) if "batches" in asked else {}
        theirs = squared_errors(trial, figures, release_pipeline_dp) if theirs_too else {}
        for name in figures:
            both = name in ours and name in theirs
            ratio, bound = rmse_ratio(ours[name], theirs[name]) if both else (None, None)
            rows.append(
                {
                    "benchmark": "errors",
                    "figure": name,
                    "together_with": [other for other in figures if other != name],
                    "epsilon": trial.epsilon,
                    "runs": trial.runs,
                    "rmse": float(np.sqrt(ours[name].mean())) if name in ours else None,
                    "pipeline_dp_rmse": float(np.sqrt(theirs[name].mean())) if name in theirs else None,
                    "ratio": ratio,
                    "ratio_upper_bound": bound,
                }
            )
    headings = ("", "RMSE", "PipelineDP's", "ratio", f"{CONFIDENCE:.0%} upper bound")
    figures_of = ("rmse", "pipeline_dp_rmse", "ratio", "ratio_upper_bound")
    cells = [
        [
            " with ".join([row["figure"], *([", ".join(row["together_with"])] if row["together_with"] else [])]),
            *("" if row[name] is None else f"{row[name]:.4g}" for name in figures_of),
        ]
        for row in rows
    ]
    title = (
        f"errors of {trial.runs} runs with {trial.partitions} public partitions, {trial.users:,} users, "
        f"epsilon {trial.epsilon:g}"
    )
    report.section(title, table(headings, cells), rows)


if __name__ == "__main__":
    restart_with_one_blas_thread()
    sys.exit(run_main(main))
