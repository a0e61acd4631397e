"""Privatizes a stream of texts word by word: from a Pub/Sub subscription to a Pub/Sub topic, until it is stopped.

    python -m pipelines.privatize_stream --input_subscription=projects/P/subscriptions/S
        --output_topic=projects/P/topics/T --mechanism=multivariate_laplace --epsilon=12

One message in, one out: a text (--format=text), or a JSON object of --text_column and --keep_columns (--format=jsonl).
Ids, attributes and ordering keys of messages and all other columns are dropped. A message without a valid text becomes
a reason code in --rejects_topic, or is dropped and counted.

What is promised: of each message that is read, one draw is released. What an attempt draws that fails is seen by
nobody; a step that publishes twice publishes the same words, so that subscribers may get a message twice, but no second
draw. Two engines hold that: this process (--engine=local), for trials, since it loses what it works on when it stops,
and Dataflow in its exactly-once mode; the at-least-once mode is refused.

A text that is read again is drawn for again, each draw spends epsilon anew, and no ledger can count it: what a
publisher sends twice (unless --id_label names the attribute that tells; Dataflow remembers some ten minutes), what
Pub/Sub delivers again after those minutes, a subscription that is moved back (seek), a second subscription of the same
topic. So give the pipeline a subscription of its own, and what is to be read again a run of its own, which is charged.

What is public: how many messages there are and when, since each is published soon after it was read, at a time that
Pub/Sub shows; and of each text how many of its words are in the vocabulary, as with files.

A run is charged to --budget_store once, for as long as it goes on, since epsilon is that of one word of one text, and
for good, when it starts. A budget that names its inputs knows them as pubsub://projects/P/subscriptions/S.
"""

from __future__ import annotations

import json
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam import pvalue
from apache_beam.io import filesystems
from apache_beam.io.gcp import pubsub
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions, TestOptions
from apache_beam.runners.runner import PipelineState

from beam_dp import Ledger
from beam_dp.embeddings.broadcast import open_index, resolve_index
from beam_dp.errors import ArgumentError, BeamDpError, ResourceError
from beam_dp.io.files import local_absolute
from beam_dp.io.publish import require_writable
from beam_dp.io.rejects import INVALID_UNICODE, MALFORMED_JSON, METRICS_NAMESPACE, ROW_TOO_LARGE
from pipelines.accountant import write_text
from pipelines.budget_views import charged_lines
from pipelines.engines import require_engine
from pipelines.main import run_main, summary
from pipelines.options import (
    EpsilonOptions,
    RunOptions,
    TextInputOptions,
    declare_launch,
    is_remote_engine,
    names_in,
    parse_options,
    require_flags,
    require_remote_paths,
    runner_name,
)
from pipelines.privatize_text import MechanismOptions, PrivatizeTextOptions, privatizer_from
from pipelines.run import budget_run, ended, show_plan

FORMATS = ("text", "jsonl")
# Beam's other runners do not read Pub/Sub in Python.
ENGINES = ("local", "dataflow")
# Pub/Sub takes messages of 10 MB: one half for the words drawn, so that no draw is ever too long, one for what is kept.
LARGEST_PART = 4_500_000

_LOCAL_RUNNER = "BundleBasedDirectRunner"
_AT_LEAST_ONCE = "streaming_mode_at_least_once"
_PROJECT = r"[a-z][a-z0-9:.-]{4,61}[a-z0-9]"
_NAME = r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}"
_REJECTED = "rejected"


