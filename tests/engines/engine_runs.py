"""The same jobs on any engine, and what they must have in common."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_servers import environment, submit

from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.embeddings import build_index, open_index, resolve_index

CANARY = "Xyzzy9Canary"
JOB = "import noise_free_job; noise_free_job.main()"
# At this epsilon the noise of a count rounds to nothing, and a partition of two units or more is always selected.
EPSILON = 1e5
# Of a certificate: several blocks.
WORDS = 600


@dataclass(frozen=True)
class Engine:
    """Where jobs run.

    Attributes:
        name: of the folders with its outputs.
        folder: of the inputs and of the outputs of all engines.
        flags: of the command lines.
        job_flags: Beam's own, which say the same.
    """

    name: str
    folder: Path
    flags: tuple[str, ...]
    job_flags: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.folder / self.name

    def line(self, module: str, output: str, *arguments: str) -> list[str]:
        """``python -m pipelines.MODULE`` with its output under `out`."""
        return [
            *(sys.executable, "-m", f"pipelines.{module}", f"--output={self.out / output}"),
            *arguments,
            *self.flags,
        ]

    def command(self, module: str, output: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """That line, run to its end."""
        return submit(self.line(module, output, *arguments), environment(self.folder))


@dataclass(frozen=True)
class Published:
    """An output.

    Attributes:
        lines: of all shards, in their order.
        ledger: in the manifest.
        said: on standard output.
    """

    lines: list[str]
    ledger: dict[str, Any]
    said: str

    @classmethod
    def of(cls, folder: Path, output: str, said: str) -> Published:
        manifest = json.loads((folder / f"{output}.manifest.json").read_text())
        shards = [folder / shard["name"] for shard in manifest["shards"]]
        assert sorted(shards) == sorted(folder.glob(f"{output}-*-of-*"))
        lines = [line for shard in shards for line in shard.read_text(encoding="utf-8").splitlines()]
        return cls(lines, manifest["ledger"], said)

    @property
    def counted(self) -> str:
        """The line of standard output that has the counters of all workers in it."""
        return self.said.splitlines()[-2]


@functools.cache
def published(engine: Engine, module: str, output: str, *arguments: str) -> Published:
    """What a command line that succeeds publishes; it runs once."""
    done = engine.command(module, output, *arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return Published.of(engine.out, output, done.stdout)


@functools.cache
def noise_free(engine: Engine) -> tuple[Published, Published]:
    """The texts and the items that the noise-free job publishes; it runs once."""
    command = [sys.executable, "-c", JOB, str(engine.folder), f"{engine.name}/job", *engine.job_flags]
    done = submit(command, environment(engine.folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return Published.of(engine.out / "job", "texts", ""), Published.of(engine.out / "job", "items", "")


def check_noise_free(engine: Engine, local: Engine) -> None:
    """Without noise two engines give the same, row by row, under the same ledger."""
    for found, expected in zip(noise_free(engine), noise_free(local), strict=True):
        assert found.lines == expected.lines
        assert found.ledger == expected.ledger
        assert "NOT PRIVATE" in json.dumps(found.ledger)
    texts, items = noise_free(engine)
    assert len(texts.lines) > 250
    assert sum(json.loads(line)["count"] for line in items.lines) == len(texts.lines)


def check_texts(engine: Engine, local: Engine, source: Path) -> None:
    """privatize_text keeps the number of rows, of words in each, and promises the same."""
    column = ("--text_column=utterance",) if source.suffix == ".tsv" else ()
    arguments = ("privatize_text", source.stem, f"--input={source}", "--epsilon=8", *column)
    found, expected = published(engine, *arguments), published(local, *arguments)
    assert found.ledger == expected.ledger
    assert found.counted == expected.counted
    assert [len(line.split()) for line in found.lines] == [len(line.split()) for line in expected.lines]
    assert found.lines != expected.lines


def check_items(engine: Engine, local: Engine, source: Path, unit: str, by: str) -> None:
    """aggregate releases the same partitions and promises the same; at this epsilon the counts are exact."""
    bounds = ("--max_partitions=8", "--max_rows_per_partition=8")
    flags = (f"--privacy_unit={unit}", f"--by={by}", "--metrics=count", f"--epsilon={EPSILON}", "--delta=1e-6")
    arguments = ("aggregate", f"{by}s", f"--input={source}", *flags, *bounds)
    found, expected = published(engine, *arguments), published(local, *arguments)
    assert found.ledger == expected.ledger
    assert found.counted == expected.counted
    assert found.lines == expected.lines
    assert len(found.lines) > 5


def check_refusal(engine: Engine, local: Engine) -> None:
    """A row that a worker cannot read ends both alike: status 2, the same words, nothing published, no data shown."""
    source = engine.folder / f"broken-{CANARY}.jsonl"
    source.write_text(f'{{"text": "play music"}}\n{{"text": {CANARY}\n', encoding="utf-8")
    ended = [each.command("privatize_text", "broken", f"--input={source}", "--epsilon=8") for each in (engine, local)]
    last = [done.stderr.strip().splitlines()[-1] for done in ended]
    assert [done.returncode for done in ended] == [2, 2], last
    assert last[0] == last[1]
    assert last[0].startswith("error: ")
    assert not list(engine.out.glob("broken*"))
    assert "Traceback" not in ended[0].stderr


def check_budget(engine: Engine, local: Engine) -> None:
    """A run is charged before it starts and committed by its last stage, for the same on both."""
    store = BudgetStore(f"sqlite:///{engine.folder}/{engine.name}.db")
    limit = Limit(
        model="metric", privacy_unit="word", epsilon=20, metric="euclidean", index_digest=resolve_index().digest
    )
    for each in (engine, local):
        store.create(each.name, limit)
        flags = (f"--budget_store={store.url}", f"--dataset={each.name}", "--run_id=first", "--epsilon=8")
        source = engine.folder / "utterances.txt"
        published(each, "privatize_text", f"charged-{engine.name}", f"--input={source}", *flags)
    kinds = [[record.kind for record in store.history(each.name)] for each in (engine, local)]
    assert kinds[0] == kinds[1]
    runs = [store.account(each.name).runs["first"] for each in (engine, local)]
    assert [run.state for run in runs] == ["committed", "committed"]
    assert (runs[0].charges, runs[0].plan_hash) == (runs[1].charges, runs[1].plan_hash)
    assert list(store.verify())


def check_certificate(engine: Engine, local: Engine) -> None:
    """A certificate is the same, byte by byte, wherever its blocks of words were compared."""
    small = engine.folder / f"small-{engine.name}"
    lines = zip(open_index(resolve_index()).words.to_pylist(), open_index(resolve_index()).vectors, strict=True)
    rows = [" ".join([word, *map(repr, map(float, vector))]) for word, vector in itertools.islice(lines, WORDS)]
    small.with_suffix(".txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    build_index(str(small.with_suffix(".txt")), str(small), trees=1, progress=False)
    found = []
    for each in (engine, local):
        each.out.mkdir(exist_ok=True)
        output = f"certificate-{engine.name}.json"
        done = each.command("certify", output, f"--index={small}", "--mechanism=exponential", "--epsilon=8")
        assert done.returncode == 0, (done.stdout, done.stderr)
        found.append((each.out / output).read_text(encoding="utf-8"))
    assert found[0] == found[1]
    certificate = json.loads(found[0])
    assert (certificate["pairs"], certificate["holds"]) == (WORDS * (WORDS - 1), True)


def workers(engine: Engine) -> list[dict[str, Any]]:
    """What the processes that ran the noise-free job noted."""
    notes = (engine.out / "job" / "workers").iterdir()
    return [json.loads(line) for file in notes for line in file.read_text().splitlines()]
