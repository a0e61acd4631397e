"""Bundles that are killed at each of their yields and run again: one draw is published, and counted as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_cases import CASES, Output, built, bundle_of, rows_in
from bundle_harness import Stage, steps_of
from fault_oracle import CANARY, RUN_ID, holds_canary

from beam_dp.accounting.drawing import USAGE, DrawingDoFn
from beam_dp.accounting.usage import reconcile
from beam_dp.errors import GrantError
from beam_dp.io import rows as rows_module

pytestmark = pytest.mark.fault


def test_every_step_that_draws_is_here() -> None:
    def leaves(kind: type) -> set[type]:
        below = kind.__subclasses__()
        return set().union(*map(leaves, below)) if below else {kind}

    ours = {kind for kind in leaves(DrawingDoFn) if kind.__module__.startswith("beam_dp.")}
    found = {type(steps_of(built(case)[0], DrawingDoFn)[0].transform.fn) for case in CASES.values()}
    assert found == ours


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_kept_of_a_retried_bundle_is_one_whole_fresh_draw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that rows come out of ``process`` as well as of ``finish_bundle``.
    monkeypatch.setattr(rows_module, "_MAX_BUFFERED_ROWS", 4 if name == "text rows" else 42)
    case = CASES[name]
    elements, sides = bundle_of(case)
    pipeline, _ = built(case)
    pipeline.charge()
    (node,) = steps_of(pipeline, DrawingDoFn)
    plan = pipeline.ledger.to_dict()
    compared = 0
    for killed, kept in Stage([node], sides).retried(elements):
        rows, lost = rows_in(kept.main), rows_in(killed.main)
        assert len(rows) == case.rows
        assert not any(CANARY in str(row) for row in (*rows, *lost))
        if len(lost) >= case.telling:
            compared += 1
            assert lost != rows[: len(lost)]
        reconcile(plan, kept.tagged[USAGE], [entry["label"] for entry in plan["entries"]])
        assert not any(CANARY in record for record in (*kept.tagged[USAGE], *killed.tagged.get(USAGE, [])))
        if name in ("releases", "choices") and killed.tagged.get(USAGE):
            with pytest.raises(GrantError, match="drawn twice for the same part"):
                reconcile(plan, killed.tagged[USAGE] + kept.tagged[USAGE], [])
    assert compared


@pytest.mark.parametrize("name", ["text batches", "response batches", "releases"])
def test_nothing_of_an_abandoned_attempt_is_published(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    elements, sides = bundle_of(case)
    kills = staged_by_killed = 0
    killed = None
    while killed is None or killed.killed:
        output = Output(tmp_path / f"{kills}", case)
        # A runner fuses them, but for the aggregate's, where it settles on one draw first.
        if case.behind:
            drawn = Stage([output.drawing], sides).attempt(elements)
            stage, bundle, records = Stage([output.staging]), [batch for _, batch in drawn.main], drawn.tagged[USAGE]
        else:
            stage, bundle, records = Stage([output.drawing, output.staging]), elements, None
        killed = stage.attempt(bundle, kills)
        staging = output.folder / f"out.tmp-{RUN_ID}"
        staged_by_killed += staging.is_dir() and bool(list(staging.iterdir()))
        kept = stage.attempt(bundle)
        output.check_charged_once("running")
        assert holds_canary(output.folder) == []
        publishing = output.publish(kept, kept.tagged[USAGE] if records is None else records)
        rows = rows_in(kept.drawn if records is None else bundle)
        assert len(rows) == case.rows
        output.check(rows)
        # The publish itself, killed when it was done, and run again.
        group = output.group(kept, kept.tagged[USAGE] if records is None else records)
        for _, again in publishing.retried([group]):
            assert again.main == [f"{output.prefix}.manifest.json"]
        output.check(rows)
        kills += 1
    assert staged_by_killed >= 2
