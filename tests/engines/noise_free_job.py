"""Texts and tables in one graph without noise, so that two engines must give the same: a door that only tests have.

    python -c "import noise_free_job; noise_free_job.main()" FOLDER RUN [--flag=value ...]

Reads FOLDER/in-*.jsonl (user, item, amount, text) and publishes FOLDER/RUN/texts and FOLDER/RUN/items. The index is
fetched from FOLDER/shelf/index through a file system of its own, which notes each open in FOLDER/opened; every worker
notes in FOLDER/RUN/workers how it holds the index. Not run as ``__main__``, so that workers can import what is here.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.options.pipeline_options import PipelineOptions
from exact import aggregate

from beam_dp import Count, Ledger, Mean, PrivatizeText, Quantiles, ReadBatches, Sum, WriteBatches
from beam_dp.aggregate.ordered import InKeyOrder
from beam_dp.embeddings import EmbeddingIndex, IndexRef, open_index, resolve_index
from beam_dp.guarantees import MetricGuarantee

SPLIT_BYTES = 1 << 12
BATCH_ROWS = 16


class EngineShelf(LocalFileSystem):
    """Local files under a scheme that the package takes for remote; notes each open."""

    @classmethod
    def scheme(cls) -> str:
        """As in ``engine-shelf:///folder/shelf/index``."""
        return "engine-shelf"

    def open(self, path: str, *args: Any, **kwargs: Any) -> BinaryIO:
        """As a local file."""
        local = Path(path.removeprefix("engine-shelf://"))
        with (local.parents[2] / "opened").open("a") as log:
            log.write(f"{os.getpid()} {local.name}\n")
        return super().open(str(local), *args, **kwargs)


@dataclass(frozen=True)
class Identity:
    """Every word stays itself."""

    name: ClassVar[str] = "identity"

    def guarantee(self, space: EmbeddingIndex) -> MetricGuarantee:
        return MetricGuarantee(
            epsilon=None, basis="none", reason="NOT PRIVATE: test", metric=space.metric, index_digest=space.digest
        )

    def bind(self, space: EmbeddingIndex) -> Identity:
        return self

    def law_digest(self) -> None:
        return None

    def sample(self, ids: npt.NDArray[np.int32], rng: np.random.Generator) -> npt.NDArray[np.int32]:
        return ids


class Witness(beam.DoFn):
    """Notes, for each batch, which process had it, and by which object and mapped file it has the index."""

    def __init__(self, index: IndexRef, folder: Path) -> None:
        self._index = index
        self._folder = folder

    def process(self, batch: pa.RecordBatch) -> Any:
        index = open_index(self._index)
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        mapped = sorted(
            {(kind, node, path) for _, kind, _, _, node, path, *_ in map(_padded, maps) if "vectors" in path}
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"{os.getpid()}-{threading.get_ident()}").open("a") as notes:
            notes.write(json.dumps({"pid": os.getpid(), "object": id(index), "mapped": mapped}) + "\n")
        yield batch


def _padded(fields: list[str]) -> list[str]:
    return fields if len(fields) > 5 else [*fields, ""]


def main() -> None:
    """Runs it; the process ends with an exception where the job fails."""
    folder, run, *flags = sys.argv[1:]
    out = Path(folder) / run
    index = resolve_index(f"engine-shelf://{folder}/shelf/index")
    ledger = Ledger()
    with ledger.pipeline(PipelineOptions(flags)) as pipeline:
        rows = pipeline | "Read" >> ReadBatches(
            f"{folder}/in-*.jsonl",
            columns=("user", "item", "amount", "text"),
            text_column="text",
            keys=("user", "item"),
            numbers=("amount",),
            batch_rows=BATCH_ROWS,
            split_bytes=SPLIT_BYTES,
        )
        texts = rows | "Texts" >> PrivatizeText(Identity(), index=index, keep_columns=("user",))
        seen = texts | "Witness" >> beam.ParDo(Witness(index, out / "workers")).with_output_types(pa.RecordBatch)
        metrics = [Count(), Sum("amount", 0, 100), Mean("amount", 0, 100), Quantiles("amount", 0, 100, [0.5])]
        items = rows | "Items" >> aggregate("item", metrics=metrics, buckets=8) | "Order" >> InKeyOrder(("item",))
        seen | "WriteTexts" >> WriteBatches(str(out / "texts"), format="jsonl", run_id="r")
        items | "WriteItems" >> WriteBatches(str(out / "items"), format="jsonl", run_id="r")
