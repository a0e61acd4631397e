"""Small sources and indexes, and a Beam file system whose opens can be counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from beam_dp.embeddings import BuildReport, build_index

OPENED = "opened.log"


class ShelfFileSystem(LocalFileSystem):
    """Local files under the scheme ``shelf://``, which the package takes for remote; notes each open."""

    @classmethod
    def scheme(cls) -> str:
        return "shelf"

    @staticmethod
    def _path(uri: str) -> str:
        return uri.removeprefix("shelf://")

    def open(self, path, *args, **kwargs):
        local = Path(self._path(path))
        with (local.parent.parent / OPENED).open("a") as log:
            log.write(f"{os.getpid()} {local.name}\n")
        return super().open(str(local), *args, **kwargs)

    def create(self, path, *args, **kwargs):
        local = Path(self._path(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        return super().create(str(local), *args, **kwargs)

    def exists(self, path):
        return super().exists(self._path(path))

    def delete(self, paths):
        return super().delete([self._path(path) for path in paths])


def write_glove(path: Path, words: list[str], vectors: np.ndarray) -> Path:
    lines = [" ".join([word, *(repr(float(x)) for x in row)]) for word, row in zip(words, vectors, strict=True)]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


@pytest.fixture
def glove() -> Callable[..., Path]:
    return write_glove


@pytest.fixture(scope="session")
def toy_vectors() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(400, 6)).astype(np.float32)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, toy_vectors: np.ndarray) -> BuildReport:
    """An index of 400 words w0 to w399 with 6 dimensions."""
    folder = tmp_path_factory.mktemp("toy")
    source = write_glove(folder / "toy.txt", [f"w{i}" for i in range(400)], toy_vectors)
    return build_index(str(source), str(folder / "index"), trees=3, source="made up", licence="CC0", progress=False)


@pytest.fixture
def toy_copy(toy: BuildReport, tmp_path: Path) -> Path:
    """A copy of that index that a test may damage."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in Path(toy.output).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture
def opened() -> Callable[[Path], list[str]]:
    """The names of the files of a folder that were opened through ``shelf://``."""

    def read(folder: Path) -> list[str]:
        log = folder.parent / OPENED
        return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []

    return read


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BEAM_DP_CACHE", str(folder))
    return folder
