"""Aggregates through the command line: every format, every refusal, and a secret that must never show."""

import json
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_dp.errors import ArgumentError, InputError, ResourceError
from beam_dp.io.read import _LEAST_SPLIT_BYTES
from pipelines import aggregate
from pipelines.aggregate import read_partitions
from pipelines.main import run_main
from pipelines.unit_options import buckets_for

sys.path.insert(0, str(Path(__file__).parent))
from commands import refusal, run_here, run_module
from table_files import CANARY, FORMATS, holds_canary, leftovers, read_output, write_table

L0, LINF = 3, 3
# Noise on counts vanishes: the largest scale, that of the quantile tree, is 0.022. Noise on totals does not: its scale
# is as much larger as the bounds of the values are, and the least scale that there is at all is 0.001.
EPSILON = 15_000
EPSILON_OF_COUNTS = 1_500
ALL_METRICS = (
    "count,privacy_unit_count,sum:amount:0:100,mean:amount:0:100,variance:amount:0:100,"
    "quantiles:amount:0:100:0.5/0.9,histogram:amount:0/10/50/100,vector_sum:amount/day:50"
)
ENOUGH_STDDEVS = 25  # a draw of Laplace noise beyond has probability 1e-15
EDGES = (0, 10, 50, 100)


def rows_within_bounds(rng, users=25):
    """Rows that no bound drops, some without a user, one of a person and a partition that nobody may hear of."""
    rows = []
    for user in range(users):
        for item in rng.choice(6, size=L0, replace=False):
            for _ in range(rng.integers(1, LINF + 1)):
                amount = round(float(rng.normal(40, 50)), 2)
                rows.append({"user": f"user-{user}", "item": f"item {item}", "day": int(item) % 2, "amount": amount})
    rows += [{"user": None, "item": f"item {i % 6}", "day": i % 2, "amount": 1.0} for i in range(40)]
    rows.append({"user": CANARY, "item": f"of {CANARY}", "day": 0, "amount": 7.5})
    order = rng.permutation(len(rows))
    return [rows[i] | {"note": CANARY} for i in order]


def by_hand(rows, by):
    """For each partition of two units or more: number of rows, of units, and the clamped amounts."""
    found = defaultdict(list)
    for row in rows:
        if row["user"] is not None:
            found[tuple(row[name] for name in by)].append(row)
    return {
        key: {
            "rows": len(members),
            "units": len({row["user"] for row in members}),
            "amounts": np.clip([row["amount"] for row in members], 0, 100),
            "days": np.array([row["day"] for row in members]),
            "raw": np.array([row["amount"] for row in members]),
        }
        for key, members in found.items()
        if len({row["user"] for row in members}) > 1
    }


def check(released, expected, by):
    """Every column of every partition against what was computed by hand."""
    assert [tuple(row[name] for name in by) for row in released] == sorted(expected)
    for row in released:
        truth = expected[tuple(row[name] for name in by)]
        amounts = truth["amounts"]
        exact = {"count": truth["rows"], "privacy_unit_count": truth["units"]}
        exact["histogram_amount"] = np.histogram(amounts, EDGES)[0].tolist()
        for name, value in exact.items():
            assert row[name] == row[f"{name}_ci_low"] == row[f"{name}_ci_high"] == value, name
            assert 0 <= row[f"{name}_noise_stddev"] < 1e-3
        near = {"sum_amount": amounts.sum(), "mean_amount": amounts.mean(), "variance_amount": amounts.var()}
        for name, value in near.items():
            assert abs(row[name] - value) <= ENOUGH_STDDEVS * row[f"{name}_noise_stddev"] + 0.01, name
            assert row[f"{name}_ci_low"] <= row[name] <= row[f"{name}_ci_high"]
        totals = np.array([np.clip(truth["raw"], -50, 50).sum(), truth["days"].sum()])
        reach = ENOUGH_STDDEVS * row["vector_sum_amount_day_noise_stddev"] + 0.01
        assert np.abs(np.array(row["vector_sum_amount_day"]) - totals).max() <= reach
        for q in (0.5, 0.9):
            estimate, width = row[f"quantile_amount_{q}"], 100 / 16**4
            assert (amounts <= estimate - width).mean() <= q <= (amounts <= estimate + width).mean()


