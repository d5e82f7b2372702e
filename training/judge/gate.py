"""The gate: may a candidate model replace the champion? Both have scored the same rows, which neither was trained on.

Absolute rules hold for any model; relative ones need a champion. Torch is not needed here.

Shapes: n rows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.profile.bins import bin_counts, quantile_edges
from features.profile.drift import population_stability
from features.schema import STRICT
from training.judge.comparison import Difference, paired_bootstrap
from training.judge.metrics import METRICS, NE_REMARK, auc, calibration, calibration_remark, logloss, ne, row_logloss
from training.judge.scores import Floats, check_rows

SEGMENT_ERRORS = 3.0
"""Standard errors by which a segment must be worse: among many segments, luck alone finds one that is two worse."""
MAX_SEGMENTS = 3
"""Segments of a column that kept the rule in ``Verdict.table``, the worst ones."""

Limit = Annotated[float, Field(ge=0)]


@checked(frozen=True, config=STRICT)
class GateConfig:
    """Rules that a candidate must keep to replace the champion; None switches a rule off."""

    max_auc_drop: Limit | None = 0.002
    max_logloss_rise: Limit | None = 0.002
    """Rise of logloss in nats a row; absolute, as AUC's drop."""
    decide_by: Literal["mean", "worst"] = "mean"
    """Criterion for a drop of AUC and a rise of logloss. mean: the mean difference exceeds the limit and the interval
    of the paired bootstrap leaves out 0; a difference that may be luck does not keep fresh data out. worst: the
    interval's worse end is beyond the limit; the candidate must prove itself, which an equal one does on many rows
    alone."""
    min_calibration: Limit | None = 0.8
    """Sum of the probabilities over the sum of the labels."""
    max_calibration: Limit | None = 1.25
    max_ne: Limit | None = 1.0
    """Normalised entropy; 1: no worse than the label rate as every row's probability."""
    max_segment_rise: Limit | None = 0.05
    """Rise of a segment's logloss, relative to the champion's, counted if beyond three standard errors."""
    min_segment_rows: Annotated[int, Field(ge=1)] = 100
    """Least rows of each class in a segment; smaller segments are not judged."""
    max_score_psi: Limit | None = 0.25
    """Population stability index of the candidate's probabilities over the deciles of the champion's. Scores spread as
    a young model learns: they may, where the whole interval of the logloss' difference is below 0."""
    max_quantized_auc_drop: Limit | None = 0.0005
    """Largest drop of AUC from serving tables in a smaller precision than they were trained in."""
    min_class_rows: Annotated[int, Field(ge=1)] | None = 100
    """Rows of each class without which nothing is decided, and the champion stays."""
    num_resamples: Annotated[int, Field(ge=10)] = 1_000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence of the paired bootstrap's intervals."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.min_calibration or 0.0) > (np.inf if self.max_calibration is None else self.max_calibration):
            raise ValueError(f"min_calibration ({self.min_calibration}) is above max_calibration")


@dataclass(frozen=True)
class RuleResult:
    """RuleResult: the outcome of one rule for one candidate."""

    name: str
    candidate: float | None
    """Candidate's value; None where the rows do not define one."""
    champion: float | None
    threshold: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Verdict: results of all rules; a candidate that one rule refuses does not replace the champion."""

    rules: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Tell whether every rule passed."""
        return all(rule.passed for rule in self.rules)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {"passed": self.passed, "rules": [asdict(rule) for rule in self.rules]}

    def table(self) -> str:
        """Describe each rule in a line for people, and the verdict in a last one."""
        rows = [("", "rule", "candidate", "champion", "threshold", "")]
        for rule in self.shown:
            ours, theirs = ("" if value is None else f"{value:.6g}" for value in (rule.candidate, rule.champion))
            rows.append(("ok" if rule.passed else "FAILED", rule.name, ours, theirs, rule.threshold, rule.reason))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
        if len(self.rules) > len(self.shown):
            lines.append(f"... and {len(self.rules) - len(self.shown)} segments that are ok")
        refused = sum(not rule.passed for rule in self.rules)
        end = f"refused by {refused} of {len(self.rules)} rules" if refused else f"passed all {len(self.rules)} rules"
        return "\n".join([*lines, end])

    @property
    def shown(self) -> tuple[RuleResult, ...]:
        """List the rules to show: all but those of passing segments, of which the worst of each column are kept."""
        shown, left = [], {}
        for rule in self.rules:
            column, equals, _ = rule.name.partition("=")
            left[column] = left.get(column, MAX_SEGMENTS) - (rule.passed and bool(equals))
            if not rule.passed or left[column] >= 0:
                shown.append(rule)
        return tuple(shown)


