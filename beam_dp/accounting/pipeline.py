"""A Beam pipeline that knows its ledger and seals it before it is submitted."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PValue
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from beam_dp.accounting.ledger import Ledger
from beam_dp.errors import ArgumentError, GrantError, LedgerSealedError, describe_kind


class LedgerPipeline(beam.Pipeline):
    """What `Ledger.pipeline` returns: a `beam.Pipeline` that carries its ledger.

    Both ways to run it, the ``with`` statement and ``run()``, seal the ledger before anything is submitted.

    Raises:
        ArgumentError: ``ledger`` is not a `Ledger`; the options name no runner, or lack what their runner needs.
    """

    def __init__(
        self, ledger: Ledger, *, options: PipelineOptions | None = None, runner: str | PipelineRunner | None = None
    ) -> None:
        if not isinstance(ledger, Ledger):
            raise ArgumentError(f"ledger must be a Ledger, not {describe_kind(ledger)}")
        try:
            super().__init__(runner=runner, options=options)
        except (ValueError, ImportError) as error:
            # Beam's validators: their messages are about options alone, one a line.
            raise ArgumentError(" ".join(str(error).split())) from None
        self.ledger = ledger
        self._submitted = False

    def run(self, test_runner_api: bool | str = "AUTO") -> PipelineResult:
        """Seals the ledger, then runs the pipeline as Beam does; once, since each run draws anew.

        Raises:
            LedgerSealedError: it ran before, even if that run failed.
        """
        if self._submitted:
            raise LedgerSealedError(
                "this pipeline ran already, and another run would draw again, which its ledger does not count: "
                "construct it anew with a new Ledger"
            )
        self._submitted = True
        self.ledger.seal()
        return super().run(test_runner_api)


def ledger_of(source: PValue | beam.Pipeline, ledger: Ledger | None = None) -> Ledger:
    """The ledger that a transform on ``source`` records in.

    Args:
        source: the PCollection, PBegin or pipeline that the transform is applied to.
        ledger: what the transform got as ``ledger=``; None to take the pipeline's own.

    Raises:
        ArgumentError: ``ledger`` is not a `Ledger`, or not the one that the pipeline seals.
        GrantError: there is neither.
    """
    pipeline = source if isinstance(source, beam.Pipeline) else source.pipeline
    own = pipeline.ledger if isinstance(pipeline, LedgerPipeline) else None
    if ledger is None:
        if own is None:
            raise GrantError(
                "this pipeline has no ledger: write 'ledger = Ledger()' and 'with ledger.pipeline(options) as p:', "
                "or on a plain beam.Pipeline give the transform ledger=ledger"
            )
        return own
    if not isinstance(ledger, Ledger):
        raise ArgumentError(f"ledger must be a Ledger, not {describe_kind(ledger)}")
    if own is not None and own is not ledger:
        raise ArgumentError("ledger differs from the pipeline's: leave ledger= out, or use a plain beam.Pipeline")
    return ledger


def full_label(pipeline: beam.Pipeline, label: str) -> str:
    """``label`` with those of the composites around it, as runners show it: a transform's label in its ledger.

    Args:
        pipeline: of the transform that is being expanded.
        label: the transform's own label.
    """
    current = pipeline._current_transform()
    return current.full_label or label
