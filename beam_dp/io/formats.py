"""File formats: their names, extensions, and which of them can be split."""

from __future__ import annotations

import re

from beam_dp.errors import ArgumentError, InputError, require_choice

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
                "format: the extension of the input does not tell its format; "
                f"pass --format with one of {', '.join(FORMATS)}"
            )
        format = _KNOWN[extension]
    if format == "parquet" and plain != path:
        raise ArgumentError("format: parquet files are compressed inside; a compressed parquet file cannot be read")
    return format


def is_splittable(format: str, compressed: bool) -> bool:
    """Whether byte ranges of one file can be read apart (a csv value may hold line ends, so csv cannot)."""
    return format != "csv" and not compressed


def require_columns(columns: tuple[str, ...], there: list[str], name: str, *, declared: bool = False) -> None:
    """InputError unless every one of ``columns`` is once among the columns that are ``there`` in the file ``name``.

    Unless they are ``declared`` (by the format or by a schema), the columns there are named only if all look like
    names: the first line of a file without a header is data.
    """
    missing = [column for column in columns if column not in there]
    if missing:
        if declared or all(_LOOKS_LIKE_A_NAME.fullmatch(column) for column in there):
            listed = f"its columns are {', '.join(there)}" if there else "it has no columns"
        else:
            listed = f"its {len(there)} columns have names that do not look like a header"
        raise InputError(f"column {', '.join(missing)} is not in {name}: {listed}")
    twice = [column for column in columns if there.count(column) > 1]
    if twice:
        raise InputError(f"column {', '.join(twice)} is there more than once in {name}")
