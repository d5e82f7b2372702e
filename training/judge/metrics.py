"""Metrics: how good logits are, exactly, over all rows at once, in float64.

Exact rather than binned or averaged over batches, because differences of 0.0003 AUC are what runs are compared by.
A metric that the data does not define (the AUC of rows of one class, say) is None, never a made-up number.
"""

import math
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.judge.scores import Floats, Scores, check_rows, to_probs
from training.plugins import PLUGIN_METRICS, PluginError

PROBABILITY_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 in the logloss (FuxiCTR's clip)."""
LOGIT_CLIP = float(np.log1p(-PROBABILITY_CLIP) - np.log(PROBABILITY_CLIP))
"""Logit of the highest probability that is left."""

NUM_ROC_POINTS = 500
NUM_CALIBRATION_BINS = 20
"""Bins of equal weight, by score."""
NUM_HISTOGRAM_BINS = 50

WINDOW_METRICS = ("auc", "logloss", "ne", "calibration")
"""Metrics of training rows that are scored before they are trained on (``training.fit.window``)."""

NE_REMARK = "it tells less than the label rate alone"
"""Words for a normalised entropy above 1."""
CALIBRATION_RANGE = (0.8, 1.25)
"""Calibrations that are passed over without a word; chance alone makes them in small validation splits."""
UNDEFINED = "undefined"
"""Text of a metric that the rows do not define."""
_BESIDE = "rows monitor epoch step best split event seconds train_loss learning_rate data is_extra"
_OF_TRIALS = "epochs model trial overrides best_epoch stopped_early error request evaluations"
RESERVED = (*_BESIDE.split(), *_OF_TRIALS.split())
"""Names that stand beside metrics in a history, a table or the result of a trial."""


@dataclass(frozen=True)
class Metric:
    """A metric: how it is computed, read and printed.

    Attributes:
        compute: checked scores -> its value; None where the rows do not define one.
        better: direction of better values; ``one``: nearer to 1.
        meaning: one line for whoever reads a table.
        format: format of its values in text, without width and sign.
        needs_groups: whether the rows must have group ids.
        needs_both_labels: whether there must be rows of both labels.
    """

    compute: Callable[[Scores], float | None]
    better: Literal["higher", "lower", "one"]
    meaning: str
    format: str = ".6f"
    needs_groups: bool = False
    needs_both_labels: bool = False

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is.

        Raises:
            ValueError: neither is.
        """
        if self.better == "one":
            raise ValueError("neither a higher nor a lower value is better: 1 is best")
        return 1 if self.better == "higher" else -1

    def text(self, value: float | None, sign: str = "") -> str:
        """Format a value for people, or with the sign ``+`` a difference of two values."""
        return UNDEFINED if value is None else format(value, f"{sign}z{self.format}")  # z: no -0.000000


def register_metric(name: str, metric: Metric) -> None:
    """Make a metric known: ``evaluate`` computes it, tables show it and ``training.monitor`` takes it.

    Raises:
        PluginError: the name is taken or no plain name, or the metric cannot be used.
    """
    if name in METRICS or name in RESERVED:
        raise PluginError(f"metric {name!r} cannot be registered: the name is taken")
    if problem := _find_problem(name, metric):
        raise PluginError(f"metric {name!r:.80} cannot be registered: {problem}")
    PLUGIN_METRICS[name] = metric


def _find_problem(name: str, metric: Metric) -> str | None:
    """Say what keeps a metric from being used; None: nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "its name must be small letters, digits and underscores"
    if not isinstance(metric, Metric) or not callable(metric.compute):
        return "it must be a training.judge.metrics.Metric with a function that computes it"
    if metric.better not in ("higher", "lower", "one"):
        return f"better must be 'higher', 'lower' or 'one', not {metric.better!r:.80}"
    try:
        format(0.5, metric.format)
    except (TypeError, ValueError):
        return f"no number can be printed in the format {metric.format!r:.80}; '.6f' is one"
    return None


def metric_names(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the known metrics, then others that some records have: those of plugins that are not imported here.

    Args:
        found: recorded metrics or evaluations.
    """
    recorded = (name for record in found for name in record if name not in RESERVED)
    return list(dict.fromkeys([*METRICS, *recorded]))


def metric_texts(metrics: Mapping[str, Any], *names: str) -> list[str]:
    """Name and value of some metrics, for people."""
    return [f"{name} {METRICS[name].text(metrics[name])}" for name in names]


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """Say in words what is wrong with a model, for whoever reads its metrics; empty where nothing plainly is.

    Args:
        metrics: as ``evaluate`` returns them; absent and undefined ones are passed over.
    """
    found = []
    if (order := metrics.get("auc")) is not None and order < 0.5:
        found.append("it orders rows worse than chance")
    if (entropy := metrics.get("ne")) is not None and entropy >= 1:
        found.append(NE_REMARK)
    low, high = CALIBRATION_RANGE
    if (ratio := metrics.get("calibration")) is not None and not low <= ratio <= high:
        found.append(calibration_remark(ratio))
    return found


def calibration_remark(ratio: float) -> str:
    """Say in words what a calibration is."""
    return f"it predicts {ratio:.3g} times the clicks that came"


def evaluate(scores: Scores) -> dict[str, float | int | None]:
    """Compute every metric of some rows; rows of weight 0 do not count.

    Returns:
        ``rows``, then each of ``METRICS``; None where the data does not define one.

    Raises:
        ValueError: as ``Scores.checked``; or a metric fails or gives no finite number, and the message names it.
    """
    rows = scores.checked()
    return {"rows": len(rows.logits), **{name: _compute(name, metric, rows) for name, metric in METRICS.items()}}


def _compute(name: str, metric: Metric, rows: Scores) -> float | None:
    try:
        value = metric.compute(rows)
        number = None if value is None else float(value)
    except Exception as error:
        raise ValueError(f"metric {name!r} cannot be computed: {type(error).__name__}: {error}") from error
    if number is not None and not math.isfinite(number):
        raise ValueError(f"metric {name!r} is {number}: it must be a finite number, or None where the rows define none")
    return number


def auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Probability that a positive row scores above a negative one, ties counting half; None with one class only.

    Args:
        scores: (n,) any increasing function of the probability.
    """
    scores, labels, weights, _ = check_rows(scores, labels, weights)
    return gauc(scores, labels, np.zeros(len(scores), np.int64), weights)


def gauc(scores: ArrayLike, labels: ArrayLike, group_ids: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """sum_g n_g AUC_g / sum_g n_g over the groups g with both classes; None if there is none.

    n_g is the group's weight: its rows, where every row weighs 1 (BARS-CTR, arXiv 2009.05794).
    """
    scores, labels, weights, groups = check_rows(scores, labels, weights, group_ids)
    if groups is None or not len(scores):
        return None
    order = np.lexsort((scores, groups))
    scores, groups = scores[order], groups[order]
    positive, negative = (weights * labels)[order], (weights * (1 - labels))[order]
    # A block is a run of rows of one group with one score. Within a block every pair is a tie.
    is_group_start = np.r_[True, groups[1:] != groups[:-1]]
    block = np.flatnonzero(is_group_start | np.r_[True, scores[1:] != scores[:-1]])
    group = np.flatnonzero(is_group_start[block])
    positive, negative = np.add.reduceat(positive, block), np.add.reduceat(negative, block)
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[group], np.diff(np.r_[group, len(block)]))
    wins = np.add.reduceat(positive * (below + negative / 2), group)
    positive, negative = np.add.reduceat(positive, group), np.add.reduceat(negative, group)
    has_both = (positive > 0) & (negative > 0)
    if not has_both.any():
        return None
    positive, negative, wins = positive[has_both], negative[has_both], wins[has_both]
    return float(np.average(wins / (positive * negative), weights=positive + negative))


def logloss(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Mean binary cross entropy in nats, of probabilities clipped at 1e-7; None without rows."""
    logits, labels, weights, _ = check_rows(logits, labels, weights)
    return float(np.average(row_logloss(logits, labels), weights=weights)) if len(logits) else None


def row_logloss(logits: Floats, labels: Floats) -> Floats:
    """(n,) binary cross entropy of each row, of probabilities clipped at 1e-7.

    Clipping the probability is clipping the logit, and -y log p - (1 - y) log(1 - p) = log(1 + e^z) - y z.
    """
    clipped = np.clip(logits, -LOGIT_CLIP, LOGIT_CLIP)
    return np.logaddexp(0, clipped) - labels * clipped


def ne(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Normalised entropy: logloss over that of always predicting the label rate; None with one class only."""
    logits, labels, weights, _ = check_rows(logits, labels, weights)
    rate = np.average(labels, weights=weights) if len(labels) else 0.0
    loss = logloss(logits, labels, weights)
    if loss is None or not 0 < rate < 1:
        return None
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)))


