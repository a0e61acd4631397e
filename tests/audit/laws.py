"""Laws by hand, and the definition of (epsilon, delta) written out over every pair and every output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import ClassVar

import numpy as np

from beam_dp.guarantees import MetricGuarantee
from beam_dp.mechanisms.row_laws import BoundRows
from beam_dp.mechanisms.word_exponential import Exponential


class BoundMatrix:
    """Draws from the rows of a transition matrix (V, V)."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    def law_digest(self) -> None:
        return None

    def law_rows(self, ids: np.ndarray) -> np.ndarray:
        return self._matrix[ids].copy()

    def sample(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        edges = np.cumsum(self._matrix[ids], axis=1)[:, :-1]
        return (rng.random(len(ids))[:, None] >= edges).sum(axis=1).astype(np.int32)


@dataclass(frozen=True)
class MatrixMechanism:
    """A mechanism with any law at all and any claim at all: what a wrong one would look like."""

    matrix: tuple[tuple[float, ...], ...]
    epsilon: float | None
    delta: float = 0.0
    name: ClassVar[str] = "matrix"

    @classmethod
    def of(cls, matrix: np.ndarray, epsilon: float | None, delta: float = 0.0) -> MatrixMechanism:
        return cls(tuple(map(tuple, matrix.tolist())), epsilon, delta)

    def guarantee(self, space) -> MetricGuarantee:
        if self.epsilon is None:
            return MetricGuarantee(
                epsilon=None, basis="none", reason="made up", metric=space.metric, index_digest=space.digest
            )
        return MetricGuarantee(
            epsilon=self.epsilon, delta=self.delta, basis="computed", metric=space.metric, index_digest=space.digest
        )

    def bind(self, _space) -> BoundMatrix:
        return BoundMatrix(np.array(self.matrix))


@dataclass(frozen=True)
class HalfDropped(Exponential):
    """The exponential mechanism with the whole of epsilon in its exponent."""

    def bind(self, space) -> BoundRows:
        return Exponential(2 * self.epsilon).bind(space)


def exponential_matrix(distances: np.ndarray, rate: float, cap: float = math.inf) -> np.ndarray:
    """P[w, y] proportional to exp(-rate * min(d(w, y), cap))."""
    weights = np.array([[math.exp(-rate * min(float(d), cap)) for d in row] for row in distances])
    return weights / weights.sum(axis=1, keepdims=True)


def defined_epsilon(matrix: np.ndarray, distances: np.ndarray, radius: float = math.inf) -> float:
    """The smallest epsilon at delta 0 over pairs with 0 < d <= radius; infinite where an output is impossible."""
    worst = 0.0
    for w, p in enumerate(matrix):
        for v, q in enumerate(matrix):
            if v == w or not 0 < distances[w, v] <= radius:
                continue
            for a, b in zip(p, q, strict=True):
                if a > 0:
                    worst = max(worst, math.inf if b == 0 else (math.log(a) - math.log(b)) / distances[w, v])
    return worst


def decimal_epsilon(points: np.ndarray, rate: float) -> Decimal:
    """`defined_epsilon` of the exponential law on a line, with fifty digits."""
    with localcontext() as context:
        context.prec = 50
        places = [Decimal(float(x)) for x in points]
        costs = [[Decimal(rate) * abs(x - y) for y in places] for x in places]
        normalisers = [sum((-cost).exp() for cost in row).ln() for row in costs]
        return max(
            (costs[w][v] + normalisers[v] - normalisers[w]) / abs(places[w] - places[v])
            for w in range(len(places))
            for v in range(len(places))
            if places[v] != places[w]
        )


def defined_delta(matrix: np.ndarray, distances: np.ndarray, epsilon: float, radius: float = math.inf) -> float:
    """The largest hockey-stick sum at ``epsilon`` over pairs with d <= radius."""
    worst = 0.0
    for w, p in enumerate(matrix):
        for v, q in enumerate(matrix):
            if v != w and distances[w, v] <= radius:
                factor = math.exp(epsilon * distances[w, v])
                worst = max(worst, math.fsum(max(0.0, a - factor * b) for a, b in zip(p, q, strict=True)))
    return min(worst, 1.0)
