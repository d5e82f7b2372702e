"""Metrics by length of history: those of the rows alone, of groups that leave none out."""

import numpy as np

from training.judge.by_length import metrics_by_length
from training.judge.metrics import evaluate
from training.judge.scores import Scores


def test_groups_have_the_metrics_of_their_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.choice([0, 1, 4, 5, 9, 10, 19, 20, 300], 3_000)
    scores = Scores.of(rng.normal(size=3_000), rng.random(3_000) < 0.3, rng.choice([0.5, 1.0], 3_000))
    found = metrics_by_length(scores, lengths)
    masks = {
        "0": lengths == 0,
        "1-4": (lengths >= 1) & (lengths <= 4),
        "5-9": (lengths >= 5) & (lengths <= 9),
        "10-19": (lengths >= 10) & (lengths <= 19),
        "20+": lengths >= 20,
    }
    assert [group["events"] for group in found] == list(masks)
    assert sum(group["rows"] for group in found) == 3_000
    for group, mask in zip(found, masks.values(), strict=True):
        rows = Scores.of(scores.logits[mask], scores.labels[mask], scores.weights[mask])
        assert group == {"events": group["events"], **evaluate(rows)}


def test_a_group_without_rows_is_not_there_and_one_class_is_undefined() -> None:
    scores = Scores.of([0.1, 0.2, 0.3], [1, 1, 0], [1, 1, 0])
    [found] = metrics_by_length(scores, np.array([2, 3, 50]))
    assert (found["events"], found["rows"], found["auc"]) == ("1-4", 2, None)
