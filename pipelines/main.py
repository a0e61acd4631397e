"""The shell around every runnable: exit statuses, the last line on stderr, silence, progress.

A command line ends with status 0 when everything asked for was written; 2 for a bad argument, input or environment,
also when it was met in a worker; 3 when the budget refuses; 130 after Ctrl-C and 143 after SIGTERM, whose clean-up
runs; 1 for anything else. The last line on stderr is then ``error: ...``.

Without ``--verbose`` nothing else gets to stderr from Beam or its workers: their logs and tracebacks quote the
elements that they worked on. For the same reason the text of an exception is shown only if it is one of this
package's, whose messages hold no data.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from apache_beam.options.pipeline_options import PipelineOptions
from tqdm import tqdm

from beam_dp.errors import BeamDpError, ResourceError
from pipelines.options import RunOptions, is_local_path
from pipelines.pools import pools_noted
from pipelines.workers import EarlyEnd, busy_workers_stop, late_workers_stop

Body = Callable[[list[str]], int | None]

_INTERRUPTED = (130, "interrupted")
_TERMINATED = (143, "terminated")
_CRASHED = "a worker process died, e.g. because memory ran out; try fewer workers (--direct_num_workers)"
_REFRESH_SECONDS = 0.5
_PROGRESS_THREAD = "progress"
_WHILE_RUNNING = r"(?: \[while running .*)?"
_OUR_ERROR = re.compile(rf"^\s*(beam_dp(?:\.\w+)+)\.(\w+): (.*?){_WHILE_RUNNING}$", re.MULTILINE)
_SYSTEM_ERROR = re.compile(r"^(\w+): \[Errno (\d+)\]", re.MULTILINE)
_LAST_LINE = re.compile(r"^(\w[\w.]*)(?::.*)?$", re.MULTILINE)
_KNOWN_PACKAGES = ("apache_beam", "grpc", "numpy", "pyarrow")


def run_main(body: Body, argv: Sequence[str] | None = None) -> int:
    """Runs ``body`` and returns the exit status of the command line.

    Args:
        body: gets the arguments; returns a status, or None for 0.
        argv: the arguments without the program's name; None for those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in arguments
    early = EarlyEnd()
    with contextlib.ExitStack() as stack:
        if not verbose:
            if argv is None:
                # Registered last and so run first, before runners end the servers that they started, and say so.
                stack.callback(atexit.register, _silence_for_good)
            stack.enter_context(_silence())
        stack.enter_context(late_workers_stop())
        stack.enter_context(pools_noted())
        stack.enter_context(busy_workers_stop(early))
        try:
            with early.watched(verbose):
                return body(arguments) or 0
        except BaseException as error:
            ended = _ended_early(early)
            if isinstance(error, SystemExit) and ended is None:
                return error.code if isinstance(error.code, int) else int(error.code is not None)
            if verbose and isinstance(error, Exception):
                traceback.print_exc()
            status, message = ended or explain(error)
        sys.stdout.flush()
        print(f"error: {message}", file=sys.stderr, flush=True)
        return status


def _ended_early(early: EarlyEnd) -> tuple[int, str] | None:
    if early.signal is not None:
        return _TERMINATED if early.signal == signal.SIGTERM else _INTERRUPTED
    return (ResourceError.exit_status, _CRASHED) if early.crashed else None


def explain(error: BaseException) -> tuple[int, str]:
    """The exit status and the message for an error that ended a command line; the message holds no data.

    An error of a worker arrives as the text of its traceback inside another exception, from this process, another
    one or another machine; one of ours is recognised there by its class name.
    """
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, BeamDpError):
            return cause.exit_status, re.sub(rf"{_WHILE_RUNNING}$", "", str(cause), flags=re.DOTALL)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno is not None:
            named = f": {cause.filename}" if isinstance(cause.filename, str) else ""
            return ResourceError.exit_status, f"{_strerror(cause.errno)}{named}"
    text = "\n".join(str(cause) for cause in chain)
    ours = [
        (getattr(sys.modules.get(module), name, None), message) for module, name, message in _OUR_ERROR.findall(text)
    ]
    for kind, message in reversed(ours):
        if isinstance(kind, type) and issubclass(kind, BeamDpError):
            return kind.exit_status, message
    for name, number in _SYSTEM_ERROR.findall(text):
        if issubclass(getattr(builtins, name, object), OSError):
            return ResourceError.exit_status, f"{_strerror(int(number))} (in a worker)"
    kind = _innermost_kind(error, text)
    status = ResourceError.exit_status if issubclass(kind, OSError) else 1
    return status, f"{kind.__name__} (unexpected); rerun with --verbose, which may show input data"


