import json
import math
import sys
from datetime import datetime, timezone
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from finite_laws import REJECTION, SIGNIFICANCE, worst_fit
from projections import independence_pvalue

from beam_dp import BudgetStore, Ledger, Limit, PrivatizeText, Share, Shares, open_index, resolve_index
from beam_dp.accounting.report.explain import explain
from beam_dp.errors import ArgumentError, BudgetExceededError
from beam_dp.guarantees import LocalGuarantee
from beam_dp.mechanisms import MECHANISMS, FiniteLaw, WordRandomizedResponse, randomized_response
from beam_dp.mechanisms.coins import Coin, logistic_enclosure
from beam_dp.mechanisms.randomized_response import KaryRandomizedResponse
from pipelines import transforms
from pipelines.options import parse_options
from pipelines.privatize_text import PrivatizeTextOptions, mechanism_from

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from commands import run_module

OPTIONS = PipelineOptions(["--runner=FnApiRunner"])


def exact_law(size, epsilon):
    """P[w, y] from the definition."""
    law = np.ones((size, size)) + (math.exp(epsilon) - 1) * np.eye(size)
    return law / (math.exp(epsilon) + size - 1)


def words(size):
    return SimpleNamespace(size=size, metric="cosine")


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, "1", True, None])
def test_epsilon_that_is_no_positive_finite_number_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon must be a finite number above 0, not "):
        WordRandomizedResponse(epsilon)


def test_is_a_value_with_a_name():
    assert WordRandomizedResponse(2) == WordRandomizedResponse(2.0) != WordRandomizedResponse(3.0)
    assert repr(WordRandomizedResponse(2)) == "WordRandomizedResponse(epsilon=2.0)"
    assert MECHANISMS["randomized_response"] is WordRandomizedResponse


def test_one_word_is_nothing_to_hide_in():
    for call in (WordRandomizedResponse(1.0).guarantee, WordRandomizedResponse(1.0).bind):
        with pytest.raises(ArgumentError, match="at least two words"):
            call(words(1))


def test_guarantee_is_local_for_a_word_of_a_document_whatever_the_metric():
    guarantee = WordRandomizedResponse(3).guarantee(words(5))
    assert guarantee == LocalGuarantee(epsilon=3.0, basis="proved", privacy_unit="document")


@pytest.mark.parametrize("size", [2, 3, 5, 300])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 6.0])
def test_law_is_the_definition_and_its_largest_log_ratio_is_epsilon(size, epsilon):
    bound = WordRandomizedResponse(epsilon).bind(words(size))
    assert isinstance(bound, FiniteLaw) and bound.law_digest() is None
    law = bound.law_rows(np.arange(size, dtype=np.int32))
    np.testing.assert_allclose(law, exact_law(size, epsilon), rtol=1e-12)
    np.testing.assert_allclose(law.sum(axis=1), 1, rtol=1e-12)
    logs = np.log(law)
    assert (logs[:, None] - logs[None]).max() == pytest.approx(epsilon, rel=1e-12)
    np.testing.assert_array_equal(bound.law_rows(np.array([1, 1, 0], np.int32)), law[[1, 1, 0]])


