import json
import secrets
import typing

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from randomgen import AESCounter

from beam_dp import Ledger, MultivariateLaplace, PrivatizeText, TruncatedGumbel
from beam_dp.accounting.pipeline import LedgerPipeline
from beam_dp.embeddings import build_index, open_index, resolve_index
from beam_dp.errors import ArgumentError, GrantError, InputError, LedgerSealedError
from beam_dp.guarantees import MetricGuarantee
from beam_dp.io import Position, position_of, with_position
from beam_dp.io.rows import RowShape
from beam_dp.randomness import SecureSource
from beam_dp.text import TextOptions
from beam_dp.text.transform import _PrivatizeBatches, _PrivatizeRows, _Work

WORDS = ["one", "two", "three", "four"]
SECRET = "xyzzysecret"


class Identity:
    """Noise-free: only tests have it, and its ledger says so."""

    name = "identity"

    def guarantee(self, space):
        return MetricGuarantee(
            epsilon=None, basis="none", reason="NOT PRIVATE: test", metric=space.metric, index_digest=space.digest
        )

    def bind(self, space):
        return self

    def law_digest(self):
        return None

    def sample(self, ids, rng):
        return ids

    def __repr__(self):
        return "Identity()"


class Utterance(typing.NamedTuple):
    text: str
    user: int
    note: str


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    lines = [f"{word} {i}.0 {i % 2}.5" for i, word in enumerate(WORDS)]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    build_index(str(folder / "words.txt"), str(folder / "index"), trees=1, progress=False)
    return str(folder / "index")


def run(make, **arguments):
    """The results of ``make(p)`` in a pipeline of its own, and the ledger."""
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"], **arguments)) as p:
        make(p)
    return ledger


def privatize(index, **options):
    return PrivatizeText(Identity(), index=index, **options)


def test_strings(index):
    def make(p):
        out = p | beam.Create(["One, two!", "", SECRET]) | privatize(index)
        assert out.element_type is str
        assert_that(out, equal_to(["one two", "", ""]))

    assert "NOT PRIVATE" in run(make).report()


def test_null_texts_become_empty_ones(index):
    run(lambda p: assert_that(p | beam.Create([None, "two"]) | privatize(index), equal_to(["", "two"])))


def test_dicts_keep_named_columns_only(index):
    rows = [{"said": "One two", "id": 7, "secret": SECRET}, {"said": None, "id": None, "secret": ""}]

    def make(p):
        out = p | beam.Create(rows) | privatize(index, text_column="said", keep_columns=["id"])
        assert_that(out, equal_to([{"said": "one two", "id": 7}, {"said": "", "id": None}]))

    run(make)


def test_named_tuples_become_rows_with_a_schema(index):
    def make(p):
        rows = p | beam.Create([Utterance("One", 7, SECRET)])
        out = rows | privatize(index, keep_columns=["user"])
        assert dict(out.element_type._fields) == {"text": str, "user": int}
        assert_that(out | beam.Map(lambda row: row.as_dict()), equal_to([{"text": "one", "user": 7}]))

    run(make)


def test_rows(index):
    def make(p):
        out = p | beam.Create([beam.Row(text="One", user=7)]) | privatize(index)
        assert_that(out | beam.Map(lambda row: row.as_dict()), equal_to([{"text": "one"}]))

    run(make)


def batches_of(p, batch):
    return p | beam.Create([0]) | beam.Map(lambda _: batch).with_output_types(pa.RecordBatch)


def test_record_batches_keep_columns_types_and_place_and_no_other_metadata(index):
    fields = [
        pa.field("n", pa.int16(), metadata={"note": SECRET}),
        pa.field("text", pa.large_string()),
        pa.field("x", pa.string()),
    ]
    schema = pa.schema(fields, metadata={"pandas": SECRET})
    batch = with_position(
        pa.record_batch([[1, 2], ["Two", None], [SECRET, SECRET]], schema=schema), Position(3, 700, 5)
    )

    def check(results):
        (out,) = results
        assert out.schema.names == ["text", "n"] and out.schema.types == [pa.string(), pa.int16()]
        assert out.to_pydict() == {"text": ["two", ""], "n": [1, 2]}
        assert position_of(out) == Position(3, 700, 5)
        assert SECRET not in str(out.schema.metadata) + str([field.metadata for field in out.schema])

    def make(p):
        out = batches_of(p, batch) | privatize(index, keep_columns=["n"])
        assert out.element_type is pa.RecordBatch
        assert_that(out, check)

    run(make)