def summary(*lines: str) -> None:
    """Prints what was done, for people, to stdout."""
    for line in lines:
        print(line)
    sys.stdout.flush()


@contextlib.contextmanager
def progress(description: str, options: PipelineOptions | None = None, stream: TextIO | None = None) -> Iterator[None]:
    """Shows elapsed time and, for a local output, the number of staged shards, while the body runs.

    Shows nothing where ``stream`` is no terminal.

    Args:
        description: what is being done, e.g. ``privatizing``.
        options: of the pipeline: ``--output`` and ``--run_id`` name the staging folder.
        stream: where to show it; None for stderr.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield
        return
    staging = None if options is None else _local_staging(options.view_as(RunOptions))
    done = threading.Event()
    with tqdm(desc=description, bar_format="{desc} {elapsed}{postfix}", file=stream, leave=False) as bar:

        def watch() -> None:
            while not done.wait(_REFRESH_SECONDS):
                if staging is not None:
                    bar.set_postfix_str(f"{_count_files(staging)} shards staged", refresh=False)
                bar.refresh()

        watcher = threading.Thread(target=watch, name=_PROGRESS_THREAD, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps Beam, its workers and warnings off stderr; what this thread writes to sys.stderr stays.

    Worker processes inherit file descriptor 2 and print the tracebacks of failed bundles to it, whatever the log
    level, so the descriptor itself points nowhere meanwhile. Workers that portable runners call back (LOOPBACK) are
    threads of this process and print theirs to sys.stderr.
    """
    level = logging.root.manager.disable
    stderr = sys.stderr
    saved = os.dup(2)
    with (
        contextlib.ExitStack() as stack,
        warnings.catch_warnings(),
        Path(os.devnull).open("wb") as nowhere,
    ):
        stack.callback(os.close, saved)
        heard = stderr
        if _descriptor(stderr) == 2:
            heard = stack.enter_context(
                open(saved, "w", encoding=stderr.encoding, errors=stderr.errors, buffering=1, closefd=False)
            )
        sys.stderr = cast(TextIO, _OfOneThread(heard))
        stderr.flush()
        os.dup2(nowhere.fileno(), 2)
        logging.disable(logging.CRITICAL)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
            sys.stderr.flush()
            os.dup2(saved, 2)
            sys.stderr = stderr


class _OfOneThread:
    """A text stream that drops what threads write other than the one that made it, and the one of `progress`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._owner = threading.current_thread()

    def write(self, text: str) -> int:
        thread = threading.current_thread()
        return self._stream.write(text) if thread is self._owner or thread.name == _PROGRESS_THREAD else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _silence_for_good() -> None:
    logging.disable(logging.CRITICAL)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _innermost_kind(error: BaseException, text: str) -> type[BaseException]:
    """The class of what failed in a worker, if ``text`` tells it, else that of ``error``.

    A line of the text counts only if it names an exception that exists, so that no line of data is shown.
    """
    for name in reversed(_LAST_LINE.findall(text)):
        module, _, attribute = name.rpartition(".")
        if module and module.split(".", 1)[0] not in _KNOWN_PACKAGES:
            continue
        kind = getattr(sys.modules.get(module) if module else builtins, attribute, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind
    return type(error)


def _strerror(number: int) -> str:
    if number < 0:
        return "a host name is not known"
    reason = os.strerror(number)
    return f"{reason}: free some space" if number in (errno.ENOSPC, errno.EDQUOT) else reason


def _local_staging(run: RunOptions) -> Path | None:
    if not run.output or not is_local_path(run.output):
        return None
    return Path(f"{run.output.removeprefix('file://')}.tmp-{run.run_id}")


def _count_files(folder: Path) -> int:
    try:
        return sum(1 for item in os.scandir(folder) if item.is_file())
    except OSError:
        return 0
