"""The comparison of mechanisms as a picture, and as a page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from beam_dp.accounting.report.markup import document, node, row, table
from beam_dp.accounting.report.pictures import png_picture, svg_picture
from beam_dp.audit.comparison import COLUMNS, NOTES, Compared, cells, refusals
from beam_dp.audit.deniability import Deniability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, without yellow, which is lost on white: told apart by those who see fewer colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_HEIGHT = 5.2
_LEFT, _RIGHT = 0.11, 0.66  # of the width; names stand to the right
_LINE = 0.062  # the least distance of two names, of the height of a panel
_WIDE = 20


def comparison_png(compared: Sequence[Compared]) -> bytes:
    """The picture as a PNG file. Raises ArgumentError where matplotlib is not installed."""
    return png_picture(_drawing(compared), height=_HEIGHT)


def comparison_page(compared: Sequence[Compared], names: Sequence[str], *, index_digest: str, source: str) -> str:
    """The page.

    Args:
        compared: not empty.
        names: of all words, by id.
        index_digest: of the index that all was drawn on.
        source: of that index, in words; may be empty.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    about = "Two panels over epsilon, a line for each mechanism: the mean of N_w, and below it the mean of S_w."
    drawn = next((item.found for item in compared if item.found is not None), None)
    how = "" if drawn is None else f"{len(drawn.words):,} words, {drawn.runs:,} draws of each. "
    lines = []
    for item in compared:
        mechanism, *values = cells(item, names)
        lines.append(row(mechanism, *values))
    refused = refusals(compared)
    return document(
        "Plausible deniability",
        node("h1", "Plausible deniability of word mechanisms"),
        node("p", f"{how}Index ", node("code", index_digest), f" {source}".rstrip(), "."),
        node(
            "figure",
            svg_picture(_drawing(compared), height=_HEIGHT, name="deniability", about=about),
            node("figcaption", "Means over the words. To the upper left of N_w, words stay what they are."),
        ),
        table(COLUMNS, lines, label="N_w and S_w by mechanism and epsilon"),
        *(node("p", note, class_="note") for note in NOTES),
        *(node("p", f"Refused: {reason}.", class_="note") for reason in refused),
    )


def _drawing(compared: Sequence[Compared]) -> Callable[[Figure], None]:
    names = list(dict.fromkeys(item.mechanism for item in compared))
    epsilons = sorted({item.epsilon for item in compared})

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(
            2, 1, sharex=True, gridspec_kw={"left": _LEFT, "right": _RIGHT, "bottom": 0.09, "top": 0.97, "hspace": 0.14}
        )
        runs = next((item.found.runs for item in compared if item.found is not None), 1)
        _panel(upper, compared, names, lambda found: float(found.share_unchanged.mean()))
        _panel(lower, compared, names, lambda found: float(found.distinct.mean()))
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("N_w: share unchanged")
        lower.set_ylim(0, None)
        lower.set_ylabel(f"S_w: different outputs in {runs:,}")
        lower.set_xlabel("epsilon, in units of 1/distance")
        if epsilons[-1] / epsilons[0] > _WIDE:
            lower.set_xscale("log")
        lower.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons], minor=False)
        lower.minorticks_off()
        for axes in (upper, lower):
            axes.grid(color="#dddddd", linewidth=0.6)
            _name_lines(axes)

    return draw


def _panel(axes: Axes, compared: Sequence[Compared], names: Sequence[str], of: Callable[[Deniability], float]) -> None:
    """A line for each mechanism, over the epsilons that it does not refuse."""
    for place, name in enumerate(names):
        # Of lines that lie on each other the first are thicker, so that all are seen.
        rest = 1 - place / len(names)
        points = sorted(
            (item.epsilon, of(item.found)) for item in compared if item.mechanism == name and item.found is not None
        )
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                linestyle="--" if place // len(_COLOURS) % 2 else "-",
                markersize=3.5 + 4.5 * rest,
                linewidth=1.0 + 2.4 * rest,
                clip_on=False,
            )


def _name_lines(axes: Axes) -> None:
    """The name of each line behind its last point, moved apart where they would overlap, with a thin line to it."""
    lines = axes.get_lines()
    into = axes.transData + axes.transAxes.inverted()
    ends = np.array([into.transform(np.asarray(line.get_xydata(), dtype=float)[-1]) for line in lines]).reshape(-1, 2)
    order = np.argsort(-ends[:, 1], kind="stable")
    places = apart(ends[order, 1], _LINE)
    for line, end, place in zip((lines[at] for at in order), ends[order], places, strict=True):
        axes.plot(
            [end[0], 1.045, 1.075],
            [end[1], place, place],
            transform=axes.transAxes,
            color=line.get_color(),
            marker=line.get_marker(),
            markevery=[2],
            markersize=4,
            linewidth=0.6,
            clip_on=False,
        )
        axes.text(1.1, place, str(line.get_label()), transform=axes.transAxes, va="center")


def apart(wanted: np.ndarray, least: float) -> np.ndarray:
    """Heights near ``wanted`` (n,), which fall from 1 to 0, of which no two are nearer than ``least``, none above 1."""
    places = np.minimum(wanted, 1.0).astype(float)
    for at in range(1, len(places)):
        places[at] = min(places[at], places[at - 1] - least)
    if len(places) and places[-1] < 0:
        places[-1] = 0.0
        for at in range(len(places) - 2, -1, -1):
            places[at] = max(places[at], places[at + 1] + least)
    return places
