"""Compare two models by a paired bootstrap of their difference over the same rows and seeds.

Shapes: n rows, S seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.judge.metrics import row_logloss
from training.judge.scores import Floats

COMPARED = ("auc", "logloss")
"""Metrics whose difference is measured: those that are sums once the rows are sorted."""


@dataclass(frozen=True)
class Difference:
    """Difference: first model minus second, the mean over seeds, and the interval that holds it."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Tell whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    labels: ArrayLike,
    weights: ArrayLike,
    group_ids: ArrayLike | None = None,
    *,
    num_resamples: int = 1_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compute AUC and logloss of the first model minus the second's, with percentile intervals.

    A resample draws groups with replacement (rows of one user are not independent; without groups it draws rows), the
    same for both models, and seeds with replacement, so the interval holds both kinds of luck.

    Args:
        first: S arrays (n,) of logits, one a seed.
        second: the same rows and seeds by the other model.
        labels: (n,) 0 or 1, both among them.
        weights: (n,) not negative.
        group_ids: (n,) integers or None.

    Raises:
        ValueError: the seeds or rows of the two models differ, or all rows are of one class.
    """
    labels, weights = np.asarray(labels, np.float64), np.asarray(weights, np.float64)
    models = [[_Scores(np.asarray(logits, np.float64), labels) for logits in scores] for scores in (first, second)]
    if len(models[0]) != len(models[1]) or not models[0]:
        raise ValueError("a paired comparison needs the same seeds, one or more, of both models")
    if not 0 < weights @ labels < weights.sum():
        raise ValueError("a paired comparison needs rows of both classes")
    num_seeds = len(models[0])
    groups = np.arange(len(labels)) if group_ids is None else np.unique(np.asarray(group_ids), return_inverse=True)[1]
    num_groups = int(groups.max()) + 1
    random = np.random.default_rng(seed)

    def differences(row_weights: Floats, chosen: NDArray[np.int64]) -> list[float]:
        used, times = np.unique(chosen, return_counts=True)
        pairs = [np.subtract(models[0][s].metrics(row_weights), models[1][s].metrics(row_weights)) for s in used]
        return list(np.average(pairs, axis=0, weights=times))

    means = differences(weights, np.arange(num_seeds))
    samples: list[list[float]] = []
    while len(samples) < num_resamples:
        counts = np.bincount(random.integers(num_groups, size=num_groups), minlength=num_groups)
        drawn = weights * counts[groups]
        if 0 < drawn @ labels < drawn.sum():  # else the draw has one class only, and no AUC
            samples.append(differences(drawn, random.integers(num_seeds, size=num_seeds)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(samples, [tail, 100 - tail], axis=0)
    return {m: Difference(float(means[i]), float(low[i]), float(high[i])) for i, m in enumerate(COMPARED)}


class _Scores:
    """Logits of one model, sorted once, so that metrics under other weights are sums."""

    def __init__(self, logits: Floats, labels: Floats) -> None:
        if logits.shape != labels.shape:
            raise ValueError(f"a paired comparison needs the same rows: {logits.shape} logits, {labels.shape} labels")
        self._order = np.argsort(logits, kind="stable")
        ordered = logits[self._order]
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._is_positive = labels[self._order] == 1
        self._losses = row_logloss(logits, labels)

    def metrics(self, weights: Floats) -> tuple[float, float]:
        """AUC (ties count one half) and logloss under these row weights."""
        ordered = weights[self._order]
        positive = np.add.reduceat(np.where(self._is_positive, ordered, 0.0), self._starts)
        negative = np.add.reduceat(np.where(self._is_positive, 0.0, ordered), self._starts)
        below = np.cumsum(negative) - negative / 2
        return (
            float(positive @ below / (positive.sum() * negative.sum())),
            float(weights @ self._losses / weights.sum()),
        )
