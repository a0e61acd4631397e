"""The contract that every backend of the budget store keeps, against real files, servers and processes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_dp.accounting.budget.gcs import ObjectLog
from beam_dp.accounting.budget.log import RecordLog
from beam_dp.accounting.budget.sql import SqlLog

WRITERS = 20


@pytest.fixture
def log(store_url: str) -> RecordLog:
    return open_log(store_url)


def open_log(url: str) -> RecordLog:
    return ObjectLog(url) if url.startswith("gs:") else SqlLog(url)


def test_records_are_read_in_the_order_in_which_they_were_appended(log: RecordLog) -> None:
    lines = [json.dumps({"sequence": number}) for number in range(12)]
    assert [log.append("reviews", number, line) for number, line in enumerate(lines)] == [True] * 12
    assert log.read("reviews") == lines


def test_data_sets_are_apart_and_sorted(log: RecordLog) -> None:
    names = ["tickets", "reviews", "a.b-c_d", "Reviews", "reviews2"]
    for name in names:
        assert log.append(name, 0, f'"{name}"')
    assert log.datasets() == sorted(names)
    assert [log.read(name) for name in names] == [[f'"{name}"'] for name in names]


def test_an_unknown_data_set_is_empty(log: RecordLog) -> None:
    log.append("reviews", 0, "{}")
    assert log.read("tickets") == []
    assert log.read("review") == []
    assert log.datasets() == ["reviews"]


def test_a_record_number_is_written_once(log: RecordLog) -> None:
    assert log.append("reviews", 0, '"first"')
    assert not log.append("reviews", 0, '"second"')
    assert log.append("reviews", 1, '"third"')
    assert not log.append("reviews", 1, '"fourth"')
    assert not log.append("reviews", 0, '"fifth"')
    assert log.read("reviews") == ['"first"', '"third"']


def test_a_gap_is_refused(log: RecordLog) -> None:
    log.append("reviews", 0, '"first"')
    assert not log.append("reviews", 2, '"third"')
    assert not log.append("tickets", 1, '"second"')
    assert log.read("reviews") == ['"first"']
    assert log.datasets() == ["reviews"]


def test_two_logs_of_one_store_see_each_other(log: RecordLog, store_url: str) -> None:
    other = open_log(store_url)
    assert log.append("reviews", 0, '"first"')
    assert not other.append("reviews", 0, '"second"')
    assert other.append("reviews", 1, '"second"')
    assert pickle.loads(pickle.dumps(log)).read("reviews") == ['"first"', '"second"']


LINES = st.lists(
    st.recursive(st.none() | st.booleans() | st.text() | st.integers(), lambda part: st.lists(part, max_size=3)).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_lines_come_back_as_they_were(log: RecordLog, lines: list[str]) -> None:
    name = f"data{len(_names(log))}"
    for number, line in enumerate(lines):
        assert log.append(name, number, line)
    assert log.read(name) == lines


def _names(log: RecordLog) -> list[str]:
    log.append("first", 0, "{}")
    return log.datasets()


@pytest.mark.parametrize(
    "line",
    ['"Ünïcode 漢字 \U0001f512"', '"\u2028 \u2029 \x85 \x0b \x0c \x1c"', '"' + "ä" * 300_000 + '"'],
    ids=["letters", "separators", "long"],
)
def test_no_character_but_the_line_feed_ends_a_line(log: RecordLog, line: str) -> None:
    assert log.append("reviews", 0, line)
    assert log.append("reviews", 1, line)
    assert log.read("reviews") == [line, line]


def test_time_is_aware_and_of_utc(log: RecordLog) -> None:
    now = log.now()
    assert now.utcoffset() == timedelta(0)
    # The servers run on this machine: a time zone taken for UTC would be off by a quarter of an hour at least.
    assert abs(now - datetime.now(timezone.utc)) < timedelta(minutes=10)


def append_once(log: RecordLog, writer: int) -> None:
    """Appends one record of this writer as the store does: reads, tries, and waits a little where others were first."""
    waits = random.Random(writer)
    sequence = 0
    while not log.append("reviews", sequence, json.dumps({"writer": writer, "sequence": sequence})):
        time.sleep(waits.uniform(0, 0.6))
        sequence = len(log.read("reviews"))


def in_processes(act: Callable[[int], None]) -> None:
    # Forked, with the log made before: connections must not be shared by parent and children.
    start = multiprocessing.get_context("fork")
    processes = [start.Process(target=act, args=(writer,)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS


def in_threads(act: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=act, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("together", [in_processes, in_threads])
def test_many_writers_make_one_chain_from_no_store_on(
    log: RecordLog, together: Callable[[Callable[[int], None]], None]
) -> None:
    together(lambda writer: append_once(log, writer))
    records = [json.loads(line) for line in log.read("reviews")]
    assert [record["sequence"] for record in records] == list(range(WRITERS))
    assert sorted(record["writer"] for record in records) == list(range(WRITERS))


def test_one_of_many_writers_of_one_record_succeeds(log: RecordLog) -> None:
    log.append("reviews", 0, "{}")
    won: list[int] = []

    def write(writer: int) -> None:
        if log.append("reviews", 1, str(writer)):
            won.append(writer)

    in_threads(write)
    assert log.read("reviews") == ["{}", *map(str, won)]
    assert len(won) == 1
