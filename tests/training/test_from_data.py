"""Settings that follow from the data: open keys, the rules, and how a run keeps what it began with."""

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.disk.dataset import DatasetManifest
from features.disk.run_folder import RunError
from jobs.cli.config import Config, parse_config
from jobs.cli.errors import ConfigError
from jobs.launch.run_guard import prepare_run
from tests.stand_ins.tiny_dataset import TINY_FEATURES
from training.config import MLPEncoder, TrainingConfig
from training.fit.run import Run, settle_training, train_rank
from training.from_data import RULES, WELL_KNOWN, choose, open_keys, with_chosen
from training.judge.calibration import Calibration
from training.ship.export import export, load_best

MakeDataset = Callable[..., Any]


def config_of(dataset: Path, **training: Any) -> Config:
    """A config as a user writes it."""
    tree = {**tomllib.loads(TINY_FEATURES), "pipeline": {"output": str(dataset)}, "training": training}
    return parse_config(tree)


def settled(config: TrainingConfig, manifest: DatasetManifest) -> TrainingConfig:
    """The config with everything that it leaves open chosen from the data."""
    return settle_training(config, manifest)[0]


def with_rows(manifest: DatasetManifest, rows: int, rate: float = 0.25) -> DatasetManifest:
    """The manifest of a training split of so many rows."""
    train = manifest.splits["train"]
    file = dataclasses.replace(train.files[0], row_groups=(rows,))
    split = dataclasses.replace(train, files=(file,), label_rate=rate)
    return dataclasses.replace(manifest, splits={**manifest.splits, "train": split})


def with_ids(manifest: DatasetManifest, num_ids: int) -> DatasetManifest:
    """The manifest of features that have so many values in all."""
    train = manifest.splits["train"]
    first, *others = train.sparse
    sparse = {name: dataclasses.replace(train.sparse[name], cardinality=0, max_id=0) for name in others}
    sparse[first] = dataclasses.replace(train.sparse[first], cardinality=num_ids, max_id=0)
    split = dataclasses.replace(train, sparse=sparse)
    return dataclasses.replace(manifest, splits={**manifest.splits, "train": split})


def test_nothing_set_leaves_every_rule_open() -> None:
    assert open_keys({}) == tuple(RULES)
    assert config_of(Path("d")).training.from_data == tuple(RULES)


@pytest.mark.parametrize(
    ("training", "closed"),
    [
        ({"global_batch_size": 64}, {"global_batch_size"}),
        ({"model": {"base_logit": 0.0}}, {"model.base_logit"}),
        ({"model": {"embedding_dim": 8}}, {"model.easy", "model.hard"}),
        ({"optimizer": {"embedding_l2": 0.0}}, {"optimizer"}),
        ({"schedule": {"patience": 1}, "evaluation": {}}, {"schedule", "evaluation"}),
        ({"monitor": {"auc": 1.0}, "seed": 3}, {"monitor"}),
    ],
)
def test_what_is_set_is_not_chosen(training: dict[str, Any], closed: set[str]) -> None:
    assert set(RULES) - set(config_of(Path("d"), **training).training.from_data) == closed


def test_a_config_may_keep_the_fixed_defaults() -> None:
    config = config_of(Path("d"), from_data=[]).training
    assert config == TrainingConfig(dataset="d")
    with pytest.raises(ConfigError, match="'seed' is none of global_batch_size"):
        config_of(Path("d"), from_data=["seed"])


def test_a_resolved_config_keeps_what_is_open() -> None:
    config = config_of(Path("d"), seed=5)
    again = parse_config(json.loads(json.dumps(config.to_dict())), "a file")
    assert again == config and again.training.from_data


def test_a_saved_config_of_an_earlier_version_leaves_nothing_open() -> None:
    tree = config_of(Path("d")).to_dict()
    del tree["training"]["from_data"]
    assert parse_config(tree, "a run").training.from_data == ()


@pytest.mark.parametrize("rows", [1, 40, 7_000, 100_000, 390_120, 10**9])
@pytest.mark.parametrize("num_ids", [10, 100_000])
def test_batches(make_dataset: MakeDataset, rows: int, num_ids: int) -> None:
    manifest = with_ids(with_rows(make_dataset().manifest, rows), num_ids)
    config = settled(config_of(Path("d")).training, manifest)
    steps, least, largest = (40, 512, 8192) if config.optimizer.kind == "dense" else (280, 256, 4096)
    size = config.global_batch_size
    assert size in (least, largest) or (least < size < largest and 0.7 < rows / size / steps < 1.5)


def test_batches_are_shared_out_among_streams(make_dataset: MakeDataset) -> None:
    config = config_of(Path("d"), reader={"num_streams": 3}, evaluation_batch_size=300).training
    assert settled(config, make_dataset().manifest).global_batch_size % 3 == 0


@pytest.mark.parametrize(
    ("rows", "num_ids", "kind"),
    [
        (202_027, 5_382, "dense"),
        (70_000, 25_000, "fused"),
        (1_000, round(1_000 / WELL_KNOWN), "dense"),
        (1_000, round(1_000 / WELL_KNOWN) + 1, "fused"),
        (10**9, 10**7, "fused"),  # well known, but too many for a pass over all of them a step
    ],
)
def test_how_well_ids_are_known_decides(make_dataset: MakeDataset, rows: int, num_ids: int, kind: str) -> None:
    manifest = with_ids(with_rows(make_dataset().manifest, rows), num_ids)
    config = settled(config_of(Path("d")).training, manifest)
    assert isinstance(config.model.hard, MLPEncoder)
    assert (config.optimizer.kind, config.model.hard.batch_norm) == (kind, kind == "dense")
    assert bool(config.optimizer.embedding_l2) == (rows < 10**9)


