"""File formats: their names, extensions, and which of them can be split."""

from __future__ import annotations

import re
from collections.abc import Sequence

from beam_dp.errors import ArgumentError, InputError, require_choice
from beam_dp.io.files import InputFile, last_component

FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")
TEXT_COLUMN = "text"
"""The name of the one column of a file of format text."""

EXTENSIONS = {"text": ".txt", "jsonl": ".jsonl", "csv": ".csv", "tsv": ".tsv", "parquet": ".parquet"}

_KNOWN = {
    "txt": "text",
    "text": "text",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "parquet": "parquet",
}
_COMPRESSED = re.compile(r"\.(gz|bz2|zst|zstd|deflate|xz|lzma)$", re.IGNORECASE)
_LOOKS_LIKE_A_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}")


def resolve_format(format: str, path: str) -> str:
    """``format`` itself, or for ``auto`` the one that the extension of ``path`` stands for.

    Raises:
        ArgumentError: an unknown format, an extension that says nothing, or compressed parquet.
    """
    require_choice("format", format, ("auto", *FORMATS))
    plain = _COMPRESSED.sub("", path)
    if format == "auto":
        extension = plain.rsplit(".", 1)[-1].lower() if "." in plain else ""
        if extension not in _KNOWN:
            raise ArgumentError(
                f"format: the extension of {last_component(path)} does not tell its format; "
                f"pass --format with one of {', '.join(FORMATS)}"
            )
        format = _KNOWN[extension]
    if format == "parquet" and plain != path:
        raise ArgumentError("format: parquet files are compressed inside; a compressed parquet file cannot be read")
    return format


def common_format(format: str, files: Sequence[InputFile]) -> str:
    """`resolve_format` of all ``files`` (one or more).

    Raises:
        ArgumentError: as `resolve_format`, or ``auto`` finds two formats.
    """
    first = resolve_format(format, files[0].path)
    for file in files[1:]:
        other = resolve_format(format, file.path)
        if other != first:
            raise ArgumentError(
                f"format: {files[0].name} is {first} and {file.name} is {other}: narrow the glob or pass --format"
            )
    return first


def is_splittable(format: str, compressed: bool) -> bool:
    """Whether byte ranges of one file can be read apart (a csv value may hold line ends, so csv cannot)."""
    return format != "csv" and not compressed


def quoted(names: Sequence[str]) -> str:
    """Names of columns for a message, in quotes, since a name may hold spaces and commas."""
    return ", ".join(map(repr, names))


def require_columns(
    columns: tuple[str, ...], there: list[str], name: str, *, declared: bool = False, hint: str = ""
) -> None:
    """InputError unless every one of ``columns`` is once among the columns that are ``there`` in the file ``name``.

    Unless they are ``declared`` (by the format or by a schema), the columns there are named only if all look like
    names: the first line of a file without a header is data. ``hint`` is said at the end.
    """
    missing = [column for column in columns if column not in there]
    if missing:
        if declared or all(_LOOKS_LIKE_A_NAME.fullmatch(column) for column in there):
            listed = f"its columns are {quoted(there)}" if there else "it has no columns"
        elif len(there) == 1:
            listed = "its one column has a name that does not look like a header"
        else:
            listed = f"its {len(there)} columns have names that do not look like a header"
        raise InputError(f"column {quoted(missing)} is not in {name}: {listed}{hint}")
    twice = [column for column in columns if there.count(column) > 1]
    if twice:
        raise InputError(f"column {quoted(twice)} is there more than once in {name}")
