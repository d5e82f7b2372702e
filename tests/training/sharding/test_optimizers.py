"""Rates, optimizers and decay by part, against steps of SGD and Adam worked out by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import on_two_ranks
from tests.training.fit.test_run import assert_same_weights, evaluations, fit_until, losses, make_config, make_training
from training.config import (
    DenseOptimizer,
    FusedOptimizer,
    PartOptimizer,
    ShardingConfig,
    TableOptimizer,
    TrainingConfig,
)
from training.fit.loop import make_step
from training.fit.run import Run, train_rank
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError

PARTS = ("selection", "easy_encoder", "hard_encoder", "fusion")
SGD = {name: PartOptimizer("sgd", 1e-3) for name in ("embedding", "easy", "hard", "fusion")}
FUSED = FusedOptimizer("sgd", embedding_learning_rate=1e-3, parts=SGD)  # pyright: ignore[reportArgumentType]
SHARDINGS = {
    "sharded": ShardingConfig("row_wise"),
    "replicated": ShardingConfig("data_parallel"),
    "mixed": ShardingConfig("table_wise", {"user": "row_wise", "age": "data_parallel"}),
}


def weights(training: Any) -> dict[str, Tensor]:
    state = training.parallel.model.state_dict()
    return {n: (v.local_tensor() if hasattr(v, "local_tensor") else v).clone() for n, v in state.items()}


def moved(dataset: Path, **changes: Any) -> dict[str, Tensor]:
    """What one step adds to each weight."""
    training = make_training(dataset, make_config(dataset, clip_gradient_norm=None, **changes))
    before = weights(training)
    training.parallel.model.train()
    make_step(training)(next(iter(training.train_reader.batches(0))), 0)
    found = {n: v - before[n] for n, v in weights(training).items() if v.is_floating_point()}
    return {n: v for n, v in found.items() if "running" not in n}


def assert_ratios(ours: dict[str, Tensor], theirs: dict[str, Tensor], ratio_of: Any) -> None:
    ratios = {ratio_of(name) for name in ours}
    assert len(ratios) > 1
    for name, step in ours.items():
        torch.testing.assert_close(step, ratio_of(name) * theirs[name], rtol=1e-4, atol=5e-7)
    assert {ratio_of(name) for name, step in ours.items() if step.abs().max() > 1e-5} == ratios


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_table_and_a_part_have_rates_of_their_own(make_dataset, one_rank, sharding: str) -> None:
    dataset, place = make_dataset(number_rows=True).path, SHARDINGS[sharding]
    theirs = moved(dataset, optimizer=FUSED, sharding=place)
    tables = {"user": TableOptimizer(learning_rate=8e-3)}
    parts = FUSED.parts | {"hard": PartOptimizer("sgd", 4e-3)}
    ours = moved(dataset, optimizer=replace(FUSED, tables=tables, parts=parts), sharding=place)
    assert_ratios(ours, theirs, lambda name: 8 if ".user__" in name else 4 if name.startswith("hard_encoder") else 1)


def test_the_dense_lane_has_rates_by_part_too(make_dataset, one_rank) -> None:
    """Adam's first step is the rate's size, whatever the gradient."""
    dataset = make_dataset(number_rows=True).path
    lane = DenseOptimizer(embedding_learning_rate=2e-3, tables={"user": TableOptimizer(learning_rate=6e-3)})
    ours = moved(dataset, optimizer=replace(lane, parts={"easy": PartOptimizer(learning_rate=4e-3)}))
    theirs = moved(dataset, optimizer=DenseOptimizer())

    def ratio(name: str) -> int:
        if "embedding_bags" in name:
            return 6 if ".user__" in name else 2
        return 4 if name.startswith("easy_encoder") else 1

    assert_ratios(ours, theirs, ratio)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_table_may_have_another_optimizer(make_dataset, one_rank, sharding: str) -> None:
    """From the same gradients, row-wise Adagrad's first step differs from SGD's, for the named table alone."""
    dataset, place = make_dataset(number_rows=True).path, SHARDINGS[sharding]
    theirs = moved(dataset, optimizer=FUSED, sharding=place)
    tables = {"user": TableOptimizer("adagrad", 1e-2)}
    ours = moved(dataset, optimizer=replace(FUSED, tables=tables), sharding=place)
    for name, step in ours.items():
        if ".user__" in name:  # the first step of Adagrad is the rate times the gradient's sign
            gradient = -theirs[name] / 1e-3
            expected = -1e-2 * gradient / (gradient.abs() + 1e-8)
            kept = gradient.abs() > 1e-5
            assert kept.any()
            torch.testing.assert_close(step[kept], expected[kept], rtol=1e-3, atol=1e-6)
        else:
            torch.testing.assert_close(step, theirs[name], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("lane", [FusedOptimizer(), DenseOptimizer()], ids=lambda lane: lane.kind)
def test_weight_decay_is_decoupled_and_of_matrices(make_dataset, one_rank, lane: Any) -> None:
    dataset = make_dataset(number_rows=True).path
    before = weights(make_training(dataset, make_config(dataset)))
    theirs = moved(dataset, optimizer=lane)
    parts = {"hard": PartOptimizer(weight_decay=0.0), "fusion": PartOptimizer(weight_decay=0.25)}
    ours = moved(dataset, optimizer=replace(lane, weight_decay=0.5, parts=parts))
    seen = set()
    for name, step in ours.items():
        decay = 0.0 if "embedding_bags" in name or name.startswith("hard_encoder") or before[name].ndim < 2 else 0.5
        decay = 0.25 if name.startswith("fusion") and decay else decay
        seen.add(decay)
        torch.testing.assert_close(step, theirs[name] - 1e-3 * decay * before[name], rtol=1e-4, atol=1e-7)
    assert seen == {0.0, 0.25, 0.5}


BY_PART: dict[str, FusedOptimizer | DenseOptimizer] = {
    "fused": FusedOptimizer(
        embedding_learning_rate=0.05,
        weight_decay=0.1,
        tables={"user": TableOptimizer("sgd", 0.5), "age": TableOptimizer("adagrad")},
        parts={"easy": PartOptimizer(learning_rate=5e-3), "fusion": PartOptimizer("adagrad", 1e-2)},
    ),
    "dense": DenseOptimizer(
        weight_decay=0.1,
        tables={"user": TableOptimizer(learning_rate=0.05)},
        parts={"hard": PartOptimizer("sgd", 1e-2), "fusion": PartOptimizer(weight_decay=0.0)},
    ),
}


def by_part(dataset: Path, lane: str) -> TrainingConfig:
    sharding = SHARDINGS["mixed"] if lane == "fused" else ShardingConfig()
    return make_config(dataset, optimizer=BY_PART[lane], sharding=sharding, max_epochs=2)


def fit(folder: Path, dataset: Path) -> None:
    for lane in BY_PART:
        fit_until(Run(folder / lane), by_part(dataset, lane), 8)


def test_parts_train_alike_at_any_world_size_and_resume(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset(number_rows=True).path
    on_two_ranks(tmp_path, fit, tmp_path / "two", dataset)
    for lane in BY_PART:
        config, together, alone = by_part(dataset, lane), Run(tmp_path / "two" / lane), Run(tmp_path / "one" / lane)
        train_rank(together, config)  # begun on two ranks
        train_rank(alone, config)
        assert losses(together) == pytest.approx(losses(alone), rel=1e-6), lane
        assert [e["learning_rate"] for e in evaluations(together)] == [1e-3, 1e-3]
        assert_same_weights(together, alone, config, 1e-5)


def test_a_warm_start_takes_rates_but_no_optimizer_of_another_kind(make_dataset, tmp_path: Path, one_rank) -> None:
    dataset = make_dataset().path
    config = make_config(dataset, max_epochs=1, warm_start=None)
    run = Run(tmp_path / "run")
    train_rank(run, config)
    found = checkpoint.best(run.checkpoints)
    parts = {"easy": PartOptimizer(learning_rate=5e-3, weight_decay=0.1)}
    training = make_training(dataset, replace(config, optimizer=replace(config.optimizer, parts=parts)))
    checkpoint.begin(found, training.parallel)
    assert training.parallel.learning_rates == [0.05, 5e-3, 1e-3]
    parts = {"easy": PartOptimizer("sgd")}
    training = make_training(dataset, replace(config, optimizer=replace(config.optimizer, parts=parts)))
    checkpoint.begin(found, training.parallel)  # SGD has no state
    parts = {"easy": PartOptimizer("adagrad")}
    training = make_training(dataset, replace(config, optimizer=replace(config.optimizer, parts=parts)))
    with pytest.raises(CheckpointError, match="does not load into this model"):
        checkpoint.begin(found, training.parallel)


def test_refusals_name_the_key(make_dataset, one_rank) -> None:
    dataset = make_dataset().path

    def build(**changes: Any) -> None:
        make_training(dataset, make_config(dataset, optimizer=FusedOptimizer(**changes)))

    with pytest.raises(ValueError, match=r"optimizer\.tables names unknown features: nobody"):
        build(tables={"nobody": TableOptimizer()})
    with pytest.raises(ValueError, match=r"optimizer\.parts\.selection: the model has no weights there"):
        build(parts={"selection": PartOptimizer()})
    with pytest.raises(ValueError, match="adam exists on CUDA only"):
        build(tables={"user": TableOptimizer("adam")})
    with pytest.raises(ValueError, match="in the dense lane a table may have a learning_rate"):
        DenseOptimizer(tables={"user": TableOptimizer("sgd")})
