"""The files around a pipeline: its input in every format, its output, and a secret that is only in the former."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CANARY = "Xyzzy9Canary"
FORMATS = ("jsonl", "csv", "tsv", "parquet")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of the format that the name says, gzipped where it says that too; null is empty in csv and tsv."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet":
        # Writers put names and statistics of all columns into metadata.
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({"note": CANARY}), path)
        return path
    with (gzip.open if path.name.endswith(".gz") else open)(path, "wt", newline="", encoding="utf-8") as stream:
        if kind == "jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read_output(prefix: Path) -> list[dict[str, Any]]:
    """The published rows, with values of the types that they have in parquet."""
    manifest = json.loads(Path(f"{prefix}.manifest.json").read_text())
    rows: list[dict[str, Any]] = []
    for shard in manifest["shards"]:
        path = prefix.parent / shard["name"]
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            rows += map(json.loads, path.read_text(encoding="utf-8").splitlines())
        else:
            with path.open(newline="", encoding="utf-8") as stream:
                texts = csv.DictReader(stream, delimiter="," if path.suffix == ".csv" else "\t")
                rows += [{name: _value(text) for name, text in row.items()} for row in texts]
    assert manifest["rows"] == len(rows)
    return rows


def _value(text: str) -> Any:
    if text == "":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def leftovers(folder: Path) -> list[str]:
    """The names of the files in a folder, the inputs apart."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("in."))


def holds_canary(folder: Path) -> list[str]:
    """Files under a folder, the inputs apart, with the secret in any case, in name or content."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("in."):
            content = path.read_bytes() + path.name.encode()
            if CANARY.lower().encode() in content.lower():
                found.append(path.name)
    return found
