"""Exact search beside Annoy at equal recall on noisy queries: where does a vocabulary outgrow exact search?

    python -m benchmarks.search [--json[=FILE]] [--index=DIR ...] [--sizes=20000,100000,400000] [--trees=50]

It runs on one core with one BLAS thread and counts CPU seconds. A query is a word's vector with multivariate Laplace
noise, at the three epsilons of the manifest (noise along a line of a quarter, a half and the whole of the median
neighbour distance). Annoy is timed at the smallest ``search_k`` that reaches recall@1 0.5, and 0.9; the search for it
ends where Annoy costs eight times as much as exact search, which is then shown as empty.

The vocabularies are the index in the package, GloVe 840B where ``$BEAM_DP_DATA`` has it, and those of ``--index``.
With ``--sizes`` each is cut to its first words or, marked synthetic, grown: a made-up word is a real one's vector with
Gaussian noise of about 0.6 times the median neighbour distance in length.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beam_dp.embeddings import open_index
from beam_dp.embeddings.manifest import Distances
from beam_dp.embeddings.recall import NOISE_RATIOS, noise_levels, noisy_queries, recall_at_1
from beam_dp.embeddings.search import AnnoySearch, ExactSearch, Floats, WordIds, build_forest
from beam_dp.errors import ArgumentError
from benchmarks.measure import (
    Report,
    cpu_seconds,
    declare_cores,
    load_indexes,
    machine,
    number,
    pin,
    restart_with_one_blas_thread,
    table,
)
from pipelines.main import run_main
from pipelines.options import parse_flags

_TARGETS = (0.5, 0.9)
_SEARCH_K = tuple(digit * 10**power for power in range(2, 8) for digit in (1, 2, 5))
_GIVE_UP = 8.0
_RECALL_QUERIES = 500
_SAMPLE_WORDS = 1000
_GROWN_NOISE = 0.6


@dataclass(frozen=True)
class Vocabulary:
    """Vectors (V, d) to search, and how they are called."""

    name: str
    vectors: Floats
    median_neighbour: float


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this benchmark to ``parser``."""
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON instead of, or into FILE besides")
    parser.add_argument("--index", action="append", default=[], metavar="DIR", help="one more index; may be repeated")
    parser.add_argument("--sizes", metavar="V,...", help="vocabulary sizes instead of each index's own")
    parser.add_argument("--only", metavar="NAME", help="of the indexes, only the one of this name")
    parser.add_argument("--trees", type=int, default=50, metavar="N", help="trees of the Annoy index (default: 50)")
    parser.add_argument("--queries", type=int, default=1024, metavar="N", help="timed by exact search (default: 1024)")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")
    declare_cores(parser, "the last")


def main(argv: list[str]) -> None:
    """Measures what ``argv`` asks for."""
    flags = parse_flags(argv, declare, description="Measures exact search beside Annoy at equal recall.")
    report = Report(machine(pin(flags.cores, 1)), flags.json)
    rows = []
    for vocabulary in vocabularies(flags):
        rows += measure(vocabulary, flags.trees, flags.queries)
        report.section(f"{vocabulary.name}, V={len(vocabulary.vectors):,}", lines(rows[-len(NOISE_RATIOS) :]), [])
    report.section("All", lines(rows), rows)
    report.finish()


def vocabularies(flags: Namespace) -> Iterator[Vocabulary]:
    """The vocabularies that the flags ask for, one at a time: the large ones fill memory."""
    for name, ref in load_indexes(flags.index):
        if flags.only in (None, name):
            index = open_index(ref)
            median = index.manifest.distances.median_neighbour
            for size in _sizes(flags.sizes) or [index.size]:
                if size > index.size:
                    grown = _grown(index.vectors, size, median)
                    yield Vocabulary(f"{name}, synthetic", grown, _median_neighbour(grown))
                elif size < index.size:
                    yield Vocabulary(name, index.vectors[:size], _median_neighbour(index.vectors[:size]))
                else:
                    yield Vocabulary(name, index.vectors, median)


def _sizes(text: str | None) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        sizes = [0]
    if any(size < _SAMPLE_WORDS for size in sizes):
        raise ArgumentError(f"--sizes must be whole numbers of at least {_SAMPLE_WORDS}, separated by commas")
    return sizes


