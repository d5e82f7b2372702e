"""Dwell times of events: seconds that a user stayed -> ids of fixed buckets, and the weight that each bucket has.

An event's weight is log(1 + seconds), cut off at a percentile of the training split's events (PHG-DIF, arXiv
2508.07178). Files hold ids, so that a dwell time goes the road of all else that an event has: a bucket is 1/22 wide in
log(1 + seconds) and weighs as much as its middle, which is right to 2 % from 2 seconds on. Id 0: not known.

Shapes: V events of all rows.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

_STEP = 1 / 22
DWELL_BOUNDARIES = tuple(round(math.expm1(place * _STEP), 6) for place in range(1, 255))
"""Rising boundaries of the buckets in seconds, up to 28 hours: an id is 1 + how many are at or below a dwell time."""
NUM_DWELL_IDS = len(DWELL_BOUNDARIES) + 2
DWELL_PERCENTILE = 0.95
"""Share of the training split's events of known dwell time that weigh less than the cut-off, or as much."""


def dwell_ids(seconds: NDArray[np.float64]) -> NDArray[np.int32]:
    """Compute the ids of dwell times, (V,); NaN is one that is not known."""
    ids = 1 + np.searchsorted(DWELL_BOUNDARIES, seconds, side="right")
    return np.where(np.isnan(seconds), 0, ids).astype(np.int32)


def dwell_seconds(id_: int) -> float:
    """Return the dwell time that weighs as much as an id does."""
    return math.expm1((id_ - 0.5) * _STEP)


def weights_by_id(cut_off: int | None = None) -> list[float]:
    """List the weight of each id; that of id 0 says nothing.

    Args:
        cut_off: largest id that counts, longer dwell times weigh as much as it does; None: all count.
    """
    last = NUM_DWELL_IDS - 1 if cut_off is None else cut_off
    return [0.0, *((min(id_, last) - 0.5) * _STEP for id_ in range(1, NUM_DWELL_IDS))]


def add_counts(*counts: Sequence[int]) -> tuple[int, ...]:
    """Add up counts of events by the id of their dwell time, each from id 0 as far as it goes."""
    return tuple(map(sum, zip_longest(*counts, fillvalue=0)))


def cut_off_of(counts: Sequence[int]) -> int | None:
    """Find the largest id that counts, at ``DWELL_PERCENTILE`` of the events of known dwell time; None: there are none.

    Args:
        counts: events of each id, from 0.
    """
    known = np.cumsum(counts[1:])
    if not len(known) or not known[-1]:
        return None
    return 1 + int(np.searchsorted(known, DWELL_PERCENTILE * known[-1]))
