from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from beam_dp.embeddings import BuildReport
from beam_dp.embeddings.manifest import FORMAT_VERSION, Manifest, manifest_digest
from beam_dp.errors import IndexArtifactError


def test_round_trip_gives_the_same_value_and_bytes(toy: BuildReport) -> None:
    data = toy.manifest.to_bytes()
    assert Manifest.from_bytes(data, "m") == toy.manifest
    assert Manifest.from_bytes(data, "m").to_bytes() == data == (Path(toy.output) / "manifest.json").read_bytes()
    assert manifest_digest(data) == hashlib.sha256(data).hexdigest() == toy.digest


def test_the_manifest_says_what_the_index_is(toy: BuildReport) -> None:
    fields = json.loads(toy.manifest.to_bytes())
    assert (fields["format_version"], FORMAT_VERSION) == (1, 2)
    assert (fields["size"], fields["dimension"], fields["metric"]) == (400, 6, "euclidean")
    assert (fields["source"], fields["licence"]) == ("made up", "CC0")
    for name, entry in fields["files"].items():
        content = (Path(toy.output) / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert set(fields["files"]) == {"words.arrow", "vectors.npy", "index.ann"}
    annoy = fields["search"]["annoy"]
    assert annoy["trees"] == 3
    assert len({point["epsilon"] for point in annoy["recall_at_1"]}) == 3
    assert set(fields["distances"]) == {"diameter", "min_neighbour", "median_neighbour", "duplicate_vectors"}


def change(data: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(data), **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 3}, r"has format_version 3, this version of beam_dp reads up to 2: upgrade"),
        ({"format_version": 3, "size": None, "files": None}, "has format_version 3"),
        ({"format_version": None}, "has no format_version"),
        ({"format_version": True}, "has no format_version"),
        ({"format_version": 0}, "has no format_version"),
        ({"size": "400"}, r"is incomplete \(size\)"),
        ({"size": 1}, r"is incomplete \(size\)"),
        ({"dimension": 0}, r"is incomplete \(dimension\)"),
        ({"files": {}}, r"is incomplete \('words\.arrow'\)"),
        ({"search": {}}, r"is incomplete \(annoy\)"),
        ({"distances": {"diameter": 1}}, r"is incomplete \('min_neighbour'\)"),
        ({"metric": "cosine"}, "has the metric 'cosine', known are euclidean"),
    ],
)
def test_what_is_no_manifest_is_refused(toy: BuildReport, fields: dict[str, object], message: str) -> None:
    with pytest.raises(IndexArtifactError, match=message):
        Manifest.from_bytes(change(toy.manifest.to_bytes(), **fields), "here/manifest.json")


def test_a_wrong_sha256_field_is_refused(toy: BuildReport) -> None:
    fields = json.loads(toy.manifest.to_bytes())
    fields["files"]["index.ann"]["sha256"] = "abc"
    with pytest.raises(IndexArtifactError, match=r"is incomplete \(sha256 of index\.ann\)"):
        Manifest.from_bytes(json.dumps(fields).encode(), "m")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[1]", b"3"])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(IndexArtifactError, match=r"here/manifest\.json"):
        Manifest.from_bytes(data, "here/manifest.json")
