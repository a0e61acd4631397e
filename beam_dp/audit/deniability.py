"""How often a word stays itself, and how many others it becomes: what plausible deniability a mechanism leaves it.

Words are taken from the public vocabulary, not from anybody's text: nothing is protected and no budget is spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from beam_dp.errors import ArgumentError, require_count
from beam_dp.mechanisms.base import Doubles, WordIds, WordMechanism, WordSpace
from beam_dp.randomness import SecureSource

_BLOCK_DRAWS = 1 << 20


@dataclass(frozen=True, eq=False)
class Deniability:
    """What n words became in ``runs`` independent draws each.

    Attributes:
        words: ids (n,) int32.
        runs: draws of each word.
        unchanged: in how many of them it stayed itself, (n,) int64.
        distinct: S_w, how many different words it became, itself counted: (n,) int64, 1 to ``runs``.
    """

    words: WordIds
    runs: int
    unchanged: npt.NDArray[np.int64]
    distinct: npt.NDArray[np.int64]

    @property
    def share_unchanged(self) -> Doubles:
        """N_w, the share of draws in which a word stays itself: (n,) float64. High means little deniability."""
        return self.unchanged / self.runs

    def least_protected(self, count: int = 10) -> npt.NDArray[np.intp]:
        """Positions in `words` of those that stay themselves most often; of equal ones, those that become fewest."""
        return np.lexsort((self.words, self.distinct, -self.unchanged))[:count]


def plausible_deniability(
    mechanism: WordMechanism,
    index: WordSpace,
    runs: int,
    *,
    words: npt.ArrayLike | None = None,
    rng: np.random.Generator | None = None,
) -> Deniability:
    """N_w and S_w of ``words``, from ``runs`` draws of each.

    The standard error of N_w is at most 1/(2·sqrt(runs)): 0.05 at 100 runs. S_w grows with ``runs``, and compares only
    with an S_w of as many runs.

    Source: Feyisetan, Balle, Drake, Diethe, "Privacy- and Utility-Preserving Textual Analysis via Calibrated
    Multivariate Perturbations", WSDM 2020, section 4 (with 100 runs of each word).

    Args:
        mechanism: bound to ``index`` once.
        index: an opened index, or any word space.
        runs: draws of each word, at least 1.
        words: ids (n,), integers in [0, V); None for the whole vocabulary.
        rng: what is drawn with; None for a fresh key of the operating system.

    Raises:
        ArgumentError: ``runs`` or ``words`` is out of range, or the mechanism is not valid on this index.
    """
    require_count("runs", runs)
    ids = require_words(words, index)
    bound = mechanism.bind(index)
    generator = SecureSource().generator if rng is None else rng
    unchanged, distinct = (np.empty(len(ids), np.int64) for _ in range(2))
    step = max(1, _BLOCK_DRAWS // runs)
    for start in range(0, len(ids), step):
        block = ids[start : start + step]
        drawn = bound.sample(np.repeat(block, runs), generator).reshape(len(block), runs)
        unchanged[start : start + step] = (drawn == block[:, None]).sum(axis=1)
        drawn.sort(axis=1)
        distinct[start : start + step] = 1 + (np.diff(drawn, axis=1) != 0).sum(axis=1)
    return Deniability(ids, runs, unchanged, distinct)


def require_words(words: npt.ArrayLike | None, index: WordSpace) -> WordIds:
    """``words`` as ids (n,) int32, all of the vocabulary for None, else ArgumentError."""
    if words is None:
        return np.arange(index.size, dtype=np.int32)
    ids = np.asarray(words)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise ArgumentError("words must be a list of at least one word id, whole numbers")
    if ids.min() < 0 or ids.max() >= index.size:
        raise ArgumentError(f"words must be ids from 0 to {index.size - 1}")
    return ids.astype(np.int32)
