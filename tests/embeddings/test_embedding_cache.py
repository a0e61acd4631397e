from __future__ import annotations

import errno
import logging
import os
import stat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from beam_dp.embeddings.cache import (
    cache_folder,
    derived_arrays,
    locked,
    mismatched,
    named_write_errors,
    require_cache,
    staged_folder,
)
from beam_dp.embeddings.files import sha256_of
from beam_dp.errors import ArgumentError, ResourceError


def table(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, 9, (50, 3)).astype(np.int32), "p": rng.normal(size=50)}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == expected[key].dtype and np.array_equal(found[key], expected[key]) for key in expected
    )


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("computed again")


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEAM_DP_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == require_cache() == tmp_path / "named"
    monkeypatch.delenv("BEAM_DP_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "beam_dp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "beam_dp"
    for folder in (tmp_path / "named", tmp_path / "xdg" / "beam_dp"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_folder_for_temporary_files_is_next_unless_it_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEAM_DP_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours = tmp_path / f"beam_dp-{os.getuid()}"
    assert cache_folder() == ours
    ours.chmod(0o777)
    assert cache_folder() is None
    with pytest.raises(ResourceError, match="BEAM_DP_CACHE"):
        require_cache()
    ours.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    ours.symlink_to(tmp_path / "elsewhere")
    assert cache_folder() is None


def test_a_derived_table_is_computed_once_and_mapped(tmp_path: Path) -> None:
    first = derived_arrays(tmp_path, "t-1", table)
    again = derived_arrays(tmp_path, "t-1", refuse)
    assert same(first, table())
    assert same(again, table())
    for array in (*first.values(), *again.values()):
        assert isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert same(derived_arrays(tmp_path, "t-2", lambda: table(2)), table(2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "p.npy", 200),
        lambda folder: np.save(folder / "p.npy", np.zeros(50)),
        lambda folder: (folder / "p.npy").unlink(),
        lambda folder: (folder / "content.json").write_text("{}x"),
        lambda folder: (folder / "content.json").write_text("[]"),
        lambda folder: (folder / "content.json").unlink(),
    ],
)
def test_a_damaged_table_is_computed_again(tmp_path: Path, damage) -> None:
    derived_arrays(tmp_path, "t", table)
    damage(tmp_path / "derived" / "t")
    assert same(derived_arrays(tmp_path, "t", lambda: table(3)), table(3))
    assert same(derived_arrays(tmp_path, "t", refuse), table(3))
    assert {path.name for path in (tmp_path / "derived").iterdir()} == {"t", "t.lock", "t.stamp"}


def test_a_failing_computation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="computed again"):
        derived_arrays(tmp_path, "t", refuse)
    assert {path.name for path in (tmp_path / "derived").iterdir()} == {"t.lock"}


def test_a_table_may_need_another(tmp_path: Path) -> None:
    def outer() -> dict[str, np.ndarray]:
        return {"double": 2 * derived_arrays(tmp_path, "inner", table)["p"]}

    np.testing.assert_array_equal(derived_arrays(tmp_path, "outer", outer)["double"], 2 * table()["p"])


def test_without_a_place_the_table_stays_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert same(derived_arrays(None, "t", table), table())
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        kept = derived_arrays(tmp_path / "file", "t", table)
    assert same(kept, table())
    assert not kept["p"].flags.writeable
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../a", "a b", "é"])
def test_names_are_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="name must be"):
        derived_arrays(tmp_path, name, table)
    with pytest.raises(ArgumentError, match="name must be"):
        derived_arrays(tmp_path, "t", lambda: {name: np.zeros(1)})


def _derive(home: Path, barrier, log: Path) -> None:
    def compute() -> dict[str, np.ndarray]:
        with log.open("a") as stream:
            stream.write("computed\n")
        return table()

    barrier.wait()
    if not same(derived_arrays(home, "t", compute), table()):
        os._exit(1)


def test_processes_that_start_at_once_compute_once(tmp_path: Path) -> None:
    fork = get_context("fork")
    barrier = fork.Barrier(6)
    workers = [fork.Process(target=_derive, args=(tmp_path / "home", barrier, tmp_path / "log")) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert (tmp_path / "log").read_text() == "computed\n"


def test_a_stamp_saves_reading_and_a_change_undoes_it(tmp_path: Path) -> None:
    file, stamps = tmp_path / "f", tmp_path / "stamps"
    file.write_bytes(b"right")
    digests = {"f": sha256_of(file)}
    assert mismatched(tmp_path, {"f": "0" * 64}, stamps) == "f"
    assert not stamps.exists()
    assert mismatched(tmp_path, digests, stamps) is None
    before = file.stat()
    file.write_bytes(b"wrong")
    assert mismatched(tmp_path, digests, stamps) == "f"
    # With size, time and inode put back the stamp is believed: this is what it saves.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert mismatched(tmp_path, digests, stamps) is None
    assert mismatched(tmp_path, {"f": sha256_of(file)}, stamps) is None
    (tmp_path / "g").write_bytes(b"wrong")
    os.utime(tmp_path / "g", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "g").replace(file)
    assert mismatched(tmp_path, digests, stamps) == "f"


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "t"
    (tmp_path / "t.tmp-left").mkdir()
    with pytest.raises(KeyboardInterrupt), staged_folder(target) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with staged_folder(target) as folder:
            (folder / "a").write_text(content)
        assert (target / "a").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_lock_may_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "a.lock"), locked(tmp_path / "new" / "b.lock"):
        assert (tmp_path / "new" / "a.lock").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"no room for a copy in .* \(ENOSPC\): free some space"),
        named_write_errors("a copy", tmp_path),
        Path("/dev/full").open("wb") as full,
    ):
        full.write(b"x")
    with pytest.raises(ResourceError, match="a copy cannot be written to"), named_write_errors("a copy", tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
