from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_dp.embeddings import BuildReport, EmbeddingIndex, broadcast, open_index, resolve_index
from beam_dp.embeddings.neighbours import neighbours
from beam_dp.errors import ArgumentError, IndexArtifactError


@pytest.fixture
def index(toy: BuildReport, cache: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingIndex:
    monkeypatch.setattr(broadcast, "_handles", {})
    return open_index(resolve_index(toy.output))


def test_it_is_what_the_manifest_says(index: EmbeddingIndex, toy: BuildReport) -> None:
    assert (index.size, index.dimension, index.metric, index.search) == (400, 6, "euclidean", "exact")
    assert index.digest == toy.digest
    assert index.manifest == toy.manifest
    assert index.diameter == toy.manifest.distances.diameter
    assert index.min_distance == toy.manifest.distances.min_neighbour
    assert repr(index).startswith("EmbeddingIndex(size=400, dimension=6")


def test_the_vectors_are_mapped_and_read_only(index: EmbeddingIndex) -> None:
    assert index.vectors.dtype == np.float32
    assert type(index.vectors) is np.ndarray
    assert isinstance(index.vectors.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        index.vectors[0, 0] = 1


@pytest.mark.parametrize("search", ["exact", "annoy"])
def test_nearest(toy: BuildReport, cache: Path, search: str) -> None:
    index = open_index(resolve_index(toy.output), search)
    assert index.search == search
    found = index.nearest(index.vectors[:50] + np.float32(1e-4))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.arange(50))
    for shape in ((3, 5), (6,), (1, 2, 6)):
        with pytest.raises(ArgumentError, match=r"queries must have the shape \(n, 6\)"):
            index.nearest(np.zeros(shape, np.float32))


def test_neighbours_are_exact_cut_to_the_vocabulary_and_kept(index: EmbeddingIndex, cache: Path) -> None:
    ids, distances = index.neighbours(5)
    expected_ids, expected = neighbours(np.array(index.vectors), 5)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(distances, expected)
    (kept,) = (cache / index.digest / "derived").glob("neighbours-*-5/ids.npy")
    np.testing.assert_array_equal(np.load(kept), ids)
    assert index.neighbours(5)[0] is ids
    assert index.neighbours(10_000)[0].shape == (400, 400)
    assert index.neighbours(np.int64(1))[0].tolist() == [[i] for i in range(400)]
    for k in (0, -1, 2.5, True):
        with pytest.raises(ArgumentError, match="k must be"):
            index.neighbours(k)


def test_derived_is_computed_once_for_all_objects(index: EmbeddingIndex) -> None:
    calls: list[int] = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"norms": np.linalg.norm(index.vectors, axis=1)}

    first = index.derived("norms", compute)
    assert index.derived("norms", compute) is first
    other = open_index(resolve_index(str(broadcast._local_folder(resolve_index_path(index)))), "annoy")
    np.testing.assert_array_equal(other.derived("norms", compute)["norms"], first["norms"])
    assert calls == [1]


def resolve_index_path(index: EmbeddingIndex) -> str:
    return str(Path(index.vectors.base.filename).parent)


def test_lookup(index: EmbeddingIndex) -> None:
    found = index.lookup(pa.array(["w3", "nothing", None, "w399", "w0", "", "W3", "w3"]))
    assert found.dtype == np.int32
    assert found.tolist() == [3, -1, -1, 399, 0, -1, -1, 3]
    np.testing.assert_array_equal(index.lookup(index.words), np.arange(400))
    assert index.lookup(pa.array([], pa.string())).shape == (0,)


def test_words_that_are_not_those_of_the_manifest(toy_copy: Path, toy: BuildReport) -> None:
    batch = pa.record_batch({"word": pa.array(["a", "b"])})
    with pa.OSFile(str(toy_copy / "words.arrow"), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(IndexArtifactError, match="holds 2 words, the manifest says 400"):
        EmbeddingIndex(toy_copy, toy.manifest, toy.digest, "exact", None)
    (toy_copy / "words.arrow").write_bytes(b"no arrow")
    with pytest.raises(IndexArtifactError, match="is not an Arrow file"):
        EmbeddingIndex(toy_copy, toy.manifest, toy.digest, "exact", None)
