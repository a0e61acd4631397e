"""What the pictures show, as numbers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from report_support import LAPLACE, central_entry, hundred_laplace, record_central

from beam_dp.accounting import DiscreteLaplaceLoss, Ledger
from beam_dp.accounting.composition import compose_central
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.accounting.report.curve import Curve, central_curve, parts_of


def test_the_curve_of_a_hundred_laplace_mechanisms() -> None:
    entries = hundred_laplace().entries
    total = compose_central(entries)
    assert total is not None
    assert (total["basic"]["epsilon"], total["delta"]) == (pytest.approx(10, abs=2e-9), 1e-6)
    assert total["epsilon"] == pytest.approx(4.69, abs=0.005)
    curve = central_curve(entries, epsilon=total["epsilon"], delta=total["delta"])
    assert curve is not None
    deltas, epsilons = zip(*curve.points, strict=True)
    assert list(deltas) == sorted(set(deltas))
    assert (deltas[0], deltas[-1]) == (1e-12, 1e-2)
    assert 1e-6 in deltas
    for delta, epsilon in curve.points:
        assert epsilon == pld_epsilon(((LAPLACE, 100),), delta)
    assert all(before > after for before, after in itertools.pairwise(epsilons))
    excerpt = dict(curve.excerpt())
    assert list(excerpt) == [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
    assert excerpt.items() <= dict(curve.points).items()


def test_where_distributions_give_more_than_the_total_the_total_holds() -> None:
    loss = DiscreteLaplaceLoss(scale=6.0, sensitivity=1, times=3)
    entries = [central_entry(epsilon=0.5, loss=loss)]
    for delta in (1e-12, 1e-2):
        curve = central_curve(entries, epsilon=0.5, delta=0.0)
        assert curve is not None
        found = pld_epsilon(((loss, 1),), delta)
        assert found is not None
        assert (found > 0.5) == (delta == 1e-12)
        assert dict(curve.points)[delta] == min(found, 0.5)
    assert all(before[1] >= after[1] for before, after in itertools.pairwise(curve.points))


def test_a_curve_starts_where_there_is_a_promise() -> None:
    """Of an (ε, δ) of which nothing else is known, nothing finite holds below δ."""
    entries = [central_entry(epsilon=0.5, delta=1e-7, loss=None)]
    curve = central_curve(entries, epsilon=0.5, delta=1e-7)
    assert curve is not None
    assert curve.points[0] == (1e-7, 0.5)


@pytest.mark.parametrize(("delta", "first", "last"), [(1e-15, 1e-16, 1e-2), (0.05, 1e-12, 0.1), (1e-322, 1e-323, 1e-2)])
def test_a_stated_delta_is_inside_the_curve(delta: float, first: float, last: float) -> None:
    curve = central_curve([central_entry()], epsilon=0.1, delta=delta)
    assert curve is not None
    deltas = [at for at, _ in curve.points]
    # Below what is set aside for rounding, distributions state nothing, and the total does not hold either.
    assert deltas[0] >= first
    assert deltas[-1] == last
    assert delta in deltas


@pytest.mark.parametrize("changes", [{"max_applications": None}, {"max_applications": 2**40}])
def test_what_has_no_finite_point_has_no_curve(changes: dict[str, int | None]) -> None:
    assert central_curve([central_entry(**changes)], epsilon=0.1, delta=1e-6) is None


def test_few_points_are_all_in_the_excerpt() -> None:
    curve = Curve(((1e-5, 3.0), (3e-5, 2.5), (1e-4, 2.0), (1e-3, 1.0)))
    assert curve.excerpt() == ((1e-5, 3.0), (1e-4, 2.0), (1e-3, 1.0))


def test_parts_add_up_to_the_basic_total() -> None:
    ledger = Ledger()
    record_central(ledger, "a", max_applications=3)
    record_central(ledger, "b", epsilon=0.25)
    parts = parts_of(ledger.entries, each_application=False)
    assert parts is not None
    assert [(part.name, part.epsilon) for part in parts] == [("a", 3 * Fraction(0.1)), ("b", Fraction(0.25))]
    total = compose_central(ledger.entries)
    assert total is not None
    assert 0 <= Fraction(total["epsilon"]) - sum(part.epsilon for part in parts) <= Fraction(1, 10**9)
    single = parts_of(ledger.entries, each_application=True)
    assert single is not None
    assert [part.epsilon for part in single] == [Fraction(0.1), Fraction(0.25)]


def test_entries_of_one_share_are_one_part() -> None:
    entries = [
        central_entry(epsilon=0.125, loss=None, share="x"),
        central_entry(epsilon=0.5, loss=None),
        central_entry(epsilon=0.25, loss=None, share="x"),
    ]
    parts = parts_of(entries, each_application=False)
    assert parts is not None
    assert [(part.name, part.pieces) for part in parts] == [
        ("x", (Fraction(0.125), Fraction(0.25))),
        ("count", (Fraction(0.5),)),
    ]


def test_what_has_no_epsilon_has_no_parts() -> None:
    assert parts_of([central_entry(max_applications=None)], each_application=False) is None
