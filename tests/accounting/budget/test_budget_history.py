"""The rules: every transition and every limit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from memory_log import DAY, NOON, user_charge, user_limit

from beam_dp.accounting.budget import Account, Charge, Limit, Record
from beam_dp.accounting.budget.history import LEASE, UNSEEN, fold, is_done, refusal
from beam_dp.accounting.budget.records import format_time, make_line, parse_lines
from beam_dp.errors import ArgumentError, BudgetStoreError

DIGEST, OTHER_DIGEST = "0123456789abcdef" * 4, "fedcba9876543210" * 4
MINE, OTHERS = "a" * 32, "b" * 32


class Pen:
    """Writes records without asking any rule, so that `fold` is asked."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.at = NOON
        self.write("create", schema=1, inputs=[])

    def write(self, kind: str, **body: Any) -> Pen:
        previous = list(parse_lines(self.lines, dataset="reviews"))[-1].hash if self.lines else "0" * 64
        self.lines.append(
            make_line(dataset="reviews", sequence=len(self.lines), at=self.at, kind=kind, body=body, previous=previous)
        )
        return self

    def limit(self, limit: Limit) -> Pen:
        return self.write("limit", limit=limit.to_json())

    def reserve(self, run_id: str, *charges: Charge, token: str = MINE) -> Pen:
        return self.write("reserve", **_reservation(run_id, *charges, token=token))

    def start(self, run_id: str, token: str = MINE) -> Pen:
        return self.write("start", **self._lease(run_id, token))

    def commit(self, run_id: str, token: str = MINE) -> Pen:
        return self.write("commit", run_id=run_id, token=token)

    def publish(self, run_id: str, attempt: str = "a", token: str = MINE) -> Pen:
        return self.write("publish", run_id=run_id, token=token, attempt=attempt)

    def void(self, run_id: str, was: str, signed_by: str | None = None, statement: str | None = None) -> Pen:
        return self.write("void", run_id=run_id, was=was, signed_by=signed_by, statement=statement)

    def later(self, time: timedelta) -> Pen:
        self.at += time
        return self

    def records(self) -> list[Record]:
        return list(parse_lines(self.lines, dataset="reviews"))

    def account(self) -> Account:
        account = fold("reviews", self.records())
        assert account is not None
        return account

    def _lease(self, run_id: str, token: str) -> dict[str, str]:
        return {"run_id": run_id, "token": token, "lease_until": format_time(self.at + LEASE)}


def _reservation(run_id: str, *charges: Charge, token: str = MINE, plan_hash: str = "p") -> dict[str, Any]:
    return {
        "run_id": run_id,
        "token": token,
        "plan_hash": plan_hash,
        "pipeline": "aggregate",
        "charges": [charge.to_json() for charge in charges or (user_charge(),)],
        "ledger": _ledger_of(charges or (user_charge(),)),
    }


def _ledger_of(charges: Sequence[Charge]) -> dict[str, Any]:
    """What of a ledger says these charges."""
    totals: dict[str, Any] = {"central": None, "local": None, "metric": None}
    for charge in charges:
        total = totals[charge.model] = totals[charge.model] or {"groups": [], "reason": None}
        if charge.model != "metric":
            total["groups"].append(
                {name: getattr(charge, name) for name in ("privacy_unit", "epsilon", "delta", "reason")}
            )
        elif charge.privacy_unit == "word":
            named = {name: getattr(charge, name) for name in ("metric", "index_digest", "reason")}
            total["groups"].append(named | {"epsilon_per_word": charge.epsilon, "delta_per_word": charge.delta})
        else:
            total |= {"worst_case_per_document": charge.epsilon, "delta_per_document": charge.delta}
    return {"totals": totals}


def _run_in(state: str) -> Pen:
    """A history with a run in this state; its lease is over."""
    pen = Pen().limit(user_limit())
    if state == "absent":
        return pen
    pen.reserve("r")
    if state in ("running", "committed"):
        pen.start("r")
    if state == "committed":
        pen.commit("r")
    if state == "void":
        pen.void("r", "reserved")
    return pen.later(2 * DAY)


