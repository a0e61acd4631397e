"""The pictures of a ledger's page, as SVG elements that stand inside it.

matplotlib draws them, without pyplot and its global state, and is imported when there is something to draw. Equal
ledgers give equal pictures. Texts stay texts, which any font can show; nothing in them refers to a file or a host.
"""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from beam_dp.accounting.report.curve import Curve, Part
from beam_dp.accounting.report.wording import exact, printable
from beam_dp.accounting.rounding import round_up
from beam_dp.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 5.6  # inches, which fit into a window and onto A4 without shrinking
_LEFT, _RIGHT = 0.62, 5.45  # of what is plotted, in inches
_BAR = 0.38  # inches for a bar and the line above it
# So many parts are told apart; the others are one bar.
_MOST_PARTS = 20
_LABEL_COLUMNS = 58
_GREYS = ("#1f3b57", "#6b93b8", "#3f6287", "#a9c3da")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "beam_dp",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def curve_picture(curve: Curve, *, epsilon: float, delta: float, name: str, about: str) -> ElementTree.Element:
    """Epsilon over delta, with the stated total as a point, or as a line where its delta is 0.

    Args:
        curve: what is drawn.
        epsilon: of the stated total.
        delta: of the stated total.
        name: in lower-case letters and digits, another for each picture of a page.
        about: what is drawn, in words, for those who hear the page.

    Raises:
        ArgumentError: matplotlib is not installed.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(_box(2.9, bottom=0.55, top=2.5))
        axes.plot(*zip(*curve.points, strict=True), color=_GREYS[0], linewidth=1.6)
        axes.set_xscale("log")
        powers = range(math.floor(math.log10(curve.points[0][0])), math.ceil(math.log10(curve.points[-1][0])) + 1)
        shown = powers[:: 1 + len(powers) // 8]
        axes.set_xticks([float(f"1e{power}") for power in shown], [f"1e{power}" for power in shown], minor=False)
        axes.minorticks_off()
        axes.set_ylim(0, 1.08 * max(epsilon, *(found for _, found in curve.points)))
        axes.set_xlabel("delta")
        axes.set_ylabel("epsilon")
        axes.grid(color="#dddddd", linewidth=0.6)
        said = f"stated total: epsilon {exact(epsilon)}, delta {exact(delta)}"
        if delta:
            axes.plot([delta], [epsilon], "o", color="#000000", markersize=7, clip_on=False)
            figure.text(_LEFT / _WIDTH, 0.92, f"\N{BLACK CIRCLE} {said}")
        else:
            axes.axhline(epsilon, color="#000000", linestyle=(0, (4, 2)), linewidth=1.2)
            figure.text(_LEFT / _WIDTH, 0.92, f"- - {said}")

    return svg_picture(draw, height=2.9, name=name, about=about)


def parts_picture(parts: Sequence[Part], *, name: str, about: str) -> ElementTree.Element:
    """A stacked bar of all parts, and under it each part again where it stands in the stack, with name and epsilon.

    Args:
        parts: not empty.
        name: in lower-case letters and digits, another for each picture of a page.
        about: what is drawn, in words, for those who hear the page.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    shown = _largest(parts)
    bars = len(shown) + 1
    height = 0.75 + bars * _BAR

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(_box(height, bottom=0.6, top=height - 0.05, left=0.15))
        axes.set_ylim(bars, 0)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.set_xlabel("epsilon, added up")
        whole = sum((part.epsilon for part in parts), Fraction(0))
        axes.set_xlim(0, float(whole))
        axes.text(0, 0.42, f"together: {_rounded(whole)}", fontweight="bold")
        start = Fraction(0)
        for index, part in enumerate(shown):
            colour = _GREYS[index % len(_GREYS)]
            axes.text(0, index + 1.42, f"{_short(part.name)}: {_rounded(part.epsilon)}")
            for piece in part.pieces:
                for level in (0, index + 1):
                    axes.barh(
                        level + 0.68,
                        float(piece),
                        left=float(start),
                        height=0.36,
                        color=colour,
                        edgecolor="#ffffff",
                        linewidth=0.4,
                    )
                start += piece

    return svg_picture(draw, height=height, name=name, about=about)


