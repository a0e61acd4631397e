"""Files over Beam's FileSystems, with errors that name the file and the reason and nothing else."""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_dp.errors import ArgumentError, InputError, ResourceError

_COMPRESSED_CHUNK = 1 << 17
_GZIP_WINDOW = zlib.MAX_WBITS | 16
_ZSTD_WINDOW = 1 << 31
_WILDCARDS = re.compile(r"[*?\[]")
_FILE_SCHEME = "file://"
_FULL = (errno.ENOSPC, errno.EDQUOT)

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    CompressionTypes.GZIP: lambda: zlib.decompressobj(_GZIP_WINDOW),
    CompressionTypes.DEFLATE: zlib.decompressobj,
    CompressionTypes.BZIP2: bz2.BZ2Decompressor,
    CompressionTypes.LZMA: lzma.LZMADecompressor,
    CompressionTypes.ZSTD: lambda: zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj(),
}


def _innermost(error: BaseException) -> BaseException:
    """The error of the system inside the wrappings that FileSystems puts on."""
    while True:
        details = error.exception_details if isinstance(error, BeamIOError) else None
        causes = [*(details or {}).values(), *error.args]
        inner = next((cause for cause in causes if isinstance(cause, BaseException)), None)
        if inner is None:
            return error
        error = inner


def system_reason(error: BaseException) -> str:
    """Why the system refused, in its words (``strerror``)."""
    error = _innermost(error)
    reason = getattr(error, "strerror", None)
    return reason[:1].lower() + reason[1:] if reason else type(error).__name__


def is_not_found(error: BaseException) -> bool:
    """Whether the system says that there is no such file; object stores say 404."""
    error = _innermost(error)
    return isinstance(error, FileNotFoundError) or getattr(error, "code", None) == 404


def last_component(path: str) -> str:
    """The name of a file without its folder."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns an error of the system while the file ``name`` is read into a ResourceError."""
    try:
        yield
    except OSError as error:
        raise ResourceError(f"cannot read {name}: {system_reason(error)}") from None


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns an error of the system while ``path`` is written into a ResourceError."""
    try:
        yield
    except OSError as error:
        advice = "; free some space" if getattr(_innermost(error), "errno", None) in _FULL else ""
        raise ResourceError(f"{system_reason(error)}, while writing {path}{advice}") from None


def local_absolute(path: str) -> str:
    """A local path made absolute, since workers may stand in another folder; a URI as it is.

    ``~`` is the home folder, and ``file:///folder/name`` is ``/folder/name``, for which Beam has no file system.
    """
    if path.startswith(_FILE_SCHEME):
        path = path.removeprefix(_FILE_SCHEME)
    elif "://" in path:
        return path
    else:
        path = os.path.expanduser(path)  # noqa: PTH111 - as below
    return os.path.abspath(path)  # noqa: PTH100 - keeps the text of the path otherwise


def places(path: str) -> tuple[str, str]:
    """Where the name ``path`` is and where the file with that name is, symbolic links followed; both ``path`` for URIs.

    Two paths are one if they share a place.
    """
    if "://" in path:
        return path, path
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name), os.path.realpath(path)  # noqa: PTH118 - text, as above


def require_file_system(name: str, path: str) -> None:
    """ArgumentError naming the argument ``name`` unless a file system is installed for the scheme of ``path``."""
    try:
        FileSystems.get_filesystem(path)
    except ValueError:
        raise ArgumentError(
            f"{name}: no file system is installed for {path}; apache-beam has extras for gs://, s3://, hdfs://"
        ) from None


def paths_with_prefix(prefix: str) -> list[str]:
    """The files whose paths begin with ``prefix``, in its folder.

    (FileSystems.match walks through all folders below that of a local pattern.)
    """
    with reading(last_component(prefix)):
        if "://" in prefix:
            return [item.path for item in FileSystems.match([f"{prefix}*"])[0].metadata_list]
        folder = Path(prefix).parent
        return [str(path) for path in folder.iterdir() if str(path).startswith(prefix)] if folder.is_dir() else []


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    Attributes:
        path: where FileSystems finds it.
        name: its name in messages and rejects: the part of the path from the first folder with a wildcard on.
        size: bytes, as stored.
    """

    path: str
    name: str
    size: int

    @property
    def compression(self) -> str:
        """Beam's name of the compression that the extension stands for."""
        return CompressionTypes.detect_compression_type(self.path)

    @property
    def is_compressed(self) -> bool:
        """Whether the file is read from its beginning only."""
        return self.compression != CompressionTypes.UNCOMPRESSED


def find_inputs(pattern: str) -> list[InputFile]:
    """The files that match a glob, sorted by path.

    Raises:
        ArgumentError: no file system is installed for the scheme of the pattern.
        InputError: nothing matches, or a folder does.
        ResourceError: the file system cannot be listed.
    """
    pattern = local_absolute(pattern)
    require_file_system("input", pattern)
    if "://" not in pattern and Path(pattern).is_dir():
        raise InputError(f"input: {pattern} is a directory: write {pattern}/*")
    with reading(pattern):
        found = FileSystems.match([pattern])[0].metadata_list
    if not found:
        raise InputError(f"input: no file matches {pattern}")
    wildcard = _WILDCARDS.search(pattern)
    fixed = pattern[: wildcard.start()] if wildcard else pattern
    folder = len(re.split(r"[^/\\]*$", fixed)[0])
    files = (InputFile(path=item.path, name=item.path[folder:], size=item.size_in_bytes) for item in found)
    return sorted(files, key=lambda file: file.path)


def open_stored(file: InputFile) -> BinaryIO:
    """The bytes of a file as they are stored; seekable."""
    with reading(file.name):
        return FileSystems.open(file.path, compression_type=CompressionTypes.UNCOMPRESSED)


def open_input(file: InputFile) -> BinaryIO:
    """The decompressed bytes of a file; seekable if the file is not compressed.

    Reading raises InputError where a compressed stream is damaged or ends too soon.
    """
    stored = open_stored(file)
    if not file.is_compressed:
        return stored
    return io.BufferedReader(_DecompressedFile(stored, file.compression, file.name), _COMPRESSED_CHUNK)


class _DecompressedFile(io.RawIOBase):
    """Reads one or more compressed streams that follow each other, and insists on the end of the last one.

    (Beam's CompressedFile takes a truncated stream for a complete one.)
    """

    def __init__(self, stored: BinaryIO, compression: str, name: str) -> None:
        super().__init__()
        self._stored = stored
        self._compression = compression
        self._name = name
        self._decompressor: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._stored.close()
        super().close()

    def readinto(self, target: Any) -> int:
        while not self._ready:
            if not self._decompress():
                return 0
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bool:
        """Fills ``_ready`` from the next stored bytes; False at the end of the file."""
        data = b""
        if self._decompressor is not None and self._decompressor.eof:
            data = self._decompressor.unused_data.lstrip(b"\0")
            self._decompressor = None
        if not data:
            with reading(self._name):
                data = self._stored.read(_COMPRESSED_CHUNK)
        if not data:
            if self._decompressor is not None:
                raise self._damaged()
            return False
        if self._decompressor is None:
            self._decompressor = _DECOMPRESSORS[self._compression]()
        try:
            self._ready = memoryview(self._decompressor.decompress(data))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError):
            raise self._damaged() from None
        return True

    def _damaged(self) -> InputError:
        return InputError(f"cannot read {self._name}: its {self._compression} data is corrupt or truncated")
