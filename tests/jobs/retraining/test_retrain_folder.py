"""What a folder says of how far things are: what was built stays, what came late is known, who is at work is alone."""

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.disk.retrain_folder import RETRAIN_FORMAT
from features.log_format import LogError, LogFormat, Lookup
from features.raw_block import Wanted
from features.read.log_reader import LogReader
from features.schema import Timestamp
from jobs.cli.config import parse_config
from jobs.cli.errors import ConfigError
from jobs.retraining.file_states import read_state
from jobs.retraining.partitions import build_compared, build_partitions, config_of_compared, find_dates
from jobs.retraining.raw_partitions import RawPartition
from jobs.retraining.retrain_folder import RetrainFolder, still_trained_on
from jobs.retraining.retraining import describe_todo, retrain
from jobs.retraining.retry import Steps
from pipeline.config import WriteConfig
from tests.stand_ins.object_store import Bucket
from tests.stand_ins.tiny_dataset import TINY_FEATURES, write_tiny_dataset

Open = Callable[..., RetrainFolder]


@pytest.fixture
def open_folder(tmp_path: Path) -> Open:
    """``open_folder(**rules)``: the folder of a log by the day, ``tmp_path/logs/DATE-*.csv``."""

    def make(**rules: Any) -> RetrainFolder:
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
        build_partitions(
            dataclasses.replace(place, config=config), {"20240101": RawPartition({file: None})}, Steps(0, 0)
        )
    place = open_folder(partition_by="day", partitions=f"{tmp_path}/logs/*.csv")
    timed = dataclasses.replace(features, timestamp=Timestamp("t", "yyyy E"))
    config = dataclasses.replace(place.config, features=timed)
    with pytest.raises(ConfigError, match=r"'features\.timestamp\.format': time pattern 'yyyy E'"):
        find_dates(dataclasses.replace(place, config=config), [file])


def test_a_day_exists_when_its_mark_is_there(open_folder: Open, tmp_path: Path) -> None:
    for folder in ("day=2024-01-01/a", "day=2024-01-01/b", "day=2024-01-02"):
        (tmp_path / "logs" / folder).mkdir(parents=True)
        (tmp_path / "logs" / folder / "part.csv").touch()
    place = open_folder(partitions=f"{tmp_path}/logs/day={{date}}/", ready="_DONE")
    assert list(place.raw()) == [] and place.look(None, None).build == ()
    first, second = (tmp_path / "logs" / f"day=2024-01-0{day}" for day in (1, 2))
    assert place.unready() == {"20240101": f"{first} has no _DONE yet", "20240102": f"{second} has no _DONE yet"}
    (first / "_DONE").touch()
    assert list(place.raw()) == ["20240101"] and list(place.unready()) == ["20240102"]
    with pytest.raises(ValueError, match=r"is in none: use retrain\.min_age_seconds"):
        log(tmp_path, "20240103-a")
        open_folder(ready="_DONE").raw()
    with pytest.raises(ConfigError, match=r"with retrain.partition_by = 'day' a date has none"):
        open_folder(partitions=str(tmp_path), partition_by="day", ready="_DONE")


def test_a_day_exists_when_its_files_are_left_alone(open_folder: Open, tmp_path: Path) -> None:
    place = open_folder(min_age_seconds=3_600)
    old, young = map(Path, log(tmp_path, "20240101-a", "20240102-a"))
    os.utime(old, (1, 1))
    assert list(place.raw()) == ["20240101"]
    assert place.unready() == {"20240102": f"{young} changed less than 3600 s ago"}
    rows = open_folder(partitions=f"{tmp_path}/logs/*.csv", partition_by="day", min_age_seconds=3_600)
    assert rows.undated_files() == (str(old),)


def build_now(place: RetrainFolder, name: str, files: list[str], base: Path | None = None) -> Path:
    """A partition as if it had been built just now."""
    path = place.next_partition(name)
    made = write_tiny_dataset(path, ((4,),), (), ()).manifest
    states = tuple(state for state in map(read_state, files) if state is not None)
    config = {"pipeline": {"base": None if base is None else str(base)}}
    dataclasses.replace(made, inputs={"train": files}, input_files=states, config=config).write(path)
    return path


