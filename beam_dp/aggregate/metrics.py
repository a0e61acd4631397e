"""What an analyst asks for: metrics as values, and how each is made from noisy statistics.

A metric names the statistics that it needs; each of them is released with noise of its own, once for all metrics that
need it, and everything after that is post-processing. Each gives its estimate, the standard deviation of the noise in
it and a 95% confidence interval, which covers the statistic of the rows that bounding and clamping have left, not the
raw one. (Quantising moves each value by up to 2^-31 of the largest magnitude; the interval leaves that out.)

How the budget is split over them: `beam_dp.aggregate.budget.Budget`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from beam_dp.aggregate.intervals import sum_half_width
from beam_dp.aggregate.quantile_tree import rank_error_bounds, tree_quantiles
from beam_dp.aggregate.released import (
    CONFIDENCE,
    ColumnMetric,
    Floats,
    Metric,
    NamedMetric,
    Noised,
    NoisyTree,
    count_columns,
    dense,
    four_columns,
    lists_of,
    name_or_usual,
    require_column,
)
from beam_dp.aggregate.statistics import (
    BinCounts,
    LeafCounts,
    RowCount,
    Statistic,
    Total,
    UnitCount,
    ValueCount,
    require_bounds,
)
from beam_dp.errors import ArgumentError, describe_kind, require_positive


@dataclass(frozen=True)
class Count(NamedMetric):
    """The number of rows, or of the rows with a number in a column. Column ``count`` or ``count_COLUMN``, int64.

    Noise can make it negative. `Mean` and `Variance` of the column need the latter too, and share it.

    Attributes:
        column: which column must have a number for a row to count; None to count all.
    """

    column: str | None = None

    def __post_init__(self) -> None:
        self._check()

    @property
    def title(self) -> str:
        """``count`` or ``count_COLUMN``, or the name given."""
        return name_or_usual(self.name, "count" if self.column is None else f"count_{self.column}")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """One count."""
        return {"rows": RowCount()} if self.column is None else {"values": ValueCount(column=self.column)}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The noisy count."""
        (count,) = dense(released)
        return count_columns(self.title, count)


@dataclass(frozen=True)
class PrivacyUnitCount(NamedMetric):
    """The number of distinct privacy units. Column ``privacy_unit_count``, int64."""

    def __post_init__(self) -> None:
        self._check()

    @property
    def title(self) -> str:
        """``privacy_unit_count``, or the name given."""
        return name_or_usual(self.name, "privacy_unit_count")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """One count, of sensitivity 1 in a partition whatever the number of rows."""
        return {"units": UnitCount()}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The noisy count."""
        (count,) = dense(released)
        return count_columns(self.title, count)


@dataclass(frozen=True)
class Sum(ColumnMetric):
    """The sum of clamped numbers. Column ``sum_COLUMN``, float64.

    Where `Mean` or `Variance` of the same column and bounds is asked for too, it is made of their statistics, as
    middle·n + Σ(x - middle), with less noise (by √2 for bounds 0 and high) and, unless its weight is the larger one, at
    no cost of its own.
    """

    @property
    def title(self) -> str:
        """``sum_COLUMN``, or the name given."""
        return name_or_usual(self.name, f"sum_{self.column}")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """One total, of sensitivity max(|low|, |high|) a row."""
        return {"sum": self._total("value")}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The noisy sum."""
        (total,) = dense(released)
        estimate, reach = total.estimate()[:, 0], total.half_width(CONFIDENCE)
        stddev = np.full(len(estimate), total.stddev)
        return four_columns(self.title, *map(pa.array, (estimate, stddev, estimate - reach, estimate + reach)))


@dataclass(frozen=True)
class Mean(ColumnMetric):
    """The mean of clamped numbers, (noisy Σ(x - middle)) / (noisy number of them) + middle, clamped. ``mean_COLUMN``.

    Centring makes the sensitivity of the sum half the range. ``noise_stddev`` is that of the quotient to first order
    (the delta method), at the released values; null where no more than one row is there. The interval holds all
    quotients of a count and a sum in their own intervals of 97.5% each, so it covers at least 95%.
    """

    @property
    def title(self) -> str:
        """``mean_COLUMN``, or the name given."""
        return name_or_usual(self.name, f"mean_{self.column}")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The number of values and the centred sum."""
        return {"values": ValueCount(column=self.column), "centred_sum": self._total("centred")}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The mean."""
        count, total = dense(released)
        middle = self._total("centred").middle
        n, deviation = np.maximum(count.integers[:, 0], 1), total.estimate()[:, 0]
        offset = deviation / n
        stddev = np.hypot(total.stddev, offset * count.stddev) / n
        confidence = 1 - (1 - CONFIDENCE) / 2
        low, high = _quotients(count, total, confidence)
        columns = [np.clip(x + middle, self.low, self.high) for x in (offset, low, high)]
        few = pa.array(count.integers[:, 0] <= 1)
        return four_columns(self.title, pa.array(columns[0]), _null_where(few, stddev), *map(pa.array, columns[1:]))


