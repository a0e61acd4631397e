"""Ledgers for the tests of reports, made by real transforms on pipelines that do not run, and what a page says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows

from beam_dp import (
    Aggregate,
    Bounds,
    Budget,
    Count,
    DPCombinePerKey,
    LaplaceSum,
    Ledger,
    Mean,
    MultivariateLaplace,
    PrivatizeText,
    RandomizedResponse,
)
from beam_dp.accounting import DiscreteLaplaceLoss, Entry
from beam_dp.accounting.composition import NOT_PRIVATE
from beam_dp.guarantees import CentralGuarantee, MetricGuarantee

DIGEST = "0123456789abcdef" * 4
LAPLACE = DiscreteLaplaceLoss(scale=10 * 2.0**17, sensitivity=2**17)  # ε = 0.1
EVIL = '<script>alert(\'x\')</script> & "quotes" id="a" url(#b) $x$'
VOID = frozenset({"meta"})


def all_models(*, oov: str = "drop", keep: tuple[str, ...] = ()) -> Ledger:
    """Text, aggregates of two privacy units, and randomised response; sealed."""
    ledger = Ledger()
    p = ledger.pipeline()
    rows = p | "rows" >> beam.Create([{"user": 1, "item": "tea", "price": 3.0, "smokes": "no", "text": "play jazz"}])
    rows | "Tickets" >> PrivatizeText(MultivariateLaplace(epsilon=8), max_words=16, oov=oov)  # type: ignore[arg-type]
    rows | "Items" >> Aggregate(
        by="item",
        privacy_unit="user",
        bounds=Bounds(partitions=50, rows_per_partition=1),
        metrics=[Count(), Mean("price", 0, 10)],
        budget=Budget(epsilon=1, delta=1e-6, composition="pld"),
    )
    pairs = p | "pairs" >> beam.Create([("a", 1)])
    pairs | "Devices" >> DPCombinePerKey(
        LaplaceSum(0, 100),
        bounds=Bounds(partitions=3, rows_per_partition=2),
        budget=Budget(0.5),
        public_keys=["a", "b"],
        privacy_unit="device",
    )
    rows | "Survey" >> RandomizedResponse(
        column="smokes",
        categories=["no", "yes"],
        epsilon=1,
        privacy_unit="patient",
        max_responses=3,
        keep_columns=keep,
    )
    ledger.seal()
    return ledger


def windowed(max_windows: int | None) -> Ledger:
    """A count on fixed windows."""
    ledger = Ledger()
    rows = ledger.pipeline() | beam.Create([{"user": 1, "item": "tea"}]) | beam.WindowInto(FixedWindows(60))
    rows | "Hourly" >> Aggregate(
        by="item",
        privacy_unit="user",
        bounds=Bounds(partitions=1, rows_per_partition=1),
        metrics=[Count()],
        budget=Budget(epsilon=1, delta=1e-6),
        max_windows=max_windows,
    )
    return ledger


def central_entry(**changes: Any) -> Entry:
    """One use of discrete Laplace noise, ε = 0.1, unless ``changes`` say something else."""
    own = {"epsilon": 0.1, "delta": 0.0, "privacy_unit": "user"}
    claim = own | {name: changes.pop(name) for name in own if name in changes}
    fields: dict[str, Any] = {
        "label": "count",
        "mechanism": "DiscreteLaplace(scale=1310720.0)",
        "max_applications": 1,
        "loss": LAPLACE,
        "fingerprint": "f",
    }
    return Entry(guarantee=CentralGuarantee(basis="proved", **claim), **(fields | changes))


def record_central(ledger: Ledger, label: str, **changes: Any) -> None:
    """Records `central_entry`."""
    entry = central_entry(label=label, **changes)
    names = ("mechanism", "guarantee", "max_applications", "loss", "composition_delta", "fingerprint", "parameters")
    ledger.record(label=label, **{name: getattr(entry, name) for name in names})


def record_metric(ledger: Ledger, label: str, **changes: Any) -> None:
    """One text mechanism of epsilon 0.25 on documents of up to 8 words, unless ``changes`` say something else."""
    claim: dict[str, Any] = {"epsilon": 0.25, "basis": "proved", "metric": "euclidean", "index_digest": DIGEST}
    own = (*claim, "delta", "reason")
    claim |= {name: changes.pop(name) for name in own if name in changes}
    fields: dict[str, Any] = {"mechanism": "M()", "max_applications": 8, "diameter": 2.0, "fingerprint": "f"}
    ledger.record(label=label, guarantee=MetricGuarantee(**claim), **(fields | changes))


def record_unclaimed(ledger: Ledger, label: str, reason: str, **changes: Any) -> None:
    """One text mechanism for which nothing finite is claimed."""
    record_metric(ledger, label, epsilon=None, basis="none", reason=reason, **changes)


def record_open(ledger: Ledger, label: str) -> None:
    """One that protects nothing."""
    record_unclaimed(ledger, label, f"{NOT_PRIVATE}: a door of the tests")


def hundred_laplace() -> Ledger:
    """100 times ε = 0.1; one of them sets a delta of 1e-6 aside for composition."""
    ledger = Ledger()
    for number in range(100):
        record_central(ledger, f"count {number}", composition_delta=0.0 if number else 1e-6)
    ledger.seal()
    return ledger


class Page(HTMLParser):
    """A page as a browser sees it.

    Attributes:
        elements: name and attributes of each, in order.
        texts: each piece of text with the names of the elements around it.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._cells: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self._cells.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self._open), data))
        if {"td", "th"} & set(self._open):
            self._cells[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def cells(self) -> list[str]:
        """The text of each cell of a table."""
        return [cell.strip() for cell in self._cells]

    @property
    def text(self) -> str:
        """What is read, pictures apart, on one line."""
        shown = (data for inside, data in self.texts if not {"style", "svg", "title"} & set(inside))
        return " ".join("".join(shown).split())


def pictures(page: str) -> list[ElementTree.Element]:
    """Each SVG of a page, read as the XML that it has to be."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
