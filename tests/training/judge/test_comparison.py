"""The paired bootstrap against metrics computed afresh, and on models whose difference is known."""

import numpy as np
import pytest

from training.judge.comparison import paired_bootstrap
from training.judge.metrics import auc, logloss

N = 400


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    truth = random.normal(size=N)
    labels = (random.random(N) < 1 / (1 + np.exp(-truth))).astype(float)
    return truth, labels, random.integers(1, 4, N).astype(float)


def test_means_are_the_metrics_of_all_rows(rows) -> None:
    truth, labels, weights = rows
    first = [np.round(truth, 1), truth + 0.1]  # rounding makes ties
    second = [truth[::-1].copy(), 0 * truth]
    found = paired_bootstrap(first, second, labels, weights, num_resamples=50)
    for name, metric in (("auc", auc), ("logloss", logloss)):
        values = [metric(a, labels, weights) - metric(b, labels, weights) for a, b in zip(first, second, strict=True)]
        assert found[name].mean == pytest.approx(np.mean(values), abs=1e-12)
        assert found[name].low < found[name].mean < found[name].high
        assert found[name].is_clear


def test_a_model_is_not_better_than_itself(rows) -> None:
    truth, labels, weights = rows
    found = paired_bootstrap([truth], [truth], labels, weights, num_resamples=20)
    assert [(d.mean, d.low, d.high, d.is_clear) for d in found.values()] == [(0, 0, 0, False)] * 2


def test_groups_that_repeat_widen_the_interval(rows) -> None:
    """The same rows twenty times over are no more evidence, if a group holds them all."""
    truth, labels, weights = rows
    noisy = truth + np.random.default_rng(4).normal(size=N)
    repeated = [np.tile(x, 20) for x in (truth, noisy, labels, weights)]
    group_ids = np.tile(np.arange(N), 20)

    def width(group_ids: np.ndarray | None) -> float:
        first, second, y, w = repeated
        found = paired_bootstrap([first], [second], y, w, group_ids, num_resamples=200)["auc"]
        return found.high - found.low

    assert width(group_ids) > 3 * width(None)


def test_luck_of_seeds_is_in_the_interval(rows) -> None:
    truth, labels, weights = rows
    good, bad = truth, -truth
    one_sided = paired_bootstrap([good, good], [bad, bad], labels, weights, num_resamples=100)["auc"]
    mixed = paired_bootstrap([good, bad], [bad, good], labels, weights, num_resamples=100)["auc"]
    assert one_sided.is_clear and not mixed.is_clear and mixed.high > 0.1 > -0.1 > mixed.low


def test_the_same_call_gives_the_same_numbers(rows) -> None:
    truth, labels, weights = rows
    call = [paired_bootstrap([truth], [truth**3], labels, weights, num_resamples=30) for _ in range(2)]
    assert call[0] == call[1]


@pytest.mark.parametrize(
    ("seeds", "labels", "words"),
    [(2, [0, 1], "same seeds"), (1, [0, 1, 1], "same rows"), (1, [1, 1], "both classes")],
)
def test_what_cannot_be_compared_is_refused(seeds: int, labels: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_bootstrap([[0.0, 1.0]] * seeds, [[0.0, 1.0]], labels, np.ones(len(labels)))
