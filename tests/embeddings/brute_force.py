"""What searches are compared with, and cases on which float32 is exact."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def squared_distances(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return ((queries.astype(np.float64)[:, None] - vectors.astype(np.float64)[None]) ** 2).sum(axis=2)


@st.composite
def whole_numbers(draw: st.DrawFn, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """``least`` vectors or more, and queries, of small whole numbers: float32 is exact on them and ties abound."""
    dimension = draw(st.integers(1, 4))
    values = st.integers(-3, 3).map(float)
    vectors = draw(hnp.arrays(np.float32, st.tuples(st.integers(least, 40), st.just(dimension)), elements=values))
    queries = draw(hnp.arrays(np.float32, st.tuples(st.integers(0, 20), st.just(dimension)), elements=values))
    return vectors, queries
