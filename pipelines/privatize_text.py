"""Privatizes a file of texts word by word.

    python -m pipelines.privatize_text --input=GLOB --output=PREFIX --mechanism=multivariate_laplace --epsilon=12

Reads text, jsonl, csv, tsv or parquet, replaces every word of the text column by a draw of the mechanism, and
publishes the shards, a manifest and the ledger together. Columns that are not named in --keep_columns are dropped.
"""

from __future__ import annotations

import dataclasses
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import MECHANISMS, Ledger, PrivatizeText, ReadBatches, WordMechanism
from beam_dp.errors import ArgumentError, require_choice
from beam_dp.text import OOV_POLICIES
from pipelines.main import run_main
from pipelines.options import (
    EpsilonOptions,
    RunOptions,
    TextInputOptions,
    declare_index,
    names_in,
    parse_options,
)
from pipelines.run import publish, run_pipeline

MECHANISM_PARAMETERS = (
    "epsilon",
    "scale",
    "neighbours",
    "covariance_weight",
    "second_weight",
    "rank_decay",
    "max_noise",
    "gamma",
    "bandwidth",
    "prefer_general",
)


def declare_gamma(parser: ArgumentParser) -> None:
    """The flag of a parameter that means the same wherever there is one."""
    parser.add_argument(
        "--gamma",
        type=float,
        help="truncated_exponential: distance beyond which words share a bucket (default: one word in 1,000 comes from "
        "there)",
    )


class MechanismOptions(PipelineOptions):
    """The options of the pipelines that have a word mechanism; `EpsilonOptions` belong to them too."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--mechanism",
            choices=sorted(MECHANISMS),
            default="multivariate_laplace",
            help="what is drawn for each word (default: multivariate_laplace)",
        )
        parser.add_argument("--scale", type=float, help="truncated_gumbel: noise scale instead of --epsilon")
        parser.add_argument(
            "--neighbours",
            type=int,
            help="truncated_gumbel, knn_truncated: candidates of a word (default: 40); rank_corrected_laplace: ranks "
            "(default: 100)",
        )
        parser.add_argument(
            "--covariance_weight",
            type=float,
            help="mahalanobis: lambda, weight of the vocabulary's covariance in the norm, 0 to 0.99 (default: 0.2)",
        )
        parser.add_argument(
            "--second_weight",
            type=float,
            help="vickrey: t, 0 for always the nearest word to 1 for always the second nearest (default: 0.5)",
        )
        parser.add_argument(
            "--rank_decay",
            type=float,
            help="rank_corrected_laplace: c in the weight exp(-c*epsilon*rank) of a neighbour (default: 0.04)",
        )
        parser.add_argument(
            "--max_noise",
            type=float,
            help="distance_truncated_laplace: R, a distance: no noise is longer (default: the least for which delta is "
            "at most 1e-6)",
        )
        declare_gamma(parser)
        parser.add_argument(
            "--bandwidth",
            type=float,
            help="density_prior, density_laplace: bandwidth of the kernel density (default: the median neighbour "
            "distance; density_laplace: that over the root of the dimension, and at most 600/epsilon)",
        )
        parser.add_argument(
            "--prefer_general",
            action="store_true",
            default=None,
            help="hyperbolic_laplace: of the two words nearest to the noisy point prefer the more general one",
        )
        declare_index(parser)


class PrivatizeTextOptions(PipelineOptions):
    """The options of this pipeline alone."""

    shared = (MechanismOptions, EpsilonOptions, TextInputOptions)

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--keep_columns", metavar="A,B", help="columns to pass on unchanged and unprotected")
        parser.add_argument(
            "--oov",
            choices=OOV_POLICIES,
            default="drop",
            help="unknown words vanish or become random ones (default: drop)",
        )
        parser.add_argument(
            "--search",
            choices=("auto", "exact", "annoy"),
            default="auto",
            help="how the nearest word is found (default: auto)",
        )


def mechanism_from(options: PipelineOptions) -> WordMechanism:
    """The mechanism that ``--mechanism`` and its parameters name.

    Raises:
        ArgumentError: a parameter is out of range, missing, or one that the mechanism does not have.
    """
    values = options.get_all_options()
    return make_mechanism(values["mechanism"], {name: values[name] for name in MECHANISM_PARAMETERS}, written="--")


def make_mechanism(name: str, parameters: Mapping[str, Any], *, written: str = "") -> WordMechanism:
    """The mechanism of this name.

    Args:
        name: a key of `MECHANISMS`.
        parameters: by name; None where one was not given.
        written: what stands in front of a name in an error, as in ``--epsilon``.

    Raises:
        ArgumentError: there is no such mechanism; a parameter is out of range, missing, or one that it does not have.
    """
    mechanism = MECHANISMS[require_choice(f"{written}mechanism", name, tuple(sorted(MECHANISMS)))]
    known = {field.name for field in dataclasses.fields(mechanism)}  # type: ignore[arg-type]
    given = {parameter: value for parameter, value in parameters.items() if value is not None}
    for parameter in given:
        if parameter not in known:
            raise ArgumentError(f"{written}{parameter} is not a parameter of {name}: leave it out")
    if "epsilon" not in given and "scale" not in given:
        raise ArgumentError(f"{written}epsilon is required: a finite number above 0")
    return mechanism(**given)


def privatizer_from(options: PipelineOptions) -> PrivatizeText:
    """The transform that the options of `PrivatizeTextOptions` and those that it shares ask for.

    Raises:
        ArgumentError, InputError, IndexArtifactError: as `mechanism_from` and `PrivatizeText` raise.
    """
    texts, own = options.view_as(TextInputOptions), options.view_as(PrivatizeTextOptions)
    return PrivatizeText(
        mechanism_from(options),
        index=options.view_as(MechanismOptions).index,
        text_column=texts.text_column,
        keep_columns=names_in(own.keep_columns),
        max_words=texts.max_words,
        oov=own.oov,
        search=own.search,
    )


def build(pipeline: beam.Pipeline, ledger: Ledger, options: PipelineOptions) -> None:
    """Adds read, privatize and publish to ``pipeline``."""
    run, texts = options.view_as(RunOptions), options.view_as(TextInputOptions)
    keep = names_in(options.view_as(PrivatizeTextOptions).keep_columns)
    privatize = privatizer_from(options)
    source = ReadBatches(
        run.input, format=run.format, columns=(texts.text_column, *keep), text_column=texts.text_column
    )
    read = pipeline | "Read" >> source.with_rejects()
    publish(read.batches | "Privatize" >> privatize, read.rejected, source=source, ledger=ledger, options=options)


def main(argv: list[str]) -> None:
    """Parses the options, runs the pipeline, and says what was done."""
    options = parse_options(argv, PrivatizeTextOptions, description=str(__doc__))
    run_pipeline(
        options,
        build,
        name="privatize_text",
        doing="privatizing",
        done=lambda count: f"{count('privatized_rows'):,} rows and {count('privatized_words'):,} words privatized",
        paths={"--index": options.view_as(MechanismOptions).index},
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
