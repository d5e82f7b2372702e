"""Counts of ids in bounded memory: a feature's most frequent ids, and exact counts of a sample that a hash chooses.

A feature may have more ids than fit; both kinds of counts add up over batches, samples over datasets too.
"""

from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from features.disk.dataset import Count
from features.schema import STRICT

NUM_TOP_IDS = 256
"""Bins of a sparse feature, besides the rest and missing values."""
NUM_SAMPLED_IDS = 2_048
"""Distinct ids that a sample holds: all of them while they are as few."""
NUM_COUNTED_IDS = 65_536
"""Capacity of the counter that chooses bins: short by at most one in so many values, exact in small tables."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, config=STRICT)
class IdSample:
    """Some of a feature's ids, and the exact count of each.

    Which ids may be in it follows from a hash of the id alone (one in 2^level), so an id that one dataset's sample has
    and another's, at the same level, has not is new there (adaptive sampling, Flajolet 1990).
    """

    level: Annotated[int, Field(ge=0, le=64)] = 0
    ids: tuple[Count, ...] = ()
    """Ids in rising order, without that of missing values."""
    counts: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.counts) or any(a >= b for a, b in pairwise(self.ids)):
            raise ValueError("a sample needs rising ids with a count each")


class GrowingSample:
    """An ``IdSample`` that grows, and forgets every second id when it is full."""

    def __init__(self, sample: IdSample, level: int = 0) -> None:
        self.level = 0
        self.ids, self.counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.add(np.array(sample.ids, np.int64), np.array(sample.counts, np.int64), max(level, sample.level))

    def add(self, ids: NDArray[Any], counts: Counts, level: int = 0) -> None:
        """Add counts of ids, all or those of a sample of this level."""
        if level > self.level:
            self._keep(level)
        kept = _is_sampled(ids, self.level)
        self.ids, self.counts = _merge(self.ids, self.counts, ids[kept], counts[kept])
        while len(self.ids) > NUM_SAMPLED_IDS:
            self._keep(self.level + 1)

    def _keep(self, level: int) -> None:
        self.level = level
        kept = _is_sampled(self.ids, level)
        self.ids, self.counts = self.ids[kept], self.counts[kept]

    def result(self) -> IdSample:
        """Return the sample as it is now."""
        return IdSample(self.level, tuple(self.ids.tolist()), tuple(self.counts.tolist()))


class FrequentIds:
    """Counts of ids, the rarest ones forgotten when they are too many (Misra and Gries 1982, merged as by Agarwal)."""

    def __init__(self) -> None:
        self.ids, self.counts = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def add(self, ids: NDArray[Any], counts: Counts) -> None:
        """Count ids, each with its number of occurrences."""
        self.ids, self.counts = _merge(self.ids, self.counts, ids, counts)
        if len(self.ids) > NUM_COUNTED_IDS:
            place = len(self.ids) - NUM_COUNTED_IDS - 1
            left = self.counts - np.partition(self.counts, place)[place]
            self.ids, self.counts = self.ids[left > 0], left[left > 0]

    def top(self) -> tuple[int, ...]:
        """Return the most frequent ids, ties in rising order of ids."""
        return tuple(self.ids[np.lexsort((self.ids, -self.counts))[:NUM_TOP_IDS]].tolist())


def _is_sampled(ids: NDArray[Any], level: int) -> NDArray[np.bool_]:
    """Tell whether the last ``level`` bits of each id's hash (splitmix64) are 0."""
    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed & np.uint64(2**level - 1) == 0


def _merge(first: Counts, first_counts: Counts, second: NDArray[Any], counts: Counts) -> tuple[Counts, Counts]:
    """Merge two counts: distinct ids, rising, with the sums of their counts."""
    ids, place = np.unique(np.concatenate([first, second.astype(np.int64)]), return_inverse=True)
    sums = np.zeros(len(ids), np.int64)
    np.add.at(sums, place, np.concatenate([first_counts, counts]))
    return ids, sums
