"""The ledger as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_support import (
    DIGEST,
    EVIL,
    Page,
    all_models,
    hundred_laplace,
    pictures,
    record_central,
    record_metric,
    record_open,
    record_unclaimed,
    windowed,
)

from beam_dp.accounting import DiscreteLaplaceLoss, Ledger
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.accounting.shares import Share, Shares
from beam_dp.errors import ArgumentError
from beam_dp.guarantees import LocalGuarantee


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return all_models()


@pytest.fixture(scope="module")
def html(ledger: Ledger) -> str:
    return ledger.report("html")


def _numbers(value: Any) -> Iterator[float]:
    """Every number of a total."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name != "units":
                yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def test_the_page_is_one_document_that_says_which_ledger(ledger: Ledger, html: str) -> None:
    assert html.startswith("<!DOCTYPE html>\n<html lang=")
    page = Page(html)
    for tag in ("html", "head", "body", "main", "h1", "title"):
        assert page.count(tag) == 1
    assert ("meta", {"charset": "utf-8"}) in page.elements
    assert "Privacy ledger" in page.text
    assert f"Plan {ledger.plan_hash}, sealed: the plan is final." in page.text
    assert "7 mechanisms recorded." in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_models_stand_apart(html: str) -> None:
    page = Page(html)
    sections = [dict(a).get("id") for name, a in page.elements if name == "section" and "id" in a]
    assert sections == ["model-central", "model-local", "model-metric", "entries", "assumptions"]
    for said in (
        "No total over all of them: entries protect different privacy units.",
        "Privacy unit: user",
        "Privacy unit: device",
        "Privacy unit: patient",
        "Whether all rows of one device are in the data or not: no result, and no set of results, becomes more than "
        "1.64873 times as likely (e^0.5, rounded up).",
        "If one patient answers differently: no response, and no set of responses, becomes more than 20.086 times as "
        "likely (e^3, rounded up).",
        "no set of outputs becomes more than e^(8 * d) times as likely. At distance 1 that is 2,981.0 times",
        "Promises of different models are never added.",
    ):
        assert said in page.text, said


def test_every_number_of_the_totals_is_there_exactly(ledger: Ledger, html: str) -> None:
    cells = Page(html).cells
    totals = ledger.total()
    found = [number for total in totals.values() for number in _numbers(total)]
    assert len(found) > 30
    for number in found:
        assert any(re.search(rf"(?<![\d.e-]){re.escape(str(number))}(?![\d.e])", cell) for cell in cells), number
    for total in totals.values():
        assert total["note"] in Page(html).text
    assert totals["metric"]["index_digest"] in html


def test_every_entry_is_in_the_table(ledger: Ledger, html: str) -> None:
    cells = Page(html).cells
    for number, entry in enumerate(ledger.entries, start=1):
        at = cells.index(f"{number}. {entry.label}")
        assert cells[at + 1 : at + 4] == [entry.mechanism, entry.guarantee.sentence(), str(entry.max_applications)]


def test_what_is_assumed_is_said_once_with_its_entries(html: str) -> None:
    text = Page(html).text
    assert text.count("One device has rows in at most 3 partitions, and at most 2 in each. (recorded: 6)") == 1
    assert "One user is one person: who is several of them is protected as several. (recorded: 2 to 5)" in text
    assert "One patient gives at most 3 responses. (recorded: 7)" in text
    assert "One user has rows" not in text


