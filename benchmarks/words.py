"""What a privatized word costs: kernel, whole pipeline, bare matrix product and peers, with the ratios, in one run.

    python -m benchmarks.words [--json[=FILE]] [--index=DIR ...] [--memory | --scaling | --start_up]

It runs on one core with one BLAS thread and counts CPU seconds. The figures are

* kernel: `BoundMechanism.sample` on the word ids of the texts, with the generator that workers use;
* pipeline: the job `pipelines.privatize_text` from parquet to parquet on the FnApiRunner in this process; its
  start-up, which is the same job on one word, is subtracted and shown apart;
* sgemm: the bare float32 product that exact search cannot do without, (512, d) x (d, V) into one buffer;
* rows: where a mechanism keeps rows (which kernel and pipeline find made), the first draw of each distinct word; once;
* peers: see `benchmarks.peers`.

They take turns, round by round, and the median counts. The vocabularies are the index in the package, GloVe 840B
where ``$BEAM_DP_DATA`` has it, and those of ``--index``.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from apache_beam.metrics import MetricsFilter

from beam_dp import (
    DensityLaplace,
    DensityPrior,
    Exponential,
    IndexRef,
    KnnTruncated,
    Ledger,
    Mahalanobis,
    MultivariateLaplace,
    ReadBatches,
    TruncatedExponential,
    TruncatedGumbel,
    Vickrey,
    WordMechanism,
    WriteBatches,
)
from beam_dp.embeddings import EmbeddingIndex, open_index, resolve_index
from beam_dp.errors import BeamDpError
from beam_dp.mechanisms.base import WordIds
from beam_dp.mechanisms.row_laws import BoundRows
from beam_dp.randomness import SecureSource
from beam_dp.text.privatize import TextOptions, TextPrivatizer
from benchmarks.measure import (
    SGEMM_ROWS,
    Report,
    alternate,
    cpu_seconds,
    declare_cores,
    load_indexes,
    load_texts,
    machine,
    number,
    one_word,
    peak_anonymous_memory,
    pin,
    restart_with_one_blas_thread,
    sgemm,
    table,
    version_of,
    write_workload,
)
from benchmarks.peers import PEERS, Task, measure_peer
from pipelines import privatize_text
from pipelines.main import run_main
from pipelines.options import RunOptions, parse_flags, parse_options

_ROOT = Path(__file__).parents[1]
_SGEMM_MOST_ROWS = 4096
_SCALING_FILES = 16
_FIRST_BATCH_WORDS = 64
_FINITE_LAWS = (Exponential, TruncatedExponential, DensityPrior, KnnTruncated)
_NOISE = (MultivariateLaplace, Mahalanobis, Vickrey, DensityLaplace)
_MECHANISMS = (*_NOISE, TruncatedGumbel, *_FINITE_LAWS)
_HEADINGS = ("", "words", "CPU s", "words/CPU-s", "kernel is", "pipeline is")


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this benchmark to ``parser``."""
    parser.add_argument("--index", action="append", default=[], metavar="DIR", help="measure this index as well")
    parser.add_argument("--epsilon", type=float, default=10.0, help=f"of {_named(_NOISE)} (default: 10)")
    parser.add_argument("--gumbel_epsilon", type=float, default=40.0, help="of truncated Gumbel (default: 40)")
    parser.add_argument("--finite_epsilon", type=float, default=4.0, help=f"of {_named(_FINITE_LAWS)} (default: 4)")
    names = tuple(mechanism.name for mechanism in _MECHANISMS)
    parser.add_argument("--mechanism", action="append", choices=names, help="measure this one, not all")
    parser.add_argument("--words", type=int, default=1_000_000, help="of a finite law (default: 1,000,000)")
    parser.add_argument("--laplace_words", type=int, default=8192, help=f"of {_named(_NOISE)} (default: 8,192)")
    parser.add_argument("--peer_words", type=int, default=300, help="of a peer (default: 300; 0: no peers)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    parser.add_argument("--memory", action="store_true", help="only: peak anonymous memory of two worker processes")
    parser.add_argument("--scaling", action="store_true", help="only: wall time with one and two worker processes")
    parser.add_argument("--scaling_words", type=int, default=10_000_000, help="for --scaling (default: 10,000,000)")
    parser.add_argument("--start_up", action="store_true", help="only: a fresh process up to its first 64 words")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON to stdout, or to FILE beside tables")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")
    declare_cores(parser, "the last; with --memory and --scaling the last two")


