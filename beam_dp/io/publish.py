"""The publish: staged shards become the output in one sweep, the manifest last.

A run writes its shards into ``PREFIX.tmp-RUN_ID/``. Then `publish`

1. refuses where there is an output already or too many rows were rejected,
2. writes manifest and ledger aside and looks whether every shard is there,
3. removes what an earlier run left, its manifest first,
4. moves shards, rejects and ledger to their places, then the manifest; if one cannot be moved, all go back,
5. removes the staging folder.

A manifest at its place therefore means a whole output. After a crash the same call goes on where it stopped: a shard
that is at its place already is known by its digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_dp.errors import ArgumentError, InputError, ResourceError
from beam_dp.io.files import (
    is_not_found,
    last_component,
    local_absolute,
    paths_with_prefix,
    places,
    reading,
    require_file_system,
    writing,
)
from beam_dp.io.formats import EXTENSIONS

FORMAT_VERSION = 1
ROWS = "rows"
REJECTS = "rejects"

_UNSAFE = re.compile(r"[*?\[\]]")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OURS = re.compile(r"(-rejects)?-\d{5,}-of-\d{5,}\.(txt|jsonl|csv|tsv|parquet)")
_MANIFEST = ".manifest.json"
_ARGUMENTS = {"prefix": "output", "ledger_path": "--ledger (ledger_path)"}
_HASH_CHUNK = 1 << 20
_MOVES_AT_ONCE = 100


@dataclass(frozen=True)
class Target:
    """Where an output goes and on what terms.

    Attributes:
        prefix: path that all output names begin with.
        format: of the shards.
        run_id: names the staging folder.
        attempt: random, tells one run from another that was given the same ``run_id``.
        overwrite: whether an earlier output is replaced.
        max_rejects: most rows that may be rejected.
        ledger_path: where the ledger goes as a file of its own; None for nowhere.
    """

    prefix: str
    format: str
    run_id: str
    attempt: str
    overwrite: bool
    max_rejects: int
    ledger_path: str | None

    def __post_init__(self) -> None:
        for name, argument in _ARGUMENTS.items():
            path = getattr(self, name)
            if path is None and name == "ledger_path":
                continue
            if not isinstance(path, str) or not last_component(path) or path.endswith("/") or _UNSAFE.search(path):
                raise ArgumentError(f"{argument} must be a path that ends in a name and is free of * ? [ ]")
            path = local_absolute(path)
            require_file_system(argument, path)
            object.__setattr__(self, name, path)
        if not isinstance(self.run_id, str) or not _RUN_ID.fullmatch(self.run_id):
            raise ArgumentError("run_id must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit")

    @property
    def staging(self) -> str:
        """The folder for what is not published yet."""
        return f"{self.prefix}.tmp-{self.run_id}"

    @property
    def manifest_path(self) -> str:
        """Where the manifest goes."""
        return f"{self.prefix}{_MANIFEST}"

    @property
    def marker_path(self) -> str:
        """Where the manifest waits; its presence means that this run may have begun to move files."""
        return f"{self.staging}/manifest-{self.attempt}.json"

    @property
    def ledger_temporary(self) -> str:
        """Where the ledger waits, in the folder where it will be."""
        return _ledger_temporary(self.ledger_path or "", self.run_id)

    def takes(self, path: str) -> bool:
        """Whether shards, rejects, manifest or staging may take the name ``path``, so that a file there is lost."""
        prefix, staging = places(self.prefix)[0], places(self.staging)[0]
        for place in places(path):
            rest = place.removeprefix(prefix) if place.startswith(prefix) else ""
            if rest == _MANIFEST or _OURS.fullmatch(rest) or f"{place}/".startswith(f"{staging}/"):
                return True
        return False

    def refuse_overlaps(self, inputs: Sequence[str]) -> None:
        """ArgumentError if this run would replace one of the files ``inputs``, or its own output by its ledger."""
        paths = [local_absolute(path) for path in inputs]
        overlapping = next((path for path in paths if self.takes(path)), None)
        if overlapping is not None:
            raise ArgumentError(
                f"--input and --output overlap: {last_component(overlapping)} would be read and replaced; "
                "choose another output"
            )
        if self.ledger_path is None:
            return
        named = f"{_ARGUMENTS['ledger_path']} must not be {last_component(self.ledger_path)}"
        ledgers = (self.ledger_path, self.ledger_temporary)
        if any(self.takes(ledger) for ledger in ledgers):
            raise ArgumentError(f"{named}: the output may take that name")
        taken = {place for ledger in ledgers for place in places(ledger)}
        if any(taken.intersection(places(path)) for path in paths):
            raise ArgumentError(f"{named}: it is read as input")
        if _is_folder(self.ledger_path):
            raise ArgumentError(f"{named}: it is a directory")

    def final_path(self, kind: str, index: int, count: int) -> str:
        """Where shard ``index`` of ``count`` of a kind goes."""
        name = f"{index:05d}-of-{count:05d}"
        return (
            f"{self.prefix}-{name}{EXTENSIONS[self.format]}" if kind == ROWS else f"{self.prefix}-rejects-{name}.jsonl"
        )


@dataclass(frozen=True)
class Staged:
    """One staged file.

    Attributes:
        kind: `ROWS` or `REJECTS`.
        order: sorts shards into the order of the input.
        path: where it is staged.
        rows: rows in it.
        size: bytes.
        sha256: of its bytes.
        reasons: for rejects, (reason, count, file, position of the first), else empty.
    """

    kind: str
    order: tuple[int, ...]
    path: str
    rows: int
    size: int
    sha256: str
    reasons: tuple[tuple[str, int, str | None, int | None], ...] = field(default=())


def existing_output(prefix: str) -> list[str]:
    """Paths of an output with this prefix: the manifest first, then shards and rejects."""
    ours = re.compile(re.escape(last_component(prefix)) + _OURS.pattern)
    found = paths_with_prefix(prefix)
    shards = sorted(path for path in found if ours.fullmatch(last_component(path)))
    return [path for path in found if path == f"{prefix}{_MANIFEST}"] + shards


def refuse_existing(target: Target) -> None:
    """ResourceError if there is an output with the prefix of ``target``, or a file where its ledger goes."""
    outputs = existing_output(target.prefix)
    ledgers = []
    if target.ledger_path is not None:
        with reading(last_component(target.ledger_path)):
            ledgers = [target.ledger_path] if FileSystems.exists(target.ledger_path) else []
    for kind, existing in (("output", outputs), ("ledger", ledgers)):
        if existing:
            raise ResourceError(
                f"{kind} already exists: {last_component(existing[0])}"
                + (f" and {len(existing) - 1} more" if len(existing) > 1 else "")
                + f"; choose another {kind} or pass --overwrite"
            )


def published_manifest(target: Target) -> dict[str, Any] | None:
    """The manifest at its place if it is of this very attempt, so that all is published; else None."""
    manifest = _read_json(target.manifest_path)
    return manifest if manifest is not None and manifest.get("attempt") == target.attempt else None


def refuse_unpublishable(target: Target, staged: Sequence[Staged]) -> dict[str, int]:
    """Raises what `publish` would raise before it changes anything; returns the rejected rows by reason.

    Raises:
        InputError: more than ``max_rejects`` rows were rejected.
        ResourceError: there is an output already.
    """
    by_reason = _refuse_rejects(target, _in_order(staged, REJECTS))
    if published_manifest(target) is None and not target.overwrite and not FileSystems.exists(target.marker_path):
        refuse_existing(target)
    return by_reason


def publish(target: Target, staged: Sequence[Staged], ledger: dict[str, Any] | None) -> dict[str, Any]:
    """Makes the staged files the output; returns the manifest.

    Calling it again after any interruption, with the same or with newly staged files, leads to one whole output.

    Raises:
        InputError: more than ``max_rejects`` rows were rejected; nothing is published.
        ResourceError: there is an output already, or the file system fails; nothing is published. An earlier output
            is gone only if it was the removal or a move that failed.
    """
    by_reason = refuse_unpublishable(target, staged)
    published = published_manifest(target)
    if published is not None:
        _remove_folder(target.staging)
        return published
    shards, rejects = _in_order(staged, ROWS), _in_order(staged, REJECTS)
    moves = _moves(target, ROWS, shards) + _moves(target, REJECTS, rejects)
    manifest = {
        "format_version": FORMAT_VERSION,
        "run_id": target.run_id,
        "attempt": target.attempt,
        "format": target.format,
        "rows": sum(shard.rows for shard in shards),
        "shards": _described(moves, ROWS),
        "rejects": by_reason,
        "reject_shards": _described(moves, REJECTS),
        "ledger": ledger,
    }
    # Not written in its place: another attempt may be about to move what is there, and moves it whole.
    written = f"{target.staging}/{secrets.token_hex(8)}.json"
    write_json(written, manifest)
    with writing(target.marker_path):
        FileSystems.rename([written], [target.marker_path])
    try:
        _replace(target, moves, ledger)
    except Exception:
        if target.ledger_path is not None:
            _remove_quietly(target.ledger_temporary)
        raise
    _remove_folder(target.staging)
    return manifest


def _replace(target: Target, moves: Sequence[tuple[Staged, str]], ledger: dict[str, Any] | None) -> None:
    """Puts the new output, of which all but the ledger is staged, into the place of the earlier one."""
    last = [(target.marker_path, target.manifest_path)]
    if target.ledger_path is not None and ledger is not None:
        if _is_folder(target.ledger_path):
            raise ResourceError(f"is a directory, while writing {target.ledger_path}")
        write_json(target.ledger_temporary, ledger)
        last.insert(0, (target.ledger_temporary, target.ledger_path))
    waiting = [(item, final) for item, final in moves if FileSystems.exists(item.path)]
    for item, final in moves:
        if (item, final) not in waiting and _sha256(final) != item.sha256:
            raise ResourceError(f"a staged shard is gone from {last_component(target.staging)}: run again")
    if published_manifest(target) is not None:
        # Another attempt of the same bundle came first.
        if target.ledger_path is not None:
            _remove_quietly(target.ledger_temporary)
        return
    own = {final: item for item, final in moves}

    def is_in_place(path: str) -> bool:
        return FileSystems.exists(path) if path == target.ledger_path else _is_ours(target, path, own.get(path))

    # Looked at one by one, since another attempt may put its files there at any moment.
    _remove(path for path in existing_output(target.prefix) if not _is_ours(target, path, own.get(path)))
    _move([(item.path, final) for item, final in waiting], last, is_in_place)


def _is_ours(target: Target, path: str, item: Staged | None) -> bool:
    """Whether what is at ``path`` is of this output, put there by an earlier or another attempt.

    Args:
        target: where the output goes.
        path: of a manifest, or of a shard.
        item: the shard that belongs there; None if none does.
    """
    if item is None:
        return path == target.manifest_path and published_manifest(target) is not None
    with reading(last_component(path)):
        found = FileSystems.match([path])[0].metadata_list
    return bool(found) and found[0].size_in_bytes == item.size and _sha256(path) == item.sha256


def _in_order(staged: Iterable[Staged], kind: str) -> list[Staged]:
    """The files of a kind in the order of the input; files without rows only if there are no others, and then one."""
    files = sorted((item for item in staged if item.kind == kind), key=lambda item: (item.order, item.path))
    return [item for item in files if item.rows] or files[:1]


def _refuse_rejects(target: Target, rejects: Sequence[Staged]) -> dict[str, int]:
    """Rejected rows by reason, if they are few enough."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for item in rejects:
        for reason, count, source, position in item.reasons:
            counts[reason] += count
            first.setdefault(reason, f", first in {source} at {position}" if source is not None else "")
    if counts.total() > target.max_rejects:
        listed = "; ".join(f"{reason}: {counts[reason]}{first[reason]}" for reason in sorted(counts))
        _remove_folder(target.staging)
        raise InputError(
            f"rejected rows: {counts.total()}, more than max_rejects={target.max_rejects} ({listed}); "
            "nothing was published"
        )
    return dict(sorted(counts.items()))


