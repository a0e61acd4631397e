from __future__ import annotations

import contextlib
import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from beam_dp.embeddings import BuildReport, build_index, open_index, resolve_index
from beam_dp.embeddings.recall import NOISE_RATIOS, QUERIES, noise_levels, noisy_queries, recall_at_1
from beam_dp.embeddings.search import AnnoySearch, ExactSearch
from beam_dp.embeddings.vocabulary import DUPLICATE_WORD, UNUSABLE_CHARACTER, ZERO_VECTOR, Dropped
from beam_dp.errors import ArgumentError, IndexArtifactError, InputError, ResourceError

Writer = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_two_builds_give_the_same_bytes(toy: BuildReport, toy_vectors: np.ndarray, tmp_path: Path) -> None:
    """Also from another format: what counts is the words and vectors."""
    np.save(tmp_path / "v.npy", toy_vectors)
    (tmp_path / "w.txt").write_text("".join(f"w{i}\n" for i in range(400)))
    again = build_index(
        str(tmp_path / "v.npy"), str(tmp_path / "index"), words=str(tmp_path / "w.txt"), trees=3,
        source="made up", licence="CC0", progress=False,
    )  # fmt: skip
    assert contents(tmp_path / "index") == contents(Path(toy.output))
    assert again.digest == toy.digest
    assert str(tmp_path).encode() not in b"".join(contents(tmp_path / "index").values())


def test_the_order_of_the_words_and_the_vectors_are_kept(toy: BuildReport, toy_vectors: np.ndarray) -> None:
    index = open_index(resolve_index(toy.output))
    assert index.words.to_pylist() == [f"w{i}" for i in range(400)]
    np.testing.assert_array_equal(index.vectors, toy_vectors)