def test_rows_of_a_batch_with_invalid_utf8_are_rejected(index):
    raw = pa.array([b"one", b"\xff" + SECRET.encode(), b"two"], pa.binary())
    batch = pa.record_batch([raw.view(pa.string())], names=["text"])

    def rejects(batches):
        assert [row for b in batches for row in b.to_pylist()] == [
            {"reason": "invalid_unicode", "source": None, "position": 1}
        ]

    def make(p):
        out = batches_of(p, batch) | privatize(index).with_rejects()
        assert_that(out.rows | beam.FlatMap(lambda b: b["text"].to_pylist()), equal_to(["one", "two"]), label="rows")
        assert_that(out.rejected, rejects, label="rejects")

    run(make)
    with pytest.raises(Exception, match="a row was rejected \\(invalid_unicode\\)") as failed:
        run(lambda p: batches_of(p, batch) | privatize(index))
    assert SECRET not in str(failed.value)


def test_undeclared_elements_need_input_kind(index):
    def make(p):
        rows = p | beam.Create([0]) | beam.Map(lambda _: {"text": "One"}).with_output_types(typing.Any)
        with pytest.raises(ArgumentError, match="input_kind must be given, one of str, dict, row, record_batch"):
            rows | "no kind" >> privatize(index)
        assert_that(rows | privatize(index, input_kind="dict"), equal_to([{"text": "one"}]))

    run(make)


def test_elements_of_another_type_are_refused(index):
    with pytest.raises(ArgumentError, match="int"), Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        p | beam.Create([1]) | privatize(index)


def test_missing_field_is_refused_at_construction_and_the_fields_are_named(index):
    with (
        pytest.raises(InputError, match="no column 'body'; the columns are: text, user, note"),
        Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p,
    ):
        p | beam.Create([Utterance("a", 1, "b")]) | privatize(index, text_column="body")


def test_bad_rows_are_rejected_with_a_reason_and_never_their_content(index):
    rows = [{"text": "one"}, {"text": 5}, {"body": SECRET}, {"text": "two"}]

    def reasons(batches):
        assert sorted(row["reason"] for b in batches for row in b.to_pylist()) == ["missing_column", "not_text"]
        assert SECRET not in str([b.to_pylist() for b in batches])

    def make(p):
        out = p | beam.Create(rows) | privatize(index, input_kind="dict").with_rejects()
        assert_that(out.rows, equal_to([{"text": "one"}, {"text": "two"}]), label="rows")
        assert_that(out.rejected, reasons, label="rejected")

    run(make)


def test_a_rejected_row_fails_the_pipeline_unless_rejects_are_asked_for(index):
    with pytest.raises(Exception, match="a row was rejected \\(missing_column\\)") as failed:
        run(lambda p: p | beam.Create([{"body": SECRET}]) | privatize(index))
    assert SECRET not in str(failed.value)


def test_timestamps_and_windows_survive_the_batching(index):
    def tag(text, at=beam.DoFn.TimestampParam, w=beam.DoFn.WindowParam):
        return text, float(at), float(w.start)

    def make(p):
        out = (
            p
            | beam.Create([("one", 3), ("two", 61), ("four", 64)])
            | beam.Map(lambda pair: window.TimestampedValue(pair[0], pair[1])).with_output_types(str)
            | beam.WindowInto(window.FixedWindows(60))
            | privatize(index)
            | beam.Map(tag)
        )
        assert_that(out, equal_to([("one", 3.0, 0.0), ("two", 61.0, 60.0), ("four", 64.0, 60.0)]))

    run(make)


def test_rows_in_several_windows_are_refused_as_each_would_be_drawn_anew(index):
    with (
        pytest.raises(ArgumentError, match="before a window function"),
        Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p,
    ):
        p | beam.Create(["one"]) | beam.WindowInto(window.SlidingWindows(60, 30)) | privatize(index)


def test_many_rows_cross_the_batch_limits(index):
    texts = [f"{WORDS[i % 4]} {WORDS[(i + 1) % 4]}" for i in range(9001)]
    run(lambda p: assert_that(p | beam.Create(texts) | privatize(index), equal_to(texts)))


