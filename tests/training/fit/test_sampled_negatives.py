"""A run on a training split that lacks negatives: all its probabilities are those of all rows."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.disk.dataset import DatasetError, DatasetManifest, Sampled
from features.disk.run_folder import RunError
from features.disk.window import join
from tests.training.fit.test_run import make_config
from tests.training.fit.test_warm_start import finish
from training.config import PlattCalibration, TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run
from training.fit.scoring import score
from training.judge.calibration import Calibration, fit_platt
from training.judge.metrics import evaluate
from training.judge.scores import Scores
from training.ship.export import load_best

RATE = 0.2
SHIFT = math.log(RATE)


@pytest.fixture
def sampled(make_dataset) -> Path:
    """A dataset that says that it keeps each fifth negative of its training split."""
    path = make_dataset().path
    _say_sampled(path, RATE)
    return path


def _say_sampled(path: Path, rate: float) -> None:
    replace(DatasetManifest.load(path), sampled=Sampled(rate, 100)).write(path)


def raw_scores(run: Run, split: str) -> Scores:
    """The network's own scores, without any correction."""
    best = load_best(run)
    return score(best.model, Reader(best.dataset, split, best.config), torch.device("cpu"))


@pytest.mark.parametrize("platt", [False, True])
def test_logits_are_corrected_in_history_metrics_and_scores(sampled: Path, tmp_path: Path, one_rank, platt) -> None:
    config = make_config(sampled, max_epochs=2)
    config = replace(config, calibration=PlattCalibration()) if platt else config
    run = finish(tmp_path / "run", config)
    raw = raw_scores(run, "valid")
    corrected = replace(raw, logits=raw.logits + SHIFT)
    fitted = fit_platt(corrected.logits, corrected.labels, corrected.weights) if platt else Calibration()
    expected = corrected.calibrated(fitted)

    metrics = run.read("metrics.json")
    assert metrics["valid"]["logloss"] == pytest.approx(evaluate(expected)["logloss"], rel=1e-9)
    if platt:
        assert metrics["valid_uncalibrated"]["logloss"] == pytest.approx(evaluate(corrected)["logloss"], rel=1e-9)
    events = [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]
    best = next(e for e in events if e["event"] == "evaluation" and e["step"] == metrics["best_step"])
    assert best["logloss"] == pytest.approx(evaluate(corrected)["logloss"], rel=1e-9)
    assert load_best(run).score("valid").logits == pytest.approx(expected.logits, abs=1e-9)


def test_the_training_split_stands_for_all_its_rows(sampled: Path, tmp_path: Path, one_rank) -> None:
    run = finish(tmp_path / "run", make_config(sampled, max_epochs=1))
    raw, found = raw_scores(run, "train"), load_best(run).score("train")
    order, other = np.argsort(raw.logits), np.argsort(found.logits)
    assert found.logits[other] == pytest.approx(raw.logits[order] + SHIFT, abs=1e-9)
    expected = np.where(raw.labels == 0, raw.weights / RATE, raw.weights)
    assert found.weights[other] == pytest.approx(expected[order])


def test_weights_in_the_loss_need_no_correction(sampled: Path, tmp_path: Path, one_rank) -> None:
    config = replace(make_config(sampled, max_epochs=1), sampled_negatives="weights")
    dataset = Dataset.open(sampled)
    plain = next(Reader(dataset, "train", replace(config, sampled_negatives="logit")).batches(0))
    weighted = next(Reader(dataset, "train", config).batches(0))
    expected = torch.where(plain.labels == 0, plain.weights / RATE, plain.weights)
    assert torch.allclose(weighted.weights, expected)
    assert (plain.weights[plain.labels == 0] > 0).any()
    [batch] = list(Reader(dataset, "valid", config).batches(0))[:1]
    [before] = list(Reader(dataset, "valid", replace(config, sampled_negatives="logit")).batches(0))[:1]
    assert torch.equal(batch.weights, before.weights)
    run = finish(tmp_path / "run", config)
    assert load_best(run).score("valid").logits == pytest.approx(raw_scores(run, "valid").logits)


def test_a_warm_start_from_another_rate_is_refused(sampled: Path, make_dataset, tmp_path: Path, one_rank) -> None:
    config: TrainingConfig = make_config(sampled, max_epochs=1)
    finish(tmp_path / "run", config)
    whole = make_dataset(name="whole").path
    begun = replace(config, dataset=str(whole), warm_start=str(tmp_path / "run"))
    with pytest.raises(RunError, match=r"was trained on 0\.2 of its negatives and this run on 1, .*pipeline\.sample"):
        finish(tmp_path / "second", begun)
    finish(tmp_path / "third", replace(begun, dataset=str(sampled)))


def test_a_partition_of_a_window_has_all_its_rows(make_dataset, tmp_path: Path) -> None:
    parts = [make_dataset(valid=(), test=(), name=name).path for name in ("a", "b")]
    _say_sampled(parts[1], 0.5)
    with pytest.raises(DatasetError, match=r"b lacks negatives \(pipeline\.sample\)"):
        join({"train": parts[:1], "valid": parts[1:]}, tmp_path / "window")


def test_a_calibration_after_another_is_one() -> None:
    first, second = Calibration(2.0, 1.0), Calibration(0.5, -3.0)
    logits = np.linspace(-3, 3, 7)
    assert second.after(first).apply(logits) == pytest.approx(second.apply(first.apply(logits)))
