"""Which files belong to a data set: prefixes of paths, matched at the boundary of a path component."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from beam_dp.errors import ArgumentError, InputError, describe_kind

_FILE_SCHEME = "file://"


def normalised_prefixes(inputs: Sequence[str]) -> tuple[str, ...]:
    """Prefixes as a data set keeps them: local ones absolute with symbolic links followed, URIs without a last slash.

    Raises:
        ArgumentError: one is not a path or URI that can be matched.
    """
    if isinstance(inputs, str) or not isinstance(inputs, Sequence):
        raise ArgumentError(f"inputs must be a sequence of paths, not {describe_kind(inputs)}")
    return tuple(dict.fromkeys(_normalised(path) for path in inputs))


def refuse_outside(dataset: str, prefixes: Sequence[str], inputs: Sequence[str] | None) -> None:
    """Returns if a run that reads ``inputs`` reads files of the data set alone, or the data set names no files.

    A file belongs to a prefix if what it is, after all symbolic links, is what the prefix is, or in that folder.

    Raises:
        InputError: a file is outside, or ``inputs`` is None although the data set names its files.
        ArgumentError: an input is not a path or URI that can be matched.
    """
    if not prefixes:
        return
    if inputs is None:
        raise InputError(f"data set {dataset} names its inputs: tell the run which files it reads (inputs)")
    # The links of a prefix may have moved since the data set was made.
    places = [_normalised(prefix) for prefix in prefixes]
    outside = sum(not any(_within(path, place) for place in places) for path in normalised_prefixes(inputs))
    if outside:
        raise InputError(
            f"{outside} of the input files do not belong to data set {dataset}, whose budget this run would spend: it "
            f"is made of {', '.join(prefixes)}"
        )


def _normalised(path: object) -> str:
    if not isinstance(path, str) or not path.strip():
        raise ArgumentError(f"inputs must be paths that are not empty, not {describe_kind(path)}")
    if "\0" in path:
        raise ArgumentError("inputs must be paths without a NUL")
    if path[: len(_FILE_SCHEME)].lower() == _FILE_SCHEME:
        return os.path.realpath(path[len(_FILE_SCHEME) :])
    if "://" not in path:
        return os.path.realpath(os.path.expanduser(path))  # noqa: PTH111 - keeps the text of the path otherwise
    scheme, _, rest = path.partition("://")
    parts = rest.split("/")
    if not scheme or not rest.strip("/") or ".." in parts or "." in parts or "[" in parts[0]:
        raise ArgumentError("inputs must be URIs of the form scheme://host/path without '.' and '..' segments")
    if "?" in rest or "@" in parts[0]:
        raise ArgumentError("inputs must not hold a user, password or query: the budget store shows them to everybody")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def _within(path: str, prefix: str) -> bool:
    if "://" in prefix:
        return path == prefix or path.startswith(f"{prefix}/")
    return "://" not in path and Path(path).is_relative_to(prefix)
