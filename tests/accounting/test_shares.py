"""Named shares: what they hold, who may draw them, and what a ledger refuses to record or to seal."""

from __future__ import annotations

import copy
import json
import pickle
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beam_dp import Ledger, Part, Share, Shares
from beam_dp.accounting import DiscreteLaplaceLoss
from beam_dp.accounting.rounding import round_down, round_up
from beam_dp.errors import ArgumentError, BudgetExceededError, InputError, LedgerSealedError
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee

DIGEST, OTHER_DIGEST = "ab" * 32, "cd" * 32
NANO = Fraction(1, 10**9)


def central(epsilon: float, delta: float = 0.0, unit: str = "user") -> CentralGuarantee:
    return CentralGuarantee(basis="proved", epsilon=epsilon, delta=delta, privacy_unit=unit)


def local(epsilon: float) -> LocalGuarantee:
    return LocalGuarantee(basis="proved", epsilon=epsilon, privacy_unit="user")


def metric(epsilon: float | None, delta: float = 0.0, digest: str = DIGEST) -> MetricGuarantee:
    why: dict[str, Any] = {"basis": "computed"} if epsilon else {"basis": "none", "reason": "nothing is claimed"}
    return MetricGuarantee(epsilon=epsilon, delta=delta, metric="euclidean", index_digest=digest, **why)


def spend(ledger: Ledger, guarantee: Guarantee, share: str | None, label: str = "step", **changes: Any) -> None:
    """One transform that draws a share and records one entry."""
    name = None if share is None else Share(share)
    if name is not None:
        ledger.draw(name, label, guarantee.model)
    fields: dict[str, Any] = {"max_applications": 1, "mechanism": "Example()", "fingerprint": "f"} | changes
    ledger.record(label=label, guarantee=guarantee, share=name, **fields)


def sums(shares: Shares) -> tuple[Fraction, Fraction]:
    amounts = shares.amounts.values()
    return sum(Fraction(p.epsilon) for p in amounts), sum(Fraction(p.delta) for p in amounts)  # type: ignore[return-value]


def test_weights_split_epsilon_and_delta() -> None:
    shares = Shares(epsilon=2, delta=2**-20, parts={"counts": 1, "prices": 3})
    assert shares.amounts == {"counts": Part(0.5, 2**-22), "prices": Part(1.5, 3 * 2**-22)}


def test_absolute_parts_are_what_they_say_and_need_not_use_up_the_total() -> None:
    shares = Shares(2, 1e-6, {"a": Part(0.7, 1e-7), "b": Part(0.9)})
    assert shares.amounts == {"a": Part(0.7, 1e-7), "b": Part(0.9, 0.0)}


def test_weights_split_what_absolute_parts_leave() -> None:
    shares = Shares(3, 2**-10, {"a": 1, "fixed": Part(1, 2**-11), "b": 3})
    assert shares.amounts == {"a": Part(0.5, 2**-13), "fixed": Part(1, 2**-11), "b": Part(1.5, 3 * 2**-13)}
    assert list(shares.amounts) == ["a", "fixed", "b"]


def test_thirds_are_rounded_down() -> None:
    shares = Shares(1, parts={"a": 1, "b": 2})
    assert shares.amounts == {"a": Part(0.333333333), "b": Part(0.666666666)}


@pytest.mark.parametrize(
    ("total", "part", "count"), [(0.3, 0.1, 3), (1.0, 0.1, 10), (0.7, 0.1, 7), (1.2, 0.3, 4), (0.6, 0.2, 3)]
)
def test_decimals_that_add_up_to_the_total_fit_although_their_floats_may_exceed_it(
    total: float, part: float, count: int
) -> None:
    shares = Shares(total, total / 1e6, {f"p{i}": Part(part, part / 1e6) for i in range(count)})
    amounts = list(shares.amounts.values())
    assert amounts[:-1] == [Part(part, part / 1e6)] * (count - 1)
    assert Fraction(part) - 2 * NANO <= Fraction(amounts[-1].epsilon) <= Fraction(part)
    assert sums(shares)[0] <= Fraction(total)
    assert sums(shares)[1] <= Fraction(total / 1e6)


