"""`RandomizedResponse` and its estimator in pipelines. An epsilon of 700 keeps every answer: 1 - p is below 1e-300."""

import json
import math
import typing

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from randomgen import AESCounter
from scipy import stats

from beam_dp import Ledger
from beam_dp.accounting.drawing import USAGE
from beam_dp.aggregate.local import (
    EstimateFrequencies,
    RandomizedResponse,
    _Answers,
    _RespondBatches,
    _RespondRows,
    _Work,
)
from beam_dp.errors import ArgumentError, GrantError, InputError
from beam_dp.io import Position, position_of, with_position
from beam_dp.mechanisms.randomized_response import LN_3, FairCoinResponse, KaryRandomizedResponse
from beam_dp.randomness import SecureSource

COLOURS = ["red", "green", "blue"]
SURE = 700.0
# Draws in pipelines come from the operating system, not from a seed: what chance never meets.
NEVER = 1e-9
SECRET = "xyzzysecret"
OPTIONS = ["--runner=FnApiRunner"]


class Answer(typing.NamedTuple):
    user: str
    colour: str
    age: int


def run(make):
    """Runs what ``make(p)`` builds in a pipeline of its own, and returns the ledger."""
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(OPTIONS)) as p:
        make(p)
    return ledger


def respond(epsilon=SURE, **options):
    return RandomizedResponse(**{"column": "colour", "categories": COLOURS, "epsilon": epsilon} | options)


def batches_of(p, *batches):
    return p | beam.Create(range(len(batches))) | beam.Map(lambda i: batches[i]).with_output_types(pa.RecordBatch)


def test_strings():
    def make(p):
        out = p | beam.Create(["red", "blue", "red"]) | RandomizedResponse(categories=COLOURS, epsilon=SURE)
        assert out.element_type is str
        assert_that(out, equal_to(["red", "blue", "red"]))

    run(make)


def test_dicts_keep_named_columns_only():
    rows = [{"user": SECRET, "colour": "red", "age": 7}, {"user": "b", "colour": "blue", "age": None}]

    def make(p):
        answers = p | beam.Create(rows)
        assert_that(answers | "bare" >> respond(), equal_to([{"colour": "red"}, {"colour": "blue"}]), label="bare")
        kept = answers | "kept" >> respond(keep_columns=["age"])
        assert_that(kept, equal_to([{"colour": "red", "age": 7}, {"colour": "blue", "age": None}]), label="kept")

    run(make)


def test_named_tuples_become_rows_with_a_schema():
    def make(p):
        rows = p | beam.Create([Answer(SECRET, "green", 7)])
        out = rows | respond(keep_columns=["age"])
        assert dict(out.element_type._fields) == {"colour": str, "age": int}
        assert_that(out | beam.Map(lambda row: row.as_dict()), equal_to([{"colour": "green", "age": 7}]))

    run(make)


def test_rows():
    def make(p):
        out = p | beam.Create([beam.Row(user=SECRET, colour="green")]) | respond()
        assert_that(out | beam.Map(lambda row: row.as_dict()), equal_to([{"colour": "green"}]))

    run(make)


def test_record_batches_keep_columns_types_and_place_and_no_other_metadata():
    schema = pa.schema(
        [("user", pa.string()), ("age", pa.int16()), pa.field("colour", pa.large_string(), metadata={"note": SECRET})],
        metadata={"pandas": SECRET},
    )
    batch = with_position(pa.record_batch([[SECRET, "b"], [1, 2], ["blue", "red"]], schema=schema), Position(3, 700, 5))

    def check(results):
        (out,) = results
        assert out.schema.names == ["colour", "age"] and out.schema.types == [pa.string(), pa.int16()]
        assert out.to_pydict() == {"colour": ["blue", "red"], "age": [1, 2]}
        assert position_of(out) == Position(3, 700, 5)
        assert SECRET not in str(out.schema.metadata) + str([field.metadata for field in out.schema])

    def make(p):
        out = batches_of(p, batch) | respond(keep_columns=["age"])
        assert out.element_type is pa.RecordBatch
        assert_that(out, check)

    run(make)