@pytest.mark.parametrize("token", [MINE, OTHERS], ids=["own", "other"])
@pytest.mark.parametrize("kind", ["reserve", "start", "commit", "publish", "void"])
@pytest.mark.parametrize("state", ["absent", "reserved", "running", "committed", "void"])
def test_every_transition(state: str, kind: str, token: str) -> None:
    pen = _run_in(state)
    account, at = pen.account(), pen.at
    bodies: dict[str, Any] = {
        "reserve": _reservation("r", token=token),
        "start": {"run_id": "r", "token": token, "lease_until": format_time(at + LEASE)},
        "commit": {"run_id": "r", "token": token},
        "publish": {"run_id": "r", "token": token, "attempt": "a"},
        "void": {"run_id": "r", "was": state, "signed_by": "A. Person", "statement": UNSEEN},
    }
    next_states = {
        ("absent", "reserve"): "reserved",
        ("reserved", "start"): "running",
        ("running", "commit"): "committed",
        ("committed", "publish"): "committed",
        ("reserved", "void"): "void",
        ("running", "void"): "void",
    }
    expected = next_states.get((state, kind))
    if token == OTHERS and kind in ("start", "commit", "publish"):
        expected = None
    reason = refusal(account, kind, bodies[kind], at)
    pen.write(kind, **bodies[kind])
    if expected is None:
        assert reason is not None
        assert "run" in reason
        with pytest.raises(BudgetStoreError, match=rf"damaged at record {len(pen.lines) - 1}: "):
            pen.account()
    else:
        assert reason is None
        assert pen.account().runs["r"].state == expected


@pytest.mark.parametrize("token", [MINE, OTHERS], ids=["own", "other"])
@pytest.mark.parametrize("plan_hash", ["p", "q"])
@pytest.mark.parametrize("state", ["absent", "reserved", "running", "committed", "void"])
def test_what_is_accepted_again_without_a_record(state: str, plan_hash: str, token: str) -> None:
    account = _run_in(state).account()
    own = token == MINE
    step = {"run_id": "r", "token": token}
    reservation = _reservation("r", token=token, plan_hash=plan_hash)
    assert is_done(account, "reserve", reservation) == (own and state == "reserved" and plan_hash == "p")
    assert not is_done(account, "start", step)
    assert not is_done(account, "publish", step | {"attempt": "a"})
    assert is_done(account, "commit", step) == (own and state == "committed")


@pytest.mark.parametrize("launch", ["one", "other", None])
@pytest.mark.parametrize("started_as", ["one", None])
def test_workers_of_one_graph_start_a_run(started_as: str | None, launch: str | None) -> None:
    pen = Pen().limit(user_limit()).reserve("r")
    step = {"run_id": "r", "token": MINE, "lease_until": format_time(pen.at + LEASE)}
    assert not is_done(pen.account(), "start", step | {"launch": launch})
    pen.write("start", **step, **({} if started_as is None else {"launch": started_as}))
    again = step if launch is None else step | {"launch": launch}
    assert pen.account().runs["r"].launch == started_as
    assert is_done(pen.account(), "start", again) == (started_as == launch == "one")
    reason = refusal(pen.account(), "start", again, pen.at)
    assert reason == "run r of aggregate is running already: start needs one that is reserved"


def test_a_launch_is_text() -> None:
    pen = Pen().limit(user_limit()).reserve("r")
    pen.write("start", run_id="r", token=MINE, lease_until=format_time(pen.at + LEASE), launch=1)
    with pytest.raises(BudgetStoreError, match="its body lacks a field, or one is of another kind"):
        pen.account()


def test_an_output_is_published_once_and_another_one_too() -> None:
    pen = Pen().limit(user_limit()).reserve("r").start("r").commit("r").publish("r", "a")
    step = {"run_id": "r", "token": MINE}
    assert is_done(pen.account(), "publish", step | {"attempt": "a"})
    assert not is_done(pen.account(), "publish", step | {"attempt": "b"})
    assert pen.publish("r", "b").account().runs["r"].published == {"a", "b"}


def test_other_charges_for_the_same_plan_are_another_reservation() -> None:
    account = Pen().limit(user_limit()).reserve("r").account()
    assert is_done(account, "reserve", _reservation("r"))
    assert not is_done(account, "reserve", _reservation("r", user_charge(0.2)))


