"""Other packages' word mechanisms, measured one by one in processes of their own.

A peer gets the same vocabulary, epsilon and words, and is called as its documentation says. What else it wants is as
in the mechanism of ours, where that has it, and else as its documentation has it. Its process is timed after its
construction, so that loading vectors and training an index cost it nothing. What it prints is dropped, and it is kept
from downloading anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from beam_dp import Mahalanobis, Vickrey, resolve_index
from beam_dp.embeddings import EmbeddingIndex, open_index
from benchmarks.measure import version_of

_ROOT = Path(__file__).parents[1]
_SECONDS = 1800
# One call of pypantera keeps float64 arrays of (words, V, d), 81 MB a word at 33,860 x 300.
_PYPANTERA_WORDS = 4

# The module of each of pypantera's mechanisms, and what it wants beside vectors and epsilon. The wheel installs the
# package under the name "src".
_PYPANTERA: Mapping[str, tuple[str, Mapping[str, float]]] = MappingProxyType(
    {
        "CMP": ("src.EmbeddingPerturbationMechanism.cmp", {}),
        "Mahalanobis": ("src.EmbeddingPerturbationMechanism.mahalanobis", {"lam": Mahalanobis.covariance_weight}),
        "VickreyCMP": ("src.EmbeddingPerturbationMechanism.vickrey", {"t": Vickrey.second_weight}),
        "TEM": ("src.SamplingPerturbationMechanism.tem", {"beta": 0.001}),
    }
)

Draw = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Peer:
    """A mechanism of another package.

    Attributes:
        distribution: the package's name.
        mechanism: its name for the mechanism.
    """

    distribution: str
    mechanism: str


PEERS: Mapping[str, tuple[Peer, ...]] = MappingProxyType(
    {
        "multivariate_laplace": (Peer("pypantera", "CMP"), Peer("mldp-text", "MultivariateCalibrated")),
        "mahalanobis": (Peer("pypantera", "Mahalanobis"), Peer("mldp-text", "Mahalanobis")),
        # mldp-text's leaves out the word itself where that is the nearest, and chooses by a softmax.
        "vickrey": (Peer("pypantera", "VickreyCMP"), Peer("mldp-text", "VickreyMechanism")),
        "truncated_gumbel": (Peer("mldp-text", "TruncatedGumbel"),),
        "truncated_exponential": (Peer("pypantera", "TEM"), Peer("mldp-text", "TEM")),
    }
)
"""The peers of each mechanism of ours."""


@dataclass(frozen=True)
class Task:
    """What a peer is asked to draw.

    Attributes:
        peer: which.
        index: URI of the index whose vocabulary it gets.
        epsilon: in units of 1/distance.
        words: drawn one after the other.
    """

    peer: Peer
    index: str
    epsilon: float
    words: tuple[str, ...]


def measure_peer(task: Task) -> tuple[float | None, str]:
    """CPU seconds that the peer takes for the words, and ``measured``; else None and why there is no figure."""
    if version_of(task.peer.distribution) is None:
        return None, "not installed"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers"],
            input=json.dumps(asdict(task)),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            cwd=_ROOT,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return None, f"took more than {_SECONDS} s"
    except subprocess.CalledProcessError as error:
        return None, f"failed: {(error.stderr.strip().splitlines() or ['no message'])[-1][:60]}"
    return float(json.loads(done.stdout.strip().splitlines()[-1])), "measured"


def _run(task: Task) -> float:
    """CPU seconds of the draws alone, in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        draw = drawing(task)
        draw(task.words[:1])
        begin = time.process_time()
        draw(task.words)
        return time.process_time() - begin


def drawing(task: Task) -> Draw:
    """The peer of ``task``, made: what draws a word for each of some words."""
    index = open_index(resolve_index(task.index))
    return (_pypantera if task.peer.distribution == "pypantera" else _mldp_text)(task, index)


def _pypantera(task: Task, index: EmbeddingIndex) -> Draw:
    module, options = _PYPANTERA[task.peer.mechanism]
    with tempfile.TemporaryDirectory(prefix="beam_dp_peer_") as folder:
        path = Path(folder) / "vectors.txt"
        with path.open("w", encoding="utf-8") as stream:
            for word, vector in zip(index.words.to_pylist(), index.vectors, strict=True):
                stream.write(f"{word} {' '.join(map(str, vector.tolist()))}\n")
        mechanism = getattr(import_module(module), task.peer.mechanism)(
            {"embPath": str(path), "epsilon": task.epsilon, **options}
        )
    # One that adds noise takes noisy vectors, one that samples takes the words.
    prepared = getattr(mechanism, "noisyEmb", list)

    def draw(words: Sequence[str]) -> list[str]:
        texts = [
            mechanism.processText(prepared(list(words[start : start + _PYPANTERA_WORDS])))
            for start in range(0, len(words), _PYPANTERA_WORDS)
        ]
        return " ".join(texts).split(" ")

    return draw


def _mldp_text(task: Task, index: EmbeddingIndex) -> Draw:
    # It fetches WordNet when it is imported; none of its mechanisms here uses it.
    nltk: Any = import_module("nltk")
    nltk.download = lambda *_args, **_options: False
    package = import_module("mldp_text")
    words = index.words.to_pylist()
    vectors = import_module("gensim.models").KeyedVectors(index.dimension)
    vectors.add_vectors(words, index.vectors)
    options: dict[str, Any] = {"embedding_matrix": vectors, "dim": index.dimension, "vocab": set(words)}
    if task.peer.mechanism == "TruncatedGumbel":
        smallest = index.min_distance or index.manifest.distances.median_neighbour
        options |= {"min_inter_dist": smallest, "max_inter_dist": index.diameter}
    replace = getattr(package, task.peer.mechanism)(task.epsilon, **options).replace_word

    def draw(words: Sequence[str]) -> list[str]:
        return [replace(word) for word in words]

    return draw


def _main() -> None:
    fields = json.load(sys.stdin)
    task = Task(Peer(**fields["peer"]), fields["index"], fields["epsilon"], tuple(fields["words"]))
    print(json.dumps(_run(task)))


if __name__ == "__main__":
    _main()
