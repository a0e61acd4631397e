"""What workers report of their grants, and the comparison of it with the plan before anything is published.

A usage record says which entry a step drew under, what exactly it ran (fingerprint), by which plan, and how often it
meets a privacy unit at most. All of it is known before the first row is read, so a record tells nothing about the data;
how many records there are depends on bundles alone, and none of them leaves the pipeline.

`reconcile` finds what no single worker can see: an entry that no step drew under, two steps that drew under one entry,
a part of the output that was drawn twice (for instance because a runner let two attempts of a bundle be seen), and
workers that ran another plan than the one that was sealed and charged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_dp.accounting.entries import canonical_json, plan_hash_of
from beam_dp.errors import GrantError


def usage_record(
    *,
    label: str,
    fingerprint: str,
    plan_hash: str,
    max_applications: int | None,
    node: str | None,
    piece: int | None,
) -> str:
    """One record as JSON; see `beam_dp.accounting.grants.Grant.usage`."""
    return canonical_json(
        {
            "label": label,
            "fingerprint": fingerprint,
            "plan_hash": plan_hash,
            "max_applications": max_applications,
            "node": node,
            "piece": piece,
        }
    )


def reconcile(plan: Mapping[str, Any], records: Iterable[str], labels: Sequence[str]) -> None:
    """Returns if the records are what the plan allows, and every entry of ``labels`` left one.

    Args:
        plan: `Ledger.to_dict` of the sealed plan.
        records: of all workers, in any order.
        labels: the entries whose steps are upstream.

    Raises:
        GrantError: they differ; names the entry.
    """
    require_unchanged(plan)
    entries = {entry["label"]: entry for entry in plan["entries"]}
    nodes: dict[str, set[str]] = {}
    pieces: set[tuple[str, int]] = set()
    for text in records:
        record = json.loads(text)
        label = record["label"]
        _require_planned(entries.get(label), record, plan["plan_hash"])
        drawn = nodes.setdefault(label, set())
        if record["node"] is None:
            continue
        drawn.add(record["node"])
        if len(drawn) > 1:
            raise _refused(label, "was drawn by two steps, but its ledger entry counts one")
        if record["piece"] is not None:
            if (label, record["piece"]) in pieces:
                raise _refused(label, "was drawn twice for the same part of the output, but its entry counts once")
            pieces.add((label, record["piece"]))
    for label in labels:
        if label not in nodes:
            raise _refused(label, "left no usage record, so nobody knows under which plan it drew")


def require_unchanged(plan: Mapping[str, Any]) -> None:
    """Returns if the entries of a plan are those that it was sealed with.

    Raises:
        GrantError: they are not.
    """
    if plan["plan_hash"] != plan_hash_of(plan["entries"], plan.get("shares", ())):
        raise GrantError("this plan was changed after it was sealed: construct the pipeline anew")


def _require_planned(entry: Mapping[str, Any] | None, record: Mapping[str, Any], plan_hash: str) -> None:
    label = record["label"]
    if entry is None:
        raise _refused(label, "was drawn without an entry in the plan")
    if record["plan_hash"] != plan_hash:
        raise _refused(label, "was drawn by another plan than the one that was sealed")
    if record["fingerprint"] != entry["fingerprint"]:
        raise _refused(label, "ran another mechanism, index or bound than its ledger entry says")
    if record["max_applications"] != entry["max_applications"]:
        raise _refused(label, "was drawn under another bound of applications than its ledger entry says")


def _refused(label: str, what: str) -> GrantError:
    return GrantError(f"{label} {what}; nothing was published")