def test_charges_are_those_of_the_ledger() -> None:
    pen = Pen().limit(user_limit())
    forged = _reservation("r", user_charge(0.5)) | {"charges": [user_charge(1e-9).to_json()]}
    assert refusal(pen.account(), "reserve", forged, pen.at) == "the charges are not those of its ledger"
    pen.write("reserve", **forged)
    with pytest.raises(BudgetStoreError, match="damaged at record 2: the charges are not those of its ledger"):
        pen.account()


def test_a_lease_ends_in_the_future() -> None:
    pen = Pen().limit(user_limit()).reserve("r")
    early = {"run_id": "r", "token": MINE, "lease_until": format_time(pen.at - timedelta(seconds=1))}
    assert refusal(pen.account(), "start", early, pen.at) is not None
    account = pen.start("r").account()
    run = account.runs["r"]
    assert run.lease_until == NOON + LEASE
    assert [run.lease_expired(NOON + LEASE + timedelta(seconds=s)) for s in (-1, 0, 1)] == [False, True, True]


def test_a_running_run_is_made_void_only_after_its_lease_and_by_a_signature() -> None:
    pen = Pen().limit(user_limit()).reserve("r").start("r")
    signed = {"run_id": "r", "was": "running", "signed_by": "A. Person", "statement": UNSEEN}
    account = pen.account()
    reason = refusal(account, "void", signed, NOON + LEASE - timedelta(seconds=1))
    assert reason is not None
    assert "may still publish: it can be made void from 2024-05-18 12:00:00 UTC on" in reason
    for change in ({"signed_by": None}, {"signed_by": " "}, {"statement": None}, {"statement": "seen"}):
        assert refusal(account, "void", signed | change, NOON + LEASE) is not None
    assert refusal(account, "void", signed | {"was": "reserved"}, NOON + LEASE) is not None
    assert refusal(account, "void", signed, NOON + LEASE) is None


def test_a_lease_that_is_over_changes_nothing_by_itself() -> None:
    pen = Pen().limit(user_limit()).reserve("r").start("r").later(100 * DAY)
    account = pen.account()
    assert account.spent(user_limit(), pen.at) == user_charge().amount
    assert pen.commit("r").account().runs["r"].state == "committed"


def test_the_charge_of_a_void_run_is_given_back_and_its_id_stays_taken() -> None:
    pen = Pen().limit(user_limit(0.1, 1e-7)).reserve("r")
    assert refusal(pen.account(), "reserve", _reservation("s"), pen.at) is not None
    account = pen.void("r", "reserved").account()
    assert account.remaining(user_limit(0.1, 1e-7), pen.at) == user_charge().amount
    assert refusal(account, "reserve", _reservation("s"), pen.at) is None
    assert refusal(account, "reserve", _reservation("r"), pen.at) is not None


def test_ten_tenths_fill_a_limit_of_one() -> None:
    pen = Pen().limit(user_limit(1.0, 1e-6))
    for number in range(10):
        pen.reserve(f"r{number}")
    reason = refusal(pen.account(), "reserve", _reservation("r10"), pen.at)
    assert reason == ("central, user: epsilon 0.1, delta 1e-07 is asked for, 0.0 and 0.0 is left of 1.0 and 1e-06")
    for number in range(10):
        assert pen.account().runs[f"r{number}"].state == "reserved"
    with pytest.raises(BudgetStoreError, match="damaged at record 12: central, user: "):
        pen.reserve("r10").account()


@pytest.mark.parametrize("part", ["epsilon", "delta"])
def test_epsilon_and_delta_must_both_fit(part: str) -> None:
    account = Pen().limit(user_limit(1.0, 1e-6)).account()
    over = {"epsilon": (1.000000001, 0.0), "delta": (0.5, 1.0000001e-6)}[part]
    assert account.refusal([user_charge(1.0, 1e-6)], NOON) is None
    assert account.refusal([user_charge(*over)], NOON) is not None