@pytest.mark.parametrize(
    ("categories", "column"),
    [
        ([1, 2, 300], pa.array([300, 2, 1], pa.int16())),
        ([1, 2, 300], pa.array([2, 1, 1], pa.uint8())),
        ([-1, 0, 1 << 60], pa.array([1 << 60, 0], pa.uint64())),
        ([False, True], pa.array([True, False, False])),
        (["a", "b"], pa.array(["b", "a", "b"]).dictionary_encode()),
    ],
)
def test_categories_of_each_type_in_batches_and_in_rows(categories, column):
    transform = RandomizedResponse(column="x", categories=categories, epsilon=SURE)

    def make(p):
        def check(results):
            (out,) = results
            assert out["x"].to_pylist() == column.to_pylist()
            assert out.schema.field("x").type == pa.array(categories).type

        batch = pa.record_batch([column], names=["x"])
        assert_that(batches_of(p, batch) | "batches" >> transform, check, label="batches")
        rows = p | "Rows" >> beam.Create([{"x": value} for value in column.to_pylist()])
        again = RandomizedResponse(column="x", categories=categories, epsilon=SURE)
        assert_that(rows | "rows" >> again, equal_to([{"x": v} for v in column.to_pylist()]), label="rows")

    run(make)


OUTSIDERS = [None, "purple", "", 7, True, 1.0, b"red", ["red"], {"red": 1}, SECRET]


def test_answers_that_are_no_category_are_not_told_from_others_and_not_from_each_other():
    """Whatever is wrong with an answer, its response is a uniform category; no error, no counter, no trace."""
    rows = [{"colour": value} for value in OUTSIDERS] * 300 + [{"colour": "red"}] * 300

    def check(results):
        out = [row["colour"] for row in results]
        assert len(out) == len(rows) and set(out) == set(COLOURS)
        counts = np.array([out.count(colour) for colour in COLOURS]) - [300, 0, 0]
        assert stats.chisquare(counts).pvalue > NEVER

    ledger = Ledger()
    p = ledger.pipeline(PipelineOptions(OPTIONS))
    assert_that(p | beam.Create(rows) | respond(input_kind="dict"), check)
    result = p.run()
    result.wait_until_finish()
    counters = {c.key.metric.name: c.result for c in result.metrics().query()["counters"]}
    assert counters["responses"] == len(rows)
    assert SECRET not in str(result.metrics().query()) + ledger.to_json()
    assert not [name for name in counters if name not in {"responses", "success"}]


def test_nulls_and_unknown_values_of_a_batch_get_uniform_responses():
    column = pa.array([None, "purple", "red"] * 2000)

    def check(results):
        (out,) = results
        codes = np.array([COLOURS.index(colour) for colour in out["colour"].to_pylist()]).reshape(-1, 3)
        assert (codes[:, 2] == 0).all()
        for place in (0, 1):
            assert stats.chisquare(np.bincount(codes[:, place], minlength=3)).pvalue > NEVER

    run(lambda p: assert_that(batches_of(p, pa.record_batch([column], names=["colour"])) | respond(), check))


def test_a_column_of_nulls_is_answered_like_any_other():
    batch = pa.record_batch([pa.nulls(3000)], names=["colour"])

    def check(results):
        (out,) = results
        assert set(out["colour"].to_pylist()) == set(COLOURS)

    run(lambda p: assert_that(batches_of(p, batch) | respond(), check))


@pytest.mark.parametrize("kind", ["rows", "batches"])
@pytest.mark.parametrize("fair", [False, True])
def test_responses_of_a_pipeline_have_the_law_of_the_mechanism(kind, fair):
    n = 20_000
    options = {"column": "x", "categories": ["no", "yes"]}
    transform = RandomizedResponse.fair_coin(**options) if fair else RandomizedResponse(epsilon=1.0, **options)
    keep = 0.75 if fair else math.e / (math.e + 1)

    def check(results):
        values = [row["x"] for row in results] if kind == "rows" else results[0]["x"].to_pylist()
        assert stats.binomtest(values.count("yes"), n, keep).pvalue > NEVER

    def make(p):
        if kind == "rows":
            answers = p | beam.Create([n]) | beam.FlatMap(lambda n: [{"x": "yes"}] * n).with_output_types(dict)
        else:
            answers = batches_of(p, pa.record_batch([["yes"] * n], names=["x"]))
        assert_that(answers | transform, check)

    run(make)


