"""Which partitions are there, and what is to be done with them."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from features.log_files import NoMatchError
from jobs.cli.retrain_config import RetrainConfig
from jobs.retraining.raw_partitions import RawPartition, find_late, find_partitions
from jobs.retraining.todo import Todo, plan

CONFIG = RetrainConfig(root="unused", partitions="logs/{date}", window=3)
DAYS = [f"2024010{day}" for day in range(1, 7)]


@pytest.mark.parametrize(
    ("pattern", "files", "dates"),
    [
        (
            "day={date}/*.csv",
            ["day=2024-01-02/a.csv", "day=2024-01-02/b.csv", "day=2024-01-01/a.csv"],
            ["20240101", "20240102"],
        ),
        ("log-{date}.csv.gz", ["log-7.csv.gz", "log-8.csv.gz", "log-x.csv.gz", "log-8.csv"], ["7", "8"]),
        ("day-{date}-part-*.csv", ["day-01-part-001.csv", "day-01-part-002.csv", "day-02-part-001.csv"], ["01", "02"]),
        ("**/{date}.csv", ["a/20240101.csv", "a/b/20240102.csv"], ["20240101", "20240102"]),
        ("day-{date}", ["day-1/a.csv", "day-1/_b.csv", "day-1/c/d.csv", "day-2", "day-x/e.csv", "_day-3"], ["1", "2"]),
        ("day-{date}/", ["day-1/a.csv", "day-2"], ["1"]),
        ("_day-{date}", ["_day-1"], ["1"]),
        ("day-{date}x", ["day-1y.csv", "day-1x", "day-x"], ["1"]),
    ],
)
def test_partitions_are_found_by_their_dates(tmp_path: Path, pattern: str, files: list[str], dates: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = find_partitions(f"{tmp_path}/{pattern}")
    assert list(found) == dates
    assert sum(map(len, (part.files for part in found.values()))) <= len(files)
    if pattern.startswith("day="):
        assert [Path(path).name for path in found["20240102"].files] == ["a.csv", "b.csv"]
    if pattern == "day-{date}":
        assert [Path(path).name for path in found["1"].files] == ["a.csv", "d.csv"]


def test_a_day_has_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("logs/day=1/a.csv", "current/b.csv", "run/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "logs" / "day=2").symlink_to("../current")
    (tmp_path / "logs" / "day=01").symlink_to("day=1")
    (tmp_path / "logs" / "latest").symlink_to("day=2")
    monkeypatch.chdir(tmp_path / "run")
    found = find_partitions("../logs/day={date}/*.csv")
    assert found == {
        "1": RawPartition({f"{tmp_path}/logs/day=1/a.csv": None}),
        "2": RawPartition({f"{tmp_path}/logs/day=2/b.csv": None}),
    }
    # Earlier versions wrote paths with their dots, and a file may have been moved and linked.
    assert find_late(found, {"1": [f"{tmp_path}/run/../logs/day=1/a.csv"], "2": [f"{tmp_path}/current/b.csv"]}) == {}
    with pytest.raises(NoMatchError, match=r"logs is there, but nothing in it matches 'hour=\[0-9\]\*'"):
        find_partitions("../logs/hour={date}")


def test_dates_that_do_not_sort_as_time_does(tmp_path: Path) -> None:
    for name in ("log-9.csv", "log-10.csv"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="dates of different lengths: 10, 9"):
        find_partitions(f"{tmp_path}/log-{{date}}.csv")
    with pytest.raises(ValueError, match=r"needs .date. in one place"):
        replace(CONFIG, partitions="logs/*")
    with pytest.raises(ValueError, match=r"has .date., which is for"):
        replace(CONFIG, partition_by="day")


def test_files_that_came_late_are_a_partition_of_their_own() -> None:
    there = {
        "20240101": RawPartition({"a": 3, "b": 4, "c": 5}, (0, 1)),
        "20240102": RawPartition({"c": None}),
        "20240103": RawPartition({"d": 1}),
    }
    assert find_late(there, {"20240101": ["a"], "20240101+1": ["c"], "20240102": ["c"]}) == {
        "20240101+2": RawPartition({"b": 4}, (0, 1))
    }
    assert find_late(there, {}) == {}
    assert (there["20240101"].num_rows, there["20240102"].num_rows) == (12, None)


def test_the_first_retraining_trains_on_the_window_before_the_newest_day() -> None:
    assert plan(DAYS, None, [], {}, None, CONFIG) == Todo(tuple(DAYS), tuple(DAYS[2:5]), DAYS[5], False)
    assert plan(DAYS, DAYS[2], [], {}, None, CONFIG) == Todo(tuple(DAYS[:3]), tuple(DAYS[:2]), DAYS[2], False)
    assert plan(DAYS, DAYS[0], [], {}, None, CONFIG) == Todo((DAYS[0],), (), None, False)
    assert plan(DAYS, "20230101", [], {}, None, CONFIG) == Todo((), (), None, False)


def test_a_warm_one_trains_on_what_the_champion_has_not_seen() -> None:
    assert plan(DAYS, None, DAYS[:5], {}, DAYS[:3], CONFIG) == Todo((DAYS[5],), tuple(DAYS[3:5]), DAYS[5], True)
    assert plan(DAYS, None, DAYS, {}, DAYS[:5], CONFIG) == Todo((), (), None, True)  # done
    late = [DAYS[0], *DAYS[2:5]]
    assert plan(DAYS, None, late, {}, late, CONFIG) == Todo((DAYS[1], DAYS[5]), (DAYS[1],), DAYS[5], True)


def test_a_stopped_day_is_neither_trained_on_nor_compared_on() -> None:
    stopped = {DAYS[5]: {}}
    assert plan(DAYS, None, DAYS, stopped, DAYS[:3], CONFIG) == Todo((), (DAYS[3],), DAYS[4], True)
    assert plan(DAYS, None, DAYS, {DAYS[3]: {}}, DAYS[:3], CONFIG) == Todo((), (DAYS[4],), DAYS[5], True)
    assert plan(DAYS[:1], None, DAYS[:1], {DAYS[0]: {}}, None, CONFIG).test is None


def test_from_nothing_on_a_window_that_moves() -> None:
    config = replace(CONFIG, train_on="window")
    assert plan(DAYS, None, DAYS, {}, DAYS[:4], config) == Todo((), tuple(DAYS[2:5]), DAYS[5], False)
    assert plan(DAYS, None, DAYS, {}, DAYS[2:5], config).test is None


def test_a_clock_that_went_back_finds_nothing_to_do() -> None:
    """Neither on a day that the champion knows, nor because another one came late, nor before the champion's window."""
    late = [DAYS[0], *DAYS[2:5]]
    for trained, train_on in itertools.product((DAYS[:5], late, DAYS[4:5]), ("new", "window")):
        config = replace(CONFIG, train_on=train_on)
        todo = plan(DAYS, DAYS[3], DAYS, {}, trained, config)
        assert (todo.build, todo.train, todo.test) == ((), (), None)


