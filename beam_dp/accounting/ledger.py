"""The ledger of one pipeline, and the handles of it that travel to the workers.

A transform records its mechanism when it is constructed and gets a `Grant`, which its DoFn carries and checks in
``setup``: a mechanism without an entry, or with another one, does not run. The plan (all entries) is sealed just
before the pipeline is submitted; from then on nothing can be added.

Beam pickles a DoFn more than once, first where a transform is constructed, which is before the plan is complete.
Handles therefore hold no copy of the plan in the driver: each time they are pickled they look the live ledger up and
embed its plan of that moment, and the pickling that counts, the one at submission, carries the sealed plan. In a
worker, where that ledger does not exist, the embedded plan answers.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from beam_dp.accounting.composition import compose
from beam_dp.accounting.entries import Entry, Json, canonical_json, sha256_of
from beam_dp.accounting.loss import PrivacyLoss
from beam_dp.accounting.report import render_table
from beam_dp.errors import ArgumentError, BeamDpError, GrantError, InputError, LedgerSealedError
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
    >>> print(ledger.table())  # doctest: +SKIP

    A ledger belongs to the process that constructs the pipeline and cannot be pickled; workers get a `Grant` or a
    `Plan`.
    """

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex
        self._entries: dict[str, Entry] = {}
        self._sealed = False
        self._lock = threading.RLock()
        _live_ledgers[self._id] = self

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries in the order in which they were recorded."""
        with self._lock:
            return tuple(self._entries.values())

    @property
    def sealed(self) -> bool:
        """Whether the plan is final."""
        return self._sealed

    @property
    def plan_hash(self) -> str:
        """sha256 of the canonical JSON of the entries: equal plans have equal hashes."""
        plan = [entry.to_json() for entry in self.entries]
        for fields in plan:
            # So that ledgers from before entries had these keep their hash.
            if fields["loss"] is None:
                del fields["loss"]
            if not fields["composition_delta"]:
                del fields["composition_delta"]
        return sha256_of(canonical_json(plan))

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
            parameters: further JSON values for the reader of the ledger; never data.

        Raises:
            LedgerSealedError: the plan is final.
            ArgumentError: the label is taken, or an argument has the wrong kind.
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
            fingerprint=sha256_of(fingerprint),
            parameters=parameters or {},
        )
        with self._lock:
            if self._sealed:
                raise LedgerSealedError(
                    f"{label} cannot be added: this ledger's plan is sealed; add transforms before the pipeline runs, "
                    "and make a new Ledger for each pipeline"
                )
            if label in self._entries:
                raise ArgumentError(f"label {label!r} is already in this ledger; give each transform its own label")
            self._entries[label] = entry
        return Grant(self, label)

    def seal(self) -> None:
        """Makes the plan final. Sealing again changes nothing."""
        with self._lock:
            self._sealed = True

    def totals(self) -> dict[str, Any]:
        """What the entries promise together, for each model apart: see `beam_dp.accounting.composition`."""
        return compose(self.entries)

    def to_dict(self) -> dict[str, Any]:
        """The ledger as JSON values (schema_version 1)."""
        with self._lock:
            return {
                "schema_version": SCHEMA_VERSION,
                "plan_hash": self.plan_hash,
                "sealed": self._sealed,
                "entries": [entry.to_json() for entry in self.entries],
                "totals": self.totals(),
            }

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
        if len(ledger._entries) != len(fields["entries"]) or fields.get("plan_hash") != ledger.plan_hash:
            raise InputError("this ledger was changed after it was written: its entries do not match its plan_hash")
        ledger._sealed = bool(fields.get("sealed"))
        return ledger

    def table(self) -> str:
        """The ledger for people: plain text of at most 100 columns."""
        return render_table(self.entries, self.totals())

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
        state = "sealed" if self._sealed else "open"
        return f"Ledger({len(self._entries)} entries, {state})"


_live_ledgers: weakref.WeakValueDictionary[str, Ledger] = weakref.WeakValueDictionary()


class Plan:
    """A ledger as a worker sees it: live in the process that made it, embedded once it has been pickled elsewhere."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger_id = ledger._id
        # Keeps the ledger alive for as long as a transform that is not yet submitted refers to it.
        self._ledger: Ledger | None = ledger
        self._embedded: dict[str, Any] = {}

    def ledger_json(self) -> dict[str, Any]:
        """`Ledger.to_dict` of the live ledger where there is one, else of the plan embedded at submission."""
        return copy.deepcopy(self._embedded) if self._ledger is None else self._ledger.to_dict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ledger": None, "_embedded": self.ledger_json()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ledger = _live_ledgers.get(self._ledger_id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ledger_json()['plan_hash'][:12]})"


class Grant(Plan):
    """The right of one DoFn to run the mechanism of one ledger entry. Only `Ledger.record` makes one."""

    def __init__(self, ledger: Ledger, label: str) -> None:
        super().__init__(ledger)
        self.label = label

    def check(self, fingerprint: str) -> None:
        """Returns if the plan has this grant's entry and it is about what runs; call it in ``DoFn.setup``.

        Args:
            fingerprint: the same string as was given to `Ledger.record`, computed anew from what the DoFn is about to
                run.

        Raises:
            GrantError: the plan has no such entry, or it promises something else than what would run.
        """
        entries = self.ledger_json()["entries"]
        granted = [entry["fingerprint"] for entry in entries if entry["label"] == self.label]
        if not granted:
            raise GrantError(f"{self.label} has no entry in the ledger of this pipeline: it must not draw noise")
        if granted[0] != sha256_of(fingerprint):
            raise GrantError(
                f"{self.label} would run another mechanism, index or bound than its ledger entry says: construct the "
                "transform anew instead of changing it"
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
