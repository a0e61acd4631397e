"""Usage records against the plan, without a pipeline."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_dp.accounting import Grant, Ledger
from beam_dp.accounting.usage import reconcile
from beam_dp.errors import GrantError
from beam_dp.guarantees import CentralGuarantee

LABELS = ("Items/selection", "Items/count", "Answers")


def planned() -> tuple[Ledger, dict[str, Grant]]:
    ledger = Ledger()
    grants = {
        label: ledger.record(
            label=label,
            mechanism=f"Example({label!r})",
            guarantee=CentralGuarantee(epsilon=0.5, basis="proved", privacy_unit="user"),
            max_applications=2,
            fingerprint=f"runs {label}",
        )
        for label in LABELS
    }
    ledger.seal()
    return ledger, grants


LEDGER, GRANTS = planned()
PLAN = LEDGER.to_dict()


def used(of: str = "Answers", node: str | None = "n1", piece: int | None = None, **changed: Any) -> str:
    record = GRANTS[of].usage(f"runs {of}", node=node, piece=piece)
    return json.dumps(json.loads(record) | changed)


@given(st.permutations([used(label, f"node of {label}", piece) for label in LABELS for piece in (0, 1, 2)]))
def test_records_of_every_entry_in_any_order_are_what_was_planned(records: list[str]) -> None:
    reconcile(PLAN, records, LABELS)


def test_many_bundles_of_one_step_are_one_use() -> None:
    reconcile(PLAN, [used()] * 50, ["Answers"])


def test_a_step_without_input_shows_its_plan_and_that_is_enough() -> None:
    reconcile(PLAN, [used(node=None)], ["Answers"])


def test_entries_of_other_branches_need_not_be_there() -> None:
    reconcile(PLAN, [used()], ["Answers"])
    reconcile(PLAN, [], [])


@pytest.mark.parametrize(
    ("records", "label", "reason"),
    [
        ([], "Answers", "left no usage record"),
        ([used("Items/count")], "Answers", "left no usage record"),
        ([used(label="Forged")], "Forged", "without an entry in the plan"),
        ([used(plan_hash="0" * 64)], "Answers", "by another plan"),
        ([used(fingerprint="0" * 64)], "Answers", "ran another mechanism"),
        ([used(max_applications=3)], "Answers", "another bound of applications"),
        ([used(max_applications=None)], "Answers", "another bound of applications"),
        ([used(node="n1"), used(node="n2")], "Answers", "by two steps"),
        ([used(piece=4), used(piece=4)], "Answers", "twice for the same part"),
        ([used(), used(node=None, plan_hash="1" * 64)], "Answers", "by another plan"),
    ],
    ids=[
        "nothing",
        "only another",
        "no entry",
        "another plan",
        "another mechanism",
        "more applications",
        "no bound",
        "two steps",
        "a part twice",
        "a worker with another plan",
    ],
)
def test_what_was_not_planned_is_refused_by_name(records: list[str], label: str, reason: str) -> None:
    with pytest.raises(GrantError, match=rf"^{label} .*{reason}.*nothing was published$"):
        reconcile(PLAN, records, ["Answers"])


def test_a_plan_whose_entries_changed_is_refused() -> None:
    changed = json.loads(json.dumps(PLAN))
    changed["entries"][0]["epsilon"] = 0.1
    with pytest.raises(GrantError, match="changed after it was sealed"):
        reconcile(changed, [used()], ["Answers"])


@given(st.lists(st.sampled_from([used(label, f"node of {label}") for label in LABELS]), max_size=6))
def test_records_say_nothing_but_what_the_plan_says(records: list[str]) -> None:
    known = {text for entry in PLAN["entries"] for text in (entry["label"], entry["fingerprint"])}
    for record in map(json.loads, records):
        assert set(record) == {"label", "fingerprint", "plan_hash", "max_applications", "node", "piece"}
        assert {record["label"], record["fingerprint"]} <= known
        assert record["plan_hash"] == LEDGER.plan_hash
