"""The benchmark of noise and projection through its command line, at a size that shows only that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_dp.embeddings import build_index

ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BEAM_DP_DATA"}
    command = [sys.executable, "-m", "benchmarks.projections", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_mechanism_that_projects_is_measured_beside_the_product(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("".join(f"w{i} {i % 37} {i // 37} {i % 5}.5\n" for i in range(1200)))
    index = build_index(str(tmp_path / "v.txt"), str(tmp_path / "made_up"), trees=2, progress=False).output
    target = tmp_path / "figures.json"
    done = run(f"--index={index}", "--only=made_up", "--words=3000", "--rounds=1", f"--json={target}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [row["what"].partition("(")[0] for row in rows] == [
        "sgemm",
        "MultivariateLaplace",
        "Mahalanobis",
        "Vickrey",
        "RankCorrectedLaplace",
    ]
    for row in rows:
        assert (row["size"], row["dimension"], row["words"]) == (1200, 3, 3000)
        assert row["words_per_cpu_second"] == pytest.approx(3000 / row["cpu_seconds"])
        assert row["of_sgemm"] == pytest.approx(rows[0]["cpu_seconds"] / row["cpu_seconds"])
    assert "made_up, 1,200 x 3" in done.stdout


@pytest.mark.parametrize("flag", ["--words=0", "--rounds=0", "--epsilon=0"])
def test_a_wrong_flag_is_status_2(flag: str) -> None:
    done = run(flag)
    assert done.returncode == 2
    assert flag.partition("=")[0].removeprefix("--") in done.stderr.splitlines()[-1]
