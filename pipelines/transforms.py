"""The transforms as Beam YAML and pipelines in other languages call them: plain values in, rows of a schema out.

The arguments are those of the command lines, without dashes. Every transform takes ``budget_store``, ``dataset`` and
``run_id``, all of them or none: with them it is charged when it expands, as the run ``RUN_ID.LABEL``, where LABEL is
its name in the pipeline (`beam_dp.accounting.expansion`). What it promises is in the budget's history, and in the log.

Its rows are settled behind the draw: a sink that may be tried twice never gets two draws of one row.
"""

# Beam YAML reads the types of the arguments, which it takes neither as text nor written X | None.
# ruff: noqa: UP045
import abc
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, cast

import apache_beam as beam
import pyarrow as pa
from apache_beam.typehints.row_type import RowTypeConstraint

import beam_dp
from beam_dp import Bounds, Budget, Ledger, PrivateSelection
from beam_dp.accounting.expansion import budget_of, charged
from beam_dp.accounting.pipeline import full_label
from beam_dp.aggregate.metrics import Metric
from beam_dp.aggregate.sums import DEFAULT_BUCKETS
from beam_dp.errors import ArgumentError
from pipelines.metrics import parse_metrics
from pipelines.privatize_text import make_mechanism

_LOGGER = logging.getLogger(__name__)
_REASON = RowTypeConstraint.from_fields([("reason", str)])


class _Charged(beam.PTransform, abc.ABC):
    """A transform with a ledger of its own, charged when it expands."""

    def __init__(self, budget_store: str | None, dataset: str | None, run_id: str | None) -> None:
        super().__init__()
        self._budget = {"budget_store": budget_store, "dataset": dataset, "run_id": run_id}

    def expand(self, pcoll: beam.PCollection) -> Any:
        """Applies the transform of beam_dp, then charges what it recorded."""
        name = type(self).__name__
        budget = budget_of(full_label(pcoll.pipeline, self.label), name=name, **self._budget)
        with charged(budget) as ledger:
            outputs = self._apply(pcoll, ledger)
        _LOGGER.info("%s\n%s", name, ledger.report())
        return outputs

    @abc.abstractmethod
    def _apply(self, pcoll: beam.PCollection, ledger: Ledger) -> Any:
        """The outputs of the transform, which records in ``ledger``."""


