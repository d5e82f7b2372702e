"""Metrics against the published constants and against loops over pairs of rows."""

import json

import numpy as np
import pytest

from training.judge.metrics import (
    METRICS,
    NUM_CALIBRATION_BINS,
    auc,
    calibration,
    curves,
    ece,
    evaluate,
    gauc,
    logloss,
    ne,
    remarks,
)
from training.judge.scores import Scores, to_probs

LABELS = np.array([1, 0, 1, 0, 0])
PROBS = np.array([0.9, 0.6, 0.6, 0.2, 0.1])
# As BARS-CTR, arXiv 2009.05794, counts.
GROUPS = np.array([*"aaabbccdddd"])
GROUP_LABELS = np.array([1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 0])
GROUP_PROBS = np.array([0.8, 0.3, 0.9, 0.4, 0.2, 0.7, 0.6, 0.5, 0.5, 0.9, 0.1])


def to_logits(probs: np.ndarray) -> np.ndarray:
    return np.log(probs) - np.log1p(-probs)


def naive_auc(scores, labels, weights) -> float | None:
    wins = total = 0.0
    for s, y, w in zip(scores, labels, weights, strict=True):
        for t, z, v in zip(scores, labels, weights, strict=True):
            if y == 1 and z == 0:
                total += w * v
                wins += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
    return wins / total if total else None


def naive_gauc(scores, labels, groups, weights) -> float | None:
    total = wins = 0.0
    for g in set(groups.tolist()):
        rows = groups == g
        one = naive_auc(scores[rows], labels[rows], weights[rows])
        if one is not None:
            total += weights[rows].sum()
            wins += weights[rows].sum() * one
    return wins / total if total else None


def naive_logloss(logits, labels, weights) -> float:
    p = np.clip([1 / (1 + np.exp(-z)) for z in logits], 1e-7, 1 - 1e-7)
    losses = [-np.log(q) if y else -np.log(1 - q) for q, y in zip(p, labels, strict=True)]
    return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)


def naive_ece(logits, labels, weights) -> float:
    """Bins of equal weight; all rows of one score go where the middle of their weight lies."""
    logits, labels, weights = (a[weights > 0] for a in (logits, labels, weights))
    surplus = [0.0] * NUM_CALIBRATION_BINS
    for z, y, w in zip(logits, labels, weights, strict=True):
        middle = weights[logits < z].sum() + weights[logits == z].sum() / 2
        surplus[int(NUM_CALIBRATION_BINS * (middle / weights.sum()))] += w * (1 / (1 + np.exp(-z)) - y)
    return sum(map(abs, surplus)) / weights.sum()


