"""The whole sums of a block: every public partition, one type for every key, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from exact import LOOSE, Sums

from beam_dp.aggregate.partials import Partials, add_up
from beam_dp.aggregate.public import public_partitions
from beam_dp.aggregate.statistics import RowCount, UnitCount
from beam_dp.aggregate.sums import SumWork, block_sums, blocks_of
from beam_dp.errors import BeamDpError, InputError

PLAN = Sums((UnitCount(), RowCount()), LOOSE)
UNIT, TEXT, NOTHING = pa.int64(), pa.string(), pa.null()
EMPTY = pa.RecordBatch.from_arrays([], names=[])


def types(*pairs: tuple[pa.DataType, pa.DataType]) -> list[bytes]:
    """The types of unit and item in some batches, as they travel."""
    return [pa.schema([("0", unit), ("1", item)]).serialize().to_pybytes() for unit, item in pairs]


def work(public: Any = None, blocks: int = 1) -> SumWork:
    listed = None if public is None else public_partitions(public, ("item",))
    return SumWork(PLAN, listed, 8, blocks, True)


def part(users: list[int], items: list[Any], kind: pa.DataType = TEXT) -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    return add_up(pa.array(users), [pa.array(items, kind)], {}, PLAN.statistics, LOOSE, rng).to_batch()


def counts(sums: Partials) -> dict[Any, list[int]]:
    return dict(zip(sums.keys[0].to_pylist(), sums.dense.tolist(), strict=True))


def test_partial_sums_of_a_block_are_added_up() -> None:
    parts = [part([1, 1], ["a", "b"]), EMPTY, part([2, 2, 3], ["b", "b", None])]
    sums = block_sums(work(), 0, parts, types((UNIT, TEXT), (UNIT, NOTHING)))
    assert counts(sums) == {"a": [1, 1], "b": [2, 3], None: [1, 1]}


@pytest.mark.parametrize("public", [None, ["1", "2"]], ids=["private", "public"])
@pytest.mark.parametrize("column", ["user", "item"])
def test_types_that_differ_anywhere_are_refused_in_every_block(column: str, public: Any) -> None:
    # The two batches need not have met before, nor have rows in this block: one unit would count as two.
    other = (TEXT, TEXT) if column == "user" else (UNIT, UNIT)
    message = f"column '{column}' holds int64 in some batches and string in others"
    for batches in ([], [part([1], ["1"])]):
        with pytest.raises(InputError, match=message):
            block_sums(work(public), 0, batches, types((UNIT, TEXT), (NOTHING, NOTHING), other))


@pytest.mark.parametrize(
    ("found", "kind"),
    [([], TEXT), ([(UNIT, NOTHING)], TEXT), ([(UNIT, NOTHING), (UNIT, pa.date32())], pa.date32())],
    ids=["no batch", "nulls", "dates"],
)
def test_all_blocks_have_one_type_of_key(found: list[tuple[pa.DataType, pa.DataType]], kind: pa.DataType) -> None:
    nulls = part([1, 2], [None, None], NOTHING)
    for batches in ([], [nulls]) if found else ([],):
        sums = block_sums(work(), 0, batches, types(*found))
        assert sums.keys[0].type == kind and len(sums) == len(batches)


def test_public_partitions_are_all_there_each_in_its_block() -> None:
    public, present = ["a", "b", "c", "d", "e"], ["a", "c"]
    places = blocks_of([pa.array(present)], 3).tolist()
    whole: dict[Any, list[int]] = {}
    for block in range(3):
        mine = [key for key, place in zip(present, places, strict=True) if place == block]
        batches = [part([1] * len(mine), mine)] if mine else []
        found = counts(block_sums(work(public, 3), block, batches, types((UNIT, TEXT))))
        assert whole.keys().isdisjoint(found)
        whole |= found
    assert whole == {"a": [1, 1], "b": [0, 0], "c": [1, 1], "d": [0, 0], "e": [0, 0]}


def test_a_partition_that_is_not_public_is_never_released() -> None:
    with pytest.raises(BeamDpError, match="a block has partitions that are not public"):
        block_sums(work(["a"]), 0, [part([1], ["secret"])], types((UNIT, TEXT)))
