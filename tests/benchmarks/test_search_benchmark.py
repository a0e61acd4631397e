"""The search benchmark through its command line, at a size that shows only that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_dp.embeddings import BuildReport, build_index
from benchmarks import search

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    folder = tmp_path_factory.mktemp("small")
    (folder / "v.txt").write_text("".join(f"w{i} {i % 37} {i // 37} {i % 5}.5\n" for i in range(1200)))
    return build_index(str(folder / "v.txt"), str(folder / "made_up"), trees=2, progress=False)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BEAM_DP_DATA"}
    command = [sys.executable, "-m", "benchmarks.search", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_cut_whole_and_grown(small: BuildReport, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    done = run(
        f"--index={small.output}", "--only=made_up", "--sizes=1000,1200,1500", "--trees=2", "--queries=64",
        f"--json={target}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [(row["vocabulary"], row["size"]) for row in rows[::3]] == [
        ("made_up", 1000), ("made_up", 1200), ("made_up, synthetic", 1500),
    ]  # fmt: skip
    for row in rows:
        assert row["exact_per_second"] > 0
        for target_recall in (0.5, 0.9):
            recall = row[f"annoy_recall_{target_recall}"]
            assert recall is None or target_recall <= recall <= 1
    assert "made_up, synthetic" in done.stdout


@pytest.mark.parametrize("sizes", ["10", "many", "2000,x"])
def test_sizes_are_checked(sizes: str, refused: Callable[..., str]) -> None:
    line = refused(search.main, [f"--sizes={sizes}", "--only=embedded"])
    assert "--sizes must be whole numbers of at least 1000" in line
