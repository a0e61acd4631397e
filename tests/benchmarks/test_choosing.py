"""The document about choosing a mechanism: its command, small, and that the one of the repository is not stale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_dp import MECHANISMS, open_index, resolve_index
from beam_dp.embeddings import build_index
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import TruncatedGumbel, WordMechanism
from beam_dp.text import tokenize
from benchmarks.choosing import SHOWN, TARGETS, Point, curve_of, main, parameter_for
from pipelines.demo import UTTERANCES
from pipelines.main import run_main

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "choosing-a-mechanism.md"
FIRST = UTTERANCES.read_text(encoding="utf-8").splitlines()[:SHOWN]


def run(*flags: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"BEAM_DP_CACHE": str(cache)}
    command = [sys.executable, "-m", "benchmarks.choosing", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The words of the ten utterances and some more, with the vectors of the shipped index, as an index."""
    folder = tmp_path_factory.mktemp("choosing")
    shipped = open_index(resolve_index())
    spoken = shipped.lookup(tokenize(pa.array(FIRST)).words.unique())
    assert (spoken >= 0).all()
    ids = np.union1d(spoken, np.arange(0, shipped.size, 200))
    lines = (
        f"{shipped.words[int(at)].as_py()} {' '.join(map(str, shipped.vectors[at].astype(float)))}\n" for at in ids
    )
    (folder / "v.txt").write_text("".join(lines))
    return Path(build_index(str(folder / "v.txt"), str(folder / "index"), trees=2, progress=False).output)


def binds(name: str, index: Path) -> bool:
    mechanism: WordMechanism = TruncatedGumbel(scale=1.0) if name == "truncated_gumbel" else MECHANISMS[name](4.0)  # type: ignore[call-arg]
    try:
        mechanism.bind(open_index(resolve_index(str(index)), "exact"))
    except ArgumentError:
        return False
    return True


def table_of(text: str) -> dict[str, list[str]]:
    """The rows of the table by mechanism."""
    rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    )
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def blocks_of(text: str) -> dict[str, list[str]]:
    """The lines below each utterance, a mechanism each; all ten must be there."""
    found = [block.splitlines() for block in re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    assert [block[0].strip() for block in found] == FIRST
    return {block[0].strip(): block[1:] for block in found}


def test_the_command_writes_all_that_bind_and_the_ten_utterances(tmp_path: Path, small: Path) -> None:
    output, cache = tmp_path / "made.md", tmp_path / "cache"
    done = run(f"--index={small}", f"--output={output}", "--words=30", "--runs=10", "--seconds=0.001", cache=cache)
    assert done.returncode == 0, done.stderr
    text = output.read_text(encoding="utf-8")
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "](made.png)" in text
    index = open_index(resolve_index(str(small)))
    assert index.digest in text
    table = table_of(text)
    assert list(table) == [name for name in MECHANISMS if binds(name, small)]
    assert "hyperbolic_laplace" not in table
    assert "`hyperbolic_laplace` is not in the table: index: " in text
    vocabulary = set(index.words.to_pylist())
    for utterance, block in blocks_of(text).items():
        assert [line.split()[0] for line in block] == list(table)
        for line in block:
            words = line.split()[1:]
            assert len(words) == len(utterance.split())
            assert set(words) <= vocabulary
    # Each of some 70 words stays itself about half of the time.
    for name in table:
        drawn = re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)
        assert len(drawn) == SHOWN
        assert drawn != FIRST
    for cells in table.values():
        half = re.search(r"\*\*: (\d\.\d\d),", cells[3])
        assert half
        assert 0.25 < float(half[1]) < 0.75
        met = [float(found) for found in re.findall(r"\*\*: (\d\.\d\d),", " ".join(cells[2:5]))]
        assert met == sorted(met)
        assert len(met) >= 2
        assert float(cells[8].replace(",", "")) > 0
    assert table["exponential"][:2] == ["ε, proved", "euclidean"]
    assert table["truncated_gumbel"][0] == "nothing finite"
    # What was computed on the way at many epsilons is not left in the cache of the machine.
    assert not [path for path in cache.rglob("*") if "knn_truncated" in path.name]


def test_the_document_in_the_repository_knows_every_mechanism_and_the_shipped_index() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in MECHANISMS if f"`{name}`" not in text] == []
    assert {*table_of(text), "hyperbolic_laplace"} == set(MECHANISMS)
    assert resolve_index().digest in text
    for block in blocks_of(text).values():
        assert [line.split()[0] for line in block] == list(table_of(text))
    assert DOCUMENT.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_prose_in_the_repository_is_that_of_the_command() -> None:
    template = (ROOT / "benchmarks" / "choosing.md").read_text(encoding="utf-8")
    document = DOCUMENT.read_text(encoding="utf-8")
    pieces = [piece.strip() for piece in re.split(r"\$\w+", template)]
    assert [piece for piece in pieces if piece not in document] == []


class _Share:
    """As much of a Deniability as a point needs."""

    def __init__(self, share: float) -> None:
        self.share_unchanged = np.array([share])


@pytest.mark.parametrize("shift", [-2.0, 0.0, 4.0])
@pytest.mark.parametrize("steep", [1.0, 4.0])
def test_targets_are_found_on_a_known_curve(shift: float, steep: float) -> None:
    def share(value: float) -> float:
        return float(1 / (1 + np.exp(shift - steep * np.log(value))))

    curve = curve_of(lambda value: Point(value, _Share(share(value))))  # type: ignore[arg-type]
    assert [point.parameter for point in curve] == sorted(point.parameter for point in curve)
    for target in TARGETS:
        found = parameter_for(curve, target)
        assert found is not None
        assert share(found) == pytest.approx(target, abs=0.01)


def test_a_target_that_is_never_met_is_none() -> None:
    curve = curve_of(lambda value: Point(value, _Share(0.6 * value / (1 + value))))  # type: ignore[arg-type]
    assert parameter_for(curve, 0.5) is not None
    assert parameter_for(curve, 0.9) is None


@pytest.mark.parametrize("flag", ["--words=0", "--runs=0", "--seconds=0", "--output=page.txt", "--index=nowhere"])
def test_a_wrong_flag_is_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str], flag: str) -> None:
    status = run_main(main, [f"--output={tmp_path / 'made.md'}", flag])
    assert status == 2
    assert flag.partition("=")[0].removeprefix("--") in capfd.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
