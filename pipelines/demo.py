"""The main job on the utterances that ship with the package, before and after side by side.

    python -m pipelines.demo

It compares private output with its input, which is why it exists for made-up utterances only: on real texts such
figures would be a leak.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from apache_beam.options.pipeline_options import TestOptions

from beam_dp import open_index, resolve_index
from beam_dp.text import tokenize
from pipelines import privatize_text
from pipelines.main import run_main, summary
from pipelines.options import parse_options

UTTERANCES = Path(__file__).with_name("data") / "utterances.txt"
EPSILON = 8
_SHOWN = 10


def main(argv: list[str]) -> None:
    """Privatizes the utterances into a temporary folder and shows what became of them."""
    dry_run = parse_options(argv).view_as(TestOptions).dry_run
    with tempfile.TemporaryDirectory(prefix="beam_dp_demo_") as folder:
        prefix = f"{folder}/utterances"
        summary(
            f"$ python -m pipelines.privatize_text --input={UTTERANCES.name} --output=PREFIX --epsilon={EPSILON}", ""
        )
        privatize_text.main([*argv, f"--input={UTTERANCES}", f"--output={prefix}", f"--epsilon={EPSILON}"])
        if dry_run:
            return
        before = UTTERANCES.read_text(encoding="utf-8").splitlines()
        after = [line for shard in sorted(Path(folder).glob("*-of-*.txt")) for line in shard.read_text().splitlines()]
    summary("", *_side_by_side(before[:_SHOWN], after[:_SHOWN]), "", *_statistics(before, after))


def _side_by_side(before: list[str], after: list[str]) -> list[str]:
    return [
        line for pair in zip(before, after, strict=True) for line in (f"  before  {pair[0]}", f"  after   {pair[1]}")
    ]


def _statistics(before: list[str], after: list[str]) -> list[str]:
    """How much the words changed; a comparison of output with input, never made for anybody's data."""
    index = open_index(resolve_index())
    words = tokenize(pa.array(before)).words
    ids = index.lookup(words)
    known = ids[ids >= 0]
    drawn = index.lookup(pa.array([word for line in after for word in line.split(" ") if word]))
    return [
        f"{len(known):,} of {len(words):,} words are in the vocabulary of {index.size:,}; the others were dropped",
        f"{np.mean(known == drawn):.0%} of them stay the same word",
        f"{len(np.unique(known)):,} distinct words went in, {len(np.unique(drawn)):,} distinct words came out",
    ]


if __name__ == "__main__":
    sys.exit(run_main(main))
