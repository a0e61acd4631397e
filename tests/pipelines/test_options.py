"""Command-line options: strict, and at peace with Beam's own."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from argparse import ArgumentParser
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
)

import beam_dp.io
import pipelines
from beam_dp.errors import ArgumentError
from pipelines.options import (
    ENGINES,
    FORMATS,
    RunOptions,
    is_local_path,
    is_remote_engine,
    names_in,
    parse_flags,
    parse_options,
    require_flags,
    require_remote_paths,
)

TestOptions.__test__ = False  # type: ignore[attr-defined]  # Beam's class, not a test


POOL = "--environment_option=external_service_address=127.0.0.1:50000"


class _TextOptions(PipelineOptions):
    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--example_epsilon", type=float, help="of the example mechanism")


class _OtherOptions(PipelineOptions):
    shared = (_TextOptions,)

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--example_other", help="of the other example")


def _runner(options: PipelineOptions) -> Any:
    return options.view_as(StandardOptions).runner


def test_no_flag_is_declared_twice() -> None:
    """Beam builds one parser out of all option classes that are imported, with ours among them."""
    for module in pkgutil.iter_modules(pipelines.__path__, "pipelines."):
        importlib.import_module(module.name)
    parser = ArgumentParser(allow_abbrev=False)
    classes = PipelineOptions.__subclasses__()
    assert RunOptions in classes
    for cls in classes:
        cls._add_argparse_args(parser)  # type: ignore[arg-type]
    assert parser.parse_args(["--input=a"]).input == "a"
    assert not [action.dest for action in parser._actions if action.required]


def test_both_spellings_of_a_value() -> None:
    options = parse_options(["--input=a", "--output", "b", "--example_epsilon=1.5", "--overwrite"], _TextOptions)
    run = options.view_as(RunOptions)
    assert (run.input, run.output, run.overwrite) == ("a", "b", True)
    assert options.view_as(_TextOptions).example_epsilon == 1.5


def test_defaults() -> None:
    run = parse_options([]).view_as(RunOptions)
    assert run.format == "auto"
    assert run.max_rejects == 0
    assert run.engine == "local"
    assert (run.overwrite, run.verbose) == (False, False)
    assert (run.input, run.output, run.ledger) == (None, None, None)
    assert (run.budget_store, run.dataset) == (None, None)
    assert run.run_id != parse_options([]).view_as(RunOptions).run_id
    assert parse_options(["--run_id=night-7"]).view_as(RunOptions).run_id == "night-7"
    assert parse_options([f"--run_id={64 * 'r'}"]).view_as(RunOptions).run_id == 64 * "r"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--inptu=a"], "unknown option --inptu; did you mean --input?"),
        (["--example_epsilom", "1"], "unknown option --example_epsilom; did you mean --example_epsilon?"),
        (["--inp=a"], "unknown option --inp; did you mean --input?"),
        (["--runer=x"], "unknown option --runer; did you mean --runner?"),
        (["--zzzzzzzz"], "unknown option --zzzzzzzz; --help lists the options"),
        (["-x"], "unknown option -x"),
        (["file.txt"], "unexpected argument 'file.txt'"),
        (["--overwrite", "true"], "unexpected argument 'true'"),
        (["--", "a"], "unexpected argument"),
        (["--input"], "--input: expected one argument"),
        (["--overwrite=1"], "--overwrite: "),
        (["--max_rejects=-1"], "--max_rejects: must be a whole number of at least 0"),
        (["--max_rejects=many"], "--max_rejects: must be a whole number of at least 0"),
        (["--example_epsilon=x"], "--example_epsilon: invalid float value"),
        (["--format=xml"], "--format: invalid choice"),
        (["--engine=spark"], "--engine: invalid choice"),
        (["--run_id=../x"], "--run_id: must be 1 to 64 letters"),
        (["--run_id="], "--run_id: must be 1 to 64 letters"),
        (["--run_id=" + 65 * "r"], "--run_id: must be 1 to 64 letters"),
        (["--direct_num_workers=x"], "--direct_num_workers: invalid int value"),
        (["--dry_run=perhaps"], "--dry_run must be true or false"),
    ],
)
def test_what_cannot_be_right_is_refused(argv: list[str], named: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_options(argv, _TextOptions)
    assert str(caught.value).startswith(named)


def test_options_of_another_pipeline_are_unknown() -> None:
    with pytest.raises(ArgumentError, match="unknown option --example_epsilon"):
        parse_options(["--example_epsilon=1"])


def test_options_that_pipelines_share_belong_to_those_that_name_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_options(["--example_epsilon=2", "--example_other=x"], _OtherOptions)
    assert options.view_as(_TextOptions).example_epsilon == 2
    assert options.view_as(_OtherOptions).example_other == "x"
    with pytest.raises(ArgumentError, match="unknown option --example_other"):
        parse_options(["--example_other=x"], _TextOptions)
    with pytest.raises(SystemExit):
        parse_options(["--help"], _OtherOptions)
    shown = capsys.readouterr().out
    assert "of the other example" in shown and "of the example mechanism" in shown


@pytest.mark.parametrize(
    ("value", "names"), [(None, ()), ("", ()), (" , ", ()), ("a", ("a",)), ("a, b c ,a", ("a", "b c", "a"))]
)
def test_names_in_a_value(value: str | None, names: tuple[str, ...]) -> None:
    assert names_in(value) == names


def test_runner_options_are_known() -> None:
    flags = ["--flink_version=1.19", "--project=p", "--region=r", "--experiments=a,b", "--experiments=c"]
    options = parse_options([*flags, "--environment_type=DOCKER", "--spark_version=3", "--s3_region_name=x"])
    assert options.view_as(DebugOptions).experiments == ["a", "b", "c"]
    assert options.get_all_options()["project"] == "p"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], False),
        (["--dry_run"], True),
        (["--dry_run", "--overwrite"], True),
        (["--overwrite", "--dry_run"], True),
        (["--dry_run=true"], True),
        (["--dry_run", "True"], True),
        (["--dry_run=false"], False),
    ],
)
def test_dry_run_is_beams_with_and_without_a_value(argv: list[str], expected: bool) -> None:
    options = parse_options(argv)
    assert options.view_as(TestOptions).dry_run is expected
    assert options.view_as(RunOptions).overwrite is ("--overwrite" in argv)


def test_engines_fill_what_was_not_given() -> None:
    local = parse_options(["--engine=local"])
    assert _runner(local) == _runner(parse_options([])) == "FnApiRunner"
    assert local.view_as(DirectOptions).direct_running_mode == "in_memory"
    parallel = parse_options(["--engine=local-parallel"]).view_as(DirectOptions)
    assert (_runner(parallel), parallel.direct_running_mode) == ("FnApiRunner", "multi_processing")
    assert parallel.direct_num_workers >= 1
    chosen = parse_options(["--engine=local-parallel", "--direct_num_workers", "3"]).view_as(DirectOptions)
    assert (chosen.direct_num_workers, chosen.direct_running_mode) == (3, "multi_processing")
    assert _runner(parse_options(["--engine=dataflow"])) == "DataflowRunner"
    flink = parse_options(["--engine=flink"])
    assert (_runner(flink), flink.view_as(PortableOptions).environment_type) == ("FlinkRunner", "LOOPBACK")
    cluster = parse_options(["--engine=flink", "--flink_master=host:8081"])
    assert cluster.view_as(PortableOptions).environment_type == "DOCKER"
    process = parse_options(["--engine=flink", "--flink_master=host:8081", "--environment_type=PROCESS"])
    assert process.view_as(PortableOptions).environment_type == "PROCESS"
    assert process.view_as(FlinkRunnerOptions).flink_master == "host:8081"
    for endpoint, kind in (("localhost:8099", "LOOPBACK"), ("[::1]:8099", "LOOPBACK"), ("host:8099", "DOCKER")):
        server = parse_options(["--engine=flink", f"--job_endpoint={endpoint}"])
        assert server.view_as(PortableOptions).environment_type == kind


def test_a_runner_may_be_given_instead_of_an_engine() -> None:
    options = parse_options(["--runner=DirectRunner"])
    assert _runner(options) == "DirectRunner"
    assert options.view_as(RunOptions).engine is None
    for same in ("FlinkRunner", "flink", "apache_beam.runners.portability.flink_runner.FlinkRunner"):
        assert _runner(parse_options(["--engine=flink", f"--runner={same}"])) == same
    with pytest.raises(ArgumentError, match="--engine=local runs on FnApiRunner, which contradicts --runner"):
        parse_options(["--engine=local", "--runner=FlinkRunner"])


def test_options_make_a_pipeline_that_runs() -> None:
    with beam.Pipeline(options=parse_options(["--run_id=x"])) as p:
        assert type(p.runner).__name__ == "FnApiRunner"
        assert p.options.view_as(RunOptions).run_id == "x"
        _ = p | beam.Create([1])


@pytest.mark.parametrize(
    ("argv", "remote"),
    [
        ([], False),
        (["--engine=local-parallel"], False),
        (["--runner=DirectRunner"], False),
        (["--runner=apache_beam.runners.direct.direct_runner.DirectRunner"], False),
        (["--runner=prismrunner"], False),
        (["--engine=flink"], False),
        (["--engine=flink", "--flink_master=host:8081"], True),
        (["--engine=flink", "--flink_master=localhost:8081", "--environment_type=PROCESS"], True),
        (["--engine=flink", "--job_endpoint=localhost:8099", "--environment_type=PROCESS"], True),
        (["--engine=flink", "--job_endpoint=localhost:8099"], False),
        (["--engine=flink", "--job_endpoint=host:8099"], True),
        (["--engine=flink", "--environment_type=DOCKER"], True),
        (["--engine=flink", "--environment_type=PROCESS"], False),
        (["--engine=flink", "--environment_type=EXTERNAL", "--environment_config=localhost:50000"], False),
        (["--engine=flink", "--environment_type=EXTERNAL", "--environment_config=host:50000"], True),
        (["--engine=flink", "--environment_type=EXTERNAL", "--environment_config=localhost.example.org:50000"], True),
        (["--engine=flink", "--environment_type=EXTERNAL", POOL], False),
        (["--engine=flink", "--environment_type=EXTERNAL"], True),
        (["--engine=flink", "--flink_master=[local]", "--environment_type=EXTERNAL", POOL], False),
        (["--engine=flink", "--flink_master=host:8081", "--environment_type=EXTERNAL", POOL], True),
        (["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=EXTERNAL", POOL], False),
        (["--runner=PortableRunner", "--job_endpoint=localhost:8099", "--environment_type=EXTERNAL", POOL], True),
        (["--runner=PortableRunner", "--environment_type=LOOPBACK"], False),
        (["--runner=PortableRunner"], True),
        (["--runner=SparkRunner"], True),
        (["--engine=dataflow"], True),
        (["--engine=dataflow", "--environment_type=LOOPBACK"], True),
    ],
)
def test_local_paths_are_for_local_workers(argv: list[str], remote: bool) -> None:
    options = parse_options(argv)
    assert is_remote_engine(options) is remote
    require_remote_paths(options, {"--input": "gs://bucket/*.txt", "--index": None})
    if remote:
        for path in ("data/*.txt", "/data/x", "file:///data/x"):
            with pytest.raises(ArgumentError, match=r"^--index is a path on this machine"):
                require_remote_paths(options, {"--input": "gs://bucket/*.txt", "--index": path})
    else:
        require_remote_paths(options, {"--index": "data/index"})


def test_local_paths() -> None:
    assert is_local_path("a/b")
    assert is_local_path("file:///a/b")
    assert not is_local_path("gs://a/b")
    assert not is_local_path("hdfs://a/b")


def test_required_flags_are_named() -> None:
    options = parse_options(["--input=a", "--output="])
    require_flags(options, "input")
    with pytest.raises(ArgumentError, match="--output is required"):
        require_flags(options, "input", "output")
    with pytest.raises(ArgumentError, match="--ledger is required"):
        require_flags(options, "ledger")


def test_help_shows_our_flags_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--input=a", "--help"], _TextOptions, description="Does an example.")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "Does an example." in shown
    assert "of the example mechanism" in shown
    for flag in ("--input", "--overwrite", "--engine", "--dry_run", *ENGINES):
        assert flag in shown
    assert "--flink_version" not in shown
    assert "https://beam.apache.org" in shown


def test_help_of_every_flag_tells_its_default_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(add_help=False)
    RunOptions._add_argparse_args(parser)  # type: ignore[arg-type]
    for action in parser._actions:
        assert action.help, action.option_strings
        assert action.dest in ("input", "output") or "(default: " in action.help
        if isinstance(action.default, (str, int)) and not isinstance(action.default, bool):
            assert f"(default: {action.default})" in action.help
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--run_id ID names this run: its staging folder PREFIX.tmp-ID, and its charge in --budget_store" in shown
    assert "--overwrite replace an output and a ledger that exist (default: refuse)" in shown
    assert f"--format {{{','.join(FORMATS)}}}" in shown
    assert f"--engine {{{','.join(ENGINES)}}}" in shown
    assert "write the ledger to this file too; refused when it exists, unless --overwrite is given" in shown


def test_help_of_a_dry_run_is_that_of_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (({}, "show what the run would spend"), ({"dry_run": "spends nothing"}, "spends nothing")):
        with pytest.raises(SystemExit):
            parse_options(["--help"], **given)  # type: ignore[arg-type]
        assert f"--dry_run {said}" in " ".join(capsys.readouterr().out.replace("check the arguments and", "").split())


class _TextOptionsThatRequire(_TextOptions):
    """In the place of `_TextOptions`, for the parser alone."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--example_epsilon", type=float, required=True)