_parts = st.one_of(
    st.floats(1e-3, 1e3),
    st.integers(1, 1000),
    st.builds(Part, st.floats(1e-6, 0.3), st.floats(0, 0.1)),
    st.builds(Part, st.sampled_from([0.1, 0.2, 0.3, 0.05]), st.sampled_from([1e-7, 2e-7, 0.0])),
)


@given(
    total=st.one_of(st.floats(1e-2, 50.0), st.sampled_from([0.1, 0.3, 0.6, 1.0, 1.5])),
    delta=st.one_of(st.floats(0, 0.5), st.sampled_from([1e-6, 3e-7])),
    parts=st.lists(_parts, min_size=1, max_size=12),
)
def test_amounts_never_add_up_to_more_than_the_total(total: float, delta: float, parts: list[Any]) -> None:
    named = {f"p{i}": part for i, part in enumerate(parts)}
    try:
        shares = Shares(total, delta, named)
    except ArgumentError:
        assume(False)
    epsilon_sum, delta_sum = sums(shares)
    assert epsilon_sum <= Fraction(total)
    assert delta_sum <= Fraction(delta)
    weighed = {name: Fraction(part) for name, part in named.items() if not isinstance(part, Part)}
    left = Fraction(total) - sum(Fraction(shares.amounts[name].epsilon) for name in named.keys() - weighed.keys())
    for name, part in named.items():
        amount = shares.amounts[name]
        exact = left * weighed[name] / sum(weighed.values()) if name in weighed else Fraction(part.epsilon)
        # Nothing is lost but a nano-epsilon, or what floats that stand for decimals add up to too much.
        assert exact - 2 * NANO <= Fraction(amount.epsilon) <= exact
    again = Shares(total, delta, shares.amounts)
    assert again.amounts == shares.amounts


@given(part=st.fractions(0, 100), more=st.fractions(0, 100))
def test_what_is_within_a_rounded_part_is_still_so_as_a_total(part: Fraction, more: Fraction) -> None:
    rounded = round_down(part)
    assert part - NANO < Fraction(rounded) <= part
    stated = round_up(Fraction(rounded) * more / 100)
    assert stated is not None
    assert stated <= rounded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, "epsilon must be a finite number above 0"),
        ({"delta": 1}, "delta must be a number in"),
        ({"model": "global"}, "model must be one of central, local, metric"),
        ({"parts": {}}, "parts must map one or more names"),
        ({"parts": ["a"]}, "parts must map one or more names"),
        ({"parts": {"": 1}}, "the name of a share must be a string that is not empty"),
        ({"parts": {3: 1}}, "the name of a share must be a string that is not empty, not a positive number"),
        ({"parts": {"a": 0}}, "the weight of share 'a' must be a finite number above 0, not zero"),
        ({"parts": {"a": True}}, "the weight of share 'a' must be"),
        ({"parts": {"a": Part(1.5), "b": Part(0.6)}}, "absolute ones add up to more than the total epsilon, 2.0"),
        ({"parts": {"a": Part(1, 6e-7), "b": Part(1, 5e-7)}}, "add up to more than the total delta, 1e-06"),
        ({"parts": {"a": Part(2), "b": 1}}, "less than 1e-9 of epsilon is left for share 'b'"),
        ({"parts": {"a": 1e-12, "b": 1}}, "less than 1e-9 of epsilon is left for share 'a'"),
    ],
)
def test_declarations_that_cannot_be_right_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Shares(**{"epsilon": 2, "delta": 1e-6, "parts": {"a": 1}} | arguments)


