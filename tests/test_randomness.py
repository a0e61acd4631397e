"""The source of randomness: it is AES-CTR, and no two users of it ever share a stream."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from randomgen import AESCounter

from beam_dp.errors import BeamDpError
from beam_dp.randomness import SecureSource

ROOT = Path(__file__).parents[1]
BUNDLES_PER_ELEMENT = 50
ELEMENTS = 20


def _openssl_block(key: bytes, counter: int) -> bytes:
    """AES-128 of the counter as 16 little-endian bytes: CTR mode's first block over 16 zero bytes."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(16, "little"))).encryptor()
    return encryptor.update(bytes(16)) + encryptor.finalize()


@settings(max_examples=25, deadline=None)
@given(key=st.binary(min_size=16, max_size=16))
def test_the_bit_generator_is_openssl_aes_128_in_counter_mode(key: bytes) -> None:
    blocks = 40
    stream = AESCounter(key=int.from_bytes(key, "little"), counter=0).random_raw(2 * blocks)
    assert stream.astype("<u8").tobytes() == b"".join(_openssl_block(key, i) for i in range(blocks))


def test_the_source_is_that_generator_with_a_key_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return key

    monkeypatch.setattr(os, "urandom", urandom)
    source = SecureSource()
    monkeypatch.undo()
    assert asked == [16]
    words = source.generator.bit_generator.random_raw(4)
    assert words.astype("<u8").tobytes() == _openssl_block(key, 0) + _openssl_block(key, 1)


def test_sources_differ_and_a_new_key_is_a_new_stream() -> None:
    source, other = SecureSource(), SecureSource()
    draws = {source.generator.bytes(16), other.generator.bytes(16)}
    for _ in range(1000):
        source.rekey()
        draws.add(source.generator.bytes(16))
    assert len(draws) == 1002


def test_the_stream_goes_on_between_uses() -> None:
    source = SecureSource()
    assert len({source.generator.bytes(16) for _ in range(1000)}) == 1000


def test_numpys_seed_and_state_do_not_reach_the_source() -> None:
    draws = set()
    for _ in range(2):
        np.random.seed(7)  # noqa: NPY002
        draws.add(SecureSource().generator.bytes(16))
    assert len(draws) == 2


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_source_is_not_copied(act: object) -> None:
    with pytest.raises(BeamDpError, match="make one in the worker"):
        act(SecureSource())  # type: ignore[operator]


def test_a_dofn_that_holds_a_source_cannot_be_shipped() -> None:
    class Holds(beam.DoFn):
        def __init__(self) -> None:
            self._source = SecureSource()

    with pytest.raises(Exception, match="make one in the worker"):
        beam.ParDo(Holds())


def test_the_repr_holds_no_state() -> None:
    assert repr(SecureSource()) == "SecureSource(AES-128-CTR)"


_FORK = """
import os, sys
from beam_dp.randomness import SecureSource
source = SecureSource()
source.generator.bytes(16)
children = []
for _ in range(2):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.generator.bytes(16) + source.generator.bytes(16))
        os._exit(0)
    os.waitpid(child, 0)
    children.append(os.read(reader, 64))
own = source.generator.bytes(16) + source.generator.bytes(16)
sys.stdout.write("\\n".join(item.hex() for item in [own, *children]))
"""


def test_a_fork_gives_each_child_a_stream_of_its_own() -> None:
    run = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True, cwd=ROOT)
    streams = run.stdout.split("\n")
    halves = {stream[part : part + 32] for stream in streams for part in (0, 32)}
    assert [len(stream) for stream in streams] == [64, 64, 64]
    assert len(halves) == 6


class _DrawOncePerBundle(beam.DoFn):
    """Lives through many bundles for each element, as a worker would: a new key at the start of each."""

    def setup(self) -> None:
        self._source = SecureSource()

    def start_bundle(self) -> None:
        self._source.rekey()

    def process(self, _: int) -> Iterator[tuple[int, bytes]]:
        for _bundle in range(BUNDLES_PER_ELEMENT):
            self.start_bundle()
            yield os.getpid(), self._source.generator.bytes(16)


class _WriteDraws(beam.DoFn):
    """Appends what it gets to a file of its own process."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[int, bytes]) -> None:
        pid, draw = element
        with (Path(self._folder) / str(pid)).open("a", encoding="ascii") as file:
            file.write(draw.hex() + "\n")


def test_a_thousand_bundles_in_two_processes_share_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    flags = ["--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    with beam.Pipeline(options=PipelineOptions(flags)) as p:
        elements = p | beam.Create(range(ELEMENTS)) | beam.Reshuffle()
        _ = elements | beam.ParDo(_DrawOncePerBundle()) | beam.ParDo(_WriteDraws(str(tmp_path)))
    files = sorted(tmp_path.iterdir())
    draws = [line for file in files for line in file.read_text().split()]
    assert len(files) == 2
    assert str(os.getpid()) not in {file.name for file in files}
    assert len(draws) == ELEMENTS * BUNDLES_PER_ELEMENT == 1000
    assert len(set(draws)) == 1000
