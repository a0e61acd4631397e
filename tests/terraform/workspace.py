"""terraform/ copied to a folder of its own, where Terraform or OpenTofu checks it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODULE = Path(__file__).parents[2] / "terraform"
# Versions of the providers: the ends of the range in terraform/versions.tf.
OLDEST, NEWEST = "6.50", "8.0"
_SECONDS = 300


@dataclass(frozen=True)
class Outcome:
    """What `terraform test` said.

    Args:
        returncode: 0 where every run passed.
        status: of each run, by 'file/run' without the endings of the file.
        messages: summary and detail of the errors, in order.
        plans: the planned resources of each run, by 'file/run'.
    """

    returncode: int
    status: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    plans: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Workspace:
    """A copy of terraform/.

    Args:
        folder: where it is.
        binary: terraform or tofu.
        reattach: value of TF_REATTACH_PROVIDERS.
    """

    folder: Path
    binary: str
    reattach: str

    @classmethod
    def of_module(cls, folder: Path, binary: str, reattach: str) -> Workspace:
        """A new one of the module, initialised."""
        shutil.copytree(MODULE, folder, ignore=shutil.ignore_patterns(".terraform*"))
        workspace = cls(folder, binary, reattach)
        workspace.run("init", "-backend=false", "-input=false", check=True)
        return workspace

    def copy(self, folder: Path) -> Workspace:
        """Another one in ``folder``."""
        shutil.copytree(self.folder, folder)
        return Workspace(folder, self.binary, self.reattach)

    def run(self, *arguments: str, check: bool = False, below: str = ".") -> subprocess.CompletedProcess[str]:
        """Runs the binary in the folder ``below``; with ``check`` it must end with status 0."""
        settings = self.folder / ".settings"
        settings.touch()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
        done = subprocess.run(
            [self.binary, *arguments],
            cwd=self.folder / below,
            env={
                **kept,
                "TF_REATTACH_PROVIDERS": self.reattach,
                "TF_CLI_CONFIG_FILE": str(settings),
                "TF_IN_AUTOMATION": "1",
                "CHECKPOINT_DISABLE": "1",
            },
            text=True,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def test(self, *files: str) -> Outcome:
        """Runs the tests in ``files``, names in tests/ without their endings; all where none is named."""
        filters = [f"-filter=tests/{name}.tftest.hcl" for name in files]
        done = self.run("test", "-json", "-verbose", *filters)
        outcome = Outcome(done.returncode)
        for line in done.stdout.splitlines():
            _note(outcome, json.loads(line))
        return outcome

    def keep_runs(self, file: str, *, containing: str) -> int:
        """Drops the runs of a test file whose text does not contain ``containing``; returns how many stay."""
        path = self.folder / "tests" / f"{file}.tftest.hcl"
        head, *runs = path.read_text().split('\nrun "')
        kept = [run for run in runs if containing in run]
        path.write_text('\nrun "'.join((head, *kept)))
        return len(kept)

    def replace(self, file: str, old: str, new: str) -> None:
        """Replaces ``old``, which must stand in a file once."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} of {old!r}"
        path.write_text(text.replace(old, new))


def _note(outcome: Outcome, event: dict[str, Any]) -> None:
    """Adds what one line of `terraform test -json` says."""
    run = f"{event.get('@testfile', '').removeprefix('tests/').removesuffix('.tftest.hcl')}/{event.get('@testrun', '')}"
    match event.get("type"):
        case "test_run" if "status" in event["test_run"]:
            outcome.status[run] = event["test_run"]["status"]
        case "test_plan":
            outcome.plans[run] = event["test_plan"].get("resource_changes", [])
        case "diagnostic" if event["diagnostic"]["severity"] == "error":
            outcome.messages.append(f"{event['diagnostic']['summary']}\n{event['diagnostic'].get('detail', '')}")