def test_models_and_units_have_budgets_of_their_own() -> None:
    shop = Limit(model="central", privacy_unit="shop", epsilon=1.0)
    local = Limit(model="local", privacy_unit="user", epsilon=1.0)
    pen = Pen().limit(user_limit(1.0)).limit(shop).limit(local)
    charge = {
        key: Charge(model=key[0], privacy_unit=key[1], epsilon=1.0, delta=0.0)
        for key in (("central", "user"), ("central", "shop"), ("local", "user"), ("local", "shop"))
    }
    pen.reserve("r", charge["central", "user"])
    account = pen.account()
    assert account.refusal([charge["central", "user"]], NOON) is not None
    assert account.refusal([charge["central", "shop"], charge["local", "user"]], NOON) is None
    assert account.refusal([charge["central", "shop"], charge["central", "user"]], NOON) is not None
    assert account.refusal([charge["local", "shop"]], NOON) == ("local, shop: data set reviews has no budget for it")
    assert account.limits == (user_limit(1.0), shop, local)
    assert account.spent(shop, NOON).epsilon == 0.0


def test_every_reason_is_told_at_once() -> None:
    account = Pen().limit(user_limit(0.5)).account()
    both = [user_charge(1.0), Charge(model="local", privacy_unit="user", epsilon=1.0, delta=0.0)]
    assert account.refusal(both, NOON) == (
        "local, user: data set reviews has no budget for it; "
        "central, user: epsilon 1.0, delta 1e-07 is asked for, 0.5 and 1e-06 is left of 0.5 and 1e-06"
    )


def test_charges_of_one_key_in_one_run_add_up() -> None:
    account = Pen().limit(user_limit(1.0)).account()
    assert account.refusal([user_charge(0.5), user_charge(0.5)], NOON) is None
    assert account.refusal([user_charge(0.5), user_charge(0.6)], NOON) is not None


def test_a_charge_that_is_not_stated_fits_no_limit_and_a_plan_without_any_charge_neither() -> None:
    unstated = Charge(model="central", privacy_unit="user", epsilon=None, delta=None, reason="no bound (a)")
    account = Pen().limit(user_limit()).account()
    assert account.refusal([unstated], NOON) == "central, user: what the run costs is not stated: no bound (a)"
    assert account.refusal([], NOON) == "the ledger records no mechanism, so nothing says what the run costs"


def _word(digest: str, epsilon: float | None = 1.0) -> Charge:
    return _metric("word", epsilon, metric="euclidean", index_digest=digest)


def _metric(unit: str, epsilon: float | None, **more: Any) -> Charge:
    stated: dict[str, Any] = {"delta": 0.0} if epsilon is not None else {"delta": None, "reason": "unbounded"}
    return Charge(model="metric", privacy_unit=unit, epsilon=epsilon, **stated, **more)


WORD_LIMIT = Limit(model="metric", privacy_unit="word", epsilon=2.0, metric="euclidean", index_digest=DIGEST)
DOCUMENT_LIMIT = Limit(model="metric", privacy_unit="document", epsilon=100.0)


@pytest.mark.parametrize(
    ("limits", "charges", "admitted"),
    [
        ([], [_word(DIGEST), _metric("document", 50.0)], False),
        ([WORD_LIMIT], [_word(DIGEST), _metric("document", 50.0)], True),
        ([WORD_LIMIT], [_word(DIGEST), _metric("document", None)], True),
        ([WORD_LIMIT], [_word(DIGEST, 3.0), _metric("document", 50.0)], False),
        ([WORD_LIMIT], [_word(OTHER_DIGEST), _metric("document", 50.0)], False),
        ([WORD_LIMIT], [_word(DIGEST), _word(OTHER_DIGEST), _metric("document", 50.0)], False),
        ([WORD_LIMIT], [_metric("document", 50.0)], False),
        ([DOCUMENT_LIMIT], [_word(DIGEST), _word(OTHER_DIGEST), _metric("document", 100.0)], True),
        ([DOCUMENT_LIMIT], [_word(DIGEST), _metric("document", 50.0), user_charge(0.1)], False),
        ([DOCUMENT_LIMIT], [_word(DIGEST, None), _metric("document", 100.0)], True),
        ([DOCUMENT_LIMIT], [_word(DIGEST), _metric("document", 101.0)], False),
        ([DOCUMENT_LIMIT], [_word(DIGEST), _metric("document", None)], False),
        ([WORD_LIMIT, DOCUMENT_LIMIT], [_word(DIGEST), _metric("document", 100.0)], True),
        ([WORD_LIMIT, DOCUMENT_LIMIT], [_word(DIGEST, 3.0), _metric("document", 100.0)], False),
        ([WORD_LIMIT, DOCUMENT_LIMIT], [_word(DIGEST, None), _metric("document", 100.0)], False),
        ([WORD_LIMIT, DOCUMENT_LIMIT], [_word(DIGEST), _metric("document", 101.0)], False),
        ([WORD_LIMIT, DOCUMENT_LIMIT], [_word(OTHER_DIGEST, 9.0), _metric("document", 100.0)], True),
    ],
    ids=[f"case {number}" for number in range(17)],
)
def test_words_and_documents(limits: list[Limit], charges: list[Charge], admitted: bool) -> None:
    pen = Pen()
    for limit in limits:
        pen.limit(limit)
    assert (pen.account().refusal(charges, NOON) is None) == admitted


