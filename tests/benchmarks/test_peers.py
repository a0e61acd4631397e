"""The peers: each is called as it wants to be, and one that is not there or fails says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beam_dp.embeddings import build_index
from benchmarks.measure import version_of
from benchmarks.peers import PEERS, Peer, Task, drawing, measure_peer
from benchmarks.words import _MECHANISMS

SIZE = 400
ASKED = ("w7", "w0", "w399", "w7", "w21", "w22")
# Noise of about 0.1, and of about 40, on a lattice of words that are 10 apart.
LITTLE, MUCH = 20.0, 0.05
# It leaves out the word itself where that is the nearest.
NEVER = Peer("mldp-text", "VickreyMechanism")
# Its published scale hardly falls as epsilon grows, and one draw in V ends in an AssertionError of faiss.
GUMBEL = Peer("mldp-text", "TruncatedGumbel")
EVERY = [peer for peers in PEERS.values() for peer in peers]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("peers")
    (folder / "v.txt").write_text("".join(f"w{i} {i % 20}5 {i // 20}5\n" for i in range(SIZE)))
    return str(build_index(str(folder / "v.txt"), str(folder / "index"), trees=2, progress=False).output)


def installed(peer: Peer) -> Peer:
    if version_of(peer.distribution) is None:
        pytest.skip(f"{peer.distribution} is not installed: see benchmarks/requirements.txt")
    return peer


def test_only_mechanisms_that_are_measured_have_peers() -> None:
    assert set(PEERS) <= {mechanism.name for mechanism in _MECHANISMS}


@pytest.mark.parametrize("peer", [peer for peer in EVERY if peer != GUMBEL], ids=str)
def test_a_peer_gets_our_vocabulary_epsilon_and_words(index: str, peer: Peer) -> None:
    task = Task(installed(peer), index, LITTLE, ASKED * 10)
    np.random.seed(20240517)  # noqa: NPY002  (what the peers draw from)
    little, much = (drawing(replace(task, epsilon=epsilon))(task.words) for epsilon in (LITTLE, MUCH))
    for drawn in (little, much):
        assert len(drawn) == len(task.words)
        assert set(drawn) <= {f"w{i}" for i in range(SIZE)}
    kept = [sum(map(str.__eq__, drawn, task.words)) for drawn in (little, much)]
    # Of little noise, Vickrey's takes the second word in one of a hundred, and TEM any other in one of a thousand.
    assert kept[0] == 0 if peer == NEVER else kept[0] > 0.9 * len(task.words)
    assert kept[1] < 0.25 * len(task.words)


@pytest.mark.parametrize("peer", EVERY, ids=str)
def test_a_peer_is_measured_in_a_process_of_its_own(index: str, peer: Peer) -> None:
    seconds, status = measure_peer(Task(installed(peer), index, LITTLE, ASKED))
    if peer == GUMBEL and seconds is None:
        assert status == "failed: AssertionError"
    else:
        assert status == "measured"
        assert seconds is not None and seconds > 0


def test_one_that_is_not_installed_or_fails_has_no_figure(index: str) -> None:
    assert measure_peer(Task(Peer("no-such-package", "TEM"), index, LITTLE, ASKED)) == (None, "not installed")
    seconds, status = measure_peer(Task(Peer("numpy", "NoSuchMechanism"), index, LITTLE, ASKED))
    assert seconds is None
    assert status.startswith("failed: ")
