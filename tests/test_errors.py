"""Errors: exit statuses, and messages that name the argument and the kind of what was given, never its value."""

from __future__ import annotations

import inspect
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_dp import errors
from beam_dp.errors import (
    ArgumentError,
    BeamDpError,
    BudgetExceededError,
    BudgetStoreError,
    GrantError,
    IndexArtifactError,
    InputError,
    LedgerSealedError,
    ResourceError,
    describe_kind,
    require_choice,
    require_count,
    require_positive,
)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (BeamDpError, 1),
        (ArgumentError, 2),
        (InputError, 2),
        (ResourceError, 2),
        (IndexArtifactError, 2),
        (BudgetStoreError, 2),
        (GrantError, 1),
        (LedgerSealedError, 1),
        (BudgetExceededError, 3),
    ],
)
def test_exit_statuses(kind: type[BeamDpError], status: int) -> None:
    assert kind("x").exit_status == status
    assert issubclass(kind, BeamDpError)


def test_every_error_survives_pickling() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BeamDpError)]
    assert len(kinds) == 9
    for kind in kinds:
        again = pickle.loads(pickle.dumps(kind("a message")))
        assert type(again) is kind
        assert str(again) == "a message"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "None"),
        (True, "a value of type bool"),
        ("7", "a value of type str"),
        (1j, "a value of type complex"),
        (float("nan"), "NaN"),
        (float("-inf"), "infinite"),
        (0, "zero"),
        (-0.0, "zero"),
        (-3, "a negative number"),
        (np.float32(2.5), "a positive number"),
        (Fraction(1, 3), "a positive number"),
    ],
)
def test_kinds(value: object, kind: str) -> None:
    assert describe_kind(value) == kind


@given(st.one_of(st.integers(1, 10**9), st.floats(1e-300, 1e300), st.fractions(Fraction(1, 100), 100)))
def test_positive_numbers_are_floats(value: Any) -> None:
    result = require_positive("epsilon", value)
    assert type(result) is float
    assert result == float(value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), None, "1", True, [1], Decimal(1)])
def test_what_is_not_positive_is_refused(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"^epsilon must be a finite number above 0, not "):
        require_positive("epsilon", value)


def test_counts() -> None:
    assert require_count("max_words", np.int64(3)) == 3
    assert type(require_count("max_words", np.int64(3))) is int
    assert require_count("max_rejects", 0, minimum=0) == 0
    for value in (0, -2):
        with pytest.raises(ArgumentError, match=r"^max_words must be at least 1, not "):
            require_count("max_words", value)
    for other in (1.0, True, None, "1", float("nan")):
        with pytest.raises(ArgumentError, match=r"^max_words must be a whole number, not "):
            require_count("max_words", other)


def test_choices() -> None:
    assert require_choice("oov", "drop", ("drop", "random")) == "drop"
    with pytest.raises(ArgumentError, match=r"^oov must be one of drop, random, not 'keep'$"):
        require_choice("oov", "keep", ("drop", "random"))
    with pytest.raises(ArgumentError, match=r"^oov must be one of drop, random, not None$"):
        require_choice("oov", None, ("drop", "random"))


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_numbers_beyond_the_floats_are_arguments_too(number: int) -> None:
    with pytest.raises(ArgumentError, match="not a number beyond the floats"):
        require_positive("epsilon", number)
