"""Transforms that draw a share by name: the same releases as with a budget of those numbers, and each share once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from apache_beam.transforms import window

from beam_dp import (
    Aggregate,
    Bounds,
    Budget,
    Count,
    DPCombineGlobally,
    DPCombinePerKey,
    LaplaceCount,
    LaplaceMean,
    Ledger,
    Mean,
    MostFrequent,
    Part,
    PrivateSelection,
    RandomizedResponse,
    SelectPartitions,
    Share,
    Shares,
    Sum,
)
from beam_dp.aggregate.budget import Selection
from beam_dp.errors import ArgumentError, BudgetExceededError

ROWS = [{"user": f"u{i % 40}", "item": "ab"[i % 2], "amount": float(i % 7)} for i in range(200)]
BOUNDS = Bounds(partitions=2, rows_per_partition=3)
LN_3 = 1.0986122886681098
Make = Callable[[Any], beam.PTransform]


WORKER_PROCESS = ("--direct_num_workers=1", "--direct_running_mode=multi_processing")


def run(transform: beam.PTransform, ledger: Ledger, *flags: str, pairs: bool = False, windowed: bool = False) -> Ledger:
    """The transform under a label of its own in a pipeline that runs."""
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner", *flags])) as p:
        build(p, transform, pairs=pairs, windowed=windowed)
    return ledger


def plan(transform: beam.PTransform, **options: bool) -> Ledger:
    """The ledger of the same in a pipeline that does not run: entries are made with the graph."""
    ledger = Ledger()
    build(ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])), transform, **options)
    return ledger


def build(p: beam.Pipeline, transform: beam.PTransform, *, pairs: bool = False, windowed: bool = False) -> Any:
    rows = p | beam.Create(ROWS).with_output_types(dict[str, Any])
    if windowed:
        stamp = beam.Map(lambda row: window.TimestampedValue(row, row["amount"]))
        rows = rows | stamp.with_output_types(dict[str, Any]) | beam.WindowInto(window.FixedWindows(4))
    if pairs:
        rows = rows | beam.Map(lambda row: (row["item"], row["amount"]))
    return rows | "spend" >> transform


def aggregate(budget: Any, **options: Any) -> Aggregate:
    usual: dict[str, Any] = {"privacy_unit": "user", "bounds": BOUNDS, "metrics": [Count(), Mean("amount", 0, 6)]}
    return Aggregate("item", budget=budget, **usual | options)


def per_key(budget: Any, selection: Selection | None = None, **options: Any) -> DPCombinePerKey:
    keys = ["a", "b"] if selection is None else None
    return DPCombinePerKey(
        LaplaceMean(0, 6), bounds=BOUNDS, budget=budget, public_keys=keys, selection=selection, **options
    )


def select(budget: Any, **options: Any) -> SelectPartitions:
    return SelectPartitions("item", privacy_unit="user", max_partitions=2, budget=budget, **options)


AGGREGATIONS: dict[str, Make] = {
    "private": aggregate,
    "public": lambda budget: aggregate(budget, partitions=["a", "b"]),
    "gaussian": lambda budget: aggregate(budget, noise="gaussian"),
    "selection alone": select,
    "per key": per_key,
    "selected keys": lambda budget: per_key(budget, PrivateSelection()),
    "globally": lambda budget: DPCombineGlobally(LaplaceCount(), rows_per_unit=10, budget=budget),
}


# Of each transform one that composes by losses.
BY_LOSSES = ("private", "selection alone", "per key", "globally")


@pytest.mark.parametrize(
    ("name", "composition"), [*((name, "basic") for name in AGGREGATIONS), *((name, "pld") for name in BY_LOSSES)]
)
def test_a_share_releases_what_a_budget_of_its_numbers_does(name: str, composition: Any) -> None:
    make, pairs = AGGREGATIONS[name], name in ("per key", "selected keys", "globally")
    shares = Shares(2, 4e-6, {"wanted": 1, "other": 3})
    drawn = run(make(Share("wanted", composition)), Ledger(shares=shares), pairs=pairs)
    given = plan(make(Budget(0.5, 1e-6, composition)), pairs=pairs)
    assert len(given.entries) >= 1
    assert {entry.share for entry in drawn.entries} == {"wanted"}
    assert tuple(replace(entry, share=None) for entry in drawn.entries) == given.entries
    assert drawn.total() == given.total()
    assert drawn.total()["central"]["epsilon"] <= 0.5
    parts = drawn.to_dict()["shares"][0]["parts"]
    assert parts[0]["drawn_by"].split("/")[0] == "spend"
    assert parts[1]["drawn_by"] is None


def test_other_processes_have_the_share_too() -> None:
    ledger = run(aggregate(Share("all")), Ledger(shares=Shares(1, 1e-6, {"all": 1})), *WORKER_PROCESS)
    assert ledger.total()["central"]["epsilon"] == 1.0


def test_the_noise_that_is_drawn_is_that_of_the_share() -> None:
    """4,000 absent keys at epsilon 0.25 of a declared 1: the discrete Laplace law of scale 1/0.25 on a count."""
    keys = [f"k{i}" for i in range(4000)]
    ledger = Ledger(shares=Shares(1, parts={"noisy": 1, "rest": 3}))
    transform = aggregate(
        Share("noisy"), bounds=Bounds(partitions=1, rows_per_partition=1), metrics=[Count()], partitions=keys
    )

    def has_the_scale(lists: list[list[dict[str, Any]]]) -> None:
        (rows,) = lists
        scale = 4.0
        stddev = math.sqrt(2 * math.exp(-1 / scale)) / (1 - math.exp(-1 / scale))
        assert {round(row["count_noise_stddev"], 9) for row in rows} == {round(stddev, 9)}
        noise = [row["count"] for row in rows]
        assert len(noise) == 4000
        # One standard error is 1.8 % of it.
        assert 0.85 * stddev < np.std(noise) < 1.15 * stddev

    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        assert_that(build(p, transform) | beam.combiners.ToList(), has_the_scale)
    assert ledger.total()["central"]["epsilon"] == 0.25


def test_choices_and_responses_split_their_share() -> None:
    ledger = Ledger(shares=[Shares(1, 1e-6, {"items": 1}), Shares(2, parts={"answers": 1}, model="local")])
    frequent = MostFrequent("item", privacy_unit="user", candidates=["a", "b", "c"], epsilon=Share("items"), k=3)
    respond = RandomizedResponse(
        categories=["a", "b"], column="item", epsilon=Share("answers"), max_responses=4, keep_columns=["user"]
    )
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        rows = p | beam.Create(ROWS).with_output_types(dict[str, Any])
        rows | "items" >> frequent
        rows | "answers" >> respond
    items, answers = ledger.entries
    third = 1 / 3
    assert f"epsilon={third!r}" in items.mechanism
    assert (items.guarantee.epsilon, items.share) == (1.0, "items")
    assert f"epsilon={0.5!r}" in answers.mechanism
    assert (answers.guarantee.epsilon, answers.max_applications, answers.share) == (0.5, 4, "answers")
    assert ledger.total()["central"]["epsilon"] == 1.0
    assert ledger.total()["local"]["epsilon"] == 2.0
    assert respond.guarantee.epsilon == 0.5
    assert respond.estimator()._mechanism == respond._mechanism


def test_a_response_has_no_epsilon_before_its_share_is_drawn() -> None:
    respond = RandomizedResponse(categories=["a", "b"], column="item", epsilon=Share("answers"))
    for ask in (lambda: respond.guarantee, respond.estimator):
        with pytest.raises(ArgumentError, match=r"apply RandomizedResponse first: .*Share\(name='answers'"):
            ask()


def test_the_fair_coin_must_fit_its_share() -> None:
    def coin(share: Share | None) -> RandomizedResponse:
        return RandomizedResponse.fair_coin(
            categories=["a", "b"], column="item", max_responses=2, privacy_unit="user", share=share
        )

    def ledger(epsilon: float) -> Ledger:
        return Ledger(shares=Shares(epsilon, parts={"coin": 1}, model="local"))

    enough = run(coin(Share("coin")), ledger(2 * LN_3 + 1e-8))
    assert enough.entries[0].share == "coin"
    with pytest.raises(BudgetExceededError, match=r"share 'coin' allows epsilon 2.197"):
        run(coin(Share("coin")), ledger(2 * LN_3 - 1e-8))
    with pytest.raises(ArgumentError, match=r"spend has no share.* local total"):
        run(coin(None), ledger(9))


def test_several_shares_add_up_to_the_declared_total() -> None:
    ledger = Ledger(shares=Shares(1, 1e-6, {"counts": 1, "prices": 2, "items": Part(0.4, 1e-8)}))
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        rows = p | beam.Create(ROWS).with_output_types(dict[str, Any])
        rows | "counts" >> aggregate(Share("counts"), metrics=[Count()])
        rows | "prices" >> aggregate(Share("prices"), metrics=[Sum("amount", 0, 6)])
        rows | "items" >> select(Share("items"))
    total = ledger.total()["central"]
    assert 1 - 1e-8 < total["basic"]["epsilon"] <= 1
    assert total["basic"]["delta"] <= 1e-6
    spent = {entry.label.split("/")[0]: entry.share for entry in ledger.entries}
    assert spent == {"counts": "counts", "prices": "prices", "items": "items"}


@pytest.mark.parametrize("composition", ["basic", "pld"])
@pytest.mark.parametrize("name", ["private", "selected keys"])
def test_windows_split_their_share(name: str, composition: Any) -> None:
    makes = {"private": aggregate, "selected keys": lambda b, **o: per_key(b, PrivateSelection(), **o)}
    drawn = Ledger(shares=Shares(1, 1e-6, {"all": 1}))
    pairs = name == "selected keys"
    run(makes[name](Share("all", composition), max_windows=2), drawn, windowed=True, pairs=pairs)
    given = plan(makes[name](Budget(0.5, 5e-7, composition), max_windows=2), windowed=True, pairs=pairs)
    assert tuple(replace(entry, share=None) for entry in drawn.entries) == given.entries
    assert {entry.max_applications for entry in drawn.entries} == {2}
    assert drawn.total()["central"]["epsilon"] <= 1
    assert drawn.total()["central"]["delta"] <= 1e-6
    with pytest.raises(ArgumentError, match=r"max_windows must be given: .* how often share 'all' is spent"):
        run(makes[name](Share("all", composition)), Ledger(shares=Shares(1, 1e-6, {"all": 1})), windowed=True)


@pytest.mark.parametrize("which", ["the same transform", "another transform", "another model's transform"])
def test_a_share_is_drawn_once(which: str) -> None:
    ledger = Ledger(shares=Shares(1, 1e-6, {"all": 1}))
    first = aggregate(Share("all"))
    second = {
        "the same transform": first,
        "another transform": select(Share("all")),
        "another model's transform": MostFrequent(
            "item", privacy_unit="user", candidates=["a"], epsilon=Share("all"), k=1
        ),
    }[which]
    pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    rows = pipeline | beam.Create(ROWS).with_output_types(dict[str, Any])
    rows | "one" >> first
    with pytest.raises(ArgumentError, match="two draws share 'all', which one has drawn"):
        rows | "two" >> second
    assert {entry.label.split("/")[0] for entry in ledger.entries} == {"one"}


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (aggregate(Share("poor")), "share 'poor': delta must be above 0 for private selection"),
        (aggregate(Share("poor"), noise="gaussian", partitions=["a"]), "share 'poor': delta must be above 0 for gauss"),
        (aggregate(Share("poor", "pld"), partitions=["a"]), "share 'poor': delta must be above 0 for composition pld"),
        (select(Share("poor")), "share 'poor': delta must be above 0 for private selection"),
        (aggregate(Share("unheard")), "spend draws share 'unheard', which its ledger does not declare; did you mean"),
        (aggregate(Share("answers")), "spend needs a share of the central model, but 'answers' is of the local one"),
        (aggregate(Share("tiny")), "share 'tiny': epsilon of selection is too small"),
        (aggregate(Budget(1, 1e-6)), "spend/selection has no share, but its ledger declares the central total"),
        (
            RandomizedResponse(categories=["a", "b"], column="item", epsilon=Share("poor")),
            "spend needs a share of the local model, but 'poor' is of the central one",
        ),
    ],
    ids=[
        "selection without delta",
        "gaussian without delta",
        "pld without delta",
        "keys without delta",
        "unknown",
        "other model",
        "too small",
        "no share",
        "local of central",
    ],
)
def test_shares_that_cannot_serve_are_refused_when_applied(transform: beam.PTransform, message: str) -> None:
    parts = {"poor": Part(0.5), "tiny": Part(1e-9, 1e-6), "rich": Part(0.5, 1e-6)}
    ledger = Ledger(shares=[Shares(2, 1e-5, parts), Shares(2, parts={"answers": 1}, model="local")])
    pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    with pytest.raises(ArgumentError, match=message):
        build(pipeline, transform)
    assert ledger.entries == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aggregate("counts"), "budget must be a Budget or a Share, not a value of type str"),
        (lambda: per_key(1.0), "budget must be a Budget or a Share, not a positive number"),
        (lambda: aggregate(Share("a"), metrics=[], partitions=["a"]), "metrics must not be empty"),
        (lambda: aggregate(Share("a"), bounds=3), "bounds must be a Bounds"),
        (lambda: aggregate(Share("a"), metrics=[Count(), Count()]), "two columns of the output would be 'count'"),
        (lambda: aggregate(Share("a"), noise="cauchy"), "noise must be one of laplace, gaussian"),
        (
            lambda: RandomizedResponse(categories=["a", "b"], column="c", epsilon=Share("a"), max_responses=None),
            "max_responses must be given where epsilon is a share",
        ),
        (
            lambda: RandomizedResponse(categories=["a", "b"], column="c", epsilon=Share("a", "pld")),
            "epsilon: composition pld is for transforms that take a budget=",
        ),
        (
            lambda: MostFrequent("item", privacy_unit="user", candidates=["a"], epsilon=Share("a", "pld")),
            "epsilon: composition pld is for transforms that take a budget=",
        ),
        (
            lambda: MostFrequent("item", privacy_unit="user", candidates=["a"], epsilon=Share("a"), k=2),
            "k must be at most the number of different candidates",
        ),
        (
            lambda: RandomizedResponse.fair_coin(categories=["a", "b"], column="c", share="a"),  # type: ignore[arg-type]
            "share must be a Share",
        ),
    ],
    ids=lambda value: None if callable(value) else value[:30].strip(),
)
def test_what_can_never_work_is_refused_at_construction(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_runner_is_shown_the_share_and_what_it_gave() -> None:
    transform = aggregate(Share("all"))
    given = aggregate(Budget(0.5, 1e-6))
    ledger = Ledger(shares=Shares(0.5, 1e-6, {"all": 1}))
    build(ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])), transform)
    shown, expected = transform.display_data(), given.display_data()
    assert shown["budget"].value == "Share(name='all', composition='basic')"
    assert shown["partitions"].value == expected["partitions"].value