@dataclass(frozen=True)
class _SumBesideMean(Sum):
    """A sum from the statistics of a mean."""

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The number of values and the centred sum."""
        return {"values": ValueCount(column=self.column), "centred_sum": self._total("centred")}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """middle·n + Σ(x - middle)."""
        count, total = dense(released)
        middle = self._total("centred").middle
        estimate = middle * count.integers[:, 0] + total.estimate()[:, 0]
        terms = [(abs(middle), count.noise), (total.step, total.noise)]
        reach = sum_half_width(terms, CONFIDENCE) + 0.5 * total.rounded * total.step
        stddev = np.full(len(estimate), np.hypot(middle * count.stddev, total.stddev))
        return four_columns(self.title, *map(pa.array, (estimate, stddev, estimate - reach, estimate + reach)))


def shared_statistics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """The same metrics, sums beside a mean or variance of the same column and bounds made of their statistics."""
    means = {(m.column, m.low, m.high) for m in metrics if isinstance(m, (Mean, Variance))}
    return tuple(
        _SumBesideMean(m.column, m.low, m.high, name=m.name, weight=m.weight)
        if type(m) is Sum and (m.column, m.low, m.high) in means
        else m
        for m in metrics
    )


def _quotients(count: Noised, total: Noised, confidence: float) -> tuple[Floats, Floats]:
    """The least and the largest total/count with both within their intervals and count at least 1."""
    n, reach = count.integers[:, 0], count.half_width(confidence)
    least, most = np.maximum(n - reach, 1), np.maximum(n + reach, 1)
    low, high = (total.estimate()[:, 0] + sign * total.half_width(confidence) for sign in (-1, 1))
    return low / np.where(low < 0, least, most), high / np.where(high > 0, least, most)


def _null_where(mask: pa.Array, values: Floats) -> pa.Array:
    return pa.array(values, mask=mask.to_numpy(zero_copy_only=False))


@dataclass(frozen=True)
class Variance(ColumnMetric):
    """The (population) variance of clamped numbers, clamped to [0, range²/4]. ``variance_COLUMN``, float64.

    E[(x - middle)²] - E[x - middle]² from three statistics: the number of values, Σ(x - middle), and
    Σ((x - middle)² - halfrange²/2), whose sensitivity is half of that of the squares. The interval holds all values
    that the three, each in its own interval of 98.3%, allow, so it covers at least 95%; ``noise_stddev`` as for `Mean`.
    """

    @property
    def title(self) -> str:
        """``variance_COLUMN``, or the name given."""
        return name_or_usual(self.name, f"variance_{self.column}")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """The number of values, the centred sum and the sum of squares."""
        return {
            "values": ValueCount(column=self.column),
            "centred_sum": self._total("centred"),
            "centred_squares": self._total("squares"),
        }

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The variance."""
        count, total, squares = dense(released)
        shift = self._total("squares").magnitude
        n = np.maximum(count.integers[:, 0], 1)
        mean, square = total.estimate()[:, 0] / n, squares.estimate()[:, 0] / n
        estimate = square + shift - np.square(mean)
        by_count = (2 * np.square(mean) - square) * count.stddev
        stddev = np.hypot(np.hypot(squares.stddev, 2 * mean * total.stddev), by_count) / n
        confidence = 1 - (1 - CONFIDENCE) / 3
        mean_low, mean_high = _quotients(count, total, confidence)
        square_low, square_high = _quotients(count, squares, confidence)
        least = np.where((mean_low <= 0) & (mean_high >= 0), 0, np.minimum(np.abs(mean_low), np.abs(mean_high)))
        most = np.maximum(np.abs(mean_low), np.abs(mean_high))
        bounds = (square_low + shift - np.square(most), square_high + shift - np.square(least))
        largest = np.square((self.high - self.low) / 2)
        columns = [pa.array(np.clip(x, 0, largest)) for x in (estimate, *bounds)]
        few = pa.array(count.integers[:, 0] <= 1)
        return four_columns(self.title, columns[0], _null_where(few, stddev), *columns[1:])


