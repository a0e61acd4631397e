"""Every error that beam_dp raises on purpose, and the exit status that a command line gives it.

No message may hold user data: an error names arguments, files, offsets, columns and reason codes,
never a text, an id or a value read from a data set.
"""

from __future__ import annotations

import math
import numbers


class BeamDpError(Exception):
    """Base of all errors of this package. ``exit_status`` is what a command line exits with."""

    exit_status = 1


class ArgumentError(BeamDpError, ValueError):
    """An argument that can never be right: its name, the kind of value given, what would be right."""

    exit_status = 2


class InputError(BeamDpError, ValueError):
    """Input that does not fit what was asked: no such file, missing column, too many rejects."""

    exit_status = 2


class ResourceError(BeamDpError, RuntimeError):
    """The environment failed: full disk, unreadable or existing file, unreachable host."""

    exit_status = 2


class IndexArtifactError(ResourceError):
    """An embedding index that is damaged, incomplete, of another version, or not the one promised."""


class BudgetStoreError(ResourceError):
    """A budget store that is unreachable, busy, read-only, damaged, or written by a newer version."""


class GrantError(BeamDpError, RuntimeError):
    """A mechanism was about to draw noise without an entry in a ledger."""


class LedgerSealedError(BeamDpError, RuntimeError):
    """A mechanism was added to a ledger whose plan is already sealed."""


class BudgetExceededError(BeamDpError, RuntimeError):
    """The plan would spend more than the budget allows."""

    exit_status = 3


def describe_kind(value: object) -> str:
    """The kind of ``value`` in words, for an error message, e.g. ``'a negative number'``."""
    if value is None:
        return "None"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return f"a value of type {type(value).__name__}"
    try:
        number = float(value)
    except OverflowError:
        return "a number beyond the floats"
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "infinite"
    return "zero" if number == 0 else "a negative number" if number < 0 else "a positive number"


def require_positive(name: str, value: object) -> float:
    """``value`` as a float if it is a finite number above 0, else ArgumentError naming ``name``."""
    kind = describe_kind(value)
    if kind != "a positive number":
        raise ArgumentError(f"{name} must be a finite number above 0, not {kind}")
    return float(value)  # type: ignore[arg-type]


def require_count(name: str, value: object, minimum: int = 1) -> int:
    """``value`` as an int if it is a whole number of at least ``minimum``, else ArgumentError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ArgumentError(f"{name} must be a whole number, not {describe_kind(value)}")
    if value < minimum:
        raise ArgumentError(f"{name} must be at least {minimum}, not {int(value)}")
    return int(value)


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``, else ArgumentError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(
            f"{name} must be one of {', '.join(choices)}, not {describe_kind(value)}"
            if not isinstance(value, str)
            else f"{name} must be one of {', '.join(choices)}, not {value!r}"
        )
    return value
