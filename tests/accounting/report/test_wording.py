"""Numbers in words: no claim is rounded down."""

from __future__ import annotations

import math
import unicodedata
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_dp.accounting.report.wording import chance, exact, factor, plus, printable, times_as_likely

LN_10_FROM_BELOW = Fraction("2.302585092994045684")


def _power_from_above(epsilon: Fraction) -> Fraction:
    """A rational number that is not below e^epsilon: Python's decimal exp is right to half a unit in the last place."""
    with localcontext() as context:
        context.prec = 1200
        exact = Decimal(epsilon.numerator) / Decimal(epsilon.denominator)
        context.prec = 60
        return Fraction(exact.exp()) * (1 + Fraction(1, 10**58))


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


_epsilons = st.one_of(
    st.floats(0, 25), st.floats(1e-12, 1e-3), st.integers(1, 20).map(float), st.floats(0, 700).map(math.log1p)
)


@settings(max_examples=40, deadline=None)
@given(epsilon=_epsilons)
@example(epsilon=math.log(2))
@example(epsilon=math.log(10))
@example(epsilon=1.0)
@example(epsilon=0.1)
@example(epsilon=0.0)
@example(epsilon=5e-324)
def test_a_factor_is_not_below_the_power(epsilon: float) -> None:
    said = factor(epsilon)
    if said.startswith("10^"):
        assert int(said[3:]) * LN_10_FROM_BELOW >= Fraction(epsilon)
        assert int(said[3:]) <= epsilon / math.log(10) + 1.01
    else:
        # e^x has no such rational value, so the bound from above may only be met by rounding up.
        assert _value(said) >= _power_from_above(Fraction(epsilon)) - Fraction(1, 10**40)
        assert float(_value(said)) <= 1 + math.expm1(epsilon) * (1 + 1.1e-4) + 1.1e-7


@settings(max_examples=100, deadline=None)
@given(epsilon=st.floats(20.8, 1e308))
def test_a_large_factor_is_a_power_of_ten_that_is_not_below(epsilon: float) -> None:
    said = factor(epsilon)
    assert said.startswith("10^")
    exponent = Fraction(said[3:])
    assert exponent * LN_10_FROM_BELOW >= Fraction(epsilon)
    assert exponent <= Fraction(epsilon) / Fraction("2.302585092994045") * (1 + Fraction(1, 10**5)) + 1


@pytest.mark.parametrize(
    ("epsilon", "said"), [(1.0, "2.7183"), (0.0, "1.0000001"), (12.0, "162,760"), (0.1, "1.10518"), (100.0, "10^44")]
)
def test_factors_that_are_known(epsilon: float, said: str) -> None:
    """e = 2.71828..., e^12 = 162754.79..., e^0.1 = 1.105170..., e^100 = 2.69e43."""
    assert factor(epsilon) == said


def test_a_factor_that_protects_nothing_says_so() -> None:
    assert times_as_likely(1.0) == "more than 2.7183 times as likely (e^1, rounded up)"
    assert times_as_likely(64.0).endswith("a factor so large that it limits nothing in practice")


@settings(max_examples=200, deadline=None)
@given(delta=st.one_of(st.floats(1e-15, 0.999), st.integers(2, 14).map(lambda power: float(f"1e-{power}"))))
def test_one_in_so_many_is_not_below_delta(delta: float) -> None:
    number, _, rest = chance(delta).partition(" (at most 1 in ")
    assert float(number) == delta
    if rest:
        many = _value(rest.removesuffix(")"))
        assert 1 / many >= Fraction(number)
        assert 1 / (many + 1) < Fraction(number)


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        (1e-6, "1e-06 (at most 1 in 1,000,000)"),
        (1e-5, "1e-05 (at most 1 in 100,000)"),
        (3e-7, "3e-07 (at most 1 in 3,333,333)"),
        (0.25, "0.25"),
        (1e-13, "1e-13"),
    ],
)
def test_chances_that_are_known(delta: float, said: str) -> None:
    assert chance(delta) == said


def test_no_delta_adds_nothing() -> None:
    assert plus(0.0) == plus(None) == ""
    assert plus(0.25) == ", plus a probability of 0.25"


@given(number=st.floats(0, 1e300))
def test_exact_digits_come_back(number: float) -> None:
    assert float(exact(number)) == number
    assert not exact(number).endswith(".0")


@given(text=st.text(max_size=40))
def test_foreign_text_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp") for c in shown)
    assert [c for c in text if c.isprintable()] == [s for c, s in zip(text, shown, strict=True) if c.isprintable()]
