"""The manifest of an index: what the artifact is, as a value and as the bytes whose sha256 names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from beam_dp.errors import IndexArtifactError

# 2: an index may have no Annoy forest. One that has a forest is still written as 1, and so read by older versions.
FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
WORDS_FILE = "words.arrow"
VECTORS_FILE = "vectors.npy"
FOREST_FILE = "index.ann"
DATA_FILES = (WORDS_FILE, VECTORS_FILE, FOREST_FILE)
METRICS = ("euclidean", "poincare")
_DIGEST_LENGTH = 64


@dataclass(frozen=True)
class FileEntry:
    """A data file of the artifact: ``sha256`` (hex) and size in ``bytes``."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class RecallPoint:
    """Measured recall@1 of Annoy at one ``epsilon`` of multivariate Laplace noise and one ``search_k``."""

    epsilon: float
    search_k: int
    recall: float


@dataclass(frozen=True, kw_only=True)
class ForestRecord:
    """How the Annoy forest was built and how good it is on noisy queries.

    Attributes:
        trees: number of trees.
        search_k: the candidates per query that `open_index` uses.
        queries: how many noisy queries each recall was measured on.
        recall_at_1: share of them for which Annoy finds the exactly nearest word.
    """

    trees: int
    search_k: int
    queries: int
    recall_at_1: tuple[RecallPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Distances between the vectors, in the metric of the index.

    Attributes:
        diameter: an upper bound of the largest distance, rounded up.
        min_neighbour: the smallest distance between two words, exact; 0 with duplicate vectors.
        median_neighbour: the median over the words of the distance to the nearest other word, exact.
        duplicate_vectors: number of words whose vector equals that of an earlier word.
    """

    diameter: float
    min_neighbour: float
    median_neighbour: float
    duplicate_vectors: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an index is: the content of its ``manifest.json``.

    Attributes:
        size: number of words V.
        dimension: d.
        metric: the metric of the distances: ``euclidean``, or ``poincare``, the Poincaré ball of curvature -1.
        files: the data files by name.
        annoy: the approximate search; None with ``poincare``, where the search is always exact.
        distances: see `Distances`.
        dropped: how many words of the source were left out, by reason.
        source: where the vectors come from.
        licence: under which licence.
    """

    size: int
    dimension: int
    metric: str
    files: Mapping[str, FileEntry]
    annoy: ForestRecord | None
    distances: Distances
    dropped: Mapping[str, int]
    source: str
    licence: str

    def to_bytes(self) -> bytes:
        """The manifest as JSON: the same value gives the same bytes."""
        fields = {
            "format_version": FORMAT_VERSION if self.annoy is None else 1,
            "size": self.size,
            "dimension": self.dimension,
            "metric": self.metric,
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "search": {} if self.annoy is None else {"annoy": asdict(self.annoy)},
            "distances": asdict(self.distances),
            "dropped": dict(self.dropped),
            "source": self.source,
            "licence": self.licence,
        }
        return (json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """The manifest in ``data``; ``where`` names it in errors.

        Raises:
            IndexArtifactError: not a manifest, or of a version that this package does not read.
        """
        try:
            fields = json.loads(data)
        except ValueError:
            raise IndexArtifactError(f"{where} is not JSON: build or copy the index again") from None
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise IndexArtifactError(f"{where} has no format_version: it is not the manifest of an index")
        if version > FORMAT_VERSION:
            raise IndexArtifactError(
                f"{where} has format_version {version}, this version of beam_dp reads up to {FORMAT_VERSION}: "
                "upgrade beam_dp or build the index with this version"
            )
        try:
            manifest = _from_fields(fields)
        except (KeyError, TypeError, ValueError) as error:
            raise IndexArtifactError(f"{where} is incomplete ({error}): build the index again") from None
        if manifest.metric not in METRICS:
            raise IndexArtifactError(f"{where} has the metric {manifest.metric!r}, known are {', '.join(METRICS)}")
        return manifest


def manifest_digest(data: bytes) -> str:
    """The digest of an index: sha256 (64 hex) of the bytes of its manifest."""
    return hashlib.sha256(data).hexdigest()


def _from_fields(fields: dict[str, Any]) -> Manifest:
    annoy, distances = fields["search"].get("annoy"), fields["distances"]
    if (annoy is None) != (fields["metric"] == "poincare"):
        raise ValueError("annoy")
    return Manifest(
        size=_whole(fields["size"], "size", 2),
        dimension=_whole(fields["dimension"], "dimension", 1),
        metric=str(fields["metric"]),
        files={
            name: _file_entry(fields["files"][name], name)
            for name in DATA_FILES
            if annoy is not None or name != FOREST_FILE
        },
        annoy=None if annoy is None else _forest_record(annoy),
        distances=Distances(
            diameter=float(distances["diameter"]),
            min_neighbour=float(distances["min_neighbour"]),
            median_neighbour=float(distances["median_neighbour"]),
            duplicate_vectors=_whole(distances["duplicate_vectors"], "duplicate_vectors", 0),
        ),
        dropped={str(reason): _whole(count, "dropped", 0) for reason, count in fields["dropped"].items()},
        source=str(fields["source"]),
        licence=str(fields["licence"]),
    )


def _forest_record(fields: dict[str, Any]) -> ForestRecord:
    return ForestRecord(
        trees=_whole(fields["trees"], "trees", 1),
        search_k=_whole(fields["search_k"], "search_k", 1),
        queries=_whole(fields["queries"], "queries", 1),
        recall_at_1=tuple(
            RecallPoint(float(point["epsilon"]), int(point["search_k"]), float(point["recall"]))
            for point in fields["recall_at_1"]
        ),
    )


def _file_entry(fields: dict[str, Any], name: str) -> FileEntry:
    digest = fields["sha256"]
    if not isinstance(digest, str) or len(digest) != _DIGEST_LENGTH:
        raise ValueError(f"sha256 of {name}")
    return FileEntry(sha256=digest, bytes=_whole(fields["bytes"], f"bytes of {name}", 0))


def _whole(value: object, name: str, minimum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(name)
    return value
