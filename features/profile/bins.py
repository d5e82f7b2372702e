"""Bins of features: chosen on one dataset (most frequent ids, edges at quantiles), counted on any.

Days are counted over the bins of an earlier one, so that no bin is chosen by the rows that it is to judge.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from features.kinds import present_ids, present_numbers
from features.profile.distribution import DenseDistribution, Distribution, DriftError, SparseDistribution
from features.profile.id_counts import FrequentIds, GrowingSample, IdSample
from features.rows import Columns
from features.schema import FeatureSchema

NUM_QUANTILES = 10
"""Bins of a dense feature, if no value is frequent: deciles, which the usual bounds of the PSI are for."""
NUM_QUANTILE_ROWS = 65_536
"""Number of evenly spaced rows that quantiles are computed on."""

Bins: TypeAlias = Mapping[str, tuple[int, ...] | tuple[float, ...]]
"""Feature -> ids of a sparse one, edges of a dense one."""


def choose_bins(schema: FeatureSchema, batches: Iterable[Columns], num_rows: int) -> Bins:
    """Choose every feature's bins: the most frequent ids, ties by id, and edges at the quantiles.

    Args:
        batches: columns as in the Parquet files, ``num_rows`` in all.
    """
    frequent = {feature.name: FrequentIds() for feature in schema.sparse}
    samples: dict[str, list[NDArray[Any]]] = {name: [] for name in schema.dense_names}
    step, start = -(-num_rows // NUM_QUANTILE_ROWS) or 1, 0
    for batch in batches:
        for feature in schema.sparse:
            ids, _ = present_ids(batch, feature)
            frequent[feature.name].add(*np.unique(ids, return_counts=True))
        for name, parts in samples.items():
            parts.append(batch[name][-start % step :: step])
        start += len(batch[schema.sparse[0].name])
    edges = {name: quantile_edges(np.concatenate(parts)) if parts else () for name, parts in samples.items()}
    return {**{name: found.top() for name, found in frequent.items()}, **edges}


def count(schema: FeatureSchema, batches: Iterable[Columns], bins: Bins) -> dict[str, Distribution]:
    """Count every feature over bins.

    Args:
        batches: columns as in the Parquet files.

    Raises:
        DriftError: the bins are of other features.
    """
    names = (*schema.sparse_names, *schema.dense_names)
    if set(bins) != set(names):
        raise DriftError(f"the bins are of {', '.join(bins)}, the features are {', '.join(names)}")
    sparse = {feature: _SparseCounter(bins[feature.name]) for feature in schema.sparse}
    dense = {feature: _DenseCounter(bins[feature.name]) for feature in schema.dense}
    for batch in batches:
        for feature, counter in sparse.items():
            counter.add(*present_ids(batch, feature))
        for feature, counter in dense.items():
            counter.add(*present_numbers(batch, feature))
    return {feature.name: counter.result() for feature, counter in chain(sparse.items(), dense.items())}


def quantile_edges(values: NDArray[Any], weights: NDArray[Any] | None = None) -> tuple[float, ...]:
    """Cut floats into bins of about equal weight; a value that is several quantiles gets a bin of its own.

    Args:
        values: (n,) floats; NaN does not count.
        weights: (n,) not negative; None: 1 each.
    """
    weights = np.ones(len(values)) if weights is None else weights
    is_known = ~np.isnan(values)
    values, weights = values[is_known], weights[is_known]
    if not len(values):
        return ()
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order])
    wanted = mass[-1] * np.arange(1, NUM_QUANTILES) / NUM_QUANTILES
    # A quantile is one of the values, not between two: else a frequent value could not be told from its neighbours.
    quantiles = values[order][np.searchsorted(mass, wanted).clip(0, len(values) - 1)]
    distinct, times = np.unique(quantiles, return_counts=True)
    behind = np.nextafter(distinct[times > 1], np.array(np.inf, values.dtype))
    edges = np.unique(np.concatenate([distinct, behind]))
    return tuple(edges[np.isfinite(edges)].astype(float).tolist())


def bin_counts(values: NDArray[Any], edges: Sequence[float], weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """Count the values, or add up the weights, in each bin of ``quantile_edges``: (edges + 1,); without NaN."""
    places = np.searchsorted(np.array(edges, np.float64), values.astype(np.float64), side="right")
    return np.bincount(places, weights, minlength=len(edges) + 1)


class _SparseCounter:
    def __init__(self, ids: Sequence[float]) -> None:
        self.ids = np.array(ids, np.int64)
        self.order = np.argsort(self.ids)
        self.counts = np.zeros(len(ids), np.int64)
        self.rest = self.missing = 0
        self.sample = GrowingSample(IdSample())

    def add(self, ids: NDArray[Any], num_missing: int) -> None:
        distinct, counts = np.unique(ids, return_counts=True)
        self.sample.add(distinct, counts)
        places = np.searchsorted(self.ids, distinct, sorter=self.order)
        bins = self.order[places.clip(0, max(len(self.ids) - 1, 0))] if len(self.ids) else places
        is_bin = self.ids[bins] == distinct if len(self.ids) else np.zeros(len(distinct), bool)
        self.counts[bins[is_bin]] += counts[is_bin]
        self.rest += int(counts[~is_bin].sum())
        self.missing += num_missing

    def result(self) -> SparseDistribution:
        ids, counts = tuple(self.ids.tolist()), tuple(self.counts.tolist())
        return SparseDistribution(ids, counts, self.rest, self.missing, self.sample.result())


class _DenseCounter:
    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self.counts = np.zeros(len(edges) + 1, np.int64)
        self.missing = 0

    def add(self, values: NDArray[Any], num_missing: int) -> None:
        self.counts += bin_counts(values, self.edges)
        self.missing += num_missing

    def result(self) -> DenseDistribution:
        return DenseDistribution(self.edges, tuple(self.counts.tolist()), self.missing)