def judge(
    candidate: ArrayLike,
    champion: ArrayLike | None,
    labels: ArrayLike,
    weights: ArrayLike | None,
    *,
    config: GateConfig,
    segments: Mapping[str, ArrayLike] | None = None,
    group_ids: ArrayLike | None = None,
    unquantized: ArrayLike | None = None,
) -> Verdict:
    """Decide whether a candidate may replace the champion.

    Args:
        candidate: (n,) logits as they would be served, calibrated ones if the model is calibrated, of quantised tables
            if those would be served.
        champion: (n,) the same rows' by the model in service; None: there is none, and absolute rules alone decide.
        labels: (n,) 0 or 1.
        weights: (n,) not negative; None: 1 each. Rows of weight 0 do not count.
        segments: name -> (n,) each row's value, such as its country.
        group_ids: (n,) integers: rows of a group are drawn together by the bootstrap, as they are no independent ones.
        unquantized: (n,) the candidate's logits with the tables it was trained with; None: those are what is served.

    Raises:
        DivergedError: the champion's logits hold NaN.
        ValueError: the lengths differ, or labels or weights are none.
    """
    scores = np.asarray(candidate, np.float64)
    num_bad = int((~np.isfinite(scores)).sum())
    reason = f"{num_bad} of {scores.size} logits are no finite numbers" if num_bad else ""
    finite = RuleResult("finite", float(num_bad), None, "no other logits", not num_bad, reason)
    rows = _Rows.check(np.where(np.isfinite(scores), scores, 0.0), champion, labels, weights, segments, group_ids)
    enough = _class_rows(rows, config)
    if num_bad or not all(rows.num_by_class):
        return Verdict((finite, enough))
    rules = [finite, enough, *_absolute(rows, config)]
    if unquantized is not None and config.max_quantized_auc_drop is not None:
        before = check_rows(unquantized, labels, weights)[0]
        rules.append(_quantized(rows, before, config.max_quantized_auc_drop))
    if rows.champion is not None:
        rules += _relative(rows, rows.champion, config)
    return Verdict(tuple(rules))


@dataclass(frozen=True)
class _Rows:
    """Checked arrays of the rows that weigh something."""

    candidate: Floats
    champion: Floats | None
    labels: Floats
    weights: Floats
    segments: dict[str, NDArray[Any]]
    group_ids: NDArray[Any] | None

    @classmethod
    def check(
        cls,
        candidate: Floats,
        champion: ArrayLike | None,
        labels: ArrayLike,
        weights: ArrayLike | None,
        segments: Mapping[str, ArrayLike] | None,
        group_ids: ArrayLike | None,
    ) -> "_Rows":
        values = {name: np.asarray(column).astype(str) for name, column in (segments or {}).items()}
        wrong = [name for name, column in values.items() if column.shape != candidate.shape]
        if wrong:
            raise ValueError(f"segments {', '.join(wrong)} must have a value for each of {len(candidate)} rows")
        kept = slice(None) if weights is None else np.asarray(weights, np.float64) > 0
        other = None if champion is None else check_rows(champion, labels, weights)[0]
        scores, y, w, groups = check_rows(candidate, labels, weights, group_ids)
        return cls(scores, other, y, w, {name: column[kept] for name, column in values.items()}, groups)

    @property
    def num_by_class(self) -> tuple[int, int]:
        """Negative and positive rows."""
        num_positive = int(self.labels.sum())
        return len(self.labels) - num_positive, num_positive


# ------------------------------------------------------------------------------------------------------ absolute rules


def _class_rows(rows: _Rows, config: GateConfig) -> RuleResult:
    (negative, positive), least = rows.num_by_class, config.min_class_rows or 1
    rarer = min(negative, positive)
    reason = "" if rarer >= least else f"{positive} positive and {negative} negative rows are too few"
    return RuleResult("rows", float(rarer), None, f"at least {least} of each class", rarer >= least, reason)


def _absolute(rows: _Rows, config: GateConfig) -> list[RuleResult]:
    results = []
    low, high = config.min_calibration, config.max_calibration
    if (low, high) != (None, None):
        value, of_champion = _both(calibration, rows)
        passed = (0.0 if low is None else low) <= value <= (np.inf if high is None else high)
        ends = [f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else ""]
        reason = "" if passed else calibration_remark(value)
        results.append(
            RuleResult("calibration", value, of_champion, " and ".join(filter(None, ends)), bool(passed), reason)
        )
    if config.max_ne is not None:
        value, of_champion = _both(ne, rows)
        passed = value <= config.max_ne
        reason = "" if passed else NE_REMARK if value > 1 else "it tells too little"
        results.append(RuleResult("ne", value, of_champion, f"at most {config.max_ne:g}", passed, reason))
    return results


def _quantized(rows: _Rows, unquantized: Floats, limit: float) -> RuleResult:
    """Judge the AUC lost by quantising: the same rows and model, so a plain difference without an interval."""
    served, trained = (auc(scores, rows.labels, rows.weights) for scores in (rows.candidate, unquantized))
    assert served is not None and trained is not None  # there are rows of both classes
    drop = trained - served
    threshold, metric = f"at most {limit:g} lower than unquantized", METRICS["auc"]
    reason = f"{metric.text(-drop, '+')} from {metric.text(trained)}"
    return RuleResult("quantized auc", served, None, threshold, drop <= limit, reason)


