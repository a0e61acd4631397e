"""The charge of one transform on a pipeline that others own: Beam YAML, or a Java program behind an expansion service.

Nothing of beam_dp sees such a pipeline being submitted. So the transform has a ledger of its own, which is sealed and
charged when it expands, and the first worker that is about to draw takes the charge for its graph
(`beam_dp.accounting.budget.BudgetRun`):

- Expanded again in the same process before anything ran, as after a mistake further down, it is charged once.
- Whichever of these graphs draws first has the charge. Workers of any other are refused, and so is a later expansion.
- A graph whose expansion failed, or was refused, cannot draw.

A graph must run once: two runs of one are the same to a worker. No step of beam_dp comes after the sinks of others, so
the first worker commits the run as well: its charge is final.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator

from beam_dp.accounting.budget import BudgetRun, BudgetStore
from beam_dp.accounting.budget.records import require_name
from beam_dp.accounting.ledger import Ledger
from beam_dp.errors import ArgumentError

_LONGEST_RUN_ID = 40
_LONGEST_NAME = 64
_DIGITS = 8


def run_id_of(run_id: str, label: str) -> str:
    """The run id of one transform: ``RUN_ID.LABEL`` with dots for slashes, and a hash for what else no name can hold.

    Args:
        run_id: of the pipeline, at most 40 characters.
        label: the transform's full label.

    Raises:
        ArgumentError: ``run_id`` is too long, or no name.
    """
    require_name("run_id", run_id)
    if len(run_id) > _LONGEST_RUN_ID:
        raise ArgumentError(f"run_id must be at most {_LONGEST_RUN_ID} characters here: the transform's label is added")
    most = _LONGEST_NAME - len(run_id) - 1
    # A dot of its own in a label is the same name: then the plans differ, and the second one is refused.
    dotted = label.replace("/", ".")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", dotted)
    if plain == dotted and len(plain) <= most:
        return f"{run_id}.{plain}"
    digest = hashlib.sha256(label.encode()).hexdigest()[:_DIGITS]
    return f"{run_id}.{plain[: most - _DIGITS - 1]}-{digest}"


def budget_of(
    label: str, *, name: str, budget_store: str | None, dataset: str | None, run_id: str | None
) -> BudgetRun | None:
    """The launch that one transform is charged as; None where none of the three is given.

    Args:
        label: the transform's full label.
        name: what it is, in the history of the budget.
        budget_store: URL.
        dataset: whose budget is charged.
        run_id: of the pipeline.

    Raises:
        ArgumentError: some of the three are missing, or one is wrong.
    """
    given = {"budget_store": budget_store, "dataset": dataset, "run_id": run_id}
    missing = [argument for argument, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing or budget_store is None or dataset is None or run_id is None:
        raise ArgumentError(f"{missing[0]} is missing: give all of {', '.join(given)}, or none of them")
    store = BudgetStore(budget_store)
    return store.run(dataset, run_id_of(run_id, label), pipeline=name, started_by_workers=True)


@contextlib.contextmanager
def charged(budget: BudgetRun | None) -> Iterator[Ledger]:
    """The ledger for one transform, which is to be applied in the body; then it is sealed, and charged.

    Args:
        budget: what `budget_of` returned.

    Raises:
        BudgetExceededError: the budget refuses.
        InputError: there is no such data set, or one that names its inputs, which nobody knows here.
    """
    ledger = Ledger(budget=budget)
    yield ledger
    ledger.charge()
