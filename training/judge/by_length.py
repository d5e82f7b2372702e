"""Metrics of rows by the length of their history: what a history is worth, and to whom. NumPy alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.judge.metrics import evaluate
from training.judge.scores import Scores

LENGTHS = (0, 1, 5, 10, 20)
"""Least lengths of the groups of rows; the last has no end."""


def metrics_by_length(scores: Scores, lengths: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Compute every metric of the rows of each group of lengths that has any.

    Args:
        scores: of n rows.
        lengths: (n,) how many events each has.

    Returns:
        ``events`` (``"5-9"``), ``rows`` and each metric, shortest histories first.
    """
    groups = np.searchsorted(LENGTHS, lengths, side="right") - 1
    found = []
    for group in np.unique(groups[scores.weights > 0]).tolist():
        own = groups == group
        found.append({"events": _named(group), **evaluate(scores.map(lambda values, own=own: values[own]))})
    return found


def _named(group: int) -> str:
    if group == len(LENGTHS) - 1:
        return f"{LENGTHS[group]}+"
    first, last = LENGTHS[group], LENGTHS[group + 1] - 1
    return str(first) if first == last else f"{first}-{last}"