def _largest(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts as they are, or the largest of them in their order and the rest as one."""
    if len(parts) <= _MOST_PARTS:
        return parts
    kept = set(sorted(range(len(parts)), key=lambda index: -parts[index].epsilon)[: _MOST_PARTS - 1])
    rest = [part for index, part in enumerate(parts) if index not in kept]
    together = Part(f"{len(rest)} smaller parts", (sum((part.epsilon for part in rest), Fraction(0)),))
    return [*(part for index, part in enumerate(parts) if index in kept), together]


def _rounded(epsilon: Fraction) -> str:
    found = round_up(epsilon)
    return "beyond the floats" if found is None else exact(found)


def _short(label: str) -> str:
    """A label that fits above its bar: wide characters take two columns."""
    kept, columns = "", 0
    for character in printable(label):
        columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if columns > _LABEL_COLUMNS:
            return kept + "\N{HORIZONTAL ELLIPSIS}"
        kept += character
    return kept


def _box(height: float, *, bottom: float, top: float, left: float = _LEFT) -> tuple[float, float, float, float]:
    """Inches from the lower left corner, as matplotlib's part of width and height."""
    return left / _WIDTH, bottom / height, (_RIGHT - left) / _WIDTH, (top - bottom) / height


def svg_picture(draw: Callable[[Figure], None], *, height: float, name: str, about: str) -> ElementTree.Element:
    """What ``draw`` puts onto a figure of this height in inches and the width of all pictures, as SVG for HTML.

    Args:
        draw: called once.
        height: in inches.
        name: in lower-case letters and digits, another for each picture of a page.
        about: what is drawn, in words, for those who hear the page.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    svg = _saved(draw, height, format="svg", metadata=_NO_METADATA, transparent=True)
    return _inlined(svg.decode(), name, about)


def png_picture(draw: Callable[[Figure], None], *, height: float) -> bytes:
    """The same as `svg_picture`, as a PNG file on white, three times as large as a screen shows it at 72 dots an inch.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    return _saved(draw, height, format="png", dpi=216, metadata={"Software": None}, facecolor="white")


def require_matplotlib() -> None:
    """Raises ArgumentError where matplotlib is not installed; before work that ends in a picture."""
    try:
        import matplotlib.figure  # noqa: F401, PLC0415  (half a second that nothing else of the package needs)
    except ImportError:
        raise ArgumentError(
            "pictures are drawn with matplotlib, which is not installed: pip install 'beam_dp[report]', or, of a "
            "ledger, take the format text"
        ) from None


def _saved(draw: Callable[[Figure], None], height: float, **options: Any) -> bytes:
    """What ``draw`` puts onto a figure, saved with ``options`` of matplotlib."""
    require_matplotlib()
    from matplotlib import style  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    out = io.BytesIO()
    # The defaults of matplotlib, whatever its user's are.
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser has glyphs that matplotlib's own font lacks.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(_WIDTH, height))
        draw(figure)
        figure.savefig(out, **options)
    return out.getvalue()


def _inlined(svg: str, name: str, about: str) -> ElementTree.Element:
    """An SVG document as an element for HTML: without namespaces and sheet, with ids that no other picture has."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for child in [child for child in element if _local(child.tag) in ("style", "metadata")]:
            element.remove(child)
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _renamed(key, value, name) for key, value in element.attrib.items()}
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-label": printable(about),
        # What the sheet said, which would have been about the whole page.
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return root


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _renamed(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if _local(key) == "href":
        return value.replace("#", f"#{name}-", 1)
    return value.replace("url(#", f"url(#{name}-")
