"""Command-line options that every pipeline shares, parsed strictly, on top of Beam's own.

Beam parses leniently: it drops what it does not know. Here a flag that nobody knows is refused and the nearest known
one is named, so that a misspelt ``--epsilom=1`` never runs with a default instead.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
)

from beam_dp import io
from beam_dp.errors import ArgumentError

_ENGINES = {
    "local": "this process",
    "local-parallel": "one worker process for each processor",
    "flink": "a Flink on this machine, or the cluster that --flink_master names",
    "dataflow": "the service of Google Cloud",
}
ENGINES = tuple(_ENGINES)
EMBEDDED_JOB_SERVICE = "embed"
FORMATS = ("auto", *io.FORMATS)
_EMBEDDED_FLINK = ("[auto]", "[local]")
_THIS_MACHINE = ("localhost", "127.0.0.1", "[::1]")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DRY_RUN_HELP = (
    "check the arguments and show what the run would spend and, of a --budget_store, would leave, or why it would be "
    "refused (exit status 3); charge nothing, read and write no data (default: run)"
)
_REQUIRED = "the following arguments are required: --"
_USAGE = "%(prog)s [--flag=value ...]"
_RUNNER_HINT = (
    "Every option of Beam and of the chosen runner is accepted too, e.g. --runner, --direct_num_workers, "
    "--flink_master, --project, --region, --temp_location: see https://beam.apache.org/documentation/runners/ ."
)


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise argparse.ArgumentTypeError("must be a whole number of at least 0")
    return int(text)


def _run_id(text: str) -> str:
    if not _RUN_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            "must be 1 to 64 letters, digits, dots, hyphens or underscores, the first a letter or digit"
        )
    return text


def declare_engine(parser: ArgumentParser, engines: Sequence[str] = ENGINES) -> None:
    """The flags of `RunOptions` that say where to run, on one of ``engines``, and what to show."""
    parser.add_argument(
        "--engine",
        choices=engines,
        help=f"where to run: {'; '.join(f'{engine} is {_ENGINES[engine]}' for engine in engines)} (default: local, "
        "unless --runner is given)",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="show Beam's log and tracebacks, which may quote input data (default: hide them)",
    )


def declare_index(parser: ArgumentParser) -> None:
    """The flag that names the embedding index."""
    parser.add_argument("--index", metavar="DIR_OR_URI", help="embedding index (default: the one inside the package)")


def declare_launch(
    parser: ArgumentParser, *, ledger: str, replaced: str, named: str, engines: Sequence[str] = ENGINES
) -> None:
    """The flags of `RunOptions` that every pipeline with a ledger has.

    Args:
        parser: gets them.
        ledger: where the ledger is without ``--ledger``.
        replaced: what ``--overwrite`` replaces.
        named: what ``--run_id`` names.
        engines: that the pipeline runs on.
    """
    parser.add_argument(
        "--ledger",
        metavar="FILE.json",
        help="write the ledger to this file too; refused when it exists, unless --overwrite is given "
        f"(default: it is {ledger} only)",
    )
    parser.add_argument("--overwrite", action="store_true", help=f"replace {replaced} (default: refuse)")
    parser.add_argument(
        "--run_id",
        type=_run_id,
        metavar="ID",
        help=f"names this run: {named} in --budget_store, where a launch that is repeated under the same name is "
        "refused instead of charged twice; 1 to 64 letters, digits, dots, hyphens or underscores (default: random)",
    )
    parser.add_argument(
        "--budget_store",
        metavar="URL",
        help="charge the run to a budget before anything is drawn, and refuse it (exit status 3) where too little "
        "is left; sqlite:///FILE, postgresql://USER@HOST/DATABASE or gs://BUCKET/FOLDER; goes with --dataset "
        "(default: charge nothing)",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="whose budget in --budget_store is charged; 'beam-dp budget create' makes one (default: none)",
    )
    declare_engine(parser, engines)


class RunOptions(PipelineOptions):
    """The options of every pipeline of this package.

    Beam puts the flags of all direct subclasses of PipelineOptions that a process has imported into one parser, where
    a flag may exist once. So a flag that all pipelines have belongs here, and one that some have into a class of its
    own, which the classes of those pipelines name in an attribute ``shared`` (see `option_classes`). None is declared
    as required: use `require_flags`.
    """

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--input", metavar="GLOB", help="files to read: a path or URI that may hold wildcards")
        parser.add_argument(
            "--output",
            metavar="PREFIX",
            help="a path or URI: shards go to PREFIX-SSSSS-of-NNNNN.EXT, what they are to PREFIX.manifest.json; "
            "refused when such an output exists, unless --overwrite is given",
        )
        parser.add_argument(
            "--format",
            choices=FORMATS,
            default="auto",
            help="of the input files and the output; auto goes by the names of the input files (default: auto)",
        )
        parser.add_argument(
            "--max_rejects",
            type=_whole_number,
            default=0,
            metavar="N",
            help="publish nothing if more than N rows are rejected (default: 0)",
        )
        declare_launch(
            parser,
            ledger="in the manifest",
            replaced="an output and a ledger that exist",
            named="its staging folder PREFIX.tmp-ID, and its charge",
        )


class EpsilonOptions(PipelineOptions):
    """The privacy parameter of the pipelines that have one."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--epsilon",
            type=float,
            help="privacy parameter: with texts of one word, in units of 1/distance (randomized_response: without a "
            "unit); with tables, and in private_vocabulary, of all rows of one privacy unit together",
        )


