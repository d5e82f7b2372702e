"""Platt's fit by value, and a run that calibrates: what is stored, what is scored, and what stays as it was."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from features.disk.run_folder import RunError
from features.disk.trained_on import SplitRows, TrainedOn
from tests.training.fit.test_run import make_config
from training.config import FMEncoder, MLPEncoder, ModelConfig, PlattCalibration, TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run, train_rank
from training.fit.scoring import score
from training.judge.calibration import Calibration, CalibrationError, fit_platt, fit_where_it_helps
from training.judge.metrics import auc, ece, evaluate, gauc, logloss
from training.judge.scores import to_probs
from training.ship.export import load_best


def random_rows(scale: float, offset: float, n: int, seed: int = 0, rate_logit: float = -2.0):
    """Logits whose true probability is sigmoid(scale * logit + offset), their labels, and weights."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(rate_logit, 2.0, n) - offset) / scale
    labels = (rng.random(n) < to_probs(scale * logits + offset)).astype(np.float64)
    return logits, labels, rng.choice([0.0, 0.5, 1.0, 3.0], n)


@pytest.mark.parametrize(("scale", "offset"), [(0.4, -0.7), (1.0, 0.0), (3.0, 5.0)])
def test_kept_where_unseen_rows_gain(scale: float, offset: float) -> None:
    logits, labels, weights = random_rows(scale, offset, 20_000)
    found = fit_where_it_helps(logits, labels, weights)
    assert found == (fit_platt(logits, labels, weights) if scale != 1 else Calibration())
    order = np.random.default_rng(1).permutation(len(logits))  # as another number of ranks would gather them
    again = fit_where_it_helps(logits[order], labels[order], weights[order])
    assert again.to_json() == pytest.approx(found.to_json(), rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([0.0, 1.0, 2.0], [1, 1, 1]),
        ([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1]),
        ([3.0, 2.0, 1.0, 0.0], [0, 0, 1, 1]),
        ([0.5, 0.5], [0, 1]),
    ],
)
def test_what_cannot_be_fitted_keeps_its_own_probabilities(logits: list[float], labels: list[int]) -> None:
    assert fit_where_it_helps(logits, labels) == Calibration()


@pytest.mark.parametrize(("scale", "offset"), [(0.4, -0.7), (1.0, 0.0), (3.0, 5.0)])
def test_recovers_a_known_scale_and_offset(scale: float, offset: float) -> None:
    logits, labels, weights = random_rows(scale, offset, 200_000)
    fitted = fit_platt(logits, labels, weights)
    assert fitted.scale == pytest.approx(scale, rel=0.02)
    assert fitted.offset == pytest.approx(offset, abs=0.05)
    before, after = (ece(z, labels, weights) for z in (logits, fitted.apply(logits)))
    assert before is not None and after is not None
    assert after < 0.003
    if (scale, offset) != (1, 0):
        assert after < before / 10


@pytest.mark.parametrize("seed", range(10))
def test_is_the_minimum(seed: int) -> None:
    """The loss is flat there, in naive sums, and higher at every neighbour; a second fit changes nothing."""
    logits, labels, weights = random_rows(0.5, 1.0, 300, seed, rate_logit=-3.0)
    fitted = fit_platt(logits, labels, weights)
    excess = weights * (1 / (1 + np.exp(-fitted.scale * logits - fitted.offset)) - labels)
    assert abs(excess.sum()) / weights.sum() < 1e-10
    assert abs((excess * logits).sum()) / weights.sum() < 1e-9
    least = logloss(fitted.apply(logits), labels, weights)
    assert least is not None
    for d_scale, d_offset in ((1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)):
        moved = Calibration(fitted.scale + d_scale, fitted.offset + d_offset)
        assert (logloss(moved.apply(logits), labels, weights) or 0) > least
    again = fit_platt(fitted.apply(logits), labels, weights)
    assert (again.scale, again.offset) == pytest.approx((1.0, 0.0), abs=1e-8)


def test_weights_count_as_repeats() -> None:
    logits, labels, weights = random_rows(0.5, 1.0, 200, 1)
    repeated = (np.repeat(a, (weights * 2).astype(int)) for a in (logits, labels))
    assert vars(fit_platt(*repeated)) == pytest.approx(vars(fit_platt(logits, labels, weights)), abs=1e-9)


