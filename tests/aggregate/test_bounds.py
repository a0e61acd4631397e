"""Contribution bounding: what is kept is within the bounds, as much as they allow, and uniformly at random."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from beam_dp.aggregate.bounds import Bounds, bound_contributions, thin_rows
from beam_dp.errors import ArgumentError

SIGNIFICANCE = 1e-4
# Beyond this the codes of pairs have no room for the row's index beside them, and the other way of sorting is taken.
HUGE = 1 << 46


@pytest.mark.parametrize("name", ["partitions", "rows_per_partition"])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None, "2", float("nan")])
def test_bounds_are_whole_numbers_of_at_least_one(name: str, wrong: object) -> None:
    with pytest.raises(ArgumentError, match=name):
        Bounds(**{"partitions": 1, "rows_per_partition": 1, name: wrong})  # type: ignore[arg-type]


codes = st.integers(0, 5)
rows_of_units = st.lists(st.tuples(codes, codes), max_size=60)


@settings(deadline=None)
@given(rows_of_units, st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 1 << 56]), st.integers(0, 99))
def test_as_much_is_kept_as_the_bounds_allow(
    data: list[tuple[int, int]], partitions: int, rows: int, scale: int, seed: int
) -> None:
    units = np.array([unit for unit, _ in data], np.int64) * scale
    places = np.array([place for _, place in data], np.int64)
    kept = bound_contributions(units, places, Bounds(partitions, rows), np.random.default_rng(seed))

    assert len(set(kept.rows.tolist())) == len(kept.rows)
    ends = [*kept.pair_starts.tolist(), len(kept.rows)][1:]
    pairs = []
    for place, start, end in zip(kept.pair_partitions.tolist(), kept.pair_starts.tolist(), ends, strict=True):
        members = kept.rows[start:end]
        (unit,) = set(units[members].tolist())
        assert set(places[members].tolist()) == {place}
        there = sum(row == (unit // scale, place) for row in data)
        assert len(members) == min(rows, there)
        pairs.append((unit // scale, place))
    assert len(set(pairs)) == len(pairs)
    for unit in {unit for unit, _ in data}:
        has = {place for other, place in data if other == unit}
        assert sum(other == unit for other, _ in pairs) == min(partitions, len(has))


def test_bounds_that_nobody_reaches_keep_every_row(rng: np.random.Generator) -> None:
    units, places = rng.integers(0, 50, 3000), rng.integers(0, 20, 3000)
    kept = bound_contributions(units, places, Bounds(20, 3000), rng)
    assert sorted(kept.rows.tolist()) == list(range(3000))


# Rows of one unit in each of her partitions. Units of other shapes and one with most of the rows are beside them.
SHAPES = {
    "equal": (3, 3, 3, 3),
    "skewed": (1, 9, 2, 1, 4),
    "one partition": (7,),
    "single rows": (1, 1, 1, 1, 1, 1),
}


def copies(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``count`` units of one shape and two of others, in scattered rows: units, partitions, number of row in pair."""
    one = [(place, row) for place, rows in enumerate(shape) for row in range(rows)]
    units = np.repeat(np.arange(count), len(one))
    places = np.tile([place for place, _ in one], count)
    row_numbers = np.tile([row for _, row in one], count)
    hot, small = np.full(20_000, count), np.full(3, count + 1)
    units = np.concatenate([units, hot, small])
    places = np.concatenate([places, np.arange(20_000) % 7, [0, 1, 2]])
    row_numbers = np.concatenate([row_numbers, np.arange(20_003)])
    order = rng.permutation(len(units))
    return units[order], places[order], row_numbers[order]


def bound(units: np.ndarray, places: np.ndarray, bounds: Bounds, how: str, rng: np.random.Generator) -> np.ndarray:
    """The rows that are left, by each way there is."""
    if how == "thinned":
        # As a bucket that is too large: in chunks, then as a whole, then with the partitions.
        tags = rng.integers(0, 1 << 64, len(units), np.uint64)
        parts = np.array_split(np.arange(len(units)), 5)
        rows = bounds.rows_per_partition
        left = np.concatenate([part[thin_rows(units[part], places[part], tags[part], rows)] for part in parts])
        left = left[thin_rows(units[left], places[left], tags[left], rows)]
        return left[bound_contributions(units[left], places[left], bounds, rng).rows]
    return bound_contributions(units * (HUGE if how == "huge codes" else 1), places, bounds, rng).rows