@pytest.mark.parametrize("rate", [0.0023, 0.57])
def test_the_first_prediction_is_the_label_rate(make_dataset: MakeDataset, rate: float) -> None:
    config = settled(config_of(Path("d")).training, with_rows(make_dataset().manifest, 1_000, rate))
    assert 1 / (1 + math.exp(-config.model.base_logit)) == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_split_of_one_class_has_no_log_odds(make_dataset: MakeDataset, rate: float) -> None:
    assert settled(config_of(Path("d")).training, with_rows(make_dataset().manifest, 1_000, rate)).model.base_logit == 0


def test_without_validation_there_is_one_epoch_and_no_calibration(make_dataset: MakeDataset) -> None:
    manifest = make_dataset().manifest
    alone = dataclasses.replace(manifest, splits={"train": manifest.splits["train"]})
    config = settled(config_of(Path("d")).training, alone)
    assert config.max_epochs == 1 and config.calibration.kind == "none"
    assert settled(config_of(Path("d")).training, manifest).calibration.kind == "platt"


def test_reasons_are_lines_of_a_config(make_dataset: MakeDataset) -> None:
    config = config_of(Path("d")).training
    chosen = choose(config, make_dataset().manifest)
    tree: Any = tomllib.loads("\n".join(map(str, chosen)))
    written = parse_config({**config_of(Path("d")).to_dict(), "training": {"from_data": [], **tree["training"]}})
    assert written.training == dataclasses.replace(with_chosen(config, chosen), from_data=())


def test_a_run_keeps_what_it_began_with(make_dataset: MakeDataset, tmp_path: Path, one_rank: Any) -> None:
    dataset = make_dataset(valid=((64,),))
    config, path = config_of(dataset.path, max_epochs=1), tmp_path / "run"
    path.mkdir()
    begun = prepare_run(path, config, resume=False)
    run = Run(path)
    chosen = {entry["key"]: entry for entry in run.read("chosen.json")}
    assert "max_epochs" not in chosen and "rows" in chosen["global_batch_size"]["reason"]
    assert begun.training.from_data == () and run.config() == begun.training
    assert isinstance(begun.training.model.hard, MLPEncoder) and begun.training.model.hard.hidden_units[0] > 8
    train_rank(run, begun.training, schema=begun.features)

    saved = run.read("config.json")
    saved["training"]["model"]["base_logit"] = 0.125  # as other rules or other rows would have chosen
    run.write("config.json", saved)
    assert prepare_run(path, config, resume=True).training.model.base_logit == 0.125

    warm = tmp_path / "warm"
    warm.mkdir()
    following = prepare_run(warm, config_of(dataset.path, warm_start=str(path), max_epochs=2), resume=False).training
    assert following.model.base_logit == 0.125 and following.max_epochs == 2


def trained(path: Path, config: Config) -> tuple[Run, Config]:
    """A run as jobs.train leaves it, and its settled config."""
    path.mkdir()
    config = prepare_run(path, config, resume=False)
    train_rank(Run(path), config.training, schema=config.features)
    return Run(path), config


@pytest.mark.parametrize("valid", [((64,),), ()])
def test_what_nothing_set_trains_can_be_served(
    make_dataset: MakeDataset, tmp_path: Path, one_rank: Any, valid: Any
) -> None:
    """The tiny labels are noise, so no calibration helps; without validation there is none to fit."""
    dataset = make_dataset(valid=valid)
    calibration = {"kind": "platt", "only_where_it_helps": True}
    run, _ = trained(tmp_path / "run", config_of(dataset.path, max_epochs=1, calibration=calibration))
    assert run.is_finished
    best = load_best(run)
    log = tmp_path / "log.csv"
    log.write_text("click,importance,user,genres,device,age,row,price\n1,1,u1,a|b,phone,20,1,2.5\n", encoding="utf-8")
    predictor = export(run, tmp_path / "artifact", str(log))
    assert predictor.calibration == best.calibration
    assert valid or best.calibration == Calibration()


def test_a_warm_start_begins_with_the_same_constant(make_dataset: MakeDataset, tmp_path: Path, one_rank: Any) -> None:
    dataset = make_dataset(valid=((64,),))
    run, config = trained(tmp_path / "run", config_of(dataset.path, max_epochs=1))
    assert config.training.model.base_logit
    again = dataclasses.replace(config.training, warm_start=str(run.path))
    model = dataclasses.replace(again.model, base_logit=0.0)
    (tmp_path / "warm").mkdir()
    other = dataclasses.replace(config, training=dataclasses.replace(again, model=model))
    with pytest.raises(RunError, match=r"training\.model\.base_logit is 0 and .* would begin off by the difference"):
        prepare_run(tmp_path / "warm", other, resume=False)
    prepare_run(tmp_path / "warm", dataclasses.replace(config, training=again), resume=False)


def test_resume_keeps_what_sampled_negatives_stand_for(
    make_dataset: MakeDataset, tmp_path: Path, one_rank: Any
) -> None:
    run, config = trained(tmp_path / "run", config_of(make_dataset(valid=((64,),)).path, max_epochs=1))
    other = dataclasses.replace(config.training, sampled_negatives="weights")
    with pytest.raises(ConfigError, match=r"cannot change training\.sampled_negatives"):
        prepare_run(run.path, dataclasses.replace(config, training=other), resume=True)
