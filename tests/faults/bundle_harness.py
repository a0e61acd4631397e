"""Bundles run as a worker runs them, killed where a test wants it, and run again as a runner would.

An attempt unpickles the steps of a fused stage with Beam's pickler, sets them up and runs one bundle through Beam's own
`DoFnRunner`: setup, start_bundle, process, finish_bundle, teardown. It is killed just before one of its deliveries, at
a yield in ``process`` or in ``finish_bundle``, or after the last, when the bundle is over and the runner has not heard
of it. A killed attempt gets no further call, not even teardown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.internal import pickler
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.common import DoFnRunner, Receiver
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.sideinputs import SideInputMap
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

_kept: dict[str, list[Any]] = {}


class KilledError(BaseException):
    """Stands for the end of the worker's process."""


@dataclass
class Attempt:
    """What one attempt delivered before it ended.

    Attributes:
        killed: whether it was ended by force.
        delivered: how many deliveries there were, between its steps and out of the last.
        main: main outputs of the last step.
        tagged: other outputs of all steps, by tag.
        drawn: what the first step gave to the second, or out.
    """

    killed: bool = False
    delivered: int = 0
    main: list[Any] = field(default_factory=list)
    tagged: dict[str, list[Any]] = field(default_factory=dict)
    drawn: list[Any] = field(default_factory=list)


class _Deliver(Receiver):
    def __init__(self, attempt: Attempt, kill_at: int | None, take: Callable[[WindowedValue], None]) -> None:
        self._attempt, self._kill_at, self._take = attempt, kill_at, take

    def receive(self, windowed_value: WindowedValue) -> None:
        if self._attempt.delivered == self._kill_at:
            raise KilledError
        self._attempt.delivered += 1
        self._take(windowed_value)


class Stage:
    """Steps that a runner fuses: the main output of each goes to the next, in one process.

    Args:
        nodes: the steps, in their order, of a pipeline that was charged.
        side_inputs: elements of the side inputs of the first step.
    """

    def __init__(self, nodes: Sequence[AppliedPTransform], side_inputs: Sequence[Sequence[Any]] = ()) -> None:
        self._steps = [(pickler.dumps(node.transform.fn), node.transform) for node in nodes]
        self._side_inputs = [[GlobalWindows.windowed_value(value) for value in values] for values in side_inputs]

    def attempt(self, elements: Sequence[Any], kill_at: int | None = None) -> Attempt:
        """One attempt at a bundle of elements in the global window.

        Args:
            elements: of the bundle.
            kill_at: how many deliveries there are before the kill; None for none.
        """
        attempt = Attempt()
        try:
            self._run(attempt, elements, kill_at)
        except KilledError:
            attempt.killed = True
        return attempt

    def _run(self, attempt: Attempt, elements: Sequence[Any], kill_at: int | None) -> None:
        fns = [pickler.loads(pickled) for pickled, _ in self._steps]
        runners: list[DoFnRunner] = []
        take = _into(attempt.main)
        for number in reversed(range(len(fns))):
            if not number:
                take = _also(take, attempt.drawn)
            runners.insert(0, self._runner(number, fns[number], attempt, kill_at, take))
            take = runners[0].process
        for runner in runners:
            runner.setup()
        for runner in reversed(runners):
            runner.start()
        for element in elements:
            runners[0].process(GlobalWindows.windowed_value(element))
        for runner in runners:
            runner.finish()
        if attempt.delivered == kill_at:
            raise KilledError
        for runner in runners:
            runner.teardown()

    def _runner(
        self, number: int, fn: Any, attempt: Attempt, kill_at: int | None, take: Callable[[WindowedValue], None]
    ) -> DoFnRunner:
        transform = self._steps[number][1]
        receivers: dict[str | None, Receiver] = _Tagged(
            lambda tag: _Deliver(attempt, kill_at, _into(attempt.tagged.setdefault(tag, [])))
        )
        receivers[None] = _Deliver(attempt, kill_at, take)
        sides = [] if number else zip(transform.side_inputs, self._side_inputs, strict=True)
        maps = [SideInputMap(type(side), side._view_options(), values) for side, values in sides]
        return DoFnRunner(
            fn, transform.args, transform.kwargs, maps, Windowing(GlobalWindows()), tagged_receivers=receivers
        )

    def retried(self, elements: Sequence[Any]) -> Iterator[tuple[Attempt, Attempt]]:
        """For each moment to be killed at: the attempt that was killed there, and the one after it, which was not."""
        deliveries = self.attempt(elements).delivered
        for kill_at in range(deliveries + 1):
            killed = self.attempt(elements, kill_at)
            assert killed.killed and killed.delivered == kill_at
            yield killed, self.attempt(elements)


class _Tagged(dict):
    """Receivers by tag, made when they are first asked for."""

    def __init__(self, make: Callable[[str], Receiver]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, tag: str) -> Receiver:
        self[tag] = self._make(tag)
        return self[tag]


def _into(values: list[Any]) -> Callable[[WindowedValue], None]:
    def append(output: WindowedValue) -> None:
        values.append(output.value)

    return append


def _also(take: Callable[[WindowedValue], None], drawn: list[Any]) -> Callable[[WindowedValue], None]:
    def both(output: WindowedValue) -> None:
        drawn.append(output.value)
        take(output)

    return both


def steps_of(pipeline: beam.Pipeline, kind: type[beam.DoFn]) -> list[AppliedPTransform]:
    """The steps of a pipeline that run a DoFn of this kind, in their order."""
    found: list[AppliedPTransform] = []

    class Visitor(PipelineVisitor):
        def visit_transform(self, node: AppliedPTransform) -> None:
            if isinstance(node.transform, beam.ParDo) and isinstance(node.transform.fn, kind):
                found.append(node)

    pipeline.visit(Visitor())
    return found


def inputs_of(pipeline: beam.Pipeline, node: AppliedPTransform) -> tuple[list[Any], list[list[Any]]]:
    """Runs a pipeline, which gives the elements of the input and of the side inputs of one of its steps."""
    _kept.clear()
    pcolls = [node.inputs[0], *(side.pvalue for side in node.transform.side_inputs)]
    for number, pcoll in enumerate(pcolls):
        _ = pcoll | f"Keep{number}" >> beam.Map(_keep, f"{number}")
    pipeline.run().wait_until_finish()
    elements, *sides = [_kept.get(f"{number}", []) for number in range(len(pcolls))]
    return elements, sides


def _keep(element: Any, name: str) -> None:
    # An iterable of grouped values can be read once more only as a list.
    grouped = isinstance(element, tuple) and len(element) == 2 and not isinstance(element[1], (bytes, str))
    _kept.setdefault(name, []).append((element[0], list(element[1])) if grouped else element)
