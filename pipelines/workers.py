"""What ends a run before its time: signals, and faults of Beam's embedded runner that would make it wait for ever.

The faults concern ``--engine=local-parallel`` alone, where `FnApiRunner` starts its workers as processes of this
machine.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from apache_beam.runners.portability.fn_api_runner import worker_handlers

_RUNNER_THREAD = "run_worker"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS = 1.0
_NOTICE_SECONDS = 0.3
_POLL_SECONDS = 0.02
_LATE_SECONDS = 20.0
_STOP = b"\0"


class EarlyEnd:
    """Ends the main thread's work, by a KeyboardInterrupt there, on a signal or on the death of a worker process.

    The runner waits for the answer of a dead worker: the thread that waits for the process raises, and nobody looks.

    Attributes:
        signal: SIGINT or SIGTERM, whichever came first; None while there was none. Beam turns a KeyboardInterrupt in
            a DoFn into a RuntimeError, so that this alone tells.
        crashed: whether a worker process died that was not ended by such a signal.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.crashed = False
        self._over = False
        self._died = False
        self._stopping = False
        self._raised_at = -math.inf

    @contextlib.contextmanager
    def watched(self, verbose: bool) -> Iterator[None]:
        """Watches meanwhile; tracebacks of other threads are shown with ``verbose`` only.

        Leaves everything as it was, unless there was an early end: a process that is about to exit dies of the next
        signal and says nothing more of its threads. Off the main thread, where Python allows no signal handler, it
        ends nothing.
        """
        excepthook = threading.excepthook
        handlers = self._handle_signals()
        main = threading.main_thread().ident

        def hook(args: threading.ExceptHookArgs) -> None:
            if verbose and not self._over:
                excepthook(args)
            if args.thread is None or args.thread.name != _RUNNER_THREAD or not handlers or main is None:
                return
            if self._stopping:
                return
            self._died = True
            # A terminal sends Ctrl-C to workers too: one that died of it may be noticed before the signal itself.
            deadline = time.monotonic() + _GRACE_SECONDS
            while time.monotonic() < deadline and not self._ended and not self._stopping:
                time.sleep(_POLL_SECONDS)
            if self._ended:
                return
            self.crashed = True
            if not self._stopping:
                signal.pthread_kill(main, next(iter(handlers)))

        threading.excepthook = hook
        try:
            with self._main_thread_woken() if handlers else contextlib.nullcontext():
                yield
        finally:
            self._over = True
            early = self.crashed or self.signal is not None
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if early else handler)
            if not early:
                threading.excepthook = excepthook

    def workers_stop(self) -> None:
        """The run has failed and takes its workers with it: from now on their deaths mean nothing.

        What made it fail may have been such a death, of which the runner hears on another way.
        """
        deadline = time.monotonic() + _NOTICE_SECONDS
        while time.monotonic() < deadline and not self._died:
            time.sleep(_POLL_SECONDS)
        self._stopping = True

    @property
    def _ended(self) -> bool:
        return self._over or self.crashed or self.signal is not None

    def _handle_signals(self) -> dict[signal.Signals, Any]:
        """Sets the handler; returns the earlier ones. A signal that is ignored, as by nohup, stays so."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        handlers = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in handlers:
            signal.signal(number, self._interrupt)
        return handlers

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        # One signal may come more than once, from a terminal and a parent process: the clean-up goes on meanwhile.
        if self._over or self._raised_lately():
            return
        self._raised_at = time.monotonic()
        first = not self.crashed and self.signal is None
        if first:
            self.signal = signal.Signals(number)
        if not (first and self._stopping):
            raise KeyboardInterrupt

    def _raised_lately(self) -> bool:
        return time.monotonic() - self._raised_at < _GRACE_SECONDS

    @contextlib.contextmanager
    def _main_thread_woken(self) -> Iterator[None]:
        """Sends a signal that the system gave to another thread on to the main thread.

        Python runs handlers in the main thread, and there not before a wait for a lock is over, unless the signal
        itself breaks it; a runner makes the main thread wait for the whole run.
        """
        main = threading.get_ident()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def watch() -> None:
            while _STOP not in (numbers := os.read(reader, 1)):
                time.sleep(_POLL_SECONDS)
                if numbers[0] in _SIGNALS and not self._over and not self._raised_lately():
                    signal.pthread_kill(main, numbers[0])

        watcher = threading.Thread(target=watch, name="signals", daemon=True)
        watcher.start()
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            self._over = True
            signal.set_wakeup_fd(before)
            os.set_blocking(writer, True)
            os.write(writer, _STOP)
            watcher.join()
            os.close(reader)
            os.close(writer)


@contextlib.contextmanager
def late_workers_stop() -> Iterator[None]:
    """Lets a run end that fails before all of its worker processes have connected.

    When a run is over, Beam tells only those workers to stop that have connected by then, and waits for the exit of
    all. A worker that connects later serves for ever. Here a connection that nobody uses yet is left with the one
    message that ends it.
    """
    connection_class: Any = getattr(worker_handlers, "ControlConnection", None)
    servicer: Any = getattr(worker_handlers, "BeamFnControlServicer", None)
    if connection_class is None or servicer is None:
        yield
        return
    original = connection_class.close

    def close(connection: Any) -> None:
        if connection._state == servicer.UNSTARTED_STATE:
            with contextlib.suppress(queue.Empty):
                while True:
                    connection._push_queue.get_nowait()
            connection.push(servicer._DONE_MARKER)
        original(connection)

    connection_class.close = close
    try:
        yield
    finally:
        connection_class.close = original


@contextlib.contextmanager
def busy_workers_stop(early: EarlyEnd) -> Iterator[None]:
    """Lets a run that fails, or is told to end, end now, and not when its other workers are done with their bundles.

    Beam waits for the exit of all workers, and a worker exits when its bundles are over: in a day, or never where a
    host leaves it waiting. Without the server that they talk to, workers exit at once.

    Args:
        early: is told that workers die of this.
    """
    manager_class: Any = getattr(worker_handlers, "WorkerHandlerManager", None)
    if manager_class is None:
        yield
        return
    original = manager_class.close_all

    def close_all(manager: Any) -> None:
        server = getattr(manager, "_grpc_server", None)
        # Set while an exception passes a finally clause, as it does here.
        if server is not None and sys.exc_info()[0] is not None:
            early.workers_stop()
            handlers = list(itertools.chain.from_iterable(manager._cached_handlers.values()))
            for handler in handlers:
                _end_late_worker(handler)
            server._DEFAULT_SHUTDOWN_TIMEOUT_SECS = _GRACE_SECONDS
            server.close()
            # Beam's own close gives up at the first connection that is broken by now, and waits for nobody then.
            for handler in handlers:
                thread = getattr(handler, "worker_thread", None)
                if thread is not None:
                    thread.join()
        original(manager)

    manager_class.close_all = close_all
    try:
        yield
    finally:
        manager_class.close_all = original


def _end_late_worker(handler: Any) -> None:
    """Tells a worker that has yet to connect to end as it does: it would look for a closed server for a minute."""
    connection: Any = getattr(handler, "control_conn", None)
    thread = getattr(handler, "worker_thread", None)
    unstarted = getattr(getattr(worker_handlers, "BeamFnControlServicer", None), "UNSTARTED_STATE", None)
    if thread is not None and unstarted is not None and getattr(connection, "_state", None) == unstarted:
        connection.close()
        thread.join(_LATE_SECONDS)
