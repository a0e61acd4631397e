"""The main job on real utterances and 300-dimensional GloVe, where the variable BEAM_DP_DATA names those data sets."""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from beam_dp import MultivariateLaplace, open_index, resolve_index
from beam_dp.randomness import SecureSource
from pipelines import build_index, privatize_text
from pipelines.main import run_main

sys.path.insert(0, str(Path(__file__).parent))
from commands import run_here

DATA = os.environ.get("BEAM_DP_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="BEAM_DP_DATA names no folder with the larger public data sets")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glove")
    glove = Path(DATA) / "glove_840b_300d"
    flags = (f"--vectors={glove}.f16.npy", f"--words={glove}.words.txt", f"--output={folder / 'index'}", "--trees=1")
    with contextlib.redirect_stdout(io.StringIO()):
        assert run_main(build_index.main, flags) == 0
    return str(folder / "index")


@pytest.mark.parametrize(("epsilon", "share"), [(10, 0.26), (12, 0.47), (15, 0.75)])
def test_share_of_words_that_stay_themselves_over_the_vocabulary(index, epsilon, share):
    opened = open_index(resolve_index(index))
    ids = np.arange(0, opened.size, 8, dtype=np.int32)
    drawn = MultivariateLaplace(epsilon).bind(opened).sample(ids, SecureSource().generator)
    # 4,232 words: four standard errors are 3 points.
    assert abs(np.mean(drawn == ids) - share) < 0.04


def test_utterances_stay_whole_and_in_order_and_28_percent_of_their_words_the_same(index, tmp_path, capfd):
    source = tmp_path / "in.tsv"
    header, *rows = (Path(DATA) / "snips" / "train.tsv").read_text(encoding="utf-8").splitlines()
    rows = [f"{number}\t{row}" for number, row in enumerate(rows[::4])]
    source.write_text("\n".join([f"number\t{header}", *rows]) + "\n", encoding="utf-8")
    texts = {}
    for name, epsilon in (("plain", "1e6"), ("private", "12")):
        done = run_here(
            capfd,
            privatize_text,
            f"--input={source}",
            f"--output={tmp_path}/{name}",
            "--text_column=utterance",
            "--keep_columns=number",
            f"--epsilon={epsilon}",
            f"--index={index}",
            "--search=exact",
        )
        assert done.returncode == 0, done.stderr
        (shard,) = tmp_path.glob(f"{name}-*-of-*.tsv")
        lines = [line.split("\t") for line in shard.read_text(encoding="utf-8").splitlines()]
        assert [row[1] for row in lines[1:]] == [str(number) for number in range(len(rows))]
        texts[name] = [row[0].split() for row in lines[1:]]
    vocabulary = set(open_index(resolve_index(index)).words.to_pylist())
    assert all(word in vocabulary for row in texts["private"] for word in row)
    # At epsilon 1e6 every known word stays itself, so that run tells which word stood where.
    assert [len(row) for row in texts["plain"]] == [len(row) for row in texts["private"]]
    pairs = [pair for a, b in zip(texts["plain"], texts["private"], strict=True) for pair in zip(a, b, strict=True)]
    assert abs(np.mean([a == b for a, b in pairs]) - 0.28) < 0.015
    manifest = json.loads((tmp_path / "private.manifest.json").read_text())
    assert manifest["ledger"]["totals"]["metric"]["epsilon_per_word"] == 12