class TextInputOptions(PipelineOptions):
    """The options of the pipelines that read texts."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--text_column", default="text", help="the column that holds the texts (default: text)")
        parser.add_argument("--max_words", type=int, default=64, help="words kept of a text (default: 64)")


class StrictParser(ArgumentParser):
    """An argparse parser that raises ArgumentError where argparse would print its usage and exit."""

    def __init__(self, description: str = "", usage: str = _USAGE) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
            usage=usage,
        )

    def error(self, message: str) -> NoReturn:
        """Raises ArgumentError with argparse's message, the flag in front."""
        missing = message.removeprefix(_REQUIRED)
        if missing != message:
            flag = f"--{missing.split(', ')[0]}"
            raise ArgumentError(f"{flag} is required: write {flag}=VALUE")
        raise ArgumentError(message.removeprefix("argument "))

    def parse_strictly(self, argv: Sequence[str]) -> Namespace:
        """Parses ``argv``, in which every item must belong to a flag or be a positional argument of this parser.

        Raises:
            ArgumentError: unknown flag (names the nearest known one), wrong or missing value, too many or too few
                positional arguments.
        """
        # Intermixed: a name may stand behind the flags, also one that may be left out.
        namespace, unknown = self.parse_known_intermixed_args(list(argv))
        flags = [item for item in unknown if item.startswith("-") and item != "--"]
        if flags:
            raise ArgumentError(self._unknown_flag(flags[0].split("=", 1)[0]))
        if unknown:
            # A URL may hold a password.
            shown = "that is a URL" if "://" in unknown[0] else repr(unknown[0])
            raise ArgumentError(f"unexpected argument {shown}: options are written --flag=value")
        return namespace

    def _unknown_flag(self, flag: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the options"
        return f"unknown option {flag}; {hint}"


def parse_flags(
    argv: Sequence[str], declare: Callable[[ArgumentParser], None], *, description: str, usage: str = _USAGE
) -> Namespace:
    """Parses the flags of a program that runs no pipeline, as strictly as `parse_options`.

    Args:
        argv: the command line without the program's name.
        declare: adds the program's flags to the parser.
        description: what ``--help`` says first.
        usage: how the command is written.

    Raises:
        ArgumentError: see `StrictParser.parse_strictly`.
        SystemExit: 0, after ``--help``.
    """
    parser = StrictParser(description, usage)
    declare(parser)
    if _wants_help(argv):
        _print_help(parser)
    return parser.parse_strictly(argv)


def option_classes(*classes: type[PipelineOptions]) -> list[type[PipelineOptions]]:
    """The classes that declare the flags of a pipeline which are not Beam's, in the order in which help shows them.

    Args:
        classes: the pipeline's own options; the classes in an attribute ``shared`` of one of them belong to it, and an
            attribute ``run_options`` names a subclass of `RunOptions` that declares those of its flags which the
            pipeline has. A subclass of another options class may stand in its place in the same way: Beam does not know
            it, and values are read through the class that it knows.
    """
    run: list[type[PipelineOptions]] = [cls.run_options for cls in classes if hasattr(cls, "run_options")]
    return [cls for first in classes for cls in (first, *getattr(first, "shared", ()))] + (run or [RunOptions])


def parse_options(
    argv: Sequence[str], *classes: type[PipelineOptions], description: str = "", dry_run: str = _DRY_RUN_HELP
) -> PipelineOptions:
    """The options of a pipeline: those of `option_classes`, of Beam and of its runners.

    The preset of ``--engine`` fills the runner's flags that were not given; a missing ``--run_id`` is drawn at random.

    Args:
        argv: the command line without the program's name.
        classes: as `option_classes` takes them.
        description: what ``--help`` says first.
        dry_run: what it says of ``--dry_run``.

    Raises:
        ArgumentError: see `StrictParser.parse_strictly`; also an ``--engine`` that contradicts ``--runner``.
        SystemExit: 0, after ``--help``.
    """
    own = option_classes(*classes)
    if _wants_help(argv):
        parser = StrictParser(description)
        for cls in own:
            _declare(cls, parser)
        parser.add_argument("--dry_run", action="store_true", help=dry_run)
        parser.epilog = _RUNNER_HINT
        _print_help(parser)
    flags = _with_dry_run_value(argv)
    given = _full_parser(own).parse_strictly(flags)
    engine = given.engine or (None if given.runner else "local")
    if engine:
        flags += _preset(engine, given, flags)
    options = PipelineOptions(flags)
    run = options.view_as(RunOptions)
    run.engine = engine
    run.run_id = getattr(given, "run_id", None) or uuid.uuid4().hex[:16]
    if "format" in given:
        run.format = given.format
    options.view_as(TestOptions).dry_run = _boolean("--dry_run", given.dry_run)
    return options


def names_in(value: str | None) -> tuple[str, ...]:
    """The names in the value of a flag that takes several, separated by commas."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


def require_flags(options: PipelineOptions, *names: str) -> None:
    """Raises ArgumentError naming the first of ``names`` (without dashes) that was not given or is empty."""
    values = options.get_all_options()
    for name in names:
        if values.get(name) in (None, ""):
            raise ArgumentError(f"--{name} is required: write --{name}=VALUE")


def is_remote_engine(options: PipelineOptions) -> bool:
    """Whether workers may run on other machines, where this machine's files do not exist."""
    runner = runner_name(options.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER)
    if runner in {runner_name(name) for name in (*StandardOptions.LOCAL_RUNNERS, "InteractiveRunner", "DaskRunner")}:
        return False
    if "dataflow" in runner:
        return True
    environment = options.view_as(PortableOptions)
    # LOOPBACK runs the user code in the submitting process, whichever cluster drives it.
    if environment.environment_type == "LOOPBACK":
        return False
    return not (_is_driven_here(runner, options) and _are_workers_of_the_driver(environment))


def _is_driven_here(runner: str, options: PipelineOptions) -> bool:
    """Whether what drives the job runs in this process or was started by it; a job server may belong to a cluster."""
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint:
        return endpoint == EMBEDDED_JOB_SERVICE
    return runner == "flink" and options.view_as(FlinkRunnerOptions).flink_master in _EMBEDDED_FLINK


def _are_workers_of_the_driver(environment: PortableOptions) -> bool:
    """Whether workers run on the machine of the driver: as its processes, or in a pool at its own address."""
    if environment.environment_type == "PROCESS":
        return True
    pool = environment.environment_config or environment.lookup_environment_option("external_service_address")
    return environment.environment_type == "EXTERNAL" and _is_this_machine(str(pool))


def _is_this_machine(address: str) -> bool:
    """Whether ``address`` (host:port) names the machine itself, as this machine sees it."""
    return address.rpartition(":")[0] in _THIS_MACHINE


def is_local_path(path: str) -> bool:
    """Whether ``path`` names a file on this machine and not a URI such as gs://bucket/file."""
    return "://" not in path or path.startswith("file://")


def require_remote_paths(options: PipelineOptions, paths: Mapping[str, str | None]) -> None:
    """Refuses paths on this machine where the workers run on others.

    Args:
        options: the pipeline's options.
        paths: flag (with dashes) to path; None where none was given.

    Raises:
        ArgumentError: names the first flag whose path is local although the engine is remote.
    """
    if not is_remote_engine(options):
        return
    for flag, path in paths.items():
        if path is not None and is_local_path(path):
            raise ArgumentError(
                f"{flag} is a path on this machine, which the workers of this engine cannot reach: give a URI "
                "of a file system that they share, e.g. gs://BUCKET/..."
            )


def _full_parser(own: Sequence[type[PipelineOptions]]) -> StrictParser:
    """A parser of our flags and of Beam's; ours first, so that a near miss is told the nearest of ours."""
    parser = StrictParser()
    beams = [cls for cls in PipelineOptions.__subclasses__() if cls.__module__.startswith("apache_beam.")]
    for cls in (*own, *beams):
        _declare(cls, parser)
    return parser


def _declare(cls: type[PipelineOptions], parser: StrictParser) -> None:
    # Beam's annotation names its own parser class, of which no options class uses more than argparse has.
    cls._add_argparse_args(cast(Any, parser))


def _preset(engine: str, given: Namespace, flags: Sequence[str]) -> list[str]:
    """The runner flags that ``engine`` stands for, without those that were given."""
    runner = {"flink": "FlinkRunner", "dataflow": "DataflowRunner"}.get(engine, "FnApiRunner")
    if given.runner and runner_name(given.runner) != runner_name(runner):
        raise ArgumentError(f"--engine={engine} runs on {runner}, which contradicts --runner: leave one of them out")
    preset = {"--runner": runner}
    if engine == "local-parallel":
        preset |= {"--direct_num_workers": str(_available_cpus()), "--direct_running_mode": "multi_processing"}
    elif engine == "flink":
        master = given.flink_master or FlinkRunnerOptions().flink_master
        endpoint = given.job_endpoint
        here = master in _EMBEDDED_FLINK and (not endpoint or _is_this_machine(endpoint))
        preset["--environment_type"] = "LOOPBACK" if here else "DOCKER"
    named = {flag.split("=", 1)[0] for flag in flags}
    return [f"{flag}={value}" for flag, value in preset.items() if flag not in named]


def _available_cpus() -> int:
    """Processors that this process may use; a container often gets fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runner_name(runner: str) -> str:
    """A runner's name as Beam compares it: no package, no case, no 'Runner' at the end."""
    return runner.rsplit(".", 1)[-1].lower().removesuffix("runner")


def _with_dry_run_value(argv: Sequence[str]) -> list[str]:
    """``argv`` with a bare ``--dry_run``, which Beam declares with a value, given the value true."""
    following = [*argv, "--"][1:]
    return [
        "--dry_run=true" if item == "--dry_run" and next_item.startswith("-") else item
        for item, next_item in zip(argv, following, strict=True)
    ]


def _boolean(flag: str, value: str | bool) -> bool:
    # Beam takes the text "false" for true: any text that is not empty is.
    if isinstance(value, bool):
        return value
    if value.lower() not in _BOOLEANS:
        raise ArgumentError(f"{flag} must be true or false")
    return _BOOLEANS[value.lower()]


def _wants_help(argv: Sequence[str]) -> bool:
    return "--help" in argv or "-h" in argv


def _print_help(parser: StrictParser) -> NoReturn:
    parser.print_help(sys.stdout)
    raise SystemExit(0)
