"""Which words of a source become the vocabulary of an index, and what is reported of the rest.

============================================  =====================================================================
case                                          decision
============================================  =====================================================================
empty word                                    dropped, reported
white space or control character in a word    dropped, reported: an output word must stay one word of a line
zero vector                                   dropped, reported: a filler of many files, no position in the space;
                                              kept with the metric poincare: the origin is its most general point
word seen before                              the first stays, later ones are dropped and reported
vector equal to an earlier word's             kept, counted: it is true of the data, and makes the smallest distance 0
NaN or infinite number                        refused
length outside of 1e-12 to 1e12               refused: float32 squares would lose it (metric euclidean)
length of 1 or more, or 1 - |x|² below 1e-10  refused: not in the Poincaré ball, or too near its boundary for float64
                                              coordinates 2x/(1 - |x|²) to tell words apart (metric poincare)
fewer than two words left                     refused
============================================  =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_dp.embeddings.formats import Block
from beam_dp.errors import InputError
from beam_dp.mechanisms.poincare_ball import boundary_gaps

_MIN_NORM, _MAX_NORM = 1e-12, 1e12
_MIN_GAP = 1e-10
_REPORTED_LINES = 5

# All of str.isspace (categories Z* and the control characters among it) and the other control characters.
_UNUSABLE = r"[\p{Z}\p{Cc}]"

EMPTY_WORD = "empty_word"
UNUSABLE_CHARACTER = "white_space_or_control_character"
ZERO_VECTOR = "zero_vector"
DUPLICATE_WORD = "duplicate_word"


@dataclass(frozen=True)
class Dropped:
    """Words left out for one ``reason``: how many, and the ``lines`` of the first few."""

    reason: str
    count: int
    lines: tuple[int, ...]


class VocabularyFilter:
    """Passes the usable words of consecutive blocks, and counts the others.

    Args:
        path: the source, to name it in errors.
        unit: what its line numbers count: ``line``, ``record`` or ``row``.
        max_words: at most so many words pass.
        metric: of the index, which says what vectors there may be.
    """

    def __init__(self, path: str, unit: str, max_words: int | None, metric: str = "euclidean") -> None:
        self.path = path
        self._metric = metric
        self._unit = unit
        self._room = max_words
        self._seen: set[str] = set()
        self._dropped: dict[str, tuple[int, tuple[int, ...]]] = {}

    @property
    def full(self) -> bool:
        """True when ``max_words`` have passed."""
        return self._room is not None and len(self._seen) >= self._room

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What was left out so far, by reason."""
        return tuple(Dropped(reason, count, lines) for reason, (count, lines) in sorted(self._dropped.items()))

    def apply(self, block: Block) -> Block:
        """The usable words of ``block``.

        Raises:
            InputError: a vector is not finite, its length is out of range, or it is not inside the Poincaré ball.
        """
        squares = np.einsum("ij,ij->i", block.vectors, block.vectors, dtype=np.float64)
        self._refuse(block, ~np.isfinite(squares), "the vector holds a NaN or infinite number")
        zero = np.all(block.vectors == 0, axis=1)
        if self._metric == "poincare":
            zero[:] = False
            self._refuse_outside(block)
        else:
            norm = np.sqrt(squares)
            wrong = ~zero & ((norm < _MIN_NORM) | (norm > _MAX_NORM))
            self._refuse(
                block, wrong, f"the length of the vector is not in [{_MIN_NORM:g}, {_MAX_NORM:g}]: rescale the vectors"
            )
        empty = _flags(pc.equal(pc.binary_length(block.words), 0))
        unusable = _flags(pc.match_substring_regex(block.words, _UNUSABLE))
        block = self._drop(block, EMPTY_WORD, empty)
        zero, unusable = zero[~empty], unusable[~empty]
        block = self._drop(block, UNUSABLE_CHARACTER, unusable)
        block = self._drop(block, ZERO_VECTOR, zero[~unusable])
        return self._first_occurrences(block)

    def _first_occurrences(self, block: Block) -> Block:
        repeated = np.zeros(len(block.words), dtype=bool)
        for at, word in enumerate(block.words.to_pylist()):
            if self.full:
                block, repeated = _select(block, slice(0, at)), repeated[:at]
                break
            repeated[at] = word in self._seen
            self._seen.add(word)
        return self._drop(block, DUPLICATE_WORD, repeated)

    def _drop(self, block: Block, reason: str, rows: npt.NDArray[np.bool_]) -> Block:
        lines = block.lines[rows].tolist()
        if not lines:
            return block
        count, first = self._dropped.get(reason, (0, ()))
        self._dropped[reason] = (count + len(lines), (first + tuple(lines[:_REPORTED_LINES]))[:_REPORTED_LINES])
        return _select(block, ~rows)

    def _refuse_outside(self, block: Block) -> None:
        gaps = boundary_gaps(block.vectors)
        self._refuse(
            block, gaps <= 0, "the length of the vector, in float32, is not below 1: not a point of the Poincaré ball"
        )
        self._refuse(
            block,
            gaps < _MIN_GAP,
            f"the vector is too near the boundary of the Poincaré ball: 1 - |x|² must be at least {_MIN_GAP:g}",
        )

    def _refuse(self, block: Block, rows: npt.NDArray[np.bool_], why: str) -> None:
        if rows.any():
            raise InputError(f"{self.path}, {self._unit} {block.lines[rows.argmax()]}: {why}")


def _flags(values: pa.Array) -> npt.NDArray[np.bool_]:
    return values.to_numpy(zero_copy_only=False).astype(bool)


def _select(block: Block, rows: npt.NDArray[np.bool_] | slice) -> Block:
    if isinstance(rows, slice):
        return Block(block.words[rows], block.vectors[rows], block.lines[rows])
    return Block(block.words.filter(pa.array(rows)), block.vectors[rows], block.lines[rows])
