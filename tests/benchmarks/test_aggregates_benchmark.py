"""The aggregate benchmark: its tables, errors and bounds, and its command line at sizes that show only that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from beam_dp.errors import ArgumentError, BeamDpError
from benchmarks import aggregates
from benchmarks.accuracy import (
    FIGURES,
    MAX_PARTITIONS,
    MAX_ROWS_PER_PARTITION,
    Release,
    Trial,
    release_ours,
    release_pipeline_dp,
    rmse_ratio,
    squared_errors,
)
from benchmarks.aggregates import measure_noise
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.measure import BLAS_VARIABLES, Report, alternate, machine, peak_resident_memory
from benchmarks.tables import PurchaseTable, prepared

ROOT = Path(__file__).parents[2]
HOLD = """
import subprocess, sys
kept = bytearray(b"x" * (64 << 20))
if sys.argv[1:]:
    subprocess.run([sys.executable, "-c", sys.argv[1]], input=b"", check=True)
else:
    import time
    time.sleep(0.5)
"""


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.aggregates", *flags]
    environment = os.environ | dict.fromkeys(BLAS_VARIABLES, "1")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_block_is_the_same_each_time_and_in_every_form() -> None:
    table = PurchaseTable(rows=40_000, users=300, items=20)
    named = PurchaseTable(rows=40_000, users=300, items=20, strings=True)
    assert table.blocks == 3
    for block in range(3):
        rows = table.purchases(block)
        columns = table.batch(block).to_pydict()
        assert [tuple(row) for row in rows] == list(zip(*columns.values(), strict=True))
        assert list(columns) == list(rows[0]._fields)
        assert [int(name.removeprefix("item-")) for name in named.batch(block)["item"].to_pylist()] == columns["item"]
        assert [int(name.removeprefix("user-")) for name in named.batch(block)["user"].to_pylist()] == columns["user"]
    assert sum(len(rows) for rows in prepared(table, "rows")) == 40_000
    assert table.purchases(0) != table.purchases(1)


def test_items_follow_the_zipf_law() -> None:
    items = np.concatenate([PurchaseTable(300_000, 1000, 50).columns(block)[1] for block in range(19)])
    law = 1 / np.arange(1, 51)
    counted = np.bincount(items, minlength=50)
    assert counted.sum() == 300_000
    assert stats.chisquare(counted, 300_000 * law / law.sum()).pvalue > 1e-4


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 10_000)])
def test_tables_that_cannot_be_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ArgumentError, match="items"):
        PurchaseTable(*sizes)


def test_turns_are_taken_by_those_who_have_rounds_left() -> None:
    turns: list[tuple[str, int]] = []
    calls = [lambda turn: turns.append(("a", turn)), lambda turn: turns.append(("b", turn))]
    seconds = alternate(calls, [2, 1], warm_up=False)
    assert turns == [("a", 0), ("b", 0), ("a", 1)]
    assert np.isnan(seconds).tolist() == [[False, False], [False, True]]


def test_peak_memory_is_that_of_all_processes_together() -> None:
    alone = peak_resident_memory(subprocess.Popen([sys.executable, "-c", HOLD]))
    both = peak_resident_memory(subprocess.Popen([sys.executable, "-c", HOLD, HOLD]))
    assert alone > 64 << 20
    assert both > 128 << 20


def test_a_trial_stays_within_its_bounds_and_knows_its_truth() -> None:
    trial = Trial(epsilon=1.0, runs=2, partitions=7, users=60)
    users, items, amounts = trial.columns
    for user in range(60):
        touched = np.bincount(items[users == user], minlength=7)
        assert sorted(touched[touched > 0]) == [MAX_ROWS_PER_PARTITION] * MAX_PARTITIONS
    assert trial.truth["count"].sum() == len(items)
    assert trial.truth["sum"].sum() == pytest.approx(amounts.sum())
    assert trial.truth["median"][3] == np.median(amounts[items == 3])
    copied_users, copied_items, copied_amounts = trial.copies(2)
    second = copied_items >= 7
    assert set(copied_users[second]) == set(range(60, 120))
    assert np.array_equal(copied_items[second] - 7, items)
    assert np.array_equal(copied_amounts[second], amounts)


def test_errors_are_those_of_each_run() -> None:
    trial = Trial(epsilon=1.0, runs=23, partitions=7, users=60)
    made: list[int] = []

    def off_by_run(asked: Trial, figures: Sequence[str], count: int) -> Mapping[str, np.ndarray]:
        made.append(count)
        return {name: np.concatenate([asked.truth[name] + run for run in range(count)]) for name in figures}

    errors = squared_errors(trial, ["count", "mean"], off_by_run)
    assert sum(made) == 23
    expected = np.concatenate([np.arange(count) for count in made]) ** 2.0
    assert errors["count"] == pytest.approx(expected)
    assert errors["mean"] == pytest.approx(expected)
    with pytest.raises(BeamDpError, match="mean"):
        squared_errors(trial, ["mean"], lambda asked, _, count: {"mean": np.full(count * asked.partitions, np.nan)})


@pytest.mark.parametrize("release", [release_ours, release_pipeline_dp])
def test_releases_with_much_budget_are_close_to_the_truth(release: Release) -> None:
    if release is release_pipeline_dp:
        pytest.importorskip("pipeline_dp", reason="a peer, which benchmarks/requirements.txt installs apart")
    trial = Trial(epsilon=5e3, runs=2, partitions=5, users=200)
    errors = squared_errors(trial, FIGURES, release)
    for name in FIGURES:
        # Far less than from partition to partition; quantiles and quantised values are rounded a little.
        assert errors[name].max() < 0.01 * trial.truth[name].var() + 1e-4


def test_the_bound_of_a_ratio_is_that_of_the_f_law(rng: np.random.Generator) -> None:
    ours, theirs = rng.chisquare(10, (2, 400)) / 10
    ratio, bound = rmse_ratio(4 * ours, theirs)
    assert ratio == pytest.approx(2 * np.sqrt(ours.mean() / theirs.mean()))
    assert bound / ratio == pytest.approx(np.sqrt(stats.f.ppf(0.99, 4000, 4000)), abs=0.01)


def test_noise_is_measured_at_every_scale(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(machine(None), "-")
    measure_noise(report, 1)
    report.finish()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["scale"] for row in rows] == [1.0, 48.0, 1e6]
    assert all(row["draws_per_cpu_second"] > 0 for row in rows)


@pytest.mark.parametrize("one", CONTENDERS, ids=lambda one: one.key)
def test_every_contender_releases(one: Contender) -> None:
    if not one.installed:
        pytest.skip(f"{one.distribution} is not installed")
    table = PurchaseTable(20_000, 900, 40, one.strings)
    items = {item for block in range(table.blocks) for item in table.columns(block)[1].tolist()}
    released = one.run(table)
    assert released == len(items) if one.key.startswith("plain") else 0 < released <= len(items)


def test_figures_are_shown_with_their_ratios(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    size = ("--rows=20000", "--users=900", "--partitions=40", "--rounds=1", "--peer_rounds=0")
    done = run("--only=plain,plain_two,pipeline_dp", *size, f"--json={target}")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    rows = {row["contender"]: row for row in json.loads(target.read_text())["rows"]}
    assert list(rows) == ["plain", "plain_two", "pipeline_dp"]
    assert rows.pop("pipeline_dp")["status"] in ("not installed", "left out")
    for row in rows.values():
        assert row["rows_per_cpu_second"] == pytest.approx(20_000 / row["cpu_seconds"])
        assert row["of_plain_beam"] == pytest.approx(row["cpu_seconds"] / rows["plain"]["cpu_seconds"])
        assert row["times_pipeline_dp"] is None


def test_larger_tables_are_measured_in_processes_of_their_own() -> None:
    done = run("--scale", "--sizes=20000", "--partitions=40", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["rows"], row["users"]) == (20_000, 1000)
    assert row["peak_bytes"] > 50 << 20
    assert row["rows_per_cpu_second"] == pytest.approx(20_000 / row["cpu_seconds"])


@pytest.mark.parametrize(("flags", "named"), [(["--only=nobody"], "--only"), (["--sizes=many", "--scale"], "--sizes")])
def test_a_wrong_choice_is_status_2(flags: list[str], named: str, refused: Callable[..., str]) -> None:
    assert named in refused(aggregates.main, flags)
