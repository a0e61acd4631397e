"""What is refused before anything runs: outputs that would eat their input, mixed formats, paths, and the words."""

from pathlib import Path

import pytest
from io_support import content, copy

from beam_dp.accounting import Ledger
from beam_dp.errors import ArgumentError, InputError, ResourceError
from beam_dp.io import ReadBatches, WriteBatches
from beam_dp.io.files import find_inputs, local_absolute


def written(path: Path, text: str = "raw\n") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "name",
    [
        "in-00000-of-00001.txt",
        "in-00000-of-00001.parquet",
        "in-rejects-00000-of-00001.jsonl",
        "in.manifest.json",
        "in.tmp-r/rows.txt",
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_with_a_name_that_the_output_may_take_is_refused(tmp_path, name, overwrite):
    source = written(tmp_path / name)
    paths = ReadBatches(source, format="text").paths
    assert paths == (source,)
    with pytest.raises(ArgumentError) as caught:
        WriteBatches(f"{tmp_path}/in", format="text", run_id="r", overwrite=overwrite, inputs=paths)
    assert str(caught.value) == (
        f"--input and --output overlap: {Path(name).name} would be read and replaced; choose another output"
    )
    assert Path(source).read_text() == "raw\n"


@pytest.mark.parametrize("name", ["in.txt", "in-00000-of-00001.txt.gz", "in-1-of-2.txt", "inner-00000-of-00001.txt"])
def test_an_input_with_a_similar_name_is_not_refused(tmp_path, name):
    source = written(tmp_path / name)
    WriteBatches(f"{tmp_path}/in", format="text", inputs=[source, f"{tmp_path}/other/in-00000-of-00001.txt"])
    assert Path(source).read_text() == "raw\n"


def test_a_glob_that_finds_the_earlier_output_is_refused(tmp_path):
    written(tmp_path / "raw.txt")
    glob, prefix = f"{tmp_path}/*.txt", tmp_path / "out"
    copy(glob, prefix, "text")
    with pytest.raises(ArgumentError, match=r"overlap: out-00000-of-00001\.txt would"):
        copy(glob, prefix, "text", overwrite=True)
    assert content(prefix) == "raw\n"


def test_symbolic_links_hide_no_overlap(tmp_path):
    shard = written(tmp_path / "real" / "in-00000-of-00001.txt")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "name.txt").symlink_to(shard)
    for source, prefix in ((shard, "link/in"), (f"{tmp_path}/link/in-00000-of-00001.txt", "real/in")):
        with pytest.raises(ArgumentError, match="overlap"):
            WriteBatches(f"{tmp_path}/{prefix}", format="text", overwrite=True, inputs=[source])
    with pytest.raises(ArgumentError, match="overlap"):
        WriteBatches(f"{tmp_path}/real/in", format="text", overwrite=True, inputs=[f"{tmp_path}/name.txt"])


def test_one_input_is_not_a_list_of_inputs(tmp_path):
    with pytest.raises(ArgumentError, match="inputs must be a list"):
        WriteBatches(f"{tmp_path}/out", format="text", inputs="in.txt")


@pytest.mark.parametrize(
    ("ledger", "reason"),
    [
        ("folder", "is a directory"),
        ("out-00000-of-00007.txt", "the output may take that name"),
        ("out-rejects-00000-of-00007.jsonl", "the output may take that name"),
        ("out.manifest.json", "the output may take that name"),
        ("out.tmp-r", "the output may take that name"),
        ("out", "the output may take that name"),
        ("in.txt", "it is read as input"),
        ("link.txt", "it is read as input"),
    ],
)
def test_ledgers_that_would_replace_something_else(tmp_path, ledger, reason):
    source = written(tmp_path / "in.txt")
    (tmp_path / "link.txt").symlink_to(source)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArgumentError, match=rf"--ledger \(ledger_path\) must not be {ledger}: .*{reason}"):
        WriteBatches(
            f"{tmp_path}/out",
            format="text",
            run_id="r",
            overwrite=True,
            plan=Ledger(),
            ledger_path=f"{tmp_path}/{ledger}",
            inputs=[source],
        )


