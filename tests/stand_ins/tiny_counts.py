"""Distributions by hand and counted from a few columns, for every test that counts or compares."""

from collections.abc import Iterator

import numpy as np

from features.profile.bins import choose_bins, count
from features.profile.distribution import DenseDistribution, SparseDistribution
from features.profile.id_counts import IdSample
from features.rows import Columns
from features.schema import DenseFeature, FeatureSchema, HashEncoding, SparseFeature

SCHEMA = FeatureSchema("y", sparse=(SparseFeature("a", HashEncoding(2**20)),), dense=(DenseFeature("x"),))


def dense(*counts: int, missing: int = 0) -> DenseDistribution:
    return DenseDistribution(tuple(map(float, range(len(counts) - 1))), counts, missing)


def sparse(*counts: int, rest: int = 0, missing: int = 0, sample: IdSample | None = None) -> SparseDistribution:
    return SparseDistribution(tuple(range(1, len(counts) + 1)), counts, rest, missing, sample or IdSample())


def parts(columns: Columns, size: int) -> Iterator[Columns]:
    """Columns cut into batches."""
    for start in range(0, len(next(iter(columns.values()))), size):
        yield {name: column[start : start + size] for name, column in columns.items()}


def counted(ids: np.ndarray, size: int = 1_000) -> SparseDistribution:
    columns = {"a": ids, "x": np.zeros(len(ids), np.float32)}
    found = count(SCHEMA, parts(columns, size), choose_bins(SCHEMA, parts(columns, size), len(ids)))["a"]
    assert isinstance(found, SparseDistribution)
    return found