def test_names_and_parts_are_checked() -> None:
    for name in ("", " ", None, 3):
        with pytest.raises(ArgumentError, match="the name of a share"):
            Share(name)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="composition must be one of basic, pld"):
        Share("a", composition="rdp")  # type: ignore[arg-type]
    for epsilon, delta in ((0, 0.0), (float("nan"), 0.0), (1, -1e-9), (1, True)):
        with pytest.raises(ArgumentError):
            Part(epsilon, delta)


def test_they_are_values() -> None:
    shares = Shares(1, 1e-6, {"a": 1})
    for value in (Part(1, 1e-6), Share("a", "pld"), shares):
        assert pickle.loads(pickle.dumps(value)) == value
        with pytest.raises(AttributeError):
            value.epsilon = value.name = 2  # type: ignore[union-attr]
    parts: dict[str, float | Part] = {"a": 1}
    shares = Shares(1, parts=parts)
    parts["b"] = 1
    assert list(shares.amounts) == ["a"]


@given(part=st.builds(Part, st.floats(1e-6, 100), st.floats(0, 0.9)), uses=st.integers(1, 50))
def test_uses_together_take_no_more_than_their_part(part: Part, uses: int) -> None:
    each = part.split(uses)
    for whole, one in ((part.epsilon, each.epsilon), (part.delta, each.delta)):
        assert Fraction(whole) * (1 - Fraction(1, 10**15)) - Fraction(1, 10**300) <= uses * Fraction(one)
        assert uses * Fraction(one) <= Fraction(whole)


def test_a_ledger_takes_one_declaration_a_model_and_each_name_once() -> None:
    one, other = Shares(1, parts={"a": 1}), Shares(1, parts={"b": 1})
    with pytest.raises(ArgumentError, match="the central model has two declarations"):
        Ledger(shares=[one, other])
    with pytest.raises(ArgumentError, match="two models have a share 'a'"):
        Ledger(shares=[one, Shares(1, parts={"a": 1}, model="local")])
    for wrong in ({"a": 1}, 3, [one, "b"]):
        with pytest.raises(ArgumentError, match="shares must be Shares"):
            Ledger(shares=wrong)  # type: ignore[arg-type]


def test_a_share_is_drawn_by_one_transform() -> None:
    ledger = Ledger(shares=Shares(2, 1e-6, {"counts": 1, "prices": 3}))
    assert ledger.draw(Share("prices"), "first", "central") == Part(1.5, 7.499999999999999e-07)
    for label in ("second", "first"):
        with pytest.raises(ArgumentError, match=f"{label} draws share 'prices', which first has drawn"):
            ledger.draw(Share("prices"), label, "central")
    assert ledger.draw(Share("counts"), "second", "central").epsilon == 0.5


def test_what_cannot_be_drawn() -> None:
    declared = [Shares(1, parts={"counts": 1, "prices": 1}), Shares(4, parts={"answers": 1}, model="local")]
    ledger = Ledger(shares=declared)
    with pytest.raises(ArgumentError, match=r"step draws share 'price'.* did you mean 'prices'"):
        ledger.draw(Share("price"), "step", "central")
    with pytest.raises(ArgumentError, match="step needs a share of the central model, but 'answers' is of the local"):
        ledger.draw(Share("answers"), "step", "central")
    with pytest.raises(ArgumentError, match="share must be a Share"):
        ledger.draw("counts", "step", "central")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"does not declare: write Ledger\(shares="):
        Ledger().draw(Share("counts"), "step", "central")
    assert all(part["drawn_by"] is None for group in ledger.to_dict()["shares"] for part in group["parts"])
    ledger.seal()
    with pytest.raises(LedgerSealedError, match="step cannot be added"):
        ledger.draw(Share("counts"), "step", "central")


def test_in_a_declared_model_nothing_is_recorded_without_a_share() -> None:
    ledger = Ledger(shares=Shares(1, parts={"a": 1, "b": 1}))
    with pytest.raises(ArgumentError, match=r"step has no share.* declares the central total.* 'a', 'b'"):
        spend(ledger, central(0.1), None)
    assert ledger.entries == ()
    spend(ledger, local(3.0), None, "answers")
    spend(ledger, metric(3.0), None, "words", diameter=1.0)
    assert [entry.share for entry in ledger.entries] == [None, None]


