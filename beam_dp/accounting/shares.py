"""Named shares: a pipeline declares what it may spend in all, and its transforms draw their parts of it by name.

The declared (ε, δ) holds for everything that a ledger records in that model. What `Shares.amounts` gives to the shares
adds up to at most (ε, δ), exactly. What is recorded under a share composes to at most its amount, which is checked
before the plan is sealed, on totals that are rounded upwards. Nothing is recorded in the model without a share. So all
entries together are (ε, δ) by basic composition of the shares (Dwork and Roth 2014, Theorem 3.16); in the metric model
that is so per word and unit of distance, on one metric and index, where epsilons have one unit.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from beam_dp.accounting.composition import compose_central, compose_local, compose_metric
from beam_dp.accounting.entries import Entry
from beam_dp.accounting.rounding import float_down, round_down
from beam_dp.errors import (
    ArgumentError,
    BudgetExceededError,
    InputError,
    describe_kind,
    require_choice,
    require_positive,
)
from beam_dp.guarantees import MetricGuarantee

Totals = Callable[[Sequence[Entry]], "dict[str, Any] | None"]

_COMPOSITIONS = ("basic", "pld")
# What composes a model's entries, and what its total calls epsilon and delta.
_MODELS: dict[str, tuple[Totals, str, str]] = {
    "central": (compose_central, "epsilon", "delta"),
    "local": (compose_local, "epsilon", "delta"),
    "metric": (compose_metric, "epsilon_per_word", "delta_per_word"),
}
_EPSILON_UNTIL_DRAWN = 1.0
# By how much absolute parts may exceed the total: 0.1 and 0.2 make 0.3, but not as floats.
_ROUNDING = 1 + Fraction(1, 10**12)


@dataclass(frozen=True)
class Part:
    """An amount of epsilon and delta.

    Attributes:
        epsilon: finite, above 0.
        delta: in [0, 1).
    """

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", require_positive("epsilon", self.epsilon))
        delta = self.delta
        if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not 0 <= delta < 1:
            raise ArgumentError(f"delta must be a number in [0, 1), not {describe_kind(delta)}")
        object.__setattr__(self, "delta", float(delta))

    def split(self, uses: int) -> Part:
        """What each of so many equal uses may take: together at most this part."""
        return Part(float_down(Fraction(self.epsilon) / uses), float_down(Fraction(self.delta) / uses))


@dataclass(frozen=True)
class Share:
    """A share of what the ledger of the pipeline declares, by its name; a transform draws it where it is applied.

    Attributes:
        name: as in `Shares.parts`.
        composition: where it stands for a `Budget`, that budget's composition; see there.
    """

    name: str
    composition: Literal["basic", "pld"] = "basic"

    def __post_init__(self) -> None:
        _require_name(self.name)
        require_choice("composition", self.composition, _COMPOSITIONS)


@dataclass(frozen=True)
class Shares:
    """What a pipeline may spend in one privacy model, and in which parts: ``Ledger(shares=Shares(...))``.

    ``Shares(epsilon=2, delta=1e-6, parts={"counts": 1, "prices": 3})`` gives epsilon 0.5 to one and 1.5 to the other.

    Attributes:
        epsilon: the total, finite, above 0; in the metric model per word and unit of distance.
        delta: the total, in [0, 1); in the metric model per word.
        parts: for each name a `Part`, or a weight above 0: what absolute parts leave of epsilon and of delta is split
            in proportion to the weights, each part rounded down (epsilon to a whole number of 1e-9).
        model: ``central``, ``local`` or ``metric``.

    Raises:
        ArgumentError: the absolute parts exceed the total, or a share would get nothing.
    """

    epsilon: float
    delta: float = 0.0
    parts: Mapping[str, float | Part] = field(default_factory=dict)
    model: Literal["central", "local", "metric"] = "central"

    def __post_init__(self) -> None:
        total = Part(self.epsilon, self.delta)
        object.__setattr__(self, "epsilon", total.epsilon)
        object.__setattr__(self, "delta", total.delta)
        require_choice("model", self.model, tuple(_MODELS))
        if not isinstance(self.parts, Mapping) or not self.parts:
            raise ArgumentError(f"parts must map one or more names to weights or Part(...), not {_kind(self.parts)}")
        for name, part in self.parts.items():
            _require_name(name)
            if not isinstance(part, Part):
                require_positive(f"the weight of share {name!r}", part)
        object.__setattr__(self, "parts", dict(self.parts))
        for name, epsilon in self._divided("epsilon", round_down).items():
            if epsilon == 0:
                raise ArgumentError(f"parts: less than 1e-9 of epsilon is left for share {name!r}")
        self._divided("delta", float_down)

    @property
    def amounts(self) -> dict[str, Part]:
        """What each share may spend, in the order of ``parts``."""
        epsilons, deltas = self._divided("epsilon", round_down), self._divided("delta", float_down)
        return {name: Part(epsilons[name], deltas[name]) for name in self.parts}

    def _divided(self, attribute: str, down: Callable[[Fraction], float]) -> dict[str, float]:
        """Epsilon or delta of each share: added up exactly, not above the total."""
        total = getattr(self, attribute)
        fixed = {name: getattr(part, attribute) for name, part in self.parts.items() if isinstance(part, Part)}
        weights = {name: Fraction(part) for name, part in self.parts.items() if not isinstance(part, Part)}
        if sum(map(Fraction, fixed.values())) > Fraction(total) * _ROUNDING:
            raise ArgumentError(f"parts: the absolute ones add up to more than the total {attribute}, {total!r}")
        left = Fraction(total)
        amounts = {}
        for name, wanted in fixed.items():
            # The last gets a little less where floats add up to more than the numbers they stand for.
            amounts[name] = down(min(Fraction(wanted), left))
            left -= Fraction(amounts[name])
        whole = sum(weights.values(), Fraction(0))
        return amounts | {name: down(left * weight / whole) for name, weight in weights.items()}


class ShareBook:
    """The shares of one ledger: what was declared, and which transform drew which.

    Args:
        declared: one `Shares` or several, each of another model and without a name of another.

    Raises:
        ArgumentError: they are something else.
    """

    def __init__(self, declared: Shares | Sequence[Shares] = ()) -> None:
        several = [declared] if isinstance(declared, Shares) else declared
        if not isinstance(several, Sequence) or not all(isinstance(shares, Shares) for shares in several):
            raise ArgumentError(f"shares must be Shares(...), or several in a list, not {_kind(declared)}")
        self._declared = tuple(several)
        self._amounts: dict[str, tuple[str, Part]] = {}
        for shares in self._declared:
            if [other.model for other in self._declared].count(shares.model) > 1:
                raise ArgumentError(f"shares: the {shares.model} model has two declarations, put all parts into one")
            for name, part in shares.amounts.items():
                if name in self._amounts:
                    raise ArgumentError(f"shares: two models have a share {name!r}, give each its own name")
                self._amounts[name] = (shares.model, part)
        self._drawn_by: dict[str, str] = {}

    def draw(self, share: Share, label: str, model: str) -> Part:
        """Marks a share as drawn by the transform ``label``, and says what it holds; see `Ledger.draw`."""
        name = require_share("share", share).name
        if name not in self._amounts:
            raise ArgumentError(f"{label} draws share {name!r}, which its ledger does not declare{self._instead(name)}")
        declared, part = self._amounts[name]
        if declared != model:
            raise ArgumentError(f"{label} needs a share of the {model} model, but {name!r} is of the {declared} one")
        if name in self._drawn_by:
            raise ArgumentError(
                f"{label} draws share {name!r}, which {self._drawn_by[name]} has drawn: each transform needs one of "
                "its own"
            )
        self._drawn_by[name] = label
        return part

    def admit(self, entry: Entry, others: Sequence[Entry]) -> None:
        """Returns if an entry may be added to ``others``.

        Raises:
            ArgumentError: it has no share and needs one, or one that its transform did not draw, or it is on another
                metric or index than the other entries under shares.
            BudgetExceededError: a metric or local share does not hold it.
        """
        model, name = entry.guarantee.model, entry.share
        if name is None:
            declared = [share for share, (of, _) in self._amounts.items() if of == model]
            if declared:
                raise ArgumentError(
                    f"{entry.label} has no share, but its ledger declares the {model} total: give it one of the shares "
                    + ", ".join(map(repr, declared))
                )
            return
        drawn_by = self._drawn_by.get(name)
        if drawn_by is None or self._amounts[name][0] != model or not f"{entry.label}/".startswith(f"{drawn_by}/"):
            raise ArgumentError(f"{entry.label} cannot be recorded under share {name!r}, which it has not drawn")
        for other in others:
            if isinstance(entry.guarantee, MetricGuarantee) and not _same_space(entry, other):
                raise ArgumentError(
                    f"{entry.label} and {other.label} are on different metrics or indexes, whose epsilons cannot be "
                    "shares of one total"
                )
        if model != "central":
            self._require_fit(name, [*(other for other in others if other.share == name), entry])

    def require_all_fit(self, entries: Sequence[Entry]) -> None:
        """Returns if what is recorded under each share fits it.

        Raises:
            BudgetExceededError: it does not, or nobody can say what it is.
        """
        for name in self._amounts:
            recorded = [entry for entry in entries if entry.share == name]
            if recorded:
                self._require_fit(name, recorded)

    def _require_fit(self, name: str, entries: Sequence[Entry]) -> None:
        model, part = self._amounts[name]
        compose, *keys = _MODELS[model]
        total = compose(entries) or {}
        epsilon, delta = (total[key] for key in keys)
        allowed = f"share {name!r} allows epsilon {part.epsilon!r} and delta {part.delta!r}, but"
        if epsilon is None or delta is None:
            raise BudgetExceededError(f"{allowed} no total can be stated for it: {total['reason']}")
        if epsilon > part.epsilon or delta > part.delta:
            raise BudgetExceededError(
                f"{allowed} epsilon {epsilon!r} and delta {delta!r} were recorded by {self._drawn_by[name]}"
            )

    def _instead(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._amounts, n=1, cutoff=0)
        return f"; did you mean {near[0]!r}?" if near else ": write Ledger(shares=Shares(...))"

    def to_json(self) -> list[dict[str, Any]]:
        """One object for each model that has shares."""
        return [
            {
                "model": shares.model,
                "epsilon": shares.epsilon,
                "delta": shares.delta,
                "parts": [
                    {"name": name, "epsilon": part.epsilon, "delta": part.delta, "drawn_by": self._drawn_by.get(name)}
                    for name, part in shares.amounts.items()
                ],
            }
            for shares in self._declared
        ]

    @classmethod
    def from_json(cls, items: Iterable[Mapping[str, Any]]) -> ShareBook:
        """What `to_json` wrote.

        Raises:
            InputError: a field is missing or cannot be right.
        """
        drawn_by: dict[str, str] = {}
        declared = []
        try:
            for item in items:
                parts = {part["name"]: Part(part["epsilon"], part["delta"]) for part in item["parts"]}
                declared.append(Shares(item["epsilon"], item["delta"], parts, item["model"]))
                drawn_by |= {part["name"]: part["drawn_by"] for part in item["parts"] if part["drawn_by"]}
            book = cls(declared)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("the shares of a ledger are incomplete or hold a field of the wrong kind") from None
        book._drawn_by = drawn_by
        return book


def require_share(name: str, share: object) -> Share:
    """``share`` if it is one, else ArgumentError naming ``name``."""
    if not isinstance(share, Share):
        raise ArgumentError(f"{name} must be a Share(...), not {describe_kind(share)}")
    return share


def require_basic(name: str, share: object) -> Share:
    """``share`` if it is one, for a transform whose one mechanism leaves nothing to compose.

    Raises:
        ArgumentError: it is something else, or asks for PLD composition.
    """
    share = require_share(name, share)
    if share.composition != "basic":
        raise ArgumentError(f"{name}: composition pld is for transforms that take a budget=; leave it out")
    return share


def epsilon_or_share(epsilon: float | Share) -> tuple[float, Share | None]:
    """The two forms of an ``epsilon`` argument: it and no share; or the share and a number to check arguments with.

    Raises:
        ArgumentError: a share with PLD composition.
    """
    if not isinstance(epsilon, Share):
        return epsilon, None
    return _EPSILON_UNTIL_DRAWN, require_basic("epsilon", epsilon)


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError(f"the name of a share must be a string that is not empty, not {describe_kind(name)}")


def _kind(value: object) -> str:
    return "an empty one" if isinstance(value, Mapping) and not value else describe_kind(value)


def _same_space(entry: Entry, other: Entry) -> bool:
    """Whether the epsilons of two entries have one unit; entries of another model have none to compare."""
    mine, others = entry.guarantee, other.guarantee
    if not isinstance(mine, MetricGuarantee) or not isinstance(others, MetricGuarantee):
        return True
    return (mine.metric, mine.index_digest) == (others.metric, others.index_digest)
