"""N_w and S_w of several mechanisms over a range of epsilon, side by side: as a table in text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beam_dp.audit.calibration import clopper_pearson
from beam_dp.audit.deniability import Deniability, plausible_deniability
from beam_dp.errors import ArgumentError
from beam_dp.mechanisms.base import WordIds, WordMechanism, WordSpace

CONFIDENCE = 0.95
COLUMNS = (
    "mechanism",
    "epsilon",
    "N_w mean",
    f"{CONFIDENCE:.0%} interval",
    "N_w worst",
    "S_w mean",
    "S_w worst",
    "least protected",
)
NOTES = (
    "N_w is the share of draws in which a word stays itself, S_w how many different words it became; the worst is that "
    "of the word that stays itself most often, or becomes the fewest.",
    "Epsilon is per unit of distance, in the metric that the mechanism promises in (mahalanobis has its own). The same "
    "epsilon is not the same protection for two mechanisms: compare them where N_w is the same.",
    "The worst of many words, each measured by a few draws, looks worse than it is. Whoever draws again gets slightly "
    "different numbers.",
)
_NAMED_WORDS = 3


@dataclass(frozen=True, eq=False)
class Compared:
    """One mechanism at one epsilon.

    Attributes:
        mechanism: its name.
        epsilon: in units of 1/distance.
        found: what words became; None where the mechanism refuses this epsilon.
        refused: why; None where it does not.
    """

    mechanism: str
    epsilon: float
    found: Deniability | None
    refused: str | None


def compare(
    mechanisms: Mapping[str, Callable[[float], WordMechanism]],
    index: WordSpace,
    epsilons: Sequence[float],
    runs: int,
    words: WordIds,
    rng: np.random.Generator | None = None,
) -> Iterator[Compared]:
    """Draws each of ``words`` (n,) ``runs`` times for each mechanism and epsilon, as `plausible_deniability` does.

    An epsilon at which a mechanism is not defined is no error, only a gap.
    """
    for name, make in mechanisms.items():
        for epsilon in epsilons:
            try:
                found = plausible_deniability(make(epsilon), index, runs, words=words, rng=rng)
            except ArgumentError as error:
                yield Compared(name, epsilon, None, str(error))
            else:
                yield Compared(name, epsilon, found, None)


def cells(compared: Compared, names: Sequence[str]) -> list[str]:
    """The cells of its row under `COLUMNS`, without numbers where the mechanism refuses.

    Args:
        names: of all words, by id.
    """
    found = compared.found
    head = [compared.mechanism, f"{compared.epsilon:g}"]
    if found is None:
        return [*head, "refused", *[""] * (len(COLUMNS) - len(head) - 1)]
    share = found.share_unchanged
    low, high = mean_interval(found)
    least = [names[found.words[place]] for place in found.least_protected(_NAMED_WORDS)]
    return [
        *head,
        f"{share.mean():.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{share.max():.2f}",
        f"{found.distinct.mean():.1f}",
        f"{found.distinct.min()}",
        " ".join(least),
    ]


def mean_interval(found: Deniability) -> tuple[float, float]:
    """The 95% interval of Clopper and Pearson of the mean N_w, see `beam_dp.audit.calibrate`."""
    total = len(found.words) * found.runs
    low, high = clopper_pearson(found.unchanged.sum(keepdims=True), total, 1 - CONFIDENCE)
    return float(low[0]), float(high[0])


def refusals(compared: Iterable[Compared]) -> list[str]:
    """Why a mechanism refuses an epsilon: one line for each mechanism, of the largest epsilon that it refuses."""
    largest = {item.mechanism: item for item in compared if item.refused is not None}
    return [f"{name} at epsilon {item.epsilon:g}: {item.refused}" for name, item in largest.items()]


def table_text(compared: Sequence[Compared], names: Sequence[str]) -> str:
    """The table in columns of text, with what to know to read it."""
    rows = [list(COLUMNS), *(cells(item, names) for item in compared)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    # Names to the left, numbers to the right, words at the end.
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers, row[-1]]).rstrip())
    return "\n".join([*lines, "", *NOTES, *refusals(compared)]) + "\n"