def _named(mechanisms: Sequence[type[WordMechanism]]) -> str:
    return ", ".join(mechanism.name for mechanism in mechanisms)


def main(argv: list[str]) -> None:
    """Measures what the flags ask for."""
    flags = parse_flags(argv, declare, description="Measures what a privatized word costs.")
    report = Report(machine(pin(flags.cores, 2 if flags.memory or flags.scaling else 1)), flags.json)
    indexes = load_indexes(flags.index)
    if flags.memory or flags.scaling or flags.start_up:
        name, ref = indexes[-1]
        if flags.memory:
            measure_memory(report, flags, name, ref)
        if flags.scaling:
            measure_scaling(report, flags, name, ref)
        if flags.start_up:
            measure_start_up(report, flags, name, ref)
    else:
        measure_nothing(report, flags, indexes[0][1])
        for name, ref in indexes:
            for mechanism in mechanisms_for(flags, open_index(ref)):
                words = flags.laplace_words if isinstance(mechanism, _NOISE) else flags.words
                measure_words(report, flags, name, ref, mechanism=mechanism, words=words)
    report.finish()


def mechanisms_for(flags: Namespace, index: EmbeddingIndex) -> list[WordMechanism]:
    """What the flags ask to measure on ``index``."""
    noise = [mechanism(flags.epsilon) for mechanism in _NOISE]
    finite = [mechanism(flags.finite_epsilon) for mechanism in _FINITE_LAWS]
    every = [*noise, gumbel_for(index, flags.gumbel_epsilon), *finite]
    return [mechanism for mechanism in every if flags.mechanism is None or mechanism.name in flags.mechanism]


def first_draws(bound: BoundRows, index: EmbeddingIndex, ids: WordIds) -> float:
    """CPU seconds of one draw of each of the distinct ``ids`` by the same mechanism without its rows."""
    empty, generator = BoundRows(index, bound.weights), SecureSource().generator
    return cpu_seconds(lambda: empty.sample(ids, generator))


def gumbel_for(index: EmbeddingIndex, epsilon: float) -> TruncatedGumbel:
    """Truncated Gumbel at ``epsilon``, or where that is too small for the published scale, at what is large enough."""
    if index.min_distance == 0:
        return TruncatedGumbel(scale=index.manifest.distances.median_neighbour)
    least = (5 + 2 * math.log(index.size)) / index.min_distance
    return TruncatedGumbel(epsilon=epsilon if epsilon > least else math.ceil(1.1 * least))


def job_flags(mechanism: WordMechanism, ref: IndexRef, source: Path, prefix: Path) -> list[str]:
    """The command line of `pipelines.privatize_text` for this job, without a runner."""
    parameter = _parameter(mechanism)
    return [
        f"--input={source}",
        f"--output={prefix}",
        f"--index={ref.uri}",
        f"--mechanism={mechanism.name}",
        f"--{parameter}={getattr(mechanism, parameter)!r}",
        "--overwrite",
    ]


def run_job(flags: list[str]) -> int:
    """Runs the job in this process and returns how many words it drew."""
    options = parse_options([*flags, "--runner=FnApiRunner"], privatize_text.PrivatizeTextOptions)
    ledger = Ledger()
    pipeline = ledger.pipeline(options)
    privatize_text.build(pipeline, ledger, options)
    result = pipeline.run()
    result.wait_until_finish()
    return int(result.metrics().query(MetricsFilter().with_name("privatized_words"))["counters"][0].result)


