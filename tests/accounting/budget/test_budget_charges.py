"""Limits and charges: what they take, their exact arithmetic, and what a ledger's totals cost."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_dp.accounting import Ledger
from beam_dp.accounting.budget import Charge, Limit, charges_of
from beam_dp.accounting.budget.charges import NOTHING, unit_of
from beam_dp.errors import ArgumentError, InputError
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee

DIGEST = "0123456789abcdef" * 4
OTHER_DIGEST = "fedcba9876543210" * 4
NANO = 10**9

epsilons = st.floats(1e-9, 1e6)
deltas = st.one_of(st.just(0.0), st.floats(1e-300, 0.999))


def _limit(**changes: Any) -> Limit:
    return Limit(**{"model": "central", "privacy_unit": "user", "epsilon": 1.0, "delta": 1e-6} | changes)


def _charge(**changes: Any) -> Charge:
    return Charge(**{"model": "central", "privacy_unit": "user", "epsilon": 0.1, "delta": 1e-7} | changes)


@pytest.mark.parametrize(
    ("count", "epsilon", "delta", "most_epsilon", "most_delta"),
    [
        (10, 0.1, 1e-7, 1.0, 1e-6),
        (3, 0.1, 0.1, 0.3, 0.3),
        (7, 0.7, 1e-9, 4.9, 7e-9),
        (1000, 0.001, 1e-12, 1.0, 1e-9),
        (49, 1.1, 0.0, 53.9, 0.0),
    ],
)
def test_what_adds_up_in_decimals_fits_exactly_and_not_once_more(
    count: int, epsilon: float, delta: float, most_epsilon: float, most_delta: float
) -> None:
    limit = _limit(epsilon=most_epsilon, delta=most_delta).amount
    spent = NOTHING
    for _ in range(count):
        spent = spent.plus(_charge(epsilon=epsilon, delta=delta).amount)
    assert spent == limit
    assert spent.fits(limit)
    assert not spent.plus(_charge(epsilon=epsilon, delta=0.0).amount).fits(limit)
    assert not spent.plus(_charge(epsilon=0.0, delta=delta or 1e-300).amount).fits(limit)


@given(st.integers(1, 10**15), st.integers(1, 1000))
def test_multiples_of_a_nano_epsilon_are_counted_exactly(nano: int, count: int) -> None:
    part, whole = float(Fraction(nano, NANO)), float(Fraction(nano * count, NANO))
    assert _charge(epsilon=part).amount.nano_epsilon == nano
    if nano * count < 2**53:
        assert _limit(epsilon=whole).amount.nano_epsilon == nano * count


@given(epsilons)
def test_charges_round_up_and_limits_down_and_no_further(epsilon: float) -> None:
    charged, allowed = _charge(epsilon=epsilon).amount.nano_epsilon, _limit(epsilon=epsilon).amount.nano_epsilon
    assert float(Fraction(charged, NANO)) >= epsilon > float(Fraction(charged - 1, NANO))
    assert float(Fraction(allowed, NANO)) <= epsilon < float(Fraction(allowed + 1, NANO))


@given(st.integers(1, 10**15 - 1), st.integers(16, 300))
def test_a_delta_is_the_decimal_that_it_is_written_as(digits: int, exponent: int) -> None:
    delta = float(f"{digits}e-{exponent}")
    assert _charge(delta=delta).amount.exact_delta == Fraction(digits, 10**exponent)
    assert _limit(delta=delta).amount.exact_delta == Fraction(digits, 10**exponent)


@given(epsilons, deltas)
def test_amounts_show_the_numbers_that_were_given(epsilon: float, delta: float) -> None:
    amount = _charge(epsilon=round(epsilon, 6), delta=delta).amount
    assert (amount.epsilon, amount.delta) == (round(epsilon, 6), delta)


@given(epsilons, deltas, epsilons, deltas)
def test_what_is_taken_away_again_leaves_no_trace(epsilon: float, delta: float, other: float, less: float) -> None:
    amount, taken = _charge(epsilon=epsilon, delta=delta).amount, _charge(epsilon=other, delta=less).amount
    assert amount.plus(taken).minus(taken) == amount


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "global"}, "model must be one of central, local, metric"),
        ({"privacy_unit": " "}, "privacy_unit must be a string that is not empty"),
        ({"privacy_unit": 7}, "privacy_unit must be a string that is not empty"),
        ({"model": "metric"}, "privacy_unit must be one of word, document"),
        ({"model": "metric", "privacy_unit": "word"}, "metric must be a string"),
        ({"model": "metric", "privacy_unit": "word", "metric": "euclidean"}, "index_digest must be a string"),
        ({"model": "metric", "privacy_unit": "document", "metric": "euclidean"}, "metric and index_digest go with"),
        ({"privacy_unit": "word", "index_digest": DIGEST}, "metric and index_digest go with"),
        ({"delta": 1.0}, "delta must be a number in"),
        ({"delta": -1e-9}, "delta must be a number in"),
        ({"delta": True}, "delta must be a number in"),
        ({"delta": float("nan")}, "delta must be a number in"),
        ({"epsilon": -1.0}, "epsilon must be a finite number above 0"),
        ({"epsilon": float("inf")}, "epsilon must be a finite number above 0"),
        ({"epsilon": False}, "epsilon must be a finite number above 0"),
    ],
)
def test_what_neither_a_limit_nor_a_charge_can_be(changes: dict[str, Any], message: str) -> None:
    for make in (_limit, _charge):
        with pytest.raises(ArgumentError, match=f"^{message}"):
            make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a finite number above 0"),
        ({"epsilon": None}, "epsilon must be a finite number above 0"),
        ({"epsilon": 9e-10}, "epsilon must be at least 1e-9"),
        ({"renew_days": 0}, "renew_days must be at least 1"),
        ({"renew_days": 1.5}, "renew_days must be a whole number"),
        ({"renew_days": 36_501}, "renew_days must be at most 36500"),
        (
            {"model": "metric", "privacy_unit": "word", "metric": "euclidean", "index_digest": DIGEST.upper()},
            "index_digest must be the 64 hexadecimal digits",
        ),
    ],
)
def test_what_a_limit_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        _limit(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": None},
        {"delta": None},
        {"epsilon": None, "delta": None},
        {"epsilon": None, "reason": "unknown"},
        {"reason": "unknown"},
    ],
)
def test_a_charge_is_stated_or_says_why_it_is_not(changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="reason"):
        _charge(**changes)
    assert _charge(epsilon=None, delta=None, reason="unknown").amount is None


def test_limits_and_charges_survive_json() -> None:
    word = {"model": "metric", "privacy_unit": "word", "metric": "euclidean", "index_digest": DIGEST}
    for limit in (_limit(), _limit(renew_days=30), _limit(**word)):
        assert Limit.from_json(json.loads(json.dumps(limit.to_json()))) == limit
    for charge in (_charge(), _charge(epsilon=None, delta=None, reason="unknown"), _charge(**word)):
        assert Charge.from_json(json.loads(json.dumps(charge.to_json()))) == charge


def test_units_are_told_apart() -> None:
    assert unit_of(_limit().key) == "central, user"
    word = _charge(model="metric", privacy_unit="word", metric="euclidean", index_digest=DIGEST)
    assert unit_of(word.key) == "metric, word, euclidean on index 0123456789ab"


def _record(ledger: Ledger, label: str, guarantee: Guarantee, **more: Any) -> None:
    fields: dict[str, Any] = {"mechanism": "Mechanism()", "max_applications": 1, "fingerprint": "mechanism"}
    ledger.record(label=label, guarantee=guarantee, **fields | more)


def _metric(epsilon: float | None, digest: str = DIGEST, **more: Any) -> MetricGuarantee:
    basis: Any = {"basis": "proved"} if epsilon is not None else {"basis": "none", "reason": "no proof"}
    return MetricGuarantee(epsilon=epsilon, metric="euclidean", index_digest=digest, **basis | more)


def test_each_unit_of_a_plan_is_charged_apart() -> None:
    ledger = Ledger()
    _record(ledger, "a", CentralGuarantee(basis="proved", epsilon=0.25, privacy_unit="user"))
    _record(ledger, "b", CentralGuarantee(basis="proved", epsilon=0.5, privacy_unit="user"), max_applications=2)
    _record(ledger, "c", CentralGuarantee(basis="proved", epsilon=2.0, delta=0.5, privacy_unit="shop"))
    _record(ledger, "d", LocalGuarantee(basis="proved", epsilon=4.0, privacy_unit="user"))
    assert charges_of(ledger.to_dict()) == (
        Charge(model="central", privacy_unit="user", epsilon=1.25, delta=0.0),
        Charge(model="central", privacy_unit="shop", epsilon=2.0, delta=0.5),
        Charge(model="local", privacy_unit="user", epsilon=4.0, delta=0.0),
    )


def test_words_are_charged_for_each_index_and_documents_once() -> None:
    ledger = Ledger()
    _record(ledger, "a", _metric(3.0, delta=0.001), max_applications=8, diameter=2.0)
    _record(ledger, "b", _metric(5.0, OTHER_DIGEST), max_applications=4, diameter=0.5)
    assert charges_of(ledger.to_dict()) == (
        Charge(model="metric", privacy_unit="word", epsilon=3.0, delta=0.001, metric="euclidean", index_digest=DIGEST),
        Charge(
            model="metric", privacy_unit="word", epsilon=5.0, delta=0.0, metric="euclidean", index_digest=OTHER_DIGEST
        ),
        Charge(model="metric", privacy_unit="document", epsilon=58.0, delta=0.008),
    )


def test_a_word_may_be_stated_where_a_document_is_not() -> None:
    ledger = Ledger()
    _record(ledger, "text", _metric(3.0), max_applications=None, diameter=2.0)
    word, document = charges_of(ledger.to_dict())
    assert (word.epsilon, word.reason) == (3.0, None)
    assert document.epsilon is None
    assert document.reason == "text declares no maximum of applications to one privacy unit"


def test_the_reason_of_a_document_is_that_of_the_index_which_has_one() -> None:
    ledger = Ledger()
    _record(ledger, "a", _metric(3.0), max_applications=8, diameter=2.0)
    _record(ledger, "b", _metric(5.0, OTHER_DIGEST), max_applications=None, diameter=0.5)
    assert charges_of(ledger.to_dict())[-1].reason == "b declares no maximum of applications to one privacy unit"


def test_what_is_not_stated_is_charged_with_its_reason() -> None:
    ledger = Ledger()
    _record(ledger, "a", _metric(None), max_applications=8, diameter=2.0)
    _record(
        ledger, "b", CentralGuarantee(basis="none", epsilon=None, reason="NOT PRIVATE: a test", privacy_unit="user")
    )
    assert [(charge.epsilon, charge.delta, charge.reason) for charge in charges_of(ledger.to_dict())] == [
        (None, None, "NOT PRIVATE: a test (b)"),
        (None, None, "no proof (a)"),
        (None, None, "no proof (a)"),
    ]


def test_an_empty_ledger_charges_nothing() -> None:
    assert charges_of(Ledger().to_dict()) == ()


@pytest.mark.parametrize(
    "ledger",
    [
        {},
        {"totals": {}},
        {"totals": {"central": {"groups": [{}]}, "local": None, "metric": None}},
        {"totals": {"central": None, "local": None, "metric": {"groups": []}}},
        {"totals": {"central": {"groups": 3}, "local": None, "metric": None}},
    ],
    ids=["empty", "no models", "empty group", "no document", "groups of another kind"],
)
def test_what_is_no_ledger_is_refused(ledger: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^not a ledger: "):
        charges_of(ledger)