class StreamRunOptions(RunOptions):
    """What of `RunOptions` a stream has; for the parser alone: values are read through `RunOptions`."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--format",
            choices=FORMATS,
            default="text",
            help="what a message holds: a text, or a JSON object with it in --text_column (default: text)",
        )
        declare_launch(
            parser,
            ledger="printed as a report",
            replaced="a ledger that exists",
            named="its charge",
            engines=ENGINES,
        )


class PrivatizeStreamOptions(PipelineOptions):
    """The options of this pipeline alone."""

    shared = (PrivatizeTextOptions, MechanismOptions, EpsilonOptions, TextInputOptions)
    run_options = StreamRunOptions

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--input_subscription",
            metavar="SUBSCRIPTION",
            help="what to read, and nobody else reads: projects/PROJECT/subscriptions/NAME",
        )
        parser.add_argument("--output_topic", metavar="TOPIC", help="where to publish: projects/PROJECT/topics/NAME")
        parser.add_argument(
            "--rejects_topic",
            metavar="TOPIC",
            help="where to publish the reason of each message that has no valid text, never what it held (default: "
            "drop and count them)",
        )
        parser.add_argument(
            "--id_label",
            metavar="ATTRIBUTE",
            help="the attribute by which Dataflow knows a message that was published twice, and reads one of them "
            "(default: it knows only what Pub/Sub delivers twice)",
        )


def decoded_text(payload: bytes) -> tuple[str | None, str | None]:
    """The text that a payload is and None, or None and the reason why it is none."""
    try:
        return payload.decode("utf-8"), None
    except UnicodeDecodeError:
        return None, INVALID_UNICODE


def decoded_row(payload: bytes, text_column: str, keep_columns: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The wanted values of the JSON object that a payload is, and None; or nothing and the reason why it has none.

    A column to keep that is not there is null; what is in the text column is for `PrivatizeText` to judge.
    """
    try:
        found = json.loads(payload.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(found, dict):
            return {}, MALFORMED_JSON
        kept = {name: found.get(name) for name in keep_columns}
        # Encoded once here, so that nothing can fail when the words are drawn.
        size = len(encoded_row(kept))
    except UnicodeError:
        return {}, INVALID_UNICODE
    except (ValueError, RecursionError):
        return {}, MALFORMED_JSON
    if size > LARGEST_PART:
        return {}, ROW_TOO_LARGE
    return ({text_column: found[text_column]} if text_column in found else {}) | kept, None


def encoded_text(text: str) -> bytes:
    """The payload of a text; a newline for an empty one, since Pub/Sub takes no empty message."""
    return (text or "\n").encode("utf-8")


def encoded_row(row: Mapping[str, Any]) -> bytes:
    """The payload of a row: one JSON object, in UTF-8.

    Raises:
        ValueError: it holds a number that JSON has not, or as UnicodeEncodeError text that UTF-8 has not.
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")


def encoded_reason(reason: str) -> bytes:
    """The payload of a rejected message."""
    return encoded_row({"reason": reason})


class _Decode(beam.DoFn):
    """Payloads to texts or rows; reasons of those that are none go to the output ``rejected``."""

    def __init__(self, format: str, text_column: str, keep_columns: Sequence[str]) -> None:
        self._format = format
        self._columns = (text_column, tuple(keep_columns))

    def process(self, payload: bytes) -> Iterator[Any]:
        value: Any
        value, reason = decoded_text(payload) if self._format == "text" else decoded_row(payload, *self._columns)
        if reason is None:
            yield value
        else:
            Metrics.counter(METRICS_NAMESPACE, f"rejects/{reason}").inc()
            yield pvalue.TaggedOutput(_REJECTED, reason)


def _reasons(rejected: pa.RecordBatch) -> Iterable[str]:
    return rejected.column("reason").to_pylist()


def _refuse_constant(name: str) -> Any:
    raise ValueError("not a number that JSON has")


def privatized(payloads: beam.PCollection, options: PipelineOptions) -> tuple[beam.PCollection, beam.PCollection]:
    """The payloads to publish, and those of the reasons of what was rejected; both of bytes.

    The former come out of a reshuffle: the runner has settled on one attempt of the draws before anybody sees any.
    """
    texts = options.view_as(TextInputOptions)
    format = options.view_as(RunOptions).format
    keep = names_in(options.view_as(PrivatizeTextOptions).keep_columns)
    decode = beam.ParDo(_Decode(format, texts.text_column, keep)).with_outputs(_REJECTED, main="texts")
    found = payloads | "Decode" >> decode
    found.texts.element_type, found[_REJECTED].element_type = (str if format == "text" else dict[str, Any]), str
    drawn = found.texts | "Privatize" >> privatizer_from(options).with_rejects()
    encode = encoded_text if format == "text" else encoded_row
    published = drawn.rows | "Encode" >> beam.Map(encode).with_output_types(bytes) | "Settle" >> beam.Reshuffle()
    unfit = drawn.rejected | "Reasons" >> beam.FlatMap(_reasons).with_output_types(str)
    rejected = (found[_REJECTED], unfit) | "Rejected" >> beam.Flatten()
    return published, rejected | "EncodeReasons" >> beam.Map(encoded_reason).with_output_types(bytes)


def build(pipeline: beam.Pipeline, options: PipelineOptions) -> None:
    """Adds read, privatize and publish to ``pipeline``."""
    own = options.view_as(PrivatizeStreamOptions)
    source = beam.io.ReadFromPubSub(subscription=own.input_subscription, id_label=own.id_label)
    published, rejected = privatized(pipeline | "Read" >> source, options)
    published | "Publish" >> beam.io.WriteToPubSub(own.output_topic)
    if own.rejects_topic:
        rejected | "PublishReasons" >> beam.io.WriteToPubSub(own.rejects_topic)


def require_stream(options: PipelineOptions) -> None:
    """Checks the options of this pipeline, and picks the runner for ``--engine=local``.

    Raises:
        ArgumentError: a flag is missing, is no name that Pub/Sub has, or contradicts another one; or an engine that
            does not read Pub/Sub, or would publish more than one draw.
    """
    own, run, standard = (options.view_as(cls) for cls in (PrivatizeStreamOptions, RunOptions, StandardOptions))
    require_flags(options, "input_subscription", "output_topic")
    for flag in ("input_subscription", "output_topic", "rejects_topic"):
        kind = f"{flag.rpartition('_')[2]}s"
        value = getattr(own, flag)
        if value is not None and not re.fullmatch(rf"projects/{_PROJECT}/{kind}/{_NAME}", value):
            raise ArgumentError(f"--{flag} must be projects/PROJECT/{kind}/NAME")
    if own.rejects_topic == own.output_topic:
        raise ArgumentError("--rejects_topic must be another topic than --output_topic")
    if run.format == "text" and options.view_as(PrivatizeTextOptions).keep_columns:
        raise ArgumentError("--keep_columns goes with --format=jsonl: a plain text has no columns")
    standard.streaming = True
    if run.engine == "local":
        standard.runner = _LOCAL_RUNNER
    runner = runner_name(str(standard.runner))
    local = runner == runner_name(_LOCAL_RUNNER)
    if not local and "dataflow" not in runner:
        raise ArgumentError("--engine must be local or dataflow: Beam's other runners do not read Pub/Sub in Python")
    if local and own.id_label:
        raise ArgumentError("--id_label goes with --engine=dataflow: Beam's runner on this machine does not know it")
    asked = options.get_all_options()
    for flag in ("dataflow_service_options", "experiments"):
        if any(item.startswith(_AT_LEAST_ONCE) for item in asked[flag] or ()):
            raise ArgumentError(f"--{flag}: {_AT_LEAST_ONCE} would publish several draws of one text; leave it out")


def require_room(options: PipelineOptions) -> None:
    """Returns if a text of ``--max_words`` words, whichever are drawn, fits a message.

    Raises:
        ArgumentError: it does not; a draw could then fail for what it is.
    """
    own, texts = options.view_as(PrivatizeTextOptions), options.view_as(TextInputOptions)
    words = open_index(resolve_index(options.view_as(MechanismOptions).index), own.search).words
    # JSON writes no character of a word in more than six bytes for one; then a blank.
    longest = 6 * int(pc.max(pc.binary_length(words)).as_py()) + 1
    if texts.max_words * longest > LARGEST_PART:
        raise ArgumentError(f"--max_words must be at most {LARGEST_PART // longest:,}: a message holds 10 MB")


def main(argv: list[str]) -> None:
    """Parses the options, charges the run, says so, and runs the pipeline until it is stopped."""
    options = parse_options(argv, PrivatizeStreamOptions, description=str(__doc__))
    own, run = options.view_as(PrivatizeStreamOptions), options.view_as(RunOptions)
    require_stream(options)
    require_remote_paths(options, {"--index": options.view_as(MechanismOptions).index})
    budget = budget_run(options, "privatize_stream")
    if budget is not None:
        budget.reads([f"pubsub://{own.input_subscription}"])
    ledger = Ledger(budget=budget)
    pipeline = ledger.pipeline(options)
    build(pipeline, options)
    require_room(options)
    if options.view_as(TestOptions).dry_run:
        show_plan(ledger)
        return
    require_engine(options)
    if pubsub.pubsub is None and not is_remote_engine(options):
        raise ResourceError("Pub/Sub needs Google's client: pip install 'beam_dp[gcp]'")
    require_writable(run.ledger)
    if run.ledger and not run.overwrite and filesystems.FileSystems.exists(local_absolute(run.ledger)):
        raise ResourceError("--ledger exists already: choose another file or pass --overwrite")
    pipeline.charge()
    if run.ledger:
        write_text(run.ledger, ledger.to_json(), overwrite=run.overwrite)
    # Now, since a stream has no end at which to say it.
    summary(ledger.report(), *(() if budget is None else charged_lines(budget)), f"publishing to {own.output_topic}")
    result = pipeline.run()
    if options.view_as(GoogleCloudOptions).template_location:
        # In the launcher of a Flex Template: the job is written, and Dataflow starts it.
        return
    state = ended(result, options)
    if state not in (None, PipelineState.DONE, PipelineState.CANCELLED, PipelineState.DRAINED):
        raise BeamDpError(f"the pipeline ended in state {state}; the runner's log says why")


if __name__ == "__main__":
    sys.exit(run_main(main))
