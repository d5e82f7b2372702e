"""Scores: logits of rows beside what is known of the rows. NumPy alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from training.judge.calibration import Calibration

Floats = NDArray[np.float64]


class DivergedError(ValueError):
    """Training went to infinity: a loss or logits are no longer finite."""


@dataclass(frozen=True)
class Scores:
    """Logits, labels, weights and group ids of the same n rows.

    Attributes:
        logits: (n,) scores before the sigmoid.
        labels: (n,) 0 or 1.
        weights: (n,) not negative; a row of weight 0 does not count.
        group_ids: (n,) integers, for what is measured within groups; None: there are no groups.
    """

    logits: NDArray[Any]
    labels: NDArray[Any]
    weights: NDArray[Any]
    group_ids: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        logits: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike | None = None,
        group_ids: ArrayLike | None = None,
    ) -> "Scores":
        """Make scores of lists or arrays; ``weights`` None: 1 each."""
        logits = np.asarray(logits, np.float64)
        return cls(
            logits,
            np.asarray(labels, np.float64),
            np.ones(len(logits)) if weights is None else np.asarray(weights, np.float64),
            None if group_ids is None else np.asarray(group_ids),
        )

    def checked(self) -> "Scores":
        """Select the rows with a positive weight, with logits, labels and weights in float64.

        Raises:
            DivergedError: logits hold NaN.
            ValueError: labels are not 0 or 1, weights are below 0, or the lengths differ.
        """
        return Scores(*check_rows(self.logits, self.labels, self.weights, self.group_ids))

    def calibrated(self, calibration: "Calibration") -> "Scores":
        """Calibrate the logits of the same rows."""
        return replace(self, logits=calibration.apply(self.logits))

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> "Scores":
        """Scores of changed arrays, for what is done to every array alike: choosing rows, gathering from ranks."""
        groups = None if self.group_ids is None else change(self.group_ids)
        return Scores(change(self.logits), change(self.labels), change(self.weights), groups)


def to_probs(logits: Floats) -> Floats:
    """(n,) sigmoid without overflow."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, small) / (1 + small)


def check_rows(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None, group_ids: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats, NDArray[Any] | None]:
    """Checked arrays of the rows that weigh something."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    groups = None if group_ids is None else np.asarray(group_ids)
    lengths = {len(array) for array in (scores, labels, weights, groups) if array is not None}
    if len(lengths) > 1 or scores.ndim != 1:
        raise ValueError(f"logits, labels, weights and group ids must be one list each, of one length, got {lengths}")
    counts = weights > 0
    if not (counts | (weights == 0)).all():
        raise ValueError("weights hold a negative number or NaN")
    if not counts.all():
        scores, labels, weights = scores[counts], labels[counts], weights[counts]
        groups = None if groups is None else groups[counts]
    if np.isnan(scores).any():
        raise DivergedError(f"{np.isnan(scores).sum()} of {len(scores)} logits are NaN: the model has diverged")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1")
    return scores, labels, weights, groups
