"""Drift: how far two distributions of a feature differ, beyond what sampling noise explains."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.profile.distribution import Distribution, DriftError, check_bins
from features.profile.id_counts import Counts

MIN_COUNT = 30
"""Least count of a bin: bins with fewer values, counted or expected, are merged. Sampling noise alone gives B bins of n
and m values a PSI of (B - 1) (1 / n + 1 / m), so it contributes 1 / MIN_COUNT each way at most."""
SMOOTHING = 0.5
"""Pseudo-count added to every bin, so that an empty bin counts as rare and not as impossible."""


def psi(reference: Distribution, current: Distribution) -> float:
    """Population stability index, sum of (q - p) ln(q / p) over bins; 0 for equal shares, 0.25 is usually called much.

    Raises:
        DriftError: they are over other bins, or one has no values.
    """
    return population_stability(*_compared(reference, current))


def jensen_shannon(reference: Distribution, current: Distribution) -> float:
    """Jensen-Shannon divergence in bits: 0 for equal shares, 1 for shares without a common bin.

    Raises:
        DriftError: as ``psi``.
    """
    p, q = (_smooth(counts) for counts in _compared(reference, current))
    middle = (p + q) / 2
    return float(p @ np.log2(p / middle) + q @ np.log2(q / middle)) / 2


def population_stability(first: NDArray[Any], second: NDArray[Any]) -> float:
    """PSI of counts, or weights with a mean near 1, over the same bins; each bin's is smoothed."""
    p, q = _smooth(first), _smooth(second)
    return float((q - p) @ np.log(q / p))


def _smooth(counts: NDArray[Any]) -> NDArray[np.float64]:
    smoothed = counts + SMOOTHING
    return smoothed / smoothed.sum()


def _compared(reference: Distribution, current: Distribution) -> tuple[Counts, Counts]:
    """Align two counts over the same bins: rare bins and the rest merged, bins empty in both dropped."""
    check_bins(reference, current)
    both = np.array([reference.counts, current.counts], np.int64).reshape(2, -1)
    others = np.array([[d.rest, d.missing] for d in (reference, current)], np.int64)
    sizes = both.sum(1) + others.sum(1)
    if not sizes.all():
        raise DriftError("a distribution without values cannot be compared")
    expected = both[0] * min(1, sizes[1] / sizes[0])
    is_rare = expected < MIN_COUNT
    others[:, 0] += both[:, is_rare].sum(1)
    kept = np.c_[both[:, ~is_rare], others]
    kept = kept[:, kept.any(0)]
    return kept[0], kept[1]