def test_files_that_change_after_a_build_are_told(open_folder: Open, tmp_path: Path) -> None:
    place = open_folder(window=2)
    days = log(tmp_path, "20240101-a", "20240102-a", "20240102-b", "20240103-a", "20240104-a")
    for name in ("20240101", "20240102", "20240103", "20240104"):
        build_now(place, name, [day for day in days if f"{name}-" in day])
    assert place.changed_files() == {} and place.look(None, None).build == ()
    Path(days[0]).unlink()  # old logs are deleted
    Path(days[1]).write_text("more")
    Path(days[2]).unlink()
    os.utime(days[3], (5, 5))
    Path(days[4]).unlink()
    assert place.changed_files() == {
        "20240102": {days[1]: "has 4 bytes, 0 when it was built", days[2]: "is gone"},
        "20240103": {days[3]: "was written again since it was built"},
        "20240104": {days[4]: "is gone"},
    }
    assert place.look(None, None).build == (), "they are told, and no more"
    again = open_folder(changed="rebuild", window=2)
    assert again.look(None, None).build == ("20240102", "20240103")
    assert dict(again.raw()["20240102"].files) == {days[1]: None}
    for name, word in (("20240102", "stop"), ("20240103", "ok")):
        place.write(place.checks_file(name), {"level": word, "results": []})
    assert place.look(None, None).build == ("20240102",), "no model has seen a day that was stopped"


def test_what_is_built_again_goes_on_with_the_newest(open_folder: Open, tmp_path: Path) -> None:
    place, days = open_folder(), log(tmp_path, "20240101-a", "20240102-a")
    first = build_now(place, "20240101", days[:1])
    second = build_now(place, "20240102", days[1:], first)
    assert (place.last_built(), place.built()) == (second, ["20240101", "20240102"])
    again = build_now(place, "20240101", days[:1], second)
    assert again.name == "20240101~1" and place.partition("20240101") == again
    assert (place.last_built(), place.built()) == (again, ["20240101", "20240102"])
    assert place.leftovers() == [first] and place.num_rebuilds("20240101") == 1
    third = build_now(place, "20240101", days[:1], again)
    assert (third.name, place.last_built()) == ("20240101~2", third)
    (place.root / "partitions" / "20240101~3").mkdir()  # of a build that was killed
    assert place.partition("20240101") == third and place.half_built() == []
    assert place.next_partition("20240101").name == "20240101~3"
    assert still_trained_on(place, ["20240101", "20240102"], {}) == ["20240102"]
    assert still_trained_on(place, ["20240101", "20240102"], {"20240101": 2}) == ["20240101", "20240102"]
    other = open_folder()
    schema = dataclasses.replace(other.config.features, carry=("more",))
    other = dataclasses.replace(other, config=dataclasses.replace(other.config, features=schema))
    with pytest.raises(ConfigError, match=r"built from other features, .* set retrain\.other_features = true"):
        other.last_built()


def test_what_cannot_be_read_waits_until_something_changes(open_folder: Open, tmp_path: Path) -> None:
    place, days = open_folder(), log(tmp_path, "20240101-a", "20240102-a")
    record = {"reason": "it is damaged", "seen": place.seen(place.raw()["20240101"])}
    checks = {"level": "stop", "results": [], "build": None, "unreadable": record}
    place.write(place.checks_file("20240101"), json.loads(json.dumps(checks)))
    assert place.unreadable() == {"20240101": "it is damaged"}
    assert place.look(None, None).build == ("20240102",) and not place.is_checked("20240101")
    os.utime(days[0], (7, 7))
    assert place.look(None, None).build == ("20240101", "20240102")
    os.utime(days[0], ns=(0, record["seen"]["files"][days[0]][1]))
    assert place.look(None, None).build == ("20240102",)
    pipeline = dataclasses.replace(place.config.pipeline, write=WriteConfig(min_files=7))
    other = dataclasses.replace(place, config=dataclasses.replace(place.config, pipeline=pipeline))
    assert other.look(None, None).build == ("20240101", "20240102"), "the config may have been what was wrong"
    log(tmp_path, "20240101-b")
    assert place.look(None, None).build == ("20240101", "20240102")
    place.checks_file("20240101").unlink()
    assert place.look(None, None).build == ("20240101", "20240102") and place.unreadable() == {}


def test_what_a_store_has_no_more_is_gone(open_folder: Open, bucket: Bucket) -> None:
    place = open_folder(partitions=f"{bucket.url}/logs/{{date}}.csv", window=1)
    days = [f"{bucket.url}/logs/{day}.csv" for day in ("20240101", "20240102")]
    for number, file in enumerate(days):
        bucket.write(file.removeprefix(f"{bucket.url}/"), b"rows")
        build_now(place, f"2024010{number + 1}", [file])
    assert place.changed_files() == {}
    bucket.direct.delete_file(days[0].removeprefix("s3://"))
    assert place.changed_files() == {} and place.look(None, None).build == (), "old logs are deleted"
    bucket.write("logs/20240103.csv", b"rows")
    bucket.direct.delete_file(days[1].removeprefix("s3://"))
    assert place.changed_files() == {"20240102": {days[1]: "is gone"}}
    assert read_state("s3://no-such-bucket-at-all/x.csv") is None
    pipeline = place.config.pipeline
    tables = tuple(Lookup(path, "user", LogFormat()) for path in (f"{bucket.url}/users.csv", "users.csv"))
    joined = dataclasses.replace(pipeline, input=dataclasses.replace(pipeline.input, lookups=tables))
    place = dataclasses.replace(place, config=dataclasses.replace(place.config, pipeline=joined))
    assert [*place.seen(RawPartition({days[0]: None}))["files"]] == [str(Path("users.csv").absolute()), days[0]]
    reader = LogReader(LogFormat(), tables[:1], Wanted(("user",)), place.config.features.values)
    with pytest.raises(LogError, match="neither there, and a table in a store is not read: copy it to a disk"):
        reader.find_tables(days[0])
    with pytest.raises(LogError, match=r"neither there nor beside the log at /logs/users\.csv, and a table in a store"):
        reader.find_tables("/logs/x.csv")


