"""What the tests of this folder share: running a pipeline, and looking at what it left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp.io import ReadBatches, WriteBatches
from beam_dp.io.files import InputFile
from beam_dp.io.read import BATCHES, plan_pieces, read_piece
from beam_dp.io.source import ReadSpec


def pipeline(*flags: str) -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *flags]))


def copy(source: str | Path, prefix: str | Path, into: str, *, flags: Sequence[str] = (), **options: Any) -> Any:
    """Reads and writes with nothing in between; options of both transforms mixed. Returns the pipeline result."""
    names = {"overwrite", "max_rejects", "plan", "ledger_path", "run_id"}
    write = {"run_id": "run"} | {name: value for name, value in options.items() if name in names}
    read = {name: value for name, value in options.items() if name not in names}
    running = pipeline(*flags)
    reading = ReadBatches(str(source), **read)
    running | reading.with_rejects() | WriteBatches(str(prefix), format=into, inputs=reading.paths, **write)
    result = running.run()
    result.wait_until_finish()
    return result


def shards(prefix: str | Path) -> list[str]:
    return [str(path) for path in sorted(Path(prefix).parent.glob(f"{Path(prefix).name}-[0-9]*-of-*"))]


def rejects(prefix: str | Path) -> list[dict[str, Any]]:
    found = sorted(Path(prefix).parent.glob(f"{Path(prefix).name}-rejects-*"))
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def manifest(prefix: str | Path) -> dict[str, Any]:
    return json.loads(Path(f"{prefix}.manifest.json").read_text())


def content(prefix: str | Path) -> str:
    """The text of all shards, one after the other."""
    return "".join(Path(path).read_bytes().decode() for path in shards(prefix))


def parquet_rows(prefix: str | Path) -> list[dict[str, Any]]:
    return [row for path in shards(prefix) for row in pq.read_table(path).to_pylist()]


def spec_of(*columns: str, **changes: Any) -> ReadSpec:
    text_column = columns[0] if columns else None
    values = {
        "columns": columns,
        "text_column": text_column,
        "batch_rows": 1000,
        "batch_bytes": 1 << 20,
        "max_row_bytes": 1 << 26,
    }
    return ReadSpec(**(values | changes))


def read_file(
    path: Path, format: str, spec: ReadSpec, split_bytes: int = 1 << 30
) -> tuple[list[dict[str, Any]], list[tuple[str, int]]]:
    """All rows and all (reason, position) of a file, read piece by piece without Beam."""
    rows: list[dict[str, Any]] = []
    rejected: list[tuple[str, int]] = []
    for tag, batch in read_batches(path, format, spec, split_bytes):
        if tag == BATCHES:
            rows += batch.to_pylist()
        else:
            rejected += [(row["reason"], row["position"]) for row in batch.to_pylist()]
    return rows, rejected


def read_batches(
    path: Path, format: str, spec: ReadSpec, split_bytes: int = 1 << 30
) -> list[tuple[str, pa.RecordBatch]]:
    file = InputFile(path=str(path), name=path.name, size=path.stat().st_size)
    return [item for piece in plan_pieces([file], format, split_bytes) for item in read_piece(piece, format, spec)]