def command(tmp_path, source, *more, by="item", metrics=ALL_METRICS, epsilon=None, delta="1e-6"):
    """The arguments of a run."""
    epsilon = epsilon or (EPSILON if metrics == ALL_METRICS else EPSILON_OF_COUNTS)
    return (
        f"--input={source}",
        f"--output={tmp_path}/out",
        "--privacy_unit=user",
        f"--by={by}",
        f"--metrics={metrics}",
        f"--max_partitions={L0}",
        f"--max_rows_per_partition={LINF}",
        f"--epsilon={epsilon}",
        f"--delta={delta}",
        *more,
    )


@pytest.fixture
def run(capfd):
    """Runs the program in this process, as a command line: status, lines of stdout, last line of stderr."""

    def call(*arguments):
        capfd.readouterr()
        status = run_main(aggregate.main, arguments)
        out, err = capfd.readouterr()
        assert CANARY not in out + err and "Traceback" not in err
        assert len(err.splitlines()) == (status != 0)
        return status, out, err

    return call


@pytest.fixture
def refused(run):
    """The error of arguments or input that must be refused."""

    def call(*arguments):
        status, _, err = run(*arguments)
        assert status == 2 and err.startswith("error: ")
        return err

    return call


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_gives_what_is_true_and_nothing_of_anybody(tmp_path, rng, format, capfd):
    rows = rows_within_bounds(rng)
    source = write_table(tmp_path / f"in.{format}", rows)
    ledger = tmp_path / "ledger.json"
    # What a process says at its end does not depend on the format.
    apart = partial(run_module, "pipelines.aggregate")
    run = apart if format == "jsonl" else partial(run_here, capfd, aggregate)
    done = run(*command(tmp_path, source, f"--ledger={ledger}"))
    assert (done.returncode, done.stderr) == (0, "")
    expected = by_hand(rows, ["item"])
    assert len(expected) == 6
    check(read_output(tmp_path / "out"), expected, ["item"])
    assert "6 partitions released" in done.stdout and f"published: {tmp_path}/out.manifest.json" in done.stdout
    assert leftovers(tmp_path) == ["ledger.json", f"out-00000-of-00001.{format}", "out.manifest.json"]
    assert holds_canary(tmp_path) == [] and CANARY not in done.stdout
    assert json.loads(ledger.read_text()) == json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]


def test_several_keys_and_files_with_two_processes(tmp_path, rng):
    rows = rows_within_bounds(rng)
    for name, part in (("a", rows[:30]), ("b", rows[30:31]), ("c", rows[31:])):
        write_table(tmp_path / f"in.{name}.csv.gz", part)
    done = run_module(
        "pipelines.aggregate",
        *command(tmp_path, f"{tmp_path}/in.*.gz", "--engine=local-parallel", "--direct_num_workers=2", by="day,item"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    released = read_output(tmp_path / "out")
    assert list(released[0])[:2] == ["day", "item"]
    check(released, by_hand(rows, ["day", "item"]), ["day", "item"])
    assert holds_canary(tmp_path) == []


def test_a_worker_that_fails_says_no_data(tmp_path, capfd):
    write_table(tmp_path / "in.a.parquet", [{"user": 17, "item": CANARY}] * 5)
    write_table(tmp_path / "in.b.parquet", [{"user": CANARY, "item": "b"}] * 5)
    done = run_here(capfd, aggregate, *command(tmp_path, f"{tmp_path}/in.*.parquet", metrics="count"))
    assert "column 'user' holds int64 in some batches and string in others: give it one type" in refusal(done)
    assert CANARY not in done.stdout + done.stderr
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("odd", ['"x"', "1", "7.5", "[true]", "null", "1e999"])
@pytest.mark.parametrize("position", [0, 15_000])
def test_no_row_of_jsonl_changes_how_others_are_read(tmp_path, run, odd, position):
    """A value of another kind, in the first piece of a file or behind it, in every column that counts."""
    lines = [f'{{"user": {u}, "item": 7, "smokes": true, "pad": "{"." * 90}"}}' for u in range(16_000)]
    assert sum(map(len, lines[:15_000])) > _LEAST_SPLIT_BYTES
    lines.insert(position, f'{{"user": {odd}, "item": {odd}, "smokes": {odd}, "pad": ""}}')
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines) + "\n")
    assert run(*command(tmp_path, source, metrics="count,sum:smokes:0:1"))[0] == 0
    (row,) = [row for row in read_output(tmp_path / "out") if row["item"] == "7"]
    assert row["count"] == 16_000
    assert abs(row["sum_smokes"] - 16_000) < 5