def test_late_rows_are_trained_on_but_never_compared_on() -> None:
    days = [*DAYS[:2], f"{DAYS[1]}+1", *DAYS[2:4], f"{DAYS[3]}+1"]
    assert plan(days, None, DAYS[:4], {}, DAYS[:2], CONFIG) == Todo(
        (days[2], days[5]), (days[2], DAYS[2]), DAYS[3], True
    )
    assert plan(days, DAYS[1], [], {}, None, CONFIG) == Todo(tuple(days[:3]), (DAYS[0],), DAYS[1], False)
    assert plan(days, None, days, {}, [*DAYS[:3]], CONFIG) == Todo((), (days[2],), DAYS[3], True)


def test_a_validation_day_is_trained_on_the_next_time() -> None:
    config = replace(CONFIG, valid=True)
    assert plan(DAYS[:5], None, DAYS, {}, None, config) == Todo((), tuple(DAYS[1:3]), DAYS[4], False, DAYS[3])
    assert plan(DAYS, None, DAYS, {}, DAYS[:3], config) == Todo((), (DAYS[3],), DAYS[5], True, DAYS[4])
    assert plan(DAYS, None, DAYS, {}, DAYS[:4], config).test is None  # the only new day would be the validation split
    assert plan(DAYS[:2], None, DAYS, {}, None, config).test is None


def test_as_of_must_be_a_date_like_the_others() -> None:
    with pytest.raises(ValueError, match="--as-of 7 is no date like those of the partitions, such as 20240101"):
        plan(DAYS, "7", [], {}, None, CONFIG)
