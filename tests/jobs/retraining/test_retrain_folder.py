"""What a folder says of how far things are: what was built stays, what came late is known, who is at work is alone."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from features.disk.retrain_folder import RETRAIN_FORMAT
from features.log_format import LogFormat
from features.schema import Timestamp
from jobs.cli.config import parse_config
from jobs.cli.errors import ConfigError
from jobs.retraining.partitions import build_partitions, find_dates
from jobs.retraining.raw_partitions import RawPartition
from jobs.retraining.retrain_folder import RetrainFolder
from jobs.retraining.retraining import describe_todo
from tests.stand_ins.tiny_dataset import TINY_FEATURES, write_tiny_dataset

Open = Callable[..., RetrainFolder]


@pytest.fixture
def open_folder(tmp_path: Path) -> Open:
    """``open_folder(**rules)``: the folder of a log by the day, ``tmp_path/logs/DATE-*.csv``."""

    def make(**rules: str) -> RetrainFolder:
        retrain = {"root": str(tmp_path / "root"), "partitions": f"{tmp_path}/logs/{{date}}-*.csv", **rules}
        tree = {"pipeline": {"output": "unused"}, "training": {"dataset": "unused"}, "retrain": retrain}
        config = parse_config({**tomllib.loads(TINY_FEATURES), **tree})
        assert config.retrain is not None
        return RetrainFolder(tmp_path / "root", config, config.retrain)

    (tmp_path / "logs").mkdir()
    return make


def log(tmp_path: Path, *names: str) -> list[str]:
    paths = [tmp_path / "logs" / f"{name}.csv" for name in names]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


def build(place: RetrainFolder, name: str, files: list[str]) -> None:
    """A partition as if it had been built from these files."""
    path = place.partition(name)
    made = write_tiny_dataset(path, ((4,),), (), ()).manifest
    dataclasses.replace(made, inputs={"train": files}).write(path)


def test_what_came_late_is_known_and_built_if_wanted(open_folder: Open, tmp_path: Path) -> None:
    place, days = open_folder(), log(tmp_path, "20240101-a", "20240102-a")
    build(place, "20240101", days[:1])
    assert list(place.raw()) == ["20240101", "20240102"] and place.late() == {}
    late = log(tmp_path, "20240101-b")
    assert list(place.raw()) == ["20240101", "20240102"]
    assert place.late() == {"20240101+1": RawPartition({late[0]: None})}

    place = open_folder(late="build")
    assert place.raw()["20240101+1"] == RawPartition({late[0]: None})
    assert place.look(None, None).build == ("20240101+1", "20240102")
    build(place, "20240101+1", late)
    assert place.late() == {} and list(place.raw()) == ["20240101", "20240101+1", "20240102"]
    later = log(tmp_path, "20240101-c")
    assert place.late() == {"20240101+2": RawPartition({later[0]: None})}


def test_what_was_built_stays_when_its_raw_files_go(open_folder: Open, tmp_path: Path) -> None:
    place, days = open_folder(), log(tmp_path, "20240101-a", "20240102-a", "20240103-a")
    for day in days[:2]:
        build(place, Path(day).name[:8], [day])
        Path(day).unlink()
    assert list(place.raw()) == ["20240101", "20240102", "20240103"] and place.late() == {}
    todo = place.look(None, None)
    assert (todo.build, todo.train, todo.test) == (("20240103",), ("20240101", "20240102"), "20240103")
    Path(days[2]).unlink()
    with pytest.raises(ValueError, match="no partition is there: nothing matches"):
        place.raw()


def test_dates_of_another_kind_need_another_folder(open_folder: Open, tmp_path: Path) -> None:
    place, days = open_folder(), log(tmp_path, "202402-a")
    build(place, "20240101", days)
    with pytest.raises(ValueError, match="has partitions such as 20240101 and 202402: choose another root"):
        place.raw()


def test_two_at_once(open_folder: Open) -> None:
    place = open_folder()
    with place.alone(), pytest.raises(ValueError, match="another retraining is at work"), open_folder().alone():
        pass
    with place.alone():
        pass


def test_files_are_known_by_the_name_that_spark_gives_them(open_folder: Open, tmp_path: Path) -> None:
    file = log(tmp_path, "clicks")[0]
    place = open_folder(partitions=f"{tmp_path}/logs/../logs/*.csv", partition_by="day")
    assert place.undated_files() == (file,)


def test_a_dry_run_refuses_a_folder_of_a_newer_version(open_folder: Open, tmp_path: Path) -> None:
    place = open_folder()
    log(tmp_path, "20240101-a", "20240102-a")
    assert "would build and check 20240101, 20240102" in describe_todo(place, None)
    place.write(place.version_file, {"version": RETRAIN_FORMAT.version + 1})
    with pytest.raises(ValueError, match="was made by a newer version of twinfocus"):
        describe_todo(place, None)
    assert [path.name for path in place.root.iterdir()] == ["retrain.json"]


def test_what_no_partition_can_be_built_of_is_refused_before_spark_starts(open_folder: Open, tmp_path: Path) -> None:
    place, [file] = open_folder(), log(tmp_path, "20240101-a")
    pipeline, features = place.config.pipeline, place.config.features
    of_table = dataclasses.replace(pipeline.input, format=LogFormat("delta"))
    config = dataclasses.replace(place.config, pipeline=dataclasses.replace(pipeline, input=of_table))
    with pytest.raises(ConfigError, match="a retraining takes files by their dates, and not all files of a Delta"):
        build_partitions(dataclasses.replace(place, config=config), {"20240101": RawPartition({file: None})})
    place = open_folder(partition_by="day", partitions=f"{tmp_path}/logs/*.csv")
    timed = dataclasses.replace(features, timestamp=Timestamp("t", "yyyy E"))
    config = dataclasses.replace(place.config, features=timed)
    with pytest.raises(ConfigError, match=r"'features\.timestamp\.format': time pattern 'yyyy E'"):
        find_dates(dataclasses.replace(place, config=config), [file])
