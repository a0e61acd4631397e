"""The text of one row, or why the row has none."""

from __future__ import annotations

from typing import Any

from beam_dp.io.rejects import INVALID_UNICODE, NOT_TEXT
from beam_dp.io.rows import RowShape, value_of

MISSING_COLUMN = "missing_column"


def text_of(kind: str, element: Any, shape: RowShape) -> tuple[str | None, str | None]:
    """The text of one row and None, or None and the reason why the row is rejected."""
    try:
        text = value_of(kind, element, shape)
    except LookupError:
        return None, MISSING_COLUMN
    if text is None:
        return None, None
    if not isinstance(text, str):
        return None, NOT_TEXT
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return None, INVALID_UNICODE
    return text, None
