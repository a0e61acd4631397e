"""What several runs promised to whom."""

from __future__ import annotations

import csv
import io
import json
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_support import DIGEST, EVIL, Page, all_models, record_central, record_metric, record_open

from beam_dp.accounting import Ledger
from beam_dp.accounting.budget.charges import charges_of
from beam_dp.accounting.report.runs import report_runs
from beam_dp.errors import ArgumentError


def _counts(*, epsilon: float = 0.1, unit: str = "user", delta: float = 1e-7) -> Ledger:
    ledger = Ledger()
    record_central(ledger, "count", epsilon=epsilon, delta=delta, privacy_unit=unit, loss=None)
    ledger.seal()
    return ledger


def _texts(digest: str = DIGEST) -> Ledger:
    ledger = Ledger()
    record_metric(ledger, "texts", index_digest=digest)
    ledger.seal()
    return ledger


RUNS = [
    ("january", _counts()),
    ("february", _counts()),
    ("march", _counts(epsilon=0.25)),
    ("devices", _counts(unit="device")),
    ("texts", _texts()),
    ("texts again", _texts()),
    ("other texts", _texts(DIGEST[::-1])),
]
SUMS = [
    ("central", "user", None, None, 0.45, 3e-7),
    ("central", "device", None, None, 0.1, 1e-7),
    ("metric", "word", "euclidean", DIGEST, 0.5, 0.0),
    ("metric", "word", "euclidean", DIGEST[::-1], 0.25, 0.0),
    # 0.25 for each of 8 words at the largest distance, 2, three times.
    ("metric", "document", None, None, 12.0, 0.0),
]


def test_json_has_each_run_and_the_sums() -> None:
    found = json.loads(report_runs(RUNS, "json"))
    assert found["schema_version"] == 1
    assert [run["name"] for run in found["runs"]] == [name for name, _ in RUNS]
    for run, (_, ledger) in zip(found["runs"], RUNS, strict=True):
        assert run["plan_hash"] == ledger.plan_hash
        assert run["totals"] == [charge.to_json() for charge in charges_of(ledger.to_dict())]
    keys = ("model", "privacy_unit", "metric", "index_digest", "epsilon", "delta")
    assert [tuple(line[key] for key in keys) for line in found["sums"]] == SUMS
    assert found["sums"][0]["runs"] == ["january", "february", "march"]
    assert "basic composition" in found["note"]


def test_tsv_is_a_table_of_values() -> None:
    rows = list(csv.DictReader(io.StringIO(report_runs(RUNS, "tsv")), delimiter="\t"))
    keys = ("model", "privacy_unit", "metric", "index_digest")
    sums = [
        (*(row[key] or None for key in keys), float(row["epsilon"]), float(row["delta"]))
        for row in rows
        if row["kind"] == "sum"
    ]
    assert sums == SUMS
    assert [row["run"] for row in rows[:4]] == ["january", "february", "march", ""]
    assert [row["epsilon"] for row in rows[:4]] == ["0.1", "0.1", "0.25", "0.45"]


def test_text_is_for_people() -> None:
    text = report_runs(RUNS)
    assert max(map(len, text.splitlines())) <= 100
    lines = [" ".join(line.split()) for line in text.splitlines()]
    at = lines.index("central model: user")
    assert lines[at + 1] == "run epsilon delta"
    assert lines[at + 3 : at + 7] == [
        "january 0.1 1e-07",
        "february 0.1 1e-07",
        "march 0.25 1e-07",
        "together (3 runs) 0.45 3e-07",
    ]
    flat = " ".join(lines)
    assert "becomes more than 1.56832 times as likely (e^0.45, rounded up), plus a probability of 3e-07" in flat
    assert "metric model: document, over all indexes" in lines
    assert "no set of outputs becomes more than e^(0.5 * d) times as likely" in flat
    assert "Different models, privacy units and indexes are not" in flat
    for _, ledger in RUNS:
        assert f"plan {ledger.plan_hash}" in lines


def test_html_is_one_page() -> None:
    html = report_runs([*RUNS, (EVIL, _counts(unit=EVIL))], "html")
    page = Page(html)
    assert "<script" not in html
    assert page.count("h1") == 1
    assert "What was promised to whom" in page.text
    at = page.cells.index("january")
    assert page.cells[at : at + 3] == ["january", "0.1", "1e-07"]
    at = page.cells.index("together (3 runs)")
    assert page.cells[at : at + 3] == ["together (3 runs)", "0.45", "3e-07"]
    assert f"central model: {EVIL}" in page.text
    for _, ledger in RUNS:
        assert ledger.plan_hash in page.cells
    assert not re.findall(r"https?:", html)


