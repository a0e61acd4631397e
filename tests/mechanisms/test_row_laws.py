import gc
import math
import threading

import numpy as np
import pytest
from finite_laws import REJECTION, SIGNIFICANCE, VOCABULARIES, fit, slow_law, with_index_distances, worst_fit

from beam_dp.embeddings.neighbours import DistanceBounds
from beam_dp.mechanisms import row_laws
from beam_dp.mechanisms.row_laws import BoundRows, Weights, bind_rows, flip

# Of max(d/5, 3d/5 - 1/5, d - 1) = g(d).
KNOTS = (np.array([0.0, 0.5, 2.0, 1e4]), np.array([0.0, 0.1, 1.0, 1e4 - 1]))
# One cost of each kind: flat, steep enough for a last level, truncated, with a base measure, bent.
KINDS = {
    "flat": lambda size: Weights(1e-6),
    "plain": lambda size: Weights(1.0),
    "steep": lambda size: Weights(40.0),
    "truncated": lambda size: Weights(3.0, cap=1.5),
    "based": lambda size: Weights(0.7, log_base=-(np.linspace(0, 9, size) ** 2) / 8),
    "bent": lambda size: Weights(5.0, knots=KNOTS),
}


def slow_weight(weights):
    """The weight of a word as it is written down."""

    def weight(distance, word):
        base = 1.0 if weights.log_base is None else math.exp(weights.log_base[word])
        if weights.knots is not None:
            distance = max(distance / 5, 3 * distance / 5 - 1 / 5, distance - 1)
        return base * math.exp(-weights.rate * min(distance, weights.cap))

    return weight