class PrivatizeText(_Charged):
    """Replaces every word of a text by a draw of a mechanism of metric or local differential privacy.

    Args:
        mechanism: `multivariate_laplace`, `mahalanobis`, `vickrey`, `rank_corrected_laplace`,
            `distance_truncated_laplace`, `density_laplace`, `exponential`, `truncated_exponential`, `density_prior`,
            `knn_truncated`, `truncated_gumbel`, `hyperbolic_laplace` or `randomized_response`.
        epsilon: privacy parameter of one word, in units of 1/distance; of randomized_response without a unit.
        scale: of truncated_gumbel: noise scale instead of epsilon.
        neighbours: of truncated_gumbel, knn_truncated: candidates of a word; of rank_corrected_laplace: its ranks.
        covariance_weight: of mahalanobis: weight of the vocabulary's covariance in the norm, 0 to 0.99.
        second_weight: of vickrey: 0 for always the nearest word to 1 for always the second nearest.
        rank_decay: of rank_corrected_laplace: how fast the weight of a neighbour falls with its rank.
        max_noise: of distance_truncated_laplace: no noise is longer, in units of distance.
        gamma: of truncated_exponential: the distance beyond which words share a bucket.
        bandwidth: of density_prior and density_laplace: the bandwidth of the kernel density.
        prefer_general: of hyperbolic_laplace: of the two nearest words prefer the more general one.
        index: embedding index, a folder or URI (default: the one inside the package).
        text_column: the field that holds the texts.
        keep_columns: fields that are passed on unchanged and unprotected; all others are dropped.
        max_words: words kept of a text.
        oov: `drop` or `random`: what becomes of unknown words.
        search: `auto`, `exact` or `annoy`: how the nearest word is found.
        error_handling: `output: NAME` makes rejected rows an output of that name, with the field `reason`; what such a
            row held is never passed on. Without it they fail the pipeline.
        budget_store: URL of the budget store to charge.
        dataset: whose budget is charged.
        run_id: names the run, at most 40 characters.
    """

    def __init__(
        self,
        *,
        mechanism: str = "multivariate_laplace",
        epsilon: Optional[float] = None,
        scale: Optional[float] = None,
        neighbours: Optional[int] = None,
        covariance_weight: Optional[float] = None,
        second_weight: Optional[float] = None,
        rank_decay: Optional[float] = None,
        max_noise: Optional[float] = None,
        gamma: Optional[float] = None,
        bandwidth: Optional[float] = None,
        prefer_general: Optional[bool] = None,
        index: Optional[str] = None,
        text_column: str = "text",
        keep_columns: Sequence[str] = (),
        max_words: int = 64,
        oov: str = "drop",
        search: str = "auto",
        error_handling: Optional[Mapping[str, str]] = None,
        budget_store: Optional[str] = None,
        dataset: Optional[str] = None,
        run_id: Optional[str] = None,
    ) -> None:
        super().__init__(budget_store, dataset, run_id)
        parameters = {
            "epsilon": epsilon,
            "scale": scale,
            "neighbours": neighbours,
            "covariance_weight": covariance_weight,
            "second_weight": second_weight,
            "rank_decay": rank_decay,
            "max_noise": max_noise,
            "gamma": gamma,
            "bandwidth": bandwidth,
            "prefer_general": prefer_general,
        }
        self._mechanism = make_mechanism(mechanism, parameters)
        self._rejected = _error_output(error_handling)
        self._options: dict[str, Any] = {
            "index": index,
            "text_column": text_column,
            "keep_columns": keep_columns,
            "max_words": max_words,
            "oov": oov,
            "search": search,
        }

    def _apply(self, pcoll: beam.PCollection, ledger: Ledger) -> Any:
        privatize = beam_dp.PrivatizeText(self._mechanism, ledger=ledger, **self._options)
        if self._rejected is None:
            return _settled(pcoll | privatize)
        outputs = pcoll | privatize.with_rejects()
        reasons = outputs.rejected | "Reasons" >> beam.FlatMap(_reasons).with_output_types(_REASON)
        return {"good": _settled(outputs.rows), self._rejected: reasons}


class Aggregate(_Charged):
    """Differentially private statistics of groups of rows, one row for each group.

    Args:
        by: the fields whose distinct values are the groups.
        privacy_unit: the field that says whose a row is.
        metrics: what to show of each group, such as `count,mean:amount:0:100`, or a list of these.
        max_partitions: use at most so many groups of one privacy unit.
        max_rows_per_partition: use at most so many rows of one privacy unit in a group.
        epsilon: of all rows of one privacy unit together.
        delta: above 0 for private selection of groups and for gaussian noise.
        noise: `laplace` or `gaussian`.
        selection: `truncated_geometric` or `laplace_threshold`: how it is decided which groups are shown.
        pre_threshold: never show groups of fewer privacy units.
        composition: `basic` or `pld`: how the shares of the budget add up to it.
        public_partitions: show exactly these groups: a list of values, or of lists of them where by names several.
        max_windows: on fixed windows, in how many of them one privacy unit has rows at most.
        first_window: an instant in the first of the windows that are released, as 2024-05-17T00:00:00Z.
        buckets: parts that the privacy units are cut into, each held in memory by a worker.
        budget_store: URL of the budget store to charge.
        dataset: whose budget is charged.
        run_id: names the run, at most 40 characters.
    """

    def __init__(
        self,
        *,
        by: str | Sequence[str],
        privacy_unit: str,
        metrics: str | Sequence[str],
        max_partitions: int,
        epsilon: float,
        max_rows_per_partition: int = 1,
        delta: float = 0.0,
        noise: str = "laplace",
        selection: Optional[str] = None,
        pre_threshold: Optional[int] = None,
        composition: str = "basic",
        public_partitions: Optional[Sequence[Any]] = None,
        max_windows: Optional[int] = None,
        first_window: Optional[str] = None,
        buckets: int = DEFAULT_BUCKETS,
        budget_store: Optional[str] = None,
        dataset: Optional[str] = None,
        run_id: Optional[str] = None,
    ) -> None:
        super().__init__(budget_store, dataset, run_id)
        self._by = by
        self._options: dict[str, Any] = {
            "privacy_unit": privacy_unit,
            "bounds": Bounds(max_partitions, max_rows_per_partition),
            "metrics": _metrics(metrics),
            "budget": Budget(epsilon, delta, cast(Any, composition)),
            "partitions": _partitions(public_partitions, selection, pre_threshold),
            "noise": noise,
            "buckets": buckets,
            "max_windows": max_windows,
            "first_window": first_window,
        }

    def _apply(self, pcoll: beam.PCollection, ledger: Ledger) -> Any:
        # It settles its rows itself.
        return pcoll | beam_dp.Aggregate(self._by, ledger=ledger, **self._options)


