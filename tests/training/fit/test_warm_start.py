"""A run that begins where another ended, with tables that may have grown; and datasets that know more than a model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.disk.dataset import DatasetError
from features.disk.run_folder import RunError
from features.disk.window import join
from jobs.cli.config import parse_config
from jobs.launch.run_guard import prepare_run
from tests.ranks import on_two_ranks
from tests.training.fit.test_run import LANES, make_config
from training.config import FMEncoder, MLPEncoder, ModelConfig, ShardingConfig, TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.loop import Progress, Training, make_step, train
from training.fit.run import Run, build_model, train_rank
from training.sharding import checkpoint
from training.sharding.checkpoint_reader import CheckpointError
from training.sharding.parallelize import ParallelModel, parallelize
from training.ship.export import export, load_best

DEVICE = torch.device("cpu")


@pytest.fixture
def days(tmp_path: Path, make_dataset: Callable[..., Any]) -> list[Path]:
    """Two windows, of a day each and a day to look at; the second one's days know two devices more."""
    made = []
    for number, devices in enumerate(((), ("watch", "car"))):
        parts = [
            make_dataset(
                train=rows, valid=(), test=(), seed=10 * number + i, name=f"{number}-{i}", devices=devices
            ).path
            for i, rows in enumerate((((64, 32), (96,)), ((60,),)))
        ]
        join({"train": parts[:1], "valid": parts[1:]}, tmp_path / f"window-{number}")
        made.append(tmp_path / f"window-{number}")
    return made


def finish(path: Path, config: TrainingConfig) -> Run:
    """A run as jobs.train leaves it."""
    opened = Dataset.open(config.dataset)
    tree = {"features": opened.manifest.schema, "pipeline": {"output": "unused"}, "training": config}
    path.mkdir()
    prepare_run(path, parse_config(tree), resume=False)
    run = Run(path)
    train_rank(run, config)
    return run


def test_a_run_that_goes_on_is_not_finished(days, tmp_path: Path, one_rank) -> None:
    """Metrics of an earlier end would make a training that is killed later look like a whole one."""
    config = make_config(days[0], max_epochs=1)
    run = finish(tmp_path / "run", config)
    assert run.is_finished
    longer = replace(config, max_epochs=2)
    tree = {**run.read("config.json"), "training": longer}
    prepare_run(run.path, parse_config(tree), resume=True)
    assert not run.is_finished and not (run.path / "metrics.json").exists()
    train_rank(run, longer)
    assert run.is_finished and run.read("metrics.json")["train"]["epochs"] == 2


def begun(dataset: Path, config: TrainingConfig, run: Run) -> tuple[ParallelModel, Training]:
    config = replace(config, dataset=str(dataset))
    opened = Dataset.open(dataset)
    parallel = parallelize(build_model(opened, config, torch.device("meta")), config, DEVICE)
    found = checkpoint.best(run.checkpoints)
    checkpoint.begin(found, parallel)
    return parallel, Training(parallel, config, Reader(opened, "train", config), None, DEVICE, dataset / "none")


@pytest.mark.parametrize("lane", ["row_wise", "column_wise", "averaged dense"])
def test_rows_keep_their_weights_and_new_ones_are_fresh(days, tmp_path: Path, one_rank, lane: str) -> None:
    config = make_config(days[0], **LANES[lane], max_epochs=1)
    run = finish(tmp_path / "first", config)
    parallel, _ = begun(days[1], config, run)
    fresh = parallelize(
        build_model(Dataset.open(days[1]), config, torch.device("meta")), replace(config, dataset=str(days[1])), DEVICE
    )
    saved = load_best(run).model
    raw = build_model(Dataset.open(days[0]), config, DEVICE)
    state = {"model": raw.state_dict()}
    checkpoint._load(checkpoint.best(run.checkpoints), state)
    whole = tmp_path / "whole"
    checkpoint.save(whole, 1, parallel, {})
    checkpoint.save(whole, 2, fresh, {})
    grown = [build_model(Dataset.open(days[1]), config, DEVICE) for _ in range(2)]
    for number, model in enumerate(grown, start=1):
        model_state = {"model": model.state_dict()}
        checkpoint._load(checkpoint.open_checkpoint(whole, number), model_state)
    assert saved.state_dict().keys() == grown[0].state_dict().keys()
    for name, before in raw.state_dict().items():
        now, untrained = grown[0].state_dict()[name], grown[1].state_dict()[name]
        if "device__" not in name:
            assert torch.equal(now, before), name
            continue
        assert (len(before), len(now)) == (4, 6)
        assert torch.equal(now[:4], before) and torch.equal(now[4:], untrained[4:])
        assert bool(now[4:].any()) and not torch.equal(before[1:], untrained[1:4])


