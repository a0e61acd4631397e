"""Exponential mechanisms, density prior and kNN truncation through every door: the flags, Beam YAML, the ledger."""

import json
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from mechanism_flags import check_flags_and_yaml, mechanism_of, written

from beam_dp import DensityPrior, Exponential, KnnTruncated, Ledger, PrivatizeText, TruncatedExponential
from beam_dp.errors import ArgumentError
from pipelines import privatize_text

sys.path.insert(0, str(Path(__file__).parent))
from commands import refusal, run_here

MECHANISMS = [
    (["--mechanism=exponential", "--epsilon=3"], Exponential(3.0)),
    (["--mechanism=truncated_exponential", "--epsilon=3"], TruncatedExponential(3.0)),
    (["--mechanism=truncated_exponential", "--epsilon=3", "--gamma=1.5"], TruncatedExponential(3.0, 1.5)),
    (["--mechanism=density_prior", "--epsilon=3"], DensityPrior(3.0)),
    (["--mechanism=density_prior", "--epsilon=3", "--bandwidth=0.7"], DensityPrior(3.0, 0.7)),
    (["--mechanism=knn_truncated", "--epsilon=3"], KnnTruncated(3.0, 40)),
    (["--mechanism=knn_truncated", "--epsilon=3", "--neighbours=9"], KnnTruncated(3.0, 9)),
]


@pytest.mark.parametrize(("flags", "mechanism"), MECHANISMS, ids=[written(flags) for flags, _ in MECHANISMS])
def test_flags_and_yaml_parameters_make_the_mechanism(flags, mechanism):
    check_flags_and_yaml(flags, mechanism)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mechanism=exponential"], "--epsilon is required"),
        (["--mechanism=exponential", "--epsilon=3", "--gamma=1"], "--gamma is not a parameter of exponential"),
        (["--mechanism=truncated_exponential", "--epsilon=3", "--gamma=-1"], "gamma must be a finite number above 0"),
        (["--mechanism=density_prior", "--epsilon=3", "--bandwidth=0"], "bandwidth must be a finite number above 0"),
        (["--mechanism=density_prior", "--epsilon=3", "--neighbours=5"], "--neighbours is not a parameter of density"),
        (["--mechanism=knn_truncated", "--epsilon=3", "--neighbours=1"], "neighbours must be at least 2"),
    ],
    ids=["no epsilon", "gamma of another", "gamma", "bandwidth", "neighbours of another", "neighbours"],
)
def test_parameters_that_cannot_be_right_are_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        mechanism_of(flags)


@pytest.mark.parametrize(
    "mechanism",
    [Exponential(1e6), TruncatedExponential(1e6, gamma=50.0), DensityPrior(1e6, 2.0), KnnTruncated(1e6, 5)],
    ids=repr,
)
def test_a_pipeline_draws_each_word_and_a_large_epsilon_keeps_it(mechanism, small_index):
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        rows = pipeline | beam.Create(["the weather in paris", ""])
        texts = rows | PrivatizeText(mechanism, index=str(small_index))

        def check(rows):
            assert sorted(rows) == ["", "the weather in paris"]

        assert_that(texts, check)
    (entry,) = json.loads(ledger.to_json())["entries"]
    if isinstance(mechanism, KnnTruncated):
        assert (entry["epsilon"], entry["basis"]) == (None, "none")
        assert "nothing in common" in entry["reason"]
    else:
        assert (entry["metric"], entry["epsilon"], entry["delta"]) == ("euclidean", 1e6, 0)
        assert entry["basis"] == "proved"


def test_command_line_publishes_other_words_and_the_claim(tmp_path, capfd):
    (tmp_path / "in.txt").write_text("the weather in paris\n" * 50)
    common = (f"--input={tmp_path}/in.txt", "--mechanism=truncated_exponential", "--epsilon=2")
    done = run_here(capfd, privatize_text, *common, f"--output={tmp_path}/out", "--gamma=4")
    assert done.returncode == 0, done.stderr
    texts = (tmp_path / "out-00000-of-00001.txt").read_text().splitlines()
    assert len(texts) == 50 and all(len(text.split()) == 4 for text in texts)
    assert len({word for text in texts for word in text.split()}) > 100
    (entry,) = json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]["entries"]
    assert entry["mechanism"] == "TruncatedExponential(epsilon=2.0, gamma=4.0)"
    assert entry["guarantee"] == "metric epsilon 2 (proved) per word and unit of euclidean distance"
    bad = run_here(capfd, privatize_text, *common, f"--output={tmp_path}/no", "--gamma=0")
    assert "gamma must be a finite number above 0, not zero" in refusal(bad)
