"""The publish and the staging on a local folder, interrupted everywhere."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.io.localfilesystem import LocalFileSystem
from io_support import content, manifest, parquet_rows, rejects, shards

from beam_dp.errors import ArgumentError, InputError, ResourceError
from beam_dp.io import WriteBatches, with_position
from beam_dp.io import publish as publish_module
from beam_dp.io.batches import Position
from beam_dp.io.publish import REJECTS, ROWS, Staged, Target, discard_staging, publish
from beam_dp.io.rejects import Reject, rejects_batch
from beam_dp.io.stage import Stager, stage_empty

LEDGER = {"schema_version": 1, "entries": []}


class KilledError(BaseException):
    """Stands for the end of the process."""


def target(folder: Path, **changes: Any) -> Target:
    values: dict[str, Any] = {
        "prefix": f"{folder}/out",
        "format": "text",
        "run_id": "run",
        "attempt": "a1",
        "overwrite": False,
        "max_rejects": 0,
        "ledger_path": None,
    }
    return Target(**(values | changes))


def batch_at(piece: int, offset: int, *texts: str) -> pa.RecordBatch:
    return with_position(pa.record_batch({"text": list(texts)}), Position(0, offset, piece))


def stage(where: Target, *batches: pa.RecordBatch, kind: str = ROWS) -> list[Staged]:
    stager = Stager(where, kind)
    for batch in batches:
        stager.add(batch)
    return stager.finish()


def three(where: Target, mark: str = "") -> list[Staged]:
    """Three shards, staged in another order than they have."""
    return stage(
        where, batch_at(2, 20, f"e{mark}"), batch_at(0, 0, f"a{mark}", f"b{mark}"), batch_at(1, 10, f"c{mark}")
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_whole(prefix: str) -> bool:
    """Whether the manifest tells the truth about what is there."""
    described = manifest(prefix)["shards"] + manifest(prefix)["reject_shards"]
    folder = Path(prefix).parent
    return all(hashlib.sha256((folder / item["name"]).read_bytes()).hexdigest() == item["sha256"] for item in described)


def test_what_a_published_output_looks_like(tmp_path):
    where = target(tmp_path, ledger_path=f"{tmp_path}/ledger.json", max_rejects=2)
    bad = stage(where, rejects_batch([Reject("not_text", 3), Reject("not_text", 9)], "in.txt"), kind=REJECTS)
    result = publish(where, three(where) + bad, LEDGER)
    shards_there = [f"out-0000{i}-of-00003.txt" for i in range(3)]
    assert names(tmp_path) == ["ledger.json", *shards_there, "out-rejects-00000-of-00001.jsonl", "out.manifest.json"]
    assert content(where.prefix) == "a\nb\nc\ne\n"
    assert manifest(where.prefix) == result
    assert is_whole(where.prefix)
    assert (result["format_version"], result["rows"], result["rejects"]) == (1, 4, {"not_text": 2})
    assert [(item["rows"], item["bytes"]) for item in result["shards"]] == [(2, 4), (1, 2), (1, 2)]
    assert result["ledger"] == LEDGER == json.loads((tmp_path / "ledger.json").read_text())
    assert rejects(where.prefix) == [{"reason": "not_text", "source": "in.txt", "position": p} for p in (3, 9)]


def test_batches_of_one_piece_share_a_shard_whatever_comes_between(tmp_path):
    where = target(tmp_path)
    staged = stage(where, *[batch_at(piece, offset, f"{piece}.{offset}") for offset in range(5) for piece in range(3)])
    assert len(staged) == 3
    publish(where, staged, None)
    assert [Path(path).read_text() for path in shards(where.prefix)] == [
        "".join(f"{piece}.{offset}\n" for offset in range(5)) for piece in range(3)
    ]


def test_few_shards_are_open_at_a_time_and_no_row_is_lost(tmp_path):
    where = target(tmp_path)
    order = [(piece, offset) for offset in range(3) for piece in range(20)]
    staged = stage(where, *[batch_at(piece, offset + 10 * piece, f"{piece}.{offset}") for piece, offset in order])
    publish(where, staged, None)
    assert sorted(content(where.prefix).split()) == sorted(f"{piece}.{offset}" for piece, offset in order)


def test_batches_without_position_are_written_too(tmp_path):
    where = target(tmp_path)
    publish(where, stage(where, pa.record_batch({"text": ["a"]}), pa.record_batch({"text": ["b"]})), None)
    assert content(where.prefix) == "a\nb\n"


def test_parquet_batches_of_other_types_fit_or_get_a_shard_of_their_own(tmp_path):
    where = target(tmp_path, format="parquet")
    columns = [pa.array([1.5]), pa.array([2], pa.int64()), pa.nulls(1), pa.array(["x"]), pa.array([2**60])]
    batches = [
        with_position(pa.record_batch([column], names=["v"]), Position(0, offset, 0))
        for offset, column in enumerate(columns)
    ]
    publish(where, stage(where, *batches), None)
    assert [row["v"] for row in parquet_rows(where.prefix)] == [1.5, 2.0, None, "x", 2**60]
    assert [pq.read_schema(path).field("v").type for path in shards(where.prefix)] == [
        pa.float64(),
        pa.string(),
        pa.int64(),
    ]


def test_only_one_shard_without_rows_and_only_if_there_are_no_others(tmp_path):
    where = target(tmp_path)
    empty = pa.record_batch([pa.array([], pa.string())], names=["text"])
    nothing = stage(where, empty, empty) + stage(where, empty)
    assert len(nothing) == 2
    assert publish(where, nothing, None)["shards"][0]["rows"] == 0
    assert len(shards(where.prefix)) == 1
    other = target(tmp_path, prefix=f"{tmp_path}/other")
    publish(other, stage(other, empty) + three(other), None)
    assert len(shards(other.prefix)) == 3


@pytest.mark.parametrize("allowed", [0, 2])
def test_too_many_rejects_publish_nothing(tmp_path, allowed):
    where = target(tmp_path, max_rejects=allowed)
    bad = [Reject("not_text", 7), Reject("malformed_json", 9), Reject("not_text", 12)]
    staged = three(where) + stage(where, rejects_batch(bad, "in.jsonl"), kind=REJECTS)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            publish(where, staged, None)
        assert str(caught.value) == (
            f"rejected rows: 3, more than max_rejects={allowed} (malformed_json: 1, first in in.jsonl at 9; "
            "not_text: 2, first in in.jsonl at 7); nothing was published"
        )
        assert names(tmp_path) == []


def test_an_existing_output_is_refused_at_construction_and_before_the_publish(tmp_path):
    first, second = target(tmp_path), target(tmp_path, run_id="other", attempt="a2")
    staged = three(second, "2")
    publish(first, three(first), None)
    with pytest.raises(ResourceError, match=r"output already exists: out\.manifest\.json and 3 more; .*--overwrite"):
        publish(second, staged, None)
    with pytest.raises(ResourceError, match="output already exists"):
        WriteBatches(first.prefix, format="text", run_id="r")
    assert content(first.prefix) == "a\nb\nc\ne\n"
    (tmp_path / "out.manifest.json").unlink()
    with pytest.raises(ResourceError, match=r"out-00000-of-00003\.txt and 2 more"):
        WriteBatches(first.prefix, format="text", run_id="r")


def test_overwrite_removes_everything_of_the_earlier_run_and_nothing_else(tmp_path):
    first = target(tmp_path, max_rejects=1)
    publish(first, three(first) + stage(first, rejects_batch([Reject("not_text", 7)], "in"), kind=REJECTS), None)
    for other in ("out-00000-of-00003.bak", "outer-00000-of-00001.txt", "out-notes.txt", "out-1-of-2.txt"):
        (tmp_path / other).write_text("mine")
    second = target(tmp_path, format="jsonl", overwrite=True, attempt="a2")
    publish(second, stage(second, batch_at(0, 0, "new")), None)
    assert names(tmp_path) == sorted(
        [
            "out-00000-of-00001.jsonl",
            "out.manifest.json",
            "out-00000-of-00003.bak",
            "outer-00000-of-00001.txt",
            "out-notes.txt",
            "out-1-of-2.txt",
        ]
    )
    assert manifest(second.prefix)["attempt"] == "a2"


def test_the_same_run_id_again_is_another_run(tmp_path):
    for attempt in ("a1", "a2"):
        where = target(tmp_path, overwrite=True, attempt=attempt)
        publish(where, three(where, attempt), None)
        assert content(where.prefix) == f"a{attempt}\nb{attempt}\nc{attempt}\ne{attempt}\n"


def test_left_over_staging_of_a_dead_run_does_not_disturb(tmp_path):
    dead = target(tmp_path, attempt="dead")
    three(dead, "dead")
    alive = target(tmp_path)
    publish(alive, three(alive), None)
    assert content(alive.prefix) == "a\nb\nc\ne\n"
    assert not Path(alive.staging).exists()


def test_publishing_again_after_success_changes_nothing(tmp_path):
    where = target(tmp_path)
    staged = three(where)
    first = publish(where, staged, LEDGER)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert publish(where, staged, LEDGER) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def _killing(monkeypatch, at: int, after: bool) -> list[int]:
    """Kills the process at the ``at``-th change of the file system, before or after it; returns the counter."""
    count = [0]

    def wrap(function):
        def wrapped(*args, **options):
            count[0] += 1
            if count[0] == at and not after:
                raise KilledError
            result = function(*args, **options)
            if count[0] == at:
                raise KilledError
            return result

        return wrapped

    for module, name in ((os, "rename"), (os, "remove"), (shutil, "rmtree"), (LocalFileSystem, "create")):
        monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    return count


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("restaged", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_anywhere_a_retry_converges(tmp_path, monkeypatch, overwrite, restaged, after):
    """The retry gets the same shards, or (as runners do that start again from the source) newly staged ones."""
    killed = 0
    for at in range(1, 50):
        folder = tmp_path / str(at)
        folder.mkdir()
        if overwrite:
            old = target(folder, format="text", attempt="old", run_id="old")
            publish(old, [*three(old, "old"), *stage(old, batch_at(3, 30, "old"))], None)
        where = target(folder, overwrite=overwrite, ledger_path=f"{folder}/ledger.json", max_rejects=1)
        bad = stage(where, rejects_batch([Reject("not_text", 7)], "in"), kind=REJECTS)
        staged = three(where) + bad
        with monkeypatch.context() as patch:
            _killing(patch, at, after)
            try:
                publish(where, staged, LEDGER)
            except KilledError:
                killed += 1
            else:
                break
        if Path(where.manifest_path).exists():
            assert is_whole(where.prefix)
            assert manifest(where.prefix)["attempt"] in ("old", "a1")
        if restaged:
            staged = three(where, "") + stage(where, rejects_batch([Reject("not_text", 7)], "in"), kind=REJECTS)
        publish(where, staged, LEDGER)
        assert content(where.prefix) == "a\nb\nc\ne\n"
        assert is_whole(where.prefix)
        assert manifest(where.prefix)["attempt"] == "a1"
        assert len(rejects(where.prefix)) == 1
        shards_there = [f"out-0000{i}-of-00003.txt" for i in range(3)]
        assert names(folder) == ["ledger.json", *shards_there, "out-rejects-00000-of-00001.jsonl", "out.manifest.json"]
    assert killed >= 9


def test_a_staged_shard_that_vanished_is_not_passed_over(tmp_path):
    where = target(tmp_path)
    staged = three(where)
    Path(staged[1].path).unlink()
    with pytest.raises(ResourceError, match=r"a staged shard is gone from out\.tmp-run"):
        publish(where, staged, None)
    assert shards(where.prefix) == []


def test_a_move_that_fails_leaves_no_half_output(tmp_path, monkeypatch):
    where = target(tmp_path)
    staged = three(where)
    rename = os.rename

    def full(source, final):
        if final.endswith("00002-of-00003.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, final)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(
            ResourceError, match=rf"^no space left on device, while writing {tmp_path}/out-.*; free some space$"
        ):
            publish(where, staged, None)
    assert shards(where.prefix) == []
    assert not Path(where.manifest_path).exists()
    publish(where, staged, None)
    assert content(where.prefix) == "a\nb\nc\ne\n"


@pytest.mark.parametrize("broken", ["ledger.json", "out.manifest.json"])
@pytest.mark.parametrize("moved_first", [False, True])
def test_a_ledger_or_manifest_that_cannot_be_moved_takes_the_shards_back(tmp_path, monkeypatch, broken, moved_first):
    where = target(tmp_path, ledger_path=f"{tmp_path}/ledger.json")
    staged = three(where)
    rename = os.rename

    def full(source, final):
        if Path(final).name == broken:
            if moved_first:
                rename(source, final)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        rename(source, final)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(ResourceError, match=rf"while writing {tmp_path}/{broken}; free some space$"):
            publish(where, staged, LEDGER)
    assert names(tmp_path) == ["out.tmp-run"]
    assert all(Path(item.path).exists() for item in staged)
    publish(where, staged, LEDGER)
    assert content(where.prefix) == "a\nb\nc\ne\n"
    assert json.loads((tmp_path / "ledger.json").read_text()) == LEDGER


def test_a_ledger_that_cannot_be_written_costs_no_earlier_output(tmp_path):
    first = target(tmp_path)
    publish(first, three(first), None)
    before = names(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for ledger_path in (f"{tmp_path}/folder", f"{tmp_path}/file/ledger.json"):
        where = target(tmp_path, overwrite=True, attempt="a2", ledger_path=ledger_path)
        with pytest.raises(ResourceError, match=rf"directory, while writing {ledger_path}|exists, while writing"):
            publish(where, three(where, "2"), LEDGER)
        discard_staging(where.prefix, where.run_id, where.ledger_path)
        assert content(first.prefix) == "a\nb\nc\ne\n"
        assert is_whole(first.prefix)
    assert names(tmp_path) == sorted([*before, "file", "folder"])


def test_a_ledger_that_appears_during_the_run_is_not_overwritten(tmp_path):
    where = target(tmp_path, ledger_path=f"{tmp_path}/ledger.json")
    staged = three(where)
    (tmp_path / "ledger.json").write_text("mine")
    with pytest.raises(ResourceError, match=r"^ledger already exists: ledger\.json; choose another ledger or pass"):
        publish(where, staged, LEDGER)
    assert (tmp_path / "ledger.json").read_text() == "mine"
    assert shards(where.prefix) == []


def test_discarding_removes_what_waits_for_the_publish_and_nothing_else(tmp_path):
    where = target(tmp_path, ledger_path=f"{tmp_path}/ledger.json")
    three(where)
    for name in ("ledger.json.tmp-run", "ledger.json", "ledger.json.tmp-other", "out.tmp"):
        (tmp_path / name).write_text("")
    discard_staging(where.prefix, "run", where.ledger_path)
    discard_staging(where.prefix, "run", where.ledger_path)
    assert names(tmp_path) == ["ledger.json", "ledger.json.tmp-other", "out.tmp"]


@pytest.mark.parametrize("damage", ["", "[]", "{", "null"])
def test_a_manifest_that_is_no_manifest_is_overwritten(tmp_path, damage):
    (tmp_path / "out.manifest.json").write_text(damage)
    where = target(tmp_path, overwrite=True)
    publish(where, three(where), None)
    assert is_whole(where.prefix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": "/tmp/a*"}, "^output must be"),
        ({"prefix": "/tmp/a/"}, "^output must be"),
        ({"prefix": ""}, "^output must be"),
        ({"prefix": None}, "^output must be"),
        ({"ledger_path": "/tmp/[x].json"}, "ledger_path"),
        ({"run_id": "../x"}, "run_id"),
        ({"run_id": ""}, "run_id"),
        ({"run_id": "a b"}, "run_id"),
        ({"run_id": "a" * 65}, "1 to 64"),
        ({"prefix": "nosuch://bucket/out"}, "^output: no file system is installed for nosuch://bucket/out"),
        ({"ledger_path": "nosuch://bucket/l"}, r"^--ledger \(ledger_path\): no file system is installed"),
    ],
)
def test_targets_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ArgumentError, match=message):
        target(tmp_path, **changes)


def test_relative_prefixes_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = target(tmp_path, prefix="out", ledger_path="ledger.json")
    assert (where.prefix, where.ledger_path) == (f"{tmp_path}/out", f"{tmp_path}/ledger.json")
    publish(where, [stage_empty(where, pa.schema([("text", pa.string())]))], LEDGER)
    assert names(tmp_path) == ["ledger.json", "out-00000-of-00001.txt", "out.manifest.json"]


def test_staging_into_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"(not a directory|file exists), while writing .*/file/out$"):
        three(target(tmp_path / "file"))


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("moment", ["existing_output", "_remove", "_move", "write_json"])
def test_a_twin_attempt_that_comes_first_keeps_its_output(tmp_path, monkeypatch, moment, overwrite):
    """Runners may work on the publish in two places: whichever is late must not undo what the other one did."""
    if overwrite:
        publish(target(tmp_path, attempt="a0"), three(target(tmp_path, attempt="a0"), "old"), LEDGER)
    where = target(tmp_path, overwrite=overwrite)
    staged = three(where)
    original = getattr(publish_module, moment)

    def late(*args):
        monkeypatch.setattr(publish_module, moment, original)
        publish(where, staged, LEDGER)
        return original(*args)

    monkeypatch.setattr(publish_module, moment, late)
    with contextlib.suppress(ResourceError):
        publish(where, staged, LEDGER)
    assert manifest(tmp_path / "out")["attempt"] == "a1"
    assert content(tmp_path / "out") == "a\nb\nc\ne\n"
    assert is_whole(f"{tmp_path}/out")