def test_ledger_entry_says_what_is_promised():
    ledger = run(
        lambda p: (
            p
            | beam.Create([{"colour": "red", "age": 7}])
            | "Ask" >> respond(1.5, privacy_unit="person", max_responses=4, keep_columns=["age"])
        )
    )
    (entry,) = json.loads(ledger.to_json())["entries"]
    assert entry["label"] == "Ask" and entry["model"] == "local" and entry["basis"] == "proved"
    assert entry["epsilon"] == 1.5 and entry["delta"] == 0 and entry["privacy_unit"] == "person"
    assert entry["max_applications"] == 4 and entry["mechanism"] == "KaryRandomizedResponse(categories=3, epsilon=1.5)"
    assert entry["parameters"] == {"column": "colour", "categories": 3, "keep_columns": ["age"]}
    totals = json.loads(ledger.to_json())["totals"]
    assert totals["local"]["epsilon"] == 6.0 and totals["central"] is None and totals["metric"] is None


def test_fair_coin_is_recorded_with_ln_3():
    make = lambda p: p | beam.Create(["no"]) | RandomizedResponse.fair_coin(categories=["no", "yes"])  # noqa: E731
    (entry,) = run(make).entries
    assert entry.guarantee.epsilon == LN_3 and entry.mechanism == "FairCoinResponse()"
    assert entry.max_applications == 1 and entry.guarantee.privacy_unit == "user"


def test_a_number_of_responses_that_nobody_knows_leaves_the_total_open():
    ledger = run(lambda p: p | beam.Create([{"colour": "red"}]) | respond(1.0, max_responses=None))
    total = json.loads(ledger.to_json())["totals"]["local"]
    assert total["epsilon"] is None and "declares no maximum" in total["reason"]


def test_plain_pipeline_needs_a_ledger():
    with pytest.raises(GrantError, match="ledger"):
        beam.Pipeline(runner="FnApiRunner") | beam.Create(["red"]) | RandomizedResponse(categories=COLOURS, epsilon=1)
    ledger = Ledger()
    with beam.Pipeline(runner="FnApiRunner") as p:
        transform = RandomizedResponse(categories=COLOURS, epsilon=SURE, ledger=ledger)
        assert_that(p | beam.Create(["red"]) | transform, equal_to(["red"]))
    assert len(ledger.entries) == 1


def work_of(mechanism, kind="dict"):
    return _Work(mechanism, _Answers.of(COLOURS, "colour", ()), kind)


@pytest.mark.parametrize("do_fn", [_RespondRows, _RespondBatches])
def test_do_fn_without_a_grant_fails_in_setup(do_fn):
    with pytest.raises(GrantError, match="no grant"):
        do_fn(work_of(KaryRandomizedResponse(3, 1.0))).setup()


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": KaryRandomizedResponse(3, 100.0)},
        {"mechanism": FairCoinResponse()},
        {"answers": _Answers.of(["red", "green", "purple"], "colour", ())},
        {"answers": _Answers.of(COLOURS, "other", ())},
        {"answers": _Answers.of(COLOURS, "colour", ["user"])},
    ],
)
def test_do_fn_that_was_changed_after_its_entry_fails_in_setup(change):
    p = Ledger().pipeline(PipelineOptions(OPTIONS))
    p | beam.Create([{"colour": "red", "user": "a", "other": "red"}]) | respond(1.0)

    class Tamper(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node):
            work = getattr(getattr(node.transform, "fn", None), "_work", None)
            if work is not None:
                work.__dict__.update(change)

    p.visit(Tamper())
    with pytest.raises(Exception, match="another mechanism, index or bound"):
        p.run().wait_until_finish()


class Witness(KaryRandomizedResponse):
    """Answers 0 from a secure generator, 1 from any other."""

    def respond(self, codes, rng):
        return np.full_like(codes, 0 if type(rng.bit_generator) is AESCounter else 1)


