"""Certificates of local privacy: laws that treat all words alike."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from laws import BoundMatrix, MatrixMechanism, defined_epsilon, exponential_matrix

from beam_dp.audit import certify
from beam_dp.audit.pairs import Worst
from beam_dp.audit.symmetric_pairs import SymmetricPairs
from beam_dp.errors import ArgumentError
from beam_dp.guarantees import CentralGuarantee, LocalGuarantee
from beam_dp.mechanisms import WordRandomizedResponse
from beam_dp.mechanisms.randomized_response import KaryRandomizedResponse
from beam_dp.mechanisms.word_randomized_response import BoundWordRandomizedResponse


def vocabulary(size: int) -> SimpleNamespace:
    """Words without vectors: whoever asks for a distance fails."""
    return SimpleNamespace(size=size, metric="cosine", digest="5" * 64)


def drawn_law(size: int, epsilon: float) -> np.ndarray:
    """P[w, y] from the definition."""
    law = np.ones((size, size)) + math.expm1(epsilon) * np.eye(size)
    return law / law.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [2, 3, 70])
@pytest.mark.parametrize("epsilon", [0.1, 3.0, 50.0])
def test_a_certificate_is_what_every_output_of_every_pair_says_at_distance_one(plain_space, size, epsilon):
    found = certify(WordRandomizedResponse(epsilon), vocabulary(size))
    exact = defined_epsilon(drawn_law(size, epsilon), np.ones((size, size)))
    assert found.epsilon == pytest.approx(exact, rel=1e-12)
    assert found.epsilon_at_least <= epsilon <= found.epsilon <= epsilon * (1 + 1e-12)
    assert (found.verdict, found.holds, found.delta, found.delta_at_least) == ("holds", True, 0, 0)
    assert (found.pairs, found.words, found.pair, found.method) == (size * (size - 1), size, None, "closed form")
    # The same law, with every output looked at and all words at distance 1.
    space = plain_space(np.arange(size)[:, None])
    space.distances = np.ones((size, size)) - np.eye(size)
    dense = certify(MatrixMechanism.of(drawn_law(size, epsilon), 2 * epsilon), space)
    assert found.epsilon == pytest.approx(dense.epsilon, rel=1e-11)


def test_it_names_the_vocabulary_and_no_distance():
    found = certify(WordRandomizedResponse(3), vocabulary(70))
    assert (found.metric, found.index_digest, found.radius) == ("discrete", "5" * 64, None)
    assert found.sentence() == (
        "computed over 4,830 ordered pairs of 70 words: epsilon 3, delta 0 per word between any two words; the claim "
        "of epsilon 3 holds"
    )
    fields = json.loads(found.to_json())
    assert (fields["metric"], fields["pair"], fields["claimed_epsilon"]) == ("discrete", None, 3.0)


def test_any_vocabulary_is_small():
    found = certify(WordRandomizedResponse(12.0), vocabulary(3_000_000))
    assert (found.pairs, found.verdict) == (3_000_000 * 2_999_999, "holds")


@pytest.mark.parametrize(
    ("epsilon", "verdict"),
    [
        (1e-300, "not decided"),
        (1e-9, "not decided"),
        (1e-4, "holds"),
        (700.0, "holds"),
        (745.0, "holds"),
        (1e6, "holds"),
        (1e300, "holds"),
    ],
)
def test_bounds_enclose_epsilons_that_float64_can_hardly_hold(epsilon, verdict):
    found = certify(WordRandomizedResponse(epsilon), vocabulary(70))
    assert found.epsilon_at_least <= epsilon < found.epsilon < epsilon * (1 + 1e-12) + 1e-13
    assert found.verdict == verdict


def test_blocks_together_find_what_one_block_finds():
    law = SymmetricPairs(vocabulary(70), WordRandomizedResponse(3.0).bind(vocabulary(70)))
    merged = Worst()
    for start in (60, 0, 30):
        merged = merged.merged(law.worst(np.arange(start, min(start + 30, 70), dtype=np.int32), None))
    assert merged == law.worst(np.arange(70, dtype=np.int32), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": 1.0}, "radius must be left out: in local privacy any two words are at distance 1"),
        ({"epsilon": 1.0}, "epsilon must be left out"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        certify(WordRandomizedResponse(3.0), vocabulary(9), **arguments)


@dataclass(frozen=True)
class Promising(MatrixMechanism):
    """A law that promises in another model than the metric one."""

    guaranteed: Any = None

    def guarantee(self, space):
        return self.guaranteed


def test_other_laws_and_other_models_are_refused(plain_space):
    space = plain_space(np.random.default_rng(1).normal(size=(6, 2)))
    rows = tuple(map(tuple, exponential_matrix(space.distances, 1.0).tolist()))
    for model, message in (
        (LocalGuarantee, "only a law that treats all words alike"),
        (CentralGuarantee, "must promise metric or local privacy, not central privacy"),
    ):
        claim = model(epsilon=9.0, basis="proved", privacy_unit="user")
        with pytest.raises(ArgumentError, match=message):
            certify(Promising(rows, 9.0, guaranteed=claim), space)


# Planted bugs.


def refusal(monkeypatch, cls, name, planted, message):
    monkeypatch.setattr(cls, name, planted)
    with pytest.raises(ArgumentError, match=message):
        certify(WordRandomizedResponse(3.0), vocabulary(2_000))


def test_one_word_too_many_in_the_probability_to_keep_is_caught(monkeypatch):
    keep = property(lambda self: 1 / (1 + self.categories * math.exp(-self.epsilon)))
    refusal(monkeypatch, KaryRandomizedResponse, "keep_probability", keep, "law_rows are not what")


def test_rows_of_twice_the_epsilon_are_caught(monkeypatch):
    def rows(self, ids):
        return drawn_law(2_000, 6.0)[ids]

    refusal(monkeypatch, BoundWordRandomizedResponse, "law_rows", rows, "law_rows are not what")


def test_rows_that_are_not_normalised_are_caught(monkeypatch):
    def rows(self, ids):
        return drawn_law(2_000, 3.0)[ids] * (1 + 1e-9)

    refusal(monkeypatch, BoundWordRandomizedResponse, "law_rows", rows, "law_rows are not what")


@pytest.mark.parametrize(
    "logs",
    [
        # One word too many; no normaliser; a change that never happens.
        (-math.log1p(2_000 * math.exp(-3)), -math.log1p(2_000 * math.exp(-3)) - 3),
        (-math.log1p(2_000 * math.exp(-30)), -math.log1p(2_000 * math.exp(-30)) - 30),
        (-math.log1p(1_999 * math.exp(-3)), -3.0),
        (0.0, -math.inf),
    ],
    ids=["V for V - 1", "V for V - 1 where nearly all is kept", "no normaliser", "never"],
)
def test_logarithms_of_no_law_are_caught(monkeypatch, logs):
    planted = property(lambda self: logs)
    refusal(monkeypatch, BoundWordRandomizedResponse, "log_probabilities", planted, "are of no law")


@dataclass(frozen=True)
class Loud(WordRandomizedResponse):
    """Randomized response that is consistent, and spends a little more than it claims, or twice that."""

    factor: float = 2.0

    def bind(self, space):
        return WordRandomizedResponse(self.factor * self.epsilon).bind(space)


@pytest.mark.parametrize("factor", [1 + 1e-6, 2.0])
def test_an_epsilon_above_the_claim_shows(factor):
    found = certify(Loud(3.0, factor), vocabulary(2_000))
    assert (found.verdict, found.holds) == ("does not hold", False)
    assert found.slack == pytest.approx(factor, rel=1e-12)
    assert "the claim of epsilon 3 DOES NOT HOLD" in found.sentence()


class Favoured(BoundMatrix):
    """Draws alike for all words, unless asked for the row of the first one, where two others swap their shares."""

    def __init__(self, size: int) -> None:
        matrix = drawn_law(size, 3.0)
        matrix[0, 1] *= 1.5
        matrix[0, 2] *= 0.5
        super().__init__(matrix)
        self.log_probabilities = WordRandomizedResponse(3.0).bind(vocabulary(size)).log_probabilities


def test_words_that_are_not_alike_are_caught():
    with pytest.raises(ArgumentError, match="law_rows are not what"):
        SymmetricPairs(vocabulary(9), Favoured(9))