def run_nothing(source: Path, prefix: Path) -> None:
    """Runs a pipeline that reads and writes the same rows."""
    options = parse_options([f"--input={source}", f"--output={prefix}", "--runner=FnApiRunner"])
    ledger = Ledger()
    pipeline = ledger.pipeline(options)
    read = pipeline | ReadBatches(str(source)).with_rejects()
    run_id = options.view_as(RunOptions).run_id
    _ = (read.batches, read.rejected) | WriteBatches(
        str(prefix), format="parquet", run_id=run_id, overwrite=True, max_rejects=0, plan=ledger.plan()
    )
    pipeline.run().wait_until_finish()


def measure_words(
    report: Report, flags: Namespace, name: str, ref: IndexRef, *, mechanism: WordMechanism, words: int
) -> None:
    """One table: everything that one mechanism costs on one vocabulary."""
    index = open_index(ref)
    bound = mechanism.bind(index)
    source = SecureSource()
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as scratch:
        folder = Path(scratch)
        full = write_workload(folder, index, words)
        ids = full.ids
        one = one_word(folder, index)
        product_rows = max(SGEMM_ROWS, min(_SGEMM_MOST_ROWS, words) // SGEMM_ROWS * SGEMM_ROWS)
        product = sgemm(index.vectors, product_rows)
        job, start = (job_flags(mechanism, ref, load.path, folder / "out") for load in (full, one))
        drawn = run_job(job)
        if drawn != len(ids):
            raise BeamDpError(f"the pipeline drew {drawn} words, not {len(ids)}")
        seconds = alternate(
            [
                lambda _: bound.sample(ids, source.generator),
                lambda _: product(),
                # Not counted: the product leaves the caches cold, which would make the start-up dear and the job cheap.
                lambda _: run_job(start),
                lambda _: run_job(start),
                lambda _: run_job(job),
            ],
            flags.rounds,
        )
    kernel, bare, _, start_up, whole = np.median(seconds, axis=1).tolist()
    rows = [
        _row("kernel", len(ids), kernel),
        _row("pipeline", len(ids), whole - start_up),
        _row("pipeline's start-up", None, start_up),
        _row("pipeline and start-up", len(ids), whole),
        _row("sgemm", product_rows, bare),
    ]
    if isinstance(bound, BoundRows):
        distinct = np.unique(ids)
        rows.append(_row("rows", len(distinct), first_draws(bound, index, distinct)))
    epsilon = getattr(mechanism, "epsilon", None) or flags.gumbel_epsilon
    asked = tuple(index.words.take(pa.array(ids[: flags.peer_words])).to_pylist())
    for peer in PEERS.get(mechanism.name, ()) if asked else ():
        taken, status = measure_peer(Task(peer, ref.uri, epsilon, asked))
        row = _row(f"{peer.distribution} {version_of(peer.distribution) or ''}".strip(), len(asked), taken, status)
        rows.append(row | {"peer_mechanism": peer.mechanism})
    for row in rows:
        for part, own in (("kernel", rows[0]), ("pipeline", rows[1])):
            rate = row["words_per_cpu_second"]
            mine = own["words_per_cpu_second"]
            row[f"{part}_ratio"] = None if rate is None or mine is None else mine / rate
    space = {
        "benchmark": "words",
        "mechanism": mechanism.name,
        "parameters": repr(mechanism),
        "index": name,
        "size": index.size,
        "dimension": index.dimension,
        "digest": index.digest,
        "search": index.search,
        "texts": load_texts()[0],
        "rounds": flags.rounds,
    }
    title = f"{_title(mechanism, name, index)}, {index.search} search\n{load_texts()[0]}; index {index.digest[:16]}"
    report.section(title, table(_HEADINGS, map(_cells, rows)), [space | row for row in rows])


def _title(mechanism: WordMechanism, name: str, index: EmbeddingIndex) -> str:
    parameter = _parameter(mechanism)
    return (
        f"{mechanism.name}, {parameter} {getattr(mechanism, parameter):g}: {name}, {index.size:,} x {index.dimension}"
    )


def _parameter(mechanism: WordMechanism) -> str:
    """The name of the parameter that was given: an epsilon, or a scale instead."""
    return "scale" if getattr(mechanism, "epsilon", None) is None else "epsilon"


def _row(what: str, words: int | None, seconds: float | None, status: str = "measured") -> dict[str, Any]:
    """One figure; a pipeline of too few words may cost no more than its start-up, and then has no rate."""
    rate = None if words is None or seconds is None or seconds <= 0 else words / seconds
    return {"what": what, "words": words, "cpu_seconds": seconds, "words_per_cpu_second": rate, "status": status}


def _cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "measured":
        return [row["what"], "", "", row["status"], "", ""]
    ratios = [row[f"{part}_ratio"] for part in ("kernel", "pipeline")]
    return [
        row["what"],
        number(row["words"]),
        f"{row['cpu_seconds']:.3f}",
        number(row["words_per_cpu_second"]),
        *("" if ratio is None else f"{number(ratio)} x" for ratio in ratios),
    ]


def measure_nothing(report: Report, flags: Namespace, ref: IndexRef) -> None:
    """What Beam, reading and writing cost on the same file without a mechanism: the ceiling of every pipeline."""
    index = open_index(ref)
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as scratch:
        folder = Path(scratch)
        full = write_workload(folder, index, flags.words)
        one = one_word(folder, index)
        seconds = alternate(
            [lambda _: run_nothing(one.path, folder / "out"), lambda _: run_nothing(full.path, folder / "out")],
            flags.rounds,
        )
    start_up, whole = np.median(seconds, axis=1).tolist()
    row = {"benchmark": "nothing", **_row("parquet to parquet", len(full.ids), whole - start_up)}
    row["start_up_cpu_seconds"] = start_up
    line = [row["what"], number(row["words"]), f"{row['cpu_seconds']:.3f}", number(row["words_per_cpu_second"])]
    headings = ("", "words", "CPU s", "words/CPU-s", "start-up, CPU s")
    title = f"no mechanism\n{load_texts()[0]}, read and written as they are"
    report.section(title, table(headings, [[*line, f"{start_up:.3f}"]]), [row])


def _parallel_job(job: list[str], workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.privatize_text", *job, "--engine=local-parallel"]
    return subprocess.Popen([*command, f"--direct_num_workers={workers}"], cwd=_ROOT, stdout=subprocess.DEVNULL)


def measure_memory(report: Report, flags: Namespace, name: str, ref: IndexRef) -> None:
    """Peak anonymous memory (RssAnon) of the processes of a job with two workers, sampled every few milliseconds."""
    index = open_index(ref)
    mechanism = gumbel_for(index, flags.gumbel_epsilon)
    mechanism.bind(index)
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as scratch:
        load = write_workload(Path(scratch), index, flags.words, _SCALING_FILES)
        running = _parallel_job(job_flags(mechanism, ref, load.path, Path(scratch) / "out"), 2)
        own, workers = peak_anonymous_memory(running)
    if running.returncode != 0 or not workers:
        raise BeamDpError(f"the job ended with status {running.returncode} and {len(workers)} workers")
    rows = [
        {"benchmark": "memory", "index": name, "words": flags.words, "what": what, "megabytes": size / 1e6}
        for what, size in (("submitting process", own), *(("worker process", peak) for peak in workers))
    ]
    lines = table(("", "MB"), [[row["what"], number(row["megabytes"])] for row in rows])
    title = f"peak anonymous memory, {flags.words:,} words\n{_title(mechanism, name, index)}"
    report.section(title, lines, rows)


def measure_scaling(report: Report, flags: Namespace, name: str, ref: IndexRef) -> None:
    """Wall time of the same job on the same files with one and with two worker processes, taking turns.

    Beside it that of the start-up alone, which is the job on one word and which more workers do not shorten.
    """
    index = open_index(ref)
    mechanism = gumbel_for(index, flags.gumbel_epsilon)
    mechanism.bind(index)
    seconds: dict[tuple[int, bool], list[float]] = {(workers, full): [] for workers in (1, 2) for full in (False, True)}
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as scratch:
        folder = Path(scratch)
        loads = {
            True: write_workload(folder, index, flags.scaling_words, _SCALING_FILES),
            False: one_word(folder, index),
        }
        for _ in range(flags.rounds):
            for (workers, full), taken in seconds.items():
                begin = time.perf_counter()
                status = _parallel_job(job_flags(mechanism, ref, loads[full].path, folder / "out"), workers).wait()
                if status != 0:
                    raise BeamDpError(f"the job with {workers} workers ended with status {status}")
                taken.append(time.perf_counter() - begin)
    wall = {job: float(np.median(taken)) for job, taken in seconds.items()}
    rows = [
        {
            "benchmark": "scaling",
            "index": name,
            "words": flags.scaling_words,
            "workers": workers,
            "wall_seconds": wall[workers, True],
            "start_up_wall_seconds": wall[workers, False],
            "of_one": wall[workers, True] / wall[1, True],
            "of_one_without_start_up": (wall[workers, True] - wall[workers, False]) / (wall[1, True] - wall[1, False]),
        }
        for workers in (1, 2)
    ]
    figures = ("wall_seconds", "of_one", "start_up_wall_seconds", "of_one_without_start_up")
    lines = table(
        ("workers", "wall s", "of one", "start-up, s", "of one, start-up apart"),
        [[str(row["workers"]), *(f"{row[figure]:.2f}" for figure in figures)] for row in rows],
    )
    title = f"wall time, {flags.scaling_words:,} words\n{_title(mechanism, name, index)}"
    report.section(title, lines, rows)


def measure_start_up(report: Report, flags: Namespace, name: str, ref: IndexRef) -> None:
    """Wall time from the start of a fresh process to the end of its first batch of 64 words, by Annoy search."""
    index = open_index(ref, "annoy")
    command = [sys.executable, "-c", f"from benchmarks.words import first_batch; first_batch({ref.uri!r})"]
    seconds = []
    for _ in range(flags.rounds + 1):
        begin = time.monotonic()
        end = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout.split()[-1]
        seconds.append(float(end) - begin)
    row = {
        "benchmark": "start_up",
        "index": name,
        "size": index.size,
        "dimension": index.dimension,
        "digest": index.digest,
        "first_wall_seconds": seconds[0],
        "warm_wall_seconds": float(np.median(seconds[1:])),
    }
    lines = table(
        ("first run, s", "warm, s"), [[f"{row['first_wall_seconds']:.2f}", f"{row['warm_wall_seconds']:.2f}"]]
    )
    title = (
        f"a worker's start to its first {_FIRST_BATCH_WORDS} words\n"
        f"{name}, {index.size:,} x {index.dimension}, Annoy search"
    )
    report.section(title, lines, [row])


def first_batch(uri: str) -> None:
    """Does what a worker process does up to its first batch; prints the time on the system's monotonic clock."""
    import apache_beam.runners.worker.sdk_worker_main  # noqa: F401, PLC0415  (what every Python worker loads)

    index = open_index(resolve_index(uri), "annoy")
    options = TextOptions(max_words=_FIRST_BATCH_WORDS, oov="random")
    privatizer = TextPrivatizer(index, MultivariateLaplace(10.0).bind(index), options)
    text = " ".join(load_texts()[1][:_FIRST_BATCH_WORDS])
    _, words = privatizer.privatize(pa.array([text]), SecureSource().generator)
    if words != _FIRST_BATCH_WORDS:
        raise BeamDpError(f"the batch held {words} words, not {_FIRST_BATCH_WORDS}")
    print(time.monotonic())


if __name__ == "__main__":
    restart_with_one_blas_thread()
    sys.exit(run_main(main))
