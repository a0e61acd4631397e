"""`PrivatizeText` under a share of the metric model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_dp import Ledger, MultivariateLaplace, Part, PrivatizeText, Share, Shares
from beam_dp.embeddings import build_index
from beam_dp.errors import ArgumentError, BudgetExceededError

WORDS = ["one", "two", "three", "four"]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two of the same words, at other places."""
    folder = tmp_path_factory.mktemp("share_indexes")
    return _index(folder, "near", 1.0), _index(folder, "far", 3.0)


def _index(folder: Path, name: str, scale: float) -> str:
    lines = [f"{word} {scale * i} {scale * (i % 2 + 1)}" for i, word in enumerate(WORDS)]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    build_index(str(folder / f"{name}.txt"), str(folder / name), trees=1, progress=False)
    return str(folder / name)


def declared() -> Ledger:
    return Ledger(shares=Shares(20, 1e-9, {"tickets": Part(12), "reviews": 1}, model="metric"))


def applied(ledger: Ledger, transform: PrivatizeText) -> Ledger:
    with ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p:
        assert_that(p | beam.Create(["One, two!", "four"]) | "words" >> transform, _are_words)
    return ledger


def _are_words(texts: list[str]) -> None:
    assert sorted(len(text.split()) for text in texts) == [1, 2]
    assert all(word in WORDS for text in texts for word in text.split())


def test_a_mechanism_that_fits_its_share_runs_as_it_is(indexes: tuple[str, str]) -> None:
    drawn = applied(declared(), PrivatizeText(MultivariateLaplace(10), index=indexes[0], share=Share("tickets")))
    given = applied(Ledger(), PrivatizeText(MultivariateLaplace(10), index=indexes[0]))
    (entry,) = drawn.entries
    assert entry.share == "tickets"
    assert (replace(entry, share=None),) == given.entries
    assert drawn.to_dict()["shares"][0]["parts"][0] == {
        "name": "tickets",
        "epsilon": 12.0,
        "delta": 0.0,
        "drawn_by": "words",
    }


def test_a_mechanism_that_does_not_fit_is_refused_where_it_is_applied(indexes: tuple[str, str]) -> None:
    ledger = declared()
    message = r"share 'tickets' allows epsilon 12\.0 and delta 0\.0, but epsilon 12\.5 .* recorded by words"
    with pytest.raises(BudgetExceededError, match=message):
        applied(ledger, PrivatizeText(MultivariateLaplace(12.5), index=indexes[0], share=Share("tickets")))
    assert ledger.entries == ()


def test_without_a_share_it_is_refused_where_some_are_declared(indexes: tuple[str, str]) -> None:
    with pytest.raises(ArgumentError, match=r"words has no share.* metric total.* 'tickets', 'reviews'"):
        applied(declared(), PrivatizeText(MultivariateLaplace(1), index=indexes[0]))
    elsewhere = Ledger(shares=Shares(1, parts={"counts": 1}))
    applied(elsewhere, PrivatizeText(MultivariateLaplace(1), index=indexes[0]))
    assert elsewhere.entries[0].share is None
    with pytest.raises(ArgumentError, match="words needs a share of the metric model, but 'counts' is of the central"):
        applied(
            Ledger(shares=Shares(1, parts={"counts": 1})),
            PrivatizeText(MultivariateLaplace(1), index=indexes[0], share=Share("counts")),
        )


def test_shares_are_on_one_index(indexes: tuple[str, str]) -> None:
    ledger = declared()
    with (
        pytest.raises(ArgumentError, match="reviews and tickets are on different metrics or indexes"),
        ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) as p,
    ):
        texts = p | beam.Create(["one"])
        texts | "tickets" >> PrivatizeText(MultivariateLaplace(1), index=indexes[0], share=Share("tickets"))
        texts | "reviews" >> PrivatizeText(MultivariateLaplace(1), index=indexes[1], share=Share("reviews"))
    assert [entry.label for entry in ledger.entries] == ["tickets"]


def test_the_same_transform_is_not_applied_twice(indexes: tuple[str, str]) -> None:
    ledger = declared()
    transform = PrivatizeText(MultivariateLaplace(1), index=indexes[0], share=Share("tickets"))
    texts = ledger.pipeline(PipelineOptions(["--runner=FnApiRunner"])) | beam.Create(["one"])
    _ = texts | "first" >> transform
    with pytest.raises(ArgumentError, match="second draws share 'tickets', which first has drawn"):
        _ = texts | "second" >> transform.with_rejects()


def test_what_is_no_share_is_refused_at_construction(indexes: tuple[str, str]) -> None:
    with pytest.raises(ArgumentError, match="share must be a Share"):
        PrivatizeText(MultivariateLaplace(1), index=indexes[0], share="tickets")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="share: composition pld is for transforms that take a budget="):
        PrivatizeText(MultivariateLaplace(1), index=indexes[0], share=Share("tickets", "pld"))
