from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from commands import refusal, run_module

from beam_dp import open_index, resolve_index
from beam_dp.audit import certify
from beam_dp.embeddings import build_index
from beam_dp.mechanisms.knn_truncated import KnnTruncated
from beam_dp.mechanisms.word_exponential import Exponential
from pipelines import certify as command
from pipelines.main import run_main


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of 70 words, two of them with the same vector: five blocks of words."""
    folder = tmp_path_factory.mktemp("certify")
    vectors = np.random.default_rng(5).normal(size=(70, 4)).astype(np.float32)
    vectors[66] = vectors[3]
    lines = [" ".join([f"w{i}", *(repr(float(x)) for x in row)]) for i, row in enumerate(vectors)]
    source = folder / "v.txt"
    source.write_text("".join(f"{line}\n" for line in lines))
    return build_index(str(source), str(folder / "index"), trees=2, progress=False).output


def written(path: Path) -> dict:
    return json.loads(path.read_text())


def test_one_process_and_two_find_what_the_function_finds(tmp_path, index):
    expected = certify(Exponential(3.0), open_index(resolve_index(index)))
    arguments = (f"--index={index}", "--mechanism=exponential", "--epsilon=3")
    for name, engine in (("one", []), ("two", ["--engine=local-parallel", "--direct_num_workers=2"])):
        output = tmp_path / f"{name}.json"
        done = run_module("pipelines.certify", *arguments, f"--output={output}", *engine)
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


@dataclasses.dataclass(frozen=True)
class HalfDropped(Exponential):
    """The exponential mechanism with the whole of epsilon in its exponent."""

    def bind(self, space):
        return Exponential(3 * self.epsilon).bind(space)


def test_a_claim_that_does_not_hold_is_written_and_ends_with_1(tmp_path, index, capfd, monkeypatch):
    monkeypatch.setattr(command, "mechanism_from", lambda _: HalfDropped(1.0))
    output = tmp_path / "c.json"
    status, out, err = run(capfd, f"--index={index}", f"--output={output}")
    assert status == 1
    assert err == f"error: mechanism: its claim of epsilon 1, delta 0 does not hold on this index: see {output}\n"
    assert "DOES NOT HOLD" in out
    assert written(output)["holds"] is False and written(output)["slack"] > 1


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
        ([], "--epsilon is required"),
        (["--epsilon=3"], "multivariate_laplace adds noise and projects it"),
        (["--epsilon=3", "--mechanism=exponential", "--radius=-1"], "radius must be a finite number above 0"),
        (["--epsilon=3", "--mechanism=exponential", "--input=x"], "unknown option --input"),
        (["--epsilon=3", "--mechanism=exponential", "--keep_columns=x"], "unknown option --keep_columns"),
        (["--scale=3", "--mechanism=truncated_gumbel"], "epsilon is required"),
        (["--epsilon=3", "--mechanism=exponential", "--output="], "--output is required"),
        (["--epsilon=3", "--mechanism=exponential", "--output=nowhere://c.json"], "no file system is installed"),
    ],
    ids=["epsilon", "noise", "radius", "input", "columns", "scale", "output", "scheme"],
)
def test_what_cannot_be_certified_ends_with_2_and_one_line(tmp_path, index, capfd, arguments, message):
    status, out, err = run(capfd, f"--index={index}", f"--output={tmp_path / 'c.json'}", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_index_is_named_as_a_program(tmp_path):
    done = run_module("pipelines.certify", "--index=no/such", "--epsilon=3", f"--output={tmp_path / 'c.json'}")
    assert "no index at" in refusal(done)
