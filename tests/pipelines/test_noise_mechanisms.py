"""Mechanisms that add noise and project, through every door: the flags, the ledger, the budget, Beam YAML."""

import json
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from apache_beam.typehints.row_type import RowTypeConstraint
from mechanism_flags import check_flags_and_yaml, mechanism_of, written

from beam_dp import (
    DensityLaplace,
    Ledger,
    Mahalanobis,
    PrivatizeText,
    RankCorrectedLaplace,
    Vickrey,
    open_index,
    resolve_index,
)
from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.errors import ArgumentError, BudgetExceededError
from pipelines import privatize_text, transforms

sys.path.insert(0, str(Path(__file__).parent))
from commands import refusal, run_here

MECHANISMS = [
    (["--mechanism=mahalanobis", "--epsilon=3"], Mahalanobis(3.0, 0.2)),
    (["--mechanism=mahalanobis", "--epsilon=3", "--covariance_weight=0.5"], Mahalanobis(3.0, 0.5)),
    (["--mechanism=vickrey", "--epsilon=3"], Vickrey(3.0, 0.5)),
    (["--mechanism=vickrey", "--epsilon=3", "--second_weight=0"], Vickrey(3.0, 0.0)),
    (["--mechanism=rank_corrected_laplace", "--epsilon=3"], RankCorrectedLaplace(3.0, 0.04, 100)),
    (
        ["--mechanism=rank_corrected_laplace", "--epsilon=3", "--rank_decay=1.5", "--neighbours=7"],
        RankCorrectedLaplace(3.0, 1.5, 7),
    ),
    (["--mechanism=density_laplace", "--epsilon=3"], DensityLaplace(3.0)),
    (["--mechanism=density_laplace", "--epsilon=3", "--bandwidth=0.7"], DensityLaplace(3.0, 0.7)),
]


@pytest.mark.parametrize(("flags", "mechanism"), MECHANISMS, ids=[written(flags) for flags, _ in MECHANISMS])
def test_flags_and_yaml_parameters_make_the_mechanism(flags, mechanism):
    check_flags_and_yaml(flags, mechanism)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mechanism=mahalanobis"], "--epsilon is required"),
        (["--mechanism=mahalanobis", "--epsilon=3", "--second_weight=1"], "--second_weight is not a parameter of maha"),
        (["--mechanism=vickrey", "--epsilon=3", "--second_weight=1.5"], "second_weight must be a number from 0 to 1"),
        (["--mechanism=vickrey", "--epsilon=3", "--neighbours=5"], "--neighbours is not a parameter of vickrey"),
        (["--mechanism=rank_corrected_laplace", "--epsilon=3", "--rank_decay=-1"], "rank_decay must be a finite"),
        (["--mechanism=density_laplace", "--epsilon=3", "--bandwidth=201"], "bandwidth must be from 1e-12 to 600/eps"),
    ],
    ids=["no epsilon", "weight of another", "weight", "neighbours", "decay", "bandwidth"],
)
def test_parameters_that_cannot_be_right_are_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        mechanism_of(flags)


@pytest.mark.parametrize("search", ["exact", "annoy"])
@pytest.mark.parametrize(
    "mechanism", [Mahalanobis(1e6), Vickrey(1e6, 0.0), RankCorrectedLaplace(1e6), DensityLaplace(1e6)], ids=repr
)
def test_a_pipeline_draws_each_word_and_little_noise_keeps_it(mechanism, search, small_index):
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        texts = (
            pipeline
            | beam.Create(["the weather in paris", ""])
            | PrivatizeText(mechanism, index=str(small_index), search=search)
        )

        def check(rows):
            assert sorted(rows) == ["", "the weather in paris"]

        assert_that(texts, check)


def test_ledger_has_the_diameter_in_the_metric_of_the_mechanism():
    index = open_index(resolve_index())
    for mechanism, diameter, metric in (
        (Mahalanobis(3.0, 0.9), Mahalanobis(3.0, 0.9).diameter(index), "mahalanobis(lambda=0.9)"),
        (Vickrey(3.0), index.diameter, "euclidean"),
        (RankCorrectedLaplace(3.0), index.diameter, "euclidean"),
        (DensityLaplace(3.0), index.diameter, "euclidean"),
    ):
        ledger = Ledger()
        pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
        _ = pipeline | beam.Create(["one"]) | PrivatizeText(mechanism, max_words=5)
        (entry,) = json.loads(ledger.to_json())["entries"]
        assert (entry["metric"], entry["epsilon"], entry["basis"]) == (metric, 3.0, "proved")
        total = json.loads(ledger.to_json())["totals"]["metric"]
        assert total["diameter"] == diameter
        assert total["worst_case_per_document"] == pytest.approx(15 * diameter)
    assert Mahalanobis(3.0, 0.9).diameter(index) > 1.5 * index.diameter


def test_metrics_are_never_added_to_each_other():
    ledger = Ledger()
    pipeline = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    texts = pipeline | beam.Create(["one"])
    for label, mechanism in (("a", Mahalanobis(3.0)), ("b", Vickrey(2.0)), ("c", Mahalanobis(1.0, 0.3))):
        _ = texts | label >> PrivatizeText(mechanism)
    total = json.loads(ledger.to_json())["totals"]["metric"]
    assert total["epsilon_per_word"] is None
    assert {group["metric"]: group["epsilon_per_word"] for group in total["groups"]} == {
        "mahalanobis(lambda=0.2)": 3.0,
        "euclidean": 2.0,
        "mahalanobis(lambda=0.3)": 1.0,
    }


def test_a_budget_of_words_is_for_one_metric(tmp_path):
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    digest = resolve_index().digest

    def apply(dataset, epsilon):
        hint = RowTypeConstraint.from_fields([("text", str)])
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        rows = pipeline | beam.Create([beam.Row(text="never")]).with_output_types(hint)
        budget = {"budget_store": store.url, "dataset": dataset, "run_id": "week-7"}
        _ = rows | transforms.PrivatizeText(mechanism="mahalanobis", epsilon=epsilon, **budget)

    for dataset, metric in (("right", "mahalanobis(lambda=0.2)"), ("other", "euclidean")):
        limit = Limit(model="metric", privacy_unit="word", epsilon=9, metric=metric, index_digest=digest)
        store.create(dataset, limit)
    with pytest.raises(BudgetExceededError):
        apply("right", 10)
    with pytest.raises(BudgetExceededError):
        apply("other", 1)
    apply("right", 8)
    assert list(store.account("right").runs) == ["week-7.PrivatizeText"]
    assert not store.account("other").runs


def test_command_line_publishes_a_ledger_that_names_the_metric(tmp_path, capfd):
    (tmp_path / "in.txt").write_text("the weather in paris\n")
    common = (f"--input={tmp_path}/in.txt", "--mechanism=mahalanobis", "--epsilon=1e6")
    done = run_here(capfd, privatize_text, *common, f"--output={tmp_path}/out", "--covariance_weight=0.9")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-00000-of-00001.txt").read_text() == "the weather in paris\n"
    (entry,) = json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]["entries"]
    assert entry["metric"] == "mahalanobis(lambda=0.9)"
    assert entry["mechanism"] == "Mahalanobis(epsilon=1000000.0, covariance_weight=0.9)"
    assert entry["guarantee"].endswith("(proved) per word and unit of mahalanobis(lambda=0.9) distance")
    bad = run_here(capfd, privatize_text, *common, f"--output={tmp_path}/no", "--covariance_weight=1")
    assert "covariance_weight must be a number from 0 to 0.99, not 1" in refusal(bad)