def test_plain_pipeline_needs_a_ledger(index):
    with pytest.raises(GrantError, match="ledger"):
        beam.Pipeline(runner="FnApiRunner") | beam.Create(["one"]) | privatize(index)
    ledger = Ledger()
    with beam.Pipeline(runner="FnApiRunner") as p:
        assert_that(p | beam.Create(["one"]) | privatize(index, ledger=ledger), equal_to(["one"]))
    assert len(ledger.entries) == 1


def work_of(mechanism, index):
    return _Work(
        mechanism,
        resolve_index(index),
        "exact",
        TextOptions(),
        RowShape("text", ()),
        "str",
        law=None,
        fail_on_reject=True,
    )


def test_do_fn_without_a_grant_fails_in_setup(index):
    work = work_of(Identity(), index)
    with pytest.raises(GrantError, match="no grant"):
        _PrivatizeRows(work).setup()


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": MultivariateLaplace(100.0)},
        {"options": TextOptions(max_words=1000)},
        {"options": TextOptions(oov="random")},
        {"index": resolve_index()},
        {"law": "0" * 64},
    ],
)
def test_do_fn_that_was_changed_after_its_entry_fails_in_setup(index, change):
    ledger = Ledger()
    p = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    p | beam.Create(["one"]) | PrivatizeText(MultivariateLaplace(1.0), index=index)

    class Tamper(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node):
            work = getattr(getattr(node.transform, "fn", None), "_work", None)
            if work is not None:
                work.__dict__.update(change)

    p.visit(Tamper())
    with pytest.raises(Exception, match="another mechanism, index or bound"):
        p.run().wait_until_finish()


def test_tables_other_than_those_of_the_guarantee_fail_in_setup(index):
    class Table(Identity):
        """Claims what it computed from tables that are others each time."""

        def guarantee(self, space):
            return MetricGuarantee(epsilon=1.0, basis="computed", metric=space.metric, index_digest=space.digest)

        def law_digest(self):
            return secrets.token_hex(32)

    with pytest.raises(Exception, match="tables are not those that the guarantee"):
        run(lambda p: p | beam.Create(["one"]) | PrivatizeText(Table(), index=index))


class Witness(Identity):
    """Returns the first word for a secure generator of this bundle, the second for any other."""

    def sample(self, ids, rng):
        secure = type(rng.bit_generator) is AESCounter
        return np.full_like(ids, 0 if secure else 1)


@pytest.mark.parametrize("kind", ["rows", "batches"])
def test_draws_come_from_the_secure_source_with_a_new_key_for_each_bundle(index, kind, monkeypatch):
    keys = []
    rekey = SecureSource.rekey
    monkeypatch.setattr(SecureSource, "rekey", lambda self: (keys.append(0), rekey(self)))
    do_fn_type = {"rows": _PrivatizeRows, "batches": _PrivatizeBatches}[kind]
    ledger = Ledger()
    work = work_of(Witness(), index)
    work.grant = ledger.record(
        label="x",
        mechanism="Witness()",
        guarantee=Witness().guarantee(open_index(resolve_index(index))),
        max_applications=64,
        fingerprint=work.fingerprint,
    )
    do_fn = do_fn_type(work)
    do_fn.setup()
    before = len(keys)
    for bundle in range(3):
        do_fn.start_bundle()
        assert len(keys) == before + bundle + 1
        if kind == "rows":
            list(do_fn.process("four", 0, window.GlobalWindow()))
            (out,) = do_fn.finish_bundle()
            assert out.value == "one"
        else:
            _, out = do_fn.process(pa.record_batch([["four"]], names=["text"]))
            assert out["text"].to_pylist() == ["one"]


def test_metrics_are_named_by_reason_codes_alone(index):
    p = Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    rows = [{"text": "one two"}, {"text": 5}, {SECRET: SECRET}]
    p | beam.Create(rows) | privatize(index, input_kind="dict").with_rejects()
    result = p.run()
    counters = {c.key.metric.name: c.result for c in result.metrics().query()["counters"]}
    assert counters == {
        "privatized_rows": 1,
        "privatized_words": 2,
        "rejects/not_text": 1,
        "rejects/missing_column": 1,
    }


def test_a_pipeline_runs_once_since_each_run_draws_anew(index):
    p = Ledger().pipeline(PipelineOptions(["--runner=FnApiRunner"]))
    p | beam.Create(["one"]) | privatize(index)
    p.run().wait_until_finish()
    with pytest.raises(LedgerSealedError, match="ran already"):
        p.run()


