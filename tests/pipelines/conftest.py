"""What tests of pipelines share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beam_dp.embeddings import build_index, open_index, resolve_index

SENTENCES = "play some jazz please call at noon the weather in paris"


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 200 words of the default index and those of `SENTENCES`: tables of all its words cost nothing."""
    folder = tmp_path_factory.mktemp("indexes")
    default = open_index(resolve_index())
    words = default.words.to_pylist()
    kept = sorted({*range(200), *(words.index(word) for word in SENTENCES.split())})
    np.save(folder / "v.npy", default.vectors[kept])
    (folder / "v.txt").write_text("".join(f"{words[number]}\n" for number in kept))
    build_index(str(folder / "v.npy"), str(folder / "good"), words=str(folder / "v.txt"), trees=2, progress=False)
    return folder / "good"
