"""Publishes the words or n-grams of a corpus that enough people use, with how many use each.

    python -m pipelines.private_vocabulary --input=GLOB --output=PREFIX --privacy_unit=user --ngrams=1/2
        --max_partitions=50 --epsilon=1 --delta=1e-6

Reads texts and their privacy units from jsonl, csv, tsv or parquet. The output has the column ngram, then each metric
(privacy_unit_count, or count: how often it occurs) with its _noise_stddev, _ci_low and _ci_high. epsilon and delta hold
for all texts of one privacy unit together, of which at most --max_partitions different n-grams are used, a random
choice. Words are lower case, without punctuation.

Each run spends epsilon and delta anew, also one that fails. What a run says about rows that it cannot use is exact and
for your eyes only: how many were rejected and where (manifest, PREFIX-rejects, error), or the error that it fails with.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import Ledger
from beam_dp.aggregate import Count, PrivacyUnitCount
from beam_dp.aggregate.ordered import InKeyOrder
from beam_dp.errors import ArgumentError
from beam_dp.text import NGRAM_COLUMN, SplitIntoNgrams
from pipelines.main import run_main
from pipelines.options import TextInputOptions, parse_options
from pipelines.run import publish, run_pipeline
from pipelines.unit_options import UnitOptions, aggregate_from, metrics_from, unit_files, unit_source, with_unit


class VocabularyOptions(PipelineOptions):
    """The options of this pipeline alone."""

    shared = (TextInputOptions, UnitOptions, *UnitOptions.shared)

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--ngrams",
            default="1",
            metavar="N/N/...",
            help="how many words an n-gram has, e.g. 1/2/3 for words, pairs and triples (default: 1)",
        )


def sizes_in(text: str) -> tuple[int, ...]:
    """The numbers of words that the value of ``--ngrams`` names.

    Raises:
        ArgumentError: it is no list of whole numbers.
    """
    if not re.fullmatch(r"[0-9]{1,3}(/[0-9]{1,3})*", text):
        raise ArgumentError("--ngrams must be whole numbers with slashes between them, such as 1/2/3")
    return tuple(map(int, text.split("/")))


def build(pipeline: beam.Pipeline, ledger: Ledger, options: PipelineOptions) -> None:
    """Adds read, split, aggregate and publish to ``pipeline``."""
    texts, units = options.view_as(TextInputOptions), options.view_as(UnitOptions)
    metrics = metrics_from(options, default=PrivacyUnitCount().title)
    if any(metric not in (Count(), PrivacyUnitCount()) for metric in metrics):
        raise ArgumentError("--metrics: n-grams can be counted, by count and privacy_unit_count; they have no numbers")
    aggregate = aggregate_from(options, unit_files(options), NGRAM_COLUMN, metrics)
    split = SplitIntoNgrams(
        privacy_unit=units.privacy_unit,
        text_column=texts.text_column,
        sizes=sizes_in(options.view_as(VocabularyOptions).ngrams),
        max_words=texts.max_words,
    )
    source = unit_source(options, text_column=texts.text_column)
    read = pipeline | "Read" >> source.with_rejects()
    rows = with_unit(read.batches, source, units.privacy_unit)
    released = rows | "Split" >> split | "Aggregate" >> aggregate | "Order" >> InKeyOrder((NGRAM_COLUMN,))
    publish(released, read.rejected, source=source, ledger=ledger, options=options)


def main(argv: list[str]) -> None:
    """Parses the options, runs the pipeline, and says what was done."""
    options = parse_options(argv, VocabularyOptions, description=str(__doc__))
    run_pipeline(
        options,
        build,
        name="private_vocabulary",
        doing="counting",
        done=lambda count: f"{count('rows'):,} n-grams released",
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