def test_an_entry_needs_a_share_that_its_own_transform_has_drawn() -> None:
    ledger = Ledger(shares=[Shares(1, parts={"a": 1, "b": 1}), Shares(9, parts={"l": 1}, model="local")])
    fields: dict[str, Any] = {"mechanism": "Example()", "max_applications": 1, "fingerprint": "f"}
    ledger.draw(Share("a"), "outer/step", "central")
    for label, guarantee, name in (
        ("outer/step", central(0.1), "b"),
        ("outer/step", central(0.1), "unknown"),
        ("outer/step", local(0.1), "a"),
        ("outer/step two", central(0.1), "a"),
        ("outer", central(0.1), "a"),
    ):
        with pytest.raises(ArgumentError, match=r"cannot be recorded under share .* which it has not drawn"):
            ledger.record(label=label, guarantee=guarantee, share=Share(name), **fields)
    with pytest.raises(ArgumentError, match="share must be a Share"):
        ledger.record(label="outer/step", guarantee=central(0.1), share="a", **fields)  # type: ignore[arg-type]
    assert ledger.entries == ()
    for label in ("outer/step", "outer/step/count"):
        ledger.record(label=label, guarantee=central(0.1), share=Share("a"), **fields)
    assert [entry.share for entry in ledger.entries] == ["a", "a"]


@pytest.mark.parametrize(
    ("guarantee", "changes", "reason"),
    [
        (central(0.500000001, 1e-7), {}, "epsilon 0.500000001 and delta 1e-07 were recorded by step"),
        (central(0.1, 5.1e-7), {}, "epsilon 0.1 and delta 5.1e-07 were recorded by step"),
        (central(0.1), {"max_applications": 6}, "epsilon 0.6"),
        (central(0.1), {"max_applications": None}, "no total can be stated for it: step declares no maximum"),
        (central(0.1, 1e-7), {"composition_delta": 4.1e-7, "loss": DiscreteLaplaceLoss(10.0, 1)}, "delta 5.1"),
    ],
)
def test_what_does_not_fit_its_share_is_not_sealed(guarantee: Guarantee, changes: Any, reason: str) -> None:
    ledger = Ledger(shares=Shares(1, 1e-6, {"a": 1, "b": 1}))
    spend(ledger, guarantee, "a", **changes)
    with pytest.raises(
        BudgetExceededError, match=f"share 'a' allows epsilon 0.5 and delta 5e-07, but .*{reason}"
    ) as no:
        ledger.seal()
    assert no.value.exit_status == 3
    assert not ledger.sealed
    assert ledger.to_dict()["sealed"] is False
    spend(ledger, central(0.1), "b", "later")


def test_entries_of_one_share_are_added_up_and_not_those_of_others() -> None:
    ledger = Ledger(shares=Shares(1, 1e-6, {"a": 1, "b": 1}))
    spend(ledger, central(0.25, 2.5e-7), "a", "one/x")
    with pytest.raises(ArgumentError, match="has not drawn"):
        ledger.record(
            label="two", mechanism="m", guarantee=central(0.1), max_applications=1, fingerprint="f", share=Share("a")
        )
    spend(ledger, central(0.5, 5e-7), "b", "two")
    fields: dict[str, Any] = {"mechanism": "m", "max_applications": 1, "fingerprint": "f", "share": Share("a")}
    ledger.record(label="one/x/second", guarantee=central(0.25, 2.5e-7), **fields)
    ledger.seal()
    assert ledger.total()["central"]["epsilon"] == 1.0
    assert ledger.total()["central"]["delta"] == 1e-6


def test_shares_that_are_larger_than_needed_or_not_drawn_are_sealed() -> None:
    ledger = Ledger(shares=Shares(10, 1e-3, {"a": 1, "b": 1}))
    spend(ledger, central(0.1), "a")
    ledger.seal()
    assert ledger.sealed
    Ledger(shares=Shares(1, parts={"a": 1})).seal()


