"""The local cache of a machine: where it is, who may write, and what in it can be trusted.

Every folder in the cache is made under another name and renamed when it is whole, by one process at a time. A file
that was once verified by sha256 is remembered by a stamp (size, modification time, inode), so that the next process
does not read it all again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import fasteners
import numpy as np

from beam_dp.embeddings.files import raise_write_error, sha256_of
from beam_dp.errors import ArgumentError, ResourceError
from beam_dp.mechanisms.base import Arrays

CACHE_VARIABLE = "BEAM_DP_CACHE"
_CONTENT = "content.json"
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")

_log = logging.getLogger(__name__)

# A file lock keeps processes apart, not threads of one process. Reentrant: one derived table may need another.
_threads = threading.RLock()


def cache_folder() -> Path | None:
    """The folder of the cache, made if need be (mode 0700), or None if no place for it can be written.

    ``$BEAM_DP_CACHE``, else ``$XDG_CACHE_HOME/beam_dp``, else ``~/.cache/beam_dp``; if that cannot be made, a folder in
    the one for temporary files. Never one that somebody else owns or may write to: what is kept there decides what
    mechanisms draw.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        preferred = Path(named)
    else:
        base = os.environ.get("XDG_CACHE_HOME")
        preferred = (Path(base) if base else Path("~/.cache").expanduser()) / "beam_dp"
    if _writable(preferred) and _is_ours(preferred.resolve()):
        return preferred
    fallback = Path(tempfile.gettempdir()) / f"beam_dp-{os.getuid()}"
    return fallback if _writable(fallback) and _is_ours(fallback) else None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _is_ours(folder: Path) -> bool:
    """True for a real folder of this user that nobody else can write to: anybody may make one in /tmp."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file ``path`` against all other processes and threads of this machine."""
    with _threads:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with fasteners.InterProcessLock(str(path)):
            yield


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes ``target`` if the block succeeds, and disappears if it does not.

    To be used under the lock of ``target``: a folder that stands there is replaced, and what an interrupted
    process left behind is removed.
    """
    prefix = f"{target.name}.tmp-"
    for left in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield folder
        if target.exists():
            target.rename(folder.with_name(f"{prefix}old"))
        folder.rename(target)
    finally:
        for left in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)


def mismatched(folder: Path, digests: Mapping[str, str], stamps: Path | None) -> str | None:
    """The first file of ``folder`` whose sha256 is not as in ``digests`` (by name), or None if all are right.

    Args:
        stamps: the file that remembers this answer, as long as no file changes; None to remember nothing.
    """
    current = _stamped(folder, digests)
    if stamps is not None and _read_json(stamps) == current:
        return None
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            return name
    if stamps is not None:
        _write_stamps(stamps, current)
    return None


def remember(folder: Path, digests: Mapping[str, str], stamps: Path) -> None:
    """Notes in ``stamps`` that the files of ``folder`` were verified as they were written."""
    _write_stamps(stamps, _stamped(folder, digests))


def _stamped(folder: Path, digests: Mapping[str, str]) -> dict[str, list]:
    """Each file's digest with what tells it from a changed one without reading it: size, time (ns), inode."""
    found = {name: (folder / name).stat() for name in digests}
    return {
        name: [digest, found[name].st_size, found[name].st_mtime_ns, found[name].st_ino]
        for name, digest in digests.items()
    }


def _write_stamps(stamps: Path, current: dict[str, list]) -> None:
    with contextlib.suppress(OSError):  # without a stamp the next process verifies again
        part = stamps.with_name(f"{stamps.name}.{os.getpid()}")
        part.write_text(json.dumps(current))
        part.replace(stamps)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def derived_arrays(home: Path | None, name: str, compute: Callable[[], Arrays]) -> Arrays:
    """``compute()``, run once a machine and kept as .npy files under ``home``; read-only, memory-mapped.

    A kept result that is not whole and as it was written is computed again. Where nothing can be written, the result
    stays in memory.

    Args:
        home: the folder of one index in the cache, or None.
        name: of letters, digits, ``_``, ``-`` and ``.``; names everything that the result depends on besides the index.
        compute: gives arrays of plain numbers under names of the same characters.

    Raises:
        ArgumentError: a name has other characters.
    """
    _require_name(name)
    if home is None:
        return _frozen(compute())
    target, stamps = home / "derived" / name, home / "derived" / f"{name}.stamp"
    kept = _load_derived(target, stamps)
    if kept is not None:
        return kept
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(home / "derived" / f"{name}.lock"))
        except OSError as error:
            return _unkept(compute(), home, error)
        return _load_derived(target, stamps) or _store_derived(target, stamps, compute)


def _store_derived(target: Path, stamps: Path, compute: Callable[[], Arrays]) -> Arrays:
    arrays = {_require_name(key): np.ascontiguousarray(array) for key, array in compute().items()}
    try:
        with staged_folder(target) as folder:
            for key, array in arrays.items():
                np.save(folder / f"{key}.npy", array, allow_pickle=False)
            digests = {f"{key}.npy": sha256_of(folder / f"{key}.npy") for key in arrays}
            (folder / _CONTENT).write_text(json.dumps(digests))
    except OSError as error:
        return _unkept(arrays, target, error)
    return _load_derived(target, stamps) or _frozen(arrays)


def _unkept(arrays: Arrays, place: Path, error: OSError) -> Arrays:
    _log.warning("a table derived from the index cannot be kept in %s: %s", place, error.strerror)
    return _frozen(arrays)


def _load_derived(folder: Path, stamps: Path) -> Arrays | None:
    """The arrays in ``folder``, or None if they are not there, not whole, or not what was written."""
    digests = _read_json(folder / _CONTENT)
    try:
        if not isinstance(digests, dict) or mismatched(folder, digests, stamps) is not None:
            return None
        return {Path(file).stem: np.load(folder / file, mmap_mode="r").view(np.ndarray) for file in digests}
    except (OSError, ValueError):
        return None


def _frozen(arrays: Arrays) -> Arrays:
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _require_name(name: str) -> str:
    if not name or name.startswith(".") or not _NAME_CHARACTERS.issuperset(name):
        raise ArgumentError("name must be of letters, digits, '_', '-' and '.', and not begin with '.'")
    return name


def require_cache() -> Path:
    """`cache_folder`, or ResourceError if there is none."""
    folder = cache_folder()
    if folder is None:
        raise ResourceError(
            f"no folder for a copy of the index can be written: set the environment variable {CACHE_VARIABLE} to one"
        )
    return folder


@contextlib.contextmanager
def named_write_errors(what: str, folder: Path) -> Iterator[None]:
    """Turns an OSError of the block into a ResourceError that names ``what``, ``folder`` and a full disk."""
    try:
        yield
    except OSError as error:
        raise_write_error(error, what, str(folder))
