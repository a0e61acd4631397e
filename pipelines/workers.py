"""Two faults of Beam's embedded runner with worker processes, which would make a run wait for ever.

Both concern ``--engine=local-parallel`` alone, where `FnApiRunner` starts its workers as processes of this machine.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

from apache_beam.runners.portability.fn_api_runner import worker_handlers

_RUNNER_THREAD = "run_worker"


class WorkerCrash:
    """Notices that a worker process has died, e.g. because the system ran out of memory.

    The runner waits for the answer of a dead worker: the thread that waits for the process raises, and nobody looks.
    """

    def __init__(self) -> None:
        self.happened = False

    @contextlib.contextmanager
    def watched(self, verbose: bool) -> Iterator[None]:
        """Interrupts the main thread on a crash; tracebacks of other threads are shown with ``verbose`` only."""
        before = threading.excepthook
        main = threading.main_thread().ident

        def hook(args: threading.ExceptHookArgs) -> None:
            if verbose:
                before(args)
            if args.thread is not None and args.thread.name == _RUNNER_THREAD and not self.happened:
                self.happened = True
                if main is not None:
                    signal.pthread_kill(main, signal.SIGINT)

        threading.excepthook = hook
        try:
            yield
        finally:
            threading.excepthook = before


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
