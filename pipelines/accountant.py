"""Budgets that outlive pipelines, and what ledgers say.

    beam-dp budget create NAME --epsilon=10 --delta=1e-5 --budget_store=sqlite:///budget.db
    beam-dp budget show [NAME] --budget_store=URL
    beam-dp budget history NAME --budget_store=URL
    beam-dp budget void NAME --run_id=ID --budget_store=URL
    beam-dp budget verify [NAME] --budget_store=URL
    beam-dp report LEDGER... [--format=html --output=FILE]
    beam-dp explain LEDGER

``python -m pipelines.accountant`` is the same program. A command's own --help lists its flags.
"""

from __future__ import annotations

import difflib
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import NamedTuple

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_dp import Ledger, resolve_index
from beam_dp.accounting.budget import BudgetStore, Limit
from beam_dp.accounting.budget.charges import DOCUMENT, MODELS, WORD
from beam_dp.accounting.report.explain import explain
from beam_dp.accounting.report.runs import report_runs
from beam_dp.embeddings.broadcast import read_manifest
from beam_dp.errors import ArgumentError, InputError, ResourceError
from beam_dp.io.files import (
    InputFile,
    last_component,
    local_absolute,
    open_input,
    places,
    reading,
    require_file_system,
    writing,
)
from pipelines.budget_views import FORMATS, View, accounts_view, history_view, verified_view
from pipelines.main import run_main, summary
from pipelines.options import names_in, parse_flags

REPORT_FORMATS = ("text", "tsv", "json", "html")
_UNIT_OF_MODEL = {"central": "user", "local": "user", "metric": None}


class Command(NamedTuple):
    """One of the commands.

    Attributes:
        usage: what stands behind its name.
        says: what it does, in a line.
        declare: adds its flags and arguments to a parser.
        run: does it.
    """

    usage: str
    says: str
    declare: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], None]


def main(argv: list[str]) -> None:
    """Does what the command in ``argv`` says.

    Raises:
        ArgumentError: there is no such command, or it does not take these flags.
    """
    name = next((name for name in COMMANDS if argv[: name.count(" ") + 1] == name.split(" ")), None)
    if name is None:
        if "--help" in argv or "-h" in argv:
            summary(*_overview())
            return
        raise ArgumentError(_unknown(argv))
    command = COMMANDS[name]
    rest = argv[name.count(" ") + 1 :]
    usage = f"beam-dp {name} {command.usage}"
    command.run(parse_flags(rest, command.declare, description=command.says, usage=usage))


def console() -> int:
    """The script ``beam-dp``: returns its exit status."""
    return run_main(main)


def _overview() -> list[str]:
    width = max(map(len, COMMANDS))
    listed = [f"  {name:<{width}}  {command.says}" for name, command in COMMANDS.items()]
    return [*str(__doc__).strip().splitlines(), "", "The commands:", *listed]


def _unknown(argv: Sequence[str]) -> str:
    # A URL may hold a password.
    words = [word for word in argv[:2] if not word.startswith("-") and "://" not in word]
    begun = [name for name in COMMANDS if name.startswith(f"{' '.join(words)} ".lstrip())]
    if len(words) < 2 and begun:
        return f"a command is missing: write one of beam-dp {', beam-dp '.join(begun)}"
    near = difflib.get_close_matches(" ".join(words), COMMANDS, n=1) or difflib.get_close_matches(words[0], COMMANDS)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
    return f"unknown command {' '.join(words)!r}; {hint}"


