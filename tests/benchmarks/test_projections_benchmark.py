"""The benchmark of noise and projection through its command line, at a size that shows only that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from beam_dp.embeddings import build_index

ROOT = Path(__file__).parents[2]


def run(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BEAM_DP_DATA"} | variables
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
    assert "made_up, 1,200 x 3, euclidean" in done.stdout


# The smallest epsilon of hyperbolic noise on this index is above 1: the dimension is taken instead.
@pytest.mark.parametrize(("flag", "epsilon"), [("--epsilon=0.5", 2.0), ("--epsilon=7", 7.0)])
def test_on_a_poincare_index_the_hyperbolic_one_is_measured_beside_the_exponential(
    tmp_path: Path, flag: str, epsilon: float
) -> None:
    angles, radii = np.arange(300) * 2.4, 0.999 * np.sqrt(np.arange(300) / 300)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).tolist()
    (tmp_path / "v.txt").write_text("".join(f"w{i} {x:.9f} {y:.9f}\n" for i, (x, y) in enumerate(points)))
    index = build_index(str(tmp_path / "v.txt"), str(tmp_path / "disc"), metric="poincare", progress=False).output
    target = tmp_path / "figures.json"
    done = run(f"--index={index}", "--only=disc", flag, "--words=3000", "--rounds=1", f"--json={target}")
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["rows"]
    assert [row["what"] for row in rows] == [
        "sgemm",
        f"HyperbolicLaplace(epsilon={epsilon}, prefer_general=False)",
        f"HyperbolicLaplace(epsilon={epsilon}, prefer_general=True)",
        f"Exponential(epsilon={epsilon})",
    ]
    assert all(row["words_per_cpu_second"] == pytest.approx(3000 / row["cpu_seconds"]) for row in rows)
    assert "disc, 300 x 2, poincare" in done.stdout


def test_the_mammals_are_there_where_gensim_is(tmp_path: Path) -> None:
    pytest.importorskip("gensim", reason="its test data hold a Poincaré embedding")
    done = run("--only=mammals", "--words=3000", "--rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {(row["index"], row["size"], row["dimension"]) for row in rows} == {("mammals", 1182, 10)}
    assert [row["what"].partition("(")[0] for row in rows] == [
        "sgemm",
        "HyperbolicLaplace",
        "HyperbolicLaplace",
        "Exponential",
    ]


def test_without_gensim_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['gensim'] = None\n")
    done = run("--only=mammals", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == "mammals: not measured, gensim is not installed: pip install 'beam_dp[poincare]'"


@pytest.mark.parametrize("flag", ["--words=0", "--rounds=0", "--epsilon=0", "--epsilon=-3"])
def test_a_wrong_flag_is_status_2(flag: str) -> None:
    done = run(flag)
    assert done.returncode == 2
    assert flag.partition("=")[0].removeprefix("--") in done.stderr.splitlines()[-1]
