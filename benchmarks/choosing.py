"""Makes docs/choosing-a-mechanism.md again: every word mechanism on one index, measured where they keep as many words.

    python -m benchmarks.choosing [--output=docs/choosing-a-mechanism.md] [--index=DIR] [--words=200] [--runs=100]
        [--seconds=0.2]

Overwrites that file and the picture of the same name (PNG). It goes over `beam_dp.mechanisms.MECHANISMS` with default
parameters; one that refuses the index is named with its reason. Those for a Poincaré index are measured on two of
`benchmarks.poincare`, for which gensim must be installed. Advice and frame are `benchmarks/choosing.md`. It runs on one
core with one BLAS thread for about five minutes, half of them the integrals of truncated_gumbel, and leaves no tables
in the cache of the machine.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import special

from beam_dp import IndexRef, embeddings, open_index, resolve_index
from beam_dp.accounting.report.pictures import require_matplotlib
from beam_dp.audit import Deniability, plausible_deniability
from beam_dp.embeddings import EmbeddingIndex
from beam_dp.errors import ArgumentError, ResourceError, require_count, require_positive
from beam_dp.guarantees import Guarantee, MetricGuarantee
from beam_dp.mechanisms import (
    MECHANISMS,
    BoundMechanism,
    Exponential,
    HyperbolicLaplace,
    TruncatedGumbel,
    WordMechanism,
)
from beam_dp.mechanisms.base import WordIds, diameter_of
from beam_dp.randomness import SecureSource
from beam_dp.text.privatize import TextOptions, TextPrivatizer, encode
from benchmarks.choosing_page import page, picture
from benchmarks.measure import cpu_seconds, declare_cores, machine, pin, restart_with_one_blas_thread
from benchmarks.poincare import few_mammals, mammals, require_data
from pipelines.demo import UTTERANCES
from pipelines.main import progress, run_main, summary
from pipelines.options import parse_flags

ROOT = Path(__file__).parents[1]
TARGETS = (0.1, 0.5, 0.9)
MIDDLE = 1
SHOWN = 10

# Curves are measured at powers of the root of 2: from 4 outwards until N_w is beyond the targets, or here.
_FIRST, _LOWEST, _HIGHEST = 4, -14, 20
# What counts of hyperbolic noise is how far epsilon is above the least that there is, however little that be.
_LOWEST_ABOVE = -20
_FLOOR, _FLAT, _STEEP = 0.4, 0.02, 0.2
_MOST_WORDS = 1 << 22


@dataclass(frozen=True)
class Cost:
    """CPU seconds on one core.

    Attributes:
        first_use: of binding and one draw, with nothing kept from before.
        new_word: of the first draw of a word beyond a later one.
        words_per_second: of `BoundMechanism.sample` after that, by CPU second.
    """

    first_use: float
    new_word: float
    words_per_second: float


@dataclass(frozen=True, eq=False)
class Point:
    """What words became at one value of the parameter."""

    parameter: float
    found: Deniability

    @property
    def kept(self) -> float:
        """The mean N_w."""
        return float(self.found.share_unchanged.mean())


@dataclass(frozen=True, eq=False)
class Chosen:
    """One mechanism.

    Attributes:
        name: in `MECHANISMS`.
        parameter: the sign of what varies: ``ε``, or ``1/b`` where no epsilon serves.
        guarantee: at the middle one of `TARGETS`.
        diameter: of the index in the metric of the guarantee; None where that has none.
        curve: by ascending parameter.
        targets: where N_w is near each of `TARGETS`; None where it is not met.
        cost: at the middle one.
        texts: what the utterances became there.
    """

    name: str
    parameter: str
    guarantee: Guarantee
    diameter: float | None
    curve: tuple[Point, ...]
    targets: tuple[Point | None, ...]
    cost: Cost
    texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class OnPoincare:
    """One mechanism on a Poincaré index.

    Attributes:
        name: in `MECHANISMS`, and what differs from its defaults.
        curve: by ascending epsilon.
        targets: where N_w is near each of `TARGETS`; None where it is not met.
        words_per_second: of `BoundMechanism.sample`, by CPU second, of words drawn before, at ``example``.
        example: where the middle one of `TARGETS` is met, or else what is `nearest`.
        words: what `Hierarchy.words` became there.
    """

    name: str
    curve: tuple[Point, ...]
    targets: tuple[Point | None, ...]
    words_per_second: float
    example: Point
    words: tuple[str, ...]

    def nearest(self, place: int) -> Point:
        """What comes nearest to the target at ``place``, which is not met."""
        return _nearest(self.curve, TARGETS[place])


def _nearest(curve: tuple[Point, ...], target: float) -> Point:
    return curve[0] if target < curve[0].kept else curve[-1]


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """A Poincaré index and what its mechanisms do on it.

    Attributes:
        index: which.
        words: `SHOWN` of its words, from the first to the last.
        measured: each mechanism.
    """

    index: EmbeddingIndex
    words: tuple[str, ...]
    measured: tuple[OnPoincare, ...]


def declare(parser: ArgumentParser) -> None:
    """Adds the flags of this command to ``parser``."""
    parser.add_argument(
        "--output",
        default=str(ROOT / "docs" / "choosing-a-mechanism.md"),
        metavar="FILE.md",
        help="is overwritten, with its picture (default: docs/choosing-a-mechanism.md of the repository)",
    )
    parser.add_argument("--index", metavar="DIR", help="a local index (default: the one inside the package)")
    parser.add_argument("--words", type=int, default=200, metavar="N", help="spread by frequency (default: 200)")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="draws of each word (default: 100)")
    parser.add_argument("--seconds", type=float, default=0.2, help="CPU time of one round of a kernel (default: 0.2)")
    parser.add_argument("--verbose", action="store_true", help="show warnings, and the traceback of an error")
    declare_cores(parser, "the last")


def main(argv: list[str]) -> None:
    """Measures everything, and writes document and picture."""
    flags = parse_flags(argv, declare, description=str(__doc__))
    output = Path(flags.output)
    if output.suffix != ".md":
        raise ArgumentError("--output must be a file name that ends in .md")
    if not output.absolute().parent.is_dir():
        raise ResourceError("--output: there is no such folder")
    for name in ("words", "runs"):
        require_count(f"--{name}", getattr(flags, name))
    require_positive("--seconds", flags.seconds)
    require_matplotlib()
    require_data()
    index = open_index(resolve_index(flags.index), "exact")
    found = machine(pin(flags.cores, 1))
    folder = Path(embeddings.__file__).with_name("default") if flags.index is None else Path(flags.index)
    texts = UTTERANCES.read_text(encoding="utf-8").splitlines()
    # What is loaded by now is no garbage; to look at it again at every measurement would take longer than most of them.
    gc.freeze()
    chosen, refused = [], {}
    for name in MECHANISMS:
        with tempfile.TemporaryDirectory(prefix="beam_dp_choosing_") as cache, progress(f"measuring {name}"):
            # An index object of its own, so that no mechanism finds what another one has computed.
            alone = _alone(index, folder, Path(cache))
            try:
                chosen.append(measured(name, alone, flags, texts))
            except ArgumentError as error:
                refused[name] = str(error)
    hierarchies = []
    for make in (mammals, few_mammals):
        with tempfile.TemporaryDirectory(prefix="beam_dp_choosing_") as scratch, progress(f"measuring {make.__name__}"):
            hierarchies.append(hierarchy_of(make, Path(scratch), flags))
    image = output.with_suffix(".png")
    drawn = picture(chosen)
    text = page(
        chosen,
        refused,
        texts[:SHOWN],
        hierarchies,
        index=index,
        image=image.name,
        found=found,
        words=flags.words,
        runs=flags.runs,
    )
    image.write_bytes(drawn)
    output.write_text(text, encoding="utf-8")
    summary(f"written: {output}", f"written: {image}")


def _alone(index: EmbeddingIndex, folder: Path, cache: Path) -> EmbeddingIndex:
    """``index``, which is in ``folder``, with nothing computed and a cache of its own."""
    return EmbeddingIndex(folder, index.manifest, index.digest, index.search, cache)


def varied(name: str) -> tuple[str, Callable[[float], WordMechanism]]:
    """What of a mechanism varies, and the mechanism at its value.

    The published scale of truncated Gumbel needs an epsilon beyond all use on most vocabularies, and then hardly falls.
    """
    if name == TruncatedGumbel.name:
        return "1/b", lambda inverse: TruncatedGumbel(scale=1 / inverse)
    return "ε", MECHANISMS[name]


def measured(name: str, index: EmbeddingIndex, flags: Namespace, texts: list[str]) -> Chosen:
    """Everything about one mechanism on an ``index`` that nothing was computed for.

    Raises:
        ArgumentError: the mechanism refuses this index.
    """
    parameter, make = varied(name)
    generator = SecureSource().generator
    words = _spread(index, flags.words)
    first_use = cpu_seconds(lambda: make(2 ** (_FIRST / 2)).bind(index).sample(words[:1], generator))

    def at(value: float) -> Point:
        return Point(value, plausible_deniability(make(value), index, flags.runs, words=words))

    curve = curve_of(at)
    values = [parameter_for(curve, target) for target in TARGETS]
    middle = values[MIDDLE]
    if middle is None:
        raise ArgumentError(f"no {parameter} up to {2 ** (_HIGHEST / 2):g} keeps half of the words")
    mechanism = make(middle)
    bound = mechanism.bind(index)
    ids = encode(pa.array(texts), index, TextOptions(), generator).ids
    new_word, rate = kernel_cost(bound, ids, flags.seconds)
    private, _ = TextPrivatizer(index, bound, TextOptions()).privatize(pa.array(texts[:SHOWN]), generator)
    targets = tuple(None if value is None else at(value) for value in values)
    promise = mechanism.guarantee(index)
    return Chosen(
        name=name,
        parameter=parameter,
        guarantee=promise,
        diameter=diameter_of(mechanism, index, promise.metric) if isinstance(promise, MetricGuarantee) else None,
        curve=tuple(sorted([*curve, *filter(None, targets)], key=lambda point: point.parameter)),
        targets=targets,
        cost=Cost(first_use, new_word, rate),
        texts=tuple(private.to_pylist()),
    )


def hierarchy_of(make: Callable[[Path], IndexRef], scratch: Path, flags: Namespace) -> Hierarchy:
    """Everything about the Poincaré index that ``make`` makes in ``scratch``."""
    folder = scratch / "index"
    index = _alone(open_index(make(folder), "exact"), folder, scratch)
    gc.freeze()  # gensim, too
    shown = _spread(index, SHOWN)
    least = index.dimension - 1
    laws: tuple[tuple[str, Callable[[float], WordMechanism], float], ...] = (
        ("hyperbolic_laplace", HyperbolicLaplace, least),
        ("hyperbolic_laplace, prefer_general", partial(HyperbolicLaplace, prefer_general=True), least),
        ("exponential", Exponential, 0),
    )
    found = tuple(_on_poincare(name, law, above, index, shown, flags) for name, law, above in laws)
    return Hierarchy(index, _words(index, shown), found)


def _on_poincare(
    name: str,
    make: Callable[[float], WordMechanism],
    least: float,
    index: EmbeddingIndex,
    shown: WordIds,
    flags: Namespace,
) -> OnPoincare:
    """One mechanism, of which every epsilon above ``least`` exists; what varies along its curve is how far above."""
    words = _spread(index, flags.words)

    def at(above: float) -> Point:
        return Point(above, plausible_deniability(make(least + above), index, flags.runs, words=words))

    def named(point: Point) -> Point:
        return replace(point, parameter=least + point.parameter)

    met = curve_of(at, _LOWEST_ABOVE)
    values = [parameter_for(met, target) for target in TARGETS]
    targets = tuple(None if value is None else named(at(value)) for value in values)
    curve = tuple(map(named, met))
    example = targets[MIDDLE] or _nearest(curve, TARGETS[MIDDLE])
    bound = make(example.parameter).bind(index)
    _, rate = kernel_cost(bound, np.arange(index.size, dtype=np.int32), flags.seconds)
    return OnPoincare(
        name=name,
        curve=curve,
        targets=targets,
        words_per_second=rate,
        example=example,
        words=_words(index, bound.sample(shown, SecureSource().generator)),
    )


def _spread(index: EmbeddingIndex, count: int) -> WordIds:
    """Ids of ``count`` words, or of all if there are fewer, spread from the first to the last."""
    return np.unique(np.linspace(0, index.size - 1, min(count, index.size)).round().astype(np.int32))


def _words(index: EmbeddingIndex, ids: WordIds) -> tuple[str, ...]:
    return tuple(index.words.take(pa.array(ids)).to_pylist())


def curve_of(at: Callable[[float], Point], lowest: int = _LOWEST) -> tuple[Point, ...]:
    """Points at powers of the root of 2, from below the lowest to above the highest of `TARGETS`.

    Args:
        at: what is measured at a value.
        lowest: the least power.
    """
    points: dict[int, Point] = {}

    def kept(step: int) -> float:
        if step not in points:
            points[step] = at(2 ** (step / 2))
        return points[step].kept

    low = high = _FIRST
    # Among few candidates, a word stays itself now and then however small the parameter is.
    while kept(low) > TARGETS[0] / 2 and low > lowest and (kept(low) > _FLOOR or kept(low + 2) - kept(low) > _FLAT):
        low -= 2
    while kept(high) < (1 + TARGETS[-1]) / 2 and high < _HIGHEST:
        high += 2
    # Where hardly anything changes, every other point is enough.
    for step in range(low + 1, high, 2):
        if kept(step - 1) < kept(step + 1) - _STEEP:
            kept(step)
    return tuple(points[step] for step in sorted(points))


def parameter_for(curve: tuple[Point, ...], target: float) -> float | None:
    """Where the mean N_w is near ``target``, on lines between the points; None where none of them comes so far.

    The lines are those of ln(N_w/(1 - N_w)) over the logarithm of the parameter, which are nearly straight.
    """
    shares = np.maximum.accumulate([point.kept for point in curve])
    if not shares[0] <= target <= shares[-1]:
        return None
    heights = special.logit(np.clip(shares, 1e-3, 1 - 1e-3))
    where = np.interp(special.logit(target), heights, np.log([point.parameter for point in curve]))
    return float(np.exp(where))


def kernel_cost(bound: BoundMechanism, ids: WordIds, seconds: float) -> tuple[float, float]:
    """CPU seconds of a new word, and words per CPU second of words drawn before, in rounds of at least ``seconds``."""
    generator = SecureSource().generator
    distinct = np.unique(ids)
    cold, warm = (cpu_seconds(lambda: bound.sample(distinct, generator)) for _ in range(2))

    def taken(times: int) -> float:
        block = np.tile(ids, times)
        return cpu_seconds(lambda: bound.sample(block, generator))

    times = 1
    while len(ids) * times < _MOST_WORDS and taken(times) < seconds:
        times *= 2
    rate = len(ids) * times / float(np.median([taken(times) for _ in range(3)]))
    return max(0.0, cold - warm) / len(distinct), rate


if __name__ == "__main__":
    restart_with_one_blas_thread()
    sys.exit(run_main(main))
