"""StepTimes on real steps: every part is seen, the parts add up, and what is slow shows."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.ranks import on_two_ranks
from tests.training.fit.test_run import make_config
from training.config import DenseOptimizer, ShardingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.loop import Progress, Training, make_step, train
from training.fit.run import build_model
from training.fit.step_times import STEP_PARTS
from training.sharding.parallelize import parallelize
from training.sharding.tables import embedding_of

CPU = torch.device("cpu")


def start(path: Path, checkpoints: Path, **changes: Any) -> Training:
    config = make_config(path, max_epochs=1, **changes)
    dataset = Dataset.open(path)
    model = build_model(dataset, config, torch.device("meta"))
    reader = Reader(dataset, "train", config, rank=dist.get_rank(), world_size=dist.get_world_size())
    return Training(parallelize(model, config, CPU), config, reader, None, CPU, checkpoints)


def run(training: Training) -> Progress:
    progress = Progress()
    list(train(training, progress, make_step(training)))
    return progress


def test_the_parts_make_up_the_time_of_the_steps(make_dataset, one_rank, tmp_path: Path) -> None:
    training = start(make_dataset().path, tmp_path / "checkpoints")
    progress = run(training)
    summary = training.times.summary()
    assert set(summary["shares"]) == set(STEP_PARTS)
    assert all(share > 0 for share in summary["shares"].values())
    assert sum(summary["shares"].values()) == pytest.approx(1)
    assert training.times.num_steps == progress.step + 1  # the last one found the reader empty
    # The rest of the loop's time is checkpoints and what is told of each step.
    assert 0 < sum(training.times.seconds.values()) <= progress.seconds["train"] + progress.seconds["checkpoint"]


def test_a_slow_part_shows(make_dataset, one_rank, tmp_path: Path) -> None:
    training = start(make_dataset().path, tmp_path / "checkpoints")
    check = training.train_reader.checker.to_columns

    def slow(*arguments):
        time.sleep(0.2)
        return check(*arguments)

    training.train_reader.checker.to_columns = slow
    run(training)
    assert training.times.seconds["input"] > 0.2  # at least the first row group is waited for
    assert training.train_reader.rows_per_second < 2_000

    training = start(make_dataset(name="again").path, tmp_path / "again")
    training.parallel.model.module.hard_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    progress = run(training)
    assert training.times.seconds["dense forward"] > 0.1 * progress.step


SHARDED = {"sharding": ShardingConfig("row_wise")}
LANES: dict[str, dict[str, Any]] = {
    "sharded": {**SHARDED, "pipelined": False},
    "pipelined": {**SHARDED, "pipelined": True},
    "replicated": {"optimizer": DenseOptimizer()},
}
LAG = 0.3


def lag_behind(path: Path, folder: Path) -> None:
    """Rank 1 is slow in its dense net; how the steps of both ranks went."""
    run(start(path, folder / "warm"))
    for lane, changes in LANES.items():
        training = start(path, folder / lane, **changes)
        if dist.get_rank() == 1:
            encoder = training.parallel.model.module.hard_encoder  # pyright: ignore
            encoder.register_forward_pre_hook(lambda *_: time.sleep(LAG))
        run(training)
        summary = training.times.summary()
        assert summary["communication"] == summary["shares"]["exchange"] + summary["shares"]["reduction"]
        (folder / f"{lane}-{dist.get_rank()}.json").write_text(json.dumps(training.times.seconds))


def lag_behind_in_backward(path: Path, folder: Path) -> None:
    """Rank 1 is slow to send its vectors' gradients, and rank 0 waits for them."""
    run(start(path, folder / "warm"))
    training = start(path, folder / "run", **SHARDED, pipelined=False)
    if dist.get_rank() == 1:
        embedding = embedding_of(training.parallel.model)
        embedding.register_forward_hook(lambda _module, _inputs, out: _slow_down(out[0]["hard"]))
    run(training)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(training.times.seconds))


def _slow_down(vectors: torch.Tensor) -> None:
    if vectors.requires_grad:
        vectors.register_hook(lambda _: time.sleep(LAG))


def test_waiting_for_gradients_of_vectors_is_no_work_of_the_tables(make_dataset, tmp_path: Path) -> None:
    on_two_ranks(tmp_path, lag_behind_in_backward, make_dataset().path, tmp_path)
    first = json.loads((tmp_path / "0.json").read_text())
    assert first["exchange"] > 0.5 * 6 * LAG
    assert first["table backward"] < LAG


def test_waiting_for_another_rank_is_communication(make_dataset, tmp_path: Path) -> None:
    on_two_ranks(tmp_path, lag_behind, make_dataset().path, tmp_path)
    for lane in LANES:
        first, second = (json.loads((tmp_path / f"{lane}-{rank}.json").read_text()) for rank in range(2))
        assert second["dense forward"] > 6 * LAG, lane
        # The first rank may itself be held up on a busy machine, and then has less to wait for.
        assert first["exchange"] + first["reduction"] > 0.5 * 6 * LAG, lane
        if lane == "replicated":  # no vector travels
            assert first["reduction"] > 0.5 * 6 * LAG