def test_rejected_rows_fail_the_run_or_are_listed_without_content(tmp_path, run, refused):
    source = tmp_path / "in.jsonl"
    good = [f'{{"user": {user}, "item": "a"}}' for user in range(3)]
    source.write_text("\n".join([good[0], f'{{"user": 1, "item": "{CANARY}', *good[1:]]))
    arguments = command(tmp_path, source, metrics="count")
    assert "rejected rows: 1, more than max_rejects=0 (malformed_json: 1" in refused(*arguments)
    assert leftovers(tmp_path) == []
    assert run(*arguments, "--max_rejects=1")[0] == 0
    (rejects,) = tmp_path.glob("out-rejects-*.jsonl")
    assert json.loads(rejects.read_text()) == {
        "reason": "malformed_json",
        "source": "in.jsonl",
        "position": len(good[0]) + 1,
    }
    assert [(row["item"], row["count"]) for row in read_output(tmp_path / "out")] == [("a", 3)]
    assert holds_canary(tmp_path) == []


def test_ledger_states_the_central_total(tmp_path, run):
    source = write_table(tmp_path / "in.csv", [{"user": "u", "item": "a", "amount": "1"}])
    ledger = tmp_path / "ledger.json"
    arguments = command(tmp_path, source, f"--ledger={ledger}", metrics="count,mean:amount:0:100", epsilon=1)
    status, out, _ = run(*arguments, "--dry_run")
    assert status == 0 and "dry run: nothing was read or written" in out and "central total" in out
    assert leftovers(tmp_path) == []
    assert run(*arguments)[0] == 0
    written = json.loads(ledger.read_text())
    assert written["schema_version"] == 1
    assert [entry["label"] for entry in written["entries"]] == [
        "Aggregate/selection",
        "Aggregate/count",
        "Aggregate/mean_amount/values",
        "Aggregate/mean_amount/centred_sum",
    ]
    assert {entry["model"] for entry in written["entries"]} == {"central"}
    assert {entry["privacy_unit"] for entry in written["entries"]} == {"user"}
    central = written["totals"]["central"]
    assert 0.99 < central["epsilon"] <= 1 and central["delta"] == 1e-6
    assert written["totals"]["local"] is None and written["totals"]["metric"] is None