def test_a_renewing_limit_counts_its_current_period_alone() -> None:
    limit = user_limit(1.0, renew_days=30)
    pen = Pen().later(timedelta(hours=5)).limit(limit)
    since = pen.at
    pen.later(29 * DAY).reserve("r", user_charge(0.75))
    account = pen.account()
    assert account.refusal([user_charge(0.5)], since + 30 * DAY - timedelta(microseconds=1)) is not None
    assert account.refusal([user_charge(1.0)], since + 30 * DAY) is None
    assert account.remaining(limit, since + 30 * DAY).epsilon == 1.0
    # The times of a clock that is behind are not taken at their word.
    assert account.spent(limit, since).epsilon == 0.75
    pen.later(2 * DAY).reserve("s", user_charge(0.5))
    assert pen.void("r", "reserved").account().spent(limit, pen.at).epsilon == 0.5


def test_periods_and_unfinished_runs_of_a_limit() -> None:
    weekly = user_limit(1.0, renew_days=7)
    pen = Pen().limit(weekly).reserve("old").later(8 * DAY)
    pen.reserve("a").reserve("b").reserve("c").reserve("d").start("b").start("c").commit("c").void("d", "reserved")
    account = pen.account()
    assert account.spent(weekly, pen.at).nano_epsilon == 300_000_000
    assert account.unfinished(weekly, pen.at).nano_epsilon == 200_000_000
    assert [account.renews_at(weekly, NOON + days * DAY) for days in (0, 8, 14, 20)] == [
        NOON + days * DAY for days in (14, 14, 21, 21)
    ]
    assert account.unfinished(weekly, NOON + 14 * DAY).nano_epsilon == 0
    assert Pen().limit(user_limit()).account().renews_at(user_limit(), NOON) is None


def test_a_limit_is_set_once_and_not_below_what_was_spent() -> None:
    pen = Pen().limit(DOCUMENT_LIMIT).reserve("r", _word(DIGEST, 3.0), _metric("document", 50.0))
    pen.reserve("s", _word(OTHER_DIGEST, None), _metric("document", 10.0))
    other = Limit(model="metric", privacy_unit="word", epsilon=9.0, metric="euclidean", index_digest=OTHER_DIGEST)
    account = pen.account()
    reasons = {
        limit: refusal(account, "limit", {"limit": limit.to_json()}, pen.at)
        for limit in (DOCUMENT_LIMIT, WORD_LIMIT, other)
    }
    assert reasons == {
        DOCUMENT_LIMIT: "data set reviews has a limit for metric, document already, and limits never change",
        WORD_LIMIT: "metric, word, euclidean on index 0123456789ab: epsilon 3.0 is spent already, more than the limit",
        other: "metric, word, euclidean on index fedcba987654: what an earlier run cost is not stated: unbounded",
    }
    pen.void("s", "reserved").limit(other)
    exactly = Limit(model="metric", privacy_unit="word", epsilon=3.0, metric="euclidean", index_digest=DIGEST)
    account = pen.limit(exactly).account()
    assert account.remaining(exactly, pen.at).epsilon == 0.0
    assert account.refusal([_word(DIGEST, 0.1), _metric("document", 1.0)], pen.at) is not None


