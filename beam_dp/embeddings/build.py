"""Building the index artifact from a file of word vectors: deterministic, in bounded memory, atomic.

The words are streamed to disk and the matrix is memory-mapped from there, so memory holds one block of vectors, the
words themselves and a few numbers a word. The artifact is made in a hidden folder next to the output and renamed when
it is whole (on a remote file system: copied, the manifest last), so an interrupted build leaves nothing that loads.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from beam_dp.embeddings.files import delete, exists, join, local_path, raise_write_error, sha256_of, sync, upload
from beam_dp.embeddings.formats import FORMATS, Block, detect_format, read_vectors
from beam_dp.embeddings.hyperbolic import PoincareDistances
from beam_dp.embeddings.manifest import (
    DATA_FILES,
    FOREST_FILE,
    MANIFEST_FILE,
    METRICS,
    VECTORS_FILE,
    WORDS_FILE,
    Distances,
    FileEntry,
    ForestRecord,
    Manifest,
    manifest_digest,
)
from beam_dp.embeddings.neighbours import measure_distances
from beam_dp.embeddings.recall import measure_recall
from beam_dp.embeddings.search import build_forest, forest_bytes
from beam_dp.embeddings.vocabulary import Dropped, VocabularyFilter
from beam_dp.errors import ArgumentError, InputError, ResourceError, require_choice, require_count

DEFAULT_TREES = 50
_NPY_HEADER_BYTES = 128
_MIN_WORDS = 2

Bars = Callable[[str, int | None], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
        output: folder or URI of the index.
        digest: sha256 of its manifest.
        manifest: its manifest.
        dropped: the words of the source that were left out.
    """

    output: str
    digest: str
    manifest: Manifest
    dropped: tuple[Dropped, ...]


