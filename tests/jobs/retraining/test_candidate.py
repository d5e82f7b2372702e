"""A candidate's window is made once, and again when a partition came late; its training is begun, resumed or over."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.disk.dataset import DatasetManifest
from features.disk.run_folder import ARTIFACT_FOLDER, LEARNT_NAME, RunFolder
from features.learnt import Learnt
from jobs.cli.config import parse_config
from jobs.registry.model_versions import ModelVersion
from jobs.retraining.candidate import Candidate
from jobs.retraining.retrain_folder import RUN_TAG, RetrainFolder
from jobs.retraining.todo import Todo
from tests.stand_ins.tiny_dataset import TINY_FEATURES, write_tiny_dataset
from training.config import VectorsConfig
from training.fit.vectors import settle_vectors

DAYS = ("20240101", "20240102", "20240103")


@pytest.fixture
def place(tmp_path: Path) -> RetrainFolder:
    retrain = {"root": str(tmp_path), "partitions": "logs/{date}"}
    tree = {"pipeline": {"output": "unused"}, "training": {"dataset": "unused"}, "retrain": retrain}
    config = parse_config({**tomllib.loads(TINY_FEATURES), **tree})
    assert config.retrain is not None
    place = RetrainFolder(tmp_path, config, config.retrain)
    for number, day in enumerate(DAYS):
        write_tiny_dataset(place.partition(day), ((4 + number,),), (), (), seed=number)
    return place


def test_a_window_is_begun_again_when_a_day_came_late(place: RetrainFolder) -> None:
    first = Candidate(place, Todo((), DAYS[1:2], DAYS[2], False), DAYS[2], None)
    assert first.join().split("train").num_rows == 5
    first.run.mkdir(parents=True)
    first.join()
    assert first.run.exists()
    place.compared(DAYS[2]).mkdir(parents=True)
    second = Candidate(place, Todo((), DAYS[:1], DAYS[2], False, DAYS[1]), DAYS[2], None)
    made = second.join()
    assert not place.compared(DAYS[2]).exists()
    assert {name: split.num_rows for name, split in made.splits.items()} == {"train": 4, "valid": 5, "test": 6}
    assert DatasetManifest.load(second.window) == made and not second.run.exists()


def test_a_training_is_over_when_all_it_promised_is_there(
    place: RetrainFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calibration that failed leaves metrics: the next try trains on, and does not go to the gate without one."""
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr("jobs.retraining.candidate.run_module", lambda *command: started.append(command))
    candidate = Candidate(place, Todo((), DAYS[1:2], DAYS[2], False), DAYS[2], None)
    run = RunFolder(candidate.run)

    def is_resumed(**files: Any) -> bool:
        for name, content in files.items():
            run.write(f"{name}.json", content)
        started.clear()
        candidate.train()
        assert all(command[0] == "jobs.train" and "--resume" in command for command in started)
        return bool(started)

    candidate.train()
    assert len(started) == 1 and "--resume" not in started[0]
    platt = {"training": {"calibration": {"kind": "platt"}}}
    assert is_resumed(config=platt)
    assert is_resumed(metrics={"best_step": 8})
    assert is_resumed(calibration={"step": 4, "scale": 1.0, "offset": 0.0})
    assert not is_resumed(calibration={"step": 8, "scale": 1.0, "offset": 0.0})
    assert not is_resumed(config={"training": {"calibration": {"kind": "none"}}}, calibration=None)
    assert is_resumed(metrics=None) and is_resumed(metrics={})


def test_a_champion_with_vocabularies_of_its_own_is_of_other_features(place: RetrainFolder) -> None:
    """A rollback brings back a champion whose days were built again since, from another base."""
    champion = ModelVersion("ctr", 1, (), {RUN_TAG: "runs/before"}, "", "")
    place = replace(place, rules=replace(place.rules, other_features=True))
    candidate = Candidate(place, Todo((), DAYS[1:2], DAYS[2], True), DAYS[2], champion)
    candidate.join()
    before = RunFolder(place.root / "runs" / "before")
    before.path.mkdir(parents=True)
    before.write("config.json", {"features": place.config.to_dict()["features"]})
    for tokens, is_other in ((["mobile"], True), (["mobile", "tablet"], False), (["tablet", "mobile"], True)):
        Learnt({"device": tokens}).save(before.path / LEARNT_NAME)
        assert candidate.has_other_features is is_other
    assert not replace(candidate, champion=None).has_other_features
    Learnt({"device": ["mobile", "tablet"]}).save(before.path / LEARNT_NAME)
    before.write("config.json", {"features": {**place.config.to_dict()["features"], "carry": ["more"]}})
    assert candidate.has_other_features


def test_the_registry_gets_the_optimizer_that_the_run_had(place: RetrainFolder) -> None:
    candidate = Candidate(place, Todo((), DAYS[1:2], DAYS[2], False), DAYS[2], None)
    (candidate.run / ARTIFACT_FOLDER).mkdir(parents=True)
    (candidate.run / ARTIFACT_FOLDER / "artifact.json").write_text(json.dumps({"version": 1, "files": {}}))
    optimizer = {"kind": "dense", "learning_rate": 3e-3}
    assert place.config.training.optimizer.kind == "fused"
    RunFolder(candidate.run).write("config.json", {"training": {"dataset": "unused", "optimizer": optimizer}})
    candidate.register({"auc": 0.7})
    registry = place.registry()
    [version] = registry.list("ctr")
    params = registry.logged(version)[1]
    assert (params["training.kind"], params["training.learning_rate"]) == ("dense", "0.003")


def test_a_run_that_other_vectors_began_is_begun_anew(place: RetrainFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not go on: a run is refused another file of vectors."""
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr("jobs.retraining.candidate.run_module", lambda *command: started.append(command))
    path = place.root / "vectors.npz"
    np.savez(path, id=["mobile"], vector=[[1.0, 2.0]])
    vectors = {"text": VectorsConfig(path=str(path), feature="device")}
    training = place.config.training
    training = replace(training, from_data=(), model=replace(training.model, vectors=vectors))
    place = replace(place, config=replace(place.config, training=training))
    candidate = Candidate(place, Todo((), DAYS[1:2], DAYS[2], False), DAYS[2], None)
    settled = replace(training, model=settle_vectors(training.model))
    RunFolder(candidate.run).write("config.json", replace(place.config, training=settled).to_dict())
    candidate.train()
    assert "--resume" in started[-1] and candidate.run.exists()
    np.savez(path, id=["mobile", "tablet"], vector=[[1.0, 2.0], [3.0, 4.0]])
    candidate.train()
    assert "--resume" not in started[-1] and not candidate.run.exists()