def test_dry_run_reads_no_data(tmp_path, run):
    source = write_table(tmp_path / "in.a.jsonl", [{"user": "u", "item": "a"}])
    (tmp_path / "in.b.jsonl").write_text("not JSON")
    assert run(*command(tmp_path, f"{tmp_path}/in.*.jsonl", "--dry_run", metrics="count"))[0] == 0
    assert source.exists() and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "flags", [["--selection=laplace_threshold", "--pre_threshold=6"], ["--noise=gaussian"], ["--composition=pld"]]
)
def test_other_mechanisms(tmp_path, run, flags):
    rows = [{"user": user, "item": item} for item, users in (("few", 5), ("many", 20)) for user in range(users)]
    source = write_table(tmp_path / "in.parquet", rows)
    arguments = command(tmp_path, source, *flags, metrics="count,privacy_unit_count", epsilon=100)
    assert run(*arguments)[0] == 0
    shown = {row["item"] for row in read_output(tmp_path / "out")}
    assert shown == ({"many"} if "--pre_threshold=6" in flags else {"few", "many"})
    mechanisms = [
        entry["mechanism"] for entry in json.loads((tmp_path / "out.manifest.json").read_text())["ledger"]["entries"]
    ]
    assert mechanisms[0].startswith("LaplaceThreshold" if "--pre_threshold=6" in flags else "TruncatedGeometric")
    assert mechanisms[1].startswith("DiscreteGaussian" if "--noise=gaussian" in flags else "DiscreteLaplace")


def test_keys_alone(tmp_path, run, refused):
    rows = [{"user": user, "item": "a"} for user in range(5)] + [{"user": 1, "item": CANARY}]
    source = write_table(tmp_path / "in.jsonl", rows)
    arguments = [a for a in command(tmp_path, source, metrics="none") if not a.startswith("--max_rows")]
    assert run(*arguments)[0] == 0
    assert read_output(tmp_path / "out") == [{"item": "a"}]
    needed = [a for a in command(tmp_path, source) if not a.startswith("--max_rows")]
    assert "--max_rows_per_partition is required" in refused(*needed)


def test_public_partitions_are_shown_all_of_them_and_no_others(tmp_path, run):
    rows = [{"user": user, "item": "a", "day": day} for user in range(4) for day in (1, 2)]
    rows.append({"user": 1, "item": CANARY, "day": 1})
    source = write_table(tmp_path / "in.parquet", rows)
    keys = tmp_path / "in.keys.txt"
    keys.write_text("a\t2\n\nzoë\t1\r\na\t2\n")
    arguments = command(tmp_path, source, f"--public_partitions={keys}", by="item,day", metrics="count", delta=0)
    assert run(*arguments)[0] == 0
    released = read_output(tmp_path / "out")
    assert {(row["item"], row["day"], row["count"]) for row in released} == {("a", 2, 4), ("zoë", 1, 0)}
    assert len(released) == 2 and holds_canary(tmp_path) == []


@pytest.mark.parametrize("format", FORMATS)
def test_empty_input_gives_noised_zeros(tmp_path, run, format):
    source = tmp_path / f"in.{format}"
    if format == "parquet":
        pq.write_table(pa.table({"user": pa.array([], pa.string()), "item": pa.array([], pa.string())}), source)
    else:
        source.write_text("" if format == "jsonl" else "user,item\n" if format == "csv" else "user\titem\n")
    keys = tmp_path / "in.keys"
    keys.write_text("".join(f"key {i}\n" for i in range(200)))
    arguments = command(tmp_path, source, f"--public_partitions={keys}", metrics="count", epsilon=0.5)
    assert run(*arguments)[0] == 0
    released = read_output(tmp_path / "out")
    assert {row["item"] for row in released} == {f"key {i}" for i in range(200)}
    counts = np.array([row["count"] for row in released])
    # Scale 18: 200 draws are almost never all of one sign, and their mean has a standard deviation of 1.8.
    assert counts.min() < 0 < counts.max() and abs(counts.mean()) < 12


def test_numbers_and_ids_beyond_64_bits(tmp_path, run):
    rows = [{"user": 10**30 + user, "item": 2**62 + user % 2, "amount": 10**400} for user in range(10)]
    source = write_table(tmp_path / "in.jsonl", rows)
    assert run(*command(tmp_path, source, metrics="privacy_unit_count,sum:amount:0:100"))[0] == 0
    released = read_output(tmp_path / "out")
    assert {row["item"]: row["privacy_unit_count"] for row in released} == {
        str(2**62): 5,
        str(2**62 + 1): 5,
    }
    for row in released:
        assert abs(row["sum_amount"] - 500) < ENOUGH_STDDEVS * row["sum_amount_noise_stddev"] + 0.1


