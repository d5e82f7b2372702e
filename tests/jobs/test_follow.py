"""What a training tells while it runs, of evaluations inside an epoch and of rows that it has not been trained on."""

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from features.disk.run_folder import RunFiles
from jobs.launch.follow import describe_training, follow
from jobs.pages.report_page import render_report
from training.config import TrainingConfig

WINDOW = {"event": "window", "epoch": 0, "rows": 64, "auc": None, "logloss": 0.5, "ne": None, "calibration": 1.25}
CHECK = {"event": "evaluation", "epoch": 0, "auc": 0.7, "logloss": 0.6, "monitor": 0.7, "best": True, "train_loss": 1.0}
STEP = {
    "event": "progress",
    "epoch": 0,
    "step_in_epoch": 2,
    "epoch_steps": 8,
    "loss": 0.5,
    "learning_rate": 0.1,
    "rows_per_second": 5.0,
    "seconds": 1.0,
}
HISTORY: list[dict[str, Any]] = [
    {**STEP, "step": 2},
    {**WINDOW, "step": 2, "seconds": 1.0},
    {**CHECK, "step": 2, "epochs": 0.25},
    {**WINDOW, "step": 4, "auc": 0.75, "ne": 0.9, "seconds": 2.0},
    {**CHECK, "step": 8, "epochs": 1, "best": False},
    {**CHECK, "step": 16, "best": False, "epoch": 1},  # as earlier versions wrote it
]


def write_history(run: Path) -> Path:
    path = run / "history.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in HISTORY))
    return path


def test_evaluations_and_windows_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()
    ended.set()
    with caplog.at_level(logging.INFO):
        follow(write_history(tmp_path), TrainingConfig("dataset"), ended)
    first, second, third = [record.getMessage() for record in caplog.records]
    rows = "training rows auc undefined logloss 0.500000 ne undefined calibration 1.250000"
    assert first == f"epoch 0.25: valid auc 0.700000 logloss 0.600000 best; {rows}"
    assert second.startswith("epoch 1: valid auc 0.700000 logloss 0.600000; training rows auc 0.750000")
    assert third.startswith("epoch 2: ")


def test_windows_are_in_the_report(tmp_path: Path) -> None:
    write_history(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    run = RunFiles.load(tmp_path)
    assert [window["step"] for window in run.windows] == [2, 4]
    title = "Training rows before they are trained on"
    page = render_report(run)
    assert title in page and f"{title}: NE and calibration" in page
    run.windows.clear()
    assert title not in render_report(run)


@pytest.mark.parametrize(("ended_by", "said"), [("max_minutes", True), ("max_epochs", False), (None, False)])
def test_a_training_out_of_time_says_so(tmp_path: Path, ended_by: str | None, said: bool) -> None:
    shares = {"input": 1.0}
    train = {"epochs": 0.25, "steps": 2, "rows": 64, "rows_per_second": 1.0, "seconds_per_step": 1.0, "shares": shares}
    train |= {"reader_shares": shares, "reader_rows_per_second": 1.0, "of_limit": {}, "ended_by": ended_by}
    (tmp_path / "metrics.json").write_text(json.dumps({"train": train, "best_step": 2}))
    text = describe_training(tmp_path, 1.0)
    assert "trained 0.25 epochs, 2 steps" in text
    assert ("training.max_minutes ended it: --resume with more goes on" in text) == said
