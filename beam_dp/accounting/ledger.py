"""The ledger of one pipeline.

A transform records its mechanism when it is constructed and gets a `Grant`, which its DoFn carries and checks in
``setup``: a mechanism without an entry, or with another one, does not run. The plan (all entries) is sealed just
before the pipeline is submitted; from then on nothing can be added.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from beam_dp.accounting.budget import BudgetRun
from beam_dp.accounting.composition import compose
from beam_dp.accounting.entries import Entry, Json, plan_hash_of, sha256_of
from beam_dp.accounting.grants import Grant, Plan, live_ledgers
from beam_dp.accounting.loss import PrivacyLoss
from beam_dp.accounting.report.text import render_text
from beam_dp.accounting.shares import Part, Share, ShareBook, Shares, require_share
from beam_dp.errors import (
    ArgumentError,
    BeamDpError,
    InputError,
    LedgerSealedError,
    describe_kind,
    require_choice,
)
from beam_dp.guarantees import Guarantee

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

    from beam_dp.accounting.pipeline import LedgerPipeline

SCHEMA_VERSION = 1


class Ledger:
    """Every mechanism that a pipeline uses, and what they promise together.

    >>> ledger = Ledger()
    >>> with ledger.pipeline(options) as p:  # doctest: +SKIP
    ...     ...
    >>> print(ledger.report())  # doctest: +SKIP

    A ledger belongs to the process that constructs the pipeline and cannot be pickled; workers get a `Grant` or a
    `Plan`.

    Args:
        budget: what the pipeline is charged to when it runs.
        shares: what the pipeline may spend in all, and in which parts, which its transforms draw by name; one `Shares`
            or several of different models. Every entry of a model that has shares needs one.

    Raises:
        ArgumentError: ``budget`` is no `BudgetRun`; two of ``shares`` are of one model, or have a name in common.
    """

    def __init__(self, *, budget: BudgetRun | None = None, shares: Shares | Sequence[Shares] = ()) -> None:
        if budget is not None and not isinstance(budget, BudgetRun):
            raise ArgumentError(f"budget must be what BudgetStore.run returns, not {describe_kind(budget)}")
        self._budget = budget
        self._charged = False
        self.id = uuid.uuid4().hex
        self._entries: dict[str, Entry] = {}
        self._sealed_hash: str | None = None
        self._shares = ShareBook(shares)
        self._lock = threading.RLock()
        live_ledgers[self.id] = self

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries in the order in which they were recorded."""
        with self._lock:
            return tuple(self._entries.values())

    @property
    def budget(self) -> BudgetRun | None:
        """What the pipeline is charged to; None if it is charged to nothing."""
        return self._budget

    @property
    def charged(self) -> bool:
        """Whether the workers may draw: the plan is charged to the budget, or there is none."""
        return self._budget is None or self._charged

    @property
    def sealed(self) -> bool:
        """Whether the plan is final."""
        return self._sealed_hash is not None

    @property
    def plan_hash(self) -> str:
        """sha256 of the canonical JSON of entries and shares, as they were when the plan was sealed if it is."""
        if self._sealed_hash is not None:
            return self._sealed_hash
        return plan_hash_of([entry.to_json() for entry in self.entries], self._shares.to_json())

    def draw(self, share: Share, label: str, model: str) -> Part:
        """Gives a transform the share that it names, once; what it records must fit it when the plan is sealed.

        Args:
            share: what the transform was given.
            label: of the transform; its entries have this label, or one below it.
            model: ``central``, ``local`` or ``metric``: of what the transform promises.

        Raises:
            LedgerSealedError: the plan is final.
            ArgumentError: no such share was declared, or one of another model, or it was drawn before.
        """
        with self._lock:
            self._require_open(label)
            return self._shares.draw(share, label, model)

    def record(
        self,
        *,
        label: str,
        mechanism: str,
        guarantee: Guarantee,
        max_applications: int | None,
        fingerprint: str,
        diameter: float | None = None,
        loss: PrivacyLoss | None = None,
        composition_delta: float = 0.0,
        share: Share | None = None,
        parameters: Mapping[str, Json] | None = None,
    ) -> Grant:
        """Adds an entry and returns the grant that lets the workers run it.

        Args:
            label: names the transform; no other entry of this ledger may have it.
            mechanism: ``repr`` of the mechanism.
            guarantee: what one application of the mechanism promises.
            max_applications: how often it meets one privacy unit at most (text: words per document); None if unknown.
            fingerprint: says exactly what the workers will run, e.g. the mechanism's repr, the index digest and
                ``max_words``; the DoFn passes the same string to `Grant.check`. The ledger keeps its sha256.
            diameter: metric guarantees only: upper bound on the distance of two words.
            loss: central guarantees only: what one application loses at most, for tighter totals; see `Entry`.
            composition_delta: central guarantees only: delta that totals may take for it; see `Entry`.
            share: what the transform drew by `draw`; needed where the model has shares.
            parameters: further JSON values for the reader of the ledger; never data.

        Raises:
            LedgerSealedError: the plan is final.
            ArgumentError: the label is taken, or an argument has the wrong kind, or ``share`` was not drawn.
            BudgetExceededError: the promise exceeds a share of the local or metric model.
        """
        if not isinstance(fingerprint, str) or not fingerprint:
            raise ArgumentError("fingerprint must be a string that is not empty")
        entry = Entry(
            label=label,
            mechanism=mechanism,
            guarantee=guarantee,
            max_applications=max_applications,
            diameter=diameter,
            loss=loss,
            composition_delta=composition_delta,
            share=None if share is None else require_share("share", share).name,
            fingerprint=sha256_of(fingerprint),
            parameters=parameters or {},
        )
        with self._lock:
            self._require_open(label)
            if label in self._entries:
                raise ArgumentError(f"label {label!r} is already in this ledger; give each transform its own label")
            self._shares.admit(entry, self.entries)
            self._entries[label] = entry
        return Grant(self, label)

    def _require_open(self, label: str) -> None:
        if self.sealed:
            raise LedgerSealedError(
                f"{label} cannot be added: this ledger's plan is sealed; add transforms before the pipeline runs, "
                "and make a new Ledger for each pipeline"
            )

    def seal(self) -> None:
        """Makes the plan final. Sealing again changes nothing.

        Raises:
            BudgetExceededError: what was recorded under a share does not fit it; nothing is sealed.
        """
        with self._lock:
            if not self.sealed:
                self._shares.require_all_fit(self.entries)
            self._sealed_hash = self.plan_hash

    def charge(self) -> None:
        """Seals the plan and charges it to the budget, if there is one; before that no worker draws.

        Raises:
            BudgetExceededError: the budget refuses, or the run id was used before.
        """
        self.seal()
        if self._budget is not None:
            self._budget.reserve(self.to_dict())
            if not self._budget.started_by_workers:
                self._budget.start()
        self._charged = True

    def total(self) -> dict[str, Any]:
        """What the entries promise together, for each model apart: see `beam_dp.accounting.composition`."""
        return compose(self.entries)

    def plan_json(self) -> dict[str, Any]:
        """The plan as JSON values, without totals, which take time."""
        with self._lock:
            shares = self._shares.to_json()
            return {
                "plan_hash": self.plan_hash,
                "sealed": self.sealed,
                "entries": [entry.to_json() for entry in self.entries],
            } | ({"shares": shares} if shares else {})

    def to_dict(self) -> dict[str, Any]:
        """The ledger as JSON values (schema_version 1); with a key ``shares`` where some are declared."""
        with self._lock:
            return {"schema_version": SCHEMA_VERSION} | self.plan_json() | {"totals": self.total()}

    def to_json(self) -> str:
        """The ledger as a JSON document (schema_version 1) that ends with a newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """The ledger that `to_json` wrote, as text.

        Raises:
            InputError: not a ledger, of another schema version, or changed since it was written.
        """
        try:
            fields = json.loads(text)
        except ValueError:
            raise InputError("not a ledger: the text is not JSON") from None
        if not isinstance(fields, dict) or not isinstance(fields.get("entries"), list):
            raise InputError("not a ledger: a JSON object with a list of entries is expected")
        if fields.get("schema_version") != SCHEMA_VERSION:
            raise InputError(f"this ledger has another schema_version; this version reads {SCHEMA_VERSION}")
        ledger = cls()
        for item in fields["entries"]:
            entry = Entry.from_json(item)
            ledger._entries[entry.label] = entry
        ledger._shares = ShareBook.from_json(fields.get("shares", ()))
        if len(ledger._entries) != len(fields["entries"]) or fields.get("plan_hash") != ledger.plan_hash:
            raise InputError("this ledger was changed after it was written: its entries do not match its plan_hash")
        if fields.get("sealed"):
            ledger._sealed_hash = ledger.plan_hash
        return ledger

    def report(self, format: Literal["text", "json", "html"] = "text") -> str:
        """The ledger for people, or for programs.

        Args:
            format: ``text``: plain text of at most 100 columns; ``json``: what `to_json` returns; ``html``: a page that
                needs nothing else, with pictures, to read or to print.

        Raises:
            ArgumentError: another format; or matplotlib, which ``html`` draws with, is not installed.
        """
        require_choice("format", format, ("text", "json", "html"))
        if format == "json":
            return self.to_json()
        if format == "html":
            from beam_dp.accounting.report.page import render_page  # noqa: PLC0415  (it composes many curves; text needs none)

            shares = self._shares.to_json()
            return render_page(self.entries, self.total(), shares, plan_hash=self.plan_hash, sealed=self.sealed)
        return render_text(self.entries, self.total(), self._shares.to_json())

    def plan(self) -> Plan:
        """A handle for sinks: what they write as the ledger is the plan of the moment of submission."""
        return Plan(self)

    def pipeline(
        self, options: PipelineOptions | None = None, runner: str | PipelineRunner | None = None
    ) -> LedgerPipeline:
        """A `beam.Pipeline` whose transforms find this ledger on their own and which seals it before it submits."""
        from beam_dp.accounting.pipeline import LedgerPipeline  # noqa: PLC0415  (a ledger itself needs no Beam)

        return LedgerPipeline(self, options=options, runner=runner)

    def __reduce__(self) -> NoReturn:
        raise BeamDpError(
            "a Ledger stays in the process that constructs the pipeline and cannot be pickled or copied: "
            "give a DoFn the Grant of its entry, or ledger.plan()"
        )

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else "open"
        return f"Ledger({len(self._entries)} entries, {state})"
