"""What a word mechanism is, and what it may ask of the embedding space that it is bound to."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError, describe_kind
from beam_dp.guarantees import LocalGuarantee, MetricGuarantee

WordIds: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]
Points: TypeAlias = npt.NDArray[np.floating]
Arrays: TypeAlias = dict[str, npt.NDArray]


class WordSpace(Protocol):
    """The public vocabulary W with its vectors and metric, as mechanisms see it.

    Everything here is public: it depends on the embedding index alone, never on a text.

    Attributes:
        size: number of words V = |W|; the ids are 0 to V-1.
        dimension: d.
        metric: name of the metric d(w, w') between vectors: ``euclidean``, or ``poincare`` for the Poincaré ball.
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

    def nearest(self, queries: Points) -> WordIds:
        """The ids (n,) of the vectors nearest to ``queries`` (n, d).

        The queries are float32 vectors in the euclidean metric; in the metric poincare they are float64 log coordinates
        (`beam_dp.mechanisms.poincare_ball`), since vectors would saturate near the boundary.
        """

    def nearest_two(self, queries: Points) -> tuple[WordIds, Doubles]:
        """The two vectors nearest to ``queries`` (n, d), the nearest first: ids and distances, (n, 2) each."""

    def neighbours(self, k: int) -> tuple[WordIds, Floats]:
        """The exact min(k, V) nearest words of every word, itself first: ids and distances (V, k)."""

    def distance_bounds(self, ids: WordIds) -> tuple[Floats, Floats]:
        """Bounds below and above d(w, y) of ``ids`` (n,) to all words: (n, V) float32 each, the caller's own.

        They hold for sure, and are good to a few digits; both are 0 from a word to itself.
        """

    def pair_distances(self, left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> Doubles:
        """d(left, right) of each pair of ids, (n,) float64, exact but for rounding in float64."""

    def exact_distances(self, ids: WordIds) -> Doubles:
        """d(w, y) of ``ids`` (n,) to all words, (n, V) float64, as `pair_distances` gives them."""

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


@runtime_checkable
class FiniteLaw(Protocol):
    """A bound mechanism whose law is known in closed form, e.g. for certificates."""

    def law_rows(self, ids: WordIds) -> Doubles:
        """P[M(w) = y] for ``ids`` (n,) and all words y: (n, V) float64, rows that sum to 1 but for rounding."""


def require_euclidean(space: WordSpace) -> None:
    """ArgumentError unless the metric of ``space`` is the one that the proof is about."""
    if space.metric != "euclidean":
        raise ArgumentError(f"index: this mechanism is proved for the euclidean metric, not for {space.metric}")


def require_fraction(name: str, value: object, most: float = 1.0) -> float:
    """``value`` as a float if it is a number from 0 to ``most``, else ArgumentError naming ``name``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        given = f"{value:g}" if number else describe_kind(value)
        raise ArgumentError(f"{name} must be a number from 0 to {most:g}, not {given}")
    return float(value)


class WordMechanism(Protocol):
    """A randomised map W -> W: a small frozen dataclass, validated by its constructor.

    One whose guarantee is in another metric than that of the space is an `OwnDiameter`, too.

    Attributes:
        name: the name in ledgers and on command lines.
    """

    name: ClassVar[str]

    def guarantee(self, space: WordSpace) -> MetricGuarantee | LocalGuarantee:
        """What one draw promises for one word of ``space``: in the local model any two words are at distance 1.

        Raises:
            ArgumentError: the parameters are not valid for this space.
        """

    def bind(self, space: WordSpace) -> BoundMechanism:
        """The mechanism on ``space``, ready to draw.

        Raises:
            ArgumentError: the parameters are not valid for this space.
        """


@runtime_checkable
class OwnDiameter(Protocol):
    """A mechanism whose guarantee is in a metric of its own, not in that of the index: it must have this too."""

    def diameter(self, space: WordSpace) -> float:
        """An upper bound of the distance of any two words of ``space``, in the metric that `guarantee` names."""


def diameter_of(mechanism: WordMechanism, space: WordSpace, metric: str) -> float:
    """An upper bound of the distance of any two words in ``metric``, that of the guarantee of ``mechanism``.

    Raises:
        ArgumentError: it is not the metric of ``space``, and the mechanism has no ``diameter`` of its own.
    """
    if isinstance(mechanism, OwnDiameter):
        return mechanism.diameter(space)
    if metric != space.metric:
        raise ArgumentError(
            f"mechanism promises something in the metric {metric}, which is not that of the index: it needs a method "
            "diameter(space), as OwnDiameter says"
        )
    return space.diameter
