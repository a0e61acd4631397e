"""The language of ``--metrics``: metrics separated by commas, their arguments by colons, lists in them by slashes.

    count,privacy_unit_count,sum:amount:0:100,quantiles:amount:0:100:0.5/0.9,histogram:amount:0/10/50/100

Columns whose names hold one of these characters cannot be named in it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from beam_dp.aggregate import Count, Histogram, Mean, PrivacyUnitCount, Quantiles, Sum, Variance, VectorSum
from beam_dp.aggregate.metrics import Metric
from beam_dp.errors import ArgumentError

NO_METRICS = "none"
"""The value of ``--metrics`` that stands for no metric at all."""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"{text!r} is not a number") from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(_number, text.split("/")))


_FORMS: dict[str, tuple[str, Callable[..., Metric]]] = {
    "count": ("[:COLUMN]", Count),
    "privacy_unit_count": ("", PrivacyUnitCount),
    "sum": (":COLUMN:LOW:HIGH", lambda column, low, high: Sum(column, _number(low), _number(high))),
    "mean": (":COLUMN:LOW:HIGH", lambda column, low, high: Mean(column, _number(low), _number(high))),
    "variance": (":COLUMN:LOW:HIGH", lambda column, low, high: Variance(column, _number(low), _number(high))),
    "quantiles": (
        ":COLUMN:LOW:HIGH:Q/Q/...",
        lambda column, low, high, qs: Quantiles(column, _number(low), _number(high), quantiles=_numbers(qs)),
    ),
    "histogram": (":COLUMN:EDGE/EDGE/...", lambda column, edges: Histogram(column, _numbers(edges))),
    "vector_sum": (
        ":COLUMN/COLUMN/...:BOUND",
        lambda columns, bound: VectorSum(tuple(columns.split("/")), _number(bound)),
    ),
}

USAGE = ", ".join(f"{name}{arguments}" for name, (arguments, _) in _FORMS.items())
"""All metrics with their arguments, for ``--help``."""


def parse_metrics(text: str) -> tuple[Metric, ...]:
    """The metrics that the value of ``--metrics`` names, in its order; none for `NO_METRICS`.

    Raises:
        ArgumentError: an unknown metric (names the nearest), or arguments that cannot be right.
    """
    items = [item.strip() for item in text.split(",")]
    if items == [NO_METRICS]:
        return ()
    metrics = tuple(map(_metric, items))
    titles = [metric.title for metric in metrics]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise ArgumentError(f"--metrics: two of them would make the column {twice!r}: leave one out")
    return metrics


def _metric(item: str) -> Metric:
    name, *arguments = item.split(":")
    if name not in _FORMS:
        near = difflib.get_close_matches(name, _FORMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the metrics are {USAGE}; {NO_METRICS} stands alone"
        raise ArgumentError(f"--metrics: unknown metric {name!r}; {hint}")
    usage, make = _FORMS[name]
    optional = usage.count("[")
    if not usage.count(":") - optional <= len(arguments) <= usage.count(":"):
        raise ArgumentError(f"--metrics: {item!r} must be written {name}{usage}")
    try:
        return make(*arguments)
    except ArgumentError as error:
        raise ArgumentError(f"--metrics: {item!r}: {error}") from None
