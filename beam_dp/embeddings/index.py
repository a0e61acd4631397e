"""An opened embedding index: the public vocabulary with its vectors, memory-mapped, and its searches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_dp.embeddings.cache import Arrays, derived_arrays
from beam_dp.embeddings.hyperbolic import PoincareDistances, PoincareSearch
from beam_dp.embeddings.manifest import FOREST_FILE, VECTORS_FILE, WORDS_FILE, Manifest
from beam_dp.embeddings.neighbours import EuclideanDistances
from beam_dp.embeddings.search import (
    AnnoySearch,
    Doubles,
    ExactSearch,
    Floats,
    Search,
    Strategy,
    WordIds,
    require_queries,
)
from beam_dp.errors import BeamDpError, IndexArtifactError, require_count
from beam_dp.mechanisms.base import Points

# Part of the name of kept neighbour tables: to be raised whenever the same index gives others.
_TABLE_VERSION = 1


class EmbeddingIndex:
    """A vocabulary W of V words with vectors of dimension d; the word space that mechanisms are bound to.

    One object serves all threads of a process (see `beam_dp.embeddings.broadcast.open_index`, which makes it). It is
    never pickled: a pipeline carries the `IndexRef`.

    Attributes:
        words: (V,) strings, distinct, none empty or with white space; the id of a word is its position.
        vectors: (V, d) float32, read-only, memory-mapped.
        size, dimension, metric: V, d and the name of the metric.
        digest: sha256 of the manifest; with the metric it is what an epsilon is bound to.
        diameter: an upper bound of the distance between any two words.
        min_distance: the smallest distance between two words; 0 if two have the same vector.
        search: ``exact`` or ``annoy``.
        manifest: the whole manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, digest: str, search: Strategy, cache: Path | None) -> None:
        self.manifest = manifest
        self.digest = digest
        self.size = manifest.size
        self.dimension = manifest.dimension
        self.metric = manifest.metric
        self.diameter = manifest.distances.diameter
        self.min_distance = manifest.distances.min_neighbour
        self.search: Strategy = search
        self.vectors = _map_vectors(folder / VECTORS_FILE, manifest)
        self.words = _map_words(folder / WORDS_FILE, manifest)
        self._cache = cache
        self._derived: dict[str, Arrays] = {}
        self._ids: dict[str, int] | None = None
        hyperbolic = manifest.metric == "poincare"
        self._distances: EuclideanDistances | PoincareDistances = (
            PoincareDistances(self.vectors) if hyperbolic else EuclideanDistances(self.vectors)
        )
        self._search: Search
        if hyperbolic:
            self._search = PoincareSearch(self.vectors)
        elif search == "annoy" and manifest.annoy is not None:
            self._search = AnnoySearch(folder / FOREST_FILE, self.size, self.dimension, manifest.annoy.search_k)
        else:
            self._search = ExactSearch(self.vectors)

    def nearest(self, queries: Points) -> WordIds:
        """The ids (n,) int32 of the words nearest to ``queries`` (n, d), by the strategy `search`.

        Queries are float32 vectors, with the metric poincare float64 log coordinates
        (`beam_dp.mechanisms.poincare_ball`).

        Raises:
            ArgumentError: ``queries`` has another shape.
        """
        require_queries(queries, self.dimension)
        return self._search.nearest(queries)

    def nearest_two(self, queries: Points) -> tuple[WordIds, Doubles]:
        """The two words nearest to ``queries`` (n, d), as in `nearest`, the nearest first.

        Returns:
            ids (n, 2) int32 and distances (n, 2) float64.

        Raises:
            ArgumentError: ``queries`` has another shape.
        """
        require_queries(queries, self.dimension)
        return self._search.nearest_two(queries)

    def neighbours(self, k: int) -> tuple[WordIds, Floats]:
        """The exact min(k, V) nearest words of every word: ids (V, k) int32 and distances (V, k) float32.

        A word's own id comes first, then by distance, equal distances by lower id. Computed once a machine.

        Raises:
            ArgumentError: ``k`` is not a whole number of at least 1.
        """
        k = min(require_count("k", k), self.size)

        def compute() -> Arrays:
            ids, distances = self._distances.neighbours(k)
            return {"ids": ids, "distances": distances}

        tables = self.derived(f"neighbours-v{_TABLE_VERSION}-{k}", compute)
        return tables["ids"], tables["distances"]

    def distance_bounds(self, ids: WordIds) -> tuple[Floats, Floats]:
        """Lower and upper bounds, (n, V) float32 each, of the distances of ``ids`` (n,) to all words.

        Euclidean: one matrix product, 0.3 ms a word at 33,860 x 300; far apart they differ by about 1e-4. Both are 0
        from a word to itself.
        """
        return self._distances.bounds(ids)

    def pair_distances(self, left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> Doubles:
        """The distance of each pair of ids, (n,) float64, from the differences of the vectors in float64."""
        return self._distances.pairs(left, right)

    def exact_distances(self, ids: WordIds) -> Doubles:
        """The distances of ``ids`` (n,) to all words, (n, V) float64, from the differences of the vectors in float64.

        9 ms a word at 33,860 x 300, and 8 V d bytes of memory meanwhile.
        """
        return self._distances.to_all(ids)

    def derived(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """``compute()``, run once a machine and kept in the local cache under the digest and ``name``, memory-mapped.

        Args:
            name: letters, digits, ``_``, ``-`` and ``.``; must name everything the arrays depend on besides the index.
            compute: gives arrays of numbers by name. It may call `derived` itself.
        """
        if name not in self._derived:
            self._derived[name] = derived_arrays(self._cache, name, compute)
        return self._derived[name]

    def lookup(self, words: pa.Array) -> npt.NDArray[np.int32]:
        """The id of each of ``words`` (n,), -1 where it is not in the vocabulary (null is not): (n,) int32.

        Meant for the distinct words of a batch (``dictionary_encode``): a word costs a dictionary look-up.
        """
        if self._ids is None:
            self._ids = dict(zip(self.words.to_pylist(), range(self.size), strict=True))
        return np.fromiter(map(self._ids.get, words.to_pylist(), repeat(-1)), dtype=np.int32, count=len(words))

    def __reduce__(self) -> NoReturn:
        raise BeamDpError(
            "an EmbeddingIndex cannot be pickled or copied: let the pipeline carry its IndexRef and call open_index in "
            "DoFn.setup"
        )

    def __repr__(self) -> str:
        return (
            f"EmbeddingIndex(size={self.size}, dimension={self.dimension}, metric={self.metric!r}, "
            f"search={self.search!r}, digest={self.digest[:12]!r})"
        )


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Compares what can be told without reading the data: each file's size, and the shape in the matrix's header.

    Raises:
        IndexArtifactError: a file is missing, cut off, or of another size or shape.
    """
    for name, entry in manifest.files.items():
        path, expected = folder / name, entry.bytes
        try:
            found = path.stat().st_size
        except OSError as error:
            raise IndexArtifactError(f"{path} is missing ({error.strerror}): build or copy the index again") from None
        if found != expected:
            raise IndexArtifactError(
                f"{path} has {found} bytes, the manifest says {expected}: it is cut off or of another index; "
                "build or copy it again"
            )
    path = folder / VECTORS_FILE
    with path.open("rb") as stream:
        try:
            np.lib.format.read_magic(stream)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        except (ValueError, EOFError):
            raise IndexArtifactError(f"{path} has no .npy header: build or copy the index again") from None
    if shape != (manifest.size, manifest.dimension) or fortran or dtype != np.dtype("<f4"):
        raise IndexArtifactError(
            f"{path} holds {dtype} {shape}, the manifest says float32 {(manifest.size, manifest.dimension)}: "
            "it is of another index; build or copy the index again"
        )


def _map_vectors(path: Path, manifest: Manifest) -> Floats:
    vectors = np.load(path, mmap_mode="r").view(np.ndarray)
    if vectors.shape != (manifest.size, manifest.dimension):
        raise IndexArtifactError(f"{path} changed while it was opened: copy the index again")
    return vectors


def _map_words(path: Path, manifest: Manifest) -> pa.StringArray:
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        words = batch.column("word")
    except (pa.ArrowException, KeyError):
        raise IndexArtifactError(f"{path} is not an Arrow file with a column 'word': build the index again") from None
    if len(words) != manifest.size or words.type != pa.string():
        raise IndexArtifactError(
            f"{path} holds {len(words)} words, the manifest says {manifest.size}: build the index again"
        )
    return words
