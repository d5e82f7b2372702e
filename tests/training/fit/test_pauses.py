"""Evaluations inside an epoch, planned and by the clock, and a training that ends there, against undisturbed runs."""

import json
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from features.disk.run_folder import RunFiles
from tests.ranks import on_two_ranks
from tests.training.fit.test_run import STEPS_PER_EPOCH, final_model, fit_until, make_config
from training.config import CheckpointConfig, CrossNetEncoder, EvaluationConfig, MLPEncoder, ScheduleConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.pauses import next_evaluation
from training.fit.run import Run, train_rank
from training.sharding import checkpoint

LOWERED = ScheduleConfig(factor=0.5, min_delta=10.0, patience=99)
"""All evaluations but the first lower the learning rates."""


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Evaluations of the history, without what depends on a clock."""
    found = [json.loads(line) for line in run.history.read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "seconds"} for e in found if e["event"] == "evaluation"]


def steps(run: Run) -> list[int]:
    return [evaluation["step"] for evaluation in evaluations(run)]


def assert_same(ours: Run, theirs: Run, config) -> None:
    one, other = (final_model(run, config).state_dict() for run in (ours, theirs))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert [e for e in evaluations(ours) if not e.get("is_extra")] == evaluations(theirs)


def dropout_config(dataset: Path, **changes: Any):
    config = make_config(dataset, **changes)
    return replace(config, model=replace(config.model, easy=MLPEncoder((8,), dropout=0.3), hard=CrossNetEncoder(2)))


def all_evaluations(config: EvaluationConfig, epoch_steps: int, epochs: int) -> list[int]:
    """Steps of the run with an evaluation, found by asking after every step."""
    found = set()
    for step in range(epoch_steps * epochs):
        at = next_evaluation(config, step, step % epoch_steps, epoch_steps)
        assert step % epoch_steps < at <= epoch_steps
        found.add(step // epoch_steps * epoch_steps + at)
    return sorted(found)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EvaluationConfig(), [10, 20]),
        (EvaluationConfig(every_steps=4), [4, 8, 10, 12, 16, 20]),
        (EvaluationConfig(every_steps=100), [10, 20]),
        (EvaluationConfig(per_epoch=4), [3, 5, 8, 10, 13, 15, 18, 20]),
        (EvaluationConfig(per_epoch=30), [*range(1, 21)]),
        (EvaluationConfig(per_epoch=2, every_steps=4), [4, 5, 8, 10, 12, 15, 16, 20]),
    ],
)
def test_steps_of_evaluations(config: EvaluationConfig, expected: list[int]) -> None:
    assert all_evaluations(config, 10, 2) == expected


@pytest.mark.parametrize("pipelined", [False, True])
def test_interrupted_equals_undisturbed_with_evaluations_inside(make_dataset, tmp_path, one_rank, pipelined) -> None:
    dataset = make_dataset().path
    config = dropout_config(
        dataset,
        max_epochs=3,
        schedule=LOWERED,
        ema_decay=0.9,
        pipelined=pipelined,
        checkpoint=CheckpointConfig(every_steps=2, keep=9),
        evaluation=EvaluationConfig(every_steps=5, per_epoch=2, sample_rows=24),
    )
    undisturbed, interrupted = Run(tmp_path / "undisturbed"), Run(tmp_path / "interrupted")
    train_rank(undisturbed, config)
    assert steps(undisturbed) == [3, 5, 6, 9, 10, 12, 15, 18]
    assert {e["rows"] for e in evaluations(undisturbed)} == {len(sampled(dataset, config))}
    for step in (2, 3, 4, 10, 16):
        fit_until(interrupted, config, step)
    train_rank(interrupted, config)
    assert_same(interrupted, undisturbed, config)
    assert interrupted.read("metrics.json")["valid"] == undisturbed.read("metrics.json")["valid"]
    plain = replace(config, pipelined=not pipelined)
    train_rank(Run(tmp_path / "other"), plain)
    assert_same(Run(tmp_path / "other"), undisturbed, config)


def sampled(dataset: Path, config) -> list[float]:
    """Labels of the sampled rows that weigh something."""
    reader = Reader(Dataset.open(dataset), "valid", config, sample_rows=config.evaluation.sample_rows)
    found = [(batch.labels[: batch.num_rows], batch.weights[: batch.num_rows]) for batch in reader.batches(0)]
    return [y for labels, weights in found for y, w in zip(labels.tolist(), weights.tolist(), strict=True) if w > 0]


def test_early_stopping_inside_an_epoch_keeps_the_best(make_dataset, tmp_path: Path, one_rank) -> None:
    """The first evaluation stays the best; its checkpoint is there, though no other time for one had come."""
    dataset = make_dataset().path
    config = make_config(
        dataset,
        schedule=ScheduleConfig(factor=0.5, min_delta=10.0, patience=2),
        evaluation=EvaluationConfig(every_steps=1),
        checkpoint=CheckpointConfig(every_steps=100, keep=1),
    )
    run = Run(tmp_path / "run")
    metrics = train_rank(run, config)
    assert steps(run) == [1, 2, 3] and checkpoint.saved_steps(run.checkpoints) == [1, 3]
    assert metrics["best_step"] == checkpoint.best(run.checkpoints).step == best_of_history(run) == 1
    assert (metrics["train"]["epochs"], metrics["train"]["ended_by"]) == (3 / STEPS_PER_EPOCH, "schedule.patience")
    first = evaluations(run)[0]
    assert metrics["valid"]["logloss"] == pytest.approx(first["logloss"], rel=1e-12)
    assert [e["learning_rate"] for e in evaluations(run)] == [1e-3, 1e-3, 5e-4]
    again = train_rank(run, config)  # nothing is left to train
    assert again["train"]["steps"] == 3 and again["best_step"] == 1


def test_a_training_out_of_time_goes_on_as_if_it_had_not_ended(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    config = dropout_config(dataset, max_epochs=2, schedule=LOWERED, evaluation=EvaluationConfig(per_epoch=2))
    undisturbed, ended = Run(tmp_path / "undisturbed"), Run(tmp_path / "ended")
    train_rank(undisturbed, config)
    short = replace(config, max_minutes=1e-9)
    metrics = train_rank(ended, short)
    assert (metrics["train"]["steps"], metrics["train"]["ended_by"]) == (1, "max_minutes")
    assert [e["is_extra"] for e in evaluations(ended)] == [True]
    assert metrics["best_step"] == 1 and best_of_history(ended) == 1
    assert train_rank(ended, short)["train"]["steps"] == 1  # nothing is left to train, and the best is still known
    train_rank(ended, config)
    assert_same(ended, undisturbed, config)
    ours, theirs = ended.read("metrics.json"), undisturbed.read("metrics.json")
    assert (ours["best_step"], ours["valid"]) == (theirs["best_step"], theirs["valid"])
    assert best_of_history(ended) == theirs["best_step"] == 3


def best_of_history(run: Run) -> int | None:
    """The best step as a report finds it."""
    (run.path / "config.json").write_text("{}")
    return RunFiles.load(run.path).best_step


def fit_by_clock(folder: Path, dataset: Path) -> None:
    """Both ranks evaluate and end by the first one's clock; the other one's nearly stands still."""
    ticks = count(1)
    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank():
            patch.setattr(time, "perf_counter", lambda: next(ticks) * 1e-12)
        for name, changes in BY_CLOCK.items():
            train_rank(Run(folder / name), make_config(dataset, max_epochs=1, **changes))


MINUTES = EvaluationConfig(every_minutes=1e-9)
BY_CLOCK: dict[str, dict[str, Any]] = {
    "plain": {"evaluation": MINUTES, "schedule": LOWERED},
    "pipelined": {"evaluation": MINUTES, "schedule": LOWERED, "pipelined": True},
    "ended": {"max_minutes": 1e-9, "pipelined": True},
}
BY_CLOCK_STEPS = {"plain": [1, 2, 3, 4, 5, 6], "pipelined": [4, 6], "ended": [4]}


def test_ranks_pause_together_by_the_first_ones_clock(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(number_rows=True).path
    on_two_ranks(tmp_path, fit_by_clock, tmp_path / "two", dataset)
    fit_by_clock(tmp_path / "one", dataset)
    for name, expected in BY_CLOCK_STEPS.items():
        alone, together = Run(tmp_path / "one" / name), Run(tmp_path / "two" / name)
        assert steps(alone) == steps(together) == expected, name
        ours, theirs = ([e["train_loss"] for e in evaluations(run)] for run in (together, alone))
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_without_validation_the_time_ends_training_with_a_checkpoint(make_dataset, tmp_path: Path, one_rank) -> None:
    config = make_config(make_dataset(valid=()).path, max_minutes=1e-9, evaluation=EvaluationConfig(every_steps=1))
    run = Run(tmp_path / "run")
    metrics = train_rank(run, config)
    assert (metrics["train"]["steps"], metrics["best_step"]) == (1, None)
    assert checkpoint.saved_steps(run.checkpoints) == [1] and evaluations(run) == []


def test_a_run_without_an_evaluation_names_its_checkpoint(make_dataset, tmp_path: Path, one_rank) -> None:
    """It was killed after its first checkpoint, and goes on with a time that is spent already."""
    run, config = Run(tmp_path / "run"), make_config(make_dataset().path)
    fit_until(run, config, 4)
    metrics = train_rank(run, replace(config, max_minutes=1e-9))
    assert evaluations(run) == [] and metrics["valid"]["logloss"] > 0
    assert metrics["best_step"] == metrics["train"]["steps"] == checkpoint.best(run.checkpoints).step == 4


ROW_GROUPS = ((7, 5, 9), (4, 8), (6,))
"""Of 39 validation rows."""


@pytest.mark.parametrize("sample_rows", [1, 5, 13, 38, 39, 100])
def test_a_sample_is_the_same_rows_for_any_world_size(make_dataset, sample_rows: int) -> None:
    dataset = make_dataset(valid=ROW_GROUPS)
    seen = {}
    for seed, world_size in ((1, 1), (1, 2), (1, 4), (2, 1)):
        config = make_config(dataset.path, seed=seed)
        readers = [
            Reader(Dataset.open(dataset.path), "valid", config, rank, world_size, sample_rows)
            for rank in range(world_size)
        ]
        assert {reader.num_rows for reader in readers} == {min(39, sample_rows)}
        batches = [batch for reader in readers for batch in reader.batches(epoch=seed)]
        rows = [row for batch in batches for row in batch.dense_features[: batch.num_rows].tolist()]
        seen[seed, world_size] = sorted(rows)
    assert len(seen[1, 1]) == min(39, sample_rows)
    assert len({tuple(row) for row in seen[1, 1]}) == len(seen[1, 1])
    assert seen[1, 1] == seen[1, 2] == seen[1, 4]
    columns = dataset.columns["valid"]
    prices = dict(zip(columns["row"].tolist(), columns["price"].tolist(), strict=True))
    assert all(prices[row] == price for row, price in seen[1, 1])
    if sample_rows == 13:
        assert seen[1, 1] != seen[2, 1]


def test_a_sample_of_one_class_is_refused_before_the_first_step(make_dataset, tmp_path: Path, one_rank) -> None:
    config = make_config(make_dataset().path, evaluation=EvaluationConfig(sample_rows=1))
    words = r"monitor uses auc, .* all 1 rows of the sample have label [01]: raise training.evaluation.sample_rows"
    with pytest.raises(ValueError, match=words):
        train_rank(Run(tmp_path / "run"), config)
    assert not (tmp_path / "run" / "checkpoints").exists()
    train_rank(Run(tmp_path / "monitored otherwise"), replace(config, monitor={"logloss": -1.0}, max_epochs=1))