def test_the_curve_is_that_of_the_losses() -> None:
    ledger = hundred_laplace()
    html = ledger.report("html")
    page = Page(html)
    total = ledger.total()["central"]
    assert total["basic"]["epsilon"] == pytest.approx(10, abs=2e-9)
    assert total["epsilon"] == pytest.approx(4.69, abs=0.005)
    assert str(total["epsilon"]) in page.cells
    at = page.cells.index("1e-12")
    deltas = page.cells[at : at + 6]
    assert [float(delta) for delta in deltas] == [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
    epsilons = page.cells[at + 7 : at + 13]
    losses = ((DiscreteLaplaceLoss(scale=10 * 2.0**17, sensitivity=2**17), 100),)
    for delta, epsilon in zip(deltas, epsilons, strict=True):
        found = pld_epsilon(losses, float(delta))
        assert found is not None
        # Rounded up, by less than 1e-9.
        assert 0 <= Fraction(epsilon) - Fraction(found) < Fraction(2, 10**9)
    (stated,) = [t for picture in pictures(html) for t in picture.itertext() if "stated total" in t]
    assert stated.endswith(f"epsilon {total['epsilon']}, delta 1e-06")


def test_pictures_are_whole_and_described(html: str) -> None:
    found = pictures(html)
    # Two curves, and the parts of user; one entry has no parts to show.
    assert len(found) == 3
    assert len({picture.get("aria-label") for picture in found}) == 3
    ids = [element.get("id") for picture in found for element in picture.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert Page(html).count("figcaption") == 3


def test_nothing_is_fetched_and_nothing_runs(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name == "href":
                assert str(value).startswith("#")
            assert name not in ("src", "action", "srcset")
    assert set(re.findall(r"https?:[^\"' <]*", html)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_foreign_text_is_text() -> None:
    ledger = Ledger()
    record_central(ledger, EVIL, mechanism=EVIL, privacy_unit=EVIL)
    record_central(ledger, "second", privacy_unit=EVIL, parameters={"bounds": {"partitions": EVIL, "hold": EVIL}})
    record_open(ledger, f"open {EVIL}")
    record_unclaimed(ledger, f"metric {EVIL}", EVIL, mechanism=f"M({EVIL})", metric=EVIL, index_digest=EVIL)
    html = ledger.report("html")
    assert "<script" not in html
    page = Page(html)
    assert page.count("script") == 0
    assert f"1. {EVIL}" in page.cells
    assert f"Privacy unit: {EVIL}" in page.text
    assert any(f"{EVIL}: 0.1" in list(picture.itertext()) for picture in pictures(html))


@settings(max_examples=8, deadline=None)
@given(
    label=st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30).filter(
        str.strip
    ),
    unit=st.text(min_size=1, max_size=9).filter(str.strip),
)
def test_any_text_makes_a_page(label: str, unit: str) -> None:
    ledger = Ledger()
    record_central(ledger, label, privacy_unit=unit, loss=None)
    record_central(ledger, f"{label}2", privacy_unit=unit, loss=None)
    html = ledger.report("html")
    assert html.encode()
    Page(html)
    assert len(pictures(html)) == 2


def test_what_is_not_private_stands_out() -> None:
    ledger = Ledger()
    record_central(ledger, "fine")
    record_open(ledger, "the door")
    page = Page(ledger.report("html"))
    (alarm,) = [attributes for _, attributes in page.elements if attributes.get("role") == "alert"]
    assert alarm["class"] == "alarm"
    assert "NOT PRIVATE No noise protects what these write: the door." in page.text
    assert [attributes.get("class") for tag, attributes in page.elements if tag == "tr"].count("open") == 1
    assert "No total is stated: NOT PRIVATE: a door of the tests (the door)." in page.text
    assert "NOT SEALED: the plan may still change" in page.text


def test_no_alarm_without_a_reason(html: str) -> None:
    assert "alert" not in [attributes.get("role") for _, attributes in Page(html).elements]
    assert "NOT PRIVATE" not in Page(html).text


def test_what_cannot_be_stated_is_said() -> None:
    page = Page(windowed(None).report("html"))
    assert "No total is stated: Hourly/selection declares no maximum of applications to one privacy unit." in page.text
    assert page.count("svg") == 0
    ledger = Ledger()
    record_unclaimed(ledger, "step", "no theorem is about it")
    assert "No total is stated: no theorem is about it (step)." in Page(ledger.report("html")).text


def test_a_total_without_curve_says_so() -> None:
    ledger = Ledger()
    record_central(ledger, "often", max_applications=2**40)
    page = Page(ledger.report("html"))
    assert "No curve of epsilon over delta: at none has it a finite epsilon by PLD." in page.text
    assert page.count("svg") == 0


def test_several_indexes_have_words_apart_and_documents_together() -> None:
    ledger = Ledger()
    for digest in (DIGEST, DIGEST[::-1]):
        for label in ("a", "b"):
            record_metric(ledger, f"{label} {digest[:4]}", basis="computed", delta=1e-9, index_digest=digest)
    html = ledger.report("html")
    page = Page(html)
    assert page.text.count("Words, euclidean metric of index") == 2
    assert "Whole documents, over all indexes" in page.text
    worst = [page.cells[at + 1] for at, cell in enumerate(page.cells) if cell == "worst_case_per_document"]
    assert worst == ["8.0", "8.0", "16.0"]
    assert len(pictures(html)) == 2


def test_shares_are_shown_and_drawn() -> None:
    ledger = Ledger(shares=Shares(epsilon=2, parts={"first": 1, "second": 3}, model="local"))
    ledger.draw(Share("second"), "step", "local")
    for name in ("a", "b"):
        ledger.record(
            label=f"step/{name}",
            mechanism="R()",
            guarantee=LocalGuarantee(epsilon=0.5, basis="proved", privacy_unit="user"),
            max_applications=1,
            fingerprint="f",
            share=Share("second"),
        )
    html = ledger.report("html")
    page = Page(html)
    assert "Shares of the local model" in page.text
    at = page.cells.index("first")
    assert page.cells[at : at + 4] == ["first", "0.5", "0.0", "nobody drew it"]
    assert page.cells[at + 4 : at + 8] == ["second", "1.5", "0.0", "step"]
    assert page.cells[at + 8 : at + 11] == ["declared total", "2.0", "0.0"]
    (picture,) = pictures(html)
    assert {"together: 1", "second: 1"} <= set(picture.itertext())


def test_an_empty_ledger_has_a_page() -> None:
    page = Page(Ledger().report("html"))
    assert "0 mechanisms recorded." in page.text
    assert "No mechanism of this ledger is in the central or the local or the metric model." in page.text
    assert page.count("table") == 0


def test_the_same_ledger_gives_the_same_page(ledger: Ledger, html: str) -> None:
    assert ledger.report("html") == html
    assert Ledger.from_json(ledger.to_json()).report("html") == html


def test_only_known_formats(ledger: Ledger) -> None:
    assert ledger.report() == ledger.report("text")
    assert ledger.report("json") == ledger.to_json()
    with pytest.raises(ArgumentError, match="format must be one of text, json, html, not 'pdf'"):
        ledger.report("pdf")  # type: ignore[arg-type]
