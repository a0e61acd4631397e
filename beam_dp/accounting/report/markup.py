"""HTML from elements, so that every text is escaped, and the frame of a page that needs nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from xml.etree.ElementTree import Element

from beam_dp.accounting.report.wording import printable

_VOID = frozenset({"meta"})
_BLOCKS = frozenset(
    {"section", "h1", "h2", "h3", "h4", "p", "table", "caption", "tr", "figure", "div", "main", "header"}
)
_EXPONENTS = re.compile(r"([0-9.]+e-[0-9]+)")
# Should a text ever get into the page as markup, the browser runs and fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Black on white, for A4 and for narrow windows alike. In print a row, a figure and a heading with what follows it stay
# on one page, and the head of a table is repeated.
_STYLE = """
html { background: #fff; color: #000; font: 16px/1.45 "Liberation Sans", Arial, Helvetica, sans-serif; }
body { margin: 0 auto; padding: 1em; max-width: 54em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; }
h2 { font-size: 1.25em; margin: 1.6em 0 .4em; border-bottom: 2px solid #000; }
h3 { font-size: 1.1em; margin: 1.5em 0 .2em; }
h4 { font-size: 1em; margin: 1.1em 0 .3em; overflow-wrap: anywhere; }
p { margin: .4em 0; }
p.promise { border-left: 4px solid #000; padding: .1em 0 .1em .8em; font-size: 1.05em; }
p.note, figcaption, caption { font-size: .88em; color: #222; }
code { font-family: "Liberation Mono", Consolas, Menlo, monospace; font-size: .9em; overflow-wrap: anywhere; }
.whole { white-space: nowrap; }
.alarm { border: 4px solid #000; padding: .4em .9em; margin: 1em 0; }
.alarm h2 { border: 0; margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5em 0; font-size: .92em; }
caption { text-align: left; caption-side: bottom; padding-top: .3em; }
th, td { border-bottom: 1px solid #888; padding: .3em .6em .3em 0; text-align: left; vertical-align: top; }
th, td { overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #000; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
table.short th, table.total th { white-space: nowrap; }
table.entries { table-layout: fixed; }
.entries th, .entries td { padding-right: 1em; }
table.entries th:nth-child(1) { width: 27%; }
table.entries th:nth-child(2) { width: 33%; }
table.entries th:nth-child(4) { width: 4em; }
tr.open td, tr.open th { font-weight: bold; border: 2px solid #000; padding-left: .4em; }
tr.sum td, tr.sum th { font-weight: bold; border-top: 2px solid #000; }
figure { margin: .8em 0; overflow-x: auto; }
figure svg { display: block; width: 100%; max-width: 36em; min-width: 21em; height: auto; }
@media (max-width: 40em) {
  html { font-size: 14px; }
  body { padding: .6em; }
  table.tall, .tall tbody, .tall tr, .tall th, .tall td, .tall caption { display: block; border: 0; }
  table.tall th, .tall td { white-space: normal; }
  .tall thead { display: none; }
  table.tall th:nth-child(n) { width: auto; }
  .tall td, .tall tbody th { padding: .1em 0; }
  .tall td[data-head]::before { content: attr(data-head) ": "; font-weight: bold; }
  .tall tbody tr { border-bottom: 1px solid #888; padding: .5em 0; }
  .tall tbody tr.open { border: 2px solid #000; padding: .5em; }
}
@media print {
  @page { size: A4; margin: 16mm 15mm; }
  html { font-size: 10pt; }
  body { padding: 0; max-width: none; }
  .wide, figure { overflow: visible; }
  h1, h2, h3, h4, p.promise { break-after: avoid; }
  tr, figure, .alarm, p, li, .short, .total { break-inside: avoid; }
  thead { display: table-header-group; }
  figure svg { min-width: 0; max-width: 130mm; }
}
"""


def node(tag: str, *children: Element | str | None, **attributes: str) -> Element:
    """An element; ``class_`` stands for the attribute ``class``, and ``aria_label`` for ``aria-label``.

    Args:
        tag: of HTML.
        children: elements and texts, in order; None is left out.
        attributes: of the element.
    """
    element = Element(tag, {name.rstrip("_").replace("_", "-"): printable(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child is not None:
            _append_text(element, printable(child))
    return element


def _append_text(element: Element, text: str) -> None:
    """Text after what is there; 1e-06 and the like stay on one line."""
    for place, piece in enumerate(_EXPONENTS.split(text)):
        if place % 2:
            element.append(Element("span", {"class": "whole"}))
            element[-1].text = piece
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + piece
        else:
            element.text = (element.text or "") + piece


def table(
    head: Sequence[str], rows: Iterable[Element], *, label: str, caption: str | None = None, class_: str = "short"
) -> Element:
    """A table in a box that scrolls where the window is too narrow for it.

    Args:
        head: of the columns.
        rows: `row` makes them.
        label: what it holds, for those who hear the page.
        caption: what to know to read it, shown below.
        class_: ``short``; or ``entries`` or ``total``, with the word ``tall`` if the cells of a row shall stand below
            each other in a narrow window.
    """
    top = node("thead", node("tr", *(node("th", name, scope="col") for name in head)))
    body = node("tbody", *rows)
    for line in body:
        for name, cell in zip(head[1:], line[1:], strict=True):
            cell.set("data-head", printable(name))
    described = None if caption is None else node("caption", caption)
    return node("div", node("table", described, top, body, class_=class_, aria_label=label), class_="wide")


def row(name: Element | str, *cells: Element | str, class_: str | None = None) -> Element:
    """A row of a table: what it is about, and its cells. Texts that are numbers stand as such."""
    marked = {} if class_ is None else {"class_": class_}
    return node("tr", node("th", name, scope="row"), *map(_cell, cells), **marked)


def _cell(content: Element | str) -> Element:
    number = isinstance(content, str) and content[:1].isdigit()
    return node("td", content, class_="number") if number else node("td", content)


def document(title: str, *body: Element | None) -> str:
    """A whole page in HTML5: no script, and nothing that is fetched.

    Args:
        title: of the window.
        body: what the page says.
    """
    style = Element("style")
    style.text = _STYLE
    named = Element("title")
    named.text = printable(title)
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="generator", content="beam_dp"),
        named,
        style,
    )
    page = node("html", head, node("body", node("main", *body)), lang="en")
    for element in page.iter():
        # Lines, for those who compare two pages.
        if element.tag in _BLOCKS:
            element.tail = (element.tail or "") + "\n"
    return "<!DOCTYPE html>\n" + markup_of(page) + "\n"


def markup_of(element: Element) -> str:
    """An element as HTML, every text and attribute escaped; an SVG is well-formed XML too."""
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in element.attrib.items())
    after = escape(element.tail or "")
    if element.tag in _VOID:
        return f"<{element.tag}{attributes}>{after}"
    text = element.text or ""
    inside = (text if element.tag == "style" else escape(text)) + "".join(map(markup_of, element))
    return f"<{element.tag}{attributes}>{inside}</{element.tag}>{after}"
