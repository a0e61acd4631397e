"""Compares word mechanisms by what they do to words: how often one stays itself, and how many others it becomes.

    python -m pipelines.calibrate --mechanisms=multivariate_laplace,exponential --epsilons=1,5,10,20 --output=PREFIX
        [--words=200] [--runs=100] [--index=DIR_OR_URI] [--target=0.5 [--statistic=mean]]

Draws words of the public vocabulary, so that no text is read and no budget is spent. Writes PREFIX.txt (a table),
PREFIX.png (a picture) and PREFIX.html (both in one page). With --target it also finds the epsilon of each mechanism at
which words stay themselves that often. Parameters other than epsilon have their defaults.
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from beam_dp import MECHANISMS, open_index, resolve_index
from beam_dp.accounting.report.pictures import require_matplotlib
from beam_dp.audit.calibration import STATISTICS, calibrate
from beam_dp.audit.comparison import compare, table_text
from beam_dp.audit.comparison_page import comparison_page, comparison_png
from beam_dp.embeddings import EmbeddingIndex
from beam_dp.embeddings.files import exists
from beam_dp.errors import ArgumentError, ResourceError, require_choice, require_count
from beam_dp.io.files import last_component, local_absolute, require_file_system
from beam_dp.io.publish import require_writable
from beam_dp.mechanisms.base import WordIds, WordMechanism
from pipelines.accountant import write_bytes
from pipelines.main import progress, run_main, summary
from pipelines.options import declare_index, names_in, parse_flags

_SUFFIXES = (".txt", ".png", ".html")


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this program to ``parser``."""
    parser.add_argument("--mechanisms", metavar="A,B", help=f"what to compare: {', '.join(sorted(MECHANISMS))}")
    parser.add_argument("--epsilons", metavar="E,F", help="where to compare, e.g. 1,5,10,20")
    parser.add_argument("--output", metavar="PREFIX", help=f"a path or URI: writes PREFIX with {', '.join(_SUFFIXES)}")
    parser.add_argument(
        "--words",
        default="200",
        metavar="N|A,B",
        help="which words to draw: so many, from the most to the least frequent, or these (default: 200)",
    )
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="draws of each word (default: 100)")
    declare_index(parser)
    parser.add_argument(
        "--target",
        type=float,
        metavar="SHARE",
        help="also find the epsilon of each mechanism at which words stay themselves in this share of draws",
    )
    parser.add_argument(
        "--statistic", choices=STATISTICS, default="mean", help="of --target: over the words (default: mean)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist (default: refuse)")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")


def epsilons_in(text: str) -> list[float]:
    """The numbers in the value of ``--epsilons``, ascending.

    Raises:
        ArgumentError: one is no finite number above 0.
    """
    try:
        found = sorted({float(item) for item in names_in(text)})
    except ValueError:
        found = []
    if not found or not all(0 < epsilon < math.inf for epsilon in found):
        raise ArgumentError("--epsilons must be finite numbers above 0 with commas between them, such as 1,5,10,20")
    return found


def words_in(text: str, index: EmbeddingIndex) -> WordIds:
    """The ids of the words that the value of ``--words`` names.

    Raises:
        ArgumentError: it names none, or one that is not in the vocabulary.
    """
    if text.strip().isdecimal():
        count = require_count("--words", int(text))
        return np.unique(np.linspace(0, index.size - 1, min(count, index.size)).round().astype(np.int32))
    named = names_in(text)
    ids = index.lookup(pa.array(named, pa.string()))
    if not named or (ids < 0).any():
        which = f"number {int(np.argmin(ids)) + 1} of them is not" if named else "there are none"
        raise ArgumentError(f"--words must be a number, or words of the index with commas between them: {which}")
    return np.unique(ids)


def main(argv: list[str]) -> None:
    """Draws, prints the table, and writes it with its picture."""
    flags = parse_flags(argv, declare, description=str(__doc__))
    for name in ("mechanisms", "epsilons", "output"):
        if not getattr(flags, name):
            raise ArgumentError(f"--{name} is required: write --{name}=VALUE")
    chosen = {
        name: MECHANISMS[require_choice("--mechanisms", name, tuple(sorted(MECHANISMS)))]
        for name in names_in(flags.mechanisms)
    }
    epsilons = epsilons_in(flags.epsilons)
    require_matplotlib()
    outputs = [local_absolute(f"{flags.output}{suffix}") for suffix in _SUFFIXES]
    for path in outputs:
        require_file_system("--output", path)
        if not flags.overwrite and exists(path):
            raise ResourceError(f"output already exists: {last_component(path)}; choose another or pass --overwrite")
    require_writable(*outputs)
    index = open_index(resolve_index(flags.index))
    words = words_in(flags.words, index)
    names = index.words.to_pylist()
    with progress("drawing"):
        compared = list(compare(chosen, index, epsilons, require_count("--runs", flags.runs), words))
        text = table_text(compared, names)
        if flags.target is not None:
            text += "\n" + "".join(f"{line}\n" for line in _targets(chosen, index, words, flags))
        page = comparison_page(compared, names, index_digest=index.digest, source=index.manifest.source)
        contents = (text.encode(), comparison_png(compared), page.encode())
    for path, content in zip(outputs, contents, strict=True):
        write_bytes(path, content, overwrite=flags.overwrite)
    summary(text, *(f"written: {flags.output}{suffix}" for suffix in _SUFFIXES))


def _targets(
    mechanisms: Mapping[str, Callable[[float], WordMechanism]], index: EmbeddingIndex, words: WordIds, flags: Namespace
) -> Iterator[str]:
    """What ``--target`` found for each mechanism: a line."""
    for name, mechanism in mechanisms.items():
        try:
            found = calibrate(mechanism, index, flags.target, statistic=flags.statistic, words=words, runs=flags.runs)
        except ArgumentError as error:
            yield f"{name}: no epsilon for --target: {error}"
        else:
            yield found.sentence()


if __name__ == "__main__":
    sys.exit(run_main(main))
