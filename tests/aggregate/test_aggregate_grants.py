"""What travels to the workers: it pickles, it has its grants, and its randomness is fresh."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pytest
from exact import declared, private
from randomgen import AESCounter

from beam_dp.aggregate import (
    Aggregate,
    Bounds,
    Mean,
    PrivateSelection,
    Sum,
)
from beam_dp.errors import GrantError
from beam_dp.randomness import SecureSource


def do_fns(transform: Aggregate) -> list[beam.DoFn]:
    """The DoFns of this package in the graph of a transform."""
    _, rows = declared()
    rows | transform
    found: list[beam.DoFn] = []

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: Any) -> None:
            fn = getattr(node.transform, "fn", None)
            if isinstance(fn, beam.DoFn) and type(fn).__module__.startswith("beam_dp"):
                found.append(fn)

    rows.pipeline.visit(Visitor())
    assert len(found) >= 4
    return found


def test_transforms_and_their_do_fns_pickle() -> None:
    for transform in (private(metrics=[Mean("v", 0, 1)]), private(partitions=["a"], noise="gaussian")):
        again = pickle.loads(pickle.dumps(transform))
        values = [{name: item.value for name, item in t.display_data().items()} for t in (transform, again)]
        assert values[0] == values[1]
        for do_fn in do_fns(transform):
            assert type(pickle.loads(pickle.dumps(do_fn))) is type(do_fn)


def release_of(transform: Aggregate) -> Any:
    (release,) = [fn for fn in do_fns(transform) if type(fn).__name__ == "_Release"]
    return release


def with_noise(plan: Any, **changes: Any) -> Any:
    first, *rest = plan.releases
    return replace(plan, releases=(replace(first, **changes), *rest))


def halved(noise: Any) -> Any:
    return replace(noise, scale=noise.scale / 2)


TAMPERING: dict[str, Callable[[Any], Any]] = {
    "noise halved": lambda plan: with_noise(plan, noise=halved(plan.releases[0].noise)),
    "coarser steps": lambda plan: with_noise(plan, shift=1),
    "another statistic": lambda plan: with_noise(plan, statistic=Sum("v", 0, 1).statistics["sum"]),
    "more partitions": lambda plan: replace(plan, bounds=Bounds(3, 3)),
    "more rows": lambda plan: replace(plan, bounds=Bounds(2, 4)),
    "another unit": lambda plan: replace(plan, privacy_unit="session"),
    "a release twice": lambda plan: replace(plan, releases=plan.releases * 2),
    "no release": lambda plan: replace(plan, releases=()),
}


@pytest.mark.parametrize("partitions", [PrivateSelection(), ["a"]], ids=["private", "public"])
@pytest.mark.parametrize("how", TAMPERING)
def test_a_plan_that_was_changed_after_its_entries_is_refused_in_the_worker(how: str, partitions: Any) -> None:
    release = release_of(private(partitions=partitions))
    copy.copy(release).setup()
    release._plan = TAMPERING[how](release._plan)
    with pytest.raises(GrantError):
        release.setup()


def test_a_selection_that_was_changed_is_refused_in_the_worker() -> None:
    release = release_of(private())
    selection = release._plan.selection
    for changed in (replace(selection, rule=replace(selection.rule, delta=0.5)), None):
        release._plan = replace(release._plan, selection=changed)
        with pytest.raises(GrantError):
            release.setup()


def test_noise_comes_from_the_secure_source_with_a_new_key_for_each_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[int] = []
    rekey = SecureSource.rekey

    def counted(source: SecureSource) -> None:
        keys.append(0)
        rekey(source)

    monkeypatch.setattr(SecureSource, "rekey", counted)
    for do_fn in do_fns(private()):
        if type(do_fn).__name__ not in {"_Bound", "_Release"}:
            continue
        do_fn.setup()
        before = len(keys)
        for bundle in range(3):
            do_fn.start_bundle()
            assert len(keys) == before + bundle + 1
            assert type(do_fn._source.generator.bit_generator) is AESCounter  # type: ignore[attr-defined]