def _both(metric: Any, rows: _Rows) -> tuple[float, float | None]:
    """Compute a metric of the candidate, and of the champion if there is one."""
    of_champion = None if rows.champion is None else metric(rows.champion, rows.labels, rows.weights)
    return metric(rows.candidate, rows.labels, rows.weights), of_champion


# ------------------------------------------------------------------------------------------------------ relative rules


def _relative(rows: _Rows, champion: Floats, config: GateConfig) -> list[RuleResult]:
    results, is_better = [], False
    limits = {"auc": config.max_auc_drop, "logloss": config.max_logloss_rise}
    if any(limit is not None for limit in limits.values()):
        found = paired_bootstrap(
            [rows.candidate],
            [champion],
            rows.labels,
            rows.weights,
            rows.group_ids,
            num_resamples=config.num_resamples,
            confidence=config.confidence,
            seed=config.seed,
        )
        is_better = found["logloss"].high < 0
        for name, metric in (("auc", auc), ("logloss", logloss)):
            limit = limits[name]
            if limit is not None:
                passed, reason = _decide(name, found[name], limit, config)
                change = f"at most {limit:g} {'lower' if METRICS[name].sign > 0 else 'higher'}"
                results.append(RuleResult(name, *_both(metric, rows), change, passed, reason))
    if config.max_score_psi is not None:
        results.append(_score_shift(rows, champion, config.max_score_psi, is_better))
    if config.max_segment_rise is not None:
        for name in rows.segments:
            results += _segments(name, rows, champion, config.max_segment_rise, config.min_segment_rows)
    return results


def _decide(name: str, found: Difference, limit: float, config: GateConfig) -> tuple[bool, str]:
    """Decide by ``GateConfig.decide_by`` whether a difference is allowed; returns that and the reason."""
    worse = -METRICS[name].sign
    best, worst = sorted((worse * found.low, worse * found.high))
    is_worse = worse * found.mean > limit
    passed = worst <= limit if config.decide_by == "worst" else not is_worse or best <= 0
    verdict = "worse" if not passed else "too little is known to call it worse" if is_worse else "not worse"
    mean, low, high = (METRICS[name].text(value, "+") for value in (found.mean, found.low, found.high))
    return passed, f"{mean} ({low} to {high}): {verdict}"


def _score_shift(rows: _Rows, champion: Floats, limit: float, is_better: bool) -> RuleResult:
    # A sigmoid keeps the order, so bins of logits are bins of probabilities.
    weights = rows.weights / rows.weights.mean()
    edges = quantile_edges(champion, weights)
    value = population_stability(*(bin_counts(scores, edges, weights) for scores in (champion, rows.candidate)))
    is_shift = value > limit
    reason = "its probabilities are spread otherwise than the champion's" if is_shift else ""
    reason += ", but fit better" if is_shift and is_better else ""
    threshold = f"at most {limit:g}, or a lower logloss"
    return RuleResult("score psi", value, None, threshold, is_better or not is_shift, reason)


def _segments(name: str, rows: _Rows, champion: Floats, limit: float, min_rows: int) -> list[RuleResult]:
    """Judge each segment with enough rows of both classes, the worst first; one result says so if there is none."""
    values, place = np.unique(rows.segments[name], return_inverse=True)

    def sums(of_row: Floats) -> Floats:
        return np.bincount(place, of_row, minlength=len(values)).astype(np.float64)

    losses = [row_logloss(scores, rows.labels) for scores in (rows.candidate, champion)]
    mass = sums(rows.weights)
    ours, theirs = (sums(rows.weights * loss) / mass for loss in losses)
    rise = ours - theirs
    errors = np.sqrt(sums((rows.weights * (losses[0] - losses[1] - rise[place])) ** 2)) / mass
    is_judged = np.minimum(sums(rows.labels), sums(1 - rows.labels)) >= min_rows
    results, threshold = [], f"logloss at most {100 * limit:g} % higher"
    for i in sorted(np.flatnonzero(is_judged), key=lambda i: -rise[i] / theirs[i]):
        passed = bool(rise[i] <= limit * theirs[i] or rise[i] <= SEGMENT_ERRORS * errors[i])
        reason = f"{rise[i] / theirs[i]:+.2%} (standard error {errors[i] / theirs[i]:.2%})"
        title = f"{name}={values[i]}"
        results.append(RuleResult(title, float(ours[i]), float(theirs[i]), threshold, passed, reason))
    if not results:
        reason = f"none of {len(values)} segments has {min_rows} rows of each class"
        results.append(RuleResult(name, None, None, threshold, True, reason))
    return results
