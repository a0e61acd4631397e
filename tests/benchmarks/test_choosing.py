"""The document about choosing a mechanism: its command, small, and that the one of the repository is not stale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_dp import MECHANISMS, IndexRef, open_index, resolve_index
from beam_dp.audit import plausible_deniability
from beam_dp.embeddings import build_index
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import Exponential, HyperbolicLaplace, TruncatedGumbel, WordMechanism
from beam_dp.text import tokenize
from benchmarks.choosing import SHOWN, TARGETS, Point, curve_of, main, parameter_for
from benchmarks.poincare import few_mammals, mammals
from pipelines.demo import UTTERANCES
from pipelines.main import run_main

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "choosing-a-mechanism.md"
ON_POINCARE: dict[str, Callable[[float], WordMechanism]] = {
    "hyperbolic_laplace": HyperbolicLaplace,
    "hyperbolic_laplace, prefer_general": partial(HyperbolicLaplace, prefer_general=True),
    "exponential": Exponential,
}
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


def poincare_of(text: str) -> dict[str, dict[str, list[str]]]:
    """The rows of the table of Poincaré indexes by index and mechanism."""
    found: dict[str, dict[str, list[str]]] = {}
    pattern = r"^\| ([\d,]+ words, d = \d+) \| `([^`]+)` \| ((?:\*\*ε|not met).*) \|$"
    for index, name, cells in re.findall(pattern, text, re.MULTILINE):
        found.setdefault(index, {})[name] = cells.split(" | ")
    return found


def drawn_of(text: str, index: str) -> list[list[str]]:
    """The words of one Poincaré index, and what they became by each mechanism, a row each."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {index} | `") and " N_w " in line)
    return [line.strip("| ").split(" | ") for line in lines[start + 2 : start + 2 + SHOWN]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """What the command makes."""
    pytest.importorskip("gensim", reason="the Poincaré indexes are made of its test data")
    folder = tmp_path_factory.mktemp("made")
    # truncated_gumbel keeps at least 44.5% of these 30 words, which ten draws of each took for half once.
    flags = (f"--index={small}", f"--output={folder / 'made.md'}", "--words=30", "--runs=40", "--seconds=0.001")
    done = run(*flags, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder / "made.md"


def test_the_command_writes_all_that_bind_and_the_ten_utterances(made: Path, small: Path) -> None:
    output, cache = made, made.with_name("cache")
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


@pytest.mark.parametrize("make", [mammals, few_mammals])
def test_poincare_indexes_have_a_section_with_what_is_met_and_what_is_not(
    made: Path, tmp_path: Path, rng: np.random.Generator, make: Callable[[Path], IndexRef]
) -> None:
    text = made.read_text(encoding="utf-8")
    index = open_index(make(tmp_path / "index"))
    title = f"{index.size:,} words, d = {index.dimension}"
    assert f"Index `{index.digest}`" in text
    assert len(poincare_of(text)) == 2
    rows = poincare_of(text)[title]
    assert list(rows) == list(ON_POINCARE)
    words = np.linspace(0, index.size - 1, 30).round().astype(np.int32)
    for name, (*cells, near, rate) in rows.items():
        epsilons = [float(found) for found in re.findall(r"ε ([\d.]+)", " ".join(cells))]
        assert len(epsilons) == 3
        assert name == "exponential" or min(epsilons) > index.dimension - 1
        for target, cell in zip(TARGETS, cells, strict=True):
            met = re.fullmatch(r"\*\*ε ([\d.]+)\*\*: (\d\.\d\d), \d+", cell)
            if met:
                # As the page says, and as its words have it at the epsilon of the page.
                law = ON_POINCARE[name](float(met[1]))
                again = plausible_deniability(law, index, 50, words=words, rng=rng)
                assert float(met[2]) == pytest.approx(target, abs=0.25)
                assert again.share_unchanged.mean() == pytest.approx(target, abs=0.2)
            else:
                assert cell.startswith("not met: ")
        assert float(near) > 0 and float(rate.replace(",", "")) > 0
    assert all(cell.startswith("**ε ") for cell in rows["exponential"][:3])
    # In ten dimensions hardly any noise ends nearer to another word, and the smallest epsilon comes nearest to that.
    if make is mammals:
        for cell in rows["hyperbolic_laplace"][:3]:
            met = re.fullmatch(r"not met: (0\.9\d\d|1\.000) at ε 9\.001", cell)
            assert met, cell
        assert f"| {title} | `hyperbolic_laplace` at ε 9.001, N_w " in text
    drawn = drawn_of(text, title)
    assert [row[0] for row in drawn] == [
        index.words[int(at)].as_py() for at in np.linspace(0, index.size - 1, SHOWN).round()
    ]
    assert {len(row) for row in drawn} == {4}
    assert {word for row in drawn for word in row} <= set(index.words.to_pylist())
    assert [row[3] for row in drawn] != [row[0] for row in drawn]


def test_without_gensim_there_is_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gensim", None)
    assert run_main(main, [f"--output={tmp_path / 'made.md'}"]) == 2
    assert "gensim is not installed: pip install 'beam_dp[poincare]'" in capfd.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_document_in_the_repository_knows_every_mechanism_and_the_shipped_index() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in MECHANISMS if f"`{name}`" not in text] == []
    assert {*table_of(text), "hyperbolic_laplace"} == set(MECHANISMS)
    assert resolve_index().digest in text
    for block in blocks_of(text).values():
        assert [line.split()[0] for line in block] == list(table_of(text))
    assert DOCUMENT.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    for index, rows in poincare_of(text).items():
        assert list(rows) == list(ON_POINCARE)
        assert len(drawn_of(text, index)) == SHOWN
    assert len(poincare_of(text)) == 2


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


def test_a_curve_goes_no_lower_than_it_may() -> None:
    # Never flat and never below the targets: to the lowest power, and no further.
    curve = curve_of(lambda value: Point(value, _Share(0.6 + 0.02 * np.log2(value))), -20)  # type: ignore[arg-type]
    assert curve[0].parameter == 2**-10


def test_a_target_that_is_never_met_is_none() -> None:
    curve = curve_of(lambda value: Point(value, _Share(0.6 * value / (1 + value))))  # type: ignore[arg-type]
    assert parameter_for(curve, 0.5) is not None
    assert parameter_for(curve, 0.9) is None


@pytest.mark.parametrize("flag", ["--words=0", "--runs=0", "--seconds=0", "--output=page.txt", "--index=nowhere"])
def test_a_wrong_flag_is_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str], flag: str) -> None:
    pytest.importorskip("gensim", reason="looked for before an index is")
    status = run_main(main, [f"--output={tmp_path / 'made.md'}", flag])
    assert status == 2
    assert flag.partition("=")[0].removeprefix("--") in capfd.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
