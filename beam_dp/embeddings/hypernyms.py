"""Hierarchies of words to train a Poincaré embedding from: an edge list, or the nouns of WordNet.

A hierarchy has *nodes* with the nodes above them, and words that name a node. In an edge list a node is a word. In
WordNet it is a sense (a synset), named by one or several words, and a word may name several senses; the more general
sense is meant by its first word. Words are what an index holds, so the relations of all senses of a word are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from beam_dp.embeddings.files import read_binary
from beam_dp.errors import InputError

# The pointers from a noun to a more general one: what it is a kind of, and what it is an instance of.
_HYPERNYM_POINTERS = ("@", "@i")


@dataclass(frozen=True)
class Hierarchy:
    """Nodes with their names and what is directly above them.

    Attributes:
        words: the words that name each node; the first one names it where it stands above others.
        above: the nodes directly above each node, if any; all are keys of ``words``.
    """

    words: Mapping[str, Sequence[str]]
    above: Mapping[str, Sequence[str]]

    def relations(self, *, root: str | None = None, direct: bool = False) -> list[tuple[str, str]]:
        """Pairs (word, more general word), each once, in the order of the nodes; never a word with itself.

        Args:
            root: keep the nodes that this word names, and those below them; None for all.
            direct: with the nodes directly above alone, not with all that are above those.

        Raises:
            InputError: nothing is left.
        """
        kept = set(self.words) if root is None else self._below(root)
        pairs = {
            (word, general): None
            for node, words in self.words.items()
            if node in kept
            for general in self._generals(node, kept, direct)
            for word in words
            if word != general
        }
        if not pairs:
            raise InputError("the hierarchy holds no relation" + ("" if root is None else f" below the root {root}"))
        return list(pairs)

    def _generals(self, node: str, kept: set[str], direct: bool) -> Iterator[str]:
        """The first words of the nodes above ``node``, nearest first; a circle ends where it began."""
        seen, level = {node}, [node]
        while level:
            level = [up for at in level for up in self.above.get(at, ()) if up in kept and up not in seen]
            yield from (self.words[up][0] for up in level)
            if direct:
                return
            seen.update(level)

    def _below(self, root: str) -> set[str]:
        below: dict[str, list[str]] = {}
        for node, ups in self.above.items():
            for up in ups:
                below.setdefault(up, []).append(node)
        waiting = [node for node, words in self.words.items() if root in words]
        found = set(waiting)
        while waiting:
            more = [node for node in below.get(waiting.pop(), ()) if node not in found]
            found.update(more)
            waiting += more
        return found


def read_edges(path: str) -> Hierarchy:
    """The hierarchy of a text file with a word, a tab and a more general word in every line.

    Args:
        path: path or URI, UTF-8.

    Raises:
        InputError: no such file, or a line that is none of these; names the line.
    """
    words: dict[str, list[str]] = {}
    above: dict[str, dict[str, None]] = {}
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 2 or any(not field or field.split() != [field] for field in fields):
            raise InputError(
                f"{path}, line {number}: not a word, a tab and a more general word, without other white space"
            )
        word, general = fields
        words.setdefault(word, [word])
        words.setdefault(general, [general])
        above.setdefault(word, {})[general] = None
    return Hierarchy(words, {word: list(generals) for word, generals in above.items()})


def read_wordnet(path: str) -> Hierarchy:
    """The nouns of WordNet 3, from its file ``data.noun`` (Debian's wordnet-base: /usr/share/wordnet/data.noun).

    Words are lower case, as the tokenizer makes them; those of several words are joined by ``_``. The format is that of
    WordNet's manual page wndb(5): a line has the offset, two fields, the number of words in hexadecimal, a word and an
    identifier each, the number of pointers, and for each its symbol, the offset of its target and two fields.

    Args:
        path: path or URI.

    Raises:
        InputError: no such file, or a line that is none of these; names the line.
    """
    words: dict[str, list[str]] = {}
    above: dict[str, list[str]] = {}
    for number, line in _lines(path):
        if line.startswith("  "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        try:
            end = 4 + 2 * int(fields[3], 16)
            names, pointers = fields[4:end:2], fields[end + 1 : end + 1 + 4 * int(fields[end])]
            complete = len(names) == int(fields[3], 16) >= 1 and len(pointers) == 4 * int(fields[end])
        except (IndexError, ValueError):
            complete = False
        if not complete or fields[2] != "n":
            raise InputError(f"{path}, line {number}: not a noun of WordNet; give its file data.noun")
        words[fields[0]] = [name.lower() for name in names]
        above[fields[0]] = [
            target for symbol, target in zip(pointers[::4], pointers[1::4], strict=True) if symbol in _HYPERNYM_POINTERS
        ]
    if any(up not in words for ups in above.values() for up in ups):
        raise InputError(f"{path} names nouns that it does not hold: it is cut off")
    return Hierarchy(words, above)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers from 1."""
    try:
        text = read_binary(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.rstrip("\r"):
            yield number, line.rstrip("\r")
