"""The one source of randomness: AES-128 in counter mode, keyed from the operating system.

Noise that protects somebody must not be predictable from other noise, so the statistical generators of
numpy are out. AES-CTR is a pseudo-random function family under the standard assumption on AES; each key is 128 fresh
bits of ``os.urandom`` and produces far less than 2^64 blocks before it is replaced.

A `SecureSource` is made in a worker (``DoFn.setup``), gets a fresh key for every bundle (``rekey`` in
``start_bundle``) and after a fork, and refuses to be pickled: two attempts of one bundle, or two
processes, never share a state. There is no seed: nothing in this package can make a run repeat its noise.
"""

from __future__ import annotations

import os
from typing import NoReturn

import numpy as np
from randomgen import AESCounter

from beam_dp.errors import BeamDpError

_KEY_BYTES = 16


class SecureSource:
    """A stream of secure randomness for one worker, behind the interface of `numpy.random.Generator`.

    Ask for `generator` at each use and do not keep it: a generator that is kept outlives a fork or a new key.
    """

    __slots__ = ("_generator", "_pid")

    def __init__(self) -> None:
        self.rekey()

    def rekey(self) -> None:
        """Replaces the stream by one with a fresh key from the operating system (0.05 ms)."""
        key = int.from_bytes(os.urandom(_KEY_BYTES), "little")
        self._generator = np.random.Generator(AESCounter(key=key, counter=0))
        self._pid = os.getpid()

    @property
    def generator(self) -> np.random.Generator:
        """The generator of the current key; after a fork the child gets a key of its own first."""
        if self._pid != os.getpid():
            self.rekey()
        return self._generator

    def __reduce__(self) -> NoReturn:
        raise BeamDpError("a SecureSource cannot be pickled or copied: make one in the worker, in DoFn.setup")

    def __repr__(self) -> str:
        return "SecureSource(AES-128-CTR)"