class Script:
    """A generator that gives the numbers it is told to."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, low, high, size, dtype):
        values = [self.numbers.pop(0) for _ in range(size)]
        assert all(low <= value < high for value in values)
        return np.array(values, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_rows_of_the_law_are_the_formula_to_twelve_digits(plain_space, vocabulary, kind):
    space = plain_space(VOCABULARIES[vocabulary])
    weights = KINDS[kind](space.size)
    rows = BoundRows(space, weights).law_rows(np.arange(space.size, dtype=np.int32))
    for word in range(space.size):
        assert np.abs(rows[word] - slow_law(space, word, slow_weight(weights))).max() < 1e-12
    assert np.abs(rows.sum(axis=1) - 1).max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_draws_follow_the_law(plain_space, rng, vocabulary, kind):
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    weights = KINDS[kind](space.size)
    words = sorted({0, 1, space.size // 2, space.size - 1})
    law = {word: slow_law(space, word, slow_weight(weights)) for word in words}
    assert worst_fit(BoundRows(space, weights), law, words, 40_000, rng) > SIGNIFICANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_word_has_the_units_that_its_weight_needs_and_no_more_of_them_are_sure(plain_space, vocabulary, kind):
    """All rows, all words, as numbers: what a test of draws can only show for common words."""
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    weights = KINDS[kind](space.size)
    bound = BoundRows(space, weights)
    every = np.arange(space.size, dtype=np.int32)
    bound.sample(every, np.random.default_rng(1))
    assert sorted(bound._words) == every.tolist()
    for slot, word in enumerate(bound._words):
        order, starts, ends = bound._order[slot], bound._starts[slot], bound._ends[slot]
        assert sorted(order) == every.tolist()
        level = np.searchsorted(starts[: row_laws._NOTHING], np.arange(space.size), side="right") - 1
        widths = bound._widths[slot][level]
        sizes = np.bincount(level, minlength=row_laws._LEVELS).astype(object)
        assert np.cumsum(sizes * np.where(sizes > 0, bound._widths[slot], np.uint64(0))).tolist() == ends.tolist()
        assert (1 - 1e-8) * 2**64 < int(ends[-1]) < 2**64
        costs = weights.costs(np.array([space.distances[word, y] for y in order]), order)
        assert 0 <= bound._least[slot] <= costs.min()
        owned = bound._scales[slot] * np.exp(-(costs - bound._least[slot]))
        assert np.all(owned <= widths)
        assert np.all(bound._sure[level] * widths.astype(float) <= owned)
        common = level < row_laws._TAIL
        assert np.all(owned[common] > 0.9 * widths[common])


def plant_no_examination(monkeypatch, bound):
    monkeypatch.setattr(bound, "_examine", lambda slots, *_: np.ones(len(slots), bool))


def plant_level_above(monkeypatch, bound):
    levels = bound._levels
    monkeypatch.setattr(bound, "_levels", lambda *arguments: np.minimum(levels(*arguments), 253) + np.uint8(1))


def plant_no_least(monkeypatch, bound):
    levels = bound._levels

    def planted(slots, *arguments):
        found = levels(slots, *arguments)
        bound._least[slots] += 0.2
        return found

    monkeypatch.setattr(bound, "_levels", planted)


def plant_narrow_bounds(monkeypatch, bound):
    monkeypatch.setattr(bound._space, "distance_bounds", float32_distances(bound._space))


def plant_all_sure(monkeypatch, bound):
    bound._sure[:] = 1


def plant_approximate_candidates(monkeypatch, bound):
    """Only the nearer half of the words, as from an approximate index."""
    make_rows = bound._make_rows

    def planted(slots, words, low, high):
        far = low > np.median(low, axis=1, keepdims=True)
        low[far] = high[far] = 1e6
        make_rows(slots, words, low, high)

    monkeypatch.setattr(bound, "_make_rows", planted)


def float32_distances(space):
    """Float32 distances that are taken to be exact."""
    exact = DistanceBounds(space.vectors)
    exact._error = np.zeros_like(exact._error)
    return lambda words: (exact.of(words)[0],) * 2


PLANTS = {
    "acceptance always true": (plant_no_examination, "17 words, d=2"),
    "acceptance sure at every level": (plant_all_sure, "17 words, d=2"),
    "level off by one": (plant_level_above, "17 words, d=2"),
    "least cost off": (plant_no_least, "17 words, d=2"),
    "float32 distances taken as exact": (plant_narrow_bounds, "far from 0"),
    "candidates of an approximate index": (plant_approximate_candidates, "17 words, d=2"),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # planted bugs own more units than there are
@pytest.mark.parametrize("planted", [None, *PLANTS])
def test_planted_bugs_do_not_fit_the_law(plain_space, rng, monkeypatch, planted):
    plant, vocabulary = PLANTS.get(planted, (None, "far from 0"))
    space = with_index_distances(plain_space(VOCABULARIES[vocabulary]))
    weights = Weights(2.5)
    bound = BoundRows(space, weights)
    words = list(range(0, space.size, 4))
    law = {word: slow_law(space, word, slow_weight(weights)) for word in words}
    if plant is None:
        assert worst_fit(bound, law, words, 300_000, rng) > SIGNIFICANCE
    else:
        plant(monkeypatch, bound)
        assert worst_fit(bound, law, words, 300_000, rng) < REJECTION


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("block", [1 << 14, 50])
def test_a_cache_smaller_than_the_words_of_a_batch_draws_the_same_law(plain_space, rng, monkeypatch, rows, block):
    monkeypatch.setattr(row_laws, "_BLOCK_DRAWS", block)
    space = with_index_distances(plain_space(VOCABULARIES["17 words, d=2"]))
    weights = Weights(1.5)
    bound = BoundRows(space, weights, cache_bytes=rows * (17 * 2 + row_laws._LEVELS * 20 + 16))
    assert len(bound._words) == rows
    law = {word: slow_law(space, word, slow_weight(weights)) for word in range(17)}
    assert worst_fit(bound, law, range(17), 200 if block < 100 else 20_000, rng) > SIGNIFICANCE
    held = {int(word) for word in bound._words if word >= 0}
    assert held == {word for word in range(17) if bound._slots[word] >= 0}
    assert all(bound._words[bound._slots[word]] == word for word in held)


def test_a_row_of_another_word_does_not_fit(plain_space, rng, monkeypatch):
    """A cache that forgets to forget: the word whose row was replaced is still looked up there."""
    space = plain_space(VOCABULARIES["17 words, d=2"])
    bound = BoundRows(space, Weights(1.5), cache_bytes=5 * (17 * 2 + row_laws._LEVELS * 20 + 16))
    insert = bound._insert

    def planted(words):
        before = bound._slots.copy()
        insert(words)
        bound._slots[:] = np.where(bound._slots < 0, before, bound._slots)

    monkeypatch.setattr(bound, "_insert", planted)
    bound.sample(np.arange(17, dtype=np.int32), rng)
    law = {word: slow_law(space, word, slow_weight(Weights(1.5))) for word in range(17)}
    assert worst_fit(bound, law, range(17), 5_000, rng) < REJECTION


def test_the_least_recently_drawn_rows_go_first(plain_space, rng):
    space = plain_space(VOCABULARIES["17 words, d=2"])
    made = []
    bounds = space.distance_bounds
    space.distance_bounds = lambda words: (made.extend(words.tolist()), bounds(words))[1]
    bound = BoundRows(space, Weights(1.5), cache_bytes=3 * (17 * 2 + row_laws._LEVELS * 20 + 16))
    for word in (0, 1, 2, 0, 3, 0, 2, 1):
        bound.sample(np.array([word, word], np.int32), rng)
    assert made == [0, 1, 2, 3, 1]


def test_rows_are_made_together_and_once(plain_space, rng):
    space = plain_space(VOCABULARIES["300 words, d=2"])
    calls = []
    bounds = space.distance_bounds
    space.distance_bounds = lambda words: (calls.append(len(words)), bounds(words))[1]
    bound = BoundRows(space, Weights(1.5))
    assert calls == []
    for _ in range(2):
        bound.sample(np.arange(300, dtype=np.int32).repeat(3), rng)
    assert calls == [256, 44]


@pytest.mark.parametrize("n", [0, 1, (1 << 14) + 1])
def test_every_number_of_words_gives_one_word_each(plain_space, rng, n):
    space = plain_space(VOCABULARIES["3 words, d=1"])
    out = BoundRows(space, Weights(1.0)).sample(rng.integers(0, 3, n).astype(np.int32), rng)
    assert out.shape == (n,) and out.dtype == np.int32 and np.all((out >= 0) & (out < 3))


def test_threads_share_a_small_cache(plain_space, rng):
    space = with_index_distances(plain_space(VOCABULARIES["17 words, d=2"]))
    bound = BoundRows(space, Weights(1.5), cache_bytes=4 * (17 * 2 + row_laws._LEVELS * 20 + 16))
    batches = [np.tile(np.arange(start, 17, 4, dtype=np.int32), 8_000) for start in range(4)]
    drawn = [np.empty(0, np.int32)] * 4

    def work(thread):
        own = np.random.default_rng(thread)
        drawn[thread] = np.concatenate([bound.sample(part, own) for part in np.array_split(batches[thread], 30)])

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids, out = np.concatenate(batches), np.concatenate(drawn)

    class Recorded:
        def sample(self, asked, _):
            order = np.argsort(np.argsort(asked, kind="stable"), kind="stable")
            return out[np.argsort(ids, kind="stable")][order]

    law = {word: slow_law(space, word, slow_weight(Weights(1.5))) for word in range(17)}
    assert worst_fit(Recorded(), law, range(17), 8_000, rng) > SIGNIFICANCE


def test_a_space_and_a_law_have_one_cache_while_somebody_holds_it(plain_space):
    space, other = plain_space([[0.0], [1.0]]), plain_space([[0.0], [2.0]])
    base = np.array([0.0, -1.0])
    weights = [
        Weights(1.0),
        Weights(2.0),
        Weights(1.0, 0.5),
        Weights(1.0, log_base=base),
        Weights(1.0, log_base=base - 1),
        Weights(1.0, knots=KNOTS),
        Weights(1.0, knots=(KNOTS[0], KNOTS[1] / 2)),
    ]
    held = [bind_rows(space, each) for each in weights]
    assert len(set(map(id, held))) == 7 and [rows.weights for rows in held] == weights
    assert bind_rows(space, Weights(1.0)) is held[0] and bind_rows(space, Weights(1.0, log_base=base)) is held[3]
    assert bind_rows(space, Weights(1.0, knots=(KNOTS[0].copy(), KNOTS[1].copy()))) is held[5]
    assert bind_rows(other, Weights(1.0)) is not held[0]
    before = len(row_laws._bound)
    del held
    gc.collect()
    assert len(row_laws._bound) == before - 7


def test_a_coin_is_exact_to_the_last_bit():
    third = np.array([1 / 3])
    high, rest = divmod(int(1 / 3 * 2**96), 2**64)
    low = rest >> 32
    assert flip(third, Script(high - 1)) == [True] and flip(third, Script(high + 1)) == [False]
    assert flip(third, Script(high, low - 1)) == [True]
    # A float64 number ends: whoever agrees with all of its bits is not below it.
    assert flip(third, Script(high, low)) == [False]
    tiny = np.array([2.0**-100])
    assert flip(tiny, Script(0, 0, 0, (1 << 28) - 1)) == [True]
    assert flip(tiny, Script(0, 0, 0, 1 << 28)) == [False]
    assert flip(np.array([0.0, 1.0]), Script(0, 2**32 - 1)).tolist() == [False, True]


def test_units_of_nobody_are_drawn_anew(plain_space):
    space = plain_space([[0.0], [1.0]])
    bound = BoundRows(space, Weights(1.0))
    assert bound.sample(np.array([1], np.int32), Script(0)) == [1]
    other = int(bound._ends[bound._slots[1], 0])  # where the units of the word itself end
    script = Script(2**64 - 1, other)
    assert bound.sample(np.array([1], np.int32), script) == [0] and script.numbers == []


def test_a_weight_below_the_floats_is_a_product_of_coins(plain_space):
    """A cost of 1,500 with about 2^64 units: heads takes 1500/ln 2 - 64 bits that are 0, in three coins of 32 each."""
    space = plain_space([[0.0], [1500.0]])
    bound = BoundRows(space, Weights(1.0))
    bound.sample(np.array([0], np.int32), Script(0))
    first = int(bound._ends[0, row_laws._TAIL - 1])
    script = Script(first, *[0] * 100)
    assert bound.sample(np.array([0], np.int32), script) == [1]
    zeros = 100 - len(script.numbers)
    assert abs(zeros - (1500 / math.log(2) - 64) / 32) < 3
    for place in range(zeros):
        script = Script(first, *[0] * place, 2**32 - 1, 0)
        assert bound.sample(np.array([0], np.int32), script) == [0] and script.numbers == []
    assert bound.sample(np.array([0], np.int32), Script(first + 1, 0)) == [0]


class Line:
    """More words than 16 bits can number, on a line."""

    metric, digest, dimension = "euclidean", "0" * 64, 1

    def __init__(self, size):
        self.size = size
        self.vectors = np.arange(size, dtype=np.float32)[:, None] / 100
        self.distance_bounds = DistanceBounds(self.vectors).of

    def pair_distances(self, left, right):
        return np.abs(left.astype(float) - right) / 100


def test_more_words_than_sixteen_bits_can_number(rng):
    size = 70_000
    bound = BoundRows(Line(size), Weights(0.02))
    drawn = bound.sample(np.full(200_000, size - 1, np.int32), rng)
    law = np.exp(-0.0002 * np.arange(size - 1, -1, -1))
    groups = np.add.reduceat(law, np.arange(0, size, 3_500))
    assert fit(drawn // 3_500, groups / groups.sum()) > SIGNIFICANCE
    assert (drawn > 1 << 16).mean() > 0.5
