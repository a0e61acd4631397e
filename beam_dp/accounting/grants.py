"""The handles of a ledger that travel to the workers.

Beam pickles a DoFn more than once, first where a transform is constructed, which is before the plan is complete.
Handles therefore hold no copy of the plan in the driver: each time they are pickled they look the live ledger up and
embed its plan of that moment, and the pickling that counts, the one at submission, carries the sealed plan. In a
worker, where that ledger does not exist, the embedded plan answers.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_dp.accounting.entries import canonical_json, sha256_of
from beam_dp.accounting.usage import reconcile, require_unchanged, usage_record
from beam_dp.errors import GrantError

if TYPE_CHECKING:
    from beam_dp.accounting.budget import BudgetRun
    from beam_dp.accounting.ledger import Ledger

live_ledgers: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()


class _Handle:
    """A ledger as a worker sees it: live in the process that made it, embedded once it has been pickled elsewhere."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger_id = ledger.id
        # Keeps the ledger alive for as long as a transform that is not yet submitted refers to it.
        self._ledger: Ledger | None = ledger
        self._embedded: dict[str, Any] = {}

    def is_of(self, ledger: Ledger) -> bool:
        """Whether this is a handle of ``ledger``."""
        return self._ledger_id == ledger.id

    def _of(self, ledger: Ledger) -> dict[str, Any]:
        """What of a live ledger is embedded."""
        return ledger.to_dict()

    def _known(self) -> dict[str, Any]:
        return self._embedded if self._ledger is None else self._of(self._ledger)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ledger": None, "_embedded": self._known()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ledger = live_ledgers.get(self._ledger_id)


class Plan(_Handle):
    """What a sink gets of a ledger: its JSON form, and what stands between staged output and its publication."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._budget: BudgetRun | None = ledger.budget

    def ledger_json(self) -> dict[str, Any]:
        """`Ledger.to_dict` of the live ledger where there is one, else of the plan embedded at submission."""
        return copy.deepcopy(self._known())

    @contextlib.contextmanager
    def publishing(
        self, records: Iterable[str], labels: Sequence[str], *, attempt: str, in_place: bool
    ) -> Iterator[None]:
        """The frame around a publication: what the workers did is compared with the plan, then the body publishes.

        With a budget, the run is committed in between, so that nobody can make it void any more. What was published
        once is not published again: a graph that is submitted twice draws twice, but is charged once.

        Args:
            records: usage records of the workers (`beam_dp.accounting.usage`).
            labels: the entries that must have left one.
            attempt: names this output.
            in_place: whether it is in its place already, so that publishing it again changes nothing.

        Raises:
            GrantError: records and plan differ; names the entry.
            BudgetExceededError: the run was voided, never charged, or has published this output before.
        """
        reconcile(self._known(), records, labels)
        if self._budget is not None:
            self._budget.commit()
            if not in_place:
                self._budget.require_unpublished(attempt)
        yield
        if self._budget is not None:
            self._budget.published(attempt)

    def __repr__(self) -> str:
        return f"Plan({self._known()['plan_hash'][:12]})"


class Grant(_Handle):
    """The right of one DoFn to run the mechanism of one ledger entry. Only `Ledger.record` makes one."""

    def __init__(self, ledger: Ledger, label: str) -> None:
        super().__init__(ledger)
        self.label = label
        budget = ledger.budget
        self._budget = budget if budget is not None and budget.started_by_workers else None
        # The promise of the moment when it was recorded: one that changes later is no longer what was granted.
        self._recorded = sha256_of(canonical_json(self._entry(self._known())))

    def _of(self, ledger: Ledger) -> dict[str, Any]:
        return ledger.plan_json() | {"charged": ledger.charged}

    def _entry(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        return next((entry for entry in plan["entries"] if entry["label"] == self.label), None)

    def check(self, fingerprint: str) -> None:
        """Returns if the plan has this grant's entry and it is about what runs; call it in ``DoFn.setup``.

        Args:
            fingerprint: the same string as was given to `Ledger.record`, computed anew from what the DoFn is about to
                run.

        Raises:
            GrantError: the plan has no such entry, or it promises something else than what would run; or the plan was
                changed since it was sealed, or was never charged to the budget that its ledger has.
            BudgetExceededError: workers start the run, and it was not charged, is void, or another graph has it.
        """
        plan = self._known()
        require_unchanged(plan)
        if not plan["charged"]:
            raise GrantError(
                f"{self.label} belongs to a ledger with a budget, which was not charged: run the pipeline that "
                "ledger.pipeline() made"
            )
        entry = self._entry(plan)
        if entry is None:
            raise GrantError(f"{self.label} has no entry in the ledger of this pipeline: it must not draw noise")
        if entry["fingerprint"] != sha256_of(fingerprint) or sha256_of(canonical_json(entry)) != self._recorded:
            raise GrantError(
                f"{self.label} would run another mechanism, index or bound than its ledger entry says: construct the "
                "transform anew instead of changing it"
            )
        if self._budget is not None:
            self._budget.start()

    def usage(self, fingerprint: str, *, node: str | None, piece: int | None = None) -> str:
        """A record that this grant was used, for the comparison with the plan; see `beam_dp.accounting.usage`.

        Args:
            fingerprint: of what ran.
            node: names the step that drew; None where a worker saw the grant but drew nothing.
            piece: which part of the output was drawn, where each is drawn once.
        """
        plan = self._known()
        entry = self._entry(plan)
        return usage_record(
            label=self.label,
            fingerprint=sha256_of(fingerprint),
            plan_hash=plan["plan_hash"],
            max_applications=None if entry is None else entry["max_applications"],
            node=node,
            piece=piece,
        )

    def __repr__(self) -> str:
        return f"Grant({self.label!r})"


def require_grant(grant: object) -> Grant:
    """``grant`` if it is one; a DoFn calls this in ``setup`` before it does anything else.

    Raises:
        GrantError: a mechanism was built without a ledger.
    """
    if not isinstance(grant, Grant):
        raise GrantError("this mechanism has no grant: record it in a Ledger and pass on the Grant that record returns")
    return grant
