"""Writes the metadata of the Flex Templates, from the options of the pipelines.

    python -m templates.metadata

Labels, help texts, defaults, choices and kinds of value are those of the options. What argparse does not know stands
here: which options a pipeline cannot do without, and how a value of a kind is written.
"""

from __future__ import annotations

import json
import sys
from argparse import Action
from pathlib import Path
from typing import Any

from pipelines.main import run_main, summary
from pipelines.options import parse_flags
from templates.launch import PARAMETER, PIPELINES, Pipeline, is_switch

FOLDER = Path(__file__).parent

REQUIRED = {
    "aggregate": {"input", "output", "privacy_unit", "by", "metrics", "max_partitions", "epsilon"},
    "private_vocabulary": {"input", "output", "privacy_unit", "max_partitions", "epsilon"},
    "privatize_stream": {"input_subscription", "output_topic"},
    "privatize_text": {"input", "output"},
}

# Several attempts at a draw would all be published in the other mode.
_STREAMING = {"streaming": True, "supportsExactlyOnce": True, "supportsAtLeastOnce": False}

# A template is always launched on Dataflow, and logs of it may not quote data.
LEFT_OUT = {"engine", "verbose"}

_WHOLE = r"^[0-9]+$"
_NUMBER = r"^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_OBJECT = r"^gs://[^/]+/.+$"
_NAMES = r"^[^,]+(,[^,]+)*$"
# By how the help writes the value. Files are where workers are, too.
_WRITTEN = {
    "A,B": _NAMES,
    "ATTRIBUTE": r"^.{1,256}$",
    "COLUMN": r"^.+$",
    "DIR_OR_URI": _OBJECT,
    "FILE": _OBJECT,
    "FILE.json": _OBJECT,
    "GLOB": _OBJECT,
    "ID": _NAME,
    "M,M,...": r"^[a-z_]+(:[^,]+)?(, *[a-z_]+(:[^,]+)?)*$",
    "N": _WHOLE,
    "N/N/...": r"^[0-9]{1,3}(/[0-9]{1,3})*$",
    "NAME": _NAME,
    "PREFIX": _OBJECT,
    "SUBSCRIPTION": r"^projects/[^/]+/subscriptions/[^/]+$",
    "TOPIC": r"^projects/[^/]+/topics/[^/]+$",
    "URL": r"^(postgresql://.+|gs://[^/]+/.+)$",
    None: r"^.+$",
}
# Of what Google's console offers a list.
_LISTED = {"SUBSCRIPTION": "PUBSUB_SUBSCRIPTION", "TOPIC": "PUBSUB_TOPIC"}


def metadata_of(name: str) -> dict[str, Any]:
    """The metadata of the template of a pipeline: a `TemplateMetadata` of the Dataflow API as JSON.

    Args:
        name: a key of `PIPELINES`.
    """
    pipeline = PIPELINES[name]
    return {
        "name": _label(name),
        "description": pipeline.description.splitlines()[0],
        "parameters": [_picking(name), *_parameters(pipeline, REQUIRED[name])],
        **(_STREAMING if pipeline.streaming else {}),
    }


def text_of(name: str) -> str:
    """The file ``metadata.json`` of a pipeline."""
    return json.dumps(metadata_of(name), indent=2, ensure_ascii=False) + "\n"


def path_of(name: str) -> Path:
    """Where that file is."""
    return FOLDER / name / "metadata.json"


def _picking(name: str) -> dict[str, Any]:
    """The parameter by which the image, which all templates share, knows what to run."""
    return {
        "name": PARAMETER,
        "label": _label(PARAMETER),
        "helpText": f"What the template is of: always {name}.",
        "isOptional": False,
        "paramType": "TEXT",
        "regexes": [f"^{name}$"],
        "defaultValue": name,
    }


def _parameters(pipeline: Pipeline, required: set[str]) -> list[dict[str, Any]]:
    """The parameters, those that are required first."""
    parameters = [_parameter(action, required) for action in pipeline.actions() if action.dest not in LEFT_OUT]
    return sorted(parameters, key=lambda parameter: parameter["isOptional"])


def _parameter(action: Action, required: set[str]) -> dict[str, Any]:
    help_text = str(action.help)
    return {
        "name": action.dest,
        "label": _label(action.dest),
        "helpText": f"{help_text[0].upper()}{help_text[1:]}.",
        "isOptional": action.dest not in required,
        **_kind(action),
        **({} if action.default is None or is_switch(action) else {"defaultValue": _text(action.default)}),
    }


def _kind(action: Action) -> dict[str, Any]:
    if is_switch(action):
        return {"paramType": "BOOLEAN", "regexes": ["^(true|false)$"]}
    if action.choices is not None:
        choices = [str(choice) for choice in action.choices]
        options = [{"value": choice, "label": choice} for choice in choices]
        return {"paramType": "ENUM", "enumOptions": options, "regexes": [f"^({'|'.join(choices)})$"]}
    if action.type in (int, float):
        return {"paramType": "NUMBER", "regexes": [_WHOLE if action.type is int else _NUMBER]}
    form = str(action.metavar) if action.metavar else None
    written = _WRITTEN[form]
    return {"paramType": "NUMBER" if written == _WHOLE else _LISTED.get(str(form), "TEXT"), "regexes": [written]}


def _text(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _label(name: str) -> str:
    words = name.replace("_", " ")
    return words[0].upper() + words[1:]


def main(argv: list[str]) -> None:
    """Writes the files."""
    parse_flags(argv, lambda _: None, description=str(__doc__), usage="%(prog)s")
    for name in PIPELINES:
        path_of(name).parent.mkdir(exist_ok=True)
        path_of(name).write_text(text_of(name), encoding="utf-8")
        summary(f"written: {path_of(name).relative_to(FOLDER.parent)}")


if __name__ == "__main__":
    sys.exit(run_main(main))
