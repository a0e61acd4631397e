"""Public partitions, and what comes of no data at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from exact import Row, aggregate, batches_of, private, run

from beam_dp.aggregate import (
    Bounds,
    Budget,
    Count,
    Quantiles,
    Sum,
)


@pytest.mark.parametrize(
    "batches",
    [[], [pa.RecordBatch.from_pydict({"user": pa.nulls(3), "item": pa.array([1, 2, 3]), "v": [1.0] * 3})]],
    ids=["no batch", "no unit"],
)
def test_nothing_gives_no_rows_but_columns_and_public_partitions_zeros(batches: list[pa.RecordBatch]) -> None:
    metrics = [Count(), Sum("v", 0, 1), Quantiles("v", 0, 8)]
    nothing = run(batches, private(metrics=metrics))
    assert nothing.rows == [] and nothing.results
    types = {batch.schema for batch in nothing.results}
    assert len(types) == 1
    schema = types.pop()
    assert schema.field("item").type == (pa.int64() if batches else pa.string())
    assert schema.field("count").type == pa.int64() and schema.field("quantile_v_0.5").type == pa.float64()

    zeros = run(batches, aggregate(metrics=metrics, partitions=[5, 3]))
    assert [(row["item"], row["count"], row["sum_v"]) for row in zeros.rows] in (
        [(3, 0, 0.0), (5, 0, 0.0)],
        [(5, 0, 0.0), (3, 0, 0.0)],
    )


def test_public_zeros_are_noised() -> None:
    done = run([], private(partitions=list(range(300)), budget=Budget(0.5), bounds=Bounds(4, 4)))
    counts = [row["count"] for row in done.rows]
    assert len(counts) == 300 and {row["item"] for row in done.rows} == set(range(300))
    # Laplace noise of scale 32: at most one or two of 300 are not at least one off.
    assert np.std(counts) > 20 and np.sum(np.array(counts) == 0) < 30 and min(counts) < 0 < max(counts)


PUBLIC_ROWS: list[Row] = [
    {"user": f"u{i}", "item": item, "day": i % 2} for i, item in enumerate(["a", "a", "b", "c", None, "a"])
]


@pytest.mark.parametrize(
    "partitions",
    [["a", "zz", "b"], ["b", "a", "zz", "a", "b"], pa.table({"other": [1, 2, 3], "item": ["zz", "b", "a"]})],
    ids=["list", "duplicates", "table"],
)
def test_public_partitions_are_all_there_and_no_others(partitions: Any) -> None:
    done = run(batches_of(PUBLIC_ROWS, [2]), aggregate(partitions=partitions))
    assert sorted((row["item"], row["count"]) for row in done.rows) == [("a", 3), ("b", 1), ("zz", 0)]
    assert "selection" not in done.ledger.report()


def test_the_order_of_the_output_says_nothing_of_the_data() -> None:
    public = [f"p{i}" for i in range(60)]
    rows: list[Row] = [{"user": f"u{i}", "item": f"p{i % 45}"} for i in range(500)]
    orders = []
    for data in (rows, rows[::-1], rows[:3], []):
        done = run(batches_of(data, [100] * 4) if data else [], aggregate(partitions=public))
        orders.append([row["item"] for row in done.rows])
    assert len(set(orders[0])) == 60 and orders == [orders[0]] * 4


def test_public_partitions_of_several_columns() -> None:
    public = [("a", 1), ("a", 0), ("b", 1), ("a", 1)]
    done = run(batches_of(PUBLIC_ROWS), aggregate(["item", "day"], partitions=public))
    assert sorted((row["item"], row["day"], row["count"]) for row in done.rows) == [
        ("a", 0, 1),
        ("a", 1, 2),
        ("b", 1, 0),
    ]


def test_rows_outside_the_public_list_do_not_use_up_a_users_partitions() -> None:
    rows: list[Row] = [{"user": "u", "item": item} for item in [*range(100, 200), 1]]
    done = run(batches_of(rows), aggregate(partitions=[1, 2], bounds=Bounds(1, 1)))
    assert {row["item"]: row["count"] for row in done.rows} == {1: 1, 2: 0}


def test_public_keys_are_taken_in_the_type_of_the_data() -> None:
    # As they come from a file.
    rows: list[Row] = [{"user": "u", "item": item} for item in [7, 7, 8]]
    done = run(batches_of(rows), aggregate(partitions=["7", "007", "9"]))
    assert sorted((row["item"], row["count"]) for row in done.rows) == [(7, 2), (9, 0)]
    with pytest.raises(Exception, match="some public keys are no int64, which column 'item' holds"):
        run(batches_of(rows), aggregate(partitions=["7", "x"]))
