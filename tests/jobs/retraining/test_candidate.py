"""A candidate's window is made once, and again when a partition came late; its training is begun, resumed or over."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from features.disk.dataset import DatasetManifest
from features.disk.run_folder import RunFolder
from jobs.cli.config import parse_config
from jobs.retraining.candidate import Candidate
from jobs.retraining.retrain_folder import RetrainFolder
from jobs.retraining.todo import Todo
from tests.stand_ins.tiny_dataset import TINY_FEATURES, write_tiny_dataset

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
    second = Candidate(place, Todo((), DAYS[:1], DAYS[2], False, DAYS[1]), DAYS[2], None)
    made = second.join()
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