def _moves(target: Target, kind: str, files: Sequence[Staged]) -> list[tuple[Staged, str]]:
    return [(item, target.final_path(kind, index, len(files))) for index, item in enumerate(files)]


def _described(moves: Sequence[tuple[Staged, str]], kind: str) -> list[dict[str, Any]]:
    return [
        {"name": last_component(final), "rows": item.rows, "bytes": item.size, "sha256": item.sha256}
        for item, final in moves
        if item.kind == kind
    ]


def _move(
    shards: Sequence[tuple[str, str]], last: Sequence[tuple[str, str]], is_in_place: Callable[[str], bool]
) -> None:
    """Moves shards to their places, then ``last`` one by one; all or, as far as the file system lets it, none.

    What is gone before it could be moved, and is in its place, was moved by another attempt. It is not moved back, and
    neither is what this one has not come to: the other one may be about to publish it.

    Args:
        shards: (from, to).
        last: the same.
        is_in_place: whether what belongs at a path is there.
    """
    groups = [shards[start : start + _MOVES_AT_ONCE] for start in range(0, len(shards), _MOVES_AT_ONCE)]
    groups += [[move] for move in last]
    moved: list[tuple[str, str]] = []
    try:
        for group in groups:
            sources, finals = zip(*group, strict=True)
            gone: set[tuple[str, str]] = set()
            try:
                with writing(finals[0]):
                    try:
                        FileSystems.rename(list(sources), list(finals))
                    except BeamIOError as error:
                        failed = error.exception_details or {}
                        gone = {move for move, cause in failed.items() if is_not_found(cause)}
                        if not gone or len(gone) < len(failed) or not all(is_in_place(final) for _, final in gone):
                            raise
            finally:
                # Also where it failed: some file systems fail after they have moved.
                moved += [move for move in group if move not in gone]
    except Exception:
        for source, final in reversed(moved):
            with contextlib.suppress(Exception):
                if not FileSystems.exists(source):
                    FileSystems.rename([final], [source])
        raise


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with writing(path):
            FileSystems.delete([path])


