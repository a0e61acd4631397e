"""Writes the specifications of the Flex Templates: what gcloud and Terraform launch.

    python -m templates.spec --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/pipelines:0.1.0 --output=gs://BUCKET

makes gs://BUCKET/aggregate.json, one such file for each of the pipelines. The image is launcher and worker.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser
from typing import Any

from beam_dp.errors import ArgumentError
from pipelines.accountant import write_text
from pipelines.main import run_main, summary
from pipelines.options import parse_flags
from templates.launch import PIPELINES
from templates.metadata import metadata_of

_IMAGE = re.compile(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})")


def spec_of(name: str, image: str) -> dict[str, Any]:
    """The specification of the template of a pipeline: a `ContainerSpec` of the Dataflow API as JSON.

    Args:
        name: a key of `PIPELINES`.
        image: with registry, and tag or digest.

    Raises:
        ArgumentError: the image is none of that.
    """
    if not _IMAGE.fullmatch(image) or image.endswith(":latest"):
        raise ArgumentError(
            "--image must be REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST, and a tag that stays: not latest"
        )
    return {
        "image": image,
        "metadata": metadata_of(name),
        "sdkInfo": {"language": "PYTHON"},
        "defaultEnvironment": {"sdkContainerImage": image},
    }


def declare(parser: ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "--image", help="what templates/Dockerfile made, as it was pushed: with registry, and tag or digest"
    )
    parser.add_argument("--output", metavar="DIR_OR_URI", help="where to write PIPELINE.json, e.g. gs://BUCKET")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist (default: refuse)")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")


def main(argv: list[str]) -> None:
    """Writes the files."""
    flags = parse_flags(argv, declare, description=str(__doc__))
    for name in ("image", "output"):
        if not getattr(flags, name):
            raise ArgumentError(f"--{name} is required: write --{name}=VALUE")
    specs = {name: spec_of(name, flags.image) for name in PIPELINES}
    for name, spec in specs.items():
        path = f"{flags.output.rstrip('/')}/{name}.json"
        write_text(path, json.dumps(spec, indent=2, ensure_ascii=False) + "\n", overwrite=flags.overwrite)
        summary(f"written: {path}")


if __name__ == "__main__":
    sys.exit(run_main(main))
