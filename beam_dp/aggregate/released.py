"""A statistic after its release, and what all metrics that are made of such have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_dp.aggregate.bounds import Codes
from beam_dp.aggregate.partials import Sparse
from beam_dp.aggregate.statistics import Statistic, Total, require_bounds
from beam_dp.errors import ArgumentError, describe_kind, require_positive
from beam_dp.mechanisms.discrete_noise import IntegerNoise

CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Noised:
    """A statistic after its release.

    Attributes:
        integers: (P, width) int64 with noise, in steps.
        noise: the law of the noise.
        step: one step in the units of the metric.
        rounded: whether the exact total was rounded to whole steps before the noise.
    """

    integers: Codes
    noise: IntegerNoise
    step: float = 1.0
    rounded: bool = False

    def estimate(self) -> Floats:
        """(P, width) in the units of the metric."""
        return self.integers.astype(np.float64) * self.step

    def half_width(self, confidence: float) -> float:
        """How far the estimate is from the exact total at most, with this probability."""
        return (self.noise.half_width(confidence) + 0.5 * self.rounded) * self.step

    @property
    def stddev(self) -> float:
        """Of the noise, in the units of the metric."""
        return self.noise.stddev * self.step


@dataclass(frozen=True, eq=False)
class NoisyTree:
    """A sparse statistic whose noise is drawn as it is searched, and never twice for one node.

    Attributes:
        tree: exact leaf counts.
        size: P.
        noise: the law of the noise of each node.
        rng: the current generator of a `SecureSource`.
    """

    tree: Sparse
    size: int
    noise: IntegerNoise
    rng: np.random.Generator


class Metric(Protocol):
    """What `Aggregate` takes: a frozen dataclass that says what to add up and what to make of it."""

    @property
    def statistic_weight(self) -> float:
        """The part of the budget that each of its statistics gets, relative to the others."""

    @property
    def title(self) -> str:
        """The name of its output column; further columns begin with it."""

    @property
    def statistics(self) -> dict[str, Statistic]:
        """What is released, by a name for the ledger."""

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The output columns, (P,) each, from the released statistics in their order."""


@dataclass(frozen=True)
class NamedMetric:
    """What all metrics have.

    Attributes:
        name: of the output column; None for the usual one.
        weight: the part of the budget that its statistics get, relative to those of others.
    """

    _: KW_ONLY
    name: str | None = None
    weight: float = 1.0

    def _check(self) -> None:
        """Validates what all metrics have."""
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            raise ArgumentError(f"name must be a string that is not empty, not {describe_kind(self.name)}")
        object.__setattr__(self, "weight", require_positive("weight", self.weight))

    @property
    def statistic_weight(self) -> float:
        """The metric's weight."""
        return self.weight


def name_or_usual(name: str | None, usual: str) -> str:
    """The title of a metric: the name given, or the usual one."""
    return usual if name is None else name


def require_column(column: object) -> str:
    """``column`` if it can be the name of one.

    Raises:
        ArgumentError: it is no string, or empty.
    """
    if not isinstance(column, str) or not column:
        raise ArgumentError(f"column must be the name of a column, not {describe_kind(column)}")
    return column


def four_columns(
    title: str, estimate: pa.Array, stddev: pa.Array, low: pa.Array, high: pa.Array
) -> dict[str, pa.Array]:
    """The columns that every estimate has: itself, the deviation of its noise, and the ends of its interval."""
    return {
        title: estimate,
        f"{title}_noise_stddev": stddev,
        f"{title}_ci_low": low,
        f"{title}_ci_high": high,
    }


def count_columns(title: str, count: Noised) -> dict[str, pa.Array]:
    """A count with its columns; lists where it is a vector."""
    size, width = count.integers.shape
    reach = count.noise.half_width(CONFIDENCE)

    def shaped(integers: Codes) -> pa.Array:
        flat = pa.array(integers.reshape(-1))
        return flat if width == 1 else lists_of(flat, size, width)

    stddev = pa.array(np.full(size, count.stddev))
    integers = count.integers
    return four_columns(title, shaped(integers), stddev, shaped(integers - reach), shaped(integers + reach))


def lists_of(flat: pa.Array, size: int, width: int) -> pa.Array:
    """``size`` lists of ``width`` values each, from all values one after another."""
    return pa.ListArray.from_arrays(pa.array(np.arange(size + 1, dtype=np.int32) * width), flat)


@dataclass(frozen=True)
class ColumnMetric(NamedMetric):
    """A metric of the numbers in a column, which are clamped to [low, high].

    Attributes:
        column: where the numbers are; null, NaN and text that is no number count as nothing there.
        low: the public lower bound.
        high: the public upper bound; at least ``low``.
    """

    column: str
    low: float
    high: float

    def __post_init__(self) -> None:
        require_column(self.column)
        low, high = require_bounds(self.low, self.high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        self._check()

    def _total(self, of: str) -> Total:
        return Total(column=self.column, low=self.low, high=self.high, of=of)  # type: ignore[arg-type]


def dense(released: Sequence[Noised | NoisyTree]) -> list[Noised]:
    """The released statistics that are no trees."""
    return [item for item in released if isinstance(item, Noised)]