def calibration(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Sum of the predicted probabilities over the sum of the labels, both weighted; None without a positive row."""
    logits, labels, weights, _ = check_rows(logits, labels, weights)
    positive = float(weights @ labels)
    return float(weights @ to_probs(logits)) / positive if positive else None


def ece(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Expected calibration error: mean over 20 bins of |mean probability - label rate|; None without rows.

    The bins have equal weight (Nixon et al. 2019, arXiv 1904.01685): at click rates of a few per cent, bins of equal
    width would put nearly all rows into one.
    """
    logits, labels, weights, _ = check_rows(logits, labels, weights)
    if not len(logits):
        return None
    surplus = np.bincount(_calibration_bins(logits, weights), weights * (to_probs(logits) - labels))
    return float(np.abs(surplus).sum() / weights.sum())


def _calibration_bins(logits: Floats, weights: Floats) -> NDArray[np.int64]:
    """(n,) bin of each row. Rows of one score share the bin that their middle falls in, so no order of rows matters."""
    _, score = np.unique(logits, return_inverse=True)
    mass = np.bincount(score, weights)
    above = np.cumsum(mass)
    middle = (above - mass / 2) / above[-1:]
    return np.minimum(NUM_CALIBRATION_BINS * middle, NUM_CALIBRATION_BINS - 1).astype(np.int64)[score]


def curves(scores: Scores) -> dict[str, Any]:
    """Compute the curves of a report, small enough for JSON.

    Returns:
        roc: fpr and tpr, at most 500 points from (0, 0) to (1, 1), empty with one class only.
        reliability: the bins of ``ece``, with weighted mean_score and label_rate, and rows; empty ones left out.
        histogram: 51 edges over the range of the probabilities, weight of positives and negatives in each bin.
    """
    rows = scores.checked()
    logits, labels, weights = rows.logits, rows.labels, rows.weights
    order = np.argsort(logits, kind="stable")
    logits, labels, weights = logits[order], labels[order], weights[order]
    probs = to_probs(logits)
    bins = _calibration_bins(logits, weights)
    edges = np.histogram_bin_edges(probs, NUM_HISTOGRAM_BINS) if len(probs) else np.linspace(0, 1, 51)
    histograms = [np.histogram(probs, edges, weights=weights * y)[0].tolist() for y in (labels, 1 - labels)]
    return {
        "roc": _roc(logits, labels, weights),
        "reliability": [
            {
                "mean_score": float(np.average(probs[part], weights=weights[part])),
                "label_rate": float(np.average(labels[part], weights=weights[part])),
                "rows": len(part),
            }
            for part in np.split(np.arange(len(probs)), np.flatnonzero(np.diff(bins)) + 1)
            if len(part)
        ],
        "histogram": {"edges": edges.tolist(), "positives": histograms[0], "negatives": histograms[1]},
    }


def _roc(logits: Floats, labels: Floats, weights: Floats) -> dict[str, list[float]]:
    """Compute the ROC curve of sorted rows: rates above each distinct threshold, thinned evenly along the curve."""
    positive, negative = weights * labels, weights * (1 - labels)
    if not positive.any() or not negative.any():
        return {"fpr": [], "tpr": []}
    above = np.flatnonzero(np.r_[logits[1:] != logits[:-1], True])[::-1]
    tpr = np.r_[0, 1 - np.cumsum(positive)[above[1:]] / positive.sum(), 1]
    fpr = np.r_[0, 1 - np.cumsum(negative)[above[1:]] / negative.sum(), 1]
    if len(fpr) > NUM_ROC_POINTS:
        kept = np.unique(np.searchsorted(fpr + tpr, np.linspace(0, 2, NUM_ROC_POINTS)).clip(0, len(fpr) - 1))
        fpr, tpr = fpr[kept], tpr[kept]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


_OWN: dict[str, Metric] = {
    "auc": Metric(
        lambda s: auc(s.logits, s.labels, s.weights),
        "higher",
        "share of pairs of a click and none in the right order",
        needs_both_labels=True,
    ),
    "logloss": Metric(lambda s: logloss(s.logits, s.labels, s.weights), "lower", "mean binary cross entropy in nats"),
    "ne": Metric(
        lambda s: ne(s.logits, s.labels, s.weights),
        "lower",
        "logloss over that of the label rate as every probability",
        needs_both_labels=True,
    ),
    "calibration": Metric(
        lambda s: calibration(s.logits, s.labels, s.weights), "one", "sum of probabilities over sum of labels"
    ),
    "ece": Metric(
        lambda s: ece(s.logits, s.labels, s.weights), "lower", "mean distance of probability and label rate over bins"
    ),
    "gauc": Metric(
        lambda s: None if s.group_ids is None else gauc(s.logits, s.labels, s.group_ids, s.weights),
        "higher",
        "mean AUC within groups, weighted by their rows",
        needs_groups=True,
        needs_both_labels=True,
    ),
}

METRICS: Mapping[str, Metric] = ChainMap(PLUGIN_METRICS, _OWN)
"""Metrics that ``evaluate`` computes, in this order, each with how it is read and printed; those of plugins last."""
