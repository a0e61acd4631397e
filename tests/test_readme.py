"""Every command and code block of the README, run as it stands there."""

import csv
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from beam_dp.accounting.budget import BudgetStore
from pipelines.main import run_main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(command, folder):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )


def run_here(module, arguments, capfd):
    """``python -m module arguments`` within this process: tests of each program start it as one of its own."""
    capfd.readouterr()
    status = run_main(importlib.import_module(module).main, arguments)
    return subprocess.CompletedProcess(arguments, status, *capfd.readouterr())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [{"id": i, "body": f"the order number {i} was late", "name": "somebody"} for i in range(20)]
    (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [f"{user},{'tea' if user % 3 else 'jam'},{user % 100}" for user in range(1000)]
    (folder / "events.csv").write_text("\n".join(["user,item,amount", *events]) + "\n")
    words = ["the", "order", "number", "was", "late", "early"]
    (folder / "vectors.txt").write_text("".join(f"{word} {i}.5 {i * i}.0 1.0\n" for i, word in enumerate(words)))
    return folder


def test_all_blocks_are_of_a_kind_that_is_run():
    assert {language for language, _ in BLOCKS} == {"sh", "python"}


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_block(folder, code):
    done = run([sys.executable, "-c", code], folder)
    assert done.returncode == 0, done.stderr
    expected = {
        "PrivatizeText": "metric epsilon 8",
        "Shares": "prices",
        "Aggregate": "'item': 'tea', 'count': ",
    }
    assert next(said for name, said in expected.items() if name in code) in done.stdout


def test_commands_in_their_order(folder, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    lines = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines() if line.strip()]
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines}
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            # The recipes themselves are what the test suite and its tests of the demo run.
            done = run(["make", "--dry-run", "-C", str(ROOT), *arguments], folder)
        elif program == "beam-dp":
            # What the script of an installed package runs.
            done = run_here("pipelines.accountant", arguments, capfd)
        else:
            assert (program, arguments[0]) == ("python", "-m")
            module, *flags = arguments[1:]
            # A benchmark would pin this process to a processor.
            assert module.startswith("pipelines.") or flags == ["--help"]
            first = not (folder / "private").exists()
            done = run([sys.executable, *arguments], folder) if first else run_here(module, flags, capfd)
        assert done.returncode == 0, (line, done.stderr)
    private = [json.loads(line) for line in (folder / "private/tickets-00000-of-00001.jsonl").read_text().splitlines()]
    assert [set(row) for row in private] == [{"id", "body"}] * 20
    assert json.loads((folder / "ledger.json").read_text())["totals"]["metric"]["epsilon_per_word"] == 8
    assert (folder / "again/tickets.manifest.json").exists()
    items = list(csv.DictReader((folder / "public/items-00000-of-00001.csv").open()))
    assert [row["item"] for row in items] == ["jam", "tea"]
    # 333 and 667 rows; the noise has a standard deviation of 12 rows.
    assert all(abs(int(row["count"]) - rows) < 200 for row, rows in zip(items, (334, 666), strict=True))
    assert (folder / "public/words.manifest.json").exists()
    account = BudgetStore(f"sqlite:///{folder}/budget.db").account("events")
    assert [(run.run_id, run.state, run.charges[0].epsilon) for run in account.runs.values()] == [
        ("week-7", "committed", 1.0)
    ]
    # Both runs that the report names.
    assert ">2.0<" in (folder / "spent.html").read_text(encoding="utf-8")
