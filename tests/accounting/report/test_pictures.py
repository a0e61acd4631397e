"""The pictures of a page, as the SVG that is drawn."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_support import EVIL, hundred_laplace

from beam_dp.accounting.report.curve import Curve, Part, central_curve
from beam_dp.accounting.report.markup import markup_of
from beam_dp.accounting.report.pictures import curve_picture, parts_picture
from beam_dp.errors import ArgumentError

ROOT = Path(__file__).parents[3]
PARTS = [Part("a", (Fraction(1), Fraction(2))), Part("b", (Fraction(1, 2),)), Part("c", (Fraction(3, 2),))]


def _read(picture: ElementTree.Element) -> ElementTree.Element:
    """The picture after a trip through its text, as it stands in a page."""
    return ElementTree.fromstring(markup_of(picture))


def _texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in _read(picture).iter() if element.tag.endswith("}text")]


def _points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ?(-?[\d.]+) (-?[\d.]+)", path)]


def _filled(picture: ElementTree.Element) -> list[tuple[float, float, float]]:
    """Left, right and top of each coloured rectangle."""
    found = []
    for element in picture.iter("path"):
        if re.search(r"fill: #(?!fff)", element.get("style", "")) and element.get("d", "").rstrip().endswith("z"):
            points = _points(element.get("d", ""))
            xs, ys = [x for x, _ in points], [y for _, y in points]
            found.append((min(xs), max(xs), min(ys)))
    return found


def test_the_curve_is_drawn_through_its_points() -> None:
    curve = central_curve(hundred_laplace().entries, epsilon=4.7, delta=1e-6)
    assert curve is not None
    picture = curve_picture(curve, epsilon=4.7, delta=1e-6, name="c", about="a curve")
    lines = [
        _points(path.get("d", ""))
        for path in picture.iter("path")
        if "fill: none" in path.get("style", "") and path.get("clip-path")
    ]
    drawn = max(lines, key=len)
    assert len(drawn) == len(curve.points)
    # One scale for all of them: what is drawn is a straight function of what is meant.
    (first, last), (low, high) = (drawn[0][1], drawn[-1][1]), (curve.points[0][1], curve.points[-1][1])
    for (_, y), (_, epsilon) in zip(drawn, curve.points, strict=True):
        assert (y - first) / (last - first) == pytest.approx((epsilon - low) / (high - low), abs=1e-4)
    xs = [x for x, _ in drawn]
    assert xs == sorted(xs)


def test_the_curve_says_what_is_stated() -> None:
    curve = Curve(((1e-9, 2.0), (1e-6, 1.0), (1e-3, 0.5)))
    with_delta = _texts(curve_picture(curve, epsilon=1.25, delta=1e-6, name="c", about="x"))
    assert "\N{BLACK CIRCLE} stated total: epsilon 1.25, delta 1e-06" in with_delta
    assert {"1e-9", "1e-6", "1e-3", "delta", "epsilon"} <= set(with_delta)
    without = _texts(curve_picture(curve, epsilon=1.25, delta=0.0, name="c", about="x"))
    assert "- - stated total: epsilon 1.25, delta 0" in without


def test_bars_are_as_long_as_their_parts_and_stack_up() -> None:
    bars = _filled(parts_picture(PARTS, name="p", about="parts"))
    # Each piece twice: in the stack, and in the row of its part.
    assert len(bars) == 8
    rows = sorted({top for _, _, top in bars})
    assert len(rows) == 4
    stack = sorted(bar for bar in bars if bar[2] == rows[0])
    left, right = stack[0][0], stack[-1][1]
    lengths = [(end - start) / (right - left) for start, end, _ in stack]
    assert lengths == pytest.approx([1 / 5, 2 / 5, 0.5 / 5, 1.5 / 5], abs=1e-3)
    for before, after in itertools.pairwise(stack):
        assert before[1] == pytest.approx(after[0], abs=1e-3)
    assert sorted(bar[:2] for bar in bars if bar[2] != rows[0]) == [bar[:2] for bar in stack]


def test_bars_have_names_and_exact_numbers() -> None:
    texts = _texts(
        parts_picture([Part(EVIL, (Fraction(0.1),)), Part("b\x00\x1b\ud800\n", (Fraction(1, 4),))], name="p", about="x")
    )
    # As floats 0.1 and 0.25 add up to a little more than 0.35, which is rounded up.
    named = [text for text in texts if ": " in text]
    assert named == ["together: 0.350000001", f"{EVIL}: 0.1", "b\ufffd\ufffd\ufffd : 0.25"]


def test_many_parts_are_the_largest_and_the_rest() -> None:
    parts = [Part(f"part {n}", (Fraction(1 + (n * 7) % 50, 10),)) for n in range(50)]
    picture = parts_picture(parts, name="p", about="x")
    texts = [text for text in _texts(picture) if ": " in text]
    assert len(texts) == 21
    smallest = sorted(part.epsilon for part in parts)[:31]
    assert texts[-1] == f"31 smaller parts: {float(sum(smallest))!r}"
    assert texts[0] == "together: 127.5"
    shown = [int(text.split(":")[0].split()[1]) for text in texts[1:-1]]
    assert shown == sorted(shown)
    assert min(parts[n].epsilon for n in shown) >= max(smallest)


@pytest.mark.parametrize("letter", ["x", "\N{CJK UNIFIED IDEOGRAPH-6F22}"], ids=["narrow", "wide"])
def test_a_long_name_is_cut(letter: str) -> None:
    texts = _texts(parts_picture([Part(letter * 200, (Fraction(1),))], name="p", about="x"))
    assert letter * (58 if letter == "x" else 29) + "\N{HORIZONTAL ELLIPSIS}: 1" in texts


def test_a_picture_is_whole_and_refers_to_itself_alone() -> None:
    for name in ("one", "two"):
        picture = parts_picture(PARTS, name=name, about='what "is" <drawn>')
        root = _read(picture)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("role") == "img"
        assert root.get("aria-label") == 'what "is" <drawn>'
        assert root.get("viewBox")
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids))
        assert all(str(found).startswith(f"{name}-") for found in ids)
        text = markup_of(picture)
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
        assert references
        assert set(references) <= set(ids)
        assert not {element.tag.rpartition("}")[2] for element in root.iter()} & {
            "script",
            "style",
            "image",
            "metadata",
        }
        assert re.findall(r"https?:[^\"' ]*", text) == ["http://www.w3.org/2000/svg"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ArgumentError, match=r"matplotlib, which is not installed: pip install 'beam_dp\[report\]'"):
        parts_picture(PARTS, name="p", about="x")


_SCRIPT = """
import hashlib, sys, types
package = types.ModuleType('beam_dp')  # stands in for the public face, which imports everything
package.__path__ = ['beam_dp']
sys.modules['beam_dp'] = package
from fractions import Fraction
from beam_dp.accounting.report.curve import Curve, Part
from beam_dp.accounting.report import pictures
assert 'matplotlib' not in sys.modules
import matplotlib
from xml.etree.ElementTree import tostring
matplotlib.rcParams['font.size'] = 31.0
matplotlib.rcParams['axes.facecolor'] = 'pink'
backend = dict.__getitem__(matplotlib.rcParams, 'backend')
drawn = [
    pictures.parts_picture([Part('a', (Fraction(1),)), Part('b', (Fraction(2),))], name='p', about='x'),
    pictures.curve_picture(Curve(((1e-9, 2.0), (1e-6, 1.0))), epsilon=1.5, delta=1e-6, name='c', about='y'),
]
assert 'matplotlib.pyplot' not in sys.modules
assert matplotlib.rcParams['font.size'] == 31.0
assert dict.__getitem__(matplotlib.rcParams, 'backend') is backend
print(hashlib.sha256(b''.join(map(tostring, drawn))).hexdigest())
"""


def test_pictures_are_the_same_in_every_process_and_leave_no_trace() -> None:
    """Whatever the seed of hashes and the user's own settings, and without pyplot."""
    digests = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert run.returncode == 0, run.stderr
        digests.add(run.stdout)
    assert len(digests) == 1