@pytest.mark.parametrize("stretch", [1e-4, 1e4])
def test_logits_of_any_size(stretch: float) -> None:
    """A start far from the minimum, where plain Newton steps would overshoot: few positives, wild outliers."""
    logits, labels, _ = random_rows(1.0, 0.0, 20_000, 2, rate_logit=-8.0)
    logits[:20], labels[:20] = 60.0, 0.0
    assert 5 < labels.sum() < 200
    one, other = fit_platt(logits, labels), fit_platt(stretch * logits, labels)
    assert other.scale * stretch == pytest.approx(one.scale, rel=1e-6)
    assert other.offset == pytest.approx(one.offset, rel=1e-6)


def test_ranking_stays_to_the_last_bit() -> None:
    logits, labels, weights = random_rows(0.4, -0.7, 50_000)
    logits = logits.astype(np.float32).astype(np.float64)
    calibrated = Calibration(0.37, 2.3).apply(logits)
    assert np.array_equal(np.argsort(logits, kind="stable"), np.argsort(calibrated, kind="stable"))
    assert len(np.unique(calibrated)) == len(np.unique(logits))
    assert auc(calibrated, labels, weights) == auc(logits, labels, weights)
    groups = np.arange(50_000) % 500
    assert gauc(calibrated, labels, groups, weights) == gauc(logits, labels, groups, weights)


def test_default_changes_no_bit() -> None:
    logits = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-10, 10).repeat(50)
    assert np.array_equal(Calibration().apply(logits), logits)
    assert torch.equal(Calibration().apply(torch.from_numpy(logits)), torch.from_numpy(logits))


