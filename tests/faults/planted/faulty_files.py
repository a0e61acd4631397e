"""File systems that fail, over local files: ``SCHEME:///folder/name`` is ``/folder/name``.

``stalling://``: whoever writes a shard of rows says so in the file STALLED.PID and waits for the file STALLED.go, where
    STALLED is the path in the variable FAULTS_STALLED.
``full://``: a disk with room for so many bytes a file as the variable FAULTS_ROOM says.
``host://``: the files are there for who gets an answer from the host whose address is in the variable FAULTS_HOST.
``mute://``: files that open, and never give a byte.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import time
from pathlib import Path
from typing import Any, ClassVar

from apache_beam.io.filesystem import FileMetadata, MatchResult
from apache_beam.io.localfilesystem import LocalFileSystem

STALLED, ROOM, HOST = "FAULTS_STALLED", "FAULTS_ROOM", "FAULTS_HOST"
PATIENCE, WORKERS_CACHE = "FAULTS_PATIENCE", "FAULTS_WORKERS_CACHE"
_POLL_SECONDS = 0.05


def plant() -> None:
    """What the variables ask for beyond the file systems, which are there once this module is imported."""
    if WORKERS_CACHE in os.environ and is_worker():
        # As on a machine of its own, where nobody has fetched the index yet.
        os.environ["BEAM_DP_CACHE"] = os.environ[WORKERS_CACHE]
    if PATIENCE in os.environ:
        from beam_dp.embeddings import files

        files._ANSWER_SECONDS = float(os.environ[PATIENCE])


def is_worker() -> bool:
    """Whether Beam has started this process as a worker."""
    return "WORKER_ID" in os.environ


class _Elsewhere(LocalFileSystem):
    """Local files under another scheme, which the product takes for remote."""

    name: ClassVar[str] = "elsewhere"

    @classmethod
    def scheme(cls) -> str:
        return cls.name

    def _local(self, path: str) -> str:
        return path.removeprefix(f"{self.name}://")

    def match(self, patterns: list[str], limits: list[int] | None = None) -> list[MatchResult]:
        found = super().match([self._local(pattern) for pattern in patterns], limits)
        return [
            MatchResult(
                pattern,
                [
                    FileMetadata(f"{self.name}://{item.path}", item.size_in_bytes, item.last_updated_in_seconds)
                    for item in result.metadata_list
                ],
            )
            for pattern, result in zip(patterns, found, strict=True)
        ]

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        local = Path(self._local(path))
        local.parent.mkdir(parents=True, exist_ok=True)
        return super().create(str(local), *args, **kwargs)

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().open(self._local(path), *args, **kwargs)

    def exists(self, path: str) -> bool:
        return super().exists(self._local(path))

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        super().rename([self._local(path) for path in source_file_names], [*map(self._local, destination_file_names)])

    def delete(self, paths: list[str]) -> None:
        # Its own would match the paths with the method above.
        LocalFileSystem(None).delete([self._local(path) for path in paths])


class _Writing:
    """A file that is written, with something to be done before and after each write."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._size = stream, 0

    def before(self, size: int) -> None:
        """Told how many bytes would then be in the file."""

    def after(self) -> None:
        """Told when they are."""

    def write(self, data: bytes) -> int:
        self._size += len(data)
        self.before(self._size)
        written = self._stream.write(data)
        self.after()
        return written

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stalling(_Writing):
    def after(self) -> None:
        self._stream.flush()
        stalled = os.environ[STALLED]
        Path(f"{stalled}.{os.getpid()}").touch()
        while not Path(f"{stalled}.go").exists():
            time.sleep(_POLL_SECONDS)


class StallingFileSystem(_Elsewhere):
    """Stops a worker in the middle of its bundle: what it drew is on the disk, and the bundle is not over."""

    name = "stalling"

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        stream = super().create(path, *args, **kwargs)
        return _Stalling(stream) if "/rows-" in path else stream


class _Filling(_Writing):
    def before(self, size: int) -> None:
        if size > int(os.environ[ROOM]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullFileSystem(_Elsewhere):
    """A disk that is soon full."""

    name = "full"

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return _Filling(super().create(path, *args, **kwargs))


class HostFileSystem(_Elsewhere):
    """Files of a host that is asked before each open, without any limit of time."""

    name = "host"

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        address, _, port = os.environ[HOST].partition(":")
        with socket.create_connection((address, int(port))) as host:
            host.sendall(b"worker" if is_worker() else b"driver")
            if not host.recv(1):
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return super().open(path, *args, **kwargs)


class _Mute(io.RawIOBase):
    """A file that somebody else's read would have to end for it to be closed."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            time.sleep(_POLL_SECONDS)


class MuteFileSystem(_Elsewhere):
    """Files that open, and never give a byte: a buffered one cannot even be closed while it is read."""

    name = "mute"

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().open(path, *args, **kwargs) if path.endswith(".json") else io.BufferedReader(_Mute())