def test_bounds_are_enforced(tmp_path, run):
    rows = [{"user": user, "item": f"i{item}"} for user in range(100) for item in range(8) for _ in range(5)]
    source = write_table(tmp_path / "in.csv", rows)
    assert run(*command(tmp_path, source, "--buckets=3", metrics="count"))[0] == 0
    released = read_output(tmp_path / "out")
    assert sum(row["count"] for row in released) == 100 * L0 * LINF
    assert all(row["count"] % LINF == 0 for row in released)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=sum:amount:100:0"], "'sum:amount:100:0': low must be at most high"),
        (["--metrics=cuont"], "unknown metric 'cuont'; did you mean count?"),
        (["--metrics="], "--metrics is required: write --metrics=count, or --metrics=none"),
        (["--metrics=sum:price:0:1"], "column 'price' is not in in.csv: its columns are 'user', 'item', 'amount'"),
        (["--privacy_unit=person"], "column 'person' is not in in.csv"),
        (["--privacy_unit="], "--privacy_unit is required"),
        (["--by="], "--by is required"),
        (["--by=item,item"], "by must be one or more different names"),
        (["--max_partitions=0"], "--max_partitions must be at least 1, not 0"),
        (["--max_rows_per_partition=-1"], "--max_rows_per_partition must be at least 1"),
        (["--max_partitions=2.5"], "--max_partitions: invalid int value"),
        (["--delta=0"], "--delta must be above 0 for private selection: write --delta=1e-6"),
        (["--delta=1"], "delta must be a number in [0, 1)"),
        (["--epsilon=0"], "epsilon must be a finite number above 0, not zero"),
        (["--epsilon=nan"], "epsilon must be a finite number above 0, not NaN"),
        (["--epsilon=1e9"], "is out of range"),
        (["--noise=gaussian", "--metrics=histogram:amount:0/1/2", "--epsilon=1"], "gaussian noise is not offered"),
        (["--noise=normal"], "--noise: invalid choice"),
        (["--buckets=0"], "--buckets must be at least 1"),
        (["--pre_threshold=0"], "pre_threshold must be at least 1"),
        (["--public_partitions=KEYS", "--selection=laplace_threshold"], "--selection is about private selection"),
        (["--public_partitions=KEYS", "--pre_threshold=2"], "--pre_threshold is about private selection"),
        (
            ["--public_partitions=KEYS", "--metrics=none"],
            "--metrics=none with --public_partitions would release nothing",
        ),
        (["--public_partitions=KEYS", "--noise=gaussian", "--delta=0"], "--delta must be above 0 for gaussian noise"),
        (
            ["--public_partitions=KEYS", "--by=item,amount"],
            "line 2 of in.keys has 1 columns between tabs, but --by names 2",
        ),
        (["--public_partitions=no.keys"], "cannot read no.keys: no such file"),
        (["--format=text"], "--format: files of format text have one column"),
        (["--text_column=item"], "unknown option --text_column"),
        (["--epsilom=1"], "unknown option --epsilom; did you mean --epsilon?"),
        (
            ["--engine=dataflow", "--project=p", "--region=r", "--temp_location=gs://b/t"],
            "--input is a path on this machine",
        ),
    ],
)
def test_arguments_that_cannot_be_right(tmp_path, refused, flags, message):
    source = write_table(tmp_path / "in.csv", [{"user": CANARY, "item": CANARY, "amount": CANARY}])
    keys = tmp_path / "in.keys"
    keys.write_text("\na\n")
    names = {flag.split("=")[0] for flag in flags}
    kept = [a for a in command(tmp_path, source, metrics="count") if a.split("=")[0] not in names]
    assert message in refused(*kept, *(flag.replace("KEYS", str(keys)) for flag in flags))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"user": 1.5, "item": "a", "amount": 1}], "column 'user' holds double, which cannot be a key"),
        ([{"user": 1, "item": [CANARY], "amount": 1}], "column 'item' holds list, which cannot be a key"),
        ([{"user": 1, "item": "a", "amount": {CANARY: 1}}], "column 'amount' holds struct, but numbers are needed"),
    ],
)
def test_columns_of_types_that_cannot_serve(tmp_path, refused, rows, message):
    source = write_table(tmp_path / "in.parquet", rows)
    assert message in refused(*command(tmp_path, source, metrics="sum:amount:0:1"))
    assert leftovers(tmp_path) == []


