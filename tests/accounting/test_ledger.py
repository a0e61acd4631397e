"""The ledger in one process: recording, sealing, JSON, and its pickling handles."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.accounting import (
    DiscreteGaussianLoss,
    DiscreteLaplaceLoss,
    Entry,
    Grant,
    Ledger,
    ParametersLoss,
    Plan,
    PrivacyLoss,
    require_grant,
)
from beam_dp.errors import ArgumentError, BeamDpError, GrantError, InputError, LedgerSealedError
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee

DIGEST = "0123456789abcdef" * 4
ROOT = Path(__file__).parents[2]


def _metric(epsilon: float = 12.0, delta: float = 0.0) -> MetricGuarantee:
    return MetricGuarantee(basis="proved", epsilon=epsilon, delta=delta, metric="euclidean", index_digest=DIGEST)


def _fields(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "label": "privatize",
        "mechanism": "MultivariateLaplace(epsilon=12.0)",
        "guarantee": _metric(),
        "max_applications": 64,
        "diameter": 10.0,
        "fingerprint": "MultivariateLaplace(epsilon=12.0)/64",
        "parameters": {"oov": "drop", "keep_columns": ["id"]},
    }
    return fields | changes


def test_an_entry_says_what_the_contract_lists() -> None:
    ledger = Ledger()
    ledger.record(**_fields())
    document = json.loads(ledger.to_json())
    assert document["schema_version"] == 1
    assert document["plan_hash"] == ledger.plan_hash
    (entry,) = document["entries"]
    assert entry["label"] == "privatize"
    assert entry["model"] == "metric"
    assert entry["epsilon"] == 12.0
    assert entry["delta"] == 0.0
    assert entry["privacy_unit"] == "word"
    assert entry["max_applications"] == 64
    assert entry["metric"] == "euclidean"
    assert entry["index_digest"] == DIGEST
    assert entry["guarantee"] == "metric epsilon 12 (proved) per word and unit of euclidean distance"
    assert entry["parameters"] == {"oov": "drop", "keep_columns": ["id"]}
    assert document["totals"]["metric"]["epsilon_per_document"] == 768.0
    assert document["totals"]["central"] is None
    assert document["totals"]["local"] is None


def test_entries_of_every_model_have_the_same_keys() -> None:
    ledger = Ledger()
    ledger.record(**_fields(label="m"))
    ledger.record(
        **_fields(label="l", guarantee=LocalGuarantee(basis="proved", epsilon=1.0, privacy_unit="user"), diameter=None)
    )
    ledger.record(
        **_fields(
            label="c", guarantee=CentralGuarantee(basis="proved", epsilon=1.0, privacy_unit="user"), diameter=None
        )
    )
    entries = json.loads(ledger.to_json())["entries"]
    assert {tuple(sorted(entry)) for entry in entries} == {tuple(sorted(entries[0]))}
    assert [entry["privacy_unit"] for entry in entries] == ["word", "user", "user"]


def test_a_label_is_used_once() -> None:
    ledger = Ledger()
    ledger.record(**_fields())
    with pytest.raises(ArgumentError, match="label 'privatize' is already in this ledger"):
        ledger.record(**_fields(fingerprint="another"))
    assert len(ledger.entries) == 1


def test_nothing_is_added_to_a_sealed_plan() -> None:
    ledger = Ledger()
    ledger.record(**_fields())
    ledger.seal()
    before = ledger.plan_hash
    ledger.seal()
    with pytest.raises(LedgerSealedError, match="add transforms before the pipeline runs"):
        ledger.record(**_fields(label="late"))
    assert ledger.plan_hash == before
    assert [entry.label for entry in ledger.entries] == ["privatize"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label": " "}, "label"),
        ({"label": None}, "label"),
        ({"mechanism": ""}, "mechanism"),
        ({"fingerprint": ""}, "fingerprint"),
        ({"guarantee": "epsilon 1"}, "guarantee"),
        ({"guarantee": Guarantee(basis="proved", epsilon=1.0)}, "guarantee"),
        ({"max_applications": 0}, "max_applications"),
        ({"max_applications": 1.5}, "max_applications"),
        ({"diameter": -1.0}, "diameter"),
        ({"diameter": float("inf")}, "diameter"),
        ({"diameter": True}, "diameter"),
        ({"guarantee": LocalGuarantee(basis="proved", epsilon=1.0, privacy_unit="user")}, "diameter"),
        ({"loss": ParametersLoss(1.0)}, "loss goes with a central guarantee only"),
        ({"loss": {"kind": "parameters", "epsilon": 1.0}}, "loss must be"),
        (
            {
                "loss": ParametersLoss(1.0),
                "guarantee": LocalGuarantee(basis="proved", epsilon=1.0, privacy_unit="user"),
                "diameter": None,
            },
            "loss goes with a central guarantee only",
        ),
        ({"parameters": {"x": float("nan")}}, "parameters"),
        ({"parameters": {"x": object()}}, "parameters"),
    ],
)
def test_an_entry_that_cannot_be_right_is_refused(change: dict[str, Any], named: str) -> None:
    ledger = Ledger()
    with pytest.raises(ArgumentError, match=named):
        ledger.record(**_fields(**change))
    assert ledger.entries == ()


def test_parameters_are_copied() -> None:
    ledger = Ledger()
    parameters: dict[str, Any] = {"columns": ["a"]}
    ledger.record(**_fields(parameters=parameters))
    before = ledger.plan_hash
    parameters["columns"].append("b")
    assert ledger.plan_hash == before


def test_equal_plans_have_equal_hashes_and_other_plans_do_not() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"label": "x"},
        {"mechanism": "Other()"},
        {"guarantee": _metric(13.0)},
        {"max_applications": 65},
        {"diameter": 10.5},
        {"fingerprint": "x"},
        {"parameters": {}},
    ]
    hashes = []
    for change in changes:
        first, second = Ledger(), Ledger()
        first.record(**_fields(**change))
        second.record(**_fields(**change))
        assert first.plan_hash == second.plan_hash
        hashes.append(first.plan_hash)
    assert len(set(hashes)) == len(changes)


_names = st.text(min_size=1, max_size=12).filter(lambda text: bool(text.strip()) and text.isprintable())
_epsilons = st.one_of(st.none(), st.floats(min_value=1e-6, max_value=1e6))


@st.composite
def _guarantees(draw: st.DrawFn) -> Guarantee:
    epsilon = draw(_epsilons)
    claim: dict[str, Any] = (
        {"epsilon": None, "basis": "none", "reason": draw(_names)}
        if epsilon is None
        else {
            "epsilon": epsilon,
            "delta": draw(st.floats(0, 0.5)),
            "basis": draw(st.sampled_from(["proved", "computed"])),
        }
    )
    model = draw(st.sampled_from([MetricGuarantee, LocalGuarantee, CentralGuarantee]))
    own = (
        {"metric": "euclidean", "index_digest": DIGEST} if model is MetricGuarantee else {"privacy_unit": draw(_names)}
    )
    return model(**claim, **own)


@settings(max_examples=60, deadline=None)
@given(
    guarantees=st.lists(_guarantees(), max_size=4),
    uses=st.one_of(st.none(), st.integers(1, 1000)),
    sealed=st.booleans(),
)
def test_json_comes_back_equal(guarantees: list[Guarantee], uses: int | None, sealed: bool) -> None:
    ledger = Ledger()
    for number, guarantee in enumerate(guarantees):
        diameter = 3.0 if isinstance(guarantee, MetricGuarantee) else None
        ledger.record(**_fields(label=f"step {number}", guarantee=guarantee, max_applications=uses, diameter=diameter))
    if sealed:
        ledger.seal()
    text = ledger.to_json()
    again = Ledger.from_json(text)
    assert again.entries == ledger.entries
    assert again.sealed == sealed
    assert again.to_json() == text


CENTRAL = CentralGuarantee(basis="proved", epsilon=1.0, delta=1e-9, privacy_unit="user")


@pytest.mark.parametrize(
    "loss",
    [
        DiscreteLaplaceLoss(scale=8 * 2.0**17, sensitivity=2**17, times=8),
        DiscreteGaussianLoss(sigma=1e6, sensitivity=2**17),
        ParametersLoss(0.5, 1e-10, times=2),
    ],
)
def test_a_loss_is_part_of_the_plan_and_comes_back(loss: PrivacyLoss) -> None:
    ledger, bare = Ledger(), Ledger()
    ledger.record(**_fields(guarantee=CENTRAL, diameter=None, loss=loss))
    bare.record(**_fields(guarantee=CENTRAL, diameter=None))
    assert json.loads(ledger.to_json())["entries"][0]["loss"] == loss.to_json()
    assert json.loads(bare.to_json())["entries"][0]["loss"] is None
    assert ledger.plan_hash != bare.plan_hash
    again = Ledger.from_json(ledger.to_json())
    assert again.entries[0].loss == loss
    assert again.to_json() == ledger.to_json()


def test_a_ledger_from_before_losses_is_read() -> None:
    ledger = Ledger()
    ledger.record(**_fields())
    document = json.loads(ledger.to_json())
    for later in ("loss", "composition_delta", "share"):
        del document["entries"][0][later]
    # The hash of then: of entries that had no such keys.
    text = json.dumps(document["entries"], sort_keys=True, separators=(",", ":"))
    assert document["plan_hash"] == hashlib.sha256(text.encode()).hexdigest()
    assert Ledger.from_json(json.dumps(document)).entries == ledger.entries


def test_a_damaged_loss_is_refused() -> None:
    ledger = Ledger()
    ledger.record(**_fields(guarantee=CENTRAL, diameter=None, loss=ParametersLoss(0.5)))
    document = json.loads(ledger.to_json())
    damaged: list[Any] = [{"kind": "parameters"}, {"kind": "parameters", "epsilon": -1.0}, [], 3]
    for loss in damaged:
        document["entries"][0]["loss"] = loss
        with pytest.raises(InputError, match="incomplete or holds"):
            Ledger.from_json(json.dumps(document))
    document["entries"][0]["loss"] = {"kind": "parameters", "epsilon": 0.25}
    with pytest.raises(InputError, match="changed after it was written"):
        Ledger.from_json(json.dumps(document))
    document["entries"][0]["loss"] = None
    with pytest.raises(InputError, match="changed after it was written"):
        Ledger.from_json(json.dumps(document))


def _tampered(change: Any) -> str:
    ledger = Ledger()
    ledger.record(**_fields())
    document = json.loads(ledger.to_json())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no json", "not JSON"),
        ("[]", "not a ledger"),
        ("{}", "not a ledger"),
        (_tampered(lambda d: d.update(schema_version=2)), "schema_version"),
        (_tampered(lambda d: d["entries"][0].update(epsilon=1.0)), "changed after it was written"),
        (_tampered(lambda d: d["entries"].append(d["entries"][0])), "changed after it was written"),
        (_tampered(lambda d: d["entries"].clear()), "changed after it was written"),
        (_tampered(lambda d: d["entries"][0].pop("guarantee") and d["entries"][0].pop("model")), "incomplete"),
        (_tampered(lambda d: d["entries"][0].update(model="global")), "incomplete or holds"),
        (_tampered(lambda d: d["entries"][0].update(epsilon="12")), "incomplete or holds"),
        (_tampered(lambda d: d["entries"].insert(0, 3)), "incomplete or holds"),
    ],
)
def test_a_damaged_ledger_is_refused(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Ledger.from_json(text)


def test_a_grant_lets_its_own_mechanism_run_and_no_other() -> None:
    ledger = Ledger()
    grant = ledger.record(**_fields())
    for held in (grant, pickle.loads(pickle.dumps(grant)), copy.deepcopy(grant)):
        held.check("MultivariateLaplace(epsilon=12.0)/64")
        with pytest.raises(GrantError, match="privatize would run another mechanism, index or bound"):
            held.check("MultivariateLaplace(epsilon=120.0)/64")


def test_a_grant_without_entry_is_refused() -> None:
    ledger = Ledger()
    ledger.record(**_fields())
    with pytest.raises(GrantError, match="forged has no entry in the ledger"):
        Grant(ledger, "forged").check("MultivariateLaplace(epsilon=12.0)/64")
    with pytest.raises(GrantError, match="has no grant"):
        require_grant(None)
    with pytest.raises(GrantError, match="has no grant"):
        require_grant(ledger.plan())


def test_a_handle_pickled_again_carries_the_plan_of_that_moment() -> None:
    ledger = Ledger()
    early = pickle.loads(pickle.dumps(ledger.record(**_fields(label="first"))))
    ledger.record(**_fields(label="second"))
    ledger.seal()
    assert _labels_elsewhere(early, ledger.plan()) == [(["first", "second"], True)] * 2


def _labels_elsewhere(*handles: Plan) -> list[tuple[list[str], bool]]:
    """What another process reads from the handles, also after pickling them once more there."""
    script = (
        "import json, pickle, sys\n"
        "handles = [pickle.loads(handle) for handle in pickle.load(sys.stdin.buffer)]\n"
        "json.dump([pickle.loads(pickle.dumps(handle))._known() for handle in handles], sys.stdout)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        # Each by itself, so that none brings another's ledger along.
        input=pickle.dumps([pickle.dumps(handle) for handle in handles]),
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    documents = json.loads(run.stdout)
    return [([entry["label"] for entry in known["entries"]], known["sealed"]) for known in documents]


def test_a_handle_keeps_its_ledger_alive() -> None:
    ledger = Ledger()
    grant = pickle.loads(pickle.dumps(ledger.record(**_fields(label="first"))))
    ledger.record(**_fields(label="second"))
    del ledger
    gc.collect()
    assert [entry["label"] for entry in grant._known()["entries"]] == ["first", "second"]


def test_a_ledger_is_not_pickled() -> None:
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(BeamDpError, match="cannot be pickled"):
            act(Ledger())


def test_entries_are_values() -> None:
    ledger = Ledger()
    ledger.record(**_fields())
    (entry,) = ledger.entries
    assert Entry.from_json(entry.to_json()) == entry
    with pytest.raises(AttributeError):
        entry.label = "other"  # type: ignore[misc]
    assert repr(ledger) == "Ledger(1 entries, open)"


@pytest.mark.parametrize("label", ["two\nlines", "\x1b[31m", "a\ud800b", "a\u2028b"], ids=ascii)
def test_a_label_is_one_line_of_text(label: str) -> None:
    with pytest.raises(ArgumentError, match="label must be without control characters"):
        Ledger().record(**_fields(label=label))