@pytest.mark.parametrize("kind", ["dict", "record_batch"])
def test_draws_come_from_the_secure_source_with_a_new_key_for_each_bundle(kind, monkeypatch):
    keys = []
    rekey = SecureSource.rekey
    monkeypatch.setattr(SecureSource, "rekey", lambda self: (keys.append(0), rekey(self)))
    work = work_of(Witness(3, 1.0), kind)
    work.grant = Ledger().record(
        label="x",
        mechanism="Witness",
        guarantee=RandomizedResponse(categories=COLOURS, epsilon=1.0).guarantee,
        max_applications=1,
        fingerprint=work.fingerprint,
    )
    do_fn = (_RespondRows if kind == "dict" else _RespondBatches)(work)
    do_fn.setup()
    before = len(keys)
    for bundle in range(3):
        do_fn.start_bundle()
        assert len(keys) == before + bundle + 1
        if kind == "dict":
            (usage,) = do_fn.process({"colour": "blue"}, 0, window.GlobalWindow())
            assert usage.tag == USAGE
            (out,) = do_fn.finish_bundle()
            assert out.value == {"colour": "red"}
        else:
            _, out = do_fn.process(pa.record_batch([["blue"]], names=["colour"]))
            assert out["colour"].to_pylist() == ["red"]


def test_timestamps_and_windows_survive():
    def tag(colour, at=beam.DoFn.TimestampParam, w=beam.DoFn.WindowParam):
        return colour, float(at), float(w.start)

    def make(p):
        out = (
            p
            | beam.Create([("red", 3), ("blue", 61), ("green", 64)])
            | beam.Map(lambda pair: window.TimestampedValue(pair[0], pair[1])).with_output_types(str)
            | beam.WindowInto(window.FixedWindows(60))
            | RandomizedResponse(categories=COLOURS, epsilon=SURE)
            | beam.Map(tag)
        )
        assert_that(out, equal_to([("red", 3.0, 0.0), ("blue", 61.0, 60.0), ("green", 64.0, 60.0)]))

    run(make)


def test_rows_in_several_windows_are_refused_as_each_would_be_drawn_anew():
    with (
        pytest.raises(ArgumentError, match="RandomizedResponse must stand before a window function"),
        Ledger().pipeline(PipelineOptions(OPTIONS)) as p,
    ):
        windows = beam.WindowInto(window.SlidingWindows(60, 30))
        p | beam.Create(["red"]) | windows | RandomizedResponse(categories=COLOURS, epsilon=1)


@pytest.mark.parametrize("row", [{"age": 7, "user": SECRET}, {"colour": SECRET, "user": SECRET}])
def test_a_row_without_a_needed_column_ends_the_run_and_shows_nothing(row):
    with pytest.raises(Exception, match="a row lacks one of the columns 'colour', 'age'") as failed:
        run(lambda p: p | beam.Create([row]) | respond(1.0, keep_columns=["age"]))
    assert SECRET not in str(failed.value)


