"""The Beam side of grants: what every DoFn that draws has in common, and the output for its usage records."""

from __future__ import annotations

import abc
import itertools
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue

from beam_dp.accounting.grants import Grant, require_grant
from beam_dp.randomness import SecureSource

USAGE = "usage"


class DrawingDoFn(beam.DoFn, abc.ABC):
    """A DoFn that draws: grants are checked once a process, each bundle has a fresh key and leaves usage records.

    Subclasses say in `granted` what they run, draw from `rng`, and pass outputs through `told`, or yield `usage` for
    each part of the output that is drawn once.
    """

    def __init__(self) -> None:
        self._node = secrets.token_hex(8)

    @abc.abstractmethod
    def granted(self) -> Sequence[tuple[Grant | None, str]]:
        """Each grant with the fingerprint of what runs under it, computed anew from what this DoFn holds."""

    def setup(self) -> None:
        """Checks the grants; only then is there a source of randomness."""
        for grant, fingerprint in self.granted():
            require_grant(grant).check(fingerprint)
        self._source = SecureSource()

    def start_bundle(self) -> None:
        """A fresh key."""
        self._source.rekey()
        self._told = False

    @property
    def rng(self) -> np.random.Generator:
        """The generator of this bundle; to be asked for at each use."""
        return self._source.generator

    def usage(self, piece: int | None = None) -> Iterator[pvalue.TaggedOutput]:
        """The usage records of this step, for the output `USAGE`."""
        for grant, fingerprint in self.granted():
            record = require_grant(grant).usage(fingerprint, node=self._node, piece=piece)
            yield pvalue.TaggedOutput(USAGE, record)

    def told(self, outputs: Iterable[Any]) -> Iterable[Any]:
        """``outputs`` of one element, after the usage records if it is the first of its bundle."""
        if self._told:
            return outputs
        self._told = True
        return itertools.chain(self.usage(), outputs)
