"""What a word mechanism is, and what it may ask of the embedding space that it is bound to."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError
from beam_dp.guarantees import MetricGuarantee

WordIds: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]
Arrays: TypeAlias = dict[str, npt.NDArray]


class WordSpace(Protocol):
    """The public vocabulary W with its vectors and metric, as mechanisms see it.

    Everything here is public: it depends on the embedding index alone, never on a text.

    Attributes:
        size: number of words V = |W|; the ids are 0 to V-1.
        dimension: d.
        metric: name of the metric d(w, w') between vectors, e.g. ``euclidean``.
        digest: sha256 that identifies the index.
        vectors: (V, d) float32, read-only.
        diameter: an upper bound of d(w, w') over all pairs.
        min_distance: the smallest d(w, w') over all pairs of different words; 0 with duplicate vectors.
    """

    size: int
    dimension: int
    metric: str
    digest: str
    vectors: Floats
    diameter: float
    min_distance: float

    def nearest(self, queries: Floats) -> WordIds:
        """The ids (n,) of the vectors nearest to ``queries`` (n, d) float32."""

    def neighbours(self, k: int) -> tuple[WordIds, Floats]:
        """The exact min(k, V) nearest words of every word, itself first: ids and distances (V, k)."""

    def derived(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """``compute()``, run once a machine and kept on disk under the digest and ``name``, memory-mapped."""


class BoundMechanism(Protocol):
    """A mechanism with everything it needs to draw, made once in each worker process."""

    def law_digest(self) -> str | None:
        """sha256 of the tables that `sample` draws from; None where parameters and index say it all."""

    def sample(self, ids: WordIds, rng: np.random.Generator) -> WordIds:
        """One independent draw of M(w) for each id: (n,) int32 in, (n,) int32 out.

        Args:
            ids: ids in [0, V); any other value is an error of the caller.
            rng: the current generator of a `beam_dp.randomness.SecureSource`.
        """


def require_euclidean(space: WordSpace) -> None:
    """ArgumentError unless the metric of ``space`` is the one that the proof is about."""
    if space.metric != "euclidean":
        raise ArgumentError(f"index: this mechanism is proved for the euclidean metric, not for {space.metric}")


class WordMechanism(Protocol):
    """A randomised map W -> W: a small frozen dataclass, validated by its constructor.

    Attributes:
        name: the name in ledgers and on command lines.
    """

    name: ClassVar[str]

    def guarantee(self, space: WordSpace) -> MetricGuarantee:
        """What one draw promises for one word of ``space``.

        Raises:
            ArgumentError: the parameters are not valid for this space.
        """

    def bind(self, space: WordSpace) -> BoundMechanism:
        """The mechanism on ``space``, ready to draw.

        Raises:
            ArgumentError: the parameters are not valid for this space.
        """
