"""Distributions: how often each value of a feature comes, as counts over bins, and which ids are new.

Counts over the bins of one dataset, those of several days say, add up.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from pydantic import FiniteFloat
from pydantic.dataclasses import dataclass

from features.disk.dataset import Count
from features.profile.id_counts import GrowingSample, IdSample
from features.schema import STRICT


class DriftError(ValueError):
    """Counts cannot be read, added up or compared: they are damaged, or of other bins, features or ids."""


@dataclass(frozen=True, config=STRICT)
class SparseDistribution:
    """Counts of ids; each id of a multi-valued feature counts, and a row without ids as missing."""

    ids: tuple[Count, ...]
    """Ids that are bins, the most frequent first in the dataset that they were chosen on."""
    counts: tuple[Count, ...]
    rest: Count
    """Number of values with other ids."""
    missing: Count
    """Number of missing values; 0 for vocabularies, where they have the out-of-vocabulary id."""
    sample: IdSample
    kind: Literal["sparse"] = "sparse"

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids have {len(self.counts)} counts")

    @property
    def bins(self) -> tuple[int, ...]:
        """Ids that are counted one by one."""
        return self.ids


@dataclass(frozen=True, config=STRICT)
class DenseDistribution:
    """Histogram of values after fill and transformations; edge i is the least value of bin i + 1.

    A value that is itself a tenth of all, a fill value say, has a bin of its own.
    """

    edges: tuple[FiniteFloat, ...]
    counts: tuple[Count, ...]
    missing: Count
    """Number of NaN; datasets hold a feature's ``fill`` instead."""
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"{len(self.edges)} edges must rise and have {len(self.edges) + 1} counts")

    @property
    def bins(self) -> tuple[float, ...]:
        """Edges of the bins, rising."""
        return self.edges

    @property
    def rest(self) -> int:
        """Return 0: no value is outside all bins."""
        return 0


Distribution: TypeAlias = SparseDistribution | DenseDistribution


def add(first: Distribution, second: Distribution) -> Distribution:
    """Add two distributions up.

    Raises:
        DriftError: they are over other bins.
    """
    check_bins(first, second)
    counts = tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
    missing = first.missing + second.missing
    if isinstance(first, SparseDistribution) and isinstance(second, SparseDistribution):
        sample = GrowingSample(first.sample)
        sample.add(np.array(second.sample.ids, np.int64), np.array(second.sample.counts, np.int64), second.sample.level)
        return SparseDistribution(first.ids, counts, first.rest + second.rest, missing, sample.result())
    return replace(first, counts=counts, missing=missing)


def check_bins(first: Distribution, second: Distribution) -> None:
    """Refuse counts that cannot be added up or compared.

    Raises:
        DriftError: they are over other bins.
    """
    if (first.kind, first.bins) != (second.kind, second.bins):
        raise DriftError("the counts are over other bins: measure one with the bins of the other")


@dataclass(frozen=True)
class NewIds:
    """Counts of new ids: ids with at least ``min_count`` occurrences that the reference lacks."""

    num_new: int
    num_ids: int
    num_new_values: int
    num_values: int
    """Number of values of all ids, rarer ones included."""

    @property
    def id_share(self) -> float:
        """Share of new ids among the ids."""
        return self.num_new / self.num_ids if self.num_ids else 0.0

    @property
    def value_share(self) -> float:
        """Share of values with a new id among the values."""
        return self.num_new_values / self.num_values if self.num_values else 0.0


def new_ids(reference: SparseDistribution, current: SparseDistribution, min_count: int) -> NewIds:
    """Count new ids, exactly up to ``NUM_SAMPLED_IDS`` distinct ones, beyond that in a sample of the ids.

    Rare ids are not judged: of a long tail most are new every day.
    """
    level = max(reference.sample.level, current.sample.level)
    known, samples = (GrowingSample(d.sample, level) for d in (reference, current))
    is_frequent = samples.counts >= min_count
    is_new = is_frequent & ~np.isin(samples.ids, known.ids)
    return NewIds(
        int(is_new.sum()), int(is_frequent.sum()), int(samples.counts[is_new].sum()), int(samples.counts.sum())
    )
