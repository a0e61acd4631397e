"""Totals: exact sums rounded up, never across models, metrics or privacy units."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_dp.accounting import DiscreteGaussianLoss, DiscreteLaplaceLoss, Entry, ParametersLoss, PrivacyLoss
from beam_dp.accounting.composition import compose, compose_central, compose_metric, group_privacy
from beam_dp.accounting.pld import pld_epsilon
from beam_dp.accounting.rounding import round_up
from beam_dp.errors import ArgumentError
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee


def _entry(
    guarantee: Guarantee,
    uses: int | None = 1,
    diameter: float | None = None,
    label: str = "step",
    loss: PrivacyLoss | None = None,
    composition_delta: float = 0.0,
) -> Entry:
    return Entry(
        label=label,
        mechanism="Example()",
        guarantee=guarantee,
        max_applications=uses,
        diameter=diameter,
        loss=loss,
        composition_delta=composition_delta,
        fingerprint="f",
    )


def _central(
    epsilon: float,
    delta: float = 0.0,
    uses: int | None = 1,
    loss: PrivacyLoss | None = None,
    unit: str = "user",
    composition_delta: float = 0.0,
) -> Entry:
    guarantee = CentralGuarantee(basis="proved", epsilon=epsilon, delta=delta, privacy_unit=unit)
    return _entry(guarantee, uses=uses, loss=loss, composition_delta=composition_delta)


def _central_total(*entries: Entry) -> dict[str, Any]:
    total = compose_central(entries)
    assert total is not None
    return total


def _metric(
    epsilon: float | None,
    uses: int | None = 64,
    *,
    delta: float = 0.0,
    diameter: float | None = 10.0,
    metric: str = "euclidean",
    digest: str = "a",
    reason: str = "no theorem",
) -> Entry:
    claim: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "basis": "proved"}
    if epsilon is None:
        claim = {"epsilon": None, "basis": "none", "reason": reason}
    return _entry(MetricGuarantee(**claim, metric=metric, index_digest=digest), uses, diameter)


def _total(*entries: Entry) -> dict[str, Any]:
    total = compose_metric(entries)
    assert total is not None
    return total


def test_one_metric_entry() -> None:
    total = _total(_metric(12.0, 64, delta=1e-13, diameter=2.5))
    assert total["epsilon_per_word"] == 12.0
    assert total["delta_per_word"] == 1e-13
    assert total["diameter"] == 2.5
    assert total["max_words"] == 64
    assert total["epsilon_per_document"] == 12.0 * 64
    assert total["epsilon_per_document_summed_metric"] == 12.0
    assert total["delta_per_document"] == 64e-13
    assert total["worst_case_per_document"] == 12.0 * 64 * 2.5
    assert total["reason"] is None
    assert "same document" in total["note"]
    assert "not user-level" in total["note"]


def test_metric_entries_on_one_index_add() -> None:
    total = _total(_metric(1.0, 10, diameter=2.0), _metric(0.5, 20, diameter=3.0))
    assert total["epsilon_per_word"] == 1.5
    assert total["epsilon_per_document"] == 20.0
    assert total["epsilon_per_document_summed_metric"] == 1.5
    assert total["worst_case_per_document"] == 1 * 10 * 2 + 0.5 * 20 * 3
    assert total["diameter"] == 3.0
    assert total["max_words"] == 20


@pytest.mark.parametrize("other", [{"metric": "mahalanobis"}, {"digest": "b"}])
def test_epsilons_of_different_units_never_add(other: dict[str, str]) -> None:
    total = _total(_metric(1.0, 10, diameter=2.0), _metric(2.0, 10, diameter=1.0, **other))  # type: ignore[arg-type]
    for name in ("epsilon_per_word", "epsilon_per_document", "epsilon_per_document_summed_metric", "diameter"):
        assert total[name] is None
    assert "different metrics or indexes" in total["reason"]
    assert total["worst_case_per_document"] == 40.0
    assert [group["epsilon_per_word"] for group in total["groups"]] == [1.0, 2.0]
    assert [group["epsilon_per_document"] for group in total["groups"]] == [10.0, 20.0]


@pytest.mark.parametrize("digest", ["a", "b"])
def test_no_finite_guarantee_makes_no_sum(digest: str) -> None:
    total = _total(_metric(1.0), _metric(None, digest=digest))
    for name in ("epsilon_per_word", "epsilon_per_document", "worst_case_per_document", "delta_per_document"):
        assert total[name] is None
    assert total["reason"] == "no theorem (step)"


def test_not_private_is_the_first_reason() -> None:
    total = _total(_metric(None), _metric(None, reason="NOT PRIVATE: identity"))
    assert total["reason"] == "NOT PRIVATE: identity (step)"


def test_an_unbounded_document_has_no_epsilon() -> None:
    total = _total(_metric(1.0, None))
    assert total["epsilon_per_word"] == 1.0
    assert total["epsilon_per_document"] is None
    assert total["worst_case_per_document"] is None
    assert "no maximum of applications" in total["reason"]


def test_an_unknown_diameter_has_no_worst_case() -> None:
    total = _total(_metric(1.0, 10, diameter=None), _metric(1.0, 10))
    assert total["epsilon_per_document"] == 20.0
    assert total["worst_case_per_document"] is None
    assert total["diameter"] is None
    assert "diameter" in total["reason"]


def test_a_delta_of_one_promises_nothing() -> None:
    document = _total(_metric(1.0, 64, delta=0.02))
    assert document["delta_per_word"] == 0.02
    for name in ("delta_per_document", "epsilon_per_document", "worst_case_per_document"):
        assert document[name] is None
    assert "1 or more" in document["reason"]
    word = _total(_metric(1.0, 1, delta=0.5), _metric(1.0, 1, delta=0.5))
    assert word["delta_per_word"] is None
    assert word["epsilon_per_word"] is None
    assert "one word" in word["reason"]


def test_models_are_apart() -> None:
    totals = compose(
        [
            _metric(1.0),
            _entry(LocalGuarantee(basis="proved", epsilon=2.0, privacy_unit="user")),
            _entry(CentralGuarantee(basis="proved", epsilon=3.0, delta=1e-6, privacy_unit="user"), uses=2),
        ]
    )
    assert totals["metric"]["epsilon_per_word"] == 1.0
    assert totals["local"]["epsilon"] == 2.0
    assert totals["central"]["epsilon"] == 6.0
    assert totals["central"]["delta"] == 2e-6
    assert totals["central"]["composition"] == "basic"
    assert compose([]) == {"central": None, "local": None, "metric": None}


@pytest.mark.parametrize("guarantee", [LocalGuarantee, CentralGuarantee])
@pytest.mark.parametrize(
    ("units", "uses", "delta", "reason"),
    [
        (("user", "device"), 1, 0.0, "different privacy units"),
        (("user", "user"), None, 0.0, "no maximum of applications"),
        (("user", "user"), 1, 0.5, "1 or more"),
    ],
)
def test_per_unit_totals_that_cannot_be_stated(
    guarantee: Any, units: tuple[str, str], uses: int | None, delta: float, reason: str
) -> None:
    model = guarantee.model
    total = compose(
        [_entry(guarantee(basis="proved", epsilon=1.0, delta=delta, privacy_unit=unit), uses) for unit in units]
    )[model]
    assert total["epsilon"] is None
    assert total["delta"] is None
    assert reason in total["reason"]
    assert len(total["groups"]) == len(set(units))


_metric_terms = st.lists(
    st.tuples(st.floats(1e-9, 1e4), st.integers(1, 4096), st.floats(0, 1e-9), st.floats(0, 1e3, allow_subnormal=False)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(terms=_metric_terms)
def test_totals_are_never_below_the_exact_sums_and_tight(terms: list[tuple[float, int, float, float]]) -> None:
    total = _total(*(_metric(e, m, delta=d, diameter=r) for e, m, d, r in terms))
    exact = {
        "epsilon_per_word": sum(Fraction(e) for e, _, _, _ in terms),
        "epsilon_per_document": sum(Fraction(e) * m for e, m, _, _ in terms),
        "delta_per_word": sum(Fraction(d) for _, _, d, _ in terms),
        "delta_per_document": sum(Fraction(d) * m for _, m, d, _ in terms),
        "worst_case_per_document": sum(Fraction(e) * m * Fraction(r) for e, m, _, r in terms),
    }
    for name, value in exact.items():
        slack = Fraction(math.ulp(total[name])) * 2 + (0 if name.startswith("delta") else Fraction(1, 10**9))
        assert value <= Fraction(total[name]) <= value + slack, name


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-12, 1e15))
def test_round_up_reaches_the_next_nano_epsilon(value: float) -> None:
    rounded = round_up(Fraction(value))
    assert rounded is not None
    assert rounded >= value
    assert Fraction(rounded) - Fraction(value) <= Fraction(1, 10**9) + Fraction(math.ulp(value))


@pytest.mark.parametrize(
    ("exact", "expected"),
    [
        (Fraction(0.1), 0.1),
        (Fraction(0.1) + Fraction(0.2), 0.300000001),
        (Fraction(1, 3), 0.333333334),
        (Fraction(768), 768.0),
        (Fraction(1, 10**15), 1e-9),
        (Fraction(0), 0.0),
        (Fraction(2**53 + 1), float(2**53 + 2)),
        (Fraction(sys.float_info.max), sys.float_info.max),
        (Fraction(sys.float_info.max) + 1, None),
        (Fraction(sys.float_info.max) * 2, None),
    ],
)
def test_round_up_by_example(exact: Fraction, expected: float | None) -> None:
    assert round_up(exact) == expected


def test_a_sum_beyond_the_floats_says_so() -> None:
    total = _total(_metric(1e308, 64, diameter=1.0))
    assert total["epsilon_per_document"] is None
    assert "largest float" in total["reason"]
    central = compose([_entry(CentralGuarantee(basis="proved", epsilon=1e308, privacy_unit="u"), uses=64)])["central"]
    assert central["epsilon"] is None
    assert "largest float" in central["reason"]


@settings(max_examples=40, deadline=None)
@given(
    epsilons=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=3),
    positions=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3),
)
def test_totals_bound_the_exact_privacy_loss(epsilons: list[float], positions: list[tuple[int, int]]) -> None:
    """Exponential mechanisms on three points of the line: the exact loss of two documents against the three claims."""
    points = np.array([0.0, 1.0, 2.5])
    distances = np.abs(points[:, None] - points)
    loss = 0.0
    for epsilon in epsilons:
        scores = -epsilon * distances / 2
        log_law = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        # Independent draws: the largest log ratio of a document is the sum of those of its positions.
        loss += sum(float(np.max(log_law[a] - log_law[b])) for a, b in positions)
    total = _total(*(_metric(epsilon, len(positions), diameter=2.5) for epsilon in epsilons))
    apart = [distances[a, b] for a, b in positions]
    assert loss <= total["epsilon_per_document_summed_metric"] * sum(apart) + 1e-9
    assert loss <= total["epsilon_per_document"] * max(apart) + 1e-9
    assert loss <= total["worst_case_per_document"] + 1e-9


LAPLACE = DiscreteLaplaceLoss(scale=10 * 2.0**17, sensitivity=2**17)  # ε = 0.1


def test_a_central_total_is_the_epsilon_of_the_privacy_losses_at_the_same_delta() -> None:
    total = _central_total(*(_central(0.1, loss=LAPLACE, composition_delta=1e-8) for _ in range(100)))
    assert total["composition"] == "pld"
    assert total["delta"] == pytest.approx(1e-6, rel=1e-12)
    assert total["basic"]["delta"] == 0
    assert total["basic"]["epsilon"] == pytest.approx(10, abs=2e-9)
    assert total["epsilon"] == pytest.approx(4.6927, abs=1e-3)
    assert total["reason"] is None
    exact = pld_epsilon(((LAPLACE, 100),), total["delta"])
    assert exact is not None
    assert exact <= total["epsilon"] <= exact + 1.1e-9
    # As many uses of one entry are as many entries, and a delta that the mechanisms spend serves as well.
    for used in (_central(0.1, uses=100, loss=LAPLACE, composition_delta=1e-8), _central(0.1, 1e-8, 100, LAPLACE)):
        assert _central_total(used)["epsilon"] == pytest.approx(total["epsilon"])


def test_delta_set_aside_for_composition_is_in_the_total_only_where_it_is_used() -> None:
    one = _central_total(_central(0.1, 1e-9, composition_delta=1e-12))
    assert (one["composition"], one["epsilon"], one["delta"]) == ("basic", 0.1, 1e-9)
    metric = MetricGuarantee(epsilon=1.0, basis="proved", metric="euclidean", index_digest="a")
    for guarantee, delta in ((metric, 1e-6), (CentralGuarantee(epsilon=1.0, basis="proved", privacy_unit="u"), 1.0)):
        with pytest.raises(ArgumentError, match="composition_delta is below 1 and goes with a central guarantee only"):
            _entry(guarantee, composition_delta=delta)


def test_what_is_known_of_a_loss_counts_and_the_rest_by_its_parameters() -> None:
    bare = _central_total(_central(0.1, uses=100), _central(0.1, 1e-6, loss=LAPLACE))
    assert bare["composition"] == "pld"
    expected = pld_epsilon(((ParametersLoss(0.1), 100), (LAPLACE, 1)), 1e-6)
    assert bare["epsilon"] == pytest.approx(expected, abs=2e-9)
    known = _central_total(_central(0.1, uses=100, loss=LAPLACE), _central(0.1, 1e-6, loss=LAPLACE))
    assert known["epsilon"] < bare["epsilon"] - 0.05


@pytest.mark.parametrize(
    "entries",
    [
        [_central(1.0, uses=100, loss=LAPLACE)],  # a delta of 0 leaves nothing to trade
        [_central(1.0, 1e-6)],  # all of delta is spent where the loss is infinite
        [_central(0.5, 1e-6, loss=DiscreteLaplaceLoss(scale=1.0, sensitivity=1))],  # a loss that promises less
        [_central(1.0, 1e-17, uses=10, loss=LAPLACE)],  # less delta than rounding
        [_central(1.0, 1e-6, uses=10)],  # gains in the tenth digit only
    ],
)
def test_the_basic_total_stands_where_it_is_the_smaller(entries: list[Entry]) -> None:
    total = _central_total(*entries)
    assert total["composition"] == "basic"
    assert {"epsilon": total["epsilon"], "delta": total["delta"]} == total["basic"]
    assert total["epsilon"] == float(sum(e.guarantee.epsilon * e.max_applications for e in entries))  # type: ignore


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (_central(0.1, 1e-8, uses=None, loss=LAPLACE), "no maximum of applications"),
        (_central(0.1, 0.5, uses=2, loss=LAPLACE), "1 or more"),
        (
            _entry(CentralGuarantee(basis="none", epsilon=None, reason="NOT PRIVATE: x", privacy_unit="user")),
            "NOT PRIV",
        ),
    ],
)
def test_a_central_total_that_cannot_be_stated(entry: Entry, reason: str) -> None:
    total = _central_total(_central(0.1, 1e-8, loss=LAPLACE), entry)
    assert reason in total["reason"]
    assert total["epsilon"] is None
    assert total["delta"] is None
    assert total["basic"] == {"epsilon": None, "delta": None}
    assert total["group_privacy"] == [{"units": units, "epsilon": None, "delta": None} for units in (2, 5, 10)]


def test_privacy_units_stay_apart() -> None:
    many = [_central(0.1, 1e-8, uses=100, loss=LAPLACE, unit=unit) for unit in ("user", "device")]
    total = _central_total(*many, _central(0.1, 1e-8, unit="household"))
    assert total["epsilon"] is None
    assert total["composition"] is None
    assert "different privacy units" in total["reason"]
    alone = _central_total(many[0])["groups"][0]
    assert total["groups"][0] == alone
    assert [group["composition"] for group in total["groups"]] == ["pld", "pld", "basic"]
    assert _central_total(*many)["composition"] == "pld"


def test_a_local_total_is_basic() -> None:
    local = LocalGuarantee(basis="proved", epsilon=0.1, delta=1e-8, privacy_unit="user")
    total = compose([_entry(local, uses=100)])["local"]
    assert total["composition"] == "basic"
    assert total["epsilon"] == pytest.approx(10, abs=2e-9)


_central_terms = st.lists(
    st.tuples(
        st.floats(1e-3, 5),
        st.floats(0, 1e-4),
        st.integers(1, 50),
        st.one_of(
            st.none(),
            st.builds(DiscreteLaplaceLoss, st.floats(0.1, 1e4), st.integers(1, 10**6), st.integers(1, 16)),
            st.builds(DiscreteGaussianLoss, st.floats(0.1, 1e8), st.integers(1, 10**6), st.integers(1, 16)),
            st.builds(ParametersLoss, st.floats(1e-6, 100), st.floats(0, 0.5), st.integers(1, 16)),
        ),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(terms=_central_terms)
def test_a_central_total_is_never_below_zero_nor_above_the_basic_one(terms: list[Any]) -> None:
    total = _central_total(*(_central(epsilon, delta, uses, loss) for epsilon, delta, uses, loss in terms))
    exact = sum(Fraction(epsilon) * uses for epsilon, _, uses, _ in terms)
    assert total["basic"]["epsilon"] == round_up(exact)
    assert 0 <= total["epsilon"] <= total["basic"]["epsilon"]
    assert total["delta"] == total["basic"]["delta"]
    assert (total["composition"] == "pld") == (total["epsilon"] < total["basic"]["epsilon"])


@settings(max_examples=200, deadline=None)
@given(epsilon=st.floats(0, 20), delta=st.just(0.0) | st.floats(1e-300, 0.2), units=st.sampled_from([1, 2, 5, 10]))
def test_group_privacy_is_the_chain_of_neighbours(epsilon: float, delta: float, units: int) -> None:
    claim = group_privacy(epsilon, delta, units)
    chained = 0.0
    for _ in range(units):  # P_0 <= e^ε·P_1 + δ, and so on from the far end
        chained = math.exp(epsilon) * chained + delta
    assert claim["units"] == units
    if claim["delta"] is None:
        assert claim["epsilon"] is None
        assert chained > 1 - 1e-9
        return
    assert chained * (1 - 1e-12) <= claim["delta"] <= chained * (1 + 1e-12)
    assert claim["delta"] < 1
    assert 0 <= claim["epsilon"] - units * epsilon <= 1e-9 * (1 + 1e-6)


@pytest.mark.parametrize("units", [2, 5, 10])
def test_group_privacy_holds_for_the_noise_of_many_units(units: int) -> None:
    one, group = (DiscreteGaussianLoss(sigma=50.0, sensitivity=5 * count) for count in (1, units))
    for epsilon in (0.0, 0.1, 0.3):
        claim = group_privacy(epsilon, float(one.divergence(np.array([epsilon]))[0]), units)
        assert claim["delta"] is not None
        assert group.divergence(np.array([claim["epsilon"]]))[0] <= claim["delta"]


def test_group_privacy_by_example() -> None:
    assert group_privacy(0.5, 0.0, 10) == {"units": 10, "epsilon": 5.0, "delta": 0.0}
    assert group_privacy(0.0, 0.25, 2) == {"units": 2, "epsilon": 0.0, "delta": pytest.approx(0.5)}
    nothing = {"units": 5, "epsilon": None, "delta": None}
    assert group_privacy(0.0, 0.2, 5) == nothing
    assert group_privacy(1e3, 1e-300, 5) == nothing
    assert group_privacy(186.0, 1e-323, 5) == nothing  # whose exp is beyond the floats
    assert group_privacy(sys.float_info.max, 0.0, 5) == nothing
    assert group_privacy(None, None, 5) == nothing