def test_missing_fields_are_refused_at_construction():
    with (
        pytest.raises(InputError, match="no column 'color'; the columns are: user, colour, age"),
        Ledger().pipeline(PipelineOptions(OPTIONS)) as p,
    ):
        p | beam.Create([Answer("a", "red", 7)]) | respond(column="color")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pa.RecordBatch.from_pydict({"color": [SECRET]}), "no column 'colour'; the columns are: color"),
        (
            pa.RecordBatch.from_pydict({"colour": [1.5]}),
            "column 'colour' holds double, but the categories are of type str",
        ),
        (pa.RecordBatch.from_pydict({"colour": [[SECRET]]}), "column 'colour' holds list, but"),
        (pa.RecordBatch.from_pydict({"colour": [7]}), "column 'colour' holds int64, but"),
    ],
)
def test_batches_of_another_type_end_the_run_and_show_nothing(batch, message):
    with pytest.raises(Exception, match=message) as failed:
        run(lambda p: batches_of(p, batch) | respond(1.0))
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize(
    ("elements", "options", "message"),
    [
        (["red"], {"categories": [1, 2], "column": None}, "categories must be strings"),
        (["red"], {"column": None, "keep_columns": ["age"]}, "keep_columns"),
        ([{"colour": "red"}], {"column": None}, "column must be given"),
        ([1, 2], {}, "input PCollection holds"),
    ],
)
def test_elements_that_cannot_hold_such_answers_are_refused(elements, options, message):
    with pytest.raises(ArgumentError, match=message), Ledger().pipeline(PipelineOptions(OPTIONS)) as p:
        p | beam.Create(elements) | respond(1.0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0}, "epsilon must be a finite number above 0"),
        ({"epsilon": None}, "epsilon"),
        ({"categories": ["red"]}, "categories must be two or more"),
        ({"categories": []}, "categories must be two or more"),
        ({"categories": "red"}, "categories must be a list"),
        ({"categories": 3}, "categories must be a list"),
        ({"categories": ["red", "red"]}, "categories must be different"),
        ({"categories": ["red", 1]}, "all of them strings, integers or booleans"),
        ({"categories": [1.0, 2.0]}, "all of them strings, integers or booleans"),
        ({"categories": [None, None]}, "all of them strings, integers or booleans"),
        ({"categories": [1, 1 << 63]}, "integers of 64 bits"),
        ({"categories": ["a", "\ud800"]}, "valid Unicode"),
        ({"column": ""}, "column must be the name of a column"),
        ({"column": 3}, "column must be the name of a column"),
        ({"keep_columns": "age"}, "keep_columns must be a list"),
        ({"keep_columns": ["colour"]}, "keep_columns"),
        ({"privacy_unit": ""}, "privacy_unit"),
        ({"privacy_unit": None}, "privacy_unit"),
        ({"max_responses": 0}, "max_responses must be at least 1"),
        ({"max_responses": 1.5}, "max_responses"),
        ({"input_kind": "json"}, "input_kind must be one of"),
    ],
)
def test_arguments_that_can_never_be_right_are_refused_at_construction(options, message):
    with pytest.raises(ArgumentError, match=message):
        respond(**options)


@pytest.mark.parametrize("categories", [COLOURS, ["yes"]])
def test_the_fair_coin_has_two_sides(categories):
    with pytest.raises(ArgumentError, match="categories must be two"):
        RandomizedResponse.fair_coin(categories=categories, column="x")


def test_display_data_shows_the_claim_and_no_data():
    shown = beam.transforms.display.DisplayData.create_from(respond(1.5))
    values = {item.key: item.value for item in shown.items}
    assert values["mechanism"] == "KaryRandomizedResponse(categories=3, epsilon=1.5)"
    assert "local epsilon 1.5" in values["guarantee"] and values["column"] == "colour"


# The estimator.


def frequencies(results):
    (batch,) = results
    assert batch.schema.names == ["category", "estimate", "standard_error", "n"]
    assert batch.schema.types[1:] == [pa.float64(), pa.float64(), pa.int64()]
    return batch.to_pydict()


COUNTS = {"red": 500, "green": 300, "blue": 200}


def expected_frequencies(epsilon, counts):
    """By the inverse of the matrix of the law."""
    k, n = len(counts), sum(counts.values())
    law = (np.ones((k, k)) + math.expm1(epsilon) * np.eye(k)) / (math.exp(epsilon) + k - 1)
    observed = np.array(list(counts.values())) / n
    slope = law[0, 0] - law[0, 1]
    return np.linalg.solve(law.T, observed), np.sqrt(observed * (1 - observed) / n) / slope


@pytest.mark.parametrize("kind", ["str", "dict", "row", "record_batch"])
def test_estimates_of_every_kind_of_responses(kind):
    responses = [colour for colour, count in COUNTS.items() for _ in range(count)]
    shares, errors = expected_frequencies(1.0, COUNTS)

    def check(results):
        out = frequencies(results)
        assert out["category"] == COLOURS and out["n"] == [1000] * 3
        np.testing.assert_allclose(out["estimate"], shares, rtol=1e-9)
        np.testing.assert_allclose(out["standard_error"], errors, rtol=1e-9)

    def make(p):
        if kind == "record_batch":
            parts = [responses[:1], responses[1:700], [], responses[700:]]
            batches = [pa.record_batch([pa.array(part, pa.string())], names=["colour"]) for part in parts]
            there = batches_of(p, *batches)
        else:
            wrap = {"str": str, "dict": lambda c: {"colour": c}, "row": lambda c: beam.Row(colour=c)}[kind]
            there = p | beam.Create([wrap(colour) for colour in responses])
        out = there | EstimateFrequencies(COLOURS, epsilon=1.0, column=None if kind == "str" else "colour")
        assert out.element_type is pa.RecordBatch
        assert_that(out, check)

    run(make)