def test_public_keys_of_another_type_than_the_data(tmp_path, refused):
    source = write_table(tmp_path / "in.parquet", [{"user": 1, "item": 1}])
    keys = tmp_path / "in.keys"
    keys.write_text(f"1\n{CANARY}\n")
    message = refused(*command(tmp_path, source, f"--public_partitions={keys}", metrics="count"))
    assert "some public keys are no int64, which column 'item' holds" in message


def test_help_lists_the_options_of_this_pipeline(capfd):
    done = run_here(capfd, aggregate, "--help")
    assert done.returncode == 0
    for flag in ("--by", "--public_partitions", "--metrics", "--epsilon", "--composition", "--max_rejects"):
        assert flag in done.stdout
    assert "--mechanism" not in done.stdout and "--ngrams" not in done.stdout


class TestReadPartitions:
    def write(self, tmp_path, data):
        path = tmp_path / "keys.txt"
        path.write_bytes(data)
        return str(path)

    def test_keys_as_columns(self, tmp_path):
        path = self.write(tmp_path, b"\xef\xbb\xbfa\tb\r\n\n\n \xc3\xa9\t\n\tc")
        assert read_partitions(path, ["x", "y"]).to_pydict() == {"x": ["a", " é", ""], "y": ["b", "", "c"]}
        path = self.write(tmp_path, b"one\ntwo words\n")
        assert read_partitions(path, ["x"]).to_pydict() == {"x": ["one", "two words"]}

    @pytest.mark.parametrize(
        ("data", "by", "message"),
        [
            (b"", ["x"], "there is no key in keys.txt"),
            (b"\n\r\n", ["x"], "there is no key in keys.txt"),
            (b"a\tb\n\nsecret\n", ["x", "y"], "line 3 of keys.txt has 1 columns between tabs, but --by names 2"),
            (b"a\nb\tsecret\n", ["x"], "line 2 of keys.txt has 2 columns between tabs, but --by names 1"),
            (b"a\nsecret\xff\n", ["x"], "line 2 of keys.txt is no valid UTF-8"),
        ],
    )
    def test_lines_that_cannot_be_keys(self, tmp_path, data, by, message):
        with pytest.raises(InputError, match=message) as caught:
            read_partitions(self.write(tmp_path, data), by)
        assert "secret" not in str(caught.value)

    def test_files_that_cannot_be_read(self, tmp_path):
        with pytest.raises(ResourceError, match=r"cannot read none\.txt"):
            read_partitions(f"{tmp_path}/none.txt", ["x"])
        with pytest.raises(ResourceError, match=f"cannot read {tmp_path.name}"):
            read_partitions(str(tmp_path), ["x"])
        with pytest.raises(ArgumentError, match="--public_partitions: no file system"):
            read_partitions("nowhere://keys", ["x"])


@pytest.mark.parametrize(
    ("stored", "buckets"),
    [(0, 16), (1, 16), (16 * 2**25, 16), (16 * 2**25 + 1, 17), (2**35, 1024), (2**41, 65536), (2**50, 65536)],
)
def test_buckets_grow_with_the_input(stored, buckets):
    assert buckets_for(stored) == buckets
