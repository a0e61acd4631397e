"""The one file that a Flex Template's launcher runs: it picks the pipeline that the template is of.

    python launch.py --pipeline=aggregate --input=... --output=...

Launchers write every parameter as --name=value. Flags without a value, as --overwrite, take true and false here.
"""

from __future__ import annotations

import sys
from argparse import Action
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from apache_beam.options.pipeline_options import PipelineOptions

from beam_dp.errors import ArgumentError, require_choice
from pipelines import aggregate, private_vocabulary, privatize_stream, privatize_text
from pipelines.main import run_main
from pipelines.options import StrictParser, option_classes

PARAMETER = "pipeline"
_FLAG = f"--{PARAMETER}="
_SWITCH = {"true": True, "false": False}
# Else Beam would ship what is defined here to the workers, who need none of it.
_NOTHING_OF_THIS_FILE = "--no_save_main_session"


@dataclass(frozen=True)
class Pipeline:
    """What can be launched.

    Attributes:
        main: gets the command line.
        options: the pipeline's own options.
        description: what it is, as ``--help`` says it.
        streaming: whether it reads a stream, and so does not end by itself.
    """

    main: Callable[[list[str]], None]
    options: type[PipelineOptions]
    description: str
    streaming: bool = False

    def actions(self) -> Iterator[Action]:
        """The options of the pipeline, its own first, as argparse has them; those of Beam are not among them."""
        parser = StrictParser()
        for options in option_classes(self.options):
            options._add_argparse_args(cast(Any, parser))
        return iter(parser._actions)


PIPELINES = {
    "aggregate": Pipeline(aggregate.main, aggregate.AggregateOptions, str(aggregate.__doc__)),
    "private_vocabulary": Pipeline(
        private_vocabulary.main, private_vocabulary.VocabularyOptions, str(private_vocabulary.__doc__)
    ),
    "privatize_stream": Pipeline(
        privatize_stream.main,
        privatize_stream.PrivatizeStreamOptions,
        str(privatize_stream.__doc__),
        streaming=True,
    ),
    "privatize_text": Pipeline(privatize_text.main, privatize_text.PrivatizeTextOptions, str(privatize_text.__doc__)),
}


def is_switch(action: Action) -> bool:
    """Whether a flag has no value."""
    return action.nargs == 0


def without_switch_values(argv: Sequence[str], actions: Iterator[Action]) -> Iterator[str]:
    """``argv`` with ``--flag`` for ``--flag=true``, and without ``--flag=false``, where a flag has no value.

    Raises:
        ArgumentError: another value.
    """
    switches = {option for action in actions if is_switch(action) for option in action.option_strings}
    for item in argv:
        flag, equals, value = item.partition("=")
        if flag not in switches or not equals:
            yield item
        elif value.lower() not in _SWITCH:
            raise ArgumentError(f"{flag} must be true or false")
        elif _SWITCH[value.lower()]:
            yield flag


def main(argv: list[str]) -> None:
    """Runs the pipeline that ``--pipeline`` names, with all other arguments."""
    names = [item.removeprefix(_FLAG) for item in argv if item.startswith(_FLAG)]
    name = require_choice(_FLAG[:-1], names[0] if len(names) == 1 else None, tuple(PIPELINES))
    pipeline = PIPELINES[name]
    rest = [item for item in argv if not item.startswith(_FLAG)]
    pipeline.main([*without_switch_values(rest, pipeline.actions()), _NOTHING_OF_THIS_FILE])


if __name__ == "__main__":
    sys.exit(run_main(main))
