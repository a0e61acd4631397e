from __future__ import annotations

import json
import os
import pickle
import resource
import threading
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_dp.embeddings import BuildReport, IndexRef, broadcast, open_index, resolve_index
from beam_dp.embeddings.broadcast import read_manifest
from beam_dp.embeddings.manifest import DATA_FILES, FORMAT_VERSION
from beam_dp.errors import ArgumentError, BeamDpError, IndexArtifactError, ResourceError


@pytest.fixture(autouse=True)
def fresh_process(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing is open yet, and the cache is empty."""
    monkeypatch.setattr(broadcast, "_handles", {})


def flip_bit(path: Path, at: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def reference(folder: Path) -> IndexRef:
    return resolve_index(f"shelf://{folder}")


def test_a_reference_is_small_and_says_where(toy: BuildReport) -> None:
    ref = resolve_index(toy.output)
    assert ref == IndexRef(toy.output, toy.digest)
    assert resolve_index(f"file://{toy.output}") == ref
    assert len(pickle.dumps(ref)) < 400
    assert pickle.loads(pickle.dumps(ref)) == ref
    remote = reference(Path(toy.output))
    assert remote.digest == toy.digest
    assert read_manifest(ref) == read_manifest(remote) == toy.manifest


def test_a_relative_path_is_made_absolute(toy: BuildReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(toy.output).parent)
    assert resolve_index("index") == IndexRef(toy.output, toy.digest)


@pytest.mark.parametrize("uri", ["", 3, b"x"])
def test_an_index_is_named_by_a_string(uri: object) -> None:
    with pytest.raises(ArgumentError, match="index must be the path or URI"):
        resolve_index(uri)


def test_the_embedded_index_opens_and_verifies(cache: Path) -> None:
    ref = resolve_index(None)
    assert ref.uri == "beam_dp:default"
    assert ref == resolve_index() == resolve_index(ref.uri)
    index = open_index(ref)
    assert (index.size, index.dimension, index.metric, index.search) == (20_000, 50, "euclidean", "exact")
    assert index.manifest.source.startswith("GloVe 6B 50d")
    assert "PDDL" in index.manifest.licence
    assert index.digest == ref.digest
    assert index.lookup(pa.array(["the", "cat", "zzzzqq", None])).tolist() == [0, 5333, -1, -1]
    folder = Path(broadcast.__file__).parent / "default"
    assert "Pennington" in (folder / "CREDITS.txt").read_text()
    assert max(file.stat().st_size for file in folder.iterdir()) < 5.1e6
    assert all(not word.isspace() and word for word in index.words.to_pylist())
    assert list((cache / ref.digest).glob("in-place-*.stamp"))


def test_the_same_object_for_everybody_in_a_process(toy: BuildReport) -> None:
    ref = resolve_index(toy.output)
    found: list[object] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        found.append(open_index(pickle.loads(pickle.dumps(ref))))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(index) for index in found}) == 1
    annoy = open_index(ref, "annoy")
    assert annoy is not found[0]
    assert annoy.search == "annoy"
    with pytest.raises(ArgumentError, match="search must be one of"):
        open_index(ref, "hnsw")


def test_a_local_index_is_not_copied_and_verified_once(toy_copy: Path, cache: Path) -> None:
    ref = resolve_index(str(toy_copy))
    open_index(ref)
    assert {path.name for path in (cache / ref.digest).iterdir()} >= {"verify.lock"}
    assert not list(cache.rglob("vectors.npy"))
    stamps = list((cache / ref.digest).glob("in-place-*.stamp"))
    assert len(stamps) == 1
    assert set(json.loads(stamps[0].read_text())) == set(DATA_FILES)


def test_a_remote_index_is_fetched_once_and_kept(
    toy_copy: Path, cache: Path, opened: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = reference(toy_copy)
    index = open_index(ref)
    np.testing.assert_array_equal(index.vectors, np.load(toy_copy / "vectors.npy"))
    assert sorted(opened(toy_copy)) == sorted(["manifest.json", "manifest.json", *DATA_FILES])
    monkeypatch.setattr(broadcast, "_handles", {})
    open_index(ref, "annoy")
    assert len(opened(toy_copy)) == 5  # nothing is asked of the file system again
    assert {path.name for path in (cache / ref.digest).iterdir()} == {"index", "index.stamp", "fetch.lock"}


def _open(ref: IndexRef, barrier, answer) -> None:
    barrier.wait()
    index = open_index(ref)
    answer.put((int(index.nearest(index.vectors[7:8])[0]), Path(index.vectors.base.filename).stat().st_ino))


def test_eight_processes_that_start_at_once_fetch_once(
    toy_copy: Path, cache: Path, opened: Callable[[Path], list[str]]
) -> None:
    ref = reference(toy_copy)
    fork = get_context("fork")
    barrier, answer = fork.Barrier(8), fork.Queue()
    workers = [fork.Process(target=_open, args=(ref, barrier, answer)) for _ in range(8)]
    for worker in workers:
        worker.start()
    answers = [answer.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [found for found, _ in answers] == [7] * 8
    assert len({inode for _, inode in answers}) == 1
    for name in DATA_FILES:
        assert opened(toy_copy).count(name) == 1
    assert {path.name for path in (cache / ref.digest).iterdir()} == {"index", "index.stamp", "fetch.lock"}


@pytest.mark.parametrize("name", DATA_FILES)
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_a_flipped_bit_is_refused(toy_copy: Path, cache: Path, remote: bool, name: str) -> None:
    ref = reference(toy_copy) if remote else resolve_index(str(toy_copy))
    flip_bit(toy_copy / name)
    with pytest.raises(IndexArtifactError, match=rf"{name} is damaged .*wrong sha256.* again"):
        open_index(ref)
    assert not list(cache.rglob("vectors.npy"))
    assert not list(cache.rglob("*.stamp"))


@pytest.mark.parametrize("name", DATA_FILES)
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_a_truncated_file_is_refused(toy_copy: Path, cache: Path, remote: bool, name: str) -> None:
    ref = reference(toy_copy) if remote else resolve_index(str(toy_copy))
    os.truncate(toy_copy / name, (toy_copy / name).stat().st_size - 1)
    with pytest.raises(IndexArtifactError, match=rf"{name} .*bytes.* again"):
        open_index(ref)
    assert not list(cache.rglob("vectors.npy"))


@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_a_missing_file_is_named(toy_copy: Path, remote: bool) -> None:
    ref = reference(toy_copy) if remote else resolve_index(str(toy_copy))
    (toy_copy / "words.arrow").unlink()
    with pytest.raises(IndexArtifactError, match=r"words\.arrow.*(missing|no such file)"):
        open_index(ref)


def rewrite(folder: Path, **fields: object) -> IndexRef:
    """The folder with another manifest, and an honest reference to it."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return resolve_index(str(folder))


def test_a_wrong_size_or_dimension_is_refused_before_the_data_is_read(toy_copy: Path) -> None:
    flip_bit(toy_copy / "vectors.npy")  # would be found if the data were read first
    for fields in ({"dimension": 7}, {"size": 401}):
        with pytest.raises(IndexArtifactError, match=r"vectors\.npy holds float32 \(400, 6\), the manifest says"):
            open_index(rewrite(toy_copy, **{"size": 400, "dimension": 6} | fields))


def test_a_newer_version_is_refused(toy_copy: Path) -> None:
    with pytest.raises(IndexArtifactError, match=f"format_version {FORMAT_VERSION + 1}.*upgrade beam_dp"):
        rewrite(toy_copy, format_version=FORMAT_VERSION + 1)


def test_another_index_at_the_same_place_is_refused(toy_copy: Path) -> None:
    local, remote = resolve_index(str(toy_copy)), reference(toy_copy)
    rewrite(toy_copy, source="changed since")
    for ref in (local, remote):
        with pytest.raises(IndexArtifactError, match="not the one the pipeline was built with"):
            open_index(ref)
        with pytest.raises(IndexArtifactError, match="not the one the pipeline was built with"):
            read_manifest(ref)


def test_no_index_there(tmp_path: Path) -> None:
    for uri in (str(tmp_path), str(tmp_path / "nowhere"), f"shelf://{tmp_path}", "nosuchscheme://bucket/index"):
        with pytest.raises(IndexArtifactError, match="no index at"):
            resolve_index(uri)


def test_a_damaged_copy_in_the_cache_is_fetched_again(
    toy_copy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = reference(toy_copy)
    open_index(ref)
    flip_bit(cache / ref.digest / "index" / "vectors.npy")
    monkeypatch.setattr(broadcast, "_handles", {})
    index = open_index(ref)
    np.testing.assert_array_equal(index.vectors, np.load(toy_copy / "vectors.npy"))


def _fetch_with_little_room(ref: IndexRef, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        open_index(ref)
    except ResourceError as error:
        answer.put(str(error))


def test_a_full_disk_is_named_and_nothing_half_made_remains(toy_copy: Path, cache: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails in the same place."""
    ref = reference(toy_copy)
    fork = get_context("fork")
    answer = fork.Queue()
    process = fork.Process(target=_fetch_with_little_room, args=(ref, answer))
    process.start()
    assert "no room for a copy of the index in" in answer.get(timeout=60)
    process.join()
    assert [path.name for path in (cache / ref.digest).iterdir()] == ["fetch.lock"]
    open_index(ref)


def test_a_disk_that_is_too_small_is_told_before_the_copy(
    toy_copy: Path, cache: Path, opened: Callable[[Path], list[str]]
) -> None:
    files = json.loads((toy_copy / "manifest.json").read_text())["files"]
    files["index.ann"]["bytes"] = 10**18
    rewrite(toy_copy, files=files)
    with pytest.raises(ResourceError, match=r"no room .*\(ENOSPC\)"):
        open_index(reference(toy_copy))
    assert set(opened(toy_copy)) == {"manifest.json"}


def test_without_a_cache_a_local_index_opens_and_a_remote_one_says_what_to_set(
    toy_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEAM_DP_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    index = open_index(resolve_index(str(toy_copy)))
    assert index.neighbours(3)[0].shape == (400, 3)
    monkeypatch.setattr(broadcast, "_handles", {})
    with pytest.raises(ResourceError, match="BEAM_DP_CACHE"):
        open_index(reference(toy_copy))


def test_an_index_is_not_pickled(toy: BuildReport) -> None:
    with pytest.raises(BeamDpError, match="let the pipeline carry its IndexRef"):
        pickle.dumps(open_index(resolve_index(toy.output)))
