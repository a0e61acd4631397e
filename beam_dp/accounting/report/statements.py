"""What an entry of a ledger promises, rests on, assumes and leaves open, in plain words.

An entry says what was planned. Whatever its parameters do not say is put down as assumed, never as given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from beam_dp.accounting.composition import NOT_PRIVATE
from beam_dp.accounting.entries import Entry
from beam_dp.accounting.report.wording import (
    central_promise,
    chance,
    exact,
    local_promise,
    plus,
    times_as_likely,
    word_promise,
)
from beam_dp.accounting.rounding import float_up, round_up
from beam_dp.guarantees import CentralGuarantee, Guarantee, LocalGuarantee, MetricGuarantee

_ENFORCED = "by enforcement"


def is_open(entry: Entry) -> bool:
    """Whether an entry says of itself that it protects nothing."""
    return str(entry.guarantee.reason).startswith(NOT_PRIVATE)


def _is_text(entry: Entry) -> bool:
    """Whether words of texts are drawn; in the local model the policy for unknown words tells."""
    local = isinstance(entry.guarantee, LocalGuarantee)
    return isinstance(entry.guarantee, MetricGuarantee) or (local and "oov" in entry.parameters)


def unit_of(entry: Entry) -> str:
    """Who or what is protected, by its name."""
    guarantee = entry.guarantee
    return guarantee.privacy_unit if isinstance(guarantee, (CentralGuarantee, LocalGuarantee)) else "word"


def released(entry: Entry) -> str:
    """What gets out."""
    if _is_text(entry):
        return f"Texts whose words are each replaced by a draw of {entry.mechanism}."
    if isinstance(entry.guarantee, LocalGuarantee):
        return f"Responses of {entry.mechanism} in place of answers."
    return f"The output of {entry.mechanism}."


def protected(entry: Entry) -> str:
    """Who is protected, and from which difference."""
    guarantee = entry.guarantee
    if isinstance(guarantee, MetricGuarantee):
        return (
            "Each word of a document, one by one. Not a person: what several documents of one person tell together "
            "adds up."
        )
    if isinstance(guarantee, LocalGuarantee):
        if _is_text(entry):
            return (
                "The words of one document. Not a person: what several documents of one person tell together adds up."
            )
        return f"One {guarantee.privacy_unit}: which answer was given."
    return f"One {unit_of(entry)}, with all rows: whether they are in the data or not."


def promised(entry: Entry) -> Iterator[str]:
    """The claim in sentences with the numbers of this entry."""
    guarantee, count, unit = entry.guarantee, entry.max_applications, unit_of(entry)
    if guarantee.epsilon is None:
        yield "Nothing protects what this step writes." if is_open(entry) else "Nothing finite is promised."
        return
    if isinstance(guarantee, MetricGuarantee):
        yield word_promise(guarantee.metric, guarantee.epsilon, guarantee.delta, entry.diameter)
    elif isinstance(guarantee, LocalGuarantee) and _is_text(entry):
        yield (
            "If a word is replaced by any other one of the vocabulary: no set of outputs becomes "
            f"{times_as_likely(guarantee.epsilon)}{plus(guarantee.delta)}."
        )
    elif isinstance(guarantee, LocalGuarantee):
        yield local_promise(unit, guarantee.epsilon, guarantee.delta)
    else:
        yield central_promise(unit, guarantee.epsilon, guarantee.delta)
    if guarantee.delta:
        yield (
            f"Delta is {chance(guarantee.delta)}. It is added, not multiplied: of what has no more than this "
            "probability the factor says nothing, it may come to light whole."
        )
    if entry.composition_delta:
        yield f"In totals each application takes a further delta of {chance(entry.composition_delta)} for composition."
    text = _is_text(entry)
    if count is None:
        whose = "words of one document are drawn" if text else f"meet one {unit}"
        yield f"That is for one application. How many {whose} was not declared, so nothing is stated for all of them."
    elif count > 1:
        met = (
            f"Up to {count:,d} words of one document are drawn" if text else f"One {unit} is met up to {count:,d} times"
        )
        of = (
            ", per unit of the largest distance over its positions"
            if isinstance(guarantee, MetricGuarantee)
            else ", by adding up"
        )
        yield f"{met}: together {_together(guarantee, count)}{of}."


def _together(guarantee: Guarantee, count: int) -> str:
    """What so many applications spend, rounded up."""
    assert guarantee.epsilon is not None
    epsilon, delta = round_up(Fraction(guarantee.epsilon) * count), float_up(Fraction(guarantee.delta) * count)
    if epsilon is None or delta is None or delta >= 1:
        return "nothing that could be stated"
    return f"epsilon {exact(epsilon)}" + (f" and delta {exact(delta)}" if delta else "")


def rests_on(entry: Entry) -> str:
    """The ground of the claim."""
    guarantee = entry.guarantee
    if guarantee.epsilon is None:
        return f"No claim is made: {guarantee.reason}."
    if guarantee.basis == "computed":
        return "Computed from the exact law that the mechanism draws from."
    said = "Proved, in the documentation of the mechanism."
    if isinstance(guarantee, MetricGuarantee):
        return f"{said} The proof is about real numbers; vectors and noise are floating-point numbers."
    return said


def assumed(entry: Entry) -> Iterator[str]:
    """What must be so for the claim to hold, and is declared only."""
    if entry.guarantee.epsilon is None:
        return
    unit, count = unit_of(entry), entry.max_applications
    if isinstance(entry.guarantee, CentralGuarantee):
        bounds = entry.parameters.get("bounds")
        if isinstance(bounds, Mapping) and bounds.get("hold") != _ENFORCED:
            yield (
                f"One {unit} has rows in at most {bounds.get('partitions')} partitions, and at most "
                f"{bounds.get('rows_per_partition')} in each."
            )
        elif bounds is None and "neighbours" not in entry.parameters and "sensitivity" not in entry.parameters:
            yield f"What one {unit} changes is bounded as the mechanism needs it: the ledger does not say how."
        windows = entry.parameters.get("windows")
        enforced = isinstance(windows, Mapping) and windows.get("hold") == _ENFORCED
        # In the global window all rows meet once; then there is nothing about windows in the ledger.
        if count is not None and not enforced and (count > 1 or windows is not None):
            yield f"One {unit} is met at most {_so_often(count)}: on fixed windows, what max_windows declares."
        yield f"One {unit} is one person: who is several of them is protected as several."
    elif not _is_text(entry):
        if count is not None:
            yield f"One {unit} gives at most {count:,d} {'response' if count == 1 else 'responses'}."
    elif count is not None and entry.parameters.get("max_words") != count:
        yield f"Of one document at most {count:,d} words are drawn: the ledger does not say what enforces it."


def _so_often(count: int) -> str:
    return "once" if count == 1 else f"{count:,d} times"


def unprotected(entry: Entry) -> Iterator[str]:
    """What anybody can see who sees the output, whatever epsilon is."""
    if isinstance(entry.guarantee, CentralGuarantee):
        yield "All settings of the step, and the keys of partitions where they are a public list."
        return
    if not _is_text(entry):
        yield "How many responses there are, their order, timestamps and windows."
        yield _kept(entry)
        return
    words = entry.parameters.get("max_words")
    most = f", up to {words}" if isinstance(words, int) else ""
    oov = entry.parameters.get("oov")
    if oov == "drop":
        yield f"How many words of each text are in the public vocabulary of the index{most} (oov=drop)."
    elif oov == "random":
        yield f"How many words each text has{most} (oov=random); that a word was unknown is hidden as one word is."
    else:
        yield "How many words of each text were drawn."
    yield "How many texts there are, their order, timestamps and windows."
    yield _kept(entry)


def _kept(entry: Entry) -> str:
    kept = entry.parameters.get("keep_columns")
    if kept is None:
        return "Columns that the step was told to keep, if any: they pass unchanged, and the ledger does not list them."
    if not kept:
        return "No column is kept beside it."
    return f"The columns {', '.join(map(str, kept))}: they pass unchanged."


def recorded(entry: Entry) -> str:
    """The parameters of an entry on one line."""
    return "; ".join(f"{name} {value}" for name, value in _flat(entry.parameters))


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None or value == [] else str(value)