def test_a_share_holds_what_composes_to_less() -> None:
    """Thirty-two Laplace releases: epsilon 3.2 added up, less by privacy loss distributions."""
    laplace = DiscreteLaplaceLoss(scale=10.0, sensitivity=1)
    for epsilon, fits in ((3.0, True), (1.0, False)):
        ledger = Ledger(shares=Shares(epsilon, 1e-6, {"all": 1}))
        spend(ledger, central(0.1), "all", max_applications=32, loss=laplace, composition_delta=3e-8)
        if fits:
            ledger.seal()
            assert ledger.total()["central"]["basic"]["epsilon"] > epsilon
            assert ledger.total()["central"]["epsilon"] <= epsilon
        else:
            with pytest.raises(BudgetExceededError, match=r"share 'all' allows epsilon 1.0"):
                ledger.seal()


def test_metric_shares_are_per_word_and_checked_at_once() -> None:
    ledger = Ledger(shares=Shares(20, 1e-6, {"a": Part(12, 1e-9), "b": 1}, model="metric"))
    with pytest.raises(BudgetExceededError, match=r"share 'a' allows epsilon 12.0 .*epsilon 12.5 .* recorded by words"):
        spend(ledger, metric(12.5), "a", "words", max_applications=64, diameter=3.0)
    assert ledger.entries == ()
    fields: dict[str, Any] = {"mechanism": "m", "max_applications": 64, "diameter": 3.0, "fingerprint": "f"}
    for guarantee, message in ((metric(12, 2e-9), "delta 2e-09"), (metric(None), "no total .* nothing is claimed")):
        with pytest.raises(BudgetExceededError, match=message):
            ledger.record(label="words", guarantee=guarantee, share=Share("a"), **fields)
    ledger.record(label="words", guarantee=metric(12, 1e-9), share=Share("a"), **fields)
    with pytest.raises(ArgumentError, match="others and words are on different metrics or indexes"):
        spend(ledger, metric(1.0, digest=OTHER_DIGEST), "b", "others", max_applications=64, diameter=3.0)
    ledger.record(label="others", guarantee=metric(8.0), share=Share("b"), **fields)
    ledger.seal()
    assert ledger.total()["metric"]["epsilon_per_word"] == 20.0


def test_local_shares_hold_all_responses_of_a_unit() -> None:
    ledger = Ledger(shares=Shares(3, parts={"a": 1}, model="local"))
    with pytest.raises(BudgetExceededError, match=r"epsilon 4.0 and delta 0.0 were recorded by answers"):
        spend(ledger, local(1.0), "a", "answers", max_applications=4)
    fields: dict[str, Any] = {"mechanism": "m", "max_applications": 3, "fingerprint": "f"}
    ledger.record(label="answers", guarantee=local(1.0), share=Share("a"), **fields)
    ledger.seal()


def test_units_are_apart_and_the_declared_total_holds_for_each() -> None:
    ledger = Ledger(shares=Shares(1, parts={"a": 1, "b": 1}))
    spend(ledger, central(0.5, unit="user"), "a", "users")
    spend(ledger, central(0.5, unit="device"), "b", "devices")
    ledger.seal()
    fields: dict[str, Any] = {"mechanism": "m", "max_applications": 1, "fingerprint": "f"}
    mixed = Ledger(shares=Shares(1, parts={"a": 1}))
    spend(mixed, central(0.1, unit="user"), "a")
    mixed.record(label="step/more", guarantee=central(0.1, unit="device"), share=Share("a"), **fields)
    with pytest.raises(BudgetExceededError, match="no total can be stated for it: entries protect different"):
        mixed.seal()