def test_a_renewing_limit_that_comes_later_counts_from_then_on() -> None:
    pen = Pen().limit(DOCUMENT_LIMIT).reserve("r", _word(DIGEST, None), _metric("document", 50.0)).later(DAY)
    renewing = Limit(
        model="metric", privacy_unit="word", epsilon=2.0, metric="euclidean", index_digest=DIGEST, renew_days=7
    )
    account = pen.limit(renewing).account()
    assert account.spent(renewing, pen.at).epsilon == 0.0
    assert pen.void("r", "reserved").account().spent(renewing, pen.at).epsilon == 0.0


def test_spent_and_remaining_are_those_of_a_limit_that_is_there() -> None:
    with pytest.raises(
        ArgumentError, match=r"^limit must be one of data set reviews, which has none for central, user"
    ):
        Pen().account().spent(user_limit(), NOON)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("create", {"schema": 1, "inputs": []}),
        ("limit", {}),
        ("limit", {"limit": {"model": "central"}}),
        ("limit", {"limit": user_limit().to_json() | {"epsilon": -1}}),
        ("limit", {"limit": user_limit().to_json() | {"more": 1}}),
        ("reserve", {}),
        ("reserve", _reservation("r") | {"run_id": "../r"}),
        ("reserve", _reservation("r") | {"run_id": ["r"]}),
        ("reserve", _reservation("r") | {"token": 7}),
        ("reserve", _reservation("r") | {"charges": [{}]}),
        ("reserve", _reservation("r") | {"charges": [user_charge().to_json() | {"epsilon": [1]}]}),
        ("reserve", _reservation("r") | {"charges": [user_charge().to_json() | {"epsilon": True}]}),
        ("reserve", _reservation("r") | {"charges": 7}),
        ("start", {"run_id": "taken", "token": MINE}),
        ("start", {"run_id": "taken", "token": MINE, "lease_until": "soon"}),
        ("start", {"run_id": "taken", "token": MINE, "lease_until": "2024-05-18T12:00:00"}),
        ("commit", {"run_id": {}, "token": MINE}),
        ("void", {"run_id": "taken"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_that_breaks_a_rule_is_found_by_every_reader(kind: str, body: dict[str, Any]) -> None:
    pen = Pen().limit(user_limit()).reserve("taken")
    pen.account()
    with pytest.raises(BudgetStoreError, match=r"^the history of data set reviews is damaged at record 3: "):
        pen.write(kind, **body).account()


@pytest.mark.parametrize(
    "body", [{}, {"schema": 0, "inputs": []}, {"schema": 1}, {"schema": 1, "inputs": [7]}], ids=str
)
def test_the_first_record_creates_the_data_set(body: dict[str, Any]) -> None:
    pen = Pen()
    pen.lines = []
    with pytest.raises(BudgetStoreError, match="damaged at record 0"):
        pen.write("create", **body).account()
    pen.lines = []
    with pytest.raises(BudgetStoreError, match="damaged at record 0: the first record must create the data set"):
        pen.limit(user_limit()).account()


def test_a_fold_goes_on_from_an_account_that_stays_as_it_is() -> None:
    pen = Pen().limit(user_limit()).reserve("r").start("r").limit(DOCUMENT_LIMIT).commit("r").reserve("s")
    pen.void("s", "reserved").later(DAY).reserve("t")
    records = pen.records()
    whole = fold("reviews", records)
    for cut in range(1, len(records)):
        before = fold("reviews", records[:cut])
        again = fold("reviews", records[:cut])
        assert fold("reviews", records[cut:], before) == whole
        assert before == again
    assert fold("reviews", []) is None
    assert whole is not None
    assert (whole.records, whole.head, whole.created, whole.at) == (9, records[-1].hash, NOON, NOON + DAY)


def test_a_data_set_is_made_once() -> None:
    pen = Pen().limit(user_limit(1.0)).write("create", schema=1, inputs=[])
    with pytest.raises(BudgetStoreError, match="damaged at record 2: the data set is there already"):
        fold("reviews", pen.records())