def test_the_optimizer_goes_on_too(days, tmp_path: Path, one_rank) -> None:
    """On the same dataset, a step after a warm start is the step that the first run would have done next."""
    config = make_config(days[0], **LANES["row_wise"], max_epochs=1)
    run = finish(tmp_path / "first", config)
    parallel, training = begun(days[0], config, run)
    batch = next(iter(training.train_reader.batches(5)))
    make_step(training)(batch, 3)
    resumed = parallelize(build_model(Dataset.open(days[0]), config, torch.device("meta")), config, DEVICE)
    checkpoint.restore_checkpoint(checkpoint.best(run.checkpoints), resumed)
    make_step(replace_parallel(training, resumed))(batch, 3)
    ours, theirs = ({n: v for n, v in p.model.named_parameters()} for p in (parallel, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def replace_parallel(training: Training, parallel: ParallelModel) -> Training:
    return Training(parallel, training.config, training.train_reader, None, DEVICE, training.checkpoints)


def test_learning_rates_are_the_new_runs_own(days, tmp_path: Path, one_rank) -> None:
    config = make_config(days[0], max_epochs=1)
    run = finish(tmp_path / "first", config)
    slow = replace(config, optimizer=replace(config.optimizer, embedding_learning_rate=0.001, learning_rate=0.0007))
    parallel, training = begun(days[1], slow, run)
    assert parallel.learning_rates == [0.001, 0.0007]
    list(train(training, Progress(), make_step(training)))
    assert parallel.learning_rates == [0.001, 0.0007]


def fit_warm(run: Run, config: TrainingConfig) -> None:
    train_rank(run, config)


def test_two_ranks_begin_as_one_does(days, tmp_path: Path, one_rank) -> None:
    """And a run that is stopped goes on from its own checkpoint, not from the other run's."""
    changes = {"sharding": ShardingConfig("row_wise", {"device": "table_wise"}), "max_epochs": 1}
    first = finish(tmp_path / "first", make_config(days[0], **changes))
    config = make_config(days[1], **changes, warm_start=str(first.path))
    alone, together = Run(tmp_path / "alone"), Run(tmp_path / "together")
    train_rank(alone, config)
    on_two_ranks(tmp_path, fit_warm, together, config)
    ours, theirs = (run.read("metrics.json") for run in (alone, together))
    assert theirs["train"]["loss"] == pytest.approx(ours["train"]["loss"], rel=1e-5)
    assert theirs["valid"]["logloss"] == pytest.approx(ours["valid"]["logloss"], rel=1e-5)
    train_rank(alone, replace(config, max_epochs=2))
    assert alone.read("metrics.json")["train"]["rows"] == 2 * 192


def test_a_warm_start_learns_more_than_a_cold_one(tmp_path: Path, one_rank, make_dataset: Callable[..., Any]) -> None:
    model = ModelConfig(embedding_dim=8, embedding_init_std=0.05, easy=FMEncoder(), hard=MLPEncoder((16,), dropout=0.0))
    windows = [make_dataset(((300,),) * 4, ((600,),), name=name, seed=seed).path for seed, name in enumerate("ab")]
    config = make_config(windows[0], model=model, global_batch_size=128, max_epochs=6)
    first = finish(tmp_path / "first", config)
    runs = {}
    for start in (None, str(first.path)):
        short = replace(config, dataset=str(windows[1]), max_epochs=1, warm_start=start)
        runs[start] = train_rank(Run(tmp_path / f"warm={start is not None}"), short)["valid"]["auc"]
    assert runs[str(first.path)] > max(0.75, runs[None] + 0.05)


def test_a_model_scores_a_dataset_that_knows_more(days, tmp_path: Path, one_rank) -> None:
    """What it does not know is out of its vocabulary: as if the rows had been encoded for it."""
    run = finish(tmp_path / "first", make_config(days[0], max_epochs=1))
    ahead = load_best(run, Dataset.open(days[1]))
    scores = ahead.score("train")
    reader = Reader(ahead.dataset, "train", ahead.config)
    devices = np.concatenate([b.sparse_features["device"].values().numpy() for b in reader.batches(0)])
    own = Dataset.open(days[1])
    known = np.concatenate(
        [b.sparse_features["device"].values().numpy() for b in Reader(own, "train", ahead.config).batches(0)]
    )
    assert set(known) == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(devices, np.where(known > 3, 3, known))
    assert len(scores.logits) == 192 and np.isfinite(scores.logits).all()
    assert ahead.dataset.learnt == Dataset.open(days[0]).learnt


def test_what_cannot_begin(days, tmp_path: Path, one_rank, make_dataset: Callable[..., Any]) -> None:
    run = finish(tmp_path / "first", make_config(days[1], max_epochs=1))
    backwards = make_config(days[0], warm_start=str(run.path))
    with pytest.raises(DatasetError, match=r"built with other vocabularies.*does not go on with them"):
        train_rank(Run(tmp_path / "backwards"), backwards)
    other = make_dataset(weight=False, name="other").path
    with pytest.raises(RunError, match=r"training\.warm_start: .* another feature schema"):
        train_rank(Run(tmp_path / "other-run"), make_config(other, warm_start=str(run.path)))
    with pytest.raises(RunError, match="is not a usable run"):
        train_rank(Run(tmp_path / "nothing"), make_config(days[1], warm_start=str(tmp_path / "nobody")))
    wide = make_config(days[1], warm_start=str(run.path))
    wide = replace(wide, model=replace(wide.model, embedding_dim=16))
    with pytest.raises(CheckpointError, match="does not load into this model"):
        train_rank(Run(tmp_path / "wide"), wide)


def test_an_artifact_of_a_dataset_ahead_is_the_models_own(days, tmp_path: Path, one_rank) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,genres,device,age,row,price\n1,g|h,car,20,0.5,1\n2,,watch,40,0.1,2\n3,g,tablet,,0,3\n")
    run = finish(tmp_path / "first", make_config(days[0], max_epochs=1))
    predictor = export(run, tmp_path / "artifact", str(log))
    rows = [
        {"user": "1", "genres": "g|h", "device": d, "age": "20", "row": "0.5", "price": "1"} for d in ("car", "boat")
    ]
    first, second = predictor.predict(rows)
    assert first == second
