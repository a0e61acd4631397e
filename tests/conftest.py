"""What all tests share: the seeded doors that only tests have, small public vocabularies, a cache of their own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings

# Before any module of beam_dp opens an index: the caches of the machine stay out of the tests and the other way round.
_CACHE = tempfile.TemporaryDirectory(prefix="beam_dp_tests_")
os.environ["BEAM_DP_CACHE"] = _CACHE.name

# A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# As the seeded generators: the same tree gives the same verdict each time.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator: statistical tests give the same verdict each time they run."""
    return np.random.default_rng(20240517)


@dataclass
class PlainSpace:
    """A word space from plain vectors, every operation by brute force in float64."""

    vectors: np.ndarray
    metric: str = "euclidean"
    digest: str = "0" * 64
    computed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vectors = np.asarray(self.vectors, dtype=np.float32)
        self.size, self.dimension = self.vectors.shape
        points = self.vectors.astype(np.float64)
        self.distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
        others = self.distances[~np.eye(self.size, dtype=bool)]
        self.diameter, self.min_distance = float(others.max()), float(others.min())

    def nearest(self, queries: np.ndarray) -> np.ndarray:
        gaps = ((queries.astype(np.float64)[:, None] - self.vectors.astype(np.float64)[None]) ** 2).sum(axis=2)
        return gaps.argmin(axis=1).astype(np.int32)

    def nearest_two(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gaps = ((queries.astype(np.float64)[:, None] - self.vectors.astype(np.float64)[None]) ** 2).sum(axis=2)
        ids = np.argsort(gaps, axis=1, kind="stable")[:, :2]
        return ids.astype(np.int32), np.sqrt(np.take_along_axis(gaps, ids, axis=1))

    def neighbours(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, self.size)
        own_first = self.distances - np.eye(self.size)
        ids = np.argsort(own_first, axis=1, kind="stable")[:, :k]
        return ids.astype(np.int32), np.take_along_axis(self.distances, ids, axis=1).astype(np.float32)

    def distance_bounds(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exact = self.distances[ids]
        near = exact.astype(np.float32)
        low = np.where(near <= exact, near, np.nextafter(near, np.float32(-np.inf)))
        high = np.where(near >= exact, near, np.nextafter(near, np.float32(np.inf)))
        return low, high

    def pair_distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return self.distances[left, right]

    def exact_distances(self, ids: np.ndarray) -> np.ndarray:
        return self.distances[ids]

    def derived(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        self.computed.append(name)
        return compute()


@pytest.fixture
def plain_space() -> type[PlainSpace]:
    return PlainSpace
