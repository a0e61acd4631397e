"""Poincaré indexes to measure on, from the test data that gensim carries: mammals of WordNet, as hierarchies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from beam_dp import IndexRef, build_index, resolve_index
from beam_dp.embeddings.hypernyms import read_edges
from beam_dp.errors import ArgumentError
from pipelines.train_poincare import train, write_vectors

_VECTORS = "poincare_vectors.bin"
_PAIRS = "poincare_hypernyms_large.tsv"
# The defaults of `pipelines.train_poincare`, but for the dimension.
_DIMENSION, _EPOCHS, _NEGATIVE = 2, 50, 10


def missing() -> str | None:
    """What the indexes here need and is not installed; None where all is."""
    if find_spec("gensim") is None:
        return "gensim is not installed: pip install 'beam_dp[poincare]'"
    if not all(_data(name).is_file() for name in (_VECTORS, _PAIRS)):
        return "gensim is installed without its test data"
    return None


def require_data() -> None:
    """Raises ArgumentError where something is `missing`; before work that ends here."""
    reason = missing()
    if reason is not None:
        raise ArgumentError(f"the Poincaré indexes are made of the test data of gensim, but {reason}")


def mammals(folder: Path) -> IndexRef:
    """Makes ``folder`` the index of the 1,182 mammals of WordNet, in the 10 dimensions in which gensim has them."""
    return _built(_data(_VECTORS), folder, f"the mammals of WordNet, from {_VECTORS} of gensim's test data")


def few_mammals(folder: Path) -> IndexRef:
    """Makes ``folder`` the index of 109 of them, trained in 2 dimensions with a fixed seed."""
    words, vectors = train(read_edges(str(_data(_PAIRS))).relations(), _DIMENSION, _EPOCHS, _NEGATIVE)
    path = folder.with_name(f"{folder.name}.bin")
    write_vectors(path, words, vectors)
    return _built(path, folder, f"mammals of WordNet, trained on {_PAIRS} of gensim's test data")


def _data(name: str) -> Path:
    """The path of a file of gensim's test data, without importing gensim, which takes a second."""
    spec = find_spec("gensim")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "test" / "test_data" / name


def _built(vectors: Path, folder: Path, source: str) -> IndexRef:
    build_index(str(vectors), str(folder), metric="poincare", source=source, progress=False)
    return resolve_index(str(folder))
