"""Training a Poincaré embedding: what is read, what is trained, and what an index makes of it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from beam_dp.embeddings import open_index, resolve_index
from beam_dp.embeddings.formats import read_vectors
from beam_dp.embeddings.hypernyms import Hierarchy, read_edges, read_wordnet
from beam_dp.errors import ArgumentError, InputError
from beam_dp.mechanisms import HyperbolicLaplace
from pipelines import train_poincare
from pipelines.main import run_main

sys.path.insert(0, str(Path(__file__).parent))
from commands import refusal, run_here, run_module

TREE = {f"w{i}": f"w{(i - 1) // 3}" for i in range(1, 40)}

# Five senses as data.noun has them: a licence, words of several words, two words of one sense, an instance, a word with
# two senses, and pointers of other kinds.
WORDNET = """\
  1 This is where the licence stands.
  2 It goes on.
00000100 03 n 01 thing 0 002 ~ 00000200 n 0000 ~ 00000300 n 0000 | what is  \n\
00000200 03 n 02 Living_Thing 0 animate 1 003 @ 00000100 n 0000 + 00000900 v 0101 ~ 00000400 n 0000 | it lives  \n\
00000300 06 n 01 tool 0 002 @ 00000100 n 0000 %p 00000100 n 0000 | for work | or play  \n\
00000400 05 n 02 crane 0 Grus 2 001 @ 00000200 n 0000 | a bird  \n\
00000500 06 n 01 crane 1 001 @ 00000300 n 0000 | it lifts  \n\
00000600 06 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @i 00000500 n 0000 | ten words, in hexadecimal  \n\
"""


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def edges(tmp_path, pairs):
    return written(tmp_path / "edges.tsv", "".join(f"{word}\t{general}\n" for word, general in pairs))


def test_edges_are_read_and_closed(tmp_path):
    source = written(tmp_path / "e.tsv", "\ufeffdog\tcanine\r\ncanine\tmammal\n\nmammal\tanimal\ndog\tcanine")
    hierarchy = read_edges(source)
    assert hierarchy.relations(direct=True) == [("dog", "canine"), ("canine", "mammal"), ("mammal", "animal")]
    assert hierarchy.relations() == [
        ("dog", "canine"), ("dog", "mammal"), ("dog", "animal"),
        ("canine", "mammal"), ("canine", "animal"), ("mammal", "animal"),
    ]  # fmt: skip
    assert hierarchy.relations(root="mammal") == [("dog", "canine"), ("dog", "mammal"), ("canine", "mammal")]


@pytest.mark.parametrize("line", ["dog", "dog\t", "\tdog", "dog\tcanine\tmammal", "dog \tcanine", "hot dog\tfood"])
def test_a_line_that_is_no_edge_is_named(tmp_path, line):
    with pytest.raises(InputError, match=r"e\.tsv, line 2: not a word, a tab") as caught:
        read_edges(written(tmp_path / "e.tsv", f"cat\tfeline\n{line}\n"))
    assert "dog" not in str(caught.value)


def test_a_circle_ends(tmp_path):
    hierarchy = read_edges(edges(tmp_path, [("a", "b"), ("b", "c"), ("c", "a"), ("c", "c")]))
    assert sorted(hierarchy.relations()) == sorted((x, y) for x in "abc" for y in "abc" if x != y)


def test_a_word_above_itself_in_another_sense_is_no_relation():
    hierarchy = Hierarchy({"1": ["bank"], "2": ["bank", "shore"]}, {"2": ["1"]})
    assert hierarchy.relations() == [("shore", "bank")]
    with pytest.raises(InputError, match="holds no relation below the root nothing"):
        hierarchy.relations(root="nothing")


def test_wordnet_is_read(tmp_path):
    hierarchy = read_wordnet(written(tmp_path / "data.noun", WORDNET))
    direct = [
        ("living_thing", "thing"), ("animate", "thing"), ("tool", "thing"),
        ("crane", "living_thing"), ("grus", "living_thing"), ("crane", "tool"),
        *((word, "crane") for word in "abcdefghij"),
    ]  # fmt: skip
    assert hierarchy.relations(direct=True) == direct
    whole = hierarchy.relations()
    assert len(whole) == len(set(whole)) == len(direct) + 2 + 2 * 10
    # By its sense: what is lifted by a crane is below tool, not below living_thing.
    assert ("a", "tool") in whole and ("a", "living_thing") not in whole
    # Two words of one sense are not above each other.
    assert hierarchy.relations(root="animate") == [("crane", "living_thing"), ("grus", "living_thing")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WORDNET + "dog\tcanine\n", "line 9: not a noun of WordNet"),
        (WORDNET.replace("00000500 06 n", "00000500 06 v"), "line 7: not a noun of WordNet"),
        (WORDNET.replace("crane 0 Grus 2 001", "crane 0 Grus 2 002"), "line 6: not a noun of WordNet"),
        (WORDNET.replace("@ 00000300", "@ 00000999"), "names nouns that it does not hold"),
    ],
    ids=["another file", "verb", "pointers", "cut off"],
)
def test_what_is_not_wordnet_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_wordnet(written(tmp_path / "data.noun", text))


def command(tmp_path, *flags):
    return run_main(train_poincare.main, [f"--edges={edges(tmp_path, TREE.items())}", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--edges or --wordnet is required"),
        (["--edges=a", "--wordnet=b"], "--edges or --wordnet is required, and one of them"),
        (["--edges=a"], "--output or --index is required"),
        (["--edges=a", "--output=b", "--epochs=0"], "--epochs must be at least 1"),
        (["--edges=a", "--output=b", "--dimension=0"], "--dimension must be at least 1"),
        (["--edges=a", "--output=b", "--source=me"], "--source and --licence are recorded in an index"),
        (["--edges=a", "--output=b", "--epoch=3"], "unknown option --epoch; did you mean --epochs?"),
        (["--edges=none.tsv", "--output=b"], "none.tsv: no such file"),
    ],
    ids=["nothing", "both", "no output", "epochs", "dimension", "source", "unknown", "no file"],
)
def test_wrong_arguments_end_with_2_and_one_line(tmp_path, monkeypatch, capfd, flags, message):
    pytest.importorskip("gensim", reason="trains")
    monkeypatch.chdir(tmp_path)
    assert run_main(train_poincare.main, flags) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_without_gensim_the_extra_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "gensim.models.poincare", None)
    assert command(tmp_path, f"--output={tmp_path}/v.bin") == 2
    assert "pip install 'beam_dp[poincare]'" in capfd.readouterr().err


def test_a_small_hierarchy_needs_fewer_unrelated_words(tmp_path, capfd):
    pytest.importorskip("gensim", reason="trains")
    # 40 words, of which w39 has 3 above it: w12, w3 and w0.
    assert command(tmp_path, f"--output={tmp_path}/v.bin", "--negative=38") == 2
    assert "--negative must be at most 37" in capfd.readouterr().err
    assert command(tmp_path, f"--output={tmp_path}/v.bin", "--negative=37", "--epochs=1") == 0


def test_a_dry_run_writes_nothing(tmp_path, capfd):
    pytest.importorskip("gensim", reason="trains")
    assert command(tmp_path, f"--output={tmp_path}/v.bin", f"--index={tmp_path}/i", "--direct", "--dry_run") == 0
    out = capfd.readouterr().out
    assert "would train 39 pairs of 40 words in 5 dimensions" in out
    assert [path.name for path in tmp_path.iterdir()] == ["edges.tsv"]


def test_vectors_and_index_hold_the_same_points_and_the_hierarchy(tmp_path, capfd):
    pytest.importorskip("gensim", reason="trains")
    flags = ("--dimension=2", "--epochs=150", "--negative=5", "--source=made up", "--licence=CC0")
    assert command(tmp_path, f"--output={tmp_path}/v.bin", f"--index={tmp_path}/index", *flags) == 0
    out = capfd.readouterr().out
    assert "index of 40 words" in out and out.splitlines()[-1] == f"published: {tmp_path}/index"
    (block,) = read_vectors(str(tmp_path / "v.bin"))
    index = open_index(resolve_index(str(tmp_path / "index")))
    assert (index.metric, index.dimension, index.manifest.source) == ("poincare", 2, "made up")
    assert index.words.to_pylist() == block.words.to_pylist()
    np.testing.assert_array_equal(index.vectors, block.vectors)
    words = block.words.to_pylist()
    assert words[0] == "w0"  # the word with the most relations
    norm = dict(zip(words, np.linalg.norm(block.vectors, axis=1).tolist(), strict=True))
    assert sum(norm[general] < norm[word] for word, general in TREE.items()) > 0.8 * len(TREE)
    # A word is nearer to what is above it than to the average other word.
    ids = {word: at for at, word in enumerate(words)}
    distances = index.exact_distances(np.arange(40, dtype=np.int32))
    linked = np.mean([distances[ids[word], ids[general]] for word, general in TREE.items()])
    assert linked < 0.7 * distances.sum() / (40 * 39)
    drawn = HyperbolicLaplace(2.0).bind(index).sample(np.zeros(100, np.int32), np.random.default_rng(1))
    assert np.all((drawn >= 0) & (drawn < 40))


def test_the_same_hierarchy_gives_the_same_vectors_and_an_output_is_not_replaced_unasked(tmp_path, capfd):
    pytest.importorskip("gensim", reason="trains")
    flags = (f"--output={tmp_path}/v.bin", "--epochs=2", "--negative=3")
    assert command(tmp_path, *flags) == 0
    first = (tmp_path / "v.bin").read_bytes()
    assert command(tmp_path, *flags, "--dimension=3") == 2
    assert "exists: give another file, or --overwrite" in capfd.readouterr().err
    assert (tmp_path / "v.bin").read_bytes() == first
    assert command(tmp_path, *flags, "--overwrite", "--dimension=3") == 0
    assert (tmp_path / "v.bin").read_bytes() != first
    assert command(tmp_path, *flags, "--overwrite") == 0
    assert (tmp_path / "v.bin").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.tsv", "v.bin"]


def test_runs_as_a_program(tmp_path, capfd):
    pytest.importorskip("gensim", reason="trains")
    source = written(tmp_path / "data.noun", WORDNET)
    flags = (f"--wordnet={source}", f"--output={tmp_path}/v.bin", "--epochs=1", "--negative=2")
    done = run_module("pipelines.train_poincare", *flags)
    assert done.returncode == 0, done.stderr
    assert "38 pairs of 16 words trained" in done.stdout
    assert "exists: give another file" in refusal(run_here(capfd, train_poincare, *flags))


def test_train_refuses_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models.poincare", None)
    with pytest.raises(ArgumentError, match="extra"):
        train_poincare.train([("a", "b")], 2, 1, 1)
