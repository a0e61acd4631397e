"""A Beam pipeline that knows its ledger and seals it before it is submitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.pvalue import PValue
from apache_beam.runners.runner import PipelineResult, PipelineRunner
from apache_beam.transforms.window import GlobalWindows

from beam_dp.accounting.drawing import DrawingDoFn
from beam_dp.accounting.grants import Grant, require_grant
from beam_dp.accounting.ledger import Ledger
from beam_dp.errors import ArgumentError, GrantError, LedgerSealedError, describe_kind


@dataclass(frozen=True)
class Usage:
    """Where the usage records of one step are.

    Attributes:
        labels: the entries that it draws under.
        records: PCollections of str, bounded and in the global window; see `beam_dp.accounting.usage`.
    """

    labels: tuple[str, ...]
    records: tuple[beam.PCollection, ...]


class LedgerPipeline(beam.Pipeline):
    """What `Ledger.pipeline` returns: a `beam.Pipeline` that carries its ledger.

    Both ways to run it, the ``with`` statement and ``run()``, seal the ledger before anything is submitted, and charge
    it to its budget if it has one.

    Attributes:
        ledger: where transforms record.
        usages: what the steps that were applied so far report.

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
        self.usages: list[Usage] = []
        self._reconciled: int | None = None
        self._submitted = False
        self._charged = False

    def run(self, test_runner_api: bool | str = "AUTO") -> PipelineResult:
        """Charges the pipeline, then runs it as Beam does; once, since each run draws anew.

        Raises:
            LedgerSealedError: it ran before, even if that run failed.
            GrantError, BudgetExceededError: as `charge`; nothing runs.
        """
        if self._submitted:
            raise LedgerSealedError(
                "this pipeline ran already, and another run would draw again, which its ledger does not count: "
                "construct it anew with a new Ledger"
            )
        self._submitted = True
        self.charge()
        return super().run(test_runner_api)

    def charge(self) -> None:
        """Seals the ledger and charges it to its budget, if it has one; once: `run` does it where nobody did before.

        `WriteBatches` commits the run before it publishes. A pipeline without it is committed at once, since nobody
        knows when its output is seen.

        Raises:
            ArgumentError: there is a budget, and the options ask for a dry run, which Beam's runners do not do.
            GrantError: two steps draw under one entry, or, with a budget, no step does, or one that no `WriteBatches`
                comes after although there are some.
            BudgetExceededError: the budget refuses, or the run id was used before.
        """
        # Also of a graph that was charged: steps may have come since.
        self._require_one_step_an_entry()
        if self._charged:
            return
        budget = self.ledger.budget
        if budget is not None:
            if self.options.view_as(TestOptions).dry_run:
                raise ArgumentError("dry_run: with a budget, seal the ledger and ask its quote instead of running")
            self._require_reconciled()
        self.ledger.charge()
        if budget is not None and self._reconciled is None and not budget.started_by_workers:
            budget.commit()
        self._charged = True

    def reconciled(self) -> list[Usage]:
        """The `usages` so far, which the sink that asks compares with the plan."""
        self._reconciled = len(self.usages)
        return list(self.usages)

    def _require_reconciled(self) -> None:
        if self._reconciled is None:
            return
        for usage in self.usages[self._reconciled :]:
            raise GrantError(
                f"{', '.join(usage.labels)}: drawn by a transform that no WriteBatches comes after, so that nothing "
                "would compare it with the plan: apply WriteBatches last"
            )

    def _require_one_step_an_entry(self) -> None:
        steps = _DrawingSteps(self.ledger)
        self.visit(steps)
        for label, count in steps.found.items():
            if count > 1:
                raise GrantError(f"{label} has one ledger entry, but {count} steps of this pipeline draw under it")
        if self.ledger.budget is None:
            return
        for entry in self.ledger.entries:
            if not steps.found[entry.label]:
                raise GrantError(
                    f"{entry.label}: no step of this pipeline is known to draw under this entry; with a budget, a DoFn "
                    "that draws is a beam_dp.accounting.drawing.DrawingDoFn"
                )


class _DrawingSteps(PipelineVisitor):
    """How many steps draw under each label of a ledger; steps of another one are refused."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.found: Counter[str] = Counter()

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        step = transform_node.transform
        fn = step.fn if isinstance(step, beam.ParDo) else None
        # What with_exception_handling makes of a DoFn.
        fn = getattr(fn, "_fn", fn)
        if isinstance(fn, DrawingDoFn):
            grants = [grant for grant, _ in fn.granted() if grant is not None]
            for grant in grants:
                if not grant.is_of(self._ledger):
                    raise GrantError(f"{grant.label}: this step draws under a grant of another ledger")
            self.found.update({grant.label for grant in grants})


def ledger_of(source: PValue | beam.Pipeline, ledger: Ledger | None = None) -> Ledger:
    """The ledger that a transform on ``source`` records in.

    Args:
        source: the PCollection, PBegin or pipeline that the transform is applied to.
        ledger: what the transform got as ``ledger=``; None to take the pipeline's own.

    Raises:
        ArgumentError: ``ledger`` is not a `Ledger`, or not the one that the pipeline seals, or one with a budget, which
            a plain `beam.Pipeline` would not charge (`beam_dp.accounting.expansion` does).
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
    if own is None and ledger.budget is not None and not ledger.budget.started_by_workers:
        raise ArgumentError(
            "this ledger has a budget, which a plain beam.Pipeline does not charge: use 'with ledger.pipeline() as p:'"
        )
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


def leave_usage(fn: DrawingDoFn, drawn: beam.PCollection) -> None:
    """Brings the usage records of a step to the sinks of its pipeline.

    A step without input draws nothing and says nothing, so a second step, which always runs, shows which plan the
    workers have.

    Args:
        fn: of the step.
        drawn: its output `USAGE`.
    """
    drawn.element_type = str
    pipeline = drawn.pipeline
    if not isinstance(pipeline, LedgerPipeline):
        return
    granted = [(require_grant(grant), fingerprint) for grant, fingerprint in fn.granted()]
    seen = pipeline | "Grants" >> beam.Impulse() | "Seen" >> beam.FlatMap(_seen, granted).with_output_types(str)
    records = [seen]
    if drawn.is_bounded:
        records.append(drawn | "InOneWindow" >> beam.WindowInto(GlobalWindows()))
    pipeline.usages.append(Usage(tuple(grant.label for grant, _ in granted), tuple(records)))


def _seen(_: bytes, granted: Sequence[tuple[Grant, str]]) -> Iterator[str]:
    for grant, fingerprint in granted:
        grant.check(fingerprint)
        yield grant.usage(fingerprint, node=None)