def test_one_run_is_its_ledger() -> None:
    ledger = all_models()
    runs = [("only", ledger)]
    assert report_runs(runs) == ledger.report()
    assert report_runs(runs, "json") == ledger.to_json()
    assert report_runs(runs, "html") == ledger.report("html")
    rows = list(csv.DictReader(io.StringIO(report_runs(runs, "tsv")), delimiter="\t"))
    assert [row["run"] for row in rows] == ["only", ""] * 5


@pytest.mark.parametrize("format", ["text", "tsv", "json", "html"])
def test_what_is_not_stated_in_one_run_is_not_stated_for_all(format: str) -> None:
    endless = Ledger()
    record_central(endless, "often", max_applications=None)
    said = report_runs([("january", _counts()), ("endless", endless)], format)  # type: ignore[arg-type]
    reason = "often declares no maximum of applications to one privacy unit, in endless"
    assert reason in " ".join(said.split())
    if format == "json":
        (total,) = json.loads(said)["sums"]
        assert (total["epsilon"], total["delta"], total["reason"]) == (None, None, reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"delta": 0.3}, "the deltas add up to 1 or more"), ({"epsilon": 1e308}, "the sum exceeds the largest float")],
)
def test_sums_that_promise_nothing(changes: dict[str, float], reason: str) -> None:
    runs = [(str(number), _counts(**changes)) for number in range(4)]
    (total,) = json.loads(report_runs(runs, "json"))["sums"]
    assert (total["epsilon"], total["delta"], total["reason"]) == (None, None, reason)
    assert f"No sum is stated: {reason}." in report_runs(runs)


def test_what_is_not_private_comes_first() -> None:
    ledger = Ledger()
    record_open(ledger, "the door")
    runs = [("good", _counts()), ("bad", ledger)]
    lines = report_runs(runs).splitlines()
    assert lines[2:4] == ["NOT PRIVATE", "  no noise protects what these write: the door in bad"]
    assert "  bad: 1 recorded, NOT SEALED" in lines
    page = Page(report_runs(runs, "html"))
    assert "No noise protects what these write: the door in bad." in page.text
    assert [attributes.get("class") for tag, attributes in page.elements if tag == "tr"].count("open") == 1
    assert json.loads(report_runs(runs, "json"))["runs"][1]["not_private"] == ["the door"]


def test_runs_without_mechanisms() -> None:
    runs = [("a", Ledger()), ("b", Ledger())]
    assert "no mechanism was recorded" in report_runs(runs)
    assert "No mechanism was recorded." in Page(report_runs(runs, "html")).text
    assert json.loads(report_runs(runs, "json"))["sums"] == []


@pytest.mark.parametrize(
    ("runs", "format", "named"),
    [
        ([], "text", "ledgers must be one or more"),
        ([("a", Ledger()), ("a", Ledger())], "text", "ledgers has 'a' twice: it would count twice"),
        ([("a", Ledger())], "pdf", "format must be one of text, tsv, json, html"),
    ],
    ids=["nothing", "twice", "format"],
)
def test_what_cannot_be_right_is_refused(runs: list[tuple[str, Ledger]], format: str, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        report_runs(runs, format)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    claims=st.lists(st.tuples(st.floats(1e-9, 50), st.floats(0, 0.01)), min_size=2, max_size=6),
    name=st.text(max_size=120),
)
def test_sums_are_not_below_what_is_added(claims: list[tuple[float, float]], name: str) -> None:
    runs = [
        (f"{number}{name}", _counts(epsilon=epsilon, delta=delta)) for number, (epsilon, delta) in enumerate(claims)
    ]
    (total,) = json.loads(report_runs(runs, "json"))["sums"]
    stated = [run["totals"][0] for run in json.loads(report_runs(runs, "json"))["runs"]]
    for what in ("epsilon", "delta"):
        # The digits that people read, as a budget counts them.
        assert Fraction(repr(total[what])) >= sum(Fraction(repr(charge[what])) for charge in stated)
    assert total["epsilon"] <= sum(epsilon for epsilon, _ in claims) * (1 + 1e-12) + 1e-8
    assert max(map(len, report_runs(runs).splitlines())) <= 100