@pytest.mark.parametrize("how", ["plain", "huge codes", "thinned"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("most", "rows"), [(1, 1), (2, 1), (2, 2), (3, 5)])
def test_every_sample_is_as_likely_as_any_other(
    shape: str, most: int, rows: int, how: str, rng: np.random.Generator
) -> None:
    sizes, count = SHAPES[shape], 4000
    units, places, row_numbers = copies(sizes, count, rng)
    left = bound(units, places, Bounds(most, rows), how, rng)
    left = left[units[left] < count]
    chosen = np.zeros((count, len(sizes)), bool)
    chosen[units[left], places[left]] = True

    subsets = list(itertools.combinations(range(len(sizes)), min(most, len(sizes))))
    codes = chosen @ (1 << np.arange(len(sizes)))
    observed = np.array([np.sum(codes == sum(1 << place for place in subset)) for subset in subsets])
    assert observed.sum() == count
    pvalues = []
    if len(subsets) > 1:
        pvalues.append(stats.chisquare(observed).pvalue)
        # Neighbours in order of their codes know nothing of each other: their joint law is uniform too.
        index = {sum(1 << place for place in subset): number for number, subset in enumerate(subsets)}
        numbers = np.array([index[code] for code in codes.tolist()])
        joint = np.bincount(numbers[::2] * len(subsets) + numbers[1::2], minlength=len(subsets) ** 2)
        pvalues.append(stats.chisquare(joint).pvalue)
    for place, size in enumerate(sizes):
        # In a partition that is kept, whichever others are: all subsets of its rows alike.
        picked = np.zeros((count, size), bool)
        mine = left[places[left] == place]
        picked[units[mine], row_numbers[mine]] = True
        of_kept = picked[chosen[:, place]] @ (1 << np.arange(size))
        counts = np.unique(of_kept, return_counts=True)[1]
        possible = math.comb(size, min(rows, size))
        assert len(counts) <= possible
        if possible > 1:
            counts = np.concatenate([counts, np.zeros(possible - len(counts), np.int64)])
            pvalues.append(stats.chisquare(counts).pvalue)
    # All of them together are one test.
    assert all(pvalue > SIGNIFICANCE / len(pvalues) for pvalue in pvalues)


def test_the_sample_of_rows_does_not_depend_on_that_of_partitions(rng: np.random.Generator) -> None:
    count = 20_000
    units, places, row_numbers = copies((2, 2, 2), count, rng)
    left = bound(units, places, Bounds(2, 1), "plain", rng)
    left = left[units[left] < count]
    # Six pictures: which of three pairs of partitions, and which row in each of the two.
    table = np.full((count, 3), -1)
    table[units[left], places[left]] = row_numbers[left]
    pictures = np.unique(table, axis=0, return_counts=True)[1]
    assert len(pictures) == 3 * 4
    assert stats.chisquare(pictures).pvalue > SIGNIFICANCE


@given(st.lists(st.tuples(codes, codes, st.integers(0, 2**64 - 1)), max_size=40, unique_by=lambda row: row[2]))
@settings(deadline=None)
def test_thinning_parts_and_then_their_union_is_thinning_all(data: list[tuple[int, int, int]]) -> None:
    units, places = (np.array([row[i] for row in data], np.int64) for i in (0, 1))
    tags = np.array([row[2] for row in data], np.uint64)
    for most in (1, 2, 5):
        whole = thin_rows(units, places, tags, most)
        for unit, place in {row[:2] for row in data}:
            mine = sorted(row[2] for row in data if row[:2] == (unit, place))
            kept = sorted(tags[whole & (units == unit) & (places == place)].tolist())
            assert kept == mine[:most]
        cut = len(data) // 3
        rows = np.arange(len(data))
        left = np.concatenate([p[thin_rows(units[p], places[p], tags[p], most)] for p in (rows[:cut], rows[cut:])])
        assert sorted(left[thin_rows(units[left], places[left], tags[left], most)]) == np.flatnonzero(whole).tolist()
