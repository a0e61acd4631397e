"""The ledger for people."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.accounting import DiscreteLaplaceLoss, Ledger
from beam_dp.guarantees import CentralGuarantee, MetricGuarantee

DIGEST = "0123456789abcdef" * 4


def _record(ledger: Ledger, label: str, mechanism: str = "Example()", reason: str | None = None) -> None:
    claim = (
        {"epsilon": 0.1, "delta": 1e-13, "basis": "proved"}
        if reason is None
        else {"epsilon": None, "basis": "none", "reason": reason}
    )
    ledger.record(
        label=label,
        mechanism=mechanism,
        guarantee=MetricGuarantee(**claim, metric="euclidean", index_digest=DIGEST),  # type: ignore[arg-type]
        max_applications=64,
        diameter=2.0,
        fingerprint="f",
    )


def test_the_table_shows_entries_and_totals() -> None:
    ledger = Ledger()
    _record(ledger, "Privatize utterances", "MultivariateLaplace(epsilon=0.1)")
    table = ledger.report()
    for shown in ("Privatize utterances", "MultivariateLaplace(epsilon=0.1)", "metric epsilon 0.1", "64", "euclidean"):
        assert shown in table
    lines = dict(
        line.split(maxsplit=1) for line in table.splitlines() if line.startswith("  e") or line.startswith("  w")
    )
    assert lines["epsilon_per_word"] == "0.1"
    assert lines["epsilon_per_document"] == "6.4"
    assert lines["worst_case_per_document"] == "12.8"
    assert "not user-level privacy" in table
    assert "NOT PRIVATE" not in table
    assert "central" not in table


def test_what_is_not_private_comes_first() -> None:
    ledger = Ledger()
    _record(ledger, "good")
    _record(ledger, "open door", reason="NOT PRIVATE: identity of the tests")
    lines = ledger.report().splitlines()
    assert lines[0] == "NOT PRIVATE"
    assert "open door" in lines[1]
    assert "good" not in lines[1]


def test_other_models_and_several_groups_are_listed() -> None:
    ledger = Ledger()
    _record(ledger, "text")
    for unit in ("user", "device"):
        ledger.record(
            label=f"count {unit}",
            mechanism="DiscreteLaplace()",
            guarantee=CentralGuarantee(basis="proved", epsilon=1.0, privacy_unit=unit),
            max_applications=1,
            fingerprint="f",
        )
    table = ledger.report()
    assert "central total (basic composition, unit: several)" in table
    assert "unit user (basic composition):" in table
    assert "unit device (basic composition):" in table
    assert "not stated: entries protect different privacy units" in table


def _count(ledger: Ledger, label: str, *, delta: float, unit: str = "user", uses: int | None = 128) -> None:
    ledger.record(
        label=label,
        mechanism="DiscreteLaplace(scale=10)",
        guarantee=CentralGuarantee(basis="proved", epsilon=2.0**-7, delta=delta, privacy_unit=unit),
        max_applications=uses,
        loss=DiscreteLaplaceLoss(scale=2.0**11, sensitivity=16),
        fingerprint="f",
    )


def test_a_central_total_shows_both_compositions_and_groups() -> None:
    ledger = Ledger()
    _count(ledger, "count", delta=1e-8)
    table = ledger.report()
    total = ledger.total()["central"]
    lines = table.splitlines()
    assert "central total (PLD composition, unit: user)" in lines
    assert f"  {'epsilon':<36}{total['epsilon']}" in lines
    assert f"  {'epsilon by basic composition':<36}1.0" in lines
    for group in total["group_privacy"]:
        label = f"of any {group['units']} units together"
        assert f"  {label:<36}epsilon {group['epsilon']}, delta {group['delta']}" in lines


def test_a_basic_total_shows_groups_and_no_second_epsilon() -> None:
    ledger = Ledger()
    _count(ledger, "count", delta=0.0)
    table = ledger.report()
    assert "central total (basic composition, unit: user)" in table
    assert "epsilon by basic composition" not in table
    assert f"  {'of any 10 units together':<36}epsilon 10.0, delta 0.0\n" in table


def test_what_cannot_be_stated_has_no_groups() -> None:
    ledger = Ledger()
    _count(ledger, "count", delta=1e-8, uses=None)
    assert "units together" not in ledger.report()
    ledger = Ledger()
    _count(ledger, "count", delta=0.005)
    assert f"  {'of any 2 units together':<36}not stated\n" in ledger.report()


def test_different_compositions_of_several_units() -> None:
    ledger = Ledger()
    _count(ledger, "a", delta=1e-8)
    _count(ledger, "b", delta=0.0, unit="device")
    table = ledger.report()
    assert "central total (several kinds of composition, unit: several)" in table
    assert "unit user (PLD composition):" in table
    assert "unit device (basic composition):" in table
    assert max(map(len, table.splitlines())) <= 100


def test_an_empty_ledger_says_so() -> None:
    assert Ledger().report() == "empty ledger: no mechanism was recorded\n"


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(
        st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=300).filter(
            str.strip
        ),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    unstated=st.booleans(),
)
def test_the_table_fits_100_columns(labels: list[str], unstated: bool) -> None:
    ledger = Ledger()
    for label in labels:
        _record(ledger, label, mechanism=f"M({label})", reason=f"NOT PRIVATE: {label}" if unstated else None)
    assert max(map(len, ledger.report().splitlines())) <= 100


@settings(max_examples=40, deadline=None)
@given(
    unit=st.text(min_size=1, max_size=200).filter(str.strip), delta=st.floats(1e-300, 1e-3), digest=st.text(max_size=99)
)
def test_the_totals_fit_100_columns(unit: str, delta: float, digest: str) -> None:
    ledger = Ledger()
    _count(ledger, "a", delta=delta, unit=unit)
    _count(ledger, "b", delta=delta, unit=f"{unit} too")
    _record(ledger, "c")
    ledger.record(
        label="d",
        mechanism="M()",
        guarantee=MetricGuarantee(epsilon=1.0, basis="proved", metric=unit, index_digest=digest),
        max_applications=1,
        fingerprint="f",
    )
    table = ledger.report()
    assert max(map(len, table.splitlines())) <= 100
    assert all(character == "\n" or character.isprintable() for character in table)


def test_an_exponent_stays_with_its_number() -> None:
    for width in range(30):
        ledger = Ledger()
        _record(ledger, "x", mechanism=f"{'m' * width} 1e-06")
        assert "1e-06" in ledger.report()