def test_every_word_decision_is_reported(tmp_path: Path, glove: Writer) -> None:
    words = ["a", "b c", "d", "a", "e\xa0f", "g", "h"]
    vectors = np.array([[1, 2], [3, 3], [0, 0], [4, 4], [5, 5], [1, 2], [-0.0, 7]], np.float32)
    report = build_index(str(glove(tmp_path / "v.txt", words, vectors)), str(tmp_path / "index"), progress=False)
    assert report.dropped == (
        Dropped(DUPLICATE_WORD, 1, (4,)),
        Dropped(UNUSABLE_CHARACTER, 2, (2, 5)),
        Dropped(ZERO_VECTOR, 1, (3,)),
    )
    assert report.manifest.dropped == {DUPLICATE_WORD: 1, UNUSABLE_CHARACTER: 2, ZERO_VECTOR: 1}
    assert report.manifest.distances.duplicate_vectors == 1
    assert report.manifest.distances.min_neighbour == 0.0
    index = open_index(resolve_index(report.output))
    assert index.words.to_pylist() == ["a", "g", "h"]
    assert not np.signbit(index.vectors).any()


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("a 1 2\nb nan 2\nc 1 1\n", InputError, r"v\.txt, line 2: the vector holds a NaN"),
        ("a 1 2\nb 1\n", InputError, r"v\.txt, line 2: a word and 2 numbers"),
        ("a 1 2\na 1 3\n", InputError, r"v\.txt holds 1 usable words, an index needs at least 2"),
        ("", InputError, r"v\.txt holds 0 usable words"),
    ],
)
def test_a_refused_source_leaves_nothing(tmp_path: Path, lines: str, error: type[Exception], message: str) -> None:
    (tmp_path / "v.txt").write_text(lines)
    with pytest.raises(error, match=message):
        build_index(str(tmp_path / "v.txt"), str(tmp_path / "index"), progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["v.txt"]


def test_wrong_arguments(tmp_path: Path, glove: Writer) -> None:
    source = str(glove(tmp_path / "v.txt", ["a", "b"], np.eye(2)))
    output = str(tmp_path / "index")
    for arguments, message in (
        ({"metric": "cosine"}, "metric must be one of euclidean, poincare, not 'cosine'"),
        ({"trees": 0}, "trees must be at least 1"),
        ({"max_words": 1}, "max_words must be at least 2"),
        ({"format": "xlsx"}, "format must be one of"),
    ):
        with pytest.raises(ArgumentError, match=message):
            build_index(source, output, progress=False, **arguments)
    assert not Path(output).exists()


def test_max_words_keeps_the_first_and_reads_no_further(tmp_path: Path, glove: Writer) -> None:
    source = glove(tmp_path / "v.txt", ["a", "a", "b", "c"], np.eye(4))
    source.write_bytes(source.read_bytes() + b"ragged 1\n")
    with gzip.open(tmp_path / "v.gz", "wb") as packed:
        packed.write(b"9 4\n" + b"".join(source.read_bytes().splitlines(keepends=True)[:4]))
    report = build_index(
        str(tmp_path / "v.gz"), str(tmp_path / "index"), max_words=2, format="word2vec_text", progress=False
    )
    assert report.manifest.size == 2
    assert open_index(resolve_index(report.output)).words.to_pylist() == ["a", "b"]


def test_an_existing_output_is_replaced_only_if_asked_and_only_if_an_index(tmp_path: Path, glove: Writer) -> None:
    source = str(glove(tmp_path / "v.txt", ["a", "b"], np.eye(2)))
    other = str(glove(tmp_path / "w.txt", ["c", "d"], np.eye(2)))
    output = tmp_path / "deep" / "index"
    first = build_index(source, str(output), progress=False)
    with pytest.raises(ArgumentError, match=r"exists: .*--overwrite"):
        build_index(other, str(output), progress=False)
    assert resolve_index(str(output)).digest == first.digest
    second = build_index(other, str(output), overwrite=True, progress=False)
    assert resolve_index(str(output)).digest == second.digest != first.digest
    assert [file.name for file in output.parent.iterdir()] == ["index"]
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(ArgumentError, match="holds files that are not of an index"):
        build_index(source, str(output), overwrite=True, progress=False)
    assert (output / "thesis.txt").read_text() == "precious"
    with pytest.raises(ArgumentError, match="is a file"):
        build_index(source, other, overwrite=True, progress=False)
    (tmp_path / "empty").mkdir()
    assert build_index(source, str(tmp_path / "empty"), progress=False).digest == first.digest


def test_builds_to_and_from_another_file_system(tmp_path: Path, glove: Writer, cache: Path) -> None:
    glove(tmp_path / "v.txt", ["a", "b"], np.eye(2))
    source, output = f"shelf://{tmp_path}/v.txt", f"shelf://{tmp_path}/index"
    report = build_index(source, output, progress=False)
    assert open_index(resolve_index(output)).words.to_pylist() == ["a", "b"]
    with pytest.raises(ArgumentError, match="exists"):
        build_index(source, output, progress=False)
    assert build_index(source, output, overwrite=True, progress=False).digest == report.digest
    with pytest.raises(ResourceError, match=r"nosuchscheme://x/manifest\.json cannot be reached"):
        build_index(source, "nosuchscheme://x", progress=False)


def test_recall_in_the_manifest_is_reproduced(toy: BuildReport) -> None:
    annoy = toy.manifest.annoy
    epsilons = noise_levels(6, toy.manifest.distances)
    assert {point.epsilon for point in annoy.recall_at_1} == set(epsilons)
    assert annoy.queries == QUERIES
    vectors = np.load(Path(toy.output) / "vectors.npy")
    for point in annoy.recall_at_1:
        queries = noisy_queries(vectors, point.epsilon, annoy.queries)
        found = AnnoySearch(Path(toy.output) / "index.ann", 400, 6, point.search_k).nearest(queries)
        nearest = ExactSearch(vectors).nearest(queries)
        assert round(recall_at_1(vectors, found, nearest), 4) == point.recall
    assert open_index(resolve_index(toy.output), "annoy")._search.search_k == annoy.search_k


def test_noise_levels_follow_the_median_distance(toy: BuildReport) -> None:
    distances = toy.manifest.distances
    for epsilon, ratio in zip(noise_levels(6, distances), NOISE_RATIOS, strict=True):
        noise = noisy_queries(np.zeros((2, 6), np.float32), epsilon, 20_000)
        # E|Z|² = d(d + 1)/epsilon², so along one line the variance is (d + 1)/epsilon².
        expected = ratio * distances.median_neighbour * np.sqrt(7 / 6)
        np.testing.assert_allclose(noise.std(), expected, rtol=0.02)


def test_recall_counts_an_equal_vector_as_found() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert recall_at_1(vectors, np.array([1, 2, 2, 0], np.int32), np.array([0, 0, 2, 0], np.int32)) == 0.75


def loadable(folder: Path) -> list[Path]:
    found = []
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        with contextlib.suppress(IndexArtifactError):
            resolve_index(str(place))
            found.append(place)
    return found


def start_build(source: Path, output: Path, trees: int) -> subprocess.Popen:
    code = (
        "import sys; from beam_dp.embeddings.build import build_index; "
        "build_index(sys.argv[1], sys.argv[2], format='glove', trees=int(sys.argv[3]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(source), str(output), str(trees)])


def wait_for(what: Callable[[], bool], process: subprocess.Popen) -> None:
    while not what():
        assert process.poll() is None
        time.sleep(0.002)


def interrupted(process: subprocess.Popen) -> int:
    """The status of a process that is interrupted, once more where the first came just before a call that waits.

    Python runs a handler between two steps; a signal that comes after the last one before a read wakes nobody.
    """
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=10)
    process.kill()
    pytest.fail(f"not interrupted: ended with {process.wait()}")


@pytest.mark.fault
def test_a_build_killed_while_it_reads_leaves_nothing_that_loads(tmp_path: Path) -> None:
    """The source is a pipe that gives some words and then nothing more."""
    pipe = tmp_path / "v.txt"
    os.mkfifo(pipe)
    process = start_build(pipe, tmp_path / "out" / "index", trees=2)
    with pipe.open("wb", buffering=0) as stream:
        stream.write(b"".join(b"w%d 1 %d 3\n" % (i, i) for i in range(1000)))
        wait_for(lambda: any(tmp_path.glob("out/.index.tmp-*/vectors.npy")), process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "index").exists()
    assert loadable(tmp_path) == []


@pytest.mark.fault
def test_a_build_killed_while_it_builds_the_forest_leaves_the_old_index(
    tmp_path: Path, glove: Writer, rng: np.random.Generator
) -> None:
    source = glove(tmp_path / "v.txt", [f"w{i}" for i in range(3000)], rng.normal(size=(3000, 5)))
    process = start_build(source, tmp_path / "index", trees=100_000)
    wait_for(lambda: any(tmp_path.glob(".index.tmp-*/index.ann")), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "index").exists()
    assert loadable(tmp_path) == []


@pytest.mark.fault
def test_a_build_interrupted_by_the_user_removes_its_staging(tmp_path: Path) -> None:
    pipe = tmp_path / "v.txt"
    os.mkfifo(pipe)
    process = start_build(pipe, tmp_path / "out" / "index", trees=2)
    with pipe.open("wb", buffering=0) as stream:
        stream.write(b"a 1 2\n")
        wait_for(lambda: any(tmp_path.glob("out/.index.tmp-*/vectors.npy")), process)
        assert interrupted(process) != 0
    assert list((tmp_path / "out").iterdir()) == []


def build_with_little_room(source: str, output: str, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        build_index(source, output, progress=False)
    except ResourceError as error:
        answer.put(str(error))


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, glove: Writer, rng: np.random.Generator) -> None:
    """A limit on the size of files stands in for a full disk: the write fails in the same place."""
    source = glove(tmp_path / "v.txt", [f"w{i}" for i in range(200)], rng.normal(size=(200, 5)))
    fork = get_context("fork")
    answer = fork.Queue()
    process = fork.Process(target=build_with_little_room, args=(str(source), str(tmp_path / "index"), answer))
    process.start()
    assert "no room for the index in" in answer.get(timeout=60)
    process.join()
    assert [file.name for file in tmp_path.iterdir()] == ["v.txt"]
