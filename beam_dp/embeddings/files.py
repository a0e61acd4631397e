"""Opening, copying and hashing the files of an index, on the local disk or any Beam file system."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast
from urllib.parse import unquote

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_dp.errors import InputError, ResourceError

T = TypeVar("T")

_COPY_BYTES = 1 << 22
# Of one call: an open, or a read of at most _COPY_BYTES. Google's client alone tries for two minutes.
_ANSWER_SECONDS = 60.0
_SCHEME = re.compile(r"^[a-zA-Z][-a-zA-Z0-9+.]*://")
_NO_ROOM = {errno.ENOSPC: "ENOSPC", errno.EDQUOT: "EDQUOT", errno.EFBIG: "EFBIG"}


class NoAnswerError(ResourceError):
    """A host that leaves a call of its file system waiting."""


def local_path(uri: str) -> Path | None:
    """The local path that ``uri`` means, or None if it has a scheme other than ``file``."""
    if uri.startswith("file://"):
        return Path(unquote(uri.removeprefix("file://")))
    if _SCHEME.match(uri):
        return None
    return Path(uri).expanduser() if uri.startswith("~/") else Path(uri)


def join(folder: str, name: str) -> str:
    """The path or URI of ``name`` in ``folder``."""
    path = local_path(folder)
    return f"{folder.rstrip('/')}/{name}" if path is None else str(path / name)


def open_binary(uri: str) -> BinaryIO:
    """``uri`` opened for reading, as it is: nothing is decompressed.

    Raises:
        InputError: no such file, not a file, or no file system for its scheme.
        NoAnswerError: its host does not answer; also when it is read.
    """
    path = local_path(uri)
    try:
        return cast("BinaryIO", _RemoteFile(uri)) if path is None else path.open("rb", buffering=0)
    except NoAnswerError:
        raise
    except FileNotFoundError:
        raise InputError(f"{uri}: no such file") from None
    except Exception as error:  # each Beam file system has errors of its own
        raise InputError(f"{uri} cannot be opened: {error}") from None


class _RemoteFile(io.RawIOBase):
    """A file of a Beam file system, whose host must answer each call in time."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._file: BinaryIO | None = _answered(
            uri, lambda: FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        file = self._file
        if file is None:
            raise _no_answer(self._uri)
        # Not to be closed while a read of it waits: that would wait, too.
        self._file = None
        data = _answered(self._uri, lambda: file.read(len(buffer)))
        self._file = file
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def _answered(uri: str, ask: Callable[[], T]) -> T:
    """What ``ask`` returns or raises, if the host of ``uri`` lets it do so in time; else NoAnswerError.

    Some file systems of Beam wait for ever. A call that waits cannot be ended: its thread stays until the process ends.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="remote file", daemon=True).start()
    concurrent.futures.wait([answer], _ANSWER_SECONDS)
    if not answer.done():
        raise _no_answer(uri)
    return answer.result()


def _no_answer(uri: str) -> NoAnswerError:
    return NoAnswerError(f"{uri}: its host did not answer within {_ANSWER_SECONDS:g} seconds; see if it can be reached")


def read_binary(uri: str) -> bytes:
    """The content of ``uri``.

    Raises:
        InputError: it cannot be opened.
        ResourceError: it cannot be read.
    """
    content = io.BytesIO()
    with contextlib.closing(open_binary(uri)) as source:
        copy_hashed(source, uri, content)
    return content.getvalue()


def exists(uri: str) -> bool:
    """Whether there is a file at ``uri``, which is not local.

    Raises:
        ResourceError: its file system does not answer.
    """
    with _named_errors(uri, "reached"):
        return bool(_answered(uri, lambda: FileSystems.exists(uri)))


def delete(uri: str) -> None:
    """Deletes the file ``uri``, which is not local.

    Raises:
        ResourceError: it cannot be deleted.
    """
    with _named_errors(uri, "deleted"):
        _answered(uri, lambda: FileSystems.delete([uri]))


def upload(path: Path, uri: str) -> None:
    """Copies the local file ``path`` to ``uri``, which is not local.

    Raises:
        ResourceError: it cannot be written.
    """
    with (
        _named_errors(uri, "written"),
        path.open("rb") as source,
        FileSystems.create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as target,
    ):
        copy_hashed(source, str(path), target)


@contextlib.contextmanager
def _named_errors(uri: str, done: str) -> Iterator[None]:
    try:
        yield
    except NoAnswerError:
        raise
    except Exception as error:  # each Beam file system has errors of its own
        raise ResourceError(f"{uri} cannot be {done}: {error}") from None


def copy_hashed(source: BinaryIO, name: str, target: BinaryIO) -> tuple[str, int]:
    """Copies all of ``source`` to ``target``; the sha256 (hex) and number of the bytes.

    Raises:
        ResourceError: ``source``, called ``name``, cannot be read to its end.
        OSError: ``target`` cannot be written.
    """
    digest, count = hashlib.sha256(), 0
    while True:
        try:
            part = source.read(_COPY_BYTES)
        except NoAnswerError:
            raise
        except Exception as error:  # each Beam file system has errors of its own
            raise ResourceError(f"{name} cannot be read: {error}") from None
        if not part:
            return digest.hexdigest(), count
        target.write(part)
        digest.update(part)
        count += len(part)


def sha256_of(path: Path) -> str:
    """The sha256 (hex) of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_COPY_BYTES):
            digest.update(part)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Makes a written file or folder survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raise_write_error(error: OSError, what: str, folder: str) -> NoReturn:
    """ResourceError for a failed write; a full disk is named as such."""
    name = _NO_ROOM.get(error.errno or 0)
    if name:
        raise ResourceError(
            f"no room for {what} in {folder} ({name}): free some space or choose another folder"
        ) from None
    raise ResourceError(f"{what} cannot be written to {folder}: {error}") from None