class RandomizedResponse(_Charged):
    """Replaces every answer by a randomized response, so that nobody can tell what anyone answered.

    A null and a value that is no category get a uniformly drawn category first: no row is rejected.

    Args:
        column: the field that holds the answers.
        categories: the public list of possible answers: strings, integers or booleans.
        epsilon: of one response.
        privacy_unit: whose answers they are, as the ledger names it.
        max_responses: how many rows one privacy unit has at most; null where nobody knows.
        keep_columns: fields that are passed on unchanged and unprotected; all others are dropped.
        budget_store: URL of the budget store to charge.
        dataset: whose budget is charged.
        run_id: names the run, at most 40 characters.
    """

    def __init__(
        self,
        *,
        column: str,
        categories: Sequence[Any],
        epsilon: float,
        privacy_unit: str = "user",
        max_responses: Optional[int] = 1,
        keep_columns: Sequence[str] = (),
        budget_store: Optional[str] = None,
        dataset: Optional[str] = None,
        run_id: Optional[str] = None,
    ) -> None:
        super().__init__(budget_store, dataset, run_id)
        self._options: dict[str, Any] = {
            "column": column,
            "categories": categories,
            "epsilon": epsilon,
            "privacy_unit": privacy_unit,
            "max_responses": max_responses,
            "keep_columns": keep_columns,
        }

    def _apply(self, pcoll: beam.PCollection, ledger: Ledger) -> Any:
        return _settled(pcoll | beam_dp.RandomizedResponse(ledger=ledger, **self._options))


def _settled(rows: beam.PCollection) -> beam.PCollection:
    """``rows`` behind a step that makes a runner settle on one attempt of what drew them."""
    settled = rows | "Settle" >> beam.Reshuffle()
    settled.element_type = rows.element_type
    return settled


def _error_output(error_handling: Any) -> str | None:
    """The name of the output of rejected rows; from Java the mapping is a row."""
    fields = error_handling._asdict() if hasattr(error_handling, "_asdict") else error_handling
    if fields is None:
        return None
    name = fields.get("output") if isinstance(fields, Mapping) and len(fields) == 1 else None
    if not isinstance(name, str) or not name or name == "good":
        raise ArgumentError("error_handling must be 'output: NAME', a name other than good")
    return name


def _reasons(rejected: pa.RecordBatch) -> Iterator[beam.Row]:
    for reason in rejected.column("reason").to_pylist():
        yield beam.Row(reason=reason)


def _metrics(metrics: str | Sequence[str]) -> tuple[Metric, ...]:
    """What ``--metrics`` of the command line would be; a list has an item for each."""
    items = [metrics] if isinstance(metrics, str) else metrics
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise ArgumentError("metrics must be a text such as 'count,mean:amount:0:100', or a list of such texts")
    try:
        return parse_metrics(",".join(items))
    except ArgumentError as error:
        raise ArgumentError(str(error).removeprefix("--")) from None


def _partitions(public: Any, selection: str | None, pre_threshold: int | None) -> Any:
    """The public partitions, keys of several columns as tuples, or how to select them."""
    given: dict[str, Any] = {"strategy": selection, "pre_threshold": pre_threshold}
    chosen = {name: value for name, value in given.items() if value is not None}
    if public is None:
        return PrivateSelection(**chosen)
    if chosen:
        raise ArgumentError("selection and pre_threshold are about private selection: leave out public_partitions")
    if isinstance(public, str) or not isinstance(public, Sequence):
        raise ArgumentError("public_partitions must be a list of values, or of lists of them")
    return [tuple(key) if isinstance(key, list) else key for key in public]
