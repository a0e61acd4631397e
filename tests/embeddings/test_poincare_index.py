"""An index in the Poincaré ball: the artifact, its distances, its search, and the finite laws on it."""

import json
from pathlib import Path

import apache_beam as beam
import mpmath
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_dp import Ledger, PrivatizeText
from beam_dp.audit import certify
from beam_dp.embeddings import build_index, open_index, resolve_index
from beam_dp.embeddings.hyperbolic import PoincareDistances, PoincareSearch
from beam_dp.embeddings.manifest import Manifest
from beam_dp.errors import ArgumentError, IndexArtifactError, InputError
from beam_dp.mechanisms import DensityPrior, Exponential, TruncatedExponential
from beam_dp.mechanisms.poincare_ball import log_coordinates, moved, polar

DIGITS = 50


def ball(size, dimension, seed, depth=6.0):
    """Points up to ``depth`` from the origin."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(size, dimension))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return (np.tanh(rng.uniform(0, depth, size) / 2)[:, None] * direction).astype(np.float32)


def boundary_words(dimension, seed):
    """Clusters of words close to each other (0.01 to 1) whose norms are 0.5 to 1 - 1e-7, the origin, and two twins."""
    rng = np.random.default_rng(seed)
    words = [np.zeros(dimension)]
    for norm in (0.5, 0.999, 0.99999, 0.999999, 1 - 3e-7):
        centre = rng.normal(size=dimension)
        centre *= norm / np.linalg.norm(centre)
        for _ in range(6):
            step = rng.normal(size=dimension) * (1 - norm) * rng.uniform(0.02, 0.3)
            words.append(centre + step if np.linalg.norm(centre + step) < 1 - 1e-7 else centre * (1 - 1e-7))
    distinct = np.unique(np.array(words, dtype=np.float32), axis=0)
    return np.concatenate([distinct, distinct[3:4]])


def exact_distance(one, other):
    """arcosh(1 + 2|x - y|² / ((1 - |x|²)(1 - |y|²))) of two float32 points, with `DIGITS` digits."""
    with mpmath.workdps(DIGITS):
        x, y = ([mpmath.mpf(float(c)) for c in point] for point in (one, other))
        gap = (1 - sum(c * c for c in x)) * (1 - sum(c * c for c in y))
        return float(mpmath.acosh(1 + 2 * sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / gap))


def exact_matrix(vectors):
    return np.array([[exact_distance(x, y) for y in vectors] for x in vectors])


def log_distance(log, word):
    """d_H of a point in log coordinates and a float32 point of the ball."""
    with mpmath.workdps(DIGITS):
        c = [mpmath.mpf(float(v)) for v in log]
        radius = mpmath.sqrt(sum(v * v for v in c))
        scale = mpmath.sinh(radius) / radius if radius else mpmath.mpf(1)
        y = [mpmath.mpf(float(v)) for v in word]
        square = sum(v * v for v in y)
        inner = mpmath.cosh(radius) * (1 + square) - 2 * scale * sum(a * b for a, b in zip(c, y, strict=True))
        return float(mpmath.acosh(max(inner / (1 - square), mpmath.mpf(1))))


VOCABULARIES = {
    "line": ball(20, 1, 1),
    "disc": ball(40, 2, 2),
    "10 dimensions": ball(25, 10, 3, depth=9.0),
    "boundary, d=2": boundary_words(2, 4),
    "boundary, d=5": boundary_words(5, 5),
}


@pytest.fixture(scope="module")
def gensim_vectors() -> Path:
    gensim = pytest.importorskip("gensim", reason="its test data hold a Poincaré embedding")
    return Path(gensim.__file__).parent / "test" / "test_data" / "poincare_vectors.bin"


@pytest.fixture(scope="module")
def mammals(gensim_vectors, tmp_path_factory):
    """The 1,182 mammals of WordNet in 10 dimensions, as an index."""
    output = str(tmp_path_factory.mktemp("mammals") / "index")
    return build_index(str(gensim_vectors), output, metric="poincare", source="gensim", progress=False)


def built(glove, tmp_path, vectors, **arguments):
    source = glove(tmp_path / "v.txt", [f"w{i}" for i in range(len(vectors))], vectors)
    return build_index(str(source), str(tmp_path / "index"), metric="poincare", progress=False, **arguments)


def test_artifact_has_no_forest_and_says_so(mammals, gensim_vectors, tmp_path):
    folder = Path(mammals.output)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "vectors.npy", "words.arrow"]
    fields = json.loads((folder / "manifest.json").read_bytes())
    assert (fields["metric"], fields["format_version"], fields["search"]) == ("poincare", 2, {})
    assert (fields["size"], fields["dimension"]) == (1182, 10)
    assert Manifest.from_bytes(mammals.manifest.to_bytes(), "m") == mammals.manifest
    again = build_index(str(gensim_vectors), str(tmp_path / "i"), metric="poincare", source="gensim", progress=False)
    assert again.digest == mammals.digest


@pytest.mark.parametrize("change", [{"metric": "euclidean"}, {"search": {"annoy": {}}}, {"metric": "cosine"}])
def test_manifest_whose_metric_and_search_do_not_fit_is_refused(mammals, change):
    fields = json.loads(mammals.manifest.to_bytes()) | change
    with pytest.raises(IndexArtifactError, match="build the index again"):
        Manifest.from_bytes(json.dumps(fields).encode(), "m")


def test_distances_of_the_manifest_are_those_of_all_pairs(mammals):
    vectors = open_index(resolve_index(mammals.output)).vectors.astype(np.float64)
    squares = np.square(vectors[:, None] - vectors[None]).sum(axis=2)
    gaps = 1 - np.square(vectors).sum(axis=1)
    distances = np.arccosh(1 + 2 * squares / (gaps[:, None] * gaps))
    found = mammals.manifest.distances
    assert distances.max() <= found.diameter <= distances.max() * (1 + 2e-5)
    np.fill_diagonal(distances, np.inf)
    assert found.min_neighbour == pytest.approx(distances.min(), rel=1e-9)
    assert found.median_neighbour == pytest.approx(np.median(distances.min(axis=1)), rel=1e-9)
    assert found.duplicate_vectors == 0


@pytest.mark.parametrize("name", VOCABULARIES)
def test_distances_hold_to_the_last_digits_at_the_boundary_too(name):
    vectors = VOCABULARIES[name]
    exact, distances = exact_matrix(vectors), PoincareDistances(vectors)
    everyone = np.arange(len(vectors))
    np.testing.assert_allclose(distances.to_all(everyone), exact, rtol=1e-13, atol=1e-300)
    left, right = np.meshgrid(everyone, everyone, indexing="ij")
    pairs = distances.pairs(left.ravel(), right.ravel())
    np.testing.assert_allclose(pairs.reshape(exact.shape), exact, rtol=1e-13, atol=1e-300)
    low, high = distances.bounds(everyone[3:])
    assert low.dtype == high.dtype == np.float32
    assert np.all((low <= exact[3:]) & (exact[3:] <= high))
    np.testing.assert_allclose(low, high, rtol=1e-6, atol=1e-30)
    measured = distances.measure(vectors, lambda _: None)
    assert exact.max() <= measured.diameter <= exact.max() * (1 + 2e-5)
    np.fill_diagonal(exact, np.inf)
    assert measured.min_neighbour == pytest.approx(exact.min(), rel=1e-12, abs=0)
    assert measured.median_neighbour == pytest.approx(np.median(exact.min(axis=1)), rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_neighbours_are_those_of_the_sorted_distances(name, k):
    vectors = VOCABULARIES[name]
    exact = exact_matrix(vectors)
    ids, distances = PoincareDistances(vectors).neighbours(k)
    first = exact - 2 * np.eye(len(vectors)) * (exact.max() + 1)
    expected = np.argsort(first, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, expected)
    assert ids.dtype == np.int32 and distances.dtype == np.float32
    np.testing.assert_allclose(distances, np.take_along_axis(exact, expected, axis=1), rtol=1e-6)


def queries_near(vectors, rng, each=6):
    """Log coordinates of points 0 to 3 from every word, on the words, far beyond them, and at the origin."""
    logs = log_coordinates(vectors)
    home, heading = (np.repeat(part, each, axis=0) for part in polar(logs))
    direction = rng.normal(size=heading.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    near = moved(rng.uniform(0, 3, len(home)) ** 2 / 3, direction, home, heading)
    return np.concatenate([near, logs, polar(logs)[1] * 40, np.zeros((1, vectors.shape[1]))])


def misplaced(vectors, queries, ids):
    """How many of ``ids`` (n,) are farther from the query than some word, by more than 1e-9."""
    wrong = 0
    for log, found in zip(queries, ids, strict=True):
        distances = [log_distance(log, word) for word in vectors]
        wrong += distances[found] > min(distances) + 1e-9
    return wrong


@pytest.mark.parametrize("name", VOCABULARIES)
def test_search_finds_the_nearest_word(rng, name):
    vectors = VOCABULARIES[name]
    queries = queries_near(vectors, rng, each=3)
    assert misplaced(vectors, queries, PoincareSearch(vectors).nearest(queries)) == 0


def test_search_without_its_second_look_fails_at_the_boundary(rng):
    """What the certified comparison is for: products of hyperboloid coordinates alone do not tell neighbours apart."""
    vectors = VOCABULARIES["boundary, d=5"]
    queries = queries_near(vectors, rng, each=3)
    search = PoincareSearch(vectors)
    search._doubt[:] = -1
    assert misplaced(vectors, queries, search.nearest(queries)) > 0


@pytest.mark.parametrize("name", VOCABULARIES)
def test_search_for_two_gives_both_with_their_distances(rng, name):
    vectors = VOCABULARIES[name]
    queries = queries_near(vectors, rng, each=2)
    ids, distances = PoincareSearch(vectors).nearest_two(queries)
    for log, found, given in zip(queries, ids, distances, strict=True):
        exact = np.array([log_distance(log, word) for word in vectors])
        assert found[0] != found[1]
        np.testing.assert_allclose(exact[found], np.sort(exact)[:2], atol=1e-9)
        np.testing.assert_allclose(given, exact[found], atol=1e-7)


def test_equal_vectors_go_to_the_lower_id():
    vectors = VOCABULARIES["boundary, d=2"]
    logs = log_coordinates(vectors)
    found = PoincareSearch(vectors).nearest(logs)
    assert found[-1] == found[3] == 3
    np.testing.assert_array_equal(found[:-1], np.arange(len(vectors) - 1))
    assert PoincareSearch(vectors).nearest_two(logs)[0][-1].tolist() == [3, len(vectors) - 1]


def test_direction_decides_for_a_query_however_far_away():
    """A million and 1e15 from the origin: there cosh has no float64 value, and the ball no point but the boundary."""
    vectors = VOCABULARIES["disc"]
    _, direction = polar(log_coordinates(vectors))
    turned = direction[:, ::-1] * [1, -1]
    for far in (1e6, 1e15):
        # The nearest word to a point at infinity has the least Busemann value, ln(|p - x|² / (1 - |x|²)).
        points = vectors.astype(np.float64)
        values = np.square(turned[:, None] - points[None]).sum(axis=2) / (1 - np.square(points).sum(axis=1))
        np.testing.assert_array_equal(PoincareSearch(vectors).nearest(turned * far), values.argmin(axis=1))


@pytest.mark.parametrize("size", [2, 40])
def test_every_query_gets_a_word_even_nan(size):
    vectors = VOCABULARIES["disc"][:size]
    queries = np.array([[0.1, 0.2], [np.nan, 0.0], [1.0, np.nan], [3.0, 1.0]])
    assert np.all(PoincareSearch(vectors).nearest(queries) < size)
    ids, _ = PoincareSearch(vectors).nearest_two(queries)
    assert np.all((ids >= 0) & (ids < size)) and np.all(ids[:, 0] != ids[:, 1])
    assert PoincareSearch(vectors).nearest(queries[:0]).shape == (0,)
    assert PoincareSearch(vectors).nearest_two(queries[:0])[0].shape == (0, 2)


def test_blocks_of_queries_do_not_matter(rng, monkeypatch):
    vectors = ball(700, 3, 8)
    queries = queries_near(vectors, rng)
    search = PoincareSearch(vectors)
    whole, two = search.nearest(queries), search.nearest_two(queries)
    search._rows = 17
    np.testing.assert_array_equal(search.nearest(queries), whole)
    np.testing.assert_array_equal(search.nearest_two(queries)[0], two[0])


def test_origin_is_a_word(glove, tmp_path):
    report = built(glove, tmp_path, VOCABULARIES["boundary, d=2"])
    assert report.manifest.size == len(VOCABULARIES["boundary, d=2"])
    assert not report.dropped
    assert report.manifest.distances.duplicate_vectors == 1
    assert report.manifest.distances.min_neighbour == 0


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([0.6, 0.8], "not below 1"),
        ([0.8, 0.7], "not below 1"),
        ([1 - 1e-9, 0.0], "not below 1"),
        ([np.nan, 0.0], "NaN"),
        ([1 - 2**-24, 2**-11.5 - 1e-10], "too near the boundary"),
    ],
    ids=["on it", "outside", "rounded to it", "nan", "too near"],
)
def test_vectors_that_are_no_points_of_the_ball_are_refused(glove, tmp_path, vector, message):
    with pytest.raises(InputError, match=f"line 3: .*{message}"):
        built(glove, tmp_path, np.array([[0.1, 0.2], [0.3, 0.4], vector]))
    assert not (tmp_path / "index").exists()


def test_annoy_and_its_trees_are_refused(mammals, glove, tmp_path):
    ref = resolve_index(mammals.output)
    assert open_index(ref, "auto").search == open_index(ref, "exact").search == "exact"
    with pytest.raises(ArgumentError, match="search must be exact or auto for an index with the poincare metric"):
        open_index(ref, "annoy")
    with pytest.raises(ArgumentError, match="trees are of Annoy, which does not know the poincare metric"):
        built(glove, tmp_path, ball(5, 2, 1), trees=3)


def test_gensim_models_are_read(tmp_path):
    models = pytest.importorskip("gensim.models.poincare", reason="reads its own files")
    edges = [(f"w{i}", f"w{i // 3}") for i in range(1, 40)]
    model = models.PoincareModel(edges, size=2, negative=3, seed=1)
    model.train(epochs=2)
    model.save(str(tmp_path / "poincare.model"))
    report = build_index(str(tmp_path / "poincare.model"), str(tmp_path / "index"), metric="poincare", progress=False)
    index = open_index(resolve_index(report.output))
    assert sorted(index.words.to_pylist()) == sorted(f"w{i}" for i in range(40))
    np.testing.assert_array_equal(index.vectors, model.kv.vectors.astype(np.float32))


def test_published_to_a_file_system_it_leaves_no_forest_of_another(glove, tmp_path, cache):
    source = str(glove(tmp_path / "v.txt", [f"w{i}" for i in range(30)], ball(30, 3, 1)))
    output = f"shelf://{tmp_path}/far/index"
    build_index(source, output, trees=1, progress=False)
    assert (tmp_path / "far" / "index" / "index.ann").exists()
    build_index(source, output, metric="poincare", overwrite=True, progress=False)
    names = {path.name for path in (tmp_path / "far" / "index").iterdir()}
    assert names == {"manifest.json", "vectors.npy", "words.arrow"}
    index = open_index(resolve_index(output))
    assert (index.metric, index.size, index.search) == ("poincare", 30, "exact")


# The finite laws

LAWS = {
    "exponential": (Exponential(1.5), lambda d, density: np.exp(-0.75 * d)),
    "truncated_exponential": (TruncatedExponential(1.5, 3.0), lambda d, density: np.exp(-0.75 * np.minimum(d, 3.0))),
    "density_prior": (DensityPrior(1.5, 1.2), lambda d, density: density * np.exp(-0.75 * d)),
}


@pytest.mark.parametrize("name", LAWS)
def test_finite_laws_hold_under_hyperbolic_distances(glove, tmp_path, rng, cache, name):
    vectors = ball(30, 2, 6)
    index = open_index(resolve_index(built(glove, tmp_path, vectors).output))
    exact = exact_matrix(index.vectors)
    mechanism, weight = LAWS[name]
    law = weight(exact, np.exp(-0.5 * (exact / 1.2) ** 2).sum(axis=1))
    law /= law.sum(axis=1, keepdims=True)
    bound = mechanism.bind(index)
    np.testing.assert_allclose(bound.law_rows(np.arange(30, dtype=np.int32)), law, rtol=1e-6)
    for word in (0, 7):
        drawn = np.bincount(bound.sample(np.full(40_000, word, np.int32), rng), minlength=30)
        excess = np.square(drawn - 40_000 * law[word]) / (40_000 * law[word])
        assert excess.sum() < 75  # chi-square of 29 degrees of freedom beyond 1e-5
    ratios = np.log(law[:, None] / law[None]).max(axis=2)
    assert np.all(ratios <= 1.5 * exact + 1e-9)
    assert mechanism.guarantee(index).metric == "poincare"
    assert certify(mechanism, index).metric == "poincare"


def test_pipeline_under_hyperbolic_distances_names_the_metric(glove, tmp_path, cache):
    output = built(glove, tmp_path, ball(30, 2, 6)).output
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as pipeline:
        texts = pipeline | beam.Create(["w1 w2", "w7 elsewhere"]) | PrivatizeText(Exponential(1e5), index=output)

        def check(rows):
            assert sorted(rows) == ["w1 w2", "w7"]

        assert_that(texts, check)
    (entry,) = json.loads(ledger.to_json())["entries"]
    assert (entry["metric"], entry["epsilon"], entry["basis"]) == ("poincare", 1e5, "proved")
    total = json.loads(ledger.to_json())["totals"]["metric"]
    assert total["diameter"] == open_index(resolve_index(output)).diameter
