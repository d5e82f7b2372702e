"""The plateau rule on the worked sequence of the published recipe, and warm-up and decay against torch's schedulers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests.ranks import on_two_ranks
from tests.training.fit.test_run import assert_same_weights, final_model, fit_until, make_config
from training.config import (
    CheckpointConfig,
    CosineDecay,
    DenseOptimizer,
    EvaluationConfig,
    ExponentialDecay,
    OneCycleDecay,
    ScheduleConfig,
    ScheduleSpan,
    ShardingConfig,
    StepDecay,
    TrainingConfig,
)
from training.fit import loop
from training.fit.run import Run, train_rank
from training.fit.schedule import Plateau, lower, monitor_value, rate_factor


def test_worked_sequence() -> None:
    config, plateau = ScheduleConfig(), Plateau()
    rate, drops = 1e-3, []
    for evaluation, value in enumerate((0.5, 0.6, 0.6, 0.61, 0.61, 0.61), start=1):
        if not plateau.update(value, step=evaluation, config=config):
            rate = lower(rate, config)
            drops.append(evaluation)
        assert plateau.is_over(config) == (evaluation == 6)
    assert drops == [3, 5, 6]
    assert (plateau.best_step, plateau.best) == (4, 0.61)
    assert rate == pytest.approx(1e-6)


def test_gain_below_min_delta_is_a_failure() -> None:
    plateau = Plateau()
    config = ScheduleConfig(min_delta=1e-6)
    assert plateau.update(0.5, 1, config)
    assert not plateau.update(0.5 + 5e-7, 2, config)
    assert plateau.best == 0.5


def test_learning_rate_has_a_floor_and_never_rises() -> None:
    config = ScheduleConfig(factor=0.1, min_learning_rate=1e-6)
    assert lower(5e-6, config) == 1e-6
    assert lower(1e-7, config) == 1e-7


def test_monitor_weighs_metrics() -> None:
    metrics = {"auc": 0.8, "logloss": 0.4, "gauc": None}
    assert monitor_value(metrics, {"auc": 1.0, "logloss": -0.5}) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="gauc"):
        monitor_value(metrics, {"gauc": 1.0})


def torch_rates(make: Any, num_steps: int) -> list[float]:
    """The rates that a scheduler of torch gives a rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


TORCH: dict[str, tuple[ScheduleConfig, Any]] = {
    "warm-up": (
        ScheduleConfig(ScheduleSpan(steps=7)),
        lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 7, total_iters=6),
    ),
    "cosine": (
        ScheduleConfig(decay=CosineDecay(final_factor=0.1)),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.1),
    ),
    "cosine over two epochs": (
        ScheduleConfig(decay=CosineDecay(ScheduleSpan(epochs=2))),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.CosineAnnealingLR(o, T_max=20), lr_scheduler.ConstantLR(o, 0.0, 999)], [20]
        ),
    ),
    "exponential": (
        ScheduleConfig(decay=ExponentialDecay(0.5)),
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.5**0.1),
    ),
    "step": (
        ScheduleConfig(decay=StepDecay(0.3, ScheduleSpan(steps=6))),
        lambda o: lr_scheduler.StepLR(o, step_size=6, gamma=0.3),
    ),
    "one cycle": (
        ScheduleConfig(decay=OneCycleDecay(ScheduleSpan(steps=41), rise=0.25, start_divisor=10, final_divisor=100)),
        lambda o: lr_scheduler.OneCycleLR(o, 1.0, 41, pct_start=0.25, div_factor=10, final_div_factor=100),
    ),
    "warm-up, then steps": (
        ScheduleConfig(ScheduleSpan(epochs=0.5), StepDecay(0.1)),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, start_factor=1 / 5, total_iters=4),
                lr_scheduler.StepLR(o, step_size=10, gamma=0.1),
            ],
            [5],
        ),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_factors_are_those_of_torch(name: str) -> None:
    config, make = TORCH[name]
    found = [rate_factor(config, step, epoch_steps=10, max_epochs=4) for step in range(40)]
    assert found == pytest.approx(torch_rates(make, 40), rel=1e-6, abs=1e-9)
    assert len(set(found)) > 3