def test_a_ledger_that_exists_is_kept_without_overwrite(tmp_path):
    ledger = written(tmp_path / "notes.md", "mine")
    options = {"format": "text", "plan": Ledger(), "ledger_path": ledger}
    with pytest.raises(ResourceError, match=r"^ledger already exists: notes\.md; choose another ledger or pass --over"):
        WriteBatches(f"{tmp_path}/out", **options)
    WriteBatches(f"{tmp_path}/out", overwrite=True, **options)
    assert Path(ledger).read_text() == "mine"


def test_files_of_several_formats_are_not_read_as_the_first(tmp_path):
    written(tmp_path / "a.txt")
    written(tmp_path / "b.txt.gz")
    written(tmp_path / "c.jsonl", '{"text": "a"}\n')
    with pytest.raises(ArgumentError, match=r"^format: a\.txt is text and c\.jsonl is jsonl: narrow the glob or pass"):
        ReadBatches(f"{tmp_path}/*")
    assert ReadBatches(f"{tmp_path}/*", format="text").format == "text"
    written(tmp_path / "d.dat")
    with pytest.raises(ArgumentError, match=r"the extension of d\.dat does not tell its format"):
        ReadBatches(f"{tmp_path}/[ad].*")
    written(tmp_path / "e.parquet.gz")
    with pytest.raises(ArgumentError, match="a compressed parquet file cannot be read"):
        ReadBatches(f"{tmp_path}/[ae].*", format="parquet")


def test_home_and_file_paths_are_local_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "in.txt")
    assert local_absolute("~/in") == f"{tmp_path}/in"
    assert local_absolute(f"file://{tmp_path}/~/in") == f"{tmp_path}/~/in"
    assert local_absolute("gs://bucket/~/in") == "gs://bucket/~/in"
    copy("~/in.txt", "~/home", "text", plan=Ledger(), ledger_path="~/home.json")
    copy(f"file://{tmp_path}/*.txt", f"file://{tmp_path}/uri", "text")
    assert content(tmp_path / "home") == "raw\n"
    assert content(tmp_path / "uri") == "raw\nraw\n"
    assert (tmp_path / "home.json").exists()
    assert not (tmp_path / "home.json.tmp-run").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_of_an_unknown_scheme_is_a_wrong_argument(overwrite):
    with pytest.raises(ArgumentError, match=r"^output: no file system is installed for nosuch://"):
        WriteBatches("nosuch://bucket/out", format="text", overwrite=overwrite)


def test_a_folder_as_input_says_what_to_write(tmp_path):
    for pattern in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        with pytest.raises(InputError, match=rf"^input: {tmp_path} is a directory: write {tmp_path}/\*$"):
            find_inputs(pattern)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", "[1]\nwords\n", r"^no line of a\.jsonl is a JSON object \(one object a line is expected\)$"),
        ("a.jsonl", '[\n{"text": "a"},\n', "no line of a.jsonl is a JSON object"),
        (
            "a.csv",
            "id;text\n1;a\n",
            r"one column has a name that does not .*; it holds a semicolon, but .* commas$",
        ),
        ("a.csv", "id\ttext\n1\ta\n", "one column has a name that does not look like a header; it holds a tab: .*=tsv"),
        ("a.csv", "some words\n", "its one column has a name that does not look like a header$"),
        ("a.csv", "id;a,b\n", "its 2 columns have names that do not look like a header$"),
        ("a.csv", "body\n", "^column 'text' is not in a.csv: its columns are 'body'$"),
    ],
)
def test_the_words_for_a_file_of_another_shape(tmp_path, name, data, message):
    with pytest.raises(InputError, match=message):
        ReadBatches(written(tmp_path / name, data))
