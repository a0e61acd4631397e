"""What noise and projection cost: words per CPU second of each mechanism that projects, as a share of the bare sgemm.

    python -m benchmarks.projections [--json[=FILE]] [--index=DIR ...] [--only=NAME] [--words=8192] [--epsilon=10]

It runs on one core with one BLAS thread and counts CPU seconds of `BoundMechanism.sample` on random word ids, with the
generator that workers use and exact search. The bare product takes as many query vectors, in blocks (2048, d) x (d, V)
into one buffer: no noise, no norms, no argmax. All take turns, round by round, and the median counts. (What a whole
pipeline costs is measured by `benchmarks.words`, peers beside it.)

On a Poincaré index, which the mammals of WordNet are where gensim is installed, it is hyperbolic Laplace, and the
exponential mechanism beside it, with the rows of its words at hand. There epsilon is no smaller than the dimension,
since hyperbolic noise needs one above that less 1.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beam_dp import (
    Exponential,
    HyperbolicLaplace,
    IndexRef,
    Mahalanobis,
    MultivariateLaplace,
    RankCorrectedLaplace,
    Vickrey,
    WordMechanism,
    open_index,
)
from beam_dp.embeddings import EmbeddingIndex
from beam_dp.embeddings.search import QUERY_BLOCK, Floats
from beam_dp.errors import require_count, require_positive
from beam_dp.mechanisms import BoundMechanism
from beam_dp.randomness import SecureSource
from benchmarks.measure import (
    Report,
    alternate,
    declare_cores,
    load_indexes,
    machine,
    number,
    pin,
    restart_with_one_blas_thread,
    table,
)
from benchmarks.poincare import mammals, missing
from pipelines.main import run_main
from pipelines.options import parse_flags

_MAMMALS = "mammals"


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this benchmark to ``parser``."""
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON instead of, or into FILE besides")
    parser.add_argument("--index", action="append", default=[], metavar="DIR", help="one more index; may be repeated")
    parser.add_argument("--only", metavar="NAME", help="of the indexes, only the one of this name")
    parser.add_argument("--words", type=int, default=8192, metavar="N", help="drawn each round (default: 8192)")
    parser.add_argument(
        "--epsilon", type=float, default=10.0, help="of all mechanisms (default: 10), see above for Poincaré"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")
    declare_cores(parser, "the last")


def main(argv: list[str]) -> None:
    """Measures what ``argv`` asks for."""
    flags = parse_flags(argv, declare, description="Measures noise and projection beside the bare matrix product.")
    require_count("--words", flags.words)
    require_count("--rounds", flags.rounds)
    require_positive("--epsilon", flags.epsilon)
    report = Report(machine(pin(flags.cores, 1)), flags.json)
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as folder:
        indexes = load_indexes(flags.index)
        reason = missing()
        if reason is None:
            indexes.append((_MAMMALS, mammals(Path(folder) / _MAMMALS)))
        elif flags.only in (None, _MAMMALS):
            report.say("", f"{_MAMMALS}: not measured, {reason}")
        for name, ref in indexes:
            if flags.only in (None, name):
                measure(report, flags, name, ref)
    report.finish()


def mechanisms_for(index: EmbeddingIndex, epsilon: float) -> list[WordMechanism]:
    """What is measured on ``index``: of both kinds of metric, the one that it has."""
    if index.metric == "poincare":
        epsilon = max(epsilon, index.dimension)
        return [HyperbolicLaplace(epsilon), HyperbolicLaplace(epsilon, prefer_general=True), Exponential(epsilon)]
    return [MultivariateLaplace(epsilon), Mahalanobis(epsilon), Vickrey(epsilon), RankCorrectedLaplace(epsilon)]


def measure(report: Report, flags: Namespace, name: str, ref: IndexRef) -> None:
    """One table: the bare product and every mechanism on one vocabulary."""
    index = open_index(ref, "exact")
    mechanisms = mechanisms_for(index, flags.epsilon)
    ids = np.random.default_rng(0).integers(0, index.size, flags.words).astype(np.int32)
    source = SecureSource()

    def draws(bound: BoundMechanism) -> Callable[[int], object]:
        return lambda _: bound.sample(ids, source.generator)

    calls = [bare_product(index.vectors, flags.words), *(draws(mechanism.bind(index)) for mechanism in mechanisms)]
    seconds = np.median(alternate(calls, flags.rounds), axis=1).tolist()
    labels = ["sgemm", *(repr(mechanism) for mechanism in mechanisms)]
    rows: list[dict[str, Any]] = [
        {
            "benchmark": "projections",
            "index": name,
            "size": index.size,
            "dimension": index.dimension,
            "digest": index.digest,
            "what": label,
            "words": flags.words,
            "cpu_seconds": taken,
            "words_per_cpu_second": flags.words / taken,
            "of_sgemm": seconds[0] / taken,
        }
        for label, taken in zip(labels, seconds, strict=True)
    ]
    cells = [
        [row["what"], f"{row['cpu_seconds']:.3f}", number(row["words_per_cpu_second"]), f"{row['of_sgemm']:.0%}"]
        for row in rows
    ]
    title = f"{name}, {index.size:,} x {index.dimension}, {index.metric}, exact search, {flags.words:,} words"
    report.section(title, table(("", "CPU s", "words/CPU-s", "of sgemm"), cells), rows)


def bare_product(vectors: Floats, rows: int) -> Callable[[int], None]:
    """The float32 product of ``rows`` query vectors with all ``vectors`` (V, d), `QUERY_BLOCK` rows at a time."""
    queries = np.random.default_rng(0).standard_normal((min(rows, QUERY_BLOCK), vectors.shape[1]), dtype=np.float32)
    transposed = np.ascontiguousarray(vectors.T)
    scores = np.empty((len(queries), len(vectors)), dtype=np.float32)

    def run(_: int) -> None:
        for start in range(0, rows, QUERY_BLOCK):
            block = slice(0, min(QUERY_BLOCK, rows - start))
            np.dot(queries[block], transposed, out=scores[block])

    return run


if __name__ == "__main__":
    restart_with_one_blas_thread()
    sys.exit(run_main(main))
