"""Processes that may die: forks of one that has imported the budget store already, since imports take seconds.

As a module it is imported by tests; as a script it is that process. It takes requests as lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


class Ended(NamedTuple):
    """A process that came to its end: exit status (negative: the signal that killed it) and what it printed."""

    status: int
    printed: str


class Forks:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, count: int = 1) -> list[Ended]:
        """Runs a script in ``count`` new processes at once; they find the arguments in ``sys.argv[1:]``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([script, arguments, count]) + "\n")
        self._process.stdin.flush()
        return [Ended(*ended) for ended in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        self._process.communicate()


def _fork(script: str, arguments: list[str]) -> tuple[int, int]:
    """A process that runs a script: its id and where to read what it prints."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        os.dup2(writer, sys.stdout.fileno())
        sys.argv[1:] = arguments
        exec(script, {"__name__": "__main__"})
        sys.stdout.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _ended(pid: int, reader: int) -> Ended:
    with open(reader, encoding="utf-8") as stream:
        printed = stream.read()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), printed)


def main() -> None:
    import memory_log  # noqa: F401 - what the scripts need, and the budget store with it

    import beam_dp.accounting.budget.sql  # noqa: F401

    for line in sys.stdin:
        script, arguments, count = json.loads(line)
        processes = [_fork(script, arguments) for _ in range(count)]
        print(json.dumps([_ended(*process) for process in processes]), flush=True)
    os._exit(0)  # there is nothing to tidy up, and libraries take seconds to


if __name__ == "__main__":
    main()
