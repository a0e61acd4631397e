"""Which fixed windows are released, where their number is limited.

A window is kept or dropped for its place in time alone, with all of its rows. So what is left says nothing of any
privacy unit, nothing has to be remembered, and an attempt that is repeated decides the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows
from apache_beam.utils.timestamp import Timestamp

from beam_dp.errors import ArgumentError, describe_kind, require_count

FirstWindow: TypeAlias = Timestamp | datetime | str

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_MICROSECONDS_A_SECOND = 1_000_000
_MICROSECONDS_A_MILLISECOND = 1_000
_RFC3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})")


@dataclass(frozen=True)
class WindowLimit:
    """In how many fixed windows a privacy unit has rows at most.

    Attributes:
        at_most: how many.
        size: of each window, in microseconds.
        first: where the first of them starts, in microseconds since the Unix epoch: the windows are then ``at_most``
            consecutive ones, and rows of others are dropped. None where the limit is what the caller says of the data.

    Raises:
        ArgumentError: the first one starts before the year 1 or after 9999.
    """

    at_most: int
    size: int
    first: int | None = None

    def __post_init__(self) -> None:
        if self.first is None:
            return
        try:
            _rfc3339(self.first)
        except OverflowError:
            raise ArgumentError("first_window must be in a window that starts in the years 1 to 9999") from None

    @property
    def enforced(self) -> bool:
        """Whether rows of other windows are dropped."""
        return self.first is not None

    def keeps(self, start: int, end: int) -> bool:
        """Whether rows of a window stay.

        Args:
            start: of the window, in microseconds since the Unix epoch.
            end: of the window, which it does not hold.
        """
        if self.first is None:
            return True
        number, beside = divmod(start - self.first, self.size)
        # Elements can be put into windows by hand; those that are not on the grid would be more than ``at_most``.
        return 0 <= number < self.at_most and beside == 0 and end - start == self.size

    def parameters(self) -> dict[str, Any]:
        """What the ledger says: ``at_most``, ``size_seconds`` and ``first``, RFC 3339 or None."""
        return {
            "at_most": self.at_most,
            "size_seconds": self.size / _MICROSECONDS_A_SECOND,
            "first": None if self.first is None else _rfc3339(self.first),
        }


def window_start(instant: int, size: int, offset: int) -> int:
    """Where the window starts that holds ``instant``; all in microseconds, instants since the Unix epoch.

    Windows start at whole multiples of ``size`` beyond ``offset``, before the epoch too, and hold their start.
    """
    return instant - (instant - offset) % size


def instant_of(first_window: object) -> int:
    """An instant in microseconds since the Unix epoch.

    Args:
        first_window: a Beam `Timestamp`, a `datetime` with a time zone, or RFC 3339 such as ``2026-01-31T00:00:00Z``.

    Raises:
        ArgumentError: it is something else.
    """
    if isinstance(first_window, str):
        return _parsed(first_window)
    if isinstance(first_window, datetime):
        if first_window.utcoffset() is None:
            raise ArgumentError("first_window must be a datetime with a time zone, such as timezone.utc")
        return (first_window - _EPOCH) // _MICROSECOND
    if not isinstance(first_window, Timestamp):
        raise ArgumentError(
            "first_window must be a Timestamp, a datetime or RFC 3339 text such as 2026-01-31T00:00:00Z, "
            f"not {describe_kind(first_window)}"
        )
    try:
        return first_window.micros
    except ValueError:
        raise ArgumentError("first_window must be a Timestamp of whole microseconds") from None


def require_windows(max_windows: object, first_window: object) -> tuple[int | None, int | None]:
    """The number of windows and an instant in the first, in microseconds since the Unix epoch; None for what is None.

    Raises:
        ArgumentError: one is of the wrong kind, or the second is given without the first.
    """
    if max_windows is None and first_window is not None:
        raise ArgumentError("first_window goes with max_windows: say how many windows there are from it on")
    most = None if max_windows is None else require_count("max_windows", max_windows)
    return most, None if first_window is None else instant_of(first_window)


def window_limit(rows: beam.PCollection, max_windows: int | None, first: int | None) -> WindowLimit | None:
    """The limit on the windows of ``rows``; None in the global window, and where nobody declares one.

    Args:
        rows: in global or fixed windows.
        max_windows: how many windows.
        first: an instant in the first of them, in microseconds since the Unix epoch. None for the window that holds
            this moment, on unbounded rows; on bounded ones for no enforcement.

    Raises:
        ArgumentError: ``first`` without fixed windows, or windows that cannot be told apart exactly.
    """
    windows = rows.windowing.windowfn
    if not isinstance(windows, FixedWindows):
        if first is not None:
            raise ArgumentError("first_window goes with fixed windows: of the global window there is one")
        return None
    if max_windows is None:
        return None
    size, offset = windows.size.micros, windows.offset.micros
    if first is None and not rows.is_bounded:
        first = Timestamp.now().micros
    if first is None:
        return WindowLimit(max_windows, size)
    if size % _MICROSECONDS_A_MILLISECOND or offset % _MICROSECONDS_A_MILLISECOND:
        raise ArgumentError(
            "max_windows is enforced on windows of whole milliseconds alone, since Beam passes on no finer ones: "
            "change the size or offset of FixedWindows"
        )
    return WindowLimit(max_windows, size, window_start(first, size, offset))


def _parsed(text: str) -> int:
    wrong = ArgumentError("first_window must be RFC 3339 with a time zone, such as 2026-01-31T00:00:00Z")
    if not _RFC3339.fullmatch(text):
        raise wrong
    try:
        return Timestamp.from_rfc3339(text).micros
    except (ValueError, OverflowError):
        raise wrong from None


def _rfc3339(instant: int) -> str:
    return (_EPOCH + timedelta(microseconds=instant)).isoformat().replace("+00:00", "Z")
