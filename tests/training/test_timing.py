"""StepTimes on real steps: every part is seen, the parts add up, and what is slow shows."""

import time
from pathlib import Path

import pytest
import torch

from tests.training.test_run import make_config
from training.loop import Progress, Training, make_step, train
from training.parallelize import parallelize
from training.run import Dataset, build_model
from training.timing import PARTS

CPU = torch.device("cpu")


def start(path: Path, checkpoints: Path) -> Training:
    config = make_config(path, max_epochs=1)
    dataset = Dataset.open(path)
    model = build_model(dataset, config, torch.device("meta"))
    return Training(parallelize(model, config, CPU), config, dataset.reader("train", config), None, CPU, checkpoints)


def run(training: Training) -> Progress:
    progress = Progress()
    list(train(training, progress, make_step(training)))
    return progress


def test_the_parts_make_up_the_time_of_the_steps(make_dataset, one_rank, tmp_path: Path) -> None:
    training = start(make_dataset().path, tmp_path / "checkpoints")
    progress = run(training)
    summary = training.times.summary()
    assert set(summary["shares"]) == set(PARTS)
    assert all(share > 0 for share in summary["shares"].values())
    assert sum(summary["shares"].values()) == pytest.approx(1)
    assert training.times.num_steps == progress.step + 1  # the last one found the reader empty
    # The rest of the loop's time is checkpoints and what is told of each step.
    assert 0 < sum(training.times.seconds.values()) <= progress.seconds["train"] + progress.seconds["checkpoint"]


def test_a_slow_part_shows(make_dataset, one_rank, tmp_path: Path) -> None:
    run(start(make_dataset(name="warm").path, tmp_path / "warm"))  # a process's first step is slow everywhere
    training = start(make_dataset().path, tmp_path / "checkpoints")
    check = training.train_reader.checker.to_columns

    def slow(*arguments):
        time.sleep(0.2)
        return check(*arguments)

    training.train_reader.checker.to_columns = slow
    run(training)
    shares = training.times.summary()["shares"]
    assert max(shares, key=lambda part: shares[part]) == "input"
    assert training.train_reader.rows_per_second < 2_000

    training = start(make_dataset(name="again").path, tmp_path / "again")
    training.parallel.model.module.hard_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    run(training)
    shares = training.times.summary()["shares"]
    assert max(shares, key=lambda part: shares[part]) == "dense forward"
