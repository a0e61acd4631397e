from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from beam_dp.embeddings import open_index, resolve_index
from pipelines.build_index import main
from pipelines.main import run_main

LINES = "".join(f"w{i} {i}.5 {i * i} -1\n" for i in range(30))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "v.txt"
    path.write_text(LINES + "w3 1 1 1\nbad\xa0word 1 2 3\n")
    return path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run_main(main, arguments)
    out, err = capfd.readouterr()
    return status, out, err


def test_builds_an_index_and_says_what_became_of_it(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "index"
    status, out, err = run(
        capfd, f"--vectors={source}", f"--output={output}", "--trees=2", "--source=me", "--licence=CC0"
    )
    assert (status, err) == (0, "")
    ref = resolve_index(str(output))
    index = open_index(ref)
    assert index.size == 30
    assert (index.manifest.source, index.manifest.licence, index.manifest.annoy.trees) == ("me", "CC0", 2)
    assert out.splitlines()[0] == "30 words of dimension 3 kept"
    assert "dropped 1 words: duplicate word (at line 31)" in out
    assert "dropped 1 words: white space or control character (at line 32)" in out
    assert f"digest {ref.digest}" in out
    assert "recall@1 (2 trees" in out
    assert f"smallest {index.min_distance:.6g}" in out
    assert out.splitlines()[-1] == f"published: {output}"


def test_an_existing_output_needs_overwrite(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (f"--vectors={source}", f"--output={tmp_path / 'index'}", "--trees=2")
    assert run(capfd, *arguments)[0] == 0
    status, out, err = run(capfd, *arguments, "--max_words=5")
    assert (status, out) == (2, "")
    assert err.startswith("error: output ")
    assert err.count("\n") == 1
    assert run(capfd, *arguments, "--max_words=5", "--overwrite")[0] == 0
    assert open_index(resolve_index(str(tmp_path / "index"))).size == 5


def test_a_dry_run_says_what_would_be_built_and_writes_nothing(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = (f"--vectors={source}", f"--output={tmp_path / 'new' / 'index'}", "--trees=2", "--dry_run")
    status, out, err = run(capfd, *arguments, "--max_words=5")
    assert (status, err) == (0, "")
    assert "the first 5 usable words" in out and "format glove, dimension 3" in out and "2 Annoy trees" in out
    assert out.splitlines()[-1] == "dry run: nothing was written"
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--vectors=no/such.txt"], "no/such.txt: no such file"),
        (["--metric=cosine"], "metric must be one of"),
        (["--trees=0"], "trees must be at least 1"),
        (["--words=x"], "words goes with a .npy matrix only"),
        (["--output=OCCUPIED"], "holds files that are not of an index"),
        (["--vectors=EMPTY"], "holds no words"),
    ],
)
def test_a_dry_run_refuses_what_the_build_would(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    (tmp_path / "empty.txt").touch()
    change = [flag.replace("OCCUPIED", str(tmp_path)).replace("EMPTY", str(tmp_path / "empty.txt")) for flag in change]
    flags = [f"--vectors={source}", f"--output={tmp_path / 'index'}", *change]
    status, out, err = run(capfd, *flags, "--dry_run")
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert run(capfd, *flags)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=x"], "--vectors is required"),
        (["--vectors=x"], "--output is required"),
        (["--vektors=x"], "unknown option --vektors; did you mean --vectors?"),
        (["--vectors=x", "--output=y", "--tree=3"], "unknown option --tree; did you mean --trees?"),
        (["--vectors=x", "--output=y", "--trees=many"], "--trees: invalid int value"),
        (["--vectors=x", "--output=y", "--trees=0"], "trees must be at least 1"),
        (["--vectors=x", "--output=y", "--format=pdf"], "--format: invalid choice"),
        (["--vectors=x", "--output=y", "--metric=cosine"], "metric must be one of euclidean"),
        (["--vectors=no/such.txt", "--output=y"], "no/such.txt: no such file"),
    ],
)
def test_a_wrong_argument_ends_with_2_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capfd, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_ragged_line_is_named_and_nothing_is_left(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source.write_text(LINES + "ragged 1 2\n")
    status, _, err = run(capfd, f"--vectors={source}", f"--output={tmp_path / 'index'}")
    assert status == 2
    assert f"{source}, line 31" in err
    assert [path.name for path in tmp_path.iterdir()] == ["v.txt"]


def test_as_a_program_it_shows_progress_on_a_terminal(tmp_path: Path, source: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = [sys.executable, "-m", "pipelines.build_index", f"--vectors={source}", f"--output={tmp_path / 'index'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error
            while part := os.read(ours, 4096):
                shown += part
        said, _ = process.communicate()
    os.close(ours)
    assert process.returncode == 0
    assert b"published" in said
    assert resolve_index(str(tmp_path / "index")).uri == str(tmp_path / "index")
    assert b"words: 30 words" in shown
    assert b"distances: 100%" in shown
