import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.alias import AliasTables

weights = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.sampled_from([0.0, 1e-15, 1e-6, 0.1, 1.0, 7.0]),
)


@settings(max_examples=60, deadline=None)
@given(weights)
def test_tables_hold_their_law_to_one_unit_in_the_last_place(table):
    table[:, 0] += 1e-3
    laws = table / table.sum(axis=1, keepdims=True)
    columns = AliasTables.from_laws(laws).thresholds.shape[1]
    held = AliasTables.from_laws(laws).law()
    assert held.shape == (len(laws), columns) and columns >= laws.shape[1]
    unit = 2.0**-32 / columns
    assert np.all(held.sum(axis=1) == 1)
    # Rounding moves an outcome by half a unit; the richest one takes what is left over.
    error = np.abs(held[:, : laws.shape[1]] - laws)
    assert np.all(np.sort(error, axis=1)[:, :-1] <= unit / 2 * (1 + 1e-6))
    assert np.all(error <= unit * laws.shape[1])


def test_outcomes_of_probability_zero_never_come(rng):
    tables = AliasTables.from_laws(np.array([[0.0, 0.3, 0.0, 0.7, 0.0]]))
    assert set(tables.sample(np.zeros(20_000, np.int32), rng)) == {1, 3}


def test_samples_follow_the_law_of_their_own_row(rng):
    laws = rng.dirichlet(np.full(37, 0.5), 3)
    tables = AliasTables.from_laws(laws)
    n = 200_000
    for row, law in enumerate(laws):
        counts = np.bincount(tables.sample(np.full(n, row, np.int32), rng), minlength=37)
        common = law * n > 5
        expected = np.append(law[common] * n, law[~common].sum() * n)
        observed = np.append(counts[common], counts[~common].sum())
        keep = expected > 0
        assert stats.chisquare(observed[keep], expected[keep] / expected[keep].sum() * n).pvalue > 1e-4


def test_arrays_round_trip():
    tables = AliasTables.from_laws(np.array([[0.25, 0.75]]))
    again = AliasTables.from_arrays(tables.to_arrays())
    assert np.array_equal(again.law(), [[0.25, 0.75]])


@pytest.mark.parametrize(
    "laws", [np.full((1, 257), 1 / 257), np.array([[0.5, 0.6]]), np.array([[-0.1, 1.1]]), np.array([[np.nan, 1.0]])]
)
def test_what_is_no_law_is_refused(laws):
    with pytest.raises(ArgumentError, match="laws must"):
        AliasTables.from_laws(laws)
