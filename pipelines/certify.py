"""Computes what a word mechanism promises on an index, from its exact law, and writes it down as a certificate.

    python -m pipelines.certify --mechanism=exponential --epsilon=12 --output=FILE.json
        [--index=DIR_OR_URI] [--radius=R]

The exact epsilon is that of the worst pair of words. exponential, truncated_exponential and density_prior are computed
over all pairs of any vocabulary; knn_truncated and truncated_gumbel give delta at their epsilon, which is 1 where two
words have no output in common. Mechanisms that add noise to a vector are proved, and have no certificate. No text is
read and no budget is spent: the index is public.

Exit status 0: the certificate is written, and the mechanism claims no more than it says (or nothing at all). 1: it is
written, and the claim DOES NOT HOLD. 2: a bad argument or environment.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from functools import partial

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.runners.runner import PipelineState

from beam_dp import open_index, resolve_index
from beam_dp.audit.certificates import plan_certificate
from beam_dp.audit.transform import CertifyPairs
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
    parse_options,
    require_flags,
    require_remote_paths,
)
from pipelines.privatize_text import MechanismOptions, mechanism_from
from pipelines.run import ended


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

    shared = (MechanismOptions, EpsilonOptions)
    run_options = CertifyRunOptions

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--radius",
            type=float,
            help="compare only words that are at most so far apart, and say so (default: all pairs)",
        )


def main(argv: list[str]) -> int:
    """Parses the options, runs the pipeline, and says what was found."""
    options = parse_options(argv, CertifyOptions, description=str(__doc__))
    require_flags(options, "output")
    run, uri = options.view_as(RunOptions), options.view_as(MechanismOptions).index
    require_remote_paths(options, {"--index": uri, "--output": run.output})
    output = local_absolute(run.output)
    require_file_system("--output", output)
    if not run.overwrite and exists(output):
        raise ResourceError(f"output already exists: {last_component(output)}; choose another or pass --overwrite")
    ref = resolve_index(uri)
    index = open_index(ref)
    plan = plan_certificate(mechanism_from(options), index, radius=options.view_as(CertifyOptions).radius)
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
    if certificate["holds"] is False:
        claimed = f"epsilon {certificate['claimed_epsilon']:g}, delta {certificate['claimed_delta']:g}"
        raise BeamDpError(f"mechanism: its claim of {claimed} does not hold on this index: see {run.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
