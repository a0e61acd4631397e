"""Mechanisms that draw among the K nearest words of a word: their tables, and what can be claimed of them."""

from __future__ import annotations

import hashlib

import numpy as np

from beam_dp.errors import ArgumentError, require_count
from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.alias import AliasTables
from beam_dp.mechanisms.base import Doubles, WordIds, WordSpace
from beam_dp.mechanisms.laws import MAX_WORDS_FOR_ALL_PAIRS, SparseLaw, disjoint_pair, metric_delta

# A larger delta promises nothing that a reader of an (epsilon, delta) would expect.
_LARGEST_DELTA = 0.01


def require_neighbours(value: object) -> int:
    """K as an int if it is from 2 to 256, as many outcomes as an alias table holds; else ArgumentError."""
    if require_count("neighbours", value, minimum=2) > 256:
        raise ArgumentError(f"neighbours must be at most 256, not {value}")
    return int(value)  # type: ignore[call-overload]


class BoundCandidates:
    """Alias tables over the K nearest words of every word.

    Args:
        candidates: (V, K) int32.
        tables: of V laws with K outcomes.
    """

    def __init__(self, candidates: WordIds, tables: AliasTables) -> None:
        self._candidates = candidates
        self._tables = tables

    def law_digest(self) -> str:
        """sha256 of candidates and tables."""
        digest = hashlib.sha256()
        for array in (self._candidates, self._tables.thresholds, self._tables.aliases):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        rank = self._tables.sample(ids, rng)
        rank += ids.astype(np.intp) * self._candidates.shape[1]
        return self._candidates.ravel()[rank]

    def law(self) -> SparseLaw:
        """The law that `sample` draws from, exactly."""
        return SparseLaw(self._candidates, self._tables.law()[:, : self._candidates.shape[1]])

    def law_rows(self, ids: WordIds) -> Doubles:
        """See `beam_dp.mechanisms.base.FiniteLaw`."""
        law = self.law()
        rows = np.zeros((len(ids), len(self._candidates)))
        np.put_along_axis(rows, law.ids[ids].astype(np.intp), law.probabilities[ids], axis=1)
        return rows


def candidate_guarantee(law: SparseLaw, space: WordSpace, epsilon: float) -> MetricGuarantee:
    """(epsilon, delta) computed from ``law`` in the Euclidean metric, or no finite claim and why.

    None is made where the candidates of two words have nothing in common (delta is 1 then), where delta is above 0.01,
    and beyond 2,000 words, where it is not computed.
    """
    if disjoint_pair(law) is not None:
        candidates = law.ids.shape[1]
        return no_guarantee(
            space, f"the {candidates} candidates of some words have nothing in common: delta is 1 at any epsilon"
        )
    if space.size > MAX_WORDS_FOR_ALL_PAIRS:
        return no_guarantee(space, f"delta is computed for at most {MAX_WORDS_FOR_ALL_PAIRS} words")
    delta = metric_delta(law, space.vectors, epsilon)
    if delta > _LARGEST_DELTA:
        return no_guarantee(space, f"delta, computed from the exact law, is {delta:.3g}, above {_LARGEST_DELTA}")
    return MetricGuarantee(
        epsilon=epsilon, delta=delta, basis="computed", metric=space.metric, index_digest=space.digest
    )


def no_guarantee(space: WordSpace, reason: str) -> MetricGuarantee:
    """No finite claim, and why."""
    return MetricGuarantee(epsilon=None, basis="none", reason=reason, metric=space.metric, index_digest=space.digest)