def random_rows(seed: int, n: int = 60):
    """Few distinct logits, so that there are ties; few rows a group, so that some have one class."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], n)
    return rng.integers(-4, 5, n) / 2, rng.integers(0, 2, n), weights, rng.integers(-8, 8, n)


def test_published_constants():
    assert auc(PROBS, LABELS) == pytest.approx(0.9166666667, abs=1e-10)
    assert logloss(to_logits(PROBS), LABELS) == pytest.approx(0.3721961876, abs=1e-10)
    assert gauc(GROUP_PROBS, GROUP_LABELS, GROUPS) == pytest.approx(0.7777777778, abs=1e-10)
    assert auc(GROUP_PROBS, GROUP_LABELS) == pytest.approx(0.7666666667, abs=1e-10)


def test_gauc_ignores_single_class_groups():
    """Group c has positives only; AUC is .5 on a, 1 on b, .875 on d."""
    rows_of = [np.flatnonzero(np.equal(GROUPS, g)) for g in "abcd"]
    per_group = [auc(GROUP_PROBS[rows], GROUP_LABELS[rows]) for rows in rows_of]
    assert per_group == [0.5, 1.0, None, 0.875]
    rest = GROUPS != "c"
    assert gauc(GROUP_PROBS, GROUP_LABELS, GROUPS) == gauc(GROUP_PROBS[rest], GROUP_LABELS[rest], GROUPS[rest])
    assert gauc(GROUP_PROBS[~rest], GROUP_LABELS[~rest], GROUPS[~rest]) is None


def test_logloss_clips_at_1e_7():
    """As FuxiCTR clips."""
    assert logloss([1000.0], [0]) == pytest.approx(-np.log(1e-7), rel=1e-9)
    assert logloss([-1000.0], [1]) == pytest.approx(-np.log(1e-7), rel=1e-9)
    assert logloss([-np.inf, np.inf], [0, 1]) == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_equals_naive(seed):
    logits, labels, weights, groups = random_rows(seed)
    metrics = evaluate(Scores.of(logits, labels, weights, groups))
    base = (weights * labels).sum() / weights.sum()
    entropy = -base * np.log(base) - (1 - base) * np.log(1 - base)
    expected = {
        "rows": int((weights > 0).sum()),
        "auc": naive_auc(logits, labels, weights),
        "logloss": naive_logloss(logits, labels, weights),
        "ne": naive_logloss(logits, labels, weights) / entropy,
        "calibration": (weights / (1 + np.exp(-logits))).sum() / (weights * labels).sum(),
        "ece": naive_ece(logits, labels, weights),
        "gauc": naive_gauc(logits, labels, groups, weights),
    }
    assert metrics == pytest.approx(expected, rel=1e-12)


def test_weight_counts_as_repeats():
    logits, labels, weights, groups = random_rows(3)
    times = (weights * 2).astype(int)
    repeated = [np.repeat(a, times) for a in (logits, labels, groups)]
    whole = evaluate(Scores.of(repeated[0], repeated[1], None, repeated[2]))
    weighted = evaluate(Scores.of(logits, labels, times, groups))
    assert whole.pop("rows") != weighted.pop("rows")
    assert weighted == pytest.approx(whole, rel=1e-12)


def test_rows_of_weight_0_do_not_count_whatever_they_hold():
    logits, labels, weights, groups = random_rows(4)
    padded = [np.r_[a, [value] * 5] for a, value in ((logits, np.nan), (labels, 7), (weights, 0), (groups, 0))]
    assert evaluate(Scores.of(*padded)) == evaluate(Scores.of(logits, labels, weights, groups))


def test_one_class_is_none_not_a_number():
    metrics = evaluate(Scores.of([0.5, -1.0], [0, 0], None, [1, 1]))
    assert metrics["logloss"] is not None
    assert [metrics[k] for k in ("auc", "ne", "calibration", "gauc")] == [None] * 4
    metrics = evaluate(Scores.of([0.5, -1.0], [1, 1]))
    assert [metrics[k] for k in ("auc", "ne", "gauc")] == [None] * 3
    assert metrics["calibration"] == pytest.approx((to_probs(np.array([0.5, -1.0]))).mean())
    assert evaluate(Scores.of([], [], [], []))["rows"] == 0
    assert json.loads(json.dumps(evaluate(Scores.of([], []))))["auc"] is None


@pytest.mark.parametrize("seed", range(5))
def test_ece_of_distinct_scores_and_of_shuffled_rows(seed):
    rng = np.random.default_rng(seed)
    logits, weights = rng.normal(-2, 2, 333), rng.choice([0.5, 1.0, 2.0], 333)
    labels = (rng.random(333) < to_probs(logits)).astype(float)
    value = ece(logits, labels, weights)
    assert value == pytest.approx(naive_ece(logits, labels, weights), rel=1e-12)
    order = rng.permutation(333)
    assert ece(logits[order], labels[order], weights[order]) == pytest.approx(value, rel=1e-12)


def test_ece_by_hand():
    """40 rows of probability one half fill the 20 bins two by two."""
    logits = np.arange(40) * 1e-9
    assert ece(logits, [0, 1] * 20) == pytest.approx(0.0, abs=1e-8)
    assert ece(logits, [1] * 20 + [0] * 20) == pytest.approx(0.5, abs=1e-8)
    assert calibration(logits, [1] * 20 + [0] * 20) == pytest.approx(1.0, abs=1e-7), "a mean that hides it"
    assert ece([0.0] * 4, [0, 0, 1, 1]) == 0.0, "one score, one bin"
    assert ece([], []) is None and ece([0.0], [1]) == 0.5


def test_curves_draw_the_bins_of_the_ece():
    logits, labels, weights, _ = random_rows(6, 400)
    logits += np.random.default_rng(6).normal(size=400)
    weights[weights > 0] = 1
    bins = curves(Scores.of(logits, labels, weights))["reliability"]
    gaps = [b["rows"] * abs(b["mean_score"] - b["label_rate"]) for b in bins]
    assert sum(gaps) / weights.sum() == pytest.approx(ece(logits, labels, weights), rel=1e-12)


def test_base_rate_has_ne_1_and_calibration_1():
    labels = np.array([1, 0, 0, 0])
    logits = np.full(4, np.log(0.25 / 0.75))
    assert ne(logits, labels) == pytest.approx(1)
    assert calibration(logits, labels) == pytest.approx(1)
    assert auc(logits, labels) == 0.5


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="1 of 2 logits are NaN"):
        evaluate(Scores.of([0.0, np.nan], [0, 1]))
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        evaluate(Scores.of([0.0, 1.0], [0, 0.5]))
    with pytest.raises(ValueError, match="negative"):
        evaluate(Scores.of([0.0, 1.0], [0, 1], [1, -1]))
    with pytest.raises(ValueError, match="one length"):
        evaluate(Scores.of([0.0, 1.0], [0, 1, 1]))


@pytest.mark.parametrize("seed", range(5))
def test_roc_area_is_the_auc(seed):
    logits, labels, weights, _ = random_rows(seed)
    roc = curves(Scores.of(logits, labels, weights))["roc"]
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(auc(logits, labels, weights), rel=1e-12)


def test_curves_of_many_rows():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(20_000)
    labels = rng.random(20_000) < to_probs(logits)
    weights = np.r_[np.ones(19_990), np.zeros(10)]
    drawn = curves(Scores.of(logits, labels, weights))
    json.dumps(drawn, allow_nan=False)
    fpr, tpr = np.array(drawn["roc"]["fpr"]), np.array(drawn["roc"]["tpr"])
    assert 400 < len(fpr) == len(tpr) <= 500
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    assert np.trapezoid(tpr, fpr) == pytest.approx(auc(logits, labels, weights), abs=1e-4)
    bins = drawn["reliability"]
    assert [b["rows"] for b in bins] == [999, 1000] * 10
    assert sum(b["rows"] for b in bins) == 19_990
    assert max(abs(b["mean_score"] - b["label_rate"]) for b in bins) < 0.06
    assert [b["mean_score"] for b in bins] == sorted(b["mean_score"] for b in bins)
    histogram = drawn["histogram"]
    assert len(histogram["edges"]) == 51
    assert sum(histogram["positives"]) == labels[:19_990].sum()
    assert sum(histogram["negatives"]) == 19_990 - labels[:19_990].sum()


def test_curves_of_few_rows_and_of_one_class():
    drawn = curves(Scores.of([0.0, 1.0, 1.0], [0, 0, 0]))
    assert drawn["roc"] == {"fpr": [], "tpr": []}
    assert [b["rows"] for b in drawn["reliability"]] == [1, 2]
    assert curves(Scores.of([], []))["reliability"] == []


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"auc": 0.9255, "ne": 1.30, "calibration": 6.96}, ["less than the label rate", "6.96 times the clicks"]),
        ({"auc": 0.49, "ne": 0.99, "calibration": 1.0}, ["worse than chance"]),
        ({"auc": 0.7, "ne": 0.9, "calibration": 0.1}, ["0.1 times the clicks"]),
        ({"auc": 0.7, "ne": 0.9, "calibration": 1.1, "ece": 0.5}, []),
        ({}, []),
        (dict.fromkeys(METRICS), []),
    ],
)
def test_what_is_wrong_is_said_in_words(metrics: dict[str, float | None], found: list[str]) -> None:
    said = remarks(metrics)
    assert len(said) == len(found) and all(part in words for part, words in zip(found, said, strict=True))
