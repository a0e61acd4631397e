"""Endless input on Prism: texts keep their time and window, a fixed window is released once, late rows not at all."""

from __future__ import annotations

import json
import pickle
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms import trigger, window
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "aggregate"))
from exact import aggregate, private
from noise_free_job import Identity

from beam_dp import Budget, Count, Ledger, MultivariateLaplace, PrivatizeText
from beam_dp.aggregate import PrivacyUnitCount
from beam_dp.errors import ArgumentError
from pipelines.options import parse_options
from pipelines.privatize_stream import PrivatizeStreamOptions, privatized

pytestmark = pytest.mark.engine

SIZE = 60
FIRST = 1_200_000_000  # the start of a window


class Seen(NamedTuple):
    """What a step found.

    Attributes:
        value: the element; a batch as a list of rows.
        at: its timestamp, in seconds after `FIRST`.
        start: of its window, the same; None in the global window.
        pane: its index.
    """

    value: Any
    at: float
    start: float | None
    pane: int


class Note(beam.DoFn):
    """Leaves what it sees in a folder, a file an element, since nothing comes back from an engine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(
        self,
        element: Any,
        at: Any = beam.DoFn.TimestampParam,
        within: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterable[None]:
        value = element.to_pylist() if isinstance(element, pa.RecordBatch) else element
        start = None if isinstance(within, window.GlobalWindow) else float(within.start) - FIRST
        seen = Seen(value, float(at) - FIRST, start, pane.index)
        (self._folder / uuid.uuid4().hex).write_bytes(pickle.dumps(seen))
        yield from ()


class ToBatch(beam.DoFn):
    """JSON of rows as a batch."""

    def process(self, text: str) -> Iterable[pa.RecordBatch]:
        yield pa.RecordBatch.from_pylist(json.loads(text))


class Texts(NamedTuple):
    """A row with a schema."""

    id: int
    text: str


KINDS: dict[str, beam.PTransform] = {
    "str": beam.Map(lambda text: json.loads(text)[0]["text"]).with_output_types(str),
    "dict": beam.Map(lambda text: json.loads(text)[0]).with_output_types(dict[str, Any]),
    "row": beam.Map(lambda text: Texts(**json.loads(text)[0])).with_output_types(Texts),
    "record_batch": beam.ParDo(ToBatch()).with_output_types(pa.RecordBatch),
}


def stream(*events: float | tuple[float, Any]) -> test_stream.TestStream:
    """Rows at a time, and times that the watermark is advanced to; all in seconds after `FIRST`."""
    source = test_stream.TestStream(coder=coders.StrUtf8Coder())
    for event in events:
        if isinstance(event, tuple):
            at, rows = event
            text = json.dumps(rows if isinstance(rows, list) else [rows])
            source.add_elements([TimestampedValue(text, Timestamp(FIRST + at))])
        else:
            source.advance_watermark_to(Timestamp(FIRST + event))
    return source.advance_watermark_to_infinity()


@pytest.fixture
def run(prism_binary: Path, tmp_path: Path) -> Any:
    """Runs transforms one after another on a stream; gives what came out and the ledger."""

    def run(source: test_stream.TestStream, *transforms: beam.PTransform) -> tuple[list[Seen], Ledger]:
        ledger = Ledger()
        flags = ["--runner=PrismRunner", f"--prism_location={prism_binary}", "--streaming"]
        (tmp_path / "seen").mkdir()
        with ledger.pipeline(PipelineOptions(flags)) as pipeline:
            found = pipeline | source
            for number, transform in enumerate(transforms):
                found = found | f"{number}" >> transform
            found | "Note" >> beam.ParDo(Note(tmp_path / "seen"))
        return [pickle.loads(path.read_bytes()) for path in (tmp_path / "seen").iterdir()], ledger

    return run


def in_windows(**options: Any) -> beam.PTransform:
    return beam.WindowInto(FixedWindows(SIZE), **options)


TEXTS = [(at, {"id": n, "text": f"where is my order {n}"}) for n, at in enumerate([0, 3.5, 59.999, 60, 61, 200])]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_keep_their_time_and_window(run: Any, kind: str) -> None:
    keep = () if kind == "str" else ("id",)
    source = stream(*TEXTS[:4], 60, *TEXTS[4:])
    found, ledger = run(source, KINDS[kind], in_windows(), PrivatizeText(Identity(), keep_columns=keep))
    assert len(found) == len(TEXTS)
    for seen in found:
        row = seen.value[0] if kind == "record_batch" else seen.value
        number = int(row.split()[-1] if kind == "str" else row["id"] if isinstance(row, dict) else row.id)
        text = row if kind == "str" else row["text"] if isinstance(row, dict) else row.text
        assert text == TEXTS[number][1]["text"]
        assert seen.at == pytest.approx(TEXTS[number][0])
        assert seen.start == TEXTS[number][0] // SIZE * SIZE
    (entry,) = ledger.entries
    assert "NOT PRIVATE" in entry.guarantee.reason


def test_a_stream_of_batches_is_privatized_row_by_row(run: Any) -> None:
    rows = [{"id": n, "text": f"where is order {n}", "name": "Xyzzy9Canary"} for n in range(10, 20)]
    source = stream((1, rows[:7]), 2, (3, rows[7:]))
    found, ledger = run(
        source, KINDS["record_batch"], PrivatizeText(MultivariateLaplace(epsilon=4), keep_columns=["id"])
    )
    assert sorted((len(seen.value), seen.at) for seen in found) == [(3, 3.0), (7, 1.0)]
    private = {row["id"]: row["text"] for seen in found for row in seen.value}
    assert private.keys() == {row["id"] for row in rows}
    assert all(len(text.split()) == 4 for text in private.values())
    assert not set(private.values()) & {row["text"] for row in rows}
    assert "Xyzzy9Canary" not in repr(found)
    (entry,) = ledger.entries
    assert (entry.label, entry.guarantee.epsilon, entry.guarantee.model) == ("1", 4.0, "metric")
    assert entry.max_applications == 64


def rows_at(*times: float, item: str = "tea") -> list[tuple[float, Any]]:
    """A row of another user at each time."""
    return [(at, {"user": f"{item} {at}", "item": item}) for at in times]


def counted(found: Sequence[Seen]) -> Counter[tuple[float | None, str, int]]:
    """How often each (window, item, count) was released."""
    return Counter((seen.start, seen.value["item"], seen.value["count"]) for seen in found)


def test_a_window_fires_once_and_late_rows_are_discarded(run: Any) -> None:
    source = stream(
        *rows_at(1, 2),
        *rows_at(5, item="jam"),
        30,
        *rows_at(3, 59),  # behind the watermark, but their window is open
        *rows_at(61),
        61,
        *rows_at(4, 58),  # their window is closed
        *rows_at(7, item="oil"),
        100,
        *rows_at(62),
        1000,
        *rows_at(6, 63, 1001),  # the last in a window that is open
    )
    found, _ = run(source, KINDS["dict"], in_windows(), aggregate())
    assert counted(found) == {
        (0.0, "tea", 4): 1,
        (0.0, "jam", 1): 1,
        (60.0, "tea", 2): 1,
        (960.0, "tea", 1): 1,
    }


def test_rows_that_come_in_many_bundles_are_in_one_release(run: Any) -> None:
    times = [n / 10 for n in range(100)]
    events: list[Any] = []
    for at in times:
        events += [*rows_at(at), at + 0.05]
    found, _ = run(
        stream(*events, 59.99, 70), KINDS["dict"], in_windows(), aggregate(metrics=[Count(), PrivacyUnitCount()])
    )
    assert counted(found) == {(0.0, "tea", len(times)): 1}
    assert found[0].value["privacy_unit_count"] == len(times)


def test_windows_beyond_the_limit_are_dropped_and_the_ledger_counts_those_within(run: Any) -> None:
    source = stream(*rows_at(-30, 1), 60, *rows_at(61, 121), 180, *rows_at(181, 500))
    first = Timestamp(FIRST + 10)
    found, ledger = run(
        source, KINDS["dict"], in_windows(), private(budget=Budget(1000, 0.1), max_windows=2, first_window=first)
    )
    # What is selected is for the draw to say; which windows there may be is not.
    assert {seen.start for seen in found} <= {0.0, 60.0}
    assert [entry.max_applications for entry in ledger.entries] == [2, 2]
    assert sum(entry.guarantee.epsilon for entry in ledger.entries) == pytest.approx(1000)
    assert all(entry.parameters["windows"]["hold"] == "by enforcement" for entry in ledger.entries)


def test_of_the_limit_each_window_is_exact_without_noise(run: Any) -> None:
    source = stream(*rows_at(-30, 1), 60, *rows_at(61, 62, 121), 180, *rows_at(181, 500))
    first = Timestamp(FIRST + 10)
    found, ledger = run(source, KINDS["dict"], in_windows(), aggregate(max_windows=2, first_window=first))
    assert counted(found) == {(0.0, "tea", 1): 1, (60.0, "tea", 2): 1}
    assert "NOT PRIVATE" in ledger.to_json()


def test_batches_of_a_stream_are_released_once_a_window(run: Any) -> None:
    rows = [{"user": n, "item": "tea"} for n in range(50)]
    source = stream((1, rows[:20]), 2, (59, rows[20:35]), 60, (5, rows[35:]), (61, rows[:5]))
    found, _ = run(source, KINDS["record_batch"], in_windows(), aggregate())
    released = Counter((seen.start, row["item"], row["count"]) for seen in found for row in seen.value)
    assert released == {(0.0, "tea", 35): 1, (60.0, "tea", 5): 1}


class PrivatizeStream(beam.PTransform):
    """What stands between the two ends of `pipelines.privatize_stream`."""

    def expand(self, payloads: beam.PCollection) -> beam.PCollection:
        flags = ["--format=jsonl", "--keep_columns=id", "--epsilon=4"]
        published, rejected = privatized(payloads, parse_options(flags, PrivatizeStreamOptions))
        return (published, rejected) | beam.Flatten()


def test_the_pipeline_for_streams_publishes_a_message_for_each(run: Any) -> None:
    rows: list[Any] = [{"id": n, "text": "where is my order", "name": "Xyzzy9Canary"} for n in range(5)]
    source = stream((1, rows[0]), (2, rows[1]), 10, (11, rows[2]), (3, rows[3]), 50, (4, rows[4]), (55, {"id": 9}))
    payloads = beam.Map(lambda text: text[1:-1].encode()).with_output_types(bytes)
    found, ledger = run(source, payloads, PrivatizeStream())
    messages = [json.loads(seen.value) for seen in found]
    assert [message for message in messages if "text" not in message] == [{"reason": "missing_column"}]
    texts = {message["id"]: message["text"] for message in messages if "text" in message}
    assert sorted(texts) == list(range(5))
    assert all(len(text.split()) == 4 for text in texts.values())
    assert "Xyzzy9Canary" not in repr(messages)
    assert [(entry.label, entry.guarantee.epsilon) for entry in ledger.entries] == [("1/Privatize", 4.0)]


DISCARDING, ACCUMULATING = trigger.AccumulationMode.DISCARDING, trigger.AccumulationMode.ACCUMULATING
REFUSED: dict[str, dict[str, Any]] = {
    "lateness": {"allowed_lateness": 30},
    "early": {"trigger": trigger.AfterWatermark(early=trigger.AfterCount(1)), "accumulation_mode": DISCARDING},
    "late": {"trigger": trigger.AfterWatermark(late=trigger.AfterCount(1)), "accumulation_mode": ACCUMULATING},
    "processing time": {
        "trigger": trigger.Repeatedly(trigger.AfterProcessingTime(1)),
        "accumulation_mode": ACCUMULATING,
    },
    "early by the clock": {
        "trigger": trigger.AfterWatermark(early=trigger.AfterProcessingTime(1)),
        "accumulation_mode": ACCUMULATING,
    },
}


@pytest.mark.parametrize("kind", REFUSED)
def test_windows_that_could_fire_twice_are_refused_before_anything_runs(kind: str) -> None:
    rows = Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"])) | stream(*rows_at(1)) | KINDS["dict"]
    assert not rows.is_bounded
    with pytest.raises(ArgumentError, match="a trigger that fires once a window"):
        rows | in_windows(**REFUSED[kind]) | private(max_windows=2)


def test_the_mode_of_accumulation_says_nothing_where_a_window_fires_once(run: Any) -> None:
    source = stream(*rows_at(1, 2), 30, *rows_at(3), 61, *rows_at(4))
    once = in_windows(trigger=trigger.AfterWatermark(), accumulation_mode=ACCUMULATING)
    found, _ = run(source, KINDS["dict"], once, aggregate())
    assert counted(found) == {(0.0, "tea", 3): 1}
