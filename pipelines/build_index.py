"""Builds an embedding index from a file of word vectors.

    python -m pipelines.build_index --vectors=glove.6B.300d.txt --output=glove-300

The index is a folder (or a URI of a Beam file system) that the text pipelines take as ``--index``.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from beam_dp.embeddings import BuildReport, build_index
from beam_dp.embeddings.build import DEFAULT_TREES, check_build
from beam_dp.embeddings.formats import FORMATS, read_vectors
from beam_dp.embeddings.manifest import ForestRecord
from beam_dp.errors import ArgumentError, InputError
from pipelines.main import run_main, summary
from pipelines.options import parse_flags


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this program to ``parser``."""
    parser.add_argument("--vectors", metavar="FILE", help="word vectors, a path or URI; may be gzipped")
    parser.add_argument("--output", metavar="DIR", help="folder or URI of the index to make")
    parser.add_argument("--words", metavar="FILE", help="with a .npy matrix: its words, one a line")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="of the vectors (default: auto)")
    parser.add_argument("--max_words", type=int, metavar="N", help="keep the first N usable words only")
    parser.add_argument(
        "--trees", type=int, metavar="N", help=f"euclidean: trees of the Annoy index (default: {DEFAULT_TREES})"
    )
    parser.add_argument(
        "--metric",
        default="euclidean",
        help="metric of the distances: euclidean, or poincare for points of the Poincaré ball (default: euclidean)",
    )
    parser.add_argument("--source", default="", metavar="TEXT", help="recorded in the manifest: where this comes from")
    parser.add_argument("--licence", default="", metavar="TEXT", help="recorded in the manifest: under which licence")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that exists")
    parser.add_argument("--dry_run", action="store_true", help="say what would be built; write nothing")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")


def main(argv: list[str]) -> None:
    """Builds the index that ``argv`` asks for and prints what became of it."""
    flags = parse_flags(argv, declare, description="Builds an embedding index from a file of word vectors.")
    for name in ("vectors", "output"):
        if not getattr(flags, name):
            raise ArgumentError(f"--{name} is required: write --{name}=VALUE")
    if flags.dry_run:
        summary(*_plan(flags), "dry run: nothing was written")
        return
    report = build_index(
        flags.vectors,
        flags.output,
        words=flags.words,
        format=flags.format,
        max_words=flags.max_words,
        trees=flags.trees,
        metric=flags.metric,
        source=flags.source,
        licence=flags.licence,
        overwrite=flags.overwrite,
    )
    summary(*_lines(report))


def _plan(flags: Namespace) -> list[str]:
    """What would be built, as far as the arguments and the first vectors tell."""
    format = check_build(
        flags.vectors,
        flags.output,
        format=flags.format,
        max_words=flags.max_words,
        trees=flags.trees,
        metric=flags.metric,
        overwrite=flags.overwrite,
    )
    first = next(read_vectors(flags.vectors, flags.words, format), None)
    if first is None:
        raise InputError(f"{flags.vectors} holds no words")
    most = "all usable words" if flags.max_words is None else f"the first {flags.max_words:,} usable words"
    return [
        f"would read {most} of {flags.vectors}: format {format}, dimension {first.vectors.shape[1]}",
        f"would build an index with the {flags.metric} metric and "
        + ("exact search" if flags.metric == "poincare" else f"{flags.trees or DEFAULT_TREES} Annoy trees"),
        f"would publish: {flags.output}",
    ]


def _lines(report: BuildReport) -> list[str]:
    """What was built, for people."""
    manifest = report.manifest
    distances, annoy = manifest.distances, manifest.annoy
    dropped = [
        f"dropped {entry.count:,} words: {entry.reason.replace('_', ' ')} (at {_places(entry.lines, entry.count)})"
        for entry in report.dropped
    ]
    search = "search: always exact" if annoy is None else _recall(annoy)
    return [
        f"{manifest.size:,} words of dimension {manifest.dimension} kept",
        *dropped,
        f"distances ({manifest.metric}): smallest {distances.min_neighbour:.6g}, median to the nearest "
        f"{distances.median_neighbour:.6g}, diameter at most {distances.diameter:.6g}",
        f"words with the vector of an earlier word: {distances.duplicate_vectors:,}",
        search,
        f"digest {report.digest}",
        f"published: {report.output}",
    ]


def _recall(annoy: ForestRecord) -> str:
    recall = ", ".join(
        f"{point.recall:.2f} at epsilon {point.epsilon:g}"
        for point in annoy.recall_at_1
        if point.search_k == annoy.search_k
    )
    return f"Annoy recall@1 ({annoy.trees} trees, search_k {annoy.search_k:,}): {recall}"


def _places(lines: tuple[int, ...], count: int) -> str:
    shown = ", ".join(str(line) for line in lines)
    return f"{'line' if count == 1 else 'lines'} {shown}{', ...' if count > len(lines) else ''}"


if __name__ == "__main__":
    sys.exit(run_main(main))
