"""Trains a Poincaré embedding of a hierarchy of words.

    python -m pipelines.train_poincare --edges=hypernyms.tsv --output=vectors.bin
    python -m pipelines.train_poincare --wordnet=/usr/share/wordnet/data.noun --root=mammal --index=mammals

An edge file has a word, a tab and a more general word in every line. The output is a file of vectors that
pipelines.build_index reads with --metric=poincare; --index makes the index at once. Needs the extra: pip install
'beam_dp[poincare]'.
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from beam_dp.embeddings import build_index
from beam_dp.embeddings.build import check_build
from beam_dp.embeddings.files import exists, local_path, raise_write_error, sync, upload
from beam_dp.embeddings.hypernyms import read_edges, read_wordnet
from beam_dp.errors import ArgumentError, require_count
from pipelines.main import run_main, summary
from pipelines.options import parse_flags

Relations = list[tuple[str, str]]


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this program to ``parser``."""
    parser.add_argument("--edges", metavar="FILE", help="a word, a tab and a more general word in every line")
    parser.add_argument("--wordnet", metavar="FILE", help="instead of --edges: data.noun of WordNet")
    parser.add_argument("--root", metavar="WORD", help="train this word and what is below it only")
    parser.add_argument(
        "--direct",
        action="store_true",
        help="train the pairs of the file alone; without it, also each word with all that is above it",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="vectors to write, in word2vec's binary format (name it *.bin)"
    )
    parser.add_argument("--index", metavar="DIR", help="folder or URI of an index to make of them")
    parser.add_argument(
        "--dimension",
        type=int,
        default=5,
        metavar="N",
        help="of the vectors; hyperbolic_laplace needs an epsilon above N-1 (default: 5)",
    )
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="passes over all pairs (default: 50)")
    parser.add_argument("--negative", type=int, default=10, metavar="N", help="unrelated words a pair (default: 10)")
    parser.add_argument("--source", default="", metavar="TEXT", help="with --index: recorded in its manifest")
    parser.add_argument("--licence", default="", metavar="TEXT", help="with --index: recorded in its manifest")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--dry_run", action="store_true", help="say what would be trained; write nothing")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")


def main(argv: list[str]) -> None:
    """Trains the embedding that ``argv`` asks for, writes it, and prints how it came out."""
    flags = parse_flags(argv, declare, description=str(__doc__))
    _check(flags)
    hierarchy = read_edges(flags.edges) if flags.edges else read_wordnet(flags.wordnet)
    relations = hierarchy.relations(root=flags.root, direct=flags.direct)
    words = len({word for pair in relations for word in pair})
    most = words - max(Counter(word for word, _ in relations).values())
    if flags.negative > most:
        raise ArgumentError(f"--negative must be at most {most}: some word has no more unrelated ones")
    found = f"{len(relations):,} pairs of {words:,} words"
    if flags.dry_run:
        summary(f"would train {found} in {flags.dimension} dimensions", "dry run: nothing was written")
        return
    names, vectors = train(relations, flags.dimension, flags.epochs, flags.negative)
    lines = [f"{found} trained", _order(names, vectors, relations)]
    with tempfile.TemporaryDirectory(prefix="beam_dp-poincare-") as folder:
        file = Path(folder) / "vectors.bin"
        write_vectors(file, names, vectors)
        if flags.output:
            _publish(file, flags.output)
            lines.append(f"published: {flags.output}")
        if flags.index:
            report = build_index(
                str(file),
                flags.index,
                metric="poincare",
                source=flags.source,
                licence=flags.licence,
                overwrite=flags.overwrite,
            )
            lines += [f"index of {report.manifest.size:,} words, digest {report.digest}", f"published: {flags.index}"]
    summary(*lines)


def _check(flags: Namespace) -> None:
    """ArgumentError for what can be told to be wrong before anything is read."""
    if bool(flags.edges) == bool(flags.wordnet):
        raise ArgumentError("--edges or --wordnet is required, and one of them: write --edges=FILE")
    if not flags.output and not flags.index:
        raise ArgumentError("--output or --index is required: write --output=FILE")
    for name in ("dimension", "epochs", "negative"):
        require_count(f"--{name}", getattr(flags, name))
    if not flags.index and (flags.source or flags.licence):
        raise ArgumentError("--source and --licence are recorded in an index: set --index, or leave them out")
    if flags.output:
        path = local_path(flags.output)
        if path is not None and path.is_dir():
            raise ArgumentError(f"--output {flags.output} is a folder: give the name of a file")
        if not flags.overwrite and (exists(flags.output) if path is None else path.exists()):
            raise ArgumentError(f"--output {flags.output} exists: give another file, or --overwrite to replace it")
    if flags.index:
        check_build("vectors.bin", flags.index, metric="poincare", overwrite=flags.overwrite)
    _poincare_model()


def _poincare_model() -> type:
    """gensim's class, which an extra brings."""
    try:
        from gensim.models.poincare import PoincareModel  # noqa: PLC0415 (an optional dependency)
    except ImportError:
        raise ArgumentError("training needs the extra: pip install 'beam_dp[poincare]'") from None
    model: type = PoincareModel
    return model


def train(
    relations: Relations, dimension: int, epochs: int, negative: int
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The words of ``relations``, those with the most relations first, and their points in the ball: (V, d) float32.

    The same relations give the same points. Nickel and Kiela, "Poincaré Embeddings for Learning Hierarchical
    Representations", NIPS 2017, as gensim implements it; points are clipped to a norm of 1 - 1e-5.

    Args:
        relations: pairs (word, more general word).
        negative: unrelated words that each pair is compared with.
    """
    model = _poincare_model()(relations, size=dimension, negative=negative, seed=0)
    # disable=None: no bar unless stderr is a terminal
    for _ in tqdm(range(epochs), desc="training", unit=" epochs", disable=None):
        model.train(epochs=1)
    counts = Counter(word for pair in relations for word in pair)
    order = sorted(range(len(counts)), key=lambda at: (-counts[model.kv.index_to_key[at]], at))
    return [model.kv.index_to_key[at] for at in order], model.kv.vectors[order].astype(np.float32)


def write_vectors(path: Path, words: list[str], vectors: npt.NDArray[np.float32]) -> None:
    """Writes ``words`` and ``vectors`` (V, d) in word2vec's binary format, which `beam_dp.embeddings.formats` reads."""
    rows = vectors.astype("<f4")
    with path.open("wb") as target:
        target.write(f"{len(rows)} {rows.shape[1]}\n".encode())
        target.writelines(word.encode() + b" " + row.tobytes() for word, row in zip(words, rows, strict=True))


def _order(names: list[str], vectors: npt.NDArray[np.float32], relations: Relations) -> str:
    """How often the more general word of a pair is nearer to the origin, which `prefer_general` counts on."""
    norm = dict(zip(names, np.linalg.norm(vectors, axis=1).tolist(), strict=True))
    kept = sum(norm[general] < norm[word] for word, general in relations)
    return f"the more general word of a pair is nearer to the origin in {kept / len(relations):.0%} of them"


def _publish(file: Path, output: str) -> None:
    """Makes a copy of ``file`` appear at ``output`` at once."""
    path = local_path(output)
    if path is None:
        upload(file, output)
        return
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(file.read_bytes())
        sync(part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise_write_error(error, "the vectors", str(path.parent))


if __name__ == "__main__":
    sys.exit(run_main(main))
