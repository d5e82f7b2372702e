"""Calibration: a scale and an offset of the logit, fitted on validation, that keep the order of scores.

Selection by AUC, losses that refocus rows and long training leave a good ranking with biased probabilities.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.disk.run_folder import CALIBRATION_NAME
from training.judge.scores import Floats, check_rows, to_probs

if TYPE_CHECKING:
    from torch import Tensor

MAX_STEPS = 100
NUM_PARTS = 5
"""Parts of the validation rows, each held against a fit of the others."""
TOLERANCE = 1e-10
"""Newton's method ends at this gradient, for inputs of mean 0 and deviation 1 and as a share of rate * (1 - rate)."""

Logits = TypeVar("Logits", NDArray[np.float64], "Tensor")


class CalibrationError(ValueError):
    """No calibration can be fitted, or what was stored is none; the message says why."""


@dataclass(frozen=True)
class Calibration:
    """sigmoid(scale * logit + offset) is the probability that is served; the default serves the model's own."""

    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.scale < np.inf and np.isfinite(self.offset)):
            raise CalibrationError(f"{self} would change the ranking: the scale must be positive, both numbers finite")

    def apply(self, logits: Logits) -> Logits:
        """Calibrate logits of any shape (float64, so that no two scores become equal)."""
        return self.scale * logits + self.offset

    def to_json(self) -> dict[str, float]:
        """Return scale and offset as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Calibration":
        """Read what ``to_json`` gave; other keys are ignored.

        Raises:
            CalibrationError: a number is missing or out of range.
        """
        try:
            return cls(float(values["scale"]), float(values["offset"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CalibrationError(f"{CALIBRATION_NAME} is not understood: {error!r}") from error


def fit_platt(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Calibration:
    """Fit the scale and offset of least weighted logloss (Platt 1999, with the labels as they are), by Newton's method.

    Args:
        logits: (n,) scores before the sigmoid.
        labels: (n,) 0 or 1.
        weights: (n,) not negative; None: 1 each. Rows of weight 0 do not count.

    Raises:
        CalibrationError: the rows have no such scale: one class only, classes that the scores separate (it would be
            infinite), or scores that do not rise with the label (it would not be positive).
        ValueError: as ``training.judge.metrics.evaluate``.
    """
    logits, labels, weights, _ = check_rows(logits, labels, weights)
    positives, negatives = logits[labels == 1], logits[labels == 0]
    if not len(positives) or not len(negatives):
        raise _refusal("the validation split has rows of one class only")
    if negatives.max() <= positives.min():
        raise _refusal("the scores separate the two classes of the validation split, or are all equal")
    shares = weights / weights.sum()
    mean = float(shares @ logits)
    deviation = float(np.sqrt(shares @ (logits - mean) ** 2))
    inputs = np.stack([(logits - mean) / deviation, np.ones_like(logits)])
    if shares @ (labels * inputs[0]) <= 0:  # the loss falls towards a negative scale
        raise _refusal("on the validation split the scores of positives are not above those of negatives")
    slope, intercept = map(float, _minimise(inputs, labels, shares))
    return Calibration(slope / deviation, intercept - slope * mean / deviation)


def fit_where_it_helps(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Calibration:
    """Fit as ``fit_platt``, and keep the fit where rows that it has not seen gain by it.

    The rows are cut into parts that are alike in scores and labels; each part's logloss is taken under the fit of the
    others. Where the sum is not below that of the model's own probabilities, or where nothing can be fitted, those
    probabilities are served.

    Args:
        logits: (n,) scores before the sigmoid.
        labels: (n,) 0 or 1.
        weights: (n,) not negative; None: 1 each.

    Raises:
        ValueError: as ``training.judge.metrics.evaluate``.
    """
    logits, labels, weights, _ = check_rows(logits, labels, weights)
    part = np.empty(len(logits), np.int64)
    part[np.lexsort((weights, logits, labels))] = np.arange(len(logits)) % NUM_PARTS
    gain = 0.0
    try:
        for number in range(NUM_PARTS):
            seen = part != number
            held, found = ~seen, fit_platt(logits[seen], labels[seen], weights[seen])
            own, fitted = (_row_losses(z, labels[held]) for z in (logits[held], found.apply(logits[held])))
            gain += float(weights[held] @ (own - fitted))
        return fit_platt(logits, labels, weights) if gain > 0 else Calibration()
    except CalibrationError:
        return Calibration()


def _row_losses(logits: Floats, labels: Floats) -> Floats:
    return np.logaddexp(0, logits) - labels * logits


def _minimise(inputs: Floats, labels: Floats, weights: Floats) -> Floats:
    """(2,) coefficients of the logistic regression on inputs (2, n), the second of which is 1 everywhere."""
    rate = weights @ labels
    values = np.array([0.0, np.log(rate) - np.log1p(-rate)])
    for _ in range(MAX_STEPS):
        probs = to_probs(values @ inputs)
        gradient = inputs @ (weights * (probs - labels))
        if np.abs(gradient).max() <= TOLERANCE * rate * (1 - rate):
            return values
        curvature = (inputs * (weights * probs * (1 - probs))) @ inputs.T
        step: Floats = np.asarray(np.linalg.solve(curvature, gradient), np.float64)
        highest = _loss(values, inputs, labels, weights) * (1 + 1e-12)  # at the minimum only rounding is left
        while _loss(values - step, inputs, labels, weights) > highest:
            step = step / 2
        values = values - step
    raise _refusal(f"Newton's method did not converge in {MAX_STEPS} steps")


def _loss(values: Floats, inputs: Floats, labels: Floats, weights: Floats) -> float:
    return float(weights @ _row_losses(values @ inputs, labels))


def _refusal(why: str) -> CalibrationError:
    return CalibrationError(
        f'training.calibration: no "platt" fit, {why}; go on with jobs.train --resume and kind = "none"'
    )