@pytest.mark.parametrize(("size", "epsilon"), [(2, 0.5), (3, 1.0), (5, 0.1), (40, 3.0), (300, 6.0)])
def test_draws_have_the_exact_transition_matrix(rng, size, epsilon):
    chosen = sorted({0, size // 2, size - 1})
    bound = WordRandomizedResponse(epsilon).bind(words(size))
    assert worst_fit(bound, exact_law(size, epsilon), chosen, 30_000, rng) > SIGNIFICANCE


def one_too_many(categories, epsilon):
    return Coin(logistic_enclosure(-Fraction(epsilon), categories))


def half_an_epsilon(categories, epsilon):
    return Coin(logistic_enclosure(-Fraction(epsilon) / 2, categories - 1))


@pytest.mark.parametrize("coin", [one_too_many, half_an_epsilon])
def test_planted_bugs_of_the_coin_do_not_fit(monkeypatch, rng, coin):
    monkeypatch.setattr(randomized_response, "_keep_coin", coin)
    bound = WordRandomizedResponse(1.0).bind(words(5))
    assert worst_fit(bound, exact_law(5, 1.0), [0, 2, 4], 30_000, rng) < REJECTION


def among_all_words(self, codes, rng):
    keep = rng.random(len(codes)) < self.keep_probability
    return np.where(keep, codes, rng.integers(0, self.categories, len(codes))).astype(np.int32)


def one_other_word_left_out(self, codes, rng):
    shifts = rng.integers(1, self.categories - 1, len(codes))
    shifts[rng.random(len(codes)) < self.keep_probability] = 0
    return ((codes + shifts) % self.categories).astype(np.int32)


def always_another_word(self, codes, rng):
    return ((codes + rng.integers(1, self.categories, len(codes))) % self.categories).astype(np.int32)


@pytest.mark.parametrize("respond", [among_all_words, one_other_word_left_out, always_another_word])
def test_planted_bugs_of_the_other_words_do_not_fit(monkeypatch, rng, respond):
    monkeypatch.setattr(KaryRandomizedResponse, "respond", respond)
    bound = WordRandomizedResponse(1.0).bind(words(5))
    assert worst_fit(bound, exact_law(5, 1.0), [0, 2, 4], 30_000, rng) < REJECTION


def test_words_of_one_batch_are_drawn_independently(rng):
    assert independence_pvalue(WordRandomizedResponse(1.0).bind(words(4)), 1, 20_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("n", [0, 1, 2049])
def test_every_batch_gives_one_valid_word_for_each(rng, n):
    out = WordRandomizedResponse(1).bind(words(300)).sample(rng.integers(0, 300, n).astype(np.int32), rng)
    assert out.dtype == np.int32 and out.shape == (n,)
    assert np.all((out >= 0) & (out < 300))


def test_large_epsilons_keep_the_word(rng):
    ids = np.arange(300, dtype=np.int32)
    for epsilon in (60.0, 1e6, 1e300):
        assert np.array_equal(WordRandomizedResponse(epsilon).bind(words(300)).sample(ids, rng), ids)


def test_the_logarithms_of_the_law_are_the_definition_also_where_it_underflows():
    for size, epsilon in ((2, 0.5), (300, 6.0), (300, 60.0), (20_000, 2000.0)):
        keep, change = WordRandomizedResponse(epsilon).bind(words(size)).log_probabilities
        with localcontext() as context:
            context.prec = 1000
            total = Decimal(epsilon).exp() + size - 1
            assert keep == pytest.approx(float(Decimal(epsilon) - total.ln()), rel=1e-14, abs=1e-300)
            assert change == pytest.approx(float(-total.ln()), rel=1e-14)


def test_flags_and_yaml_parameters_make_the_mechanism():
    flags = ["--input=a", "--output=b", "--mechanism=randomized_response"]
    made = mechanism_from(parse_options([*flags, "--epsilon=3"], PrivatizeTextOptions))
    assert made == WordRandomizedResponse(3.0)
    assert transforms.PrivatizeText(mechanism="randomized_response", epsilon=3.0)._mechanism == made
    with pytest.raises(ArgumentError, match="--gamma is not a parameter of randomized_response"):
        mechanism_from(parse_options([*flags, "--epsilon=3", "--gamma=1"], PrivatizeTextOptions))


@pytest.mark.parametrize("oov", ["drop", "random"])
def test_a_pipeline_draws_each_word_and_its_ledger_is_of_the_local_model(tmp_path, oov):
    store = BudgetStore(f"sqlite:///{tmp_path}/budget.db")
    limit = Limit(model="local", privacy_unit="document", epsilon=500.0)
    store.create("reviews", limit)
    ledger = Ledger(budget=store.run("reviews", "first"))
    with ledger.pipeline(OPTIONS) as pipeline:
        texts = (
            pipeline
            | beam.Create(["the weather in paris", ""])
            | PrivatizeText(WordRandomizedResponse(60), max_words=5, oov=oov)
        )

        def check(rows):
            assert sorted(rows) == ["", "the weather in paris"]

        assert_that(texts, check)
    written = json.loads(ledger.to_json())
    (entry,), totals = written["entries"], written["totals"]
    assert (entry["model"], entry["epsilon"], entry["delta"], entry["basis"]) == ("local", 60.0, 0.0, "proved")
    assert (entry["privacy_unit"], entry["max_applications"]) == ("document", 5)
    assert (entry["metric"], entry["index_digest"], entry["diameter"]) == (None, None, None)
    assert totals["metric"] is totals["central"] is None
    assert (totals["local"]["privacy_unit"], totals["local"]["epsilon"], totals["local"]["delta"]) == (
        "document",
        300,
        0,
    )
    assert store.account("reviews").spent(limit, datetime.now(timezone.utc)).epsilon == 300.0
    assert "diameter" not in ledger.report()
    assert Ledger.from_json(ledger.to_json()).to_json() == ledger.to_json()

    over = Ledger(budget=store.run("reviews", "second"))
    over_pipeline = over.pipeline(OPTIONS)
    _ = over_pipeline | beam.Create(["the"]) | PrivatizeText(WordRandomizedResponse(60), max_words=5)
    with pytest.raises(BudgetExceededError):
        over_pipeline.run()


def test_words_of_a_document_add_up_as_the_joint_law_says():
    """The worst log ratio of two documents of three words each, over all their outputs: 3ε, as the ledger adds it."""
    law = exact_law(4, 0.7)
    one, other = law[0], law[1]
    joint = [np.einsum("i,j,k->ijk", row, row, row) for row in (one, other)]
    ledger = Ledger()
    _ = ledger.pipeline(OPTIONS) | beam.Create(["the"]) | PrivatizeText(WordRandomizedResponse(0.7), max_words=3)
    assert ledger.total()["local"]["epsilon"] == pytest.approx(np.log(joint[0] / joint[1]).max(), rel=1e-9)


def test_a_share_of_the_local_model_holds_a_whole_document():
    for epsilon, fits in ((12.0, True), (11.9, False)):
        ledger = Ledger(shares=Shares(epsilon, parts={"texts": 1}, model="local"))
        texts = ledger.pipeline(OPTIONS) | beam.Create(["the"])
        privatize = PrivatizeText(WordRandomizedResponse(3), max_words=4, share=Share("texts"))
        if fits:
            _ = texts | privatize
            ledger.seal()
        else:
            with pytest.raises(BudgetExceededError, match=r"share .texts. allows epsilon 11\.9"):
                _ = texts | privatize


def test_what_the_ledger_says_in_words_is_about_words_of_texts():
    ledger = Ledger()
    _ = ledger.pipeline(OPTIONS) | beam.Create(["the"]) | PrivatizeText(WordRandomizedResponse(3), max_words=4)
    said = " ".join(explain(ledger).split())
    for sentence in (
        "Texts whose words are each replaced by a draw of WordRandomizedResponse(epsilon=3.0).",
        "The words of one document. Not a person",
        "If a word is replaced by any other one of the vocabulary: no set of outputs becomes more than 20.086 times",
        "Up to 4 words of one document are drawn: together epsilon 12, by adding up.",
        "How many words of each text are in the public vocabulary of the index, up to 4 (oov=drop).",
        "No column is kept beside it.",
    ):
        assert sentence in said
    assert "response" not in said.replace("WordRandomizedResponse", "").split("All of the local model")[0]


def test_command_line_publishes_other_words_and_the_claim(tmp_path):
    (tmp_path / "in.txt").write_text("the weather in paris\n" * 50)
    flags = (f"--input={tmp_path}/in.txt", "--mechanism=randomized_response", "--epsilon=2", "--max_words=3")
    done = run_module("pipelines.privatize_text", *flags, f"--output={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    texts = (tmp_path / "out-00000-of-00001.txt").read_text().splitlines()
    assert len(texts) == 50 and all(len(text.split()) == 3 for text in texts)
    # Hardly any word is kept at this epsilon, of so many others.
    drawn = [word for text in texts for word in text.split()]
    assert len(set(drawn)) > 130 and drawn.count("the") < 5
    assert open_index(resolve_index()).size > 2000
    ledger = json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]
    assert ledger["entries"][0]["guarantee"] == "local epsilon 2 (proved)"
    assert (ledger["totals"]["local"]["epsilon"], ledger["totals"]["metric"]) == (6.0, None)