def _declare_verbose(parser: ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")


def _declare_store(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget_store",
        metavar="URL",
        help="where the budgets are: sqlite:///FILE, postgresql://USER@HOST/DATABASE or gs://BUCKET/FOLDER; never with "
        "a password in it",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the answer (default: text)")
    _declare_verbose(parser)


def _declare_create(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the data set; one that is there gets a further limit")
    parser.add_argument("--epsilon", type=float, help="the most that all runs together may spend")
    parser.add_argument("--delta", type=float, default=0.0, help="likewise (default: 0)")
    parser.add_argument(
        "--model", choices=MODELS, default="central", help="the privacy model of the limit (default: central)"
    )
    parser.add_argument(
        "--privacy_unit",
        metavar="UNIT",
        help="central and local: the column that says whose a row is, as pipelines name it (default: user); metric: "
        f"{WORD}, with an epsilon per unit of distance on one index, or {DOCUMENT}, with the unitless worst case of a "
        f"document over all indexes (default: {WORD} where --index or --metric is given)",
    )
    parser.add_argument(
        "--index",
        metavar="DIR_OR_URI",
        help=f"metric, unit {WORD}: the index whose distance epsilon counts (default: the one inside the package)",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help=f"metric, unit {WORD}: the distance on that index, as the ledger of a --dry_run names it, e.g. "
        "'mahalanobis(lambda=0.2)' (default: that of the index)",
    )
    parser.add_argument(
        "--renew_days",
        type=int,
        metavar="N",
        help="begin anew every N days, counted from now (default: a limit for good)",
    )
    parser.add_argument(
        "--inputs",
        metavar="PREFIX,PREFIX",
        help="folders, files or URIs that the data set is made of: a run may read nothing else (default: anything)",
    )
    _declare_store(parser)


def _declare_name(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the data set")
    _declare_store(parser)


def _declare_show(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the data set (default: all of them)")
    _declare_store(parser)


def _declare_void(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the data set")
    parser.add_argument("--run_id", metavar="ID", help="the run that published nothing and never will")
    parser.add_argument(
        "--signed_by", metavar="PERSON", help="who vouches for the next flag, where the run was started (default: none)"
    )
    parser.add_argument(
        "--neither_output_nor_staging_was_seen",
        action="store_true",
        help="what that person says, once the lease of the run is over: nobody saw anything that it wrote",
    )
    _declare_store(parser)


def _declare_verify(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the data set (default: all of them)")
    parser.add_argument(
        "--head",
        metavar="HASH",
        help="a hash of NAME that was shown earlier and kept elsewhere: its record must still be there (default: none)",
    )
    _declare_store(parser)


def _declare_report(parser: ArgumentParser) -> None:
    parser.add_argument("ledgers", metavar="LEDGER", nargs="+", help="a ledger file, or a PREFIX.manifest.json")
    parser.add_argument("--format", choices=REPORT_FORMATS, default="text", help="of the report (default: text)")
    parser.add_argument(
        "--output", metavar="FILE", help="where to write it; refused when it exists (default: standard output)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists (default: refuse)")
    _declare_verbose(parser)


def _declare_explain(parser: ArgumentParser) -> None:
    parser.add_argument("ledger", metavar="LEDGER", help="a ledger file, or a PREFIX.manifest.json")
    _declare_verbose(parser)


def limit_from(flags: Namespace) -> Limit:
    """The limit that the flags of ``budget create`` describe.

    Raises:
        ArgumentError: one is missing, out of range, or does not go with another.
        IndexArtifactError: there is no index at ``--index``.
    """
    if flags.epsilon is None:
        raise ArgumentError("--epsilon is required: write --epsilon=VALUE")
    unit = flags.privacy_unit
    if unit is None:
        unit = WORD if flags.index is not None or flags.metric is not None else _UNIT_OF_MODEL[flags.model]
    if unit is None:
        raise ArgumentError(f"--privacy_unit is required with --model=metric: write {WORD} or {DOCUMENT}")
    of_words = (flags.model, unit) == ("metric", WORD)
    for flag in ("index", "metric"):
        if getattr(flags, flag) is not None and not of_words:
            raise ArgumentError(f"--{flag} goes with --model=metric --privacy_unit={WORD} only: leave it out")
    index = resolve_index(flags.index) if of_words else None
    return Limit(
        model=flags.model,
        privacy_unit=unit,
        epsilon=flags.epsilon,
        delta=flags.delta,
        metric=None if index is None else flags.metric or read_manifest(index).metric,
        index_digest=None if index is None else index.digest,
        renew_days=flags.renew_days,
    )


def _store(flags: Namespace) -> BudgetStore:
    if not flags.budget_store:
        raise ArgumentError("--budget_store is required: write --budget_store=URL")
    return BudgetStore(flags.budget_store)


def _answer(flags: Namespace, view: View) -> None:
    summary(view.render(flags.format))


def _create(flags: Namespace) -> None:
    store, limit = _store(flags), limit_from(flags)
    account = store.create(flags.name, limit, inputs=names_in(flags.inputs))
    _answer(flags, accounts_view([account], store.now()))


def _show(flags: Namespace) -> None:
    store = _store(flags)
    names = store.datasets() if flags.name is None else [flags.name]
    accounts = [store.account(name) for name in names]
    _answer(flags, accounts_view(accounts, store.now()))


def _history(flags: Namespace) -> None:
    _answer(flags, history_view(flags.name, _store(flags).history(flags.name)))


def _void(flags: Namespace) -> None:
    store = _store(flags)
    if not flags.run_id:
        raise ArgumentError("--run_id is required: write --run_id=ID")
    unseen = flags.neither_output_nor_staging_was_seen
    account = store.void(flags.name, flags.run_id, signed_by=flags.signed_by, unseen=unseen)
    _answer(flags, accounts_view([account], store.now()))


def _verify(flags: Namespace) -> None:
    store = _store(flags)
    _answer(flags, verified_view(store, store.verify(flags.name, flags.head)))


def read_ledger(path: str) -> Ledger:
    """The ledger in a ledger file or in the manifest of an output.

    Raises:
        ArgumentError: no file system knows the path.
        InputError: it holds no ledger, or one that was changed.
        ResourceError: it cannot be read.
    """
    require_file_system("LEDGER", path)
    name = last_component(path)
    with open_input(InputFile(local_absolute(path), name, size=0)) as stream, reading(name):
        text = stream.read()
    try:
        fields = json.loads(text)
    except ValueError:
        raise InputError(f"{name} is neither a ledger nor a manifest: it is not JSON") from None
    if isinstance(fields, dict) and "ledger" in fields:
        fields = fields["ledger"]
    try:
        return Ledger.from_json(json.dumps(fields))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _report(flags: Namespace) -> None:
    ledgers = [(path, read_ledger(path)) for path in flags.ledgers]
    report = report_runs(ledgers, flags.format)
    if flags.output is None:
        summary(report.removesuffix("\n"))
        return
    if any(set(places(local_absolute(flags.output))) & set(places(local_absolute(path))) for path in flags.ledgers):
        raise ArgumentError("--output must not be one of the ledgers: it would be replaced")
    write_text(flags.output, report, overwrite=flags.overwrite)
    summary(f"published: {flags.output}")


def write_text(path: str, text: str, *, overwrite: bool) -> None:
    """`write_bytes` of ``text`` in UTF-8."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def write_bytes(path: str, content: bytes, *, overwrite: bool) -> None:
    """Writes ``content`` to a file that appears whole or not at all.

    Raises:
        ArgumentError: no file system knows the path.
        ResourceError: it exists and ``overwrite`` is not set, or cannot be written.
    """
    require_file_system("--output", path)
    final = local_absolute(path)
    with writing(path):
        if not overwrite and FileSystems.exists(final):
            raise ResourceError(f"output already exists: {last_component(path)}; choose another or pass --overwrite")
        with FileSystems.create(f"{final}.tmp", compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            stream.write(content)
        FileSystems.rename([f"{final}.tmp"], [final])


def _explain(flags: Namespace) -> None:
    summary(explain(read_ledger(flags.ledger)).removesuffix("\n"))


COMMANDS = {
    "budget create": Command(
        "NAME --epsilon=E --budget_store=URL [--flag=value ...]",
        "Makes the budget of a data set, or adds a limit of another model or unit to it.",
        _declare_create,
        _create,
    ),
    "budget show": Command(
        "[NAME] --budget_store=URL [--flag=value ...]",
        "Shows limits, what is spent and left, and the runs that are not over.",
        _declare_show,
        _show,
    ),
    "budget history": Command(
        "NAME --budget_store=URL [--flag=value ...]",
        "Shows every record: limits, charges, launches, publications, and who gave back what.",
        _declare_name,
        _history,
    ),
    "budget void": Command(
        "NAME --run_id=ID --budget_store=URL [--flag=value ...]",
        "Gives the charge of a run back that published nothing and never will.",
        _declare_void,
        _void,
    ),
    "budget verify": Command(
        "[NAME] --budget_store=URL [--flag=value ...]",
        "Checks that no record was changed, moved or cut off.",
        _declare_verify,
        _verify,
    ),
    "report": Command(
        "LEDGER... [--flag=value ...]",
        "Shows what several runs have spent together, from their ledgers.",
        _declare_report,
        _report,
    ),
    "explain": Command(
        "LEDGER [--flag=value ...]",
        "Says in plain words what a ledger promises, and what it does not.",
        _declare_explain,
        _explain,
    ),
}


if __name__ == "__main__":
    sys.exit(console())