@dataclass(frozen=True)
class Quantiles(ColumnMetric):
    """Quantiles of clamped numbers by a tree of noisy counts (`beam_dp.aggregate.quantile_tree`).

    Columns ``quantile_COLUMN_Q`` for each q, float64. ``noise_stddev`` is null: the noise is in ranks, not values. The
    interval holds every value whose rank the noise, bounded with 95% confidence over all nodes of the search,
    allows; it is wide where few rows are.

    Attributes:
        quantiles: in [0, 1], each once.
    """

    quantiles: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bounds(self.low, self.high, equal=False)
        if isinstance(self.quantiles, (str, bytes)) or not isinstance(self.quantiles, Sequence):
            raise ArgumentError(f"quantiles must be numbers from 0 to 1, not {describe_kind(self.quantiles)}")
        for q in self.quantiles:
            if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 <= q <= 1:
                raise ArgumentError(f"quantiles must be numbers from 0 to 1, not {describe_kind(q)}")
        values = tuple(float(q) for q in self.quantiles)
        if not values or len({f"{q:g}" for q in values}) != len(values):
            raise ArgumentError("quantiles must be one or more different numbers")
        object.__setattr__(self, "quantiles", values)

    @property
    def title(self) -> str:
        """``quantile_COLUMN``, or the name given; each column adds its q."""
        return name_or_usual(self.name, f"quantile_{self.column}")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """One tree, whatever the number of quantiles."""
        return {"tree": LeafCounts(column=self.column, low=self.low, high=self.high)}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The quantiles."""
        (tree,) = released
        assert isinstance(tree, NoisyTree)
        confidence = 1 - (1 - CONFIDENCE) / 2
        errors = [rank_error_bounds(tree.noise, q, confidence) for q in self.quantiles]
        found = tree_quantiles(tree.tree, tree.size, self.quantiles, lambda n: tree.noise.sample(n, tree.rng), errors)
        columns: dict[str, pa.Array] = {}
        for i, q in enumerate(self.quantiles):
            estimate, low, high = (
                pa.array(self.low + (self.high - self.low) * shares[:, i])
                for shares in (found.estimate, found.low, found.high)
            )
            columns |= four_columns(f"{self.title}_{q:g}", estimate, pa.nulls(tree.size, pa.float64()), low, high)
        return columns


@dataclass(frozen=True)
class Histogram(NamedMetric):
    """The number of values in each bin. Column ``histogram_COLUMN``, a list of int64, one for each bin.

    Bin i is [e_i, e_(i+1)), the last one with its upper edge; values beyond the edges count in the first or last bin. A
    row is in one bin, so that all bins together cost what one count costs. Each bin has its own 95% interval.

    Attributes:
        column: where the numbers are.
        edges: public, ascending, two or more.
    """

    column: str
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        require_column(self.column)
        if isinstance(self.edges, (str, bytes)) or not isinstance(self.edges, Sequence) or len(self.edges) < 2:
            raise ArgumentError("edges must be two or more ascending numbers")
        for low, high in zip(self.edges, self.edges[1:], strict=False):
            require_bounds(low, high, equal=False)
        object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
        self._check()

    @property
    def title(self) -> str:
        """``histogram_COLUMN``, or the name given."""
        return name_or_usual(self.name, f"histogram_{self.column}")

    @property
    def statistics(self) -> dict[str, Statistic]:
        """One vector of counts."""
        return {"bins": BinCounts(column=self.column, edges=self.edges)}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The noisy counts."""
        (bins,) = dense(released)
        size, width = bins.integers.shape
        if width > 1:
            return count_columns(self.title, bins)
        return {
            name: column if name.endswith("_noise_stddev") else lists_of(column, size, 1)
            for name, column in count_columns(self.title, bins).items()
        }


@dataclass(frozen=True)
class VectorSum(NamedMetric):
    """The sum of vectors whose coordinates are columns, each clamped to [-bound, bound]. ``vector_sum_A_B``: lists.

    Every coordinate is a sum of its own and gets an equal part of the metric's weight.

    Attributes:
        columns_of: the columns, one or more.
        bound: the public bound of every coordinate's magnitude; above 0.
    """

    columns_of: tuple[str, ...]
    bound: float

    def __post_init__(self) -> None:
        if isinstance(self.columns_of, str) or not isinstance(self.columns_of, Sequence) or not self.columns_of:
            raise ArgumentError("columns_of must be a list of one or more columns")
        columns = tuple(require_column(column) for column in self.columns_of)
        if len(set(columns)) != len(columns):
            raise ArgumentError("columns_of must name each column once")
        object.__setattr__(self, "columns_of", columns)
        bound = require_positive("bound", self.bound)
        require_bounds(-bound, bound)
        object.__setattr__(self, "bound", bound)
        self._check()

    @property
    def title(self) -> str:
        """``vector_sum_A_B``, or the name given."""
        return name_or_usual(self.name, "vector_sum_" + "_".join(self.columns_of))

    @property
    def statistic_weight(self) -> float:
        """An equal part for each coordinate."""
        return self.weight / len(self.columns_of)

    @property
    def statistics(self) -> dict[str, Statistic]:
        """One total a coordinate."""
        return {c: Total(column=c, low=-self.bound, high=self.bound) for c in self.columns_of}

    def columns(self, released: Sequence[Noised | NoisyTree]) -> dict[str, pa.Array]:
        """The noisy sums."""
        totals = dense(released)
        estimates = np.concatenate([total.estimate() for total in totals], axis=1)
        size, width = estimates.shape
        reach = np.array([total.half_width(CONFIDENCE) for total in totals])
        lists = [
            lists_of(pa.array(x.reshape(-1)), size, width) for x in (estimates, estimates - reach, estimates + reach)
        ]
        return four_columns(self.title, lists[0], pa.array(np.full(size, totals[0].stddev)), lists[1], lists[2])
