"""The lines of a history: their form, their hash chain, and what is found when one was touched."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_dp.accounting.budget.records import NO_RECORD, Record, make_line, parse_line, parse_lines, require_name
from beam_dp.errors import ArgumentError, BudgetStoreError

NOON = datetime(2024, 5, 17, 12, tzinfo=timezone.utc)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


def _line(sequence: int = 0, previous: str = NO_RECORD, **changes: Any) -> str:
    fields = {"dataset": "reviews", "at": NOON, "kind": "create", "body": {"schema": 1, "inputs": []}} | changes
    return make_line(sequence=sequence, previous=previous, **fields)


def _parse(line: str, sequence: int = 0, **changes: Any) -> Record:
    fields: dict[str, Any] = {"dataset": "reviews", "previous": NO_RECORD, "not_before": None} | changes
    return parse_line(line, sequence=sequence, **fields)


def _chain(count: int = 5) -> list[str]:
    lines: list[str] = []
    previous = NO_RECORD
    for sequence in range(count):
        lines.append(_line(sequence, previous, at=NOON + timedelta(seconds=sequence)))
        previous = json.loads(lines[-1])["hash"]
    return lines


def _rehashed(line: str, **changes: Any) -> str:
    """The line with other fields and the hash that they have."""
    fields = json.loads(line) | changes
    del fields["hash"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f'{text[:-1]},"hash":"{hashlib.sha256(text.encode()).hexdigest()}"}}'


def test_a_line_is_json_and_its_hash_that_of_the_canonical_json_of_the_rest() -> None:
    line = _line(body={"schema": 1, "inputs": ["/data/ü"]})
    fields = json.loads(line)
    digest = fields.pop("hash")
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest
    assert "\n" not in line
    assert fields.pop("nonce") != json.loads(_line())["nonce"]
    assert fields == {
        "dataset": "reviews",
        "sequence": 0,
        "at": "2024-05-17T12:00:00.000000+00:00",
        "kind": "create",
        "body": {"schema": 1, "inputs": ["/data/ü"]},
        "previous": "0" * 64,
    }


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_what_is_written_is_read(body: dict[str, Any]) -> None:
    record = _parse(_line(3, "ab" * 32, kind="reserve", body=body), 3, previous="ab" * 32, not_before=NOON)
    assert (record.sequence, record.kind, record.body, record.time) == (3, "reserve", body, NOON)


def test_a_chain_is_read_record_by_record() -> None:
    records = list(parse_lines(_chain(), dataset="reviews"))
    assert [record.sequence for record in records] == [0, 1, 2, 3, 4]
    assert [record.previous for record in records] == [NO_RECORD, *(record.hash for record in records[:-1])]
    middle = records[2]
    rest = parse_lines(_chain()[3:], dataset="reviews", start=3, previous=middle.hash, not_before=middle.time)
    with pytest.raises(BudgetStoreError, match="damaged at record 3: the record before it"):
        list(rest)  # of another chain with the same contents, whose nonces differ


@given(st.data())
def test_any_other_character_anywhere_is_found(data: st.DataObject) -> None:
    lines = _chain(3)
    number = data.draw(st.integers(0, 2))
    place = data.draw(st.integers(0, len(lines[number]) - 1))
    other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != lines[number][place]))
    lines[number] = lines[number][:place] + other + lines[number][place + 1 :]
    with pytest.raises(BudgetStoreError, match=rf"^(the history of )?data set reviews is .*(record {number}|upgrade)"):
        list(parse_lines(lines, dataset="reviews"))


@pytest.mark.parametrize(
    ("touch", "number"),
    [
        (lambda lines: lines[1:], 0),
        (lambda lines: [*lines[:2], *lines[3:]], 2),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 1),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 3),
        (lambda lines: [*lines[:3], _chain(4)[3], *lines[4:]], 3),
        (lambda lines: [*lines, "not a record"], 5),
        (lambda lines: [*lines, "[]"], 5),
        (lambda lines: [*lines, ""], 5),
    ],
    ids=["first gone", "one gone", "swapped", "twice", "of another chain", "no JSON", "no object", "empty"],
)
def test_a_history_that_was_touched_is_refused_at_the_first_wrong_record(touch: Any, number: int) -> None:
    with pytest.raises(BudgetStoreError, match=f"^the history of data set reviews is damaged at record {number}: "):
        list(parse_lines(touch(_chain()), dataset="reviews"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sequence": 1}, "another record stands in its place"),
        ({"sequence": "0"}, "a field is missing, unknown or of another kind"),
        ({"sequence": False}, "a field is missing, unknown or of another kind"),
        ({"dataset": "clicks"}, "another record stands in its place"),
        ({"previous": "ab" * 32}, "the record before it is not the one that it followed"),
        ({"kind": "refund"}, "its kind is unknown"),
        ({"body": []}, "a field is missing, unknown or of another kind"),
        ({"more": 1}, "a field is missing, unknown or of another kind"),
        ({"at": "2024-05-17T12:00:00.000000"}, "its time is no time in UTC"),
        ({"at": "2024-05-17T12:00:00.000000+02:00"}, "its time is no time in UTC"),
        ({"at": "noon"}, "its time is no time in UTC"),
    ],
    ids=str,
)
def test_a_right_hash_does_not_make_a_wrong_record_right(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BudgetStoreError, match=f"^the history of data set reviews is damaged at record 0: {reason}$"):
        _parse(_rehashed(_line(), **changes))


def test_time_never_goes_back() -> None:
    assert _parse(_line(1, "ab" * 32), 1, previous="ab" * 32, not_before=NOON).time == NOON
    with pytest.raises(BudgetStoreError, match="its time is before that of the record before"):
        _parse(_line(1, "ab" * 32), 1, previous="ab" * 32, not_before=NOON + timedelta(microseconds=1))


def test_a_newer_version_says_to_upgrade_whatever_else_it_changed() -> None:
    for line in (_line(body={"schema": 2}), '{"body":{"schema":2},"signature":"x"}'):
        with pytest.raises(BudgetStoreError, match=r"^data set reviews is kept in schema 2 .*: upgrade beam_dp$"):
            _parse(line)


def test_no_error_shows_what_a_record_holds() -> None:
    line = _line(body={"schema": 1, "inputs": ["a-secret"]})
    for touched in (line.replace("schema", "skema"), line[:-1], _rehashed(line, kind="a-secret")):
        with pytest.raises(BudgetStoreError) as caught:
            _parse(touched)
        assert "a-secret" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["a", "7", "reviews-2024.05_x", "r" * 64])
def test_names(name: str) -> None:
    assert require_name("run_id", name) == name


@pytest.mark.parametrize("name", ["", ".", "-a", "_a", "a b", "a/b", "ä", "r" * 65, "a\n", 7, None], ids=repr)
def test_what_no_name_can_be(name: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^run_id must be "):
        require_name("run_id", name)