def _grown(vectors: Floats, size: int, median: float) -> Floats:
    rng = np.random.default_rng(0)
    grown = np.empty((size, vectors.shape[1]), dtype=np.float32)
    grown[: len(vectors)] = vectors
    deviation = np.float32(_GROWN_NOISE * median / np.sqrt(vectors.shape[1]))
    for start in range(len(vectors), size, 4096):
        block = grown[start : start + 4096]
        block[:] = vectors[rng.integers(0, len(vectors), len(block))]
        block += deviation * rng.standard_normal(block.shape, dtype=np.float32)
    return grown


def _median_neighbour(vectors: Floats) -> float:
    """The median distance of a sample of words to their nearest other word."""
    chosen = np.random.default_rng(0).choice(len(vectors), _SAMPLE_WORDS, replace=False)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    nearest = np.empty(_SAMPLE_WORDS)
    for start in range(0, _SAMPLE_WORDS, 100):
        words = chosen[start : start + 100]
        gaps = squares - 2 * (vectors[words] @ vectors.T) + squares[words, None]
        gaps[np.arange(len(words)), words] = np.inf
        nearest[start : start + 100] = np.sqrt(np.maximum(gaps.min(axis=1), 0))
    return float(np.median(nearest))


def measure(vocabulary: Vocabulary, trees: int, count: int) -> list[dict[str, Any]]:
    """One row for each noise level: queries per CPU second of exact search, and of Annoy at each target."""
    vectors = vocabulary.vectors
    size, dimension = vectors.shape
    exact = ExactSearch(vectors)
    scale = Distances(
        diameter=1.0, min_neighbour=0.0, median_neighbour=vocabulary.median_neighbour, duplicate_vectors=0
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="beam_dp_benchmark_") as folder:
        forest = Path(folder) / "index.ann"
        build_forest(vectors, forest, trees, lambda done: None)
        annoy = AnnoySearch(forest, size, dimension, search_k=1)
        for ratio, epsilon in zip(NOISE_RATIOS, noise_levels(dimension, scale), strict=True):
            queries = noisy_queries(vectors, epsilon, max(count, _RECALL_QUERIES))
            exact.nearest(queries[:_RECALL_QUERIES])
            seconds = cpu_seconds(lambda queries=queries: exact.nearest(queries[:count])) / count  # type: ignore[misc]
            row = {
                "benchmark": "search",
                "vocabulary": vocabulary.name,
                "size": size,
                "dimension": dimension,
                "trees": trees,
                "noise_ratio": ratio,
                "epsilon": epsilon,
                "exact_per_second": 1 / seconds,
            }
            rows.append(row | _annoy(annoy, exact, vectors, queries[:_RECALL_QUERIES], seconds))
    return rows


def _annoy(
    annoy: AnnoySearch, exact: ExactSearch, vectors: Floats, queries: Floats, exact_seconds: float
) -> dict[str, float | None]:
    """The smallest ``search_k`` for each target recall and what it costs."""
    nearest = exact.nearest(queries)
    found: dict[str, float | None] = {}
    recall, seconds = 0.0, 0.0
    ladder = iter(_SEARCH_K)
    for target in _TARGETS:
        while recall < target and seconds < _GIVE_UP * exact_seconds:
            annoy.search_k = next(ladder)
            ids: list[WordIds] = []
            seconds = cpu_seconds(_collect(ids, annoy, queries)) / len(queries)
            recall = recall_at_1(vectors, ids[0], nearest)
        reached = recall >= target
        found |= {
            f"annoy_search_k_{target}": annoy.search_k if reached else None,
            f"annoy_recall_{target}": recall if reached else None,
            f"annoy_per_second_{target}": 1 / seconds if reached else None,
            f"exact_over_annoy_{target}": seconds / exact_seconds if reached else None,
        }
    return found


def _collect(results: list[WordIds], annoy: AnnoySearch, queries: Floats) -> Callable[[], None]:
    return lambda: results.append(annoy.nearest(queries))


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table: rates in queries per CPU second; the factor is exact's rate over Annoy's."""
    headings = ["vocabulary", "V", "d", "noise", "epsilon", "exact/s"]
    for target in _TARGETS:
        headings += [f"annoy/s @{target}", "search_k", "factor"]
    cells = []
    for row in rows:
        line = [row["vocabulary"], f"{row['size']:,}", str(row["dimension"]), f"{row['noise_ratio']:g}"]
        line += [f"{row['epsilon']:g}", number(row["exact_per_second"])]
        for target in _TARGETS:
            line += [
                number(row[f"{what}_{target}"]) for what in ("annoy_per_second", "annoy_search_k", "exact_over_annoy")
            ]
        cells.append(line)
    return table(headings, cells)


if __name__ == "__main__":
    restart_with_one_blas_thread()
    sys.exit(run_main(main))
