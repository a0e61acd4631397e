"""The document about choosing a mechanism: its table, its texts and its picture, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from beam_dp.accounting.report.pictures import png_picture
from beam_dp.embeddings import EmbeddingIndex
from beam_dp.guarantees import MetricGuarantee
from benchmarks.measure import number, version_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.choosing import Chosen, Hierarchy, OnPoincare, Point

_TEMPLATE = Path(__file__).with_name("choosing.md")
# The palette of Okabe and Ito, without yellow, which is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")
_HEADINGS = (
    "mechanism",
    "promises",
    "in the metric",
    "N_w ≈ 0.1",
    "N_w ≈ 0.5",
    "N_w ≈ 0.9",
    "N_w by word",
    "neighbours",
    "any two",
    "words/CPU-s",
    "first use",
    "new word",
)
_POINCARE_HEADINGS = (
    "index",
    "mechanism",
    "N_w ≈ 0.1",
    "N_w ≈ 0.5",
    "N_w ≈ 0.9",
    "neighbours",
    "words/CPU-s",
)
_MIDDLE = 1


def page(
    chosen: Sequence[Chosen],
    refused: Mapping[str, str],
    texts: Sequence[str],
    hierarchies: Sequence[Hierarchy],
    *,
    index: EmbeddingIndex,
    image: str,
    found: Mapping[str, Any],
    words: int,
    runs: int,
) -> str:
    """The document in Markdown.

    Args:
        chosen: what was measured.
        refused: why the other mechanisms refuse the index, by name.
        texts: the utterances that each mechanism was given.
        hierarchies: what was measured on Poincaré indexes.
        index: what all was drawn on.
        image: the file name of the picture.
        found: from `benchmarks.measure.machine`.
        words: how many were drawn for N_w and S_w.
        runs: draws of each.
    """
    median = index.manifest.distances.median_neighbour
    lines = [_row(_HEADINGS), _row(["---"] * len(_HEADINGS)), *(_row(_cells(one, median)) for one in chosen)]
    reasons = {one.name: one.guarantee.reason for one in chosen if one.guarantee.reason}
    notes = [f"- `{name}` promises nothing finite: {reason}." for name, reason in reasons.items()]
    notes += [f"- `{name}` is not in the table: {reason}." for name, reason in refused.items()]
    versions = {"beam_dp": version_of("beam_dp"), "Python": found["python"], "numpy": found["packages"]["numpy"]}
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        table="\n".join(lines),
        notes="\n".join(notes),
        examples="\n\n".join(_example(place, text, chosen) for place, text in enumerate(texts)),
        poincare_indexes="\n".join(map(_described, hierarchies)),
        poincare_table=_poincare_table(hierarchies),
        poincare_words="\n\n".join(map(_poincare_words, hierarchies)),
        image=image,
        size=f"{index.size:,}",
        dimension=index.dimension,
        metric=index.metric,
        median=f"{median:.3g}",
        diameter=f"{index.diameter:.3g}",
        digest=index.digest,
        source=index.manifest.source,
        processor=found["processor"],
        blas=found["blas"],
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        words=f"{words:,}",
        runs=f"{runs:,}",
    )


def _described(one: Hierarchy) -> str:
    index = one.index
    return (
        f"- **{_short(one)}**: {index.manifest.source}. The nearest other word is "
        f"{index.manifest.distances.median_neighbour:.3g} away (median), no two words are more than "
        f"{index.diameter:.3g} apart. Index `{index.digest}`."
    )


def _short(one: Hierarchy) -> str:
    return f"{one.index.size:,} words, d = {one.index.dimension}"


def _poincare_table(hierarchies: Sequence[Hierarchy]) -> str:
    lines = [_row(_POINCARE_HEADINGS), _row(["---"] * len(_POINCARE_HEADINGS))]
    for one in hierarchies:
        median = one.index.manifest.distances.median_neighbour
        for law in one.measured:
            near, rate = law.example.parameter * median, float(f"{law.words_per_second:.2g}")
            cells = [_reached(law, place) for place in range(len(law.targets))]
            lines.append(_row([_short(one), f"`{law.name}`", *cells, f"{near:.3g}", number(rate)]))
    return "\n".join(lines)


def _reached(law: OnPoincare, place: int) -> str:
    """Where a share of kept words is met, or what comes nearest to it."""
    point = law.targets[place]
    if point is not None:
        return f"**ε {point.parameter:.4g}**: {point.kept:.2f}, {point.found.distinct.mean():.0f}"
    end = law.nearest(place)
    return f"not met: {end.kept:.3f} at ε {end.parameter:.4g}"


def _poincare_words(one: Hierarchy) -> str:
    headings = [f"`{law.name}` at ε {law.example.parameter:.4g}, N_w {law.example.kept:.2f}" for law in one.measured]
    rows = zip(one.words, *(law.words for law in one.measured), strict=True)
    return "\n".join(map(_row, ([_short(one), *headings], ["---"] * (1 + len(headings)), *rows)))


def picture(chosen: Sequence[Chosen]) -> bytes:
    """N_w over epsilon, and S_w over N_w, as a PNG file: a line for each mechanism."""
    # From the left to the right of the first panel, as the names are read.
    ordered = sorted(chosen, key=lambda one: _middle(one).parameter)

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(
            2, 1, gridspec_kw={"left": 0.11, "right": 0.6, "bottom": 0.085, "top": 0.975, "hspace": 0.3}
        )
        for place, one in enumerate(ordered):
            look: dict[str, Any] = {
                "color": _COLOURS[place % len(_COLOURS)],
                "marker": _MARKERS[place % len(_MARKERS)],
                "linestyle": _line(one),
                "markersize": 4,
                "linewidth": 1.2,
            }
            shares = [point.kept for point in one.curve]
            label = one.name if one.parameter == "ε" else f"{one.name} ({one.parameter})"
            upper.plot([point.parameter for point in one.curve], shares, label=label, **look)
            lower.plot(shares, [float(point.found.distinct.mean()) for point in one.curve], **look)
        upper.set_xscale("log", base=2)
        upper.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        upper.set_xlabel("ε, or 1/b")
        upper.set_ylabel("N_w: share unchanged")
        upper.set_ylim(0, 1.02)
        lower.set_xlabel("N_w: share unchanged")
        runs = chosen[0].curve[0].found.runs
        lower.set_ylabel(f"S_w: different outputs in {runs:,}")
        lower.set_xlim(0, 1.02)
        lower.set_ylim(0, None)
        for axes in (upper, lower):
            axes.grid(color="#dddddd", linewidth=0.6)
        figure.legend(
            loc="upper left", bbox_to_anchor=(0.615, 0.985), frameon=False, handlelength=2.4, borderpad=0, fontsize=8
        )
        figure.text(
            0.63,
            0.43,
            "solid: ε per unit of the\nmetric of the index\ndashed: ε in another unit\ndotted: no finite promise",
            va="top",
            linespacing=1.5,
            fontsize=8,
        )

    return png_picture(draw, height=5.8)


def _middle(one: Chosen) -> Point:
    point = one.targets[_MIDDLE]
    assert point is not None
    return point


def _line(one: Chosen) -> str:
    if one.guarantee.epsilon is None:
        return ":"
    return "--" if _own(one) else "-"


def _own(one: Chosen) -> bool:
    """Whether epsilon is not per unit of the metric of the index: such metrics have their parameter in brackets."""
    return not isinstance(one.guarantee, MetricGuarantee) or "(" in one.guarantee.metric


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(one: Chosen, median: float) -> list[str]:
    middle = _middle(one)
    low, high = np.quantile(middle.found.share_unchanged, (0.1, 0.9))
    promise = one.guarantee
    metric = promise.metric if isinstance(promise, MetricGuarantee) else "none: any two words"
    if promise.epsilon is None:
        claim, near, far = "nothing finite", "no bound", "no bound"
    else:
        claim = f"ε, δ = {promise.delta:.1g}, {promise.basis}" if promise.delta else f"ε, {promise.basis}"
        far = f"{promise.epsilon * (1 if one.diameter is None else one.diameter):.3g}"
        near = far if one.diameter is None else "own metric" if _own(one) else f"{promise.epsilon * median:.3g}"
    return [
        f"`{one.name}`",
        claim,
        metric,
        *(_target(one, point) for point in one.targets),
        f"{low:.2f} to {high:.2f}",
        near,
        far,
        number(float(f"{one.cost.words_per_second:.2g}")),
        "below 0.01 s" if one.cost.first_use < 0.01 else f"{one.cost.first_use:.2g} s",
        "" if one.cost.new_word < 1e-5 else f"{1000 * one.cost.new_word:.2g} ms",
    ]


def _target(one: Chosen, point: Point | None) -> str:
    if point is None:
        return "not met"
    value = f"ε {point.parameter:.3g}" if one.parameter == "ε" else f"b {1 / point.parameter:.3g}"
    return f"**{value}**: {point.kept:.2f}, {point.found.distinct.mean():.0f}"


def _example(place: int, text: str, chosen: Sequence[Chosen]) -> str:
    width = max(len(one.name) for one in chosen)
    lines = [f"{'':{width}}  {text}", *(f"{one.name:{width}}  {one.texts[place]}" for one in chosen)]
    return "\n".join(["```text", *lines, "```"])
