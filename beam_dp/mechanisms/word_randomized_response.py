"""Randomized response over the vocabulary: the baseline of the local model, which no embedding helps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from beam_dp.errors import ArgumentError, require_positive
from beam_dp.guarantees import LocalGuarantee
from beam_dp.mechanisms.base import Doubles, WordIds, WordSpace
from beam_dp.mechanisms.randomized_response import KaryRandomizedResponse

# As budgets name it.
_DOCUMENT = "document"


@dataclass(frozen=True)
class WordRandomizedResponse:
    """M(w) = w with probability e^ε/(e^ε + V - 1) exactly, else one of the V - 1 other words, each alike.

    Claim: for *any* two words w, w' and every set S of words, ``P[M(w) in S] <= e^ε * P[M(w') in S]``; δ = 0. That is
    local privacy: no distance is in it, so a word is hidden among all words, and not among its neighbours only. For
    the same reason it takes an ε well above ln V to keep much of a text.

    Proof sketch: P[M(w) = y] is p = e^ε/(e^ε + V - 1) for y = w and q = 1/(e^ε + V - 1) for the V - 1 others. The
    ratio for w and w' at any y is 1, p/q = e^ε or e^-ε.

    Of two documents with the same number m of words in the vocabulary, with independent draws for each, the ratio is
    at most e^(ε·m). So the privacy unit is the document, and ε is that of one of the up to ``max_words`` draws that it
    meets: the ledger adds them up.

    Source: Warner 1965; k categories: Kairouz, Bonawitz, Ramage, "Discrete Distribution Estimation under Local
    Privacy", ICML 2016, section 4. The draw is `beam_dp.mechanisms.randomized_response.KaryRandomizedResponse`.

    Attributes:
        epsilon: ε, without a unit, finite, above 0.
    """

    epsilon: float
    name: ClassVar[str] = "randomized_response"

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))

    def guarantee(self, space: WordSpace) -> LocalGuarantee:
        """ε for one word of a document, by the proof above.

        Raises:
            ArgumentError: ``space`` has one word only.
        """
        self._response(space)
        return LocalGuarantee(epsilon=self.epsilon, basis="proved", privacy_unit=_DOCUMENT)

    def bind(self, space: WordSpace) -> BoundWordRandomizedResponse:
        """The mechanism on the words of ``space``, whatever their vectors are.

        Raises:
            ArgumentError: as `guarantee`.
        """
        return BoundWordRandomizedResponse(self._response(space))

    def _response(self, space: WordSpace) -> KaryRandomizedResponse:
        if space.size < 2:
            raise ArgumentError("index: randomized_response needs at least two words")
        return KaryRandomizedResponse(space.size, self.epsilon)


class BoundWordRandomizedResponse:
    """`WordRandomizedResponse` on one vocabulary.

    Args:
        response: over its words.
    """

    def __init__(self, response: KaryRandomizedResponse) -> None:
        self._response = response

    def law_digest(self) -> None:
        """None: parameters and index say it all."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """See `beam_dp.mechanisms.base.BoundMechanism.sample`."""
        return self._response.respond(ids, rng)

    @property
    def log_probabilities(self) -> tuple[float, float]:
        """ln p of the word itself and ln q of each other word: finite also where q underflows; see the claim."""
        log_keep = -math.log1p((self._response.categories - 1) * math.exp(-self._response.epsilon))
        return log_keep, log_keep - self._response.epsilon

    def law_rows(self, ids: WordIds) -> Doubles:
        """See `beam_dp.mechanisms.base.FiniteLaw`."""
        keep = self._response.keep_probability
        rows = np.full((len(ids), self._response.categories), keep * math.exp(-self._response.epsilon))
        rows[np.arange(len(ids)), ids] = keep
        return rows
