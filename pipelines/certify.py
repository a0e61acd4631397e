"""Computes what a word mechanism promises on an index, from its exact law, and writes it down as a certificate.

    python -m pipelines.certify --mechanism=exponential --epsilon=12 --output=FILE.json
        [--index=DIR_OR_URI] [--radius=R]

The exact epsilon is that of the worst pair of words. exponential, truncated_exponential and density_prior are computed
over all pairs of any vocabulary; of randomized_response all pairs are alike; knn_truncated and truncated_gumbel give
delta at their epsilon, which is 1 where two words have no output in common. Mechanisms that add noise to a vector are
proved, and have no certificate. No text is read and no budget is spent: the index is public.

Exit status 0: the certificate is written, and its verdict is that the claim holds, that nothing is claimed, or that the
claim is not decided: it is exceeded by no more than float64 rounding may have added, e.g. for two words that are nearly
the same. 1: the certificate is written, and the claim DOES NOT HOLD. 2: a bad argument or environment.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from functools import partial

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.runners.runner import PipelineState

from beam_dp import MECHANISMS, open_index, resolve_index
from beam_dp.audit.certificates import CertificatePlan, no_finite_law, plan_certificate
from beam_dp.audit.transform import CertifyPairs
from beam_dp.embeddings import EmbeddingIndex
from beam_dp.embeddings.files import exists, read_binary
from beam_dp.errors import BeamDpError, ResourceError
from beam_dp.io.files import last_component, local_absolute, require_file_system
from beam_dp.io.publish import require_writable
from pipelines.accountant import write_text
from pipelines.engines import require_engine
from pipelines.main import progress, run_main, summary
from pipelines.options import (
    EpsilonOptions,
    RunOptions,
    declare_engine,
    declare_index,
    parse_options,
    require_flags,
    require_remote_paths,
)
from pipelines.privatize_text import MECHANISM_PARAMETERS, MechanismOptions, declare_gamma, make_mechanism
from pipelines.run import ended

CERTIFIABLE = (
    "density_prior",
    "exponential",
    "knn_truncated",
    "randomized_response",
    "truncated_exponential",
    "truncated_gumbel",
)
"""The mechanisms that have a finite law."""

_DRY_RUN_HELP = "check the arguments and say what would be computed, and how; compute and write nothing (default: run)"


def _certifiable(name: str) -> str:
    if name in MECHANISMS and name not in CERTIFIABLE:
        raise ArgumentTypeError(no_finite_law(MECHANISMS[name]))
    return name


class CertifyMechanismOptions(MechanismOptions):
    """What of `MechanismOptions` this pipeline has; for the parser alone, as `CertifyRunOptions` is."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--mechanism",
            type=_certifiable,
            choices=CERTIFIABLE,
            required=True,
            help="what is certified (required)",
        )
        parser.add_argument(
            "--scale",
            type=float,
            help="truncated_gumbel: noise scale, for which nothing is claimed; --epsilon is where delta is computed",
        )
        parser.add_argument(
            "--neighbours", type=int, help="truncated_gumbel, knn_truncated: candidates of a word (default: 40)"
        )
        declare_gamma(parser)
        parser.add_argument(
            "--bandwidth",
            type=float,
            help="density_prior: bandwidth of the kernel density (default: the median neighbour distance)",
        )
        declare_index(parser)


class CertifyRunOptions(RunOptions):
    """What of `RunOptions` this pipeline has; for the parser alone: values are read through `RunOptions`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--output", metavar="FILE.json", help="a path or URI: where the certificate goes")
        parser.add_argument(
            "--overwrite", action="store_true", help="replace a certificate that exists (default: refuse)"
        )
        declare_engine(parser)


class CertifyOptions(PipelineOptions):
    """The options of this pipeline alone."""

    shared = (CertifyMechanismOptions, EpsilonOptions)
    run_options = CertifyRunOptions

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--radius",
            type=float,
            help="compare only words that are at most so far apart, and say so; not with randomized_response (default: "
            "all pairs)",
        )


def plan_from(options: PipelineOptions, index: EmbeddingIndex) -> CertificatePlan:
    """What the options ask for on ``index``.

    Raises:
        ArgumentError: as `make_mechanism` and `plan_certificate` raise.
    """
    values = options.get_all_options()
    parameters = {name: values[name] for name in MECHANISM_PARAMETERS}
    # A mechanism that is given its scale has no epsilon of its own.
    epsilon = None if values["scale"] is None else parameters.pop("epsilon")
    mechanism = make_mechanism(values["mechanism"], parameters, written="--")
    return plan_certificate(mechanism, index, radius=values["radius"], epsilon=epsilon)


def main(argv: list[str]) -> int:
    """Parses the options, runs the pipeline, and says what was found."""
    options = parse_options(argv, CertifyOptions, description=str(__doc__), dry_run=_DRY_RUN_HELP)
    require_flags(options, "output")
    run, uri = options.view_as(RunOptions), options.view_as(MechanismOptions).index
    require_remote_paths(options, {"--index": uri, "--output": run.output})
    output = local_absolute(run.output)
    require_file_system("--output", output)
    if not run.overwrite and exists(output):
        raise ResourceError(f"output already exists: {last_component(output)}; choose another or pass --overwrite")
    ref = resolve_index(uri)
    index = open_index(ref)
    plan = plan_from(options, index)
    method = plan.pair_law(index).method
    if options.view_as(TestOptions).dry_run:
        summary(
            f"would certify {plan.mechanism!r} on {index.size:,} words by {method}", "dry run: nothing was computed"
        )
        return 0
    require_engine(options)
    require_writable(output)
    pipeline = beam.Pipeline(options=options)
    found = pipeline | "Pairs" >> CertifyPairs(plan, ref)
    _ = found | "Write" >> beam.Map(partial(write_text, output, overwrite=True))
    with progress("certifying"):
        state = ended(pipeline.run(), options)
    if state not in (None, PipelineState.DONE):
        raise BeamDpError(f"the pipeline ended in state {state}; the runner's log says why")
    certificate = json.loads(read_binary(output))
    words = (
        "" if certificate["pair"] is None else " and ".join(repr(index.words[w].as_py()) for w in certificate["pair"])
    )
    summary(
        certificate["sentence"],
        *([f"worst pair: {words}"] if words else []),
        f"digest {certificate['digest']}",
        f"written: {run.output}",
    )
    if certificate["verdict"] == "does not hold":
        claimed = f"epsilon {certificate['claimed_epsilon']:g}, delta {certificate['claimed_delta']:g}"
        raise BeamDpError(f"mechanism: its claim of {claimed} does not hold on this index: see {run.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
