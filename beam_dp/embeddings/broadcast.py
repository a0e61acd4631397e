"""Getting one index to every process of a pipeline: a reference travels, the artifact is fetched once a machine.

A pipeline carries an `IndexRef`, which is a URI and a digest. A worker fetches the files through Beam's file systems
into its local cache (one process does, the others wait), verifies sha256 as they arrive, and maps them; the processes
of a machine share the pages. Inside a process, `open_index` gives all callers the same object.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from apache_beam.utils.shared import Shared

from beam_dp.embeddings.cache import (
    cache_folder,
    locked,
    mismatched,
    named_write_errors,
    remember,
    require_cache,
    staged_folder,
)
from beam_dp.embeddings.files import NoAnswerError, copy_hashed, join, local_path, open_binary, read_binary
from beam_dp.embeddings.index import EmbeddingIndex, check_sizes
from beam_dp.embeddings.manifest import MANIFEST_FILE, Manifest, manifest_digest
from beam_dp.embeddings.search import SEARCH_OPTIONS, resolve_strategy
from beam_dp.errors import ArgumentError, IndexArtifactError, InputError, ResourceError, require_choice

# The index inside the package has no path that is right on every machine, so its reference names the package.
DEFAULT_URI = "beam_dp:default"
_DEFAULT_FOLDER = Path(__file__).parent / "default"

# Module-level, because a Shared handle that is unpickled anew for each DoFn would load the index anew.
_handles: dict[tuple[str, str], Shared] = {}
_handles_lock = threading.Lock()


@dataclass(frozen=True)
class IndexRef:
    """All of an index that a pipeline carries.

    Attributes:
        uri: its folder: a path, a URI of a Beam file system, or ``beam_dp:default``.
        digest: sha256 (64 hex) of its manifest.
    """

    uri: str
    digest: str


def resolve_index(uri: str | None = None) -> IndexRef:
    """The reference of the index at ``uri``; None for the small one inside the package (GloVe 6B, 20,000 x 50).

    Reads the manifest only.

    Raises:
        ArgumentError: ``uri`` is neither a string nor None, or empty.
        IndexArtifactError: there is no index, or not one that this version reads.
    """
    if uri is None:
        uri = DEFAULT_URI
    if not isinstance(uri, str) or not uri:
        raise ArgumentError("index must be the path or URI of an index folder")
    path = local_path(uri)
    if path is not None and uri != DEFAULT_URI:
        uri = str(path.expanduser().absolute())
    data = _read_manifest_bytes(uri)
    Manifest.from_bytes(data, join(uri, MANIFEST_FILE))
    return IndexRef(uri=uri, digest=manifest_digest(data))


def read_manifest(ref: IndexRef) -> Manifest:
    """The manifest of ``ref``.

    Raises:
        IndexArtifactError: it is missing, unreadable, or not the one whose digest ``ref`` holds.
    """
    return _checked_manifest(_read_manifest_bytes(ref.uri), ref)


def open_index(ref: IndexRef, search: str = "auto") -> EmbeddingIndex:
    """The index that ``ref`` names, fetched if need be, verified and memory-mapped; one object a process.

    Args:
        ref: from `resolve_index`.
        search: ``exact``, ``annoy``, or ``auto``, which chooses by the size of the vocabulary.

    Raises:
        ArgumentError: ``search`` is none of the three, or ``annoy`` with a metric that Annoy does not know.
        IndexArtifactError: a file is missing, damaged, of another version, or not the one that ``ref`` names.
        ResourceError: the copy cannot be written; a full disk is named. The host of the index does not answer.
    """
    require_choice("search", search, SEARCH_OPTIONS)
    with _handles_lock:
        handle = _handles.setdefault((ref.digest, search), Shared())
    return handle.acquire(lambda: _load(ref, search))


def _load(ref: IndexRef, search: str) -> EmbeddingIndex:
    folder = _local_folder(ref.uri)
    home: Path | None
    if folder is None:
        home = require_cache() / ref.digest
        folder = _fetched(ref, home)
    else:
        cache = cache_folder()
        home = None if cache is None else cache / ref.digest
        _verify_in_place(folder, ref, home)
    manifest = _checked_manifest((folder / MANIFEST_FILE).read_bytes(), ref)
    return EmbeddingIndex(folder, manifest, ref.digest, resolve_strategy(search, manifest.size, manifest.metric), home)


def _local_folder(uri: str) -> Path | None:
    return _DEFAULT_FOLDER if uri == DEFAULT_URI else local_path(uri)


def _read_manifest_bytes(uri: str) -> bytes:
    folder = _local_folder(uri)
    where = join(uri if folder is None else str(folder), MANIFEST_FILE)
    try:
        return read_binary(where)
    except InputError as error:
        raise IndexArtifactError(f"no index at {uri}, or one whose build did not finish: {error}") from None


def _checked_manifest(data: bytes, ref: IndexRef) -> Manifest:
    where, found = join(ref.uri, MANIFEST_FILE), manifest_digest(data)
    if found != ref.digest:
        raise IndexArtifactError(
            f"{where} is not the one the pipeline was built with (digest {found[:12]}, expected {ref.digest[:12]}): "
            "put that index back, or build the pipeline again"
        )
    return Manifest.from_bytes(data, where)


def _digests(manifest: Manifest) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.files.items()}


def _verify_in_place(folder: Path, ref: IndexRef, home: Path | None) -> None:
    """Checks the files of a local index; once a machine where ``home`` (its folder in the cache) remembers it."""
    manifest = read_manifest(ref)
    try:
        check_sizes(folder, manifest)
        wrong = _damaged_in_place(folder, _digests(manifest), home)
    except OSError as error:
        raise IndexArtifactError(f"the index at {folder} cannot be read: {error}") from None
    if wrong is not None:
        raise IndexArtifactError(f"{folder / wrong} is damaged (wrong sha256): build or copy the index again")


def _damaged_in_place(folder: Path, digests: dict[str, str], home: Path | None) -> str | None:
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        stamps = None
        if home is not None:
            with contextlib.suppress(OSError):  # a cache that fails costs the memory of this check, not the index
                stack.enter_context(locked(home / "verify.lock"))
                stamps = home / f"in-place-{place}.stamp"
        return mismatched(folder, digests, stamps)


def _fetched(ref: IndexRef, home: Path) -> Path:
    """The folder of a whole, verified copy of the index under ``home``; one process fetches, the others wait."""
    folder, unanswered, asked_at = home / "index", home / "unanswered", time.time()
    with named_write_errors("a copy of the index", home), locked(home / "fetch.lock"):
        if not _is_intact(folder, ref, home):
            # Who waited for a process that got no answer need not wait for one again, and the next one after it.
            if unanswered.exists() and unanswered.stat().st_mtime >= asked_at:
                raise NoAnswerError(unanswered.read_text())
            try:
                with staged_folder(folder) as stage:
                    manifest = _fetch(ref, stage)
            except NoAnswerError as error:
                unanswered.write_text(str(error))
                raise
            unanswered.unlink(missing_ok=True)
            remember(folder, _digests(manifest), _stamps(home))
    return folder


def _stamps(home: Path) -> Path:
    return home / "index.stamp"


def _is_intact(folder: Path, ref: IndexRef, home: Path) -> bool:
    """Whether ``folder`` is a verified copy; a damaged one is not, and is fetched again."""
    try:
        manifest = _checked_manifest((folder / MANIFEST_FILE).read_bytes(), ref)
        check_sizes(folder, manifest)
        return mismatched(folder, _digests(manifest), _stamps(home)) is None
    except (OSError, IndexArtifactError):
        return False


def _fetch(ref: IndexRef, stage: Path) -> Manifest:
    """Copies the index to the empty folder ``stage``, verifying each file as it arrives."""
    data = _read_manifest_bytes(ref.uri)
    manifest = _checked_manifest(data, ref)
    needed = sum(entry.bytes for entry in manifest.files.values())
    if shutil.disk_usage(stage).free < needed:
        raise ResourceError(
            f"no room for a copy of the index in {stage.parent} (ENOSPC): {needed} bytes are needed; free some space "
            "or set another cache folder"
        )
    for name in manifest.files:
        uri = join(ref.uri, name)
        try:
            source = open_binary(uri)
        except InputError as error:
            raise IndexArtifactError(f"the index at {ref.uri} is incomplete: {error}") from None
        with contextlib.closing(source), (stage / name).open("wb") as target:
            digest, count = copy_hashed(source, uri, target)
        if count != manifest.files[name].bytes or digest != manifest.files[name].sha256:
            raise IndexArtifactError(
                f"{uri} is damaged ({count} bytes, {manifest.files[name].bytes} expected"
                f"{'' if count != manifest.files[name].bytes else ', wrong sha256'}): build or upload the index again"
            )
    (stage / MANIFEST_FILE).write_bytes(data)
    check_sizes(stage, manifest)
    return manifest
