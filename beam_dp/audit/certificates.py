"""What a mechanism promises on one vocabulary, computed from its exact law and written down as a certificate.

A certificate is about the law that the mechanism is bound to, not about the claim in its ledger: a half that is missing
in an exponent shows as an epsilon of twice the claim. That draws follow this law is for the statistical tests.

What is computed in float64 lies between two bounds. A claim holds if it is above the upper one, and does not hold if it
is below the lower one; between them it is not decided, as with two words so near that rounding, by their distance, is
as large as the claim.

Mechanisms that add noise to a vector and project it have no finite law to compute. Their claim is proved in their
docstrings, and statistics of their noise are the evidence.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from beam_dp.audit.pairs import (
    ClosedForm,
    DensePairs,
    Method,
    PairLaw,
    SparsePairs,
    Worst,
    have_same_outputs,
    scattered,
)
from beam_dp.audit.symmetric_pairs import SymmetricLaw, SymmetricPairs
from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import Guarantee, LocalGuarantee, MetricGuarantee
from beam_dp.mechanisms.base import FiniteLaw, WordMechanism, WordSpace
from beam_dp.mechanisms.laws import MAX_WORDS_FOR_ALL_PAIRS, SparseLaw
from beam_dp.mechanisms.row_laws import Weights

DISCRETE = "discrete"
"""The metric of the local model: any two different words are at distance 1."""

Verdict = Literal["holds", "does not hold", "not decided", "nothing claimed"]

# What two computations of one number in float64 may differ by; no claim is meant to be exact to more.
_TOLERANCE = 1e-9
# To be raised whenever a field gets another meaning. In 1, holds was false only of claims that did not hold.
_VERSION = 2


@runtime_checkable
class ClosedFormLaw(Protocol):
    """A bound mechanism with P[M(w) = y] proportional to exp(-c(w, y))."""

    @property
    def weights(self) -> Weights:
        """The costs c."""


@runtime_checkable
class TableLaw(Protocol):
    """A bound mechanism that draws from tables of some outputs for each word."""

    def law(self) -> SparseLaw:
        """The law that it draws from, exactly."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """For the pairs that were looked at, ``P[M(w) in S] <= exp(epsilon * d(w, w')) * P[M(w') in S] + delta``.

    Epsilon, and delta at that epsilon, are the smallest that hold, rounded up by what float64 rounding may have moved
    them: by about 1e-13 of the largest cost, divided by d(w, w'). Words are public, and so is a certificate.

    Attributes:
        mechanism: its repr.
        metric, index_digest: what d is; the metric discrete, 1 between any two words, where the claim is local.
        words: V.
        law_digest: sha256 of the tables that are drawn from; None where parameters and index say it all.
        method: how it was computed, see `beam_dp.audit.pairs`.
        claimed_epsilon, claimed_delta: what the mechanism promises here; None and 0 where it promises nothing.
        epsilon: in units of 1/distance, without one in the metric discrete; None where no finite one was found at delta
            0 and none was asked for.
        delta: at that epsilon.
        pair: ids of the worst words (w, w'); None where all laws are the same, or all pairs are alike.
        pure_epsilon: the smallest epsilon that holds with delta 0; None where there is none.
        pairs: how many ordered pairs of different words were looked at.
        disjoint_pairs: how many of them have no output in common, so that delta is 1 at any epsilon.
        overlap_delta: delta over the others.
        radius: pairs farther apart were not looked at; None where all were.
        epsilon_at_least: no smaller epsilon holds with delta 0; None where none holds.
        delta_at_least: no smaller delta holds at ``epsilon``.
    """

    mechanism: str
    metric: str
    index_digest: str
    words: int
    law_digest: str | None
    method: Method
    claimed_epsilon: float | None
    claimed_delta: float
    epsilon: float | None
    delta: float
    pair: tuple[int, int] | None
    pure_epsilon: float | None
    pairs: int
    disjoint_pairs: int
    overlap_delta: float
    radius: float | None
    epsilon_at_least: float | None
    delta_at_least: float

    @property
    def verdict(self) -> Verdict:
        """What was found of the claim, up to a relative 1e-9.

        ``holds`` if epsilon and delta are not above the claim, ``does not hold`` if what they are at least is,
        ``not decided`` if the claim is between them, and ``nothing claimed`` if none is made.
        """
        if self.claimed_epsilon is None:
            return "nothing claimed"
        epsilon, delta = self.claimed_epsilon * (1 + _TOLERANCE), self.claimed_delta * (1 + _TOLERANCE)
        # A delta that is claimed was computed too, by sums that end up to 1e-12 elsewhere.
        delta += 1e-12 if self.claimed_delta else 0.0
        if self.epsilon is not None and self.epsilon <= epsilon and self.delta <= delta:
            return "holds"
        too_little = not self.claimed_delta and (self.epsilon_at_least is None or self.epsilon_at_least > epsilon)
        return "does not hold" if too_little or self.delta_at_least > delta else "not decided"

    @property
    def holds(self) -> bool | None:
        """Whether the claim was found to hold: False also where that is not decided; None where none is made."""
        return None if self.claimed_epsilon is None else self.verdict == "holds"

    @property
    def slack(self) -> float | None:
        """The part of the claimed epsilon that the worst pair needs; None where one of them is None."""
        if self.epsilon is None or self.claimed_epsilon is None:
            return None
        return self.epsilon / self.claimed_epsilon

    @property
    def digest(self) -> str:
        """sha256 of everything above: what a ledger can name."""
        content = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> str:
        """All of it as a JSON object, the digest included."""
        found = {"verdict": self.verdict, "holds": self.holds, "slack": self.slack}
        said = {"sentence": self.sentence(), "digest": self.digest}
        content = {"certificate_version": _VERSION, **asdict(self), **found, **said}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def sentence(self) -> str:
        """What was found, in one sentence."""
        over = f"over {self.pairs:,} ordered pairs of {self.words:,} words"
        if self.radius is not None:
            over = f"for d <= {self.radius:g}, {over}"
        per = "between any two words" if self.metric == DISCRETE else f"and unit of {self.metric} distance"
        found = (
            "no finite epsilon at delta 0"
            if self.epsilon is None
            else f"epsilon {self.epsilon:.6g}, delta {self.delta:.3g} per word {per}"
        )
        worst = "" if self.pair is None else f", the worst of them words {self.pair[0]} and {self.pair[1]}"
        apart = f"; {self.disjoint_pairs:,} of them have no output in common" if self.disjoint_pairs else ""
        return f"computed {over}: {found}{worst}{apart}; {self._conclusion()}"

    def _conclusion(self) -> str:
        if self.claimed_epsilon is None:
            return "no finite guarantee is claimed"
        delta = f", delta {self.claimed_delta:.3g}" if self.claimed_delta else ""
        claim = f"the claim of epsilon {self.claimed_epsilon:g}{delta}"
        if self.verdict == "not decided":
            return f"{claim} is not decided in float64: rounding may be all that exceeds it"
        return f"{claim} holds" if self.holds else f"{claim} DOES NOT HOLD"


@dataclass(frozen=True)
class CertificatePlan:
    """What is to be certified, checked: small, so that a pipeline can carry it to its workers.

    Attributes:
        mechanism: whose law it is.
        claim: what it promises on the space.
        epsilon: at which delta is computed; None where there is none.
        radius: of the pairs; infinite for all.
    """

    mechanism: WordMechanism
    claim: MetricGuarantee | LocalGuarantee
    epsilon: float | None
    radius: float

    @property
    def metric(self) -> str:
        """Of the distance in the claim."""
        return self.claim.metric if isinstance(self.claim, MetricGuarantee) else DISCRETE

    def pair_law(self, space: WordSpace) -> PairLaw:
        """The law on ``space``, in the form that can be computed with least work.

        Raises:
            ArgumentError: it has no finite law, more words than all pairs can be looked at, or needs an epsilon.
        """
        bound = self.mechanism.bind(space)
        if self.metric == DISCRETE:
            if not isinstance(bound, SymmetricLaw):
                raise ArgumentError(
                    "mechanism: of local privacy only a law that treats all words alike (SymmetricLaw) can be certified"
                )
            return SymmetricPairs(space, bound)
        if isinstance(bound, ClosedFormLaw) and bound.weights.knots is None:
            return ClosedForm(space, bound.weights, self.radius)
        if isinstance(bound, TableLaw):
            law = bound.law()
            if not have_same_outputs(law):
                if self.epsilon is None:
                    raise ArgumentError(
                        "epsilon is required: words of this mechanism have different outputs, so that no epsilon holds "
                        "without a delta; say at which one delta is wanted"
                    )
                return SparsePairs(space, law, self.epsilon, self.radius)
            return self._dense(space, DensePairs(space, scattered(law, space.size), self.epsilon, self.radius))
        if isinstance(bound, FiniteLaw):
            return self._dense(space, DensePairs(space, bound.law_rows, self.epsilon, self.radius))
        raise ArgumentError(f"mechanism: {no_finite_law(type(self.mechanism))}")

    def _dense(self, space: WordSpace, law: DensePairs) -> DensePairs:
        if space.size > MAX_WORDS_FOR_ALL_PAIRS and self.radius == math.inf:
            raise ArgumentError(
                f"radius is required beyond {MAX_WORDS_FOR_ALL_PAIRS:,} words: every output of every pair is looked "
                f"at, too many for all pairs of {space.size:,} words; give a distance"
            )
        return law

    def certificate(self, space: WordSpace, law: PairLaw, worst: Worst) -> Certificate:
        """What ``worst``, found over all words, says about the mechanism.

        Raises:
            ArgumentError: no two words are within the radius, so that there is nothing to say.
        """
        if worst.pairs == 0:
            raise ArgumentError(f"radius {self.radius:g} is too small: no two words are so close")
        claim = self.claim
        pure = _finite(worst.epsilon)
        # A claim without delta is held against the smallest epsilon without delta, if there is one.
        stated = pure if pure is not None and (not claim.delta or self.epsilon is None) else self.epsilon
        with_delta = stated is not None and stated != pure
        # Of a closed form no delta is summed up: equal vectors with different laws are the only way to get here.
        unknown = with_delta and law.method == "closed form"
        return Certificate(
            mechanism=repr(self.mechanism),
            metric=self.metric,
            index_digest=claim.index_digest if isinstance(claim, MetricGuarantee) else space.digest,
            words=space.size,
            law_digest=self.mechanism.bind(space).law_digest(),
            method=law.method,
            claimed_epsilon=claim.epsilon,
            claimed_delta=claim.delta,
            epsilon=None if unknown else stated,
            delta=worst.delta if with_delta and not unknown else 0.0,
            pair=worst.delta_pair if with_delta and not unknown else worst.epsilon_pair,
            pure_epsilon=pure,
            pairs=worst.pairs,
            disjoint_pairs=worst.disjoint,
            overlap_delta=worst.overlap_delta if with_delta else 0.0,
            radius=_finite(self.radius),
            epsilon_at_least=_finite(worst.epsilon_at_least),
            delta_at_least=worst.delta_at_least if with_delta and not unknown else 0.0,
        )


def _finite(number: float) -> float | None:
    """None for infinity, which JSON has not."""
    return number if math.isfinite(number) else None


def no_finite_law(mechanism: type[WordMechanism]) -> str:
    """Why there is no certificate of a mechanism that adds noise, and what there is instead."""
    return (
        f"{mechanism.name} adds noise and projects it, so there is no finite law to certify; its claim is proved in "
        f"the docstring of {mechanism.__name__}, and tests of its noise are the evidence"
    )


def plan_certificate(
    mechanism: WordMechanism, index: WordSpace, *, radius: float | None = None, epsilon: float | None = None
) -> CertificatePlan:
    """Checks what `certify` is asked for, and raises what it raises."""
    claim: Guarantee = mechanism.guarantee(index)
    if not isinstance(claim, (MetricGuarantee, LocalGuarantee)):
        raise ArgumentError(f"mechanism must promise metric or local privacy, not {claim.model} privacy")
    if radius is not None and isinstance(claim, LocalGuarantee):
        raise ArgumentError("radius must be left out: in local privacy any two words are at distance 1")
    # A claim is held against delta at the epsilon that it names.
    own = getattr(mechanism, "epsilon", None) if claim.epsilon is None else claim.epsilon
    if epsilon is not None and own is not None:
        raise ArgumentError(
            "epsilon must be left out: this mechanism has an epsilon of its own, which is the one to hold"
        )
    asked = own if epsilon is None else require_positive("epsilon", epsilon)
    limit = math.inf if radius is None else require_positive("radius", radius)
    plan = CertificatePlan(mechanism, claim, asked, limit)
    plan.pair_law(index)
    if plan.metric not in (index.metric, DISCRETE):
        raise ArgumentError(f"mechanism must promise in the metric of the index, {index.metric}, not {plan.metric}")
    return plan


def certify(
    mechanism: WordMechanism, index: WordSpace, *, radius: float | None = None, epsilon: float | None = None
) -> Certificate:
    """The exact (epsilon, delta) of ``mechanism`` on ``index``, from its exact law.

    * randomized_response: in closed form, O(V); all pairs are alike. Its epsilon has no unit.
    * exponential, truncated_exponential, density_prior: in closed form (`beam_dp.audit.pairs.ClosedForm`), O(V²): some
      minutes at V = 20,000; ``pipelines.certify`` spreads them over workers.
    * tables of K candidates a word: delta at ``epsilon``, over the pairs that share a candidate, 1 for the others.
    * other finite laws: the smallest epsilon at delta 0, and delta at ``epsilon``. O(V³): about a minute at V = 2,000.

    Args:
        mechanism: with a finite law.
        index: an opened index, or any word space.
        radius: only pairs with d(w, w') <= radius, in units of distance; None for all: as it must be with
            randomized_response, and cannot be with laws of the last kind beyond 2,000 words.
        epsilon: at which delta is computed, for a mechanism that has no epsilon of its own. (A claim without delta is
            held against the smallest epsilon at delta 0.)

    Raises:
        ArgumentError: the mechanism adds noise and projects it (no finite law), is not valid on this index, or says two
            things about its law; ``radius`` or ``epsilon`` is missing, not a finite number above 0, or not wanted.
    """
    plan = plan_certificate(mechanism, index, radius=radius, epsilon=epsilon)
    law = plan.pair_law(index)
    ids = np.arange(index.size, dtype=np.int32)
    return plan.certificate(index, law, law.worst(ids, law.log_normalisers(ids)))