@pytest.mark.parametrize(
    ("logits", "labels", "weights", "words"),
    [
        ([0.0, 1.0, 2.0], [1, 1, 1], None, "one class only"),
        ([0.0, 1.0, 2.0], [1, 1, 0], [1, 1, 0], "one class only"),
        ([0.0, 1.0, 1.0], [0, 0, 1], None, "separate the two classes"),
        ([0.5, 0.5, 0.5], [0, 1, 0], None, "all equal"),
        ([2.0, 1.0, 3.0, 0.0], [0, 1, 0, 1], None, "not above those of negatives"),
        ([0.0, 1.0, 1.0, 0.0], [0, 1, 0, 1], None, "not above those of negatives"),
    ],
)
def test_rows_without_a_scale_are_refused(logits, labels, weights, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        fit_platt(logits, labels, weights)


def test_json() -> None:
    calibration = Calibration(0.1 + 0.2, -1 / 3)
    assert Calibration.from_json({"step": 7, **calibration.to_json()}) == calibration
    for values in ({"scale": 1.0}, {"scale": -1.0, "offset": 0.0}, {"scale": "much", "offset": 0.0}, None):
        with pytest.raises(CalibrationError, match=r"calibration\.json is not understood"):
            Calibration.from_json(values)  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------------------------------------------- runs


MODEL = ModelConfig(embedding_dim=8, embedding_init_std=0.05, easy=FMEncoder(), hard=MLPEncoder((16,), dropout=0.0))


def train(run: Run, dataset: Path, **changes: Any) -> tuple[TrainingConfig, dict[str, Any]]:
    """``train_rank`` after what ``jobs.train`` leaves in a run first."""
    config = make_config(dataset, model=MODEL, global_batch_size=128, max_epochs=3, **changes)
    manifest = Dataset.open(dataset).manifest
    tree = {"training": TypeAdapter(TrainingConfig).dump_python(config, mode="json")}
    run.write("config.json", {**tree, "features": asdict(manifest.schema)})
    run.write_dataset(TrainedOn.of(dataset, manifest).to_json())
    return config, train_rank(run, config)


def test_a_calibrated_run(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(train=((600,),) * 4, valid=((600,),), test=((600,),), number_rows=True).path
    plain, run = Run(tmp_path / "plain"), Run(tmp_path / "platt")
    _, raw = train(plain, dataset)
    config, metrics = train(run, dataset, calibration=PlattCalibration())

    # The run without it: nothing new on disk, and the loop's raw logits are what is scored.
    assert not (plain.path / "calibration.json").exists() and not {"platt", "valid_uncalibrated"} & set(raw)
    uncalibrated = load_best(plain)
    assert uncalibrated.calibration == Calibration()
    reader = Reader(uncalibrated.dataset, "test", uncalibrated.config)
    ours, theirs = uncalibrated.score("test"), score(uncalibrated.model, reader, torch.device("cpu"))
    assert all(np.array_equal(vars(ours)[name], vars(theirs)[name]) for name in vars(ours))

    # The run with it: the same weights, other probabilities.
    best = load_best(run)
    weights = best.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in uncalibrated.model.state_dict().items())
    assert metrics["valid_uncalibrated"] == raw["valid"]
    stored = run.read("calibration.json")
    fitted_on = asdict(SplitRows.of(Dataset.open(dataset).manifest.split("valid")))
    assert stored == {"step": metrics["best_step"], **metrics["platt"], "fitted_on": fitted_on}
    scale, offset = stored["scale"], stored["offset"]
    assert (best.calibration.scale, best.calibration.offset) == (scale, offset) != (1.0, 0.0)
    for split in ("valid", "test"):
        one, other = best.score(split), uncalibrated.score(split)
        assert np.array_equal(one.logits, scale * other.logits + offset)
        assert all(np.array_equal(vars(one)[n], vars(other)[n]) for n in ("labels", "weights", "group_ids"))
    valid = uncalibrated.score("valid")
    assert fit_platt(valid.logits, valid.labels, valid.weights).scale == pytest.approx(scale, rel=1e-4)
    scored = evaluate(best.score("valid"))
    for metric in ("logloss", "ne", "calibration"):
        assert scored[metric] == pytest.approx(metrics["valid"][metric], rel=1e-5)
    for metric in ("auc", "gauc", "ece"):  # these jump where rounding, which the unsharded tables change, swaps rows
        assert scored[metric] == pytest.approx(metrics["valid"][metric], abs=0.01)
    assert run.read("metrics.json") == metrics and run.read("evaluation/valid.json")["metrics"] == metrics["valid"]
    assert metrics["valid"]["logloss"] < raw["valid"]["logloss"]
    assert metrics["valid"]["calibration"] == pytest.approx(1.0, abs=1e-9)
    for metric in ("rows", "auc", "gauc"):
        assert metrics["valid"][metric] == raw["valid"][metric]

    # A calibration of another checkpoint is not applied; an older one is not, once the config says none.
    assert run.is_finished
    run.write("calibration.json", {**stored, "step": stored["step"] + 1})
    assert not run.is_finished
    with pytest.raises(RunError, match=r"no calibration of its best checkpoint.*--resume"):
        load_best(run)
    (run.path / "calibration.json").unlink()
    assert not run.is_finished
    with pytest.raises(RunError, match="no calibration of its best checkpoint"):
        load_best(run)
    assert train_rank(run, config)["platt"] == metrics["platt"]
    run.write("config.json", plain.read("config.json"))
    assert load_best(run).calibration == Calibration()


def test_a_refused_fit_loses_no_result(make_dataset, tmp_path: Path, one_rank) -> None:
    """Two validation rows, one of each label: the scores separate them or rank them the wrong way round."""
    dataset = make_dataset(train=((600,),), valid=((2,),)).path
    run = Run(tmp_path / "run")
    with pytest.raises(CalibrationError, match=r'no "platt" fit.*--resume and kind = "none"'):
        train(run, dataset, calibration=PlattCalibration())
    assert not run.is_finished  # a calibration was promised
    metrics = run.read("metrics.json")
    assert metrics["train"]["rows"] == 3 * 600 and metrics["valid"]["rows"] == 2
    assert not {"platt", "valid_uncalibrated"} & set(metrics) and not (run.path / "calibration.json").exists()
    assert run.read("evaluation/valid.json")["metrics"] == metrics["valid"]
    _, resumed = train(run, dataset)  # as the message advises
    assert resumed["valid"] == metrics["valid"] and load_best(run).calibration == Calibration()
    assert run.is_finished


def test_validation_must_hold_both_labels_before_a_step_is_made(make_dataset, tmp_path: Path, one_rank) -> None:
    without = make_dataset(valid=(), name="without").path
    with pytest.raises(RunError, match="validation split with both labels"):
        train(Run(tmp_path / "run"), without, calibration=PlattCalibration())
    with_one_row = make_dataset(valid=((1,),), name="one").path
    with pytest.raises(RunError, match="validation split with both labels"):
        train(Run(tmp_path / "run"), with_one_row, calibration=PlattCalibration())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_ece_can_be_monitored(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(train=((600,),), valid=((200,),)).path
    _, metrics = train(Run(tmp_path / "run"), dataset, monitor={"auc": 1.0, "ece": -2.0})
    events = map(json.loads, Run(tmp_path / "run").history.read_text().splitlines())
    checks = [e for e in events if e["event"] == "evaluation"]
    assert len(checks) == metrics["train"]["epochs"] and metrics["valid"]["ece"] > 0
    assert [e["monitor"] for e in checks] == [e["auc"] - 2 * e["ece"] for e in checks]
