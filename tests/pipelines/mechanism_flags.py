"""Mechanisms as flags and as parameters in YAML."""

from __future__ import annotations

from typing import Any

from pipelines import transforms
from pipelines.options import parse_options
from pipelines.privatize_text import PrivatizeTextOptions, mechanism_from


def written(flags: list[str]) -> str:
    """For the name of a test."""
    return " ".join(flags).replace("--", "")


def mechanism_of(flags: list[str]) -> Any:
    return mechanism_from(parse_options(["--input=a", "--output=b", *flags], PrivatizeTextOptions))


def check_flags_and_yaml(flags: list[str], mechanism: Any) -> None:
    """Both make ``mechanism``."""
    assert mechanism_of(flags) == mechanism
    given = dict(flag.removeprefix("--").split("=") for flag in flags)
    name = given.pop("mechanism")
    numbers: dict[str, Any] = {key: int(value) if key == "neighbours" else float(value) for key, value in given.items()}
    assert transforms.PrivatizeText(mechanism=name, **numbers)._mechanism == mechanism
