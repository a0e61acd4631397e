from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import refusal, run_here, run_module

from beam_dp import MECHANISMS, WordRandomizedResponse, open_index, resolve_index
from beam_dp.audit import certify
from beam_dp.embeddings import build_index
from beam_dp.mechanisms import FiniteLaw
from beam_dp.mechanisms.knn_truncated import KnnTruncated
from beam_dp.mechanisms.truncated_gumbel import TruncatedGumbel
from beam_dp.mechanisms.word_exponential import Exponential
from pipelines import certify as command
from pipelines.certify import CERTIFIABLE
from pipelines.main import run_main


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of 70 words, two of them with the same vector: five blocks of words."""
    folder = tmp_path_factory.mktemp("certify")
    vectors = np.random.default_rng(5).normal(size=(70, 4)).astype(np.float32)
    vectors[66] = vectors[3]
    return built(folder, vectors)


def built(folder: Path, vectors: np.ndarray) -> str:
    """An index of the words w0, w1, ..."""
    lines = [" ".join([f"w{i}", *(repr(float(x)) for x in row)]) for i, row in enumerate(vectors)]
    source = folder / "v.txt"
    source.write_text("".join(f"{line}\n" for line in lines))
    return build_index(str(source), str(folder / "index"), trees=2, progress=False).output


def written(path: Path) -> dict:
    return json.loads(path.read_text())


def test_one_process_and_two_find_what_the_function_finds(tmp_path, index, capfd):
    expected = certify(Exponential(3.0), open_index(resolve_index(index)))
    arguments = (f"--index={index}", "--mechanism=exponential", "--epsilon=3")
    two = partial(run_module, "pipelines.certify", "--engine=local-parallel", "--direct_num_workers=2")
    for name, program in (("one", partial(run_here, capfd, command)), ("two", two)):
        output = tmp_path / f"{name}.json"
        done = program(*arguments, f"--output={output}")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert output.read_text() == expected.to_json()
        lines = done.stdout.splitlines()
        assert lines[0] == expected.sentence() and "the claim of epsilon 3 holds" in lines[0]
        assert lines[1] == f"worst pair: 'w{expected.pair[0]}' and 'w{expected.pair[1]}'"
        assert lines[2:] == [f"digest {expected.digest}", f"written: {output}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run_main(command.main, arguments)
    out, err = capfd.readouterr()
    return status, out, err


def test_tables_and_a_radius(tmp_path, index, capfd):
    output = tmp_path / "c.json"
    flags = (f"--index={index}", "--mechanism=knn_truncated", "--neighbours=9", "--epsilon=3", f"--output={output}")
    status, out, err = run(capfd, *flags, "--radius=1.5")
    assert (status, err) == (0, "")
    expected = certify(KnnTruncated(3.0, 9), open_index(resolve_index(index)), radius=1.5)
    assert output.read_text() == expected.to_json()
    assert expected.pairs < 70 * 69 and "for d <= 1.5" in out
    # Nothing is claimed, and so nothing fails.
    assert written(output)["holds"] is None


def test_a_claim_in_which_no_distance_is(tmp_path, index, capfd):
    output = tmp_path / "c.json"
    flags = (f"--index={index}", "--mechanism=randomized_response", "--epsilon=3", f"--output={output}")
    status, out, err = run(capfd, *flags)
    assert (status, err) == (0, "")
    expected = certify(WordRandomizedResponse(3.0), open_index(resolve_index(index)))
    assert output.read_text() == expected.to_json()
    assert out.splitlines() == [expected.sentence(), f"digest {expected.digest}", f"written: {output}"]
    assert "delta 0 per word between any two words; the claim of epsilon 3 holds" in out


def test_a_scale_is_certified_at_an_epsilon(tmp_path, index, capfd):
    output = tmp_path / "c.json"
    flags = ("--mechanism=truncated_gumbel", "--scale=0.5", "--neighbours=9", "--epsilon=3", "--radius=1.5")
    status, out, err = run(capfd, f"--index={index}", f"--output={output}", *flags)
    assert (status, err) == (0, "")
    mechanism = TruncatedGumbel(scale=0.5, neighbours=9)
    expected = certify(mechanism, open_index(resolve_index(index)), radius=1.5, epsilon=3.0)
    assert output.read_text() == expected.to_json()
    assert "epsilon 3, delta" in out and "no finite guarantee is claimed" in out


def test_a_claim_that_is_not_decided_is_written_and_ends_with_0(tmp_path, capfd):
    vectors = np.array([[1.0, 0.0], [1.0, 1e-12], *[[1.0, 1.0]] * 50], np.float32)
    index, output = built(tmp_path, vectors), tmp_path / "c.json"
    status, out, err = run(capfd, f"--index={index}", f"--output={output}", "--mechanism=exponential", "--epsilon=1")
    assert (status, err) == (0, "")
    assert "the claim of epsilon 1 is not decided in float64" in out.splitlines()[0]
    assert out.splitlines()[1] in ("worst pair: 'w0' and 'w1'", "worst pair: 'w1' and 'w0'")
    assert (written(output)["verdict"], written(output)["holds"]) == ("not decided", False)


@dataclasses.dataclass(frozen=True)
class HalfDropped(Exponential):
    """The exponential mechanism with the whole of epsilon in its exponent."""

    def bind(self, space):
        return Exponential(3 * self.epsilon).bind(space)


def test_a_claim_that_does_not_hold_is_written_and_ends_with_1(tmp_path, index, capfd, monkeypatch):
    monkeypatch.setattr(command, "make_mechanism", lambda *_, **__: HalfDropped(1.0))
    output = tmp_path / "c.json"
    status, out, err = run(capfd, f"--index={index}", f"--output={output}", "--mechanism=exponential")
    assert status == 1
    assert err == f"error: mechanism: its claim of epsilon 1, delta 0 does not hold on this index: see {output}\n"
    assert "DOES NOT HOLD" in out
    assert written(output)["holds"] is False and written(output)["slack"] > 1
    assert written(output)["verdict"] == "does not hold"


def test_an_existing_certificate_needs_overwrite(tmp_path, index, capfd):
    output = tmp_path / "c.json"
    output.write_text("mine")
    flags = (f"--index={index}", "--mechanism=exponential", "--epsilon=3", f"--output={output}")
    status, out, err = run(capfd, *flags)
    assert (status, out) == (2, "")
    assert "output already exists: c.json" in err
    assert output.read_text() == "mine"
    assert run(capfd, *flags, "--overwrite")[0] == 0
    assert written(output)["holds"] is True


def test_a_dry_run_computes_nothing(tmp_path, index, capfd):
    flags = (f"--index={index}", "--mechanism=exponential", "--epsilon=3", f"--output={tmp_path / 'c.json'}")
    status, out, err = run(capfd, *flags, "--dry_run")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "would certify Exponential(epsilon=3.0) on 70 words by closed form",
        "dry run: nothing was computed",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mechanism=exponential"], "--epsilon is required"),
        (["--epsilon=3"], "error: --mechanism is required: write --mechanism=VALUE"),
        (["--epsilon=3", "--mechanism=nothing"], "(choose from 'density_prior', 'exponential', 'knn_truncated', "),
        (
            ["--epsilon=3", "--mechanism=mahalanobis", "--covariance_weight=0.3"],
            "error: --mechanism: mahalanobis adds noise and projects it, so there is no finite law to certify; its "
            "claim is proved in the docstring of Mahalanobis, and",
        ),
        (["--epsilon=3", "--mechanism=exponential", "--covariance_weight=0.3"], "unknown option --covariance_weight"),
        (["--epsilon=3", "--mechanism=exponential", "--scale=1"], "--scale is not a parameter of exponential"),
        (["--epsilon=3", "--mechanism=randomized_response", "--radius=1"], "radius must be left out"),
        (["--epsilon=3", "--mechanism=exponential", "--radius=-1"], "radius must be a finite number above 0"),
        (["--epsilon=3", "--mechanism=exponential", "--input=x"], "unknown option --input"),
        (["--epsilon=3", "--mechanism=exponential", "--keep_columns=x"], "unknown option --keep_columns"),
        (["--scale=3", "--mechanism=truncated_gumbel"], "epsilon is required"),
        (["--epsilon=3", "--mechanism=exponential", "--output="], "--output is required"),
        (["--epsilon=3", "--mechanism=exponential", "--output=nowhere://c.json"], "no file system is installed"),
    ],
    ids=[
        "epsilon",
        "no mechanism",
        "unknown",
        "noise",
        "parameter of noise",
        "scale of another",
        "radius of none",
        "radius",
        "input",
        "columns",
        "scale",
        "output",
        "scheme",
    ],
)
def test_what_cannot_be_certified_ends_with_2_and_one_line(tmp_path, index, capfd, arguments, message):
    status, out, err = run(capfd, f"--index={index}", f"--output={tmp_path / 'c.json'}", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_index_is_named(tmp_path, capfd):
    flags = ("--index=no/such", "--mechanism=exponential", "--epsilon=3", f"--output={tmp_path / 'c.json'}")
    assert "no index at" in refusal(run_here(capfd, command, *flags))


def test_the_choices_are_the_mechanisms_that_have_a_finite_law(plain_space):
    points = np.random.default_rng(1).uniform(-0.5, 0.5, size=(9, 2))
    finite = []
    for name, mechanism in MECHANISMS.items():
        space = plain_space(points, metric="poincare" if name == "hyperbolic_laplace" else "euclidean")
        made = mechanism(scale=1.0) if name == "truncated_gumbel" else mechanism(3.0)
        if isinstance(made.bind(space), FiniteLaw):
            finite.append(name)
    assert sorted(finite) == list(CERTIFIABLE)


def test_help_tells_of_nothing_that_is_refused(capsys):
    assert run_main(command.main, ["--help"]) == 0
    said, options = capsys.readouterr().out.split("options:\n")
    options = " ".join(options.split())
    assert f"--mechanism {{{','.join(CERTIFIABLE)}}} what is certified (required)" in options
    for name in set(MECHANISMS) - set(CERTIFIABLE):
        assert name not in said + options
    for flag in ("covariance_weight", "second_weight", "rank_decay", "max_noise", "prefer_general", "ledger"):
        assert f"--{flag}" not in options
    assert "--dry_run check the arguments and say what would be computed, and how; compute and write" in options
    assert "spend" not in options and "--budget_store" not in options