@pytest.mark.parametrize("late", ["ignore", "build"])
def test_a_stopped_day_is_looked_at_again_when_a_file_is_added(open_folder: Open, tmp_path: Path, late: str) -> None:
    place, days = open_folder(late=late), log(tmp_path, "20240101-a", "20240102-a")
    for name, file, word in (("20240101", days[0], "ok"), ("20240102", days[1], "stop")):
        build_now(place, name, [file])
        place.write(place.checks_file(name), {"level": word, "results": []})
    assert place.look(None, None).build == ()
    log(tmp_path, "20240101-b")
    [more] = log(tmp_path, "20240102-b")
    if late == "build":
        assert place.look(None, None).build == ("20240101+1", "20240102+1"), "they are partitions of their own"
        return
    assert place.look(None, None).build == ("20240102",)
    build_now(place, "20240102", [*place.raw()["20240102"].files])
    assert more in place.manifest("20240102").inputs["train"] and place.look(None, None).build == ()


def test_a_note_goes_when_a_built_day_is_as_it_was(open_folder: Open, tmp_path: Path) -> None:
    place, [file] = open_folder(changed="rebuild"), log(tmp_path, "20240101-a")
    build_now(place, "20240101", [file])
    before = os.stat(file).st_mtime_ns  # noqa: PTH116
    Path(file).write_text("garbage")
    record = {"reason": "it is garbage", "seen": json.loads(json.dumps(place.seen(place.raw()["20240101"])))}
    place.write(place.checks_file("20240101"), {"level": "ok", "results": [], "unreadable": record})
    assert place.unreadable() == {"20240101": "it is garbage"} and place.look(None, None).build == ()
    Path(file).write_text("")
    os.utime(file, ns=(before, before))
    assert place.look(None, None).build == () and place.unreadable() == {}


def test_a_day_that_is_not_ready_any_more_waits(
    open_folder: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, days = open_folder(min_age_seconds=3_600), log(tmp_path, "20240101-a", "20240102-a")
    for file in days:
        os.utime(file, (1, 1))
    look = RetrainFolder.look

    def look_and_touch(*arguments: Any) -> Any:
        try:
            return look(*arguments)
        finally:
            for file in days:
                os.utime(file)

    monkeypatch.setattr(RetrainFolder, "look", look_and_touch)
    assert retrain(place, Steps(0, 0), None)[0]["verdict"] == "nothing"


def test_a_champion_of_other_features_reads_what_the_day_was_built_of(open_folder: Open, tmp_path: Path) -> None:
    place, files = open_folder(), log(tmp_path, "20240101-a", "20240101-b")
    build_now(place, "20240101", files)
    log(tmp_path, "20240101-c")
    features = dataclasses.replace(place.config.features, carry=("more",))
    config = config_of_compared(place, "20240101", features, tmp_path / "base")
    assert (config.features, config.pipeline.input.train, config.pipeline.input.times) == (features, tuple(files), None)
    by_day = open_folder(partition_by="day", partitions=f"{tmp_path}/logs/*.csv")
    times = config_of_compared(by_day, "20240101", features, tmp_path / "base").pipeline.input.times
    assert times is not None and times[1] - times[0] == 86_400

    features, base = place.config.features, str(tmp_path / "base")
    made = write_tiny_dataset(place.compared("20240101") / "partition", ((4,),), (), ()).manifest
    pipeline, day = {"pipeline": {"base": base}}, place.manifest("20240101")
    made = dataclasses.replace(made, inputs=day.inputs, input_files=day.input_files, config=pipeline)
    made.write(place.compared("20240101") / "partition")
    build_compared(place, "20240101", features, Path(base))  # it is there: Spark is not needed
    assert (place.compared_window("20240101") / "manifest.json").exists()
    Path(files[0]).write_text("more")
    build_compared(place, "20240101", features, Path(base))
    for other in (dataclasses.replace(features, carry=("more",)), features):
        with pytest.raises(LogError, match=r"20240101 cannot .*-a\.csv has 4 bytes, 0 when .* set retrain\.changed = "):
            build_compared(place, "20240101", other, tmp_path / "other")
