"""The product under audit: no epsilon is found above its claim, and where an audit has power it finds nearly all."""

import math

import aggregate_audits as audits
import pytest

from beam_dp.aggregate import Budget

WITH_POWER = {
    "count": audits.count,
    "count at epsilon 2": lambda: audits.count(epsilon=2.0),
    "rows beyond the bound": audits.many_rows,
    "units": audits.unit_count,
    "sum of a value beyond the bounds": audits.sum_of_one,
    "sum of minus infinity": lambda: audits.sum_of_one(-math.inf, -50.0, 10.0),
    "sum beside another unit": audits.sum_on_a_base,
    "count and sum": audits.two_metrics,
    "count and centred sum of a mean": audits.mean,
    "two bins": audits.histogram,
}
WITHOUT_POWER = {
    "last bits": audits.low_bits,
    "partitions beyond the bound": audits.one_of_four_partitions,
    "three partitions": audits.three_partitions,
    "difference of partitions": audits.beside_an_empty_partition,
    "difference of sums": audits.two_sums,
    "vector": audits.vector_sum,
    "nodes of a tree": audits.tree,
    "median": audits.quantile,
    "gaussian": audits.gaussian,
    "gaussian, three partitions": lambda: audits.gaussian(3),
    "all metrics": audits.everything,
    "all metrics by PLD": lambda: audits.everything(Budget(4.0, 1e-3, composition="pld")),
    "combine per key": audits.combined,
}


@pytest.mark.parametrize("name", WITH_POWER)
def test_one_partition_spends_at_most_what_it_claims_and_at_least_four_fifths_of_it_both_ways(name):
    verdict = WITH_POWER[name]()
    assert not verdict.convicts and verdict.power >= 0.8
    assert verdict.ledger <= verdict.claim


@pytest.mark.parametrize("name", WITHOUT_POWER)
def test_nothing_spends_more_than_it_claims(name):
    verdict = WITHOUT_POWER[name]()
    assert not verdict.convicts
    assert verdict.ledger <= verdict.claim


@pytest.mark.parametrize("strategy", ["truncated_geometric", "laplace_threshold"])
def test_selection_spends_what_it_claims_where_it_is_steepest(strategy):
    verdicts = audits.selection(strategy)
    assert not any(verdict.convicts for verdict in verdicts)
    assert all(verdict.ledger <= verdict.claim for verdict in verdicts)
    for direction in ("added", "removed"):
        assert max(getattr(verdict, direction) for verdict in verdicts) >= 0.8