def test_ledger_entry_says_what_is_promised(index):
    ledger = run(
        lambda p: (
            p | beam.Create(["one two"]) | "Mask" >> PrivatizeText(MultivariateLaplace(3), index=index, max_words=5)
        )
    )
    (entry,) = json.loads(ledger.to_json())["entries"]
    digest = resolve_index(index).digest
    assert entry["label"] == "Mask" and entry["model"] == "metric" and entry["epsilon"] == 3.0
    assert entry["max_applications"] == 5 and entry["index_digest"] == digest
    metric = json.loads(ledger.to_json())["totals"]["metric"]
    diameter = open_index(resolve_index(index)).diameter
    assert metric["epsilon_per_word"] == 3.0 and metric["epsilon_per_document"] == 15.0
    assert metric["worst_case_per_document"] == pytest.approx(15 * diameter)


def test_composites_give_their_entries_distinct_labels(index):
    class Twice(beam.PTransform):
        def expand(self, texts):
            return texts | "Private" >> privatize(index)

    def make(p):
        texts = p | beam.Create(["one"])
        texts | "first" >> Twice()
        texts | "second" >> Twice()

    assert [entry.label for entry in run(make).entries] == ["first/Private", "second/Private"]


@pytest.mark.parametrize("epsilon", [30, 1e-9])
def test_real_mechanisms_draw_words_of_the_vocabulary(index, epsilon):
    texts = ["one two three four"] * 300

    def check(out):
        words = [text.split(" ") for text in out]
        assert len(words) == 300 and all(len(row) == 4 and set(row) <= set(WORDS) for row in words)
        if epsilon == 30:
            assert words.count(WORDS) > 290
        else:
            assert np.ptp([sum(row.count(w) for row in words) for w in WORDS]) < 600
            assert len({tuple(row) for row in words}) > 10

    run(lambda p: assert_that(p | beam.Create(texts) | PrivatizeText(MultivariateLaplace(epsilon), index=index), check))


def test_two_transforms_on_one_input_draw_independently(index):
    def make(p):
        texts = p | beam.Create(["one two three four"] * 40)
        one, two = (
            texts
            | label >> PrivatizeText(TruncatedGumbel(scale=5.0), index=index)
            | f"list {label}" >> beam.combiners.ToList()
            for label in ("first", "second")
        )
        differ = (
            p
            | "once" >> beam.Create([0])
            | beam.Map(lambda _, a, b: a != b, beam.pvalue.AsSingleton(one), beam.pvalue.AsSingleton(two))
        )
        assert_that(differ, equal_to([True]))

    run(make)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_words": 0}, "max_words"),
        ({"oov": "keep"}, "oov"),
        ({"search": "fast"}, "search"),
        ({"input_kind": "text"}, "input_kind"),
        ({"keep_columns": "a,b"}, "keep_columns"),
        ({"keep_columns": ["text"]}, "keep_columns"),
        ({"text_column": ""}, "text_column"),
        ({"index": ""}, "index"),
    ],
)
def test_arguments_are_checked_at_construction(index, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        PrivatizeText(Identity(), **{"index": index, **arguments})


def test_what_is_no_mechanism_is_refused(index):
    with pytest.raises(ArgumentError, match="mechanism must be a word mechanism"):
        PrivatizeText(12.0, index=index)


def test_mechanism_that_is_no_value_is_refused(index):
    class Plain(Identity):
        __repr__ = object.__repr__

    with pytest.raises(ArgumentError, match="whose repr says all of its parameters"):
        PrivatizeText(Plain(), index=index)


def test_mechanism_that_breaks_its_protocol_ends_the_run_before_anything_is_written(index):
    class Short(Identity):
        def sample(self, ids, rng):
            return ids[1:]

    with pytest.raises(Exception, match="does not give one int32 id for each id"):
        run(lambda p: p | beam.Create(["one two"]) | PrivatizeText(Short(), index=index))


def test_display_data_shows_the_claim_and_no_data(index):
    transform = PrivatizeText(MultivariateLaplace(3), index=index)
    shown = beam.transforms.display.DisplayData.create_from(transform)
    values = {item.key: item.value for item in shown.items}
    assert values["mechanism"] == "MultivariateLaplace(epsilon=3.0)" and "epsilon 3" in values["guarantee"]


def test_ledger_pipeline_is_a_beam_pipeline():
    assert isinstance(Ledger().pipeline(), LedgerPipeline)
