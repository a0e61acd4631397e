from __future__ import annotations

import itertools
import struct
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from beam_dp.audit.comparison import COLUMNS, Compared, cells, compare, mean_interval, refusals, table_text
from beam_dp.audit.comparison_page import apart, comparison_page, comparison_png
from beam_dp.audit.deniability import Deniability
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms import TruncatedGumbel
from beam_dp.mechanisms.word_exponential import Exponential

NAMES = ["no", "yes", "<b>&", "maybe"]


def found(unchanged: list[int], distinct: list[int], runs: int = 10) -> Deniability:
    words = np.arange(len(unchanged), dtype=np.int32)
    return Deniability(words, runs, np.array(unchanged), np.array(distinct))


@pytest.fixture
def compared() -> list[Compared]:
    return [
        Compared("first", 1.0, found([1, 2, 0, 1], [9, 8, 7, 9]), None),
        Compared("first", 40.0, found([10, 9, 9, 10], [1, 2, 2, 1]), None),
        Compared("second", 1.0, None, "epsilon must be above 30"),
        Compared("second", 40.0, found([3, 2, 9, 3], [4, 5, 2, 6]), None),
    ]


def test_every_mechanism_meets_every_epsilon_and_refusals_are_gaps(plain_space, rng):
    space = plain_space(np.random.default_rng(3).normal(size=(12, 2)))
    mechanisms = {"exponential": Exponential, "truncated_gumbel": lambda epsilon: TruncatedGumbel(epsilon=epsilon)}
    words = np.array([2, 5], np.int32)
    rows = list(compare(mechanisms, space, [0.1, 900.0], 50, words, rng))
    assert [(row.mechanism, row.epsilon) for row in rows] == [
        (name, epsilon) for name in mechanisms for epsilon in (0.1, 900.0)
    ]
    assert [row.found is None for row in rows] == [False, False, True, False]
    assert all(row.found.words.tolist() == [2, 5] and row.found.runs == 50 for row in rows if row.found is not None)
    assert rows[0].found.share_unchanged.mean() < 0.5 < rows[1].found.share_unchanged.mean()
    assert "epsilon must be above" in rows[2].refused and rows[3].refused is None


def test_a_row_says_mean_and_worst(compared):
    row = dict(zip(COLUMNS, cells(compared[3], NAMES), strict=True))
    low, high = stats.binomtest(17, 40).proportion_ci(0.95, method="exact")
    assert mean_interval(compared[3].found) == pytest.approx((low, high), abs=1e-12)
    assert row == {
        "mechanism": "second",
        "epsilon": "40",
        "N_w mean": "0.425",
        "95% interval": f"{low:.3f}-{high:.3f}",
        "N_w worst": "0.90",
        "S_w mean": "4.2",
        "S_w worst": "2",
        "least protected": "<b>& no maybe",
    }
    assert cells(compared[2], NAMES) == ["second", "1", "refused", "", "", "", "", ""]


def test_the_table_has_a_line_for_each_and_says_why_some_are_refused(compared):
    text = table_text(compared, NAMES)
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["first", "1"],
        ["first", "40"],
        ["second", "1"],
        ["second", "40"],
    ]
    assert len({line.index("0.") for line in (lines[1], lines[4])}) == 1
    assert refusals(compared) == ["second at epsilon 1: epsilon must be above 30"]
    assert lines[-1] == refusals(compared)[0]


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(compared):
    page = comparison_page(compared, NAMES, index_digest="ab" * 32, source="made <up>")
    assert page == comparison_page(compared, NAMES, index_digest="ab" * 32, source="made <up>")
    assert "&lt;b&gt;&amp; no maybe" in page and "<b>" not in page and "made &lt;up&gt;" in page
    assert "ab" * 32 in page and "4 words, 10 draws of each" in page
    assert "Refused: second at epsilon 1: epsilon must be above 30." in page
    assert "src=" not in page and "<script" not in page and "url(http" not in page
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    texts = ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    for said in ("N_w: share unchanged", "S_w: different outputs in 10", "epsilon, in units of 1/distance"):
        assert texts.count(said) == 1
    # The name of each line stands in both panels.
    assert texts.count("first") == texts.count("second") == 2
    assert "aria-label" in page


def test_the_picture_is_a_png_of_what_was_drawn(compared):
    png = comparison_png(compared)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1_000 and height > 800
    assert png == comparison_png(compared)
    assert png != comparison_png(compared[:2])


def test_nothing_but_refusals_still_makes_a_page():
    nothing = [Compared("second", 1.0, None, "no")]
    assert "Refused: second at epsilon 1: no." in comparison_page(nothing, NAMES, index_digest="0" * 64, source="")


def test_without_matplotlib_the_extra_is_named(compared, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ArgumentError, match=r"matplotlib, which is not installed: pip install 'beam_dp\[report\]'"):
        comparison_png(compared)


@pytest.mark.parametrize(
    "wanted",
    [[1.0, 1.0, 1.0], [0.5], [1.2, 0.9, 0.89, 0.1], [0.05, 0.01, 0.0, 0.0], [1.0, 0.5, 0.0], []],
    ids=["top", "one", "above", "bottom", "far", "none"],
)
def test_names_do_not_overlap(wanted):
    places = apart(np.array(wanted), 0.1)
    assert all(upper - lower >= 0.1 - 1e-12 for upper, lower in itertools.pairwise(places))
    assert all(0 <= place <= 1 for place in places)
    if wanted == [1.0, 0.5, 0.0]:
        assert places.tolist() == wanted
