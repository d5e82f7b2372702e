"""Pipelined steps against plain ones, bit for bit, on one rank and on two, and what is fetched from a device when."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import on_two_ranks
from tests.training.fit.test_run import LOWERED, MODEL, STEPS_PER_EPOCH, final_model, fit_until, make_config
from training.config import CrossNetEncoder, DenseOptimizer, FusedOptimizer, MLPEncoder, ShardingConfig, TrainingConfig
from training.data.batch import Batch
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.loop import Progress, Training, make_step, train
from training.fit.run import Run, build_model, train_rank
from training.fit.step import matmul_precision
from training.judge.scores import DivergedError
from training.sharding.parallelize import parallelize

DROPOUT = replace(MODEL, easy=MLPEncoder((8,), dropout=0.3), hard=CrossNetEncoder(2))
MIXED = ShardingConfig("table_wise", {"user": "row_wise", "age": "data_parallel"})
LANES: dict[str, dict[str, Any]] = {
    "fused": {"sharding": MIXED, "clip_gradient_norm": 0.1, "ema_decay": 0.9, "max_epochs": 3, **LOWERED},
    "dense": {"optimizer": DenseOptimizer(learning_rate=0.01, embedding_l2=0.01), "clip_gradient_norm": 0.1},
    "embedding l2": {"optimizer": FusedOptimizer(embedding_learning_rate=0.05, embedding_l2=0.1), "sharding": MIXED},
    "bfloat16": {"precision": "bfloat16", "sharding": ShardingConfig("row_wise")},
}


def lane_config(dataset: Path, lane: str, pipelined: bool) -> TrainingConfig:
    return make_config(dataset, model=DROPOUT, pipelined=pipelined, **LANES[lane])


def events(run: Run) -> list[dict[str, Any]]:
    """What the history tells, without what depends on a clock."""
    found = [json.loads(line) for line in run.history.read_text().splitlines()]
    return [{k: v for k, v in e.items() if "second" not in k} for e in found if e["event"] != "progress"]


def assert_equal(ours: Run, theirs: Run, config: TrainingConfig) -> None:
    one, other = (final_model(run, config).state_dict() for run in (ours, theirs))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert events(ours) == events(theirs)
    assert ours.read("metrics.json")["train"]["rows"] == theirs.read("metrics.json")["train"]["rows"] > 0


def fit_lanes(folder: Path, dataset: Path) -> None:
    """Every lane in both ways, and a pipelined one that was interrupted inside an epoch and goes on."""
    for lane in LANES:
        plain, pipelined = lane_config(dataset, lane, False), lane_config(dataset, lane, True)
        train_rank(Run(folder / lane / "plain"), plain)
        for step in (4, STEPS_PER_EPOCH):
            fit_until(Run(folder / lane / "pipelined"), pipelined, step)
        train_rank(Run(folder / lane / "pipelined"), pipelined)


def assert_lanes_equal(folder: Path, dataset: Path) -> None:
    for lane in LANES:
        assert_equal(Run(folder / lane / "pipelined"), Run(folder / lane / "plain"), lane_config(dataset, lane, False))


def test_pipelined_steps_equal_plain_ones_bit_for_bit(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    fit_lanes(tmp_path, dataset)
    assert_lanes_equal(tmp_path, dataset)


def test_pipelined_steps_equal_plain_ones_on_two_ranks(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset().path
    on_two_ranks(tmp_path, fit_lanes, tmp_path, dataset)
    assert_lanes_equal(tmp_path, dataset)


def make_training(dataset: Path, folder: Path, **changes: Any) -> Training:
    config, cpu = make_config(dataset, max_epochs=1, **changes), torch.device("cpu")
    opened = Dataset.open(dataset)
    parallel = parallelize(build_model(opened, config, torch.device("meta")), config, cpu)
    return Training(parallel, config, Reader(opened, "train", config), None, cpu, folder)


def unreadable(training: Training) -> Iterator[Batch]:
    """A reader that fails in the middle of an epoch."""
    for number, batch in enumerate(training.train_reader.batches(0)):
        if number == 4:
            raise OSError("unreadable")
        yield batch


@pytest.mark.parametrize(("pipelined", "taken"), [(False, [1, 2, 3, 4, 5, 6]), (True, [3, 4, 5, 6, 6, 6])])
def test_a_pipeline_is_two_batches_ahead_and_drains(make_dataset, one_rank, tmp_path, pipelined, taken) -> None:
    training = make_training(make_dataset().path, tmp_path, pipelined=pipelined)
    training.parallel.model.train()
    numbers = []

    def follow():
        for number, batch in enumerate(training.train_reader.batches(0), 1):
            numbers[:] = [number]
            yield batch

    step = make_step(training)
    assert [numbers[0] for _ in step.run(follow(), count())] == taken
    # The model's own forward is back: what is closed early leaves it usable, and so does what fails.
    results = step.run(follow(), count())
    next(results)
    results.close()
    with pytest.raises(OSError, match="unreadable"):
        list(step.run(unreadable(training), count()))
    loss, rows = step(next(iter(training.train_reader.batches(0))), 0)
    assert torch.isfinite(loss) and rows == 32


@pytest.mark.parametrize("interval", [1, 4, 100])
def test_losses_fetched_rarely_are_the_same(make_dataset, one_rank, tmp_path: Path, monkeypatch, interval) -> None:
    training = make_training(make_dataset().path, tmp_path)
    training.fetch_interval = interval
    saved = []
    progress = Progress()
    step = make_step(training)
    losses, receive = [], step._receive

    def follow(sent: Any) -> Any:
        losses.append(float(receive(sent)[0]))
        return receive(sent)

    monkeypatch.setattr(step, "_receive", follow)
    for event in train(training, progress, step):
        if event["event"] == "checkpoint":
            saved.append((progress.rows, progress.loss_sum))
    assert progress.rows == 192
    assert saved[0] == (128, pytest.approx(sum(losses[:4]), rel=1e-12))  # inside the epoch, all of it is known
    assert len(losses) == STEPS_PER_EPOCH


@pytest.mark.parametrize(("interval", "seen_at"), [(1, 2), (3, 3), (100, 4)])
def test_a_loss_that_is_not_finite_is_never_saved(make_dataset, one_rank, tmp_path: Path, interval, seen_at) -> None:
    training = make_training(make_dataset().path, tmp_path)
    training.fetch_interval = interval
    step = make_step(training)

    head = training.parallel.model.module.fusion.hard_head.weight  # pyright: ignore
    training.parallel.optimizer.step = lambda *_: head.data.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(DivergedError, match=f"the loss became nan at step {seen_at}: lower"):
        list(train(training, Progress(), step))
    assert not list(tmp_path.glob("step=*"))


def test_tf32_is_for_training_on_a_gpu(make_dataset) -> None:
    config = make_config(make_dataset().path)
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [s.fp32_precision for s in settings]
    for precision, expected in (("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")):
        with matmul_precision(replace(config, device="cuda", precision=precision)):
            assert {s.fp32_precision for s in settings} == {expected}
        assert [s.fp32_precision for s in settings] == before
    with pytest.raises(ValueError, match=r"training\.precision: tf32 is a format of GPUs"):
        replace(config, precision="tf32")
    assert not config.is_pipelined and replace(config, device="cuda").is_pipelined
    assert (
        replace(config, pipelined=True).is_pipelined
        and not replace(config, device="cuda", pipelined=False).is_pipelined
    )
