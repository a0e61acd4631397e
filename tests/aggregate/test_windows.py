"""Which windows are released: exact to the microsecond, as a plain enumeration of windows has it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from apache_beam.transforms.window import FixedWindows, WindowFn
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Duration, Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beam_dp.aggregate.windows import WindowLimit, instant_of, require_windows, window_start
from beam_dp.errors import ArgumentError

SECOND = 1_000_000


def enumerated(size: int, offset: int, low: int, high: int) -> list[tuple[int, int]]:
    """All windows that begin in [low, high), one after another from the offset on, upwards and downwards."""
    starts, start = [], offset
    while start < high:
        starts.append(start)
        start += size
    start = offset - size
    while start >= low:
        starts.append(start)
        start -= size
    return [(start, start + size) for start in sorted(starts) if low <= start < high]


@settings(deadline=None)
@given(
    size=st.integers(1, 70), offset=st.integers(-200, 200), instant=st.integers(-600, 600), at_most=st.integers(1, 6)
)
@example(size=60, offset=0, instant=60, at_most=1)
@example(size=60, offset=0, instant=-1, at_most=2)
@example(size=1, offset=0, instant=0, at_most=3)
def test_the_windows_kept_are_those_that_an_enumeration_finds(
    size: int, offset: int, instant: int, at_most: int
) -> None:
    windows = enumerated(size, offset, -1200, 1200)
    (first,) = [i for i, (start, end) in enumerate(windows) if start <= instant < end]
    begin = window_start(instant, size, offset)
    assert begin == windows[first][0]
    limit = WindowLimit(at_most, size, begin)
    kept = [window for window in windows if limit.keeps(*window)]
    assert kept == windows[first : first + at_most]


@settings(deadline=None)
@given(
    size=st.integers(1, 10**13), offset=st.integers(-(10**13), 10**13), instant=st.integers(-(6 * 10**16), 2 * 10**17)
)
@example(size=1, offset=0, instant=-1)
@example(size=3600 * SECOND, offset=-1, instant=3600 * SECOND - 1)
def test_windows_start_where_beam_has_them_start(size: int, offset: int, instant: int) -> None:
    windows = FixedWindows(Duration(micros=size), Timestamp(micros=offset))
    (window,) = windows.assign(WindowFn.AssignContext(Timestamp(micros=instant), None))
    start = window_start(instant, windows.size.micros, windows.offset.micros)
    assert (start, start + size) == (window.start.micros, window.end.micros)
    assert WindowLimit(1, size, start).keeps(window.start.micros, window.end.micros)


@pytest.mark.parametrize(
    ("instant", "size", "offset", "start"),
    [
        (0, 60, 0, 0),
        (59, 60, 0, 0),
        (60, 60, 0, 60),
        (-1, 60, 0, -60),
        (-60, 60, 0, -60),
        (-61, 60, 0, -120),
        (9, 60, 10, -50),
        (10, 60, 10, 10),
        (69, 60, 10, 10),
        (7, 1, 0, 7),
    ],
)
def test_a_window_holds_its_start_and_not_its_end(instant: int, size: int, offset: int, start: int) -> None:
    assert window_start(instant, size, offset) == start


@pytest.mark.parametrize(
    ("start", "end", "kept"),
    [
        (-60, 0, False),
        (0, 60, True),
        (60, 120, True),
        (120, 180, True),
        (180, 240, False),
        (-1, 59, False),
        (30, 90, False),
        (0, 59, False),
        (0, 120, False),
        (0, 180, False),
        (MIN_TIMESTAMP.micros, MAX_TIMESTAMP.micros, False),
    ],
)
def test_of_three_windows_no_fourth_and_none_beside_the_grid(start: int, end: int, kept: bool) -> None:
    assert WindowLimit(3, 60, 0).keeps(start, end) is kept


def test_a_limit_that_is_only_declared_keeps_all() -> None:
    limit = WindowLimit(1, 60)
    assert not limit.enforced
    assert all(limit.keeps(start, start + 60) for start in range(-600, 600, 60))
    assert limit.parameters() == {"at_most": 1, "size_seconds": 60 / SECOND, "first": None}


@pytest.mark.parametrize(
    ("first_window", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:01:00.000001Z", 60 * SECOND + 1),
        ("1969-12-31T23:59:59.5Z", -SECOND // 2),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T18:30:00-05:30", 0),
        (datetime(1970, 1, 1, 0, 0, 1, 7, tzinfo=timezone.utc), SECOND + 7),
        (datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 0),
        (datetime(1, 1, 1, tzinfo=timezone.utc), -62_135_596_800 * SECOND),
        (Timestamp(micros=-1), -1),
        (Timestamp(90), 90 * SECOND),
    ],
    ids=str,
)
def test_instants_are_exact_in_each_form(first_window: object, micros: int) -> None:
    assert instant_of(first_window) == micros


@settings(deadline=None)
@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_the_three_forms_agree_and_the_ledger_says_the_same(moment: datetime) -> None:
    micros = instant_of(moment)
    limit = WindowLimit(1, SECOND, micros)
    first = limit.parameters()["first"]
    assert instant_of(first) == micros == instant_of(Timestamp(micros=micros))
    assert datetime.fromisoformat(first.replace("Z", "+00:00")) == moment


@pytest.mark.parametrize(
    "first_window",
    [
        "2026-01-31",
        "2026-01-31T00:00:00",
        "2026-01-31 00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-31T25:00:00Z",
        "0001-01-01T00:00:00+10:00",
        "now",
        "",
        datetime(2026, 1, 31),
        1_700_000_000,
        True,
        3.5,
        b"2026-01-31T00:00:00Z",
    ],
    ids=repr,
)
def test_what_is_no_instant_is_refused(first_window: object) -> None:
    with pytest.raises(ArgumentError, match="first_window must be"):
        require_windows(3, first_window)


@pytest.mark.parametrize(
    ("max_windows", "message"),
    [(0, "max_windows must be at least 1"), (1.5, "max_windows must be a whole number"), (None, "goes with max_wind")],
)
def test_a_first_window_needs_the_number_of_windows(max_windows: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        require_windows(max_windows, "2026-01-31T00:00:00Z")


@pytest.mark.parametrize("first", [MIN_TIMESTAMP.micros, MAX_TIMESTAMP.micros, -62_135_596_800 * SECOND - 1])
def test_a_window_that_no_calendar_has_is_refused(first: int) -> None:
    with pytest.raises(ArgumentError, match="the years 1 to 9999"):
        WindowLimit(1, SECOND, first)
