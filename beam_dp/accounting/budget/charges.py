"""What a budget allows and what a run costs, and the exact arithmetic of both.

Epsilons are counted as whole nano-epsilon and deltas as exact fractions of the decimal that a float is written as, so
that ten charges of 0.1 fill a limit of 1.0, and ten of 1e-7 one of 1e-6, to the last digit. A charge is rounded up to
the grid and a limit down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from beam_dp.errors import ArgumentError, InputError, describe_kind, require_choice, require_count, require_positive

Key = tuple[str, str, str | None, str | None]

MODELS = ("central", "local", "metric")
WORD = "word"
DOCUMENT = "document"
DOCUMENT_KEY: Key = ("metric", DOCUMENT, None, None)
_NANO = 10**9
_MOST_DAYS = 36_500
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MISSING = "this ledger does not say why"


class Amount(NamedTuple):
    """An exact (epsilon, delta).

    Attributes:
        nano_epsilon: epsilon in units of 1e-9.
        exact_delta: delta.
    """

    nano_epsilon: int
    exact_delta: Fraction

    @property
    def epsilon(self) -> float:
        """The float nearest to the exact epsilon."""
        return float(Fraction(self.nano_epsilon, _NANO))

    @property
    def delta(self) -> float:
        """The float nearest to the exact delta."""
        return float(self.exact_delta)

    def plus(self, other: Amount) -> Amount:
        """The sum (basic composition)."""
        return Amount(self.nano_epsilon + other.nano_epsilon, self.exact_delta + other.exact_delta)

    def minus(self, other: Amount) -> Amount:
        """What is left of this after ``other``; both parts may be negative."""
        return Amount(self.nano_epsilon - other.nano_epsilon, self.exact_delta - other.exact_delta)

    def fits(self, other: Amount) -> bool:
        """Whether neither part is greater than that of ``other``."""
        return self.nano_epsilon <= other.nano_epsilon and self.exact_delta <= other.exact_delta


NOTHING = Amount(0, Fraction(0))


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The most that the runs on a data set may spend together on one kind of privacy unit.

    Attributes:
        model: ``central``, ``local`` or ``metric``.
        privacy_unit: for ``metric`` either ``word`` (epsilon per unit of distance of one word, on one index) or
            ``document`` (the unitless worst case of a document, over all indexes); else what the mechanisms name, for
            central ones the column whose values are protected.
        epsilon: at least 1e-9.
        delta: in [0, 1).
        metric: for ``word`` the distance, since epsilon has its unit; else None.
        index_digest: for ``word`` the digest of the index that defines the distance; else None.
        renew_days: days of a period, at most 36,500, counted from when the limit was set; what was spent in an earlier
            period counts no more. None for a limit for good.

    Raises:
        ArgumentError: an attribute is none of that.
    """

    model: str
    privacy_unit: str
    epsilon: float
    delta: float = 0.0
    metric: str | None = None
    index_digest: str | None = None
    renew_days: int | None = None

    def __post_init__(self) -> None:
        _require_key(self)
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
        object.__setattr__(self, "delta", _require_delta(self.delta))
        if self.index_digest is not None and not _DIGEST.fullmatch(self.index_digest):
            raise ArgumentError("index_digest must be the 64 hexadecimal digits that the ledger shows for the index")
        if self.renew_days is not None:
            object.__setattr__(self, "renew_days", require_count("renew_days", self.renew_days))
            if self.renew_days > _MOST_DAYS:
                raise ArgumentError(f"renew_days must be at most {_MOST_DAYS}; leave it out for a limit for good")
        if self.amount.nano_epsilon < 1:
            raise ArgumentError("epsilon must be at least 1e-9, the unit in which a budget is counted")

    @property
    def key(self) -> Key:
        """What this is a limit of; a data set has one limit for a key."""
        return self.model, self.privacy_unit, self.metric, self.index_digest

    @cached_property
    def amount(self) -> Amount:
        """The limit on the grid of nano-epsilon, rounded down."""
        above = math.ceil(Fraction(self.epsilon) * _NANO)
        # The decimal 0.1 is below the float 0.1: a number on the grid stands for itself, however its float is rounded.
        nano = above if float(Fraction(above, _NANO)) <= self.epsilon else above - 1
        return Amount(nano, Fraction(repr(self.delta)))

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Limit:
        """The limit that `to_json` wrote; raises ArgumentError or TypeError if it did not."""
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one run costs one kind of privacy unit; the attributes are those of `Limit`.

    Attributes:
        epsilon: at least 0, or None where nobody can state it.
        delta: in [0, 1); None if epsilon is.
        reason: why epsilon is None; else None.

    Raises:
        ArgumentError: an attribute is none of that.
    """

    model: str
    privacy_unit: str
    epsilon: float | None
    delta: float | None
    metric: str | None = None
    index_digest: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        _require_key(self)
        if self.epsilon is None or self.delta is None:
            if self.epsilon is not None or self.delta is not None or not isinstance(self.reason, str):
                raise ArgumentError("epsilon and delta of a charge are None together, and reason says why")
            return
        if self.reason is not None:
            raise ArgumentError("reason goes with epsilon None only")
        if self.epsilon != 0 or isinstance(self.epsilon, bool):
            require_positive("epsilon", self.epsilon)
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "delta", _require_delta(self.delta))

    @property
    def key(self) -> Key:
        """The key of the limit that this charge counts against."""
        return self.model, self.privacy_unit, self.metric, self.index_digest

    @cached_property
    def amount(self) -> Amount | None:
        """The charge on the grid of nano-epsilon, rounded up; None if it is not stated."""
        if self.epsilon is None:
            return None
        below = math.floor(Fraction(self.epsilon) * _NANO)
        nano = below if float(Fraction(below, _NANO)) >= self.epsilon else below + 1
        return Amount(nano, Fraction(repr(self.delta)))

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Charge:
        """The charge that `to_json` wrote; raises ArgumentError or TypeError if it did not."""
        return cls(**fields)


def charges_of(ledger: Mapping[str, Any]) -> tuple[Charge, ...]:
    """What a run of this plan costs each kind of privacy unit, as the ledger's totals say.

    Central and local totals give one charge for each privacy unit. Metric totals give one for a word of each index,
    and one for a document, over all indexes.

    Args:
        ledger: `Ledger.to_dict`.

    Raises:
        InputError: it has no totals of that shape.
    """
    try:
        totals = ledger["totals"]
        charges = [
            _charge(model, group["privacy_unit"], group["epsilon"], group["delta"], group["reason"])
            for model in ("central", "local")
            for group in (totals[model] or {"groups": ()})["groups"]
        ]
        return tuple(charges) + (() if totals["metric"] is None else _metric_charges(totals["metric"]))
    except (KeyError, TypeError, ValueError):
        raise InputError("not a ledger: its totals lack a model, a group or a number") from None


def unit_of(key: Key) -> str:
    """What is protected, for people: ``'central, user'`` or ``'metric, word, euclidean on index 0123456789ab'``."""
    model, privacy_unit, metric, index_digest = key
    return f"{model}, {privacy_unit}" + (f", {metric} on index {str(index_digest)[:12]}" if metric else "")


def _metric_charges(total: Mapping[str, Any]) -> tuple[Charge, ...]:
    words = [
        _charge(
            "metric",
            WORD,
            group["epsilon_per_word"],
            group["delta_per_word"],
            group["reason"],
            metric=group["metric"],
            index_digest=group["index_digest"],
        )
        for group in total["groups"]
    ]
    reasons = [group["reason"] for group in total["groups"] if group["reason"]]
    document = _charge(
        "metric",
        DOCUMENT,
        total["worst_case_per_document"],
        total["delta_per_document"],
        reasons[0] if reasons else total["reason"],
    )
    return (*words, document)


def _charge(
    model: str,
    privacy_unit: str,
    epsilon: float | None,
    delta: float | None,
    reason: str | None,
    *,
    metric: str | None = None,
    index_digest: str | None = None,
) -> Charge:
    if epsilon is None or delta is None:
        epsilon, delta, reason = None, None, reason or _MISSING
    else:
        # A total may be stated although another of its group is not, which the reason is about.
        reason = None
    return Charge(
        model=model,
        privacy_unit=privacy_unit,
        epsilon=epsilon,
        delta=delta,
        metric=metric,
        index_digest=index_digest,
        reason=reason,
    )


def _require_key(value: Limit | Charge) -> None:
    require_choice("model", value.model, MODELS)
    named: list[tuple[str, object]] = [("privacy_unit", value.privacy_unit)]
    if value.model == "metric":
        require_choice("privacy_unit", value.privacy_unit, (WORD, DOCUMENT))
    if value.privacy_unit == WORD and value.model == "metric":
        named += [("metric", value.metric), ("index_digest", value.index_digest)]
    elif value.metric is not None or value.index_digest is not None:
        raise ArgumentError("metric and index_digest go with model metric and privacy_unit word only")
    for name, text in named:
        if not isinstance(text, str) or not text.strip():
            raise ArgumentError(f"{name} must be a string that is not empty, not {describe_kind(text)}")


def _require_delta(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ArgumentError(f"delta must be a number in [0, 1), not {describe_kind(value)}")
    return float(value)
