"""A ledger in plain words."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_support import (
    DIGEST,
    EVIL,
    all_models,
    hundred_laplace,
    record_central,
    record_metric,
    record_open,
    record_unclaimed,
    windowed,
)

from beam_dp.accounting import Ledger
from beam_dp.accounting.report.explain import explain
from beam_dp.guarantees import LocalGuarantee, MetricGuarantee


def _flat(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(ledger: Ledger) -> dict[str, str]:
    """Each paragraph on one line, by its first line."""
    found = {}
    for paragraph in explain(ledger).split("\n\n"):
        found[paragraph.splitlines()[0]] = _flat(paragraph)
    return found


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    return _paragraphs(all_models(keep=("id",)))


def test_it_says_which_plan_and_whether_it_is_final() -> None:
    ledger = hundred_laplace()
    assert f"plan {ledger.plan_hash}" in explain(ledger).splitlines()
    assert "100 mechanisms recorded. The plan is sealed: nothing can be added to it." in explain(ledger)
    open_ledger = Ledger()
    record_central(open_ledger, "one")
    assert "1 mechanism recorded. NOT SEALED: the plan may still change" in explain(open_ledger)


def test_every_entry_has_a_paragraph(said: dict[str, str]) -> None:
    labels = [entry.label for entry in all_models().entries]
    for number, label in enumerate(labels, start=1):
        paragraph = said[f"{number}. {label}"]
        for part in ("Released:", "Protected:", "Promised:", "Rests on:", "Open to see, whatever epsilon is:"):
            assert part in paragraph


def test_a_text_entry(said: dict[str, str]) -> None:
    text = said["1. Tickets"]
    for sentence in (
        "Texts whose words are each replaced by a draw of MultivariateLaplace(epsilon=8.0).",
        "Not a person: what several documents of one person tell together adds up.",
        "becomes more than e^(8 * d) times as likely. At distance 1 that is 2,981.0 times, rounded up",
        "Up to 16 words of one document are drawn: together epsilon 128, per unit of the largest distance over its "
        "positions.",
        "Proved, in the documentation of the mechanism.",
        "vectors and noise are floating-point numbers",
        "How many words of each text are in the public vocabulary of the index, up to 16 (oov=drop).",
        "How many texts there are, their order, timestamps and windows.",
        "No column is kept beside it.",
        f"Index: {all_models().total()['metric']['index_digest']}",
    ):
        assert sentence in text, sentence
    assert "Assumed" not in text


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"keep_columns": ["id", "day"]}, "The columns id, day: they pass unchanged."),
        ({}, "Columns that the step was told to keep, if any: they pass unchanged, and the ledger does not list them."),
    ],
    ids=["listed", "a ledger that is older"],
)
def test_columns_that_pass_beside_the_texts(parameters: dict[str, Any], sentence: str) -> None:
    ledger = Ledger()
    ledger.record(
        label="Tickets",
        mechanism="MultivariateLaplace(epsilon=8.0)",
        guarantee=MetricGuarantee(epsilon=8.0, basis="proved", metric="euclidean", index_digest="ab" * 32),
        max_applications=4,
        fingerprint="x",
        parameters=parameters,
    )
    assert sentence in _paragraphs(ledger)["1. Tickets"]


def test_unknown_words_that_are_hidden() -> None:
    text = _paragraphs(all_models(oov="random"))["1. Tickets"]
    assert (
        "How many words each text has, up to 16 (oov=random); that a word was unknown is hidden as one word is." in text
    )


def test_a_table_entry(said: dict[str, str]) -> None:
    text = said["2. Items/selection"]
    assert re.search(
        r"Whether all rows of one user are in the data or not: no result, and no set of results, becomes more than "
        r"[0-9.]+ times as likely \(e\^[0-9.]+, rounded up\), plus a probability of 5e-07 \(at most 1 in 2,000,000\)\.",
        text,
    )
    assert "It is added, not multiplied" in text
    assert "In totals each application takes a further delta of 5e-07 (at most 1 in 2,000,000) for composition." in text
    assert "has rows in at most" not in text
    assert "bounds.partitions 50" in text


def test_declared_bounds_are_assumed(said: dict[str, str]) -> None:
    text = said["6. Devices/sum_value"]
    assert (
        "Assumed, and enforced by nothing: One device has rows in at most 3 partitions, and at most 2 in each." in text
    )


def test_an_answer(said: dict[str, str]) -> None:
    text = said["7. Survey"]
    for sentence in (
        "One patient: which answer was given.",
        "If one patient answers differently: no response, and no set of responses, becomes more than 2.7183 times as "
        "likely (e^1, rounded up).",
        "One patient is met up to 3 times: together epsilon 3, by adding up.",
        "Assumed, and enforced by nothing: One patient gives at most 3 responses.",
        "How many responses there are, their order, timestamps and windows. The columns id: they pass unchanged.",
    ):
        assert sentence in text, sentence


@pytest.mark.parametrize("max_windows", [3, None])
def test_windows(max_windows: int | None) -> None:
    text = _paragraphs(windowed(max_windows))["2. Hourly/count"]
    if max_windows is None:
        assert "How many meet one user was not declared, so nothing is stated for all of them." in text
        assert "is met at most" not in text
    else:
        assert "One user is met up to 3 times: together epsilon 1.5, by adding up." in text
        assert "One user is met at most 3 times: on fixed windows, what max_windows declares." in text


def test_windows_that_are_enforced_are_not_assumed() -> None:
    ledger = Ledger()
    record_central(
        ledger, "count", max_applications=3, parameters={"windows": {"at_most": 3, "hold": "by enforcement"}}
    )
    text = _paragraphs(ledger)["1. count"]
    assert "is met at most" not in text
    assert "What one user changes is bounded as the mechanism needs it: the ledger does not say how." in text


def test_totals_of_each_model(said: dict[str, str]) -> None:
    total = all_models().total()
    user, device = total["central"]["groups"]
    central = said["All of the central model together"]
    assert user["composition"] == "pld"
    for sentence in (
        f"One user: Epsilon {user['epsilon']}, delta 1e-06 (at most 1 in 1,000,000).",
        "Composed by privacy loss distributions (PLD); adding up gives "
        f"epsilon {user['basic']['epsilon']}, delta {user['basic']['delta']}.",
        *(
            f"For any {group['units']} of unit user together: epsilon {group['epsilon']}, delta {group['delta']}."
            for group in user["group_privacy"]
        ),
        "One device: Epsilon 0.5, delta 0.",
        "if the same people stand behind two of them, the sum of both holds for those people",
    ):
        assert sentence in central, sentence
    assert device["epsilon"] == 0.5
    assert "more than 20.086 times as likely (e^3, rounded up)" in said["All of the local model together"]
    metric = said["All of the metric model together"]
    assert "a factor so large that it limits nothing in practice" in metric
    assert "This is not user-level privacy: the documents of one person add up" in metric
    assert any("Their numbers are never added." in paragraph for paragraph in said.values())


def test_there_is_a_place_to_sign() -> None:
    lines = explain(hundred_laplace()).splitlines()
    assert [line.split(":")[0] for line in lines if line.endswith("____")] == ["Name", "Date", "Signature"]


def test_the_hundred() -> None:
    central = _paragraphs(hundred_laplace())["All of the central model together"]
    found = re.search(r"Epsilon ([0-9.]+), delta 1e-06", central)
    assert found is not None
    assert float(found[1]) == pytest.approx(4.69, abs=0.005)
    assert "adding up gives epsilon 10" in central


def test_what_is_not_private_says_so_first() -> None:
    ledger = Ledger()
    record_central(ledger, "fine")
    record_open(ledger, "the door")
    text = explain(ledger)
    assert text.index("NOT PRIVATE") < text.index("1. fine")
    assert "No noise protects what these write: the door." in text
    door = _paragraphs(ledger)["2. the door"]
    assert "Nothing protects what this step writes." in door
    assert "times as likely" not in door


def test_what_is_not_claimed_says_why() -> None:
    ledger = Ledger()
    record_unclaimed(ledger, "step", "no theorem is about it")
    text = _paragraphs(ledger)
    assert "Nothing finite is promised. Rests on: No claim is made: no theorem is about it." in text["1. step"]
    assert "No total is stated: no theorem is about it (step)." in text["All of the metric model together"]


def test_what_the_ledger_does_not_say_is_assumed() -> None:
    ledger = Ledger()
    record_metric(ledger, "own", delta=0.001, basis="computed")
    record_metric(ledger, "unbounded", max_applications=None)
    text = _paragraphs(ledger)
    assert "Of one document at most 8 words are drawn: the ledger does not say what enforces it." in text["1. own"]
    assert "Computed from the exact law that the mechanism draws from." in text["1. own"]
    assert "together epsilon 2 and delta 0.008, per unit of the largest distance" in text["1. own"]
    assert "How many words of one document are drawn was not declared" in text["2. unbounded"]
    assert "unbounded declares no maximum of applications" in text["All of the metric model together"]


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.floats(1e-9, 30),
    delta=st.one_of(st.just(0.0), st.floats(1e-12, 0.001)),
    uses=st.integers(2, 500),
    model=st.sampled_from(["central", "local", "metric"]),
)
def test_what_several_uses_spend_is_not_rounded_down(epsilon: float, delta: float, uses: int, model: str) -> None:
    ledger = Ledger()
    if model == "central":
        record_central(ledger, "step", epsilon=epsilon, delta=delta, max_applications=uses, loss=None)
    elif model == "metric":
        record_metric(ledger, "step", epsilon=epsilon, delta=delta, max_applications=uses)
    else:
        claim = LocalGuarantee(epsilon=epsilon, delta=delta, basis="proved", privacy_unit="user")
        ledger.record(label="step", mechanism="M()", guarantee=claim, max_applications=uses, fingerprint="f")
    found = re.search(r"together epsilon (\S+?)(?: and delta (\S+?))?,", _paragraphs(ledger)["1. step"])
    assert found is not None
    # A float that is shown may be a little more than its digits; what they stand for is not less than the sum.
    assert Fraction(float(found[1])) >= uses * Fraction(epsilon)
    assert Fraction(float(found[2] or 0)) >= uses * Fraction(delta)
    assert float(found[1]) <= uses * epsilon * (1 + 1e-9) + 1e-9


@settings(max_examples=30, deadline=None)
@given(label=st.text(min_size=1, max_size=200).filter(str.strip))
def test_the_text_fits_and_holds_no_control_characters(label: str) -> None:
    ledger = Ledger()
    record_central(ledger, "x", mechanism=f"M({label})", parameters={"x": {label: label}})
    record_unclaimed(ledger, "y", label, index_digest=label)
    text = explain(ledger)
    assert max(map(len, text.splitlines())) <= 80
    assert all(character == "\n" or character.isprintable() for character in text)


def test_foreign_words_cannot_forge_a_line() -> None:
    ledger = Ledger()
    record_central(ledger, "x", mechanism=f"x\n\nAll of the central model together\n{EVIL}")
    assert explain(ledger).splitlines().count("All of the central model together") == 1
    assert DIGEST not in explain(ledger)
