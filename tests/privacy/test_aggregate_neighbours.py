"""What else there is to see of an aggregation - order, types, failures - must not hang on the rows of one unit."""

import datetime
from decimal import Decimal
from typing import Any

import aggregate_audits as audits
import numpy as np
import pytest
from scipy import stats

from beam_dp.aggregate import Aggregate, Bounds, Budget, Count, PrivateSelection, Sum, combine
from beam_dp.aggregate.rows import numbers_of

SIGNIFICANCE = 1e-4
NOON = datetime.datetime(2024, 2, 29, 12)
UTC = datetime.timezone.utc


def released(rows, partitions, metrics=(Count(),), buckets=64, budget=Budget(1.0)):  # noqa: B008  (a frozen value)
    what = Aggregate(
        "p",
        privacy_unit="u",
        bounds=Bounds(2, 1),
        metrics=metrics,
        budget=budget,
        partitions=partitions,
        buckets=buckets,
    )
    return audits.run(rows, what, dict)[0]


@pytest.mark.parametrize("buckets", [8, 64])
def test_partitions_come_in_an_order_that_the_data_do_not_decide(buckets):
    datasets = [[], [3], [7, 3], [11], [11, 0, 5]]
    orders = [
        [
            row["p"]
            for row in released(
                [{"u": i, "p": key} for i, key in enumerate(keys)], list(range(12)), (Count(),), buckets
            )
        ]
        for keys in datasets
    ]
    assert sorted(orders[0]) == list(range(12))
    assert all(order == orders[0] for order in orders)


def combined(pairs, keys):
    what = combine.DPCombinePerKey(combine.LaplaceCount(), bounds=Bounds(1, 1), budget=Budget(1.0), public_keys=keys)
    return [key for key, _ in audits.run(pairs, what, tuple[int, int])[0]]


def test_public_keys_with_values_do_not_come_before_those_without():
    keys = combined([(key, 0) for key in range(150)], list(range(300)))
    assert sorted(keys) == list(range(300))
    places = np.argsort(keys)
    assert stats.mannwhitneyu(places[:150], places[150:]).pvalue > SIGNIFICANCE


def test_public_keys_are_shown_as_they_are_listed_whatever_equals_them_in_the_data():
    shown = combined([(2.0, 0), (True, 0), (3, 0)], [1, 2, 3])
    assert sorted(map(repr, shown)) == ["1", "2", "3"]


def test_one_row_does_not_change_the_type_of_all_keys():
    zoned = [NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2)))]
    for first, second in (zoned, zoned[::-1]):
        rows = [{"u": i, "p": key} for i, key in enumerate([first] + [second] * 30)]
        (row,) = released(rows, PrivateSelection(), budget=Budget(30.0, 1e-9))
        assert row["p"] == second and row["p"].utcoffset() == datetime.timedelta(0)
    for keys in ([NOON, zoned[0]], [zoned[0], NOON]):
        with pytest.raises(Exception, match="timestamps with and without a time zone"):
            released([{"u": i, "p": key} for i, key in enumerate(keys)], PrivateSelection(), budget=Budget(1.0, 1e-6))
    with pytest.raises(Exception, match="decimals of any number of digits"):
        released([{"u": 1, "p": Decimal("1.5")}], PrivateSelection(), budget=Budget(1.0, 1e-6))


ODD_VALUES: list[Any] = [
    None,
    float("nan"),
    float("inf"),
    -float("inf"),
    5e-324,
    10**400,
    -(10**400),
    "12",
    "no number",
    "1e999",
    b"12",
    True,
    [1.0],
    {},
    Decimal("sNaN"),
    Decimal("1e999"),
    NOON,
    np.timedelta64(5, "s"),
    np.array([1.0, 2.0]),
    complex(1, 2),
]


def test_no_row_makes_a_run_fail_or_a_partition_appear():
    rows = [{"u": f"v{i}", "p": "a", "x": value} for i, value in enumerate(ODD_VALUES)]
    rows += [{"u": unit, "p": key, "x": 1.0} for unit in ("v", None, "") for key in ("b", None, "")]
    shown = released(rows, ["a", "c"], [Count(), Sum("x", 0, 1)])
    assert sorted(row["p"] for row in shown) == ["a", "c"]


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: type(value).__name__)
def test_what_a_value_counts_for_does_not_hang_on_the_rows_beside_it(value):
    alone = numbers_of([value]).to_numpy()
    for beside in (1.5, "no number", 10**400, None):
        for values, place in (([value, beside], 0), ([beside, value], 1)):
            assert np.array_equal(numbers_of(values).to_numpy()[[place]], alone, equal_nan=True)
