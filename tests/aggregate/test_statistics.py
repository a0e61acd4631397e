"""Statistics: integers that mean what they say, never beyond their bounds, exact whatever is added up."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from beam_dp.aggregate.bounds import Bounds
from beam_dp.aggregate.statistics import (
    BinCounts,
    LeafCounts,
    RowCount,
    Rows,
    Total,
    UnitCount,
    ValueCount,
    require_bounds,
    shifted_total,
)
from beam_dp.errors import ArgumentError

UNIT = 1 << 30
LIMB = 1 << 15
LEAVES = 16**4
KINDS = ("value", "centred", "squares")
any_float = st.floats(allow_subnormal=True)
bound = st.floats(-1e150, 1e150, allow_subnormal=True)
extremes = [0.0, -0.0, 5e-324, -5e-324, 1e150, -1e150, 1.7e308, -1.7e308, math.inf, -math.inf, math.nan]


def quantised(total: Total, values: list[float]) -> list[int]:
    return total.quantise(np.array(values)).tolist()


@settings(deadline=None, max_examples=300)
@given(bound, bound, st.lists(any_float, max_size=8), st.sampled_from(KINDS))
@example(low=0.0, high=5e-324, values=[5e-324, 1.0], of="centred")
@example(low=0.0, high=1e-323, values=[0.0, 5e-324, 1e-323], of="squares")
# Five of the smallest floats: half of them is rounded, and the values next to it reach beyond the magnitude.
@example(low=0.0, high=25e-324, values=[0.0, 25e-324], of="centred")
@example(low=0.0, high=25e-324, values=[0.0, 25e-324], of="squares")
@example(low=-1e150, high=1e150, values=[], of="squares")
def test_no_value_is_quantised_beyond_the_largest_magnitude(
    low: float, high: float, values: list[float], of: Any
) -> None:
    low, high = sorted((low, high))
    total = Total(column="v", low=low, high=high, of=of)
    result = quantised(total, values + extremes)
    assert max(map(abs, result)) <= UNIT
    assert result[-1] == 0  # NaN adds nothing
    assert quantised(total, [math.inf]) == quantised(total, [high])
    assert quantised(total, [-math.inf]) == quantised(total, [low])


@settings(deadline=None, max_examples=300)
@given(bound, bound, st.lists(any_float.filter(lambda x: not math.isnan(x)), min_size=2, max_size=8))
def test_quantising_keeps_the_order(low: float, high: float, values: list[float]) -> None:
    low, high = sorted((low, high))
    ordered = sorted(values)
    for of in ("value", "centred"):
        result = quantised(Total(column="v", low=low, high=high, of=of), ordered)
        assert result == sorted(result)
    squares = Total(column="v", low=low, high=high, of="squares")
    by_distance = sorted(values, key=lambda x: abs(min(max(x, low), high) - squares.middle))
    result = quantised(squares, by_distance)
    assert result == sorted(result)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.lists(st.floats(-3e6, 3e6), min_size=1, max_size=8))
def test_a_value_is_off_by_half_a_unit(low: float, span: float, values: list[float]) -> None:
    high = low + span
    half = (Fraction(high) - Fraction(low)) / 2
    clamped = [Fraction(min(max(x, low), high)) for x in values]
    exact = {
        "value": (max(abs(Fraction(low)), abs(Fraction(high))), clamped),
        "centred": (half, [x - Fraction(low) - half for x in clamped]),
        "squares": (half**2 / 2, [(x - Fraction(low) - half) ** 2 - half**2 / 2 for x in clamped]),
    }
    for of in KINDS:
        total = Total(column="v", low=low, high=high, of=of)  # type: ignore[arg-type]
        magnitude, numbers = exact[of]
        assert total.magnitude == pytest.approx(float(magnitude))
        # Half a unit, and what float64 rounds where the bounds are far from zero and close together.
        slack = 0.5 + 2**-20 + 8 * UNIT * 2**-53 * float(max(abs(low), abs(high), 1) / half)
        for got, want in zip(quantised(total, values), numbers, strict=True):
            assert abs(got - float(want / magnitude * UNIT)) <= slack


def test_a_value_contributes_the_same_in_whatever_company(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.normal(0, 5, 500), extremes])
    for of in KINDS:
        total = Total(column="v", low=-3, high=7, of=of)  # type: ignore[arg-type]
        together = total.quantise(values)
        assert together.tolist() == [total.quantise(values[i : i + 1])[0] for i in range(len(values))]
        assert values[0] == np.array(values)[0] and np.isnan(values[-1])  # the values themselves stay


def rows_of(partition: list[int], values: list[float], size: int) -> Rows:
    places = np.array(partition, np.int64)
    return Rows(places, np.unique(places), {"v": np.array(values, np.float64)}, size)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.one_of(st.sampled_from(extremes), st.floats(-20, 20))), max_size=50),
    st.integers(15, 30),
    st.sampled_from(KINDS),
)
def test_totals_are_exact_sums_rounded_once(data: list[tuple[int, float]], shift: int, of: Any) -> None:
    total = Total(column="v", low=-7.5, high=11.25, of=of)
    limbs = total.add_up(rows_of([p for p, _ in data], [v for _, v in data], 4))
    assert limbs.shape == (4, 2) and limbs.dtype == np.int64
    result = shifted_total(limbs, shift)
    for partition in range(4):
        exact = sum(quantised(total, [v for p, v in data if p == partition]))
        assert limbs[partition, 0] * LIMB + limbs[partition, 1] == exact
        assert result[partition] == math.floor(Fraction(exact, 1 << shift) + Fraction(1, 2))


@settings(deadline=None, max_examples=300)
@given(
    # Two billion rows, each of them as large as can be, and any number of low limbs.
    st.lists(st.tuples(st.integers(-(2**46), 2**46), st.integers(0, 2**46)), min_size=1, max_size=5),
    st.integers(15, 30),
)
@example(limbs=[(-(2**46), 0), (2**46, 2**46)], shift=15)
@example(limbs=[(-1, 2**15 - 1), (0, 2**14 - 1), (0, 2**14), (-1, 2**14)], shift=15)
def test_totals_of_billions_of_rows_do_not_overflow(limbs: list[tuple[int, int]], shift: int) -> None:
    result = shifted_total(np.array(limbs, np.int64), shift)
    for (high, low), got in zip(limbs, result.tolist(), strict=True):
        assert got == math.floor(Fraction(high * LIMB + low, 1 << shift) + Fraction(1, 2))


@pytest.mark.parametrize("value", [-7.5, 11.25, -1e300, 1e300, 0.1])
def test_many_equal_rows_add_up_exactly(value: float) -> None:
    count, times = 300_000, 10_000
    total = Total(column="v", low=-7.5, high=11.25)
    limbs = total.add_up(rows_of([0] * count, [value] * count, 1)) * times
    exact = quantised(total, [value])[0] * count * times
    assert int(limbs[0, 0]) * LIMB + int(limbs[0, 1]) == exact
    assert shifted_total(limbs, 20)[0] == math.floor(Fraction(exact, 1 << 20) + Fraction(1, 2))


@settings(deadline=None)
@given(st.integers(-(2**40), 2**40), st.integers(0, 5), st.integers(15, 30))
def test_rounding_to_steps_never_adds_to_the_sensitivity(total: int, magnitudes: int, shift: int) -> None:
    # The claim of `beam_dp.aggregate.noise`: totals no more than rows·2^30 apart are rows·2^(30-shift) steps apart.
    difference = magnitudes * UNIT
    for other in (total + difference, total - difference, total + difference // 3):
        steps = [int(shifted_total(np.array([[t >> 15, t & (LIMB - 1)]], np.int64), shift)[0]) for t in (total, other)]
        assert abs(steps[0] - steps[1]) <= magnitudes << (30 - shift)


def test_counts() -> None:
    rows = Rows(
        partition=np.array([0, 0, 2, 2, 2]),
        pair_partitions=np.array([0, 2, 2]),
        values={"v": np.array([1.0, math.nan, math.inf, -1.0, 3.0])},
        size=4,
    )
    assert RowCount().add_up(rows).tolist() == [[2], [0], [3], [0]]
    assert UnitCount().add_up(rows).tolist() == [[1], [0], [2], [0]]
    assert ValueCount(column="v").add_up(rows).tolist() == [[1], [0], [3], [0]]


edges = st.lists(st.floats(-10, 10), min_size=2, max_size=6, unique=True).map(lambda e: tuple(sorted(e)))


@settings(deadline=None)
@given(edges, st.lists(st.tuples(st.integers(0, 2), st.one_of(st.floats(-12, 12), st.just(math.nan))), max_size=30))
def test_bins_hold_their_lower_edge_and_the_ends_hold_what_is_beyond(
    edges: tuple[float, ...], data: list[tuple[int, float]]
) -> None:
    data = data + [(1, edge) for edge in edges] + [(1, math.inf), (1, -math.inf)]
    counts = BinCounts(column="v", edges=edges).add_up(rows_of([p for p, _ in data], [v for _, v in data], 3))
    expected = np.zeros((3, len(edges) - 1), np.int64)
    for partition, value in data:
        if math.isnan(value):
            continue
        inside = [i for i in range(len(edges) - 1) if edges[i] <= value < edges[i + 1]]
        expected[partition, inside[0] if inside else (0 if value < edges[0] else -1)] += 1
    assert counts.tolist() == expected.tolist()


@settings(deadline=None)
@given(bound, bound, st.lists(any_float, max_size=20))
@example(low=0.0, high=5e-324, values=[0.0, 5e-324])
@example(low=-1e150, high=1e150, values=[0.0])
def test_leaves_keep_the_order_and_stay_in_the_tree(low: float, high: float, values: list[float]) -> None:
    assume(low != high)
    low, high = sorted((low, high))
    statistic = LeafCounts(column="v", low=low, high=high)
    ordered = np.array(sorted(x for x in values + extremes if not math.isnan(x)))
    leaves = statistic.leaves(ordered)
    assert leaves.tolist() == sorted(leaves.tolist())
    assert (leaves[0], leaves[-1]) == (0, LEAVES - 1)


def test_leaves_cut_the_range_into_equal_parts(rng: np.random.Generator) -> None:
    values = rng.uniform(-2, 6, 10_000)
    leaves = LeafCounts(column="v", low=-2, high=6).leaves(values)
    width = 8 / LEAVES
    assert np.all(leaves * width - 2 <= values + 1e-12) and np.all(values <= (leaves + 1) * width - 2 + 1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.one_of(st.floats(-1, 2), st.just(math.nan))), max_size=30))
def test_leaf_counts_are_sparse_and_ascending(data: list[tuple[int, float]]) -> None:
    statistic = LeafCounts(column="v", low=0, high=1)
    codes, counts = statistic.add_up_sparse(rows_of([p for p, _ in data], [v for _, v in data], 4))
    expected: dict[int, int] = {}
    for partition, value in data:
        if not math.isnan(value):
            code = partition * LEAVES + int(statistic.leaves(np.array([value]))[0])
            expected[code] = expected.get(code, 0) + 1
    assert dict(zip(codes.tolist(), counts.tolist(), strict=True)) == expected
    assert codes.tolist() == sorted(expected)


def test_sensitivities_in_a_partition_are_those_of_one_unit() -> None:
    bounds = Bounds(partitions=9, rows_per_partition=3)
    assert RowCount().partition_sensitivity(bounds) == 3
    assert UnitCount().partition_sensitivity(bounds) == 1
    assert ValueCount(column="v").partition_sensitivity(bounds) == 3
    assert BinCounts(column="v", edges=(0, 1, 2)).partition_sensitivity(bounds) == 3
    assert LeafCounts(column="v", low=0, high=1).partition_sensitivity(bounds) == 4 * 3
    for of in KINDS:
        total = Total(column="v", low=-1, high=2, of=of)  # type: ignore[arg-type]
        assert total.partition_sensitivity(bounds) == 3 * UNIT


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e151, -(10**400), None, "1", True, 1j])
def test_bounds_of_values_are_finite_numbers(wrong: object) -> None:
    for pair, name in (((wrong, 1), "low"), ((0, wrong), "high")):
        with pytest.raises(ArgumentError, match=f"{name} must be a finite number"):
            require_bounds(*pair)


def test_bounds_of_values_are_in_order() -> None:
    assert require_bounds(np.int64(1), np.float32(1)) == (1.0, 1.0)
    with pytest.raises(ArgumentError, match="low must be at most high, but 2 and 1 were given"):
        require_bounds(2, 1)
    with pytest.raises(ArgumentError, match="low must be below high"):
        require_bounds(1, 1, equal=False)