def _remove_quietly(path: str) -> None:
    """Removes what is at ``path``; a failure is no failure of the run."""
    with contextlib.suppress(Exception):
        FileSystems.delete([path])


def discard_staging(prefix: str, run_id: str, ledger_path: str | None = None) -> None:
    """Removes what a run that failed has staged: draws that nobody may see beside those of another run."""
    _remove_folder(f"{local_absolute(prefix)}.tmp-{run_id}")
    if ledger_path is not None:
        _remove_quietly(_ledger_temporary(local_absolute(ledger_path), run_id))


def require_writable(*paths: str | None) -> None:
    """Returns unless a file of this machine could not be made at one of ``paths``, before anything costs something.

    Raises:
        ResourceError: the folder of one is no folder, or cannot be written; or its disk is full.
    """
    for path in filter(None, paths):
        folder = Path(local_absolute(path)).parent
        if "://" in path and not path.startswith("file://"):
            continue
        with writing(path):
            existing = next(place for place in (folder, *folder.parents) if place.exists())
            probe = existing / f".probe-{secrets.token_hex(8)}"
            probe.mkdir()
            probe.rmdir()


def _ledger_temporary(ledger_path: str, run_id: str) -> str:
    return f"{ledger_path}.tmp-{run_id}"


def _is_folder(path: str) -> bool:
    """Whether there is a folder of this machine at ``path``; object stores have none."""
    return "://" not in path and Path(path).is_dir()


def _remove_folder(folder: str) -> None:
    """Removes a folder with all in it, if there is one."""
    # Object stores take the first for all that is in the folder; local disks want the second for the folder itself.
    for path in (f"{folder}/", folder):
        _remove_quietly(path)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes a JSON file, indented, keys in the order given."""
    with writing(path), FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
        stream.write((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def _read_json(path: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file or it holds something else."""
    with reading(last_component(path)):
        if not FileSystems.exists(path):
            return None
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            text = stream.read()
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _sha256(path: str) -> str | None:
    """Digest of a file; None if there is none."""
    digest = hashlib.sha256()
    with reading(last_component(path)):
        if not FileSystems.exists(path):
            return None
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            while data := stream.read(_HASH_CHUNK):
                digest.update(data)
    return digest.hexdigest()
