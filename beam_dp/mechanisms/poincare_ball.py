"""The Poincaré ball of curvature -1, in coordinates that lose nothing near its boundary.

A point x of the ball |x| < 1 lies at the distance ρ = 2·arsinh(|x| / sqrt(1 - |x|²)) from the origin. Near the boundary
x says little: 1 - 1e-16 is the last number below 1, and only 37 away from the origin. So points that are computed are
kept as *log coordinates* ρ·x/|x| (the logarithm map at the origin): they hold any distance, and a direction to the last
digit. Words come from float32 coordinates of the ball, whose 1 - |x|² is computed without loss.

All distances come from one sum of two terms that are never negative, so that nothing cancels: with the points at ρ and
ρ' from the origin, in directions a chord c = |x/|x| - x'/|x'|| apart,
``sinh²(d/2) = sinh²((ρ - ρ')/2) + sinh(ρ)·sinh(ρ')·c²/4``, which is the hyperbolic law of cosines (cosh(d) = 1 +
2·sinh²(d/2), 1 - cos(angle) = c²/2). For two points of the ball it is ``|x - x'|² / ((1 - |x|²)(1 - |x'|²))``, which is
the usual ``cosh(d) = 1 + 2|x - x'|² / ((1 - |x|²)(1 - |x'|²))``.

Source: Ratcliffe, Foundations of Hyperbolic Manifolds, sections 3.2, 3.5 and 4.5; the arrangement for float64 is ours.
"""

from __future__ import annotations

import numpy as np

from beam_dp.mechanisms.base import Doubles, Floats

# sinh of half of it is far from the largest float64 number, and e^-60 of it is below a rounding.
_FAR = 60.0


def boundary_gaps(points: Floats) -> Doubles:
    """1 - |x|² of ``points`` (n, d) float32: (n,) float64, at or below 0 outside of the ball.

    Squares of float32 numbers are exact in float64; what their sum loses is summed up beside it (Knuth's two-sum). So
    it is exact to a few roundings of the result, however small that is.
    """
    total = np.full(len(points), -1.0)
    lost = np.zeros(len(points))
    for column in np.ascontiguousarray(points.T, dtype=np.float64):
        square = column * column
        summed = total + square
        added = summed - total
        lost += (total - (summed - added)) + (square - added)
        total = summed
    return -(total + lost)


def log_coordinates(points: Floats) -> Doubles:
    """Log coordinates of ``points`` (n, d) float32 inside the ball: (n, d) float64."""
    logs = points.astype(np.float64)
    norm = np.sqrt(np.einsum("ij,ij->i", logs, logs))
    radius = 2 * np.arcsinh(norm / np.sqrt(boundary_gaps(points)))
    logs *= np.divide(radius, norm, out=np.zeros_like(norm), where=norm > 0)[:, None]
    return logs


def polar(logs: Doubles) -> tuple[Doubles, Doubles]:
    """Distance from the origin (n,) and unit direction (n, d) of points in log coordinates (n, d).

    The origin gets the direction of the first axis.
    """
    radius = np.sqrt(np.einsum("ij,ij->i", logs, logs))
    zero = radius == 0
    direction = logs / np.where(zero, 1.0, radius)[:, None]
    direction[zero, 0] = 1
    return radius, direction


def separation(radius: Doubles, other: Doubles, squared_chord: Doubles) -> Doubles:
    """``exp(-radius)·sinh²(d/2)`` of points at ``radius`` and ``other`` from the origin, for any broadcastable shapes.

    It rises with d, so that for one ``radius`` it ranks by distance.

    Args:
        radius: at least 0 and finite, however large.
        other: 0 to 700.
        squared_chord: c², the squared distance of the two unit directions.
    """
    apart = np.abs(radius - other)
    along = np.square(np.expm1(-apart)) * np.exp(apart - radius)
    return 0.25 * (along - 0.5 * np.expm1(-2 * radius) * np.sinh(other) * squared_chord)


def separated(radius: Doubles, separation: Doubles) -> Doubles:
    """The distance d that has this `separation` from a point at ``radius``."""
    near = 2 * np.arcsinh(np.sqrt(separation) * np.exp(np.minimum(radius, _FAR) / 2))
    # Only where the radius is moderate can the separation be 0.
    far = radius + np.log(4 * np.maximum(separation, np.finfo(np.float64).tiny))
    return np.where(radius <= _FAR, near, far)


def moved(radius: Doubles, direction: Doubles, home: Doubles, heading: Doubles) -> Doubles:
    """Log coordinates of points moved by the isometry that takes the origin to ``home`` along the line through both.

    In hyperboloid coordinates it is a Lorentz boost: it keeps all distances, and the volume. Written for a point
    (r, u) and a home (ρ, h), with everything divided by e^r so that any r will do: the new distance from the origin is
    that of (r, -u) from the home (a chord |u + h|); the new direction is that of
    ``sinh(r)·(u + h) + (sinh(ρ - r) + (cosh(ρ) - 1)·sinh(r)·|u + h|²/2)·h``, in which nothing cancels but what the
    directions themselves leave open.

    Args:
        radius: r (n,), at least 0 and finite.
        direction: u (n, d), unit vectors.
        home: ρ (n,), 0 to 700.
        heading: h (n, d), unit vectors.

    Returns:
        (n, d) float64.
    """
    point = direction + heading
    chord = np.einsum("ij,ij->i", point, point)
    distance = separated(radius, separation(radius, home, chord))
    sine = -0.5 * np.expm1(-2 * radius)
    apart = home - radius
    ahead = np.sign(apart) * -0.5 * np.expm1(-2 * np.abs(apart)) * np.exp(np.abs(apart) - radius)
    ahead += np.square(np.sinh(home / 2)) * sine * chord
    point *= sine[:, None]
    point += ahead[:, None] * heading
    length = np.sqrt(np.einsum("ij,ij->i", point, point))
    point *= np.divide(distance, length, out=np.zeros_like(length), where=length > 0)[:, None]
    return point
