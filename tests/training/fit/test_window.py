"""Metrics of training rows before they are trained on, against exact ones of the same rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.ranks import on_two_ranks
from tests.training.fit.test_run import fit_until, make_config
from tests.training.fit.test_step import make_training
from training.config import CheckpointConfig, ScheduleConfig
from training.fit.loop import Progress, make_step, train
from training.fit.run import Run, train_rank
from training.fit.window import TrainingWindow
from training.judge.metrics import LOGIT_CLIP, WINDOW_METRICS, evaluate
from training.judge.scores import Scores


def windows(run: Run) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in run.history.read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "seconds"} for e in found if e["event"] == "window"]


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_a_window_has_the_metrics_of_its_rows(one_rank, scale: float) -> None:
    rng = np.random.default_rng(0)
    window = TrainingWindow(3, torch.device("cpu"))
    for rate in (0.1, 0.5):
        logits = torch.tensor(rng.normal(size=(3, 2_000)) * scale, dtype=torch.float32)
        labels = torch.tensor(rng.random((3, 2_000)) < rate, dtype=torch.float32)
        weights = torch.tensor(rng.integers(0, 3, (3, 2_000)), dtype=torch.float32)
        for part in zip(logits, labels, weights, strict=True):
            window.add(*part)
        found, parts = window.take(), (logits, labels, weights)
        exact = evaluate(Scores.of(*(part.flatten().numpy() for part in parts)))
        assert found["rows"] == 6_000
        for name in ("logloss", "ne", "calibration"):
            assert found[name] == pytest.approx(exact[name], rel=1e-5), name
        clipped = evaluate(
            Scores.of(*(part.flatten().numpy() for part in (logits.clamp(-LOGIT_CLIP, LOGIT_CLIP), labels, weights)))
        )
        assert found["auc"] == pytest.approx(clipped["auc"], abs=5e-5)


def test_what_rows_do_not_define_is_none(one_rank) -> None:
    window = TrainingWindow(1, torch.device("cpu"))
    assert window.take() == {"rows": 0, "auc": None, "logloss": None, "ne": None, "calibration": None}
    window.add(torch.zeros(2), torch.zeros(2), torch.ones(2))
    found = window.take()
    assert (found["auc"], found["ne"], found["calibration"]) == (None, None, None)
    assert found["logloss"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("pipelined", [False, True])
def test_each_row_is_scored_before_its_step(make_dataset, tmp_path: Path, one_rank, pipelined: bool) -> None:
    """The model's own logits, caught on their way to the loss, are what the windows measure."""
    training = make_training(make_dataset().path, tmp_path, pipelined=pipelined, window_rows=100)
    step, caught = make_step(training), []
    add = step.window.add  # pyright: ignore[reportOptionalMemberAccess]

    def catch(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        assert training.parallel.model.training and logits.requires_grad
        caught.append([part.detach().clone() for part in (logits, labels, weights)])
        add(logits, labels, weights)

    step.window.add = catch  # pyright: ignore
    found = [event for event in train(training, Progress(), step) if event["event"] == "window"]
    assert [(event["step"], event["rows"]) for event in found] == [(4, 128), (6, 64)]
    for event, rows in zip(found, (caught[:4], caught[4:]), strict=True):
        exact = evaluate(Scores.of(*(torch.cat(parts).numpy() for parts in zip(*rows, strict=True))))
        assert [event[name] for name in WINDOW_METRICS] == pytest.approx([exact[n] for n in WINDOW_METRICS], abs=2e-3)


def fit(folder: Path, dataset: Path) -> None:
    train_rank(Run(folder), make_config(dataset, window_rows=64, max_epochs=1))


def test_windows_change_nothing_and_are_those_of_all_ranks(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(number_rows=True).path
    on_two_ranks(tmp_path, fit, tmp_path / "two", dataset)
    fit(tmp_path / "one", dataset)
    train_rank(Run(tmp_path / "off"), make_config(dataset, max_epochs=1))
    one, two, off = (Run(tmp_path / name) for name in ("one", "two", "off"))
    assert one.read("metrics.json")["valid"] == off.read("metrics.json")["valid"] and windows(off) == []
    assert [window["step"] for window in windows(one)] == [2, 4, 6]
    for ours, theirs in zip(windows(two), windows(one), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_after_a_resumption_windows_end_where_they_would_have(make_dataset, tmp_path: Path, one_rank) -> None:
    schedule = ScheduleConfig(patience=9)
    config = make_config(
        make_dataset().path, window_rows=128, schedule=schedule, checkpoint=CheckpointConfig(every_steps=3)
    )
    undisturbed, resumed = Run(tmp_path / "undisturbed"), Run(tmp_path / "resumed")
    train_rank(undisturbed, config)
    fit_until(resumed, config, 3)
    train_rank(resumed, replace(config))
    ours, theirs = windows(resumed), windows(undisturbed)
    assert [window["step"] for window in ours] == [window["step"] for window in theirs] == [4, 6, 8, 12]
    assert (ours[0]["rows"], theirs[0]["rows"]) == (32, 128)
    assert ours[1:] == theirs[1:]
