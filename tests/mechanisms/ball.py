"""The Poincaré ball by ways of its own: textbook formulas with many digits, and a word space by brute force."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
from scipy import integrate

DIGITS = 60


def lift_log(log: np.ndarray) -> list:
    """The hyperboloid point (cosh ρ, sinh ρ·direction) of log coordinates, with `DIGITS` digits."""
    coordinates = [mpmath.mpf(float(x)) for x in log]
    radius = mpmath.sqrt(sum(x * x for x in coordinates))
    scale = mpmath.sinh(radius) / radius if radius else mpmath.mpf(1)
    return [mpmath.cosh(radius), *(scale * x for x in coordinates)]


def lift_ball(point: np.ndarray) -> list:
    """The hyperboloid point ((1 + |x|²), 2x) / (1 - |x|²) of a point of the ball."""
    coordinates = [mpmath.mpf(float(x)) for x in point]
    square = sum(x * x for x in coordinates)
    return [(1 + square) / (1 - square), *(2 * x / (1 - square) for x in coordinates)]


def lorentz_distance(one: list, other: list) -> float:
    """arcosh(x₀y₀ - x·y)."""
    inner = one[0] * other[0] - sum(x * y for x, y in zip(one[1:], other[1:], strict=True))
    return float(mpmath.acosh(inner if inner > 1 else mpmath.mpf(1)))


def distances_from_word(vector: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """d_H of a word (d,) of the ball from points (n, d) in log coordinates."""
    with mpmath.workdps(DIGITS):
        home = lift_ball(vector)
        return np.array([lorentz_distance(home, lift_log(log)) for log in logs])


def pulled_back(vector: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Directions (n, d) of points in log coordinates, seen from a word (d,): the boost that takes it to the origin."""
    with mpmath.workdps(DIGITS):
        time, *space = lift_ball(vector)
        seen = []
        for log in logs:
            z0, *z = lift_log(log)
            along = sum(x * y for x, y in zip(space, z, strict=True))
            moved = [y - x * (z0 - along / (1 + time)) for x, y in zip(space, z, strict=True)]
            length = mpmath.sqrt(sum(x * x for x in moved))
            seen.append([float(x / length) for x in moved])
    return np.array(seen)


def ball_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """arcosh(1 + 2|x - y|² / ((1 - |x|²)(1 - |y|²))) of points of the ball, broadcast; not near its boundary."""
    square = np.square(one - other).sum(axis=-1)
    gaps = (1 - np.square(one).sum(axis=-1)) * (1 - np.square(other).sum(axis=-1))
    return np.arccosh(1 + 2 * square / gaps)


def radial_law(dimension: int, epsilon: float, points: int = 400_001) -> tuple[np.ndarray, np.ndarray]:
    """Radii and their cumulative probabilities for the density exp(-εr)·sinh(r)^(d-1), by numeric integration."""
    excess = epsilon - (dimension - 1)
    radii = np.linspace(0, 45 / excess + 5, points)
    density = np.exp(-excess * radii) * (-np.expm1(-2 * radii)) ** (dimension - 1)
    total = integrate.cumulative_simpson(density, x=radii, initial=0)
    return radii, total / total[-1]


def radial_cdf(dimension: int, epsilon: float) -> Callable[[np.ndarray], np.ndarray]:
    radii, total = radial_law(dimension, epsilon)
    return lambda r: np.interp(r, radii, total)


class BallSpace:
    """A word space in the Poincaré ball; keeps the queries, and finds the nearest words by brute force.

    Args:
        projects: False for a space that only keeps the queries, and gives word 0 for all of them.
    """

    metric = "poincare"
    digest = "0" * 64

    def __init__(self, vectors: np.ndarray, projects: bool = True) -> None:
        self.vectors = np.asarray(vectors, dtype=np.float32)
        self.size, self.dimension = self.vectors.shape
        self.queries: list[np.ndarray] = []
        self._projects = projects

    def distances(self, queries: np.ndarray) -> np.ndarray:
        radius = np.linalg.norm(queries, axis=1, keepdims=True)
        points = queries * np.divide(np.tanh(radius / 2), radius, out=np.full_like(radius, 0.5), where=radius > 0)
        points = np.where(radius < 15, points, points * (1 - 1e-12))
        return ball_distance(points[:, None], self.vectors.astype(np.float64)[None])

    def nearest(self, queries: np.ndarray) -> np.ndarray:
        self.queries.append(queries.copy())
        if not self._projects:
            return np.zeros(len(queries), np.int32)
        return self.distances(queries).argmin(axis=1).astype(np.int32)

    def nearest_two(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.queries.append(queries.copy())
        distances = self.distances(queries)
        ids = np.argsort(distances, axis=1, kind="stable")[:, :2]
        return ids.astype(np.int32), np.take_along_axis(distances, ids, axis=1)

    def derived(self, _name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return compute()


def noisy_points(mechanism, vector: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """What ``mechanism`` searches for when it draws for a word at ``vector`` (d,): (n, d) log coordinates."""
    space = BallSpace(np.asarray(vector)[None], projects=False)
    mechanism.bind(space).sample(np.zeros(n, np.int32), rng)
    return np.concatenate(space.queries)
