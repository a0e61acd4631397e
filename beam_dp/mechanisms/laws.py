"""What a finite law promises, computed from the law itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from beam_dp.mechanisms.base import Doubles, Floats, WordIds

# All ordered pairs of this many words with 40 candidates each take about ten seconds.
MAX_WORDS_FOR_ALL_PAIRS = 2_000


@dataclass(frozen=True, eq=False)
class SparseLaw:
    """P[M(w) = ids[w, j]] = probabilities[w, j]; every other output has probability 0.

    Attributes:
        ids: (V, K) int32, the possible outputs of each word, no id twice in a row.
        probabilities: (V, K) float64, rows that sum to 1.
    """

    ids: WordIds
    probabilities: npt.NDArray[np.float64]


def disjoint_pair(law: SparseLaw) -> tuple[int, int] | None:
    """Two words whose outputs have nothing in common, or None if the search finds none.

    Between two such words some set S has P[M(w) in S] = 1 and P[M(w') in S] = 0: delta is 1 whatever epsilon is.
    The search tries the first 64 words against all others; it proves a pair, it does not prove that there is none.
    """
    possible = law.probabilities > 0
    for word in range(min(64, len(law.ids))):
        mine = law.ids[word][possible[word]]
        shared = (np.isin(law.ids, mine) & possible).any(axis=1)
        if not shared.all():
            return word, int(np.argmin(shared))
    return None


def metric_delta(law: SparseLaw, vectors: Floats, epsilon: float) -> float:
    """The smallest delta of ``law`` at ``epsilon`` * Euclidean distance: the largest hockey-stick sum over pairs.

    ``max over w, w' of sum over y of max(0, P[M(w)=y] - exp(epsilon * |v(w) - v(w')|) * P[M(w')=y])``, over all ordered
    pairs: O(V^2 (K + d)) for V words with K outputs each. Only outputs of w count, since the sum takes
    positive parts. Distances are rounded down and the result up by 1e-12, and what is subtracted is rounded down, since
    the difference may be as small as its rounding: all by more than float64 can move them.
    """
    size = len(law.ids)
    dense = np.zeros((size, size))
    np.put_along_axis(dense, law.ids.astype(np.intp), law.probabilities, axis=1)
    points = vectors.astype(np.float64)
    worst = 0.0
    for word in range(size):
        distance = np.sqrt(np.square(points - points[word]).sum(axis=1)) * (1 - 1e-12)
        bound = factor_below(epsilon * distance)[:, None] * dense[:, law.ids[word]]
        gain = np.maximum(law.probabilities[word] - bound, 0.0).sum(axis=1)
        worst = max(worst, float(gain.max()))
    return min(worst * (1 + 1e-12), 1.0)


def factor_below(exponents: Doubles) -> Doubles:
    """exp of ``exponents``, at least 0, up to exp(700), and so little less that its products with float64 are, too."""
    factors = np.exp(np.minimum(exponents, 700.0))
    return np.where(exponents > 0, factors * (1 - 1e-15), 1.0)