def test_a_pipeline_may_require_what_others_need_not(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_options(["--example_epsilon=2"], _TextOptionsThatRequire)
    assert options.view_as(_TextOptions).example_epsilon == 2
    with pytest.raises(ArgumentError, match=r"^--example_epsilon is required: write --example_epsilon=VALUE$"):
        parse_options(["--input=a"], _TextOptionsThatRequire)
    assert parse_options([]).view_as(_TextOptions).example_epsilon is None


def test_formats_are_those_that_can_be_read_and_written() -> None:
    assert ("auto", *beam_dp.io.FORMATS) == FORMATS


def test_programs_without_a_pipeline_parse_as_strictly(capsys: pytest.CaptureFixture[str]) -> None:
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--vectors", required=True)
        parser.add_argument("--trees", type=int, default=50)

    given = parse_flags(["--vectors=a"], declare, description="Builds.")
    assert (given.vectors, given.trees) == ("a", 50)
    for argv, named in (
        ([], "^--vectors is required: write --vectors=VALUE$"),
        (["--vectors=a", "--tree=3"], "did you mean --trees"),
        (["--vectors=a", "--trees=x"], "--trees: invalid int value"),
    ):
        with pytest.raises(ArgumentError, match=named):
            parse_flags(argv, declare, description="Builds.")
    with pytest.raises(SystemExit):
        parse_flags(["-h"], declare, description="Builds.", usage="build THINGS")
    shown = capsys.readouterr().out
    assert "usage: build THINGS" in shown and "Builds." in shown


@pytest.mark.parametrize(
    ("argv", "name", "trees"),
    [(["a", "--trees=3"], "a", 3), (["--trees", "3", "a"], "a", 3), (["--trees=3"], None, 3), (["a"], "a", 50)],
)
def test_a_name_may_stand_before_or_behind_the_flags(argv: list[str], name: str | None, trees: int) -> None:
    def declare(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", nargs="?")
        parser.add_argument("--trees", type=int, default=50)

    given = parse_flags(argv, declare, description="Builds.")
    assert (given.name, given.trees) == (name, trees)
    with pytest.raises(ArgumentError, match="unexpected argument '"):
        parse_flags(["b", "c", *argv], declare, description="Builds.")