def build_index(
    vectors: str,
    output: str,
    *,
    words: str | None = None,
    format: str = "auto",
    max_words: int | None = None,
    trees: int | None = None,
    metric: str = "euclidean",
    source: str = "",
    licence: str = "",
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Builds an index from word vectors; the same input gives the same bytes.

    Args:
        vectors: path or URI of the word vectors.
        output: folder or URI of the index; made, with its parents.
        words: for ``npy`` alone: the file with one word a line.
        format: see `beam_dp.embeddings.formats`.
        max_words: keep the first so many usable words (files are sorted by frequency); the rest is not read.
        trees: Annoy trees, 50 by default: more find better neighbours in a larger file. With the metric poincare there
            are none, since its search is always exact.
        metric: ``euclidean``; or ``poincare``, where the vectors are points of the Poincaré ball of curvature -1.
        source, licence: recorded in the manifest.
        overwrite: replace an index at ``output``.
        progress: show progress bars on stderr, if that is a terminal.

    Raises:
        ArgumentError: an argument is out of range, or ``output`` exists and ``overwrite`` is not set.
        InputError: the source is missing or holds something that is refused; names file and line.
        ResourceError: the output cannot be written.
    """
    resolved = check_build(
        vectors, output, format=format, max_words=max_words, trees=trees, metric=metric, overwrite=overwrite
    )
    unit = {"word2vec_binary": "record", "gensim": "record", "npy": "row"}.get(resolved, "line")
    vocabulary = VocabularyFilter(vectors, unit, max_words, metric)
    bars = _bars(progress)
    try:
        with _staging(output) as folder:
            size, dimension = _write_words_and_vectors(folder, read_vectors(vectors, words, resolved), vocabulary, bars)
            distances, annoy = (
                (_measure_poincare(folder, bars), None)
                if metric == "poincare"
                else _build_search(folder, DEFAULT_TREES if trees is None else trees, bars)
            )
            manifest = Manifest(
                size=size,
                dimension=dimension,
                metric=metric,
                files={name: _file_entry(folder / name) for name in DATA_FILES if (folder / name).exists()},
                annoy=annoy,
                distances=distances,
                dropped={entry.reason: entry.count for entry in vocabulary.dropped},
                source=source,
                licence=licence,
            )
            data = manifest.to_bytes()
            (folder / MANIFEST_FILE).write_bytes(data)
            _publish(folder, output)
    except OSError as error:
        raise_write_error(error, "the index", output)
    return BuildReport(output, manifest_digest(data), manifest, vocabulary.dropped)


def check_build(
    vectors: str,
    output: str,
    *,
    format: str = "auto",
    max_words: int | None = None,
    trees: int | None = None,
    metric: str = "euclidean",
    overwrite: bool = False,
) -> str:
    """Checks arguments of `build_index`, as it does before it reads the vectors; writes nothing.

    Returns:
        the format of the vectors, never ``auto``.

    Raises:
        ArgumentError, InputError: as `build_index`.
    """
    require_choice("metric", metric, METRICS)
    require_choice("format", format, FORMATS)
    if trees is not None:
        require_count("trees", trees)
        if metric == "poincare":
            raise ArgumentError("trees are of Annoy, which does not know the poincare metric: leave them out")
    if max_words is not None:
        require_count("max_words", max_words, _MIN_WORDS)
    _check_output(output, overwrite)
    return detect_format(vectors) if format == "auto" else format


def _check_output(output: str, overwrite: bool) -> None:
    path = local_path(output)
    if path is None:
        present = exists(join(output, MANIFEST_FILE))
    elif path.exists() and not path.is_dir():
        raise ArgumentError(f"output {output} is a file: give a folder that does not exist yet")
    else:
        names = {entry.name for entry in path.iterdir()} if path.exists() else set()
        present = bool(names)
        if names and (MANIFEST_FILE not in names or names - {MANIFEST_FILE, *DATA_FILES}):
            raise ArgumentError(f"output {output} holds files that are not of an index: give another folder")
    if present and not overwrite:
        raise ArgumentError(
            f"output {output} exists: give another folder, or set overwrite (--overwrite) to replace it"
        )


@contextlib.contextmanager
def _staging(output: str) -> Iterator[Path]:
    """A new folder to build in, on the disk of the output where that is local; removed at the end if still there."""
    path = local_path(output)
    if path is None:
        folder = Path(tempfile.mkdtemp(prefix="beam_dp-build-"))
    else:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.absolute().parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_words_and_vectors(
    folder: Path, blocks: Iterator[Block], vocabulary: VocabularyFilter, bars: Bars
) -> tuple[int, int]:
    """Streams the usable words of the source to ``folder``; their number and dimension."""
    kept: list[pa.StringArray] = []
    dimension = 0
    with bars("words", None) as advance, (folder / VECTORS_FILE).open("wb") as target:
        target.write(bytes(_NPY_HEADER_BYTES))
        for raw in blocks:
            block = vocabulary.apply(raw)
            dimension = block.vectors.shape[1]
            kept.append(block.words)
            target.write((block.vectors + np.float32(0)).astype("<f4", copy=False).tobytes())  # -0 becomes 0
            advance(len(block.words))
            if vocabulary.full:
                break
        size = sum(map(len, kept))
        target.seek(0)
        target.write(_npy_header(size, dimension))
    if size < _MIN_WORDS:
        raise InputError(f"{vocabulary.path} holds {size} usable words, an index needs at least {_MIN_WORDS}")
    batch = pa.record_batch({"word": pa.concat_arrays(kept)})
    with pa.OSFile(str(folder / WORDS_FILE), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return size, dimension


def _npy_header(size: int, dimension: int) -> bytes:
    """The header of a float32 matrix, of one fixed length: it is written when the number of rows is known."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (size, dimension)})
    fields = stream.getvalue()[10:].strip()
    return b"\x93NUMPY\x01\x00" + (_NPY_HEADER_BYTES - 10).to_bytes(2, "little") + fields.ljust(117) + b"\n"


def _build_search(folder: Path, trees: int, bars: Bars) -> tuple[Distances, ForestRecord]:
    """Builds the forest from the vectors in ``folder`` and measures the distances and the recall."""
    matrix: npt.NDArray[np.float32] = np.load(folder / VECTORS_FILE, mmap_mode="r").view(np.ndarray)
    size, dimension = matrix.shape
    with bars("distances", size) as advance:
        distances = measure_distances(matrix, advance)
    # Annoy writes through a memory map, where a full disk kills the process; so the room is looked for before.
    needed = forest_bytes(size, dimension, trees)
    if shutil.disk_usage(folder).free < needed:
        raise ResourceError(
            f"no room for the index in {folder.parent} (ENOSPC): {math.ceil(needed / 1e6)} MB more are needed"
        )
    with bars("forest", size) as advance:
        build_forest(matrix, folder / FOREST_FILE, trees, advance)
    with bars("recall", None) as advance:
        return distances, measure_recall(matrix, folder / FOREST_FILE, trees, distances, advance)


def _measure_poincare(folder: Path, bars: Bars) -> Distances:
    """The hyperbolic distances of the vectors in ``folder``; there is no forest to build."""
    matrix: npt.NDArray[np.float32] = np.load(folder / VECTORS_FILE, mmap_mode="r").view(np.ndarray)
    with bars("distances", len(matrix)) as advance:
        return PoincareDistances(matrix).measure(matrix, advance)


def _file_entry(path: Path) -> FileEntry:
    path.chmod(0o644)  # Annoy's file would be private to its owner
    sync(path)
    return FileEntry(sha256_of(path), path.stat().st_size)


def _publish(folder: Path, output: str) -> None:
    """Makes the whole index in ``folder`` appear at ``output`` at once."""
    path = local_path(output)
    if path is None:
        manifest = join(output, MANIFEST_FILE)
        if exists(manifest):
            delete(manifest)
        for name in (*DATA_FILES, MANIFEST_FILE):
            if (folder / name).exists():
                upload(folder / name, join(output, name))
            elif exists(join(output, name)):
                delete(join(output, name))
        return
    folder.chmod(0o755)
    sync(folder / MANIFEST_FILE)
    sync(folder)
    if path.exists() and any(path.iterdir()):
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.old-", dir=path.absolute().parent) as old:
            previous = Path(old) / path.name
            path.rename(previous)
            try:
                folder.rename(path)
            except BaseException:
                previous.rename(path)
                raise
    else:
        folder.rename(path)
    sync(path.absolute().parent)


def _bars(progress: bool) -> Bars:
    """Makes progress bars: each a context manager that gives the function to advance it by."""

    @contextlib.contextmanager
    def bar(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
        # disable=None: no bar unless stderr is a terminal
        with tqdm(total=total, desc=what, unit=" words", disable=None if progress else True) as shown:
            yield shown.update

    return bar
