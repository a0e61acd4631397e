"""The steps of a Dockerfile in a plain folder and a virtual environment, where there is no container engine.

What it cannot show: the base images and what is installed in them, the user, the entry point.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """One instruction, with what its ARGs are by default."""

    instruction: str
    arguments: str


class ReplayError(Exception):
    """A step failed."""


def steps_of(dockerfile: Path) -> list[Step]:
    """The instructions, without comments and with lines that go on joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    values: dict[str, str] = {}
    steps: list[Step] = []
    for line in filter(None, map(str.strip, "\n".join(lines).replace("\\\n", " ").splitlines())):
        instruction, arguments = line.split(maxsplit=1)
        arguments = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], arguments)
        if instruction == "ARG":
            name, _, default = arguments.partition("=")
            values[name] = default
        steps.append(Step(instruction, arguments))
    return steps


def last_stage(steps: list[Step]) -> list[Step]:
    """The steps behind the last FROM."""
    return steps[max(number for number, step in enumerate(steps) if step.instruction == "FROM") + 1 :]


class Replay:
    """An image that is a folder.

    Args:
        root: the folder that stands for the root of the image.
        context: where COPY copies from.
        ignored: which files of the context an ignore file hides.
        venv: the virtual environment that stands for the Python of the image.
        skipped: says of which RUN steps nothing is done.
    """

    def __init__(
        self,
        root: Path,
        context: Path,
        *,
        ignored: Callable[[str], bool],
        venv: Path,
        skipped: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._root, self._context, self._ignored, self._skipped = root, context, ignored, skipped
        self._folder = root
        self.environment = {
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(root),
            **{name: os.environ[name] for name in ("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE") if name in os.environ},
        }
        self.ran: list[str] = []
        self.entry_point = ""

    def play(self, steps: list[Step]) -> None:
        """Does all steps of a stage; ReplayError at the first that fails."""
        for step in steps:
            getattr(self, f"_{step.instruction.lower()}")(step.arguments)

    def path_in(self, path: str) -> Path:
        """Where a path of the image is."""
        return self._root / path.lstrip("/") if path.startswith("/") else self._folder / path

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the Python of the image, in its root."""
        return self._done(["python", *arguments], self._root)

    def _workdir(self, path: str) -> None:
        self._folder = self.path_in(path)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _env(self, setting: str) -> None:
        name, _, value = setting.partition("=")
        self.environment[name] = value

    def _entrypoint(self, command: str) -> None:
        self.entry_point = command

    def _copy(self, arguments: str) -> None:
        *sources, target = shlex.split(arguments)
        if sources[0].startswith("--from="):
            # From another image, which is not here.
            self.path_in(target).parent.mkdir(parents=True, exist_ok=True)
            self.path_in(target).touch(mode=0o755)
            return
        for pattern in sources:
            found = [path for path in sorted(self._context.glob(pattern)) if not self._ignored(self._name(path))]
            if not found:
                raise ReplayError(f"COPY {arguments}: there is no {pattern}")
            for path in found:
                shutil.copy(path, self.path_in(target))

    def _run(self, command: str) -> None:
        if self._skipped(command):
            return
        done = self._done(["sh", "-euc", command], self._folder)
        if done.returncode:
            raise ReplayError(f"RUN {command}: {done.stdout}{done.stderr}")
        self.ran.append(command)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._context).as_posix()

    def _done(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        environment = self.environment
        return subprocess.run(
            command, cwd=folder, env=environment, text=True, capture_output=True, timeout=1200, check=False
        )


def ignored_by(path: Path) -> Callable[[str], bool]:
    """The rule of an ignore file: its last pattern that fits a name decides."""
    patterns = path.read_text().split()

    def ignored(name: str) -> bool:
        verdicts = [not pattern.startswith("!") for pattern in patterns if _fits(name, pattern.removeprefix("!"))]
        return bool(verdicts) and verdicts[-1]

    return ignored


def _fits(name: str, pattern: str) -> bool:
    # * of an ignore file does not cross folders, but what is below a hidden folder is hidden.
    parts = name.split("/")
    return any(
        len(parts[:depth]) == len(pattern.split("/")) and fnmatch.fnmatchcase("/".join(parts[:depth]), pattern)
        for depth in range(1, len(parts) + 1)
    )


def pins_of(lock: Path) -> Iterator[tuple[str, str, int]]:
    """Each package of a lock file, its version, and how many hashes it has."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock.read_text()):
        found = re.match(r"([A-Za-z0-9._-]+)==(\S+)", block)
        if found:
            yield found[1], found[2], block.count("--hash=sha256:")