def test_the_ledger_says_what_was_declared_and_who_drew_it() -> None:
    ledger = Ledger(shares=[Shares(2, 2**-20, {"a": 1, "b": 3}), Shares(8, parts={"w": Part(5)}, model="metric")])
    spend(ledger, central(1.5), "b", "Prices")
    document = json.loads(ledger.to_json())
    assert document["shares"] == [
        {
            "model": "central",
            "epsilon": 2.0,
            "delta": 2**-20,
            "parts": [
                {"name": "a", "epsilon": 0.5, "delta": 2**-22, "drawn_by": None},
                {"name": "b", "epsilon": 1.5, "delta": 3 * 2**-22, "drawn_by": "Prices"},
            ],
        },
        {
            "model": "metric",
            "epsilon": 8.0,
            "delta": 0.0,
            "parts": [{"name": "w", "epsilon": 5.0, "delta": 0.0, "drawn_by": None}],
        },
    ]
    assert document["entries"][0]["share"] == "b"
    text = ledger.report()
    assert "central shares of epsilon 2.0, delta 9.5367431640625e-07\n" in text
    assert "  b: epsilon 1.5, delta 7.152557373046875e-07; drawn by Prices\n" in text
    assert "  w: epsilon 5.0, delta 0.0; nobody drew it\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_ledger_with_shares_comes_back() -> None:
    ledger = Ledger(shares=Shares(0.3, 1e-6, {"a": Part(0.1, 1e-7), "b": Part(0.2)}))
    spend(ledger, central(0.1), "a")
    ledger.seal()
    again = Ledger.from_json(ledger.to_json())
    assert again.to_json() == ledger.to_json()
    assert again.entries == ledger.entries
    assert again.report() == ledger.report()


def test_a_ledger_without_shares_is_as_before() -> None:
    ledger, declared = Ledger(), Ledger(shares=Shares(1, parts={"a": 1}))
    spend(ledger, central(1.0), None)
    spend(declared, central(1.0), "a")
    assert "shares" not in ledger.to_dict()
    assert ledger.to_dict()["entries"][0]["share"] is None
    assert ledger.plan_hash != declared.plan_hash
    document = ledger.to_dict()
    del document["entries"][0]["share"]
    assert Ledger.from_json(json.dumps(document)).to_dict() == ledger.to_dict()


def test_a_changed_share_is_noticed() -> None:
    ledger = Ledger(shares=Shares(1, parts={"a": 1, "b": 1}))
    spend(ledger, central(0.5), "a")
    for share in ("b", None):
        document = ledger.to_dict()
        document["entries"][0]["share"] = share
        with pytest.raises(InputError, match="changed after it was written"):
            Ledger.from_json(json.dumps(document))
    document = ledger.to_dict()
    document["entries"][0]["share"] = 3
    with pytest.raises(InputError, match="incomplete or holds a field of the wrong kind"):
        Ledger.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "shares",
    [
        3,
        [3],
        [{}],
        [{"model": "central", "epsilon": 1, "delta": 0, "parts": []}],
        [{"model": "central", "epsilon": 1, "delta": 0, "parts": [{"name": "a", "epsilon": 2, "delta": 0}]}],
        [{"model": "x", "epsilon": 1, "delta": 0, "parts": [{"name": "a", "epsilon": 1, "delta": 0, "drawn_by": 0}]}],
    ],
    ids=["number", "list of number", "empty", "no parts", "no drawer", "no model"],
)
def test_damaged_shares_are_refused(shares: Any) -> None:
    document = Ledger().to_dict() | {"shares": shares}
    with pytest.raises(InputError, match="the shares of a ledger are incomplete"):
        Ledger.from_json(json.dumps(document))


def test_declared_amounts_belong_to_the_plan() -> None:
    ledger = Ledger(shares=Shares(2, parts={"counts": 1}))
    document = json.loads(ledger.report("json"))
    for change in (lambda d: d["shares"][0].update(epsilon=3), lambda d: d.pop("shares")):
        changed = copy.deepcopy(document)
        change(changed)
        with pytest.raises(InputError, match="changed after it was written"):
            Ledger.from_json(json.dumps(changed))
