"""Hyperbolic Laplace and Poincaré indexes through every door: building, the flags, the ledger, Beam YAML."""

import contextlib
import io
import json
import sys
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp import HyperbolicLaplace, Ledger, open_index, resolve_index
from beam_dp.errors import ArgumentError
from pipelines import build_index, privatize_text, transforms
from pipelines.main import run_main
from pipelines.options import parse_options
from pipelines.privatize_text import PrivatizeTextOptions, mechanism_from, privatizer_from

sys.path.insert(0, str(Path(__file__).parent))
from commands import refusal, run_here


def mechanism_of(*flags):
    return mechanism_from(parse_options(["--input=a", "--output=b", *flags], PrivatizeTextOptions))


def test_flags_and_yaml_parameters_make_the_mechanism():
    flags = ("--mechanism=hyperbolic_laplace", "--epsilon=3")
    assert mechanism_of(*flags) == HyperbolicLaplace(3.0)
    assert mechanism_of(*flags, "--prefer_general") == HyperbolicLaplace(3.0, prefer_general=True)
    yaml = transforms.PrivatizeText(mechanism="hyperbolic_laplace", epsilon=3.0, prefer_general=True)
    assert yaml._mechanism == HyperbolicLaplace(3.0, True)
    assert transforms.PrivatizeText(mechanism="hyperbolic_laplace", epsilon=3.0)._mechanism == HyperbolicLaplace(3.0)
    with pytest.raises(ArgumentError, match="--prefer_general is not a parameter of vickrey"):
        mechanism_of("--mechanism=vickrey", "--epsilon=3", "--prefer_general")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tree of 40 words in the disc, and a text of six of them."""
    folder = tmp_path_factory.mktemp("hyperbolic")
    rng = np.random.default_rng(1)
    angle, radius = rng.uniform(0, 2 * np.pi, 40), np.tanh(rng.uniform(0, 6, 40) / 2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    lines = [f"w{i} {x:.9f} {y:.9f}\n" for i, (x, y) in enumerate(points.tolist())]
    (folder / "v.txt").write_text("".join(lines))
    (folder / "in.txt").write_text("w1 w2 w3 unknown\nw4 w5 w6\n")
    return folder


@pytest.fixture(scope="module")
def index(folder):
    flags = (f"--vectors={folder}/v.txt", f"--output={folder}/index", "--metric=poincare")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert run_main(build_index.main, flags) == 0
    assert "distances (poincare): smallest" in said.getvalue() and "search: always exact" in said.getvalue()
    return f"{folder}/index"


def test_command_line_publishes_a_ledger_in_the_hyperbolic_metric(folder, index, capfd):
    common = (f"--input={folder}/in.txt", "--mechanism=hyperbolic_laplace", f"--index={index}")
    done = run_here(capfd, privatize_text, *common, "--epsilon=1e7", f"--output={folder}/out")
    assert done.returncode == 0, done.stderr
    assert (folder / "out-00000-of-00001.txt").read_text() == "w1 w2 w3\nw4 w5 w6\n"
    ledger = json.loads((folder / "out.manifest.json").read_text())["ledger"]
    (entry,) = ledger["entries"]
    assert entry["mechanism"] == "HyperbolicLaplace(epsilon=10000000.0, prefer_general=False)"
    assert (entry["metric"], entry["basis"], entry["delta"]) == ("poincare", "proved", 0.0)
    assert entry["guarantee"].endswith("(proved) per word and unit of poincare distance")
    assert ledger["totals"]["metric"]["diameter"] == open_index(resolve_index(index)).diameter


def test_command_line_prefers_general_words(folder, index, capfd):
    (folder / "many.txt").write_text("w1 w2 w3 w4 w5 w6 w7 w8\n" * 60)
    flags = ("--mechanism=hyperbolic_laplace", "--epsilon=1.5", "--prefer_general", f"--index={index}")
    done = run_here(capfd, privatize_text, f"--input={folder}/many.txt", f"--output={folder}/general", *flags)
    assert done.returncode == 0, done.stderr
    drawn = (folder / "general-00000-of-00001.txt").read_text().split()
    assert len(drawn) == 480 and len(set(drawn)) > 8
    assert set(drawn) <= {f"w{i}" for i in range(40)}
    (entry,) = json.loads((folder / "general.manifest.json").read_text())["ledger"]["entries"]
    assert entry["mechanism"] == "HyperbolicLaplace(epsilon=1.5, prefer_general=True)"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mechanism=hyperbolic_laplace", "--epsilon=1"), "epsilon must be above n-1 = 1"),
        (("--mechanism=hyperbolic_laplace", "--epsilon=3", "--search=annoy"), "search must be exact or auto"),
        (("--mechanism=multivariate_laplace", "--epsilon=3"), "not for poincare"),
        (("--mechanism=mahalanobis", "--epsilon=3"), "not for poincare"),
        (("--mechanism=vickrey", "--epsilon=3"), "not for poincare"),
        (("--mechanism=rank_corrected_laplace", "--epsilon=3"), "not for poincare"),
        (("--mechanism=knn_truncated", "--epsilon=3"), "not for poincare"),
        (("--mechanism=truncated_gumbel", "--epsilon=3"), "not for poincare"),
    ],
    ids=["epsilon", "annoy", "laplace", "mahalanobis", "vickrey", "rank", "knn", "gumbel"],
)
def test_what_a_poincare_index_does_not_serve_is_refused_before_the_run(folder, index, flags, message):
    with pytest.raises(ArgumentError, match=message):
        (
            Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"]))
            | beam.Create(["w1"])
            | privatizer_from(
                parse_options(
                    [f"--input={folder}/in.txt", "--output=b", f"--index={index}", *flags], PrivatizeTextOptions
                )
            )
        )


def test_a_refusal_is_one_line_on_the_command_line(folder, index, capfd):
    flags = ("--mechanism=hyperbolic_laplace", "--epsilon=1", f"--index={index}", f"--output={folder}/never")
    done = run_here(capfd, privatize_text, f"--input={folder}/in.txt", *flags)
    assert "epsilon must be above n-1 = 1 for this index of n = 2 dimensions, not 1" in refusal(done)
    assert "exponential serves every epsilon" in refusal(done)


def test_a_dry_run_of_the_build_says_that_search_is_exact(folder, capfd):
    flags = (f"--vectors={folder}/v.txt", f"--output={folder}/none", "--metric=poincare")
    assert run_main(build_index.main, [*flags, "--dry_run"]) == 0
    assert "would build an index with the poincare metric and exact search" in capfd.readouterr().out
    assert run_main(build_index.main, [*flags, "--trees=5"]) == 2
    assert "trees are of Annoy" in capfd.readouterr().err
    assert not (folder / "none").exists()
