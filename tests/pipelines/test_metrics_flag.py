"""The language of --metrics."""

import pytest

from beam_dp.aggregate import Count, Histogram, Mean, PrivacyUnitCount, Quantiles, Sum, Variance, VectorSum
from beam_dp.errors import ArgumentError
from pipelines.metrics import NO_METRICS, USAGE, parse_metrics


def test_every_metric():
    text = (
        "count, privacy_unit_count,sum:amount:-1:1e2,mean:a b:0:100,variance:x:0:.5,quantiles:amount:0:100:0.5/0.9,"
        "histogram:amount:0/10/50/100,vector_sum:a/b:50"
    )
    assert parse_metrics(text) == (
        Count(),
        PrivacyUnitCount(),
        Sum("amount", -1, 100),
        Mean("a b", 0, 100),
        Variance("x", 0, 0.5),
        Quantiles("amount", 0, 100, quantiles=(0.5, 0.9)),
        Histogram("amount", (0, 10, 50, 100)),
        VectorSum(("a", "b"), 50),
    )
    assert [item.split(":")[0].strip() for item in text.split(",")] == [
        u.split(":")[0].rstrip("[") for u in USAGE.split(", ")
    ]


def test_none_at_all():
    assert parse_metrics(NO_METRICS) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont", "unknown metric 'cuont'; did you mean count?"),
        ("xyzzy", "unknown metric 'xyzzy'; the metrics are count.*, .*none stands alone"),
        ("", "unknown metric ''"),
        ("count,,privacy_unit_count", "unknown metric ''"),
        ("none,count", "unknown metric 'none'"),
        ("Count", "did you mean count"),
        ("sum:amount", "'sum:amount' must be written sum:COLUMN:LOW:HIGH"),
        ("count:amount:3", r"'count:amount:3' must be written count\[:COLUMN\]$"),
        ("privacy_unit_count:amount", "must be written privacy_unit_count$"),
        ("sum:amount:0:1:2", "must be written sum:COLUMN:LOW:HIGH"),
        ("sum:amount:0:ten", "'sum:amount:0:ten': 'ten' is not a number"),
        ("sum:amount:100:0", "'sum:amount:100:0': low must be at most high, but 100 and 0 were given"),
        ("mean::0:1", "column must be the name of a column"),
        ("mean:a:0:inf", "high must be a finite number"),
        ("variance:a:nan:1", "low must be a finite number"),
        ("quantiles:a:0:0:0.5", "low must be below high"),
        ("quantiles:a:0:1:1.5", "quantiles must be numbers from 0 to 1"),
        ("quantiles:a:0:1:", "'' is not a number"),
        ("quantiles:a:0:1:0.5/0.5", "quantiles must be one or more different numbers"),
        ("histogram:a:1", "edges must be two or more ascending numbers"),
        ("histogram:a:1/0", "low must be below high"),
        ("vector_sum:a/a:1", "columns_of must name each column once"),
        ("vector_sum:a/b:-1", "bound must be a finite number above 0"),
        ("sum:a:0:1,sum:a:0:2", "two of them would make the column 'sum_a'"),
    ],
)
def test_what_cannot_be_right_is_named(text, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        parse_metrics(text)
    assert str(caught.value).startswith("--metrics: ")