def test_the_estimator_of_the_poll_is_the_textbook_formula():
    poll = RandomizedResponse.fair_coin(categories=["no", "yes"], column="smokes")
    yes, n = 430, 1000
    batch = pa.record_batch([["yes"] * yes + ["no"] * (n - yes)], names=["smokes"])

    def check(results):
        out = frequencies(results)
        q = yes / n
        np.testing.assert_allclose(out["estimate"], [2 * (1 - q) - 0.5, 2 * q - 0.5], rtol=1e-12)
        np.testing.assert_allclose(out["standard_error"], [2 * math.sqrt(q * (1 - q) / n)] * 2, rtol=1e-12)

    run(lambda p: assert_that(batches_of(p, batch) | poll.estimator(), check))


@pytest.mark.parametrize("fair", [False, True])
def test_estimates_of_drawn_responses_find_the_truth(fair):
    """30% say yes: six standard errors are room for any draw, and half the bias would be far outside."""
    n, categories = 50_000, [False, True]
    options = {"column": "x", "categories": categories}
    transform = RandomizedResponse.fair_coin(**options) if fair else RandomizedResponse(epsilon=1.0, **options)
    batch = pa.record_batch([np.arange(n) % 10 < 3], names=["x"])

    def check(results):
        out = frequencies(results)
        assert out["category"] == categories and out["n"] == [n] * 2
        assert out["standard_error"][1] < 0.006
        assert abs(out["estimate"][1] - 0.3) < 6 * out["standard_error"][1]
        assert sum(out["estimate"]) == pytest.approx(1)

    run(lambda p: assert_that(batches_of(p, batch) | transform | transform.estimator(), check))


def test_no_responses_have_no_estimate():
    def check(results):
        assert frequencies(results) == {
            "category": COLOURS,
            "estimate": [None] * 3,
            "standard_error": [None] * 3,
            "n": [0] * 3,
        }

    empty = pa.record_batch([pa.array([], pa.string())], names=["colour"])
    run(lambda p: assert_that(batches_of(p, empty) | respond().estimator(), check))
    run(lambda p: assert_that(p | beam.Create([]) | EstimateFrequencies(COLOURS, epsilon=1, input_kind="str"), check))


def test_each_window_has_its_own_estimate():
    def tag(batch, w=beam.DoFn.WindowParam):
        return float(w.start), batch["n"][0].as_py(), batch["estimate"][0].as_py()

    def make(p):
        out = (
            p
            | beam.Create([("red", 3), ("red", 30), ("blue", 61)])
            | beam.Map(lambda pair: window.TimestampedValue(pair[0], pair[1])).with_output_types(str)
            | beam.WindowInto(window.FixedWindows(60))
            | EstimateFrequencies(COLOURS, epsilon=SURE)
            | beam.Map(tag)
        )
        rounded = out | beam.MapTuple(lambda start, n, share: (start, n, round(share)))
        assert_that(rounded, equal_to([(0.0, 2, 1), (60.0, 1, 0)]))

    run(make)


def test_an_estimator_spends_nothing():
    ledger = run(lambda p: p | beam.Create(["red"]) | EstimateFrequencies(COLOURS, epsilon=1.0))
    assert ledger.entries == ()


@pytest.mark.parametrize("wrong", ["purple", None])
def test_what_is_no_response_ends_the_estimate_and_is_not_shown(wrong):
    for make in (
        lambda p: p | beam.Create([{"colour": wrong}]) | respond().estimator(),
        lambda p: (
            batches_of(p, pa.record_batch([pa.array([wrong], pa.string())], names=["colour"])) | respond().estimator()
        ),
    ):
        with pytest.raises(Exception, match="an element is none of the categories") as failed:
            run(make)
        assert "purple" not in str(failed.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"categories": ["a"]}, "categories"),
        ({"epsilon": -1}, "epsilon"),
        ({"column": ""}, "column"),
        ({"input_kind": "csv"}, "input_kind"),
    ],
)
def test_estimators_that_can_never_work_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        EstimateFrequencies(**{"categories": COLOURS, "epsilon": 1.0} | arguments)
