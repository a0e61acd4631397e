"""One line of a ledger: a mechanism, what it promises, and how often it meets one privacy unit.

An `Entry` is a value. Its JSON form has the same keys whatever the model is, with null where a key does not
apply, so that a reader needs no case distinction and a new model adds no new shape.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beam_dp.accounting.loss import PrivacyLoss, loss_from_json
from beam_dp.errors import ArgumentError, InputError, describe_kind, require_count
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee, guarantee_fields

Json = None | bool | int | float | str | list[Any] | dict[str, Any]

METRIC_PRIVACY_UNIT = "word"
_LATER_FIELDS = ("loss", "composition_delta", "share")
# Control characters, lone surrogates, line and paragraph separators.
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
_MODELS: dict[str, type[Guarantee]] = {cls.model: cls for cls in (MetricGuarantee, LocalGuarantee, CentralGuarantee)}


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces: equal values give equal strings.

    Raises:
        ArgumentError: ``value`` is not made of finite numbers, strings, booleans, None, lists and mappings.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError):
        raise ArgumentError(
            "ledger parameters must be finite numbers, strings, booleans, None, lists or dicts"
        ) from None


def sha256_of(text: str) -> str:
    """The sha256 of a string's UTF-8 bytes, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def plan_hash_of(entries: Sequence[Mapping[str, Any]], shares: Sequence[Mapping[str, Any]] = ()) -> str:
    """sha256 of the canonical JSON of a plan: equal plans have equal hashes.

    Args:
        entries: as `Entry.to_json` gives them.
        shares: as a ledger's JSON has them, where some are declared.
    """
    # Without the fields that later versions added, where they say nothing: older ledgers keep their hash.
    plan = [{name: value for name, value in entry.items() if name not in _LATER_FIELDS or value} for entry in entries]
    return sha256_of(canonical_json({"entries": plan, "shares": list(shares)} if shares else plan))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A mechanism as it was planned.

    Attributes:
        label: unique in its ledger; names the transform.
        mechanism: ``repr`` of the mechanism.
        guarantee: what one application promises.
        max_applications: how often the mechanism meets one privacy unit at most (for text: words per document,
            ``max_words``; for tables: windows per unit), or None where nobody declared a bound.
        diameter: for metric guarantees an upper bound on the distance of two words, in the mechanism's own metric;
            else None.
        loss: for central guarantees what one application loses at most, where more is known than epsilon and delta;
            totals are tighter for it. It must imply the guarantee. Else None.
        composition_delta: for central guarantees a delta beyond the guarantee's own that a total may take for each
            application, so that composition by privacy loss distributions can state a smaller epsilon; in [0, 1).
        share: the name of the share of the ledger's declared total that it belongs to, or None.
        fingerprint: sha256 of the string that says exactly what the workers run.
        parameters: whatever else a reader of the ledger should know; JSON values, never data.
    """

    label: str
    mechanism: str
    guarantee: Guarantee
    max_applications: int | None
    diameter: float | None = None
    loss: PrivacyLoss | None = None
    composition_delta: float = 0.0
    share: str | None = None
    fingerprint: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in (("label", self.label), ("mechanism", self.mechanism), ("fingerprint", self.fingerprint)):
            if not isinstance(text, str) or not text.strip():
                raise ArgumentError(f"{name} must be a string that is not empty, not {describe_kind(text)}")
        if any(unicodedata.category(character) in _NO_TEXT for character in self.label):
            # It stands in messages of one line, and in files.
            raise ArgumentError("label must be without control characters and surrogates: give the transform another")
        if not isinstance(self.guarantee, tuple(_MODELS.values())):
            raise ArgumentError(
                "guarantee must be a MetricGuarantee, LocalGuarantee or CentralGuarantee, "
                f"not {describe_kind(self.guarantee)}"
            )
        if self.max_applications is not None:
            object.__setattr__(self, "max_applications", require_count("max_applications", self.max_applications))
        if self.diameter is not None:
            object.__setattr__(self, "diameter", _finite_not_negative("diameter", self.diameter))
            if not isinstance(self.guarantee, MetricGuarantee):
                raise ArgumentError("diameter goes with a metric guarantee only")
        if self.loss is not None:
            if not isinstance(self.loss, PrivacyLoss):
                raise ArgumentError(
                    "loss must be a DiscreteLaplaceLoss, DiscreteGaussianLoss or ParametersLoss, "
                    f"not {describe_kind(self.loss)}"
                )
            if not isinstance(self.guarantee, CentralGuarantee):
                raise ArgumentError("loss goes with a central guarantee only")
        spare = _finite_not_negative("composition_delta", self.composition_delta)
        if spare and (spare >= 1 or not isinstance(self.guarantee, CentralGuarantee)):
            raise ArgumentError("composition_delta is below 1 and goes with a central guarantee only")
        object.__setattr__(self, "composition_delta", spare)
        if self.share is not None and (not isinstance(self.share, str) or not self.share.strip()):
            raise ArgumentError(f"share must be the name of a share, not {describe_kind(self.share)}")
        # A private copy: what was sealed must not change when the caller's mapping does.
        object.__setattr__(self, "parameters", json.loads(canonical_json(dict(self.parameters))))

    def to_json(self) -> dict[str, Json]:
        """The entry as the ledger file holds it."""
        fields: dict[str, Json] = {
            "label": self.label,
            "mechanism": self.mechanism,
            "metric": None,
            "index_digest": None,
            "privacy_unit": METRIC_PRIVACY_UNIT,
        }
        fields |= guarantee_fields(self.guarantee)
        fields |= {
            "max_applications": self.max_applications,
            "diameter": self.diameter,
            "loss": None if self.loss is None else self.loss.to_json(),
            "composition_delta": self.composition_delta,
            "share": self.share,
            "fingerprint": self.fingerprint,
            "parameters": dict(self.parameters),
        }
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` wrote.

        Raises:
            InputError: a field is missing, of another kind, or names an unknown model.
        """
        try:
            model = _MODELS[fields["model"]]
            loss = fields.get("loss")  # absent, as composition_delta and share, from ledgers that are older than it
            claim: dict[str, Any] = {name: fields[name] for name in ("epsilon", "delta", "basis", "reason")}
            own = ("metric", "index_digest") if model is MetricGuarantee else ("privacy_unit",)
            return cls(
                label=fields["label"],
                mechanism=fields["mechanism"],
                guarantee=model(**claim, **{name: fields[name] for name in own}),
                max_applications=fields["max_applications"],
                diameter=fields["diameter"],
                loss=None if loss is None else loss_from_json(loss),
                composition_delta=fields.get("composition_delta", 0.0),
                share=fields.get("share"),
                fingerprint=fields["fingerprint"],
                parameters=fields["parameters"],
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("a ledger entry is incomplete or holds a field of the wrong kind") from None


def _finite_not_negative(name: str, value: object) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:  # type: ignore[arg-type,operator]
        raise ArgumentError(f"{name} must be a finite number of at least 0, not {describe_kind(value)}")
    return float(value)  # type: ignore[arg-type]
