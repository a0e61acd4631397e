"""What a mechanism promises, as a value: metric, local or central differential privacy.

The three models protect different things and are never added to each other:

* **metric** (also "metric DP", "d_X-privacy"): for every set ``S`` of outputs and all words ``w, w'``,
  ``P[M(w) in S] <= exp(epsilon * d(w, w')) * P[M(w') in S] + delta``
  (Chatzikokolakis et al. 2013; Feyisetan et al. 2020). Epsilon has the unit 1/distance, so the claim is
  bound to the metric and to the digest of the index that defines it.
* **local**: the same with ``d = 1`` for every pair of inputs of one person.
* **central**: neighbouring data sets differ by all rows of one privacy unit, added or removed.

``epsilon is None`` means that no finite guarantee is claimed; ``reason`` then says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from beam_dp.errors import ArgumentError, describe_kind, require_choice, require_positive

Basis = Literal["proved", "computed", "none"]
_BASES = ("proved", "computed", "none")


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A claim (epsilon, delta) and what it rests on; use one of the three models below.

    Attributes:
        epsilon: finite and above 0, or None where no finite guarantee is claimed.
        delta: in [0, 1).
        basis: ``proved`` (in the docstring of the mechanism), ``computed`` (from its exact law, whose digest the ledger
            then names as ``law_digest``; where the law is finite, a certificate of `beam_dp.audit` names it too), or
            ``none`` where epsilon is None.
        reason: why epsilon is None; else None.
    """

    epsilon: float | None
    delta: float = 0.0
    basis: Basis
    reason: str | None = None
    model: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_choice("basis", self.basis, _BASES)
        if self.epsilon is None:
            if self.basis != "none" or not self.reason:
                raise ArgumentError("reason must say why epsilon is None, and basis must be none")
        else:
            object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
            if self.basis == "none" or self.reason is not None:
                raise ArgumentError("basis none and reason go with epsilon None only")
        if not isinstance(self.delta, (int, float)) or isinstance(self.delta, bool) or not 0 <= self.delta < 1:
            raise ArgumentError(f"delta must be a number in [0, 1), not {describe_kind(self.delta)}")

    def sentence(self) -> str:
        """The claim in one sentence, as a ledger prints it."""
        if self.epsilon is None:
            return f"no finite {self.model} guarantee: {self.reason}"
        extra = f", delta {_exact(self.delta)}" if self.delta else ""
        return f"{self.model} epsilon {_exact(self.epsilon)}{extra} ({self.basis})"


def _exact(number: float) -> str:
    """``number`` with all its digits: a claim is never rounded, since it could be rounded down."""
    return repr(float(number)).removesuffix(".0")


@dataclass(frozen=True, kw_only=True)
class MetricGuarantee(Guarantee):
    """``P[M(w) in S] <= exp(epsilon * d(w, w')) * P[M(w') in S] + delta`` for each single word.

    Attributes:
        metric: name of d, e.g. ``euclidean``.
        index_digest: sha256 of the manifest of the index whose vectors define d.
    """

    metric: str
    index_digest: str
    model: ClassVar[str] = "metric"

    def sentence(self) -> str:
        """The claim in one sentence, with the unit that a metric epsilon has."""
        claim = super().sentence()
        return claim if self.epsilon is None else f"{claim} per word and unit of {self.metric} distance"


@dataclass(frozen=True, kw_only=True)
class LocalGuarantee(Guarantee):
    """``P[M(x) in S] <= exp(epsilon) * P[M(x') in S] + delta`` for any two inputs of one privacy unit."""

    privacy_unit: str
    model: ClassVar[str] = "local"


@dataclass(frozen=True, kw_only=True)
class CentralGuarantee(Guarantee):
    """(epsilon, delta) under add/remove of all rows of one privacy unit.

    Attributes:
        privacy_unit: the column whose values are protected.
    """

    privacy_unit: str
    model: ClassVar[str] = "central"


def guarantee_fields(guarantee: Guarantee) -> dict[str, Any]:
    """The fields of a guarantee as JSON values."""
    fields: dict[str, Any] = {
        "model": guarantee.model,
        "epsilon": guarantee.epsilon,
        "delta": guarantee.delta,
        "basis": guarantee.basis,
        "reason": guarantee.reason,
        "guarantee": guarantee.sentence(),
    }
    if isinstance(guarantee, MetricGuarantee):
        fields |= {"metric": guarantee.metric, "index_digest": guarantee.index_digest}
    elif isinstance(guarantee, (LocalGuarantee, CentralGuarantee)):
        fields["privacy_unit"] = guarantee.privacy_unit
    return fields
