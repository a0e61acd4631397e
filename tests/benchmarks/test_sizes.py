"""The benchmark of sizes through its command line, at sizes that show only that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import sizes

ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BEAM_DP_DATA"}
    command = [sys.executable, "-m", "benchmarks.sizes", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_each_size_and_the_lines_on_paper(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    done = run(
        "--words=7000,20000", "--mechanism=multivariate_laplace", "--rounds=1", f"--json={target}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    sizes, paper = rows[:2], rows[2:]
    assert [row["words"] for row in sizes] == [7_000, 20_000]
    assert [row["rounds"] for row in sizes] == [2, 1]
    assert sizes[1]["cpu_seconds"] > 0
    assert sizes[1]["words_per_cpu_second"] == pytest.approx(20_000 / sizes[1]["cpu_seconds"])
    assert all(50 < row["peak_resident_megabytes"] < 10_000 for row in sizes)
    for row in paper:
        assert row["cpu_hours"] * 3600 == pytest.approx(row["words"] / sizes[1]["words_per_cpu_second"])
        # At least the list price of the processors alone, below twice that with 4 GB of memory each.
        assert 0.05 < row["dollars"] / row["cpu_hours"] < 0.1
        walls = row["wall_hours"]
        assert walls["1"] > walls["1000"] > sizes[0]["start_up_cpu_seconds"] / 3600
    assert paper[1]["cpu_hours"] == pytest.approx(1000 * paper[0]["cpu_hours"])


@pytest.mark.parametrize("words", ["0,5", "many", "2000,1000", "5,5", ""])
def test_sizes_that_are_none(words: str, refused: Callable[..., str]) -> None:
    assert refused(sizes.main, [f"--words={words}"]).startswith("error: --words must be ascending numbers of words")
