from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from commands import refusal, run_here, run_module

from beam_dp import open_index, resolve_index
from beam_dp.audit import calibrate
from beam_dp.embeddings import build_index
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.word_exponential import Exponential
from pipelines import calibrate as command
from pipelines.calibrate import epsilons_in, words_in
from pipelines.main import run_main


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index of 40 words."""
    folder = tmp_path_factory.mktemp("calibrate")
    vectors = np.random.default_rng(5).normal(size=(40, 3))
    source = folder / "v.txt"
    source.write_text("".join(f"w{i} {x} {y} {z}\n" for i, (x, y, z) in enumerate(vectors)))
    return build_index(str(source), str(folder / "index"), trees=2, progress=False, source="made up").output


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run_main(command.main, arguments)
    out, err = capfd.readouterr()
    return status, out, err


def test_it_writes_a_table_a_picture_and_a_page(tmp_path, index):
    prefix = tmp_path / "cal"
    done = run_module(
        "pipelines.calibrate",
        f"--index={index}",
        "--mechanisms=exponential,multivariate_laplace,truncated_gumbel",
        "--epsilons=40,0.5,5",
        "--words=10",
        "--runs=50",
        "--target=0.5",
        f"--output={prefix}",
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cal.html", "cal.png", "cal.txt"]
    text = prefix.with_suffix(".txt").read_text()
    assert done.stdout == f"{text}\n" + "".join(f"written: {prefix}{end}\n" for end in (".txt", ".png", ".html"))
    rows = [line.split() for line in text.splitlines()[1:10]]
    assert [row[:2] for row in rows] == [
        [name, epsilon]
        for name in ("exponential", "multivariate_laplace", "truncated_gumbel")
        for epsilon in ("0.5", "5", "40")
    ]
    for name in ("exponential", "multivariate_laplace"):
        shares = [float(row[2]) for row in rows if row[0] == name]
        assert shares[0] < 0.2 and shares[2] > 0.8
        assert shares == sorted(shares)
    assert rows[6][2] == "refused"
    opened = open_index(resolve_index(index))
    exact = calibrate(Exponential, opened, 0.5, words=words_in("10", opened))
    assert exact.sentence() in text
    assert re.search(r"multivariate_laplace: at epsilon \S+ the mean N_w is 0\.\d+ \(95% interval", text)
    assert "truncated_gumbel: no epsilon for --target: epsilon must be above" in text
    assert prefix.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    page = prefix.with_suffix(".html").read_text()
    assert opened.digest in page and "made up" in page
    ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])


def test_existing_files_need_overwrite(tmp_path, index, capfd):
    (tmp_path / "cal.png").write_text("mine")
    flags = (f"--index={index}", "--mechanisms=exponential", "--epsilons=1", "--words=w3,w1", "--runs=5")
    status, out, err = run(capfd, *flags, f"--output={tmp_path / 'cal'}")
    assert (status, out) == (2, "")
    assert "output already exists: cal.png" in err
    assert [path.name for path in tmp_path.iterdir()] == ["cal.png"]
    status, out, err = run(capfd, *flags, f"--output={tmp_path / 'cal'}", "--overwrite")
    assert (status, err) == (0, "")
    assert set(out.splitlines()[1].split()[-2:]) == {"w1", "w3"}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--mechanisms="], "--mechanisms is required"),
        (["--epsilons="], "--epsilons is required"),
        (["--output="], "--output is required"),
        (["--mechanisms=exponential,laplace"], "--mechanisms must be one of"),
        (["--epsilons=1,x"], "--epsilons must be finite numbers above 0"),
        (["--epsilons=1,0"], "--epsilons must be finite numbers above 0"),
        (["--epsilons=inf"], "--epsilons must be finite numbers above 0"),
        (["--words=w1,secret"], "number 2 of them is not"),
        (["--words=,"], "there are none"),
        (["--words=0"], "--words must be at least 1"),
        (["--runs=0"], "--runs must be at least 1"),
        (["--statistic=median"], "--statistic: invalid choice"),
        (["--eps=1"], "unknown option --eps"),
        (["--output=nowhere://cal"], "no file system is installed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_wrong_argument_ends_with_2_and_one_line(tmp_path, index, capfd, change, message):
    flags = (f"--index={index}", "--mechanisms=exponential", "--epsilons=1", f"--output={tmp_path / 'cal'}")
    status, out, err = run(capfd, *flags, *change)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert "secret" not in err
    assert list(tmp_path.iterdir()) == []


def test_words_are_spread_over_the_vocabulary_or_named(index):
    opened = open_index(resolve_index(index))
    assert words_in("3", opened).tolist() == [0, 20, 39]
    assert words_in("1", opened).tolist() == [0]
    assert words_in("500", opened).tolist() == list(range(40))
    assert words_in("w7, w2", opened).tolist() == [2, 7]
    with pytest.raises(ArgumentError):
        words_in("", opened)


def test_epsilons_come_in_their_order():
    assert epsilons_in("5, 1,5,2e1") == [1, 5, 20]


def test_a_program_that_cannot_write_says_so(tmp_path, index, capfd):
    (tmp_path / "file").touch()
    done = run_here(
        capfd,
        command,
        f"--index={index}",
        "--mechanisms=exponential",
        "--epsilons=1",
        f"--output={tmp_path / 'file' / 'cal'}",
    )
    assert "cal.txt" in refusal(done)
