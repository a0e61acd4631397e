"""The word benchmark through its command line, on the index in the package, at sizes that show only that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import BLAS_VARIABLES

ROOT = Path(__file__).parents[2]
SMALL = ("--words=1500", "--laplace_words=600", "--rounds=1", "--peer_words=0")
# Of each kind one: noise, tables, rows.
MECHANISMS = {"vickrey": 600, "truncated_gumbel": 1500, "truncated_exponential": 1500}


def run(*flags: str, threads: str = "1") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "BEAM_DP_DATA"}
    environment |= dict.fromkeys(BLAS_VARIABLES, threads)
    command = [sys.executable, "-m", "benchmarks.words", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    target = tmp_path_factory.mktemp("words") / "figures.json"
    chosen = [f"--mechanism={name}" for name in MECHANISMS]
    done = run(*SMALL, *chosen, f"--json={target}", threads="2")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())


def test_every_figure_is_there_for_every_mechanism(outcome: tuple[str, dict]) -> None:
    rows = [row for row in outcome[1]["rows"] if row["benchmark"] == "words"]
    assert {row["mechanism"] for row in rows} == set(MECHANISMS)
    for mechanism, words in MECHANISMS.items():
        figures = {row["what"]: row for row in rows if row["mechanism"] == mechanism}
        cold = ["rows"] if mechanism.endswith("exponential") else []
        assert list(figures) == ["kernel", "pipeline", "pipeline's start-up", "pipeline and start-up", "sgemm", *cold]
        assert all(100 < figures[what]["words"] < words for what in cold)
        assert words <= figures["kernel"]["words"] == figures["pipeline"]["words"] < words + 64
        assert figures["sgemm"]["words"] % 512 == 0
        assert all(figures[what]["cpu_seconds"] > 0 for what in ("kernel", "pipeline's start-up", "sgemm"))
        assert all((row["size"], row["dimension"]) == (20_000, 50) for row in figures.values())


def test_ratios_are_those_of_the_rates(outcome: tuple[str, dict]) -> None:
    rows = [row for row in outcome[1]["rows"] if row["benchmark"] == "words" and row["words_per_cpu_second"]]
    kernels = {row["mechanism"]: row["words_per_cpu_second"] for row in rows if row["what"] == "kernel"}
    for row in rows:
        assert row["words_per_cpu_second"] == pytest.approx(row["words"] / row["cpu_seconds"])
        assert row["kernel_ratio"] == pytest.approx(kernels[row["mechanism"]] / row["words_per_cpu_second"])


def test_tables_fit_and_the_header_says_where_they_were_taken(outcome: tuple[str, dict]) -> None:
    text, figures = outcome
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert figures["machine"]["processor"] in lines[0]
    assert "one BLAS thread" in text
    assert figures["machine"]["packages"]["numpy"] in text
    assert "20,000 x 50" in text
    assert "sgemm" in text


def test_json_alone_is_all_there_is_on_stdout_for_memory_and_start_up() -> None:
    done = run("--memory", "--words=1500", "--start_up", "--rounds=1", "--json")
    assert done.returncode == 0, done.stderr
    *memory, start_up = json.loads(done.stdout)["rows"]
    assert [row["what"] for row in memory] == ["submitting process", "worker process", "worker process"]
    assert all(10 < row["megabytes"] < 10_000 for row in memory)
    assert start_up["benchmark"] == "start_up"
    assert (start_up["size"], start_up["dimension"]) == (20_000, 50)
    assert start_up["warm_wall_seconds"] > 0


@pytest.mark.parametrize(("flag", "named"), [("--cores=100000", "--cores"), ("--wrods=3", "--words")])
def test_a_wrong_flag_is_status_2(flag: str, named: str) -> None:
    done = run(flag)
    assert done.returncode == 2
    assert named in done.stderr.splitlines()[-1]