def test_past_its_end_a_decay_stays_where_it_is() -> None:
    for decay in (
        CosineDecay(ScheduleSpan(steps=5), 0.2),
        OneCycleDecay(ScheduleSpan(steps=5)),
        CosineDecay(ScheduleSpan(steps=1), 0.2),
    ):
        last = 0.2 if isinstance(decay, CosineDecay) else 1 / 25 / 1e4
        for step in (5, 6, 1_000):
            assert rate_factor(ScheduleConfig(decay=decay), step, 10, 4) == pytest.approx(last)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_cycles_have_rates(length: int) -> None:
    config = ScheduleConfig(decay=OneCycleDecay(ScheduleSpan(steps=length)))
    assert all(0 < rate_factor(config, step, 10, 4) <= 1 for step in range(5))


def test_refusals_of_schedules() -> None:
    for wrong in ({}, {"steps": 1, "epochs": 1.0}):
        with pytest.raises(ValueError, match="one of the two"):
            ScheduleSpan(**wrong)
    with pytest.raises(ValueError, match="one_cycle has a rise of its own; leave out warmup"):
        ScheduleConfig(ScheduleSpan(steps=1), OneCycleDecay())


SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {
        "schedule": ScheduleConfig(
            ScheduleSpan(steps=4), CosineDecay(final_factor=0.1), 0.5, min_delta=10.0, patience=99
        ),
        "sharding": ShardingConfig("table_wise", {"user": "row_wise", "age": "data_parallel"}),
    },
    "pipelined": {
        "schedule": ScheduleConfig(ScheduleSpan(epochs=0.5), ExponentialDecay(0.5), 1.0, patience=99),
        "sharding": ShardingConfig("row_wise"),
        "pipelined": True,
    },
    "one cycle": {
        "schedule": ScheduleConfig(decay=OneCycleDecay(), factor=1.0, patience=99),
        "optimizer": DenseOptimizer(learning_rate=0.01),
    },
}


def scheduled(dataset: Path, name: str) -> TrainingConfig:
    checkpoints, inside = CheckpointConfig(every_steps=2, keep=9), EvaluationConfig(every_steps=5)
    return make_config(dataset, max_epochs=3, checkpoint=checkpoints, evaluation=inside, **SCHEDULES[name])


def step_rates(run: Run) -> dict[int, float]:
    found = [json.loads(line) for line in run.history.read_text().splitlines()]
    return {e["step"]: e["learning_rate"] for e in found if e["event"] == "progress"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_interrupted_equals_undisturbed(make_dataset, tmp_path: Path, one_rank, monkeypatch, name: str) -> None:
    monkeypatch.setattr(loop, "PROGRESS_SECONDS", 0.0)
    config = scheduled(make_dataset().path, name)
    undisturbed, interrupted = Run(tmp_path / "undisturbed"), Run(tmp_path / "interrupted")
    train_rank(undisturbed, config)
    for step in (2, 6, 8, 16):
        fit_until(interrupted, config, step)
    train_rank(interrupted, config)
    ours, theirs = (final_model(run, config).state_dict() for run in (interrupted, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert step_rates(interrupted) == step_rates(undisturbed)
    base = config.optimizer.learning_rate
    for step, rate in step_rates(undisturbed).items():
        # The first evaluation is the best; each one after it halves the rates, or does nothing.
        failures = max(0, sum(at < step for at in (5, 6, 10, 12, 15)) - 1)
        factor = rate_factor(config.schedule, step - 1, 6, 3)
        assert rate == pytest.approx(base * factor * config.schedule.factor**failures)
    plain = replace(config, pipelined=not config.is_pipelined)
    train_rank(Run(tmp_path / "other"), plain)
    assert_same_weights(Run(tmp_path / "other"), undisturbed, config, 0.0)


def fit(folder: Path, dataset: Path) -> None:
    for name in SCHEDULES:
        fit_until(Run(folder / name), scheduled(dataset, name), 8)


def test_schedules_go_on_at_another_world_size(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(number_rows=True).path
    on_two_ranks(tmp_path, fit, tmp_path / "two", dataset)
    for name in SCHEDULES:
        config, together, alone = scheduled(dataset, name), Run(tmp_path / "two" / name), Run(tmp_path / "one" / name)
        train_rank(together, config)
        train_rank(alone, config)
        assert_same_weights(together, alone, config, 1e-5)
