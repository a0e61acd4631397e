import typing

import apache_beam as beam
import pytest

from beam_dp.io.rows import RowShape
from beam_dp.text.rows import text_of


class Utterance(typing.NamedTuple):
    text: str
    user: int


SHAPE = RowShape("text", ("user",))


@pytest.mark.parametrize(
    ("kind", "element", "expected"),
    [
        ("str", "a", ("a", None)),
        ("str", None, (None, None)),
        ("str", b"a", (None, "not_text")),
        ("str", "\ud800", (None, "invalid_unicode")),
        ("dict", {"text": "a", "user": 1}, ("a", None)),
        ("dict", {"text": "a"}, (None, "missing_column")),
        ("dict", ["text"], (None, "missing_column")),
        ("dict", {"text": 1, "user": 1}, (None, "not_text")),
        ("row", Utterance("a", 1), ("a", None)),
        ("row", beam.Row(text=None, user=1), (None, None)),
        ("row", beam.Row(text="a"), (None, "missing_column")),
    ],
)
def test_the_text_of_a_row_or_why_there_is_none(kind, element, expected):
    assert text_of(kind, element, SHAPE) == expected
