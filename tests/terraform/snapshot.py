"""Cuts the schema of a provider down to what terraform/ uses.

    terraform providers schema -json | python tests/terraform/snapshot.py google > google-8.0.json

A schema says what names, types and blocks there are; the descriptions go. The files in schemas/ are renewed, from a
folder that requires the provider, when the range of versions in terraform/versions.tf changes or terraform/ uses a
resource for the first time.

google-8.0 is of hashicorp/google 8.0.0, by the command above. google-6.50 and google-beta-6.50 are of 6.50.0, put into
the same form from the type definitions in the npm package @cdktf/provider-google-beta 16.12.1; these do not say what is
computed or sensitive, which is taken from 8.0.0.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_KINDS = {"resource_schemas": "resource", "data_source_schemas": "data"}
_FLAGS = ("type", "required", "optional", "computed", "sensitive", "deprecated", "write_only")


def used_types(folder: Path) -> dict[str, set[str]]:
    """The types of the resources and data sources in the .tf files of a folder, by the kind of their schemas."""
    text = "\n".join(path.read_text() for path in folder.glob("*.tf"))
    return {kind: set(re.findall(rf'^{word} "([a-z_]+)"', text, re.MULTILINE)) for kind, word in _KINDS.items()}


def snapshot(schema: dict[str, Any], types: dict[str, set[str]]) -> dict[str, Any]:
    """The part of a provider's schema that is about ``types``, without descriptions."""
    kept = {
        kind: {name: _schema(value) for name, value in sorted(schema.get(kind, {}).items()) if name in types[kind]}
        for kind in _KINDS
    }
    provider = _schema(schema["provider"])
    attributes = provider["block"]["attributes"]
    provider["block"]["attributes"] = {k: v for k, v in attributes.items() if not k.endswith("_custom_endpoint")}
    return {"provider": provider, **kept}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"version": schema["version"], "block": _block(schema["block"])}


def _block(block: dict[str, Any]) -> dict[str, Any]:
    attributes = {
        name: {flag: value[flag] for flag in _FLAGS if value.get(flag)}
        for name, value in sorted(block.get("attributes", {}).items())
    }
    blocks = {
        name: {**nested, "block": _block(nested["block"])}
        for name, nested in sorted(block.get("block_types", {}).items())
    }
    return {"attributes": attributes} | ({"block_types": blocks} if blocks else {})


def write(schema: dict[str, Any]) -> str:
    """JSON with a line for each resource, so that a difference names it."""
    kinds = []
    for kind in _KINDS:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in schema[kind].items())
        kinds.append(f'"{kind}": {{\n{lines}\n}}')
    return f'{{\n"provider": {json.dumps(schema["provider"])},\n' + ",\n".join(kinds) + "\n}\n"


if __name__ == "__main__":
    every = json.load(sys.stdin)["provider_schemas"]
    (one,) = (value for name, value in every.items() if name.endswith(f"/hashicorp/{sys.argv[1]}"))
    sys.stdout.write(write(snapshot(one, used_types(ROOT / "terraform"))))
