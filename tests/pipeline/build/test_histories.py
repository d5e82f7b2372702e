"""Built histories: each row has what an online store of its user's events gives, whatever tasks and splits are."""

import math
import random
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.csv
import pytest

from features.disk.dataset import DatasetManifest
from features.disk.object_store import ObjectPath
from features.disk.place import locate
from features.disk.user_histories import fetch_histories
from features.disk.window import join
from features.dwell import dwell_ids
from features.history import BurstFilter, DwellFilter, History, UserEvent, UserHistory
from jobs.cli.config import parse_config
from jobs.launch.dataset_build import run_build
from pipeline.build import dataset, histories
from tests.benchmarks import build_histories
from tests.benchmarks.build_histories import run_here

LENGTH = 4
COLUMNS = ("row", "user", "time", "item", "cate", "click", "event", "dwell")
CLICKS = {"name": "clicks", "parts": ["item", "cate"], "max_length": LENGTH, "gaps": [60, 3600]}
FEATURES: dict[str, Any] = {
    "label": "click",
    "timestamp": {"column": "time"},
    "carry": ["row"],
    "sparse": [
        {"name": "item", "encoding": {"kind": "vocabulary", "min_count": 2}},
        {"name": "cate", "encoding": {"kind": "hash", "num_buckets": 50}},
    ],
}


def features(**history: Any) -> dict[str, Any]:
    own = {"dwell_weights": history.pop("dwell_weights")} if "dwell_weights" in history else {}
    return {**FEATURES, "sequence": [{**CLICKS, **own, "history": {"of": "user", "lag": "20s", **history}}]}


def make_log(seed: int, num_rows: int, first: int = 0, seconds: int = 3_000) -> list[dict[str, str]]:
    """Rows of few users, one with a third of them; some users, dwell times and items are missing."""
    draw = random.Random(seed)
    rows = []
    for row in range(first, first + num_rows):
        user = "power" if draw.random() < 0.33 else draw.choice(["", "a", "b", "c", "d", "e"])
        time = first // num_rows * seconds + draw.randrange(seconds)
        dwell = "" if draw.random() < 0.1 else str(draw.randrange(40))
        item = "" if draw.random() < 0.05 else f"i{draw.randrange(30)}"
        event = draw.choice(["view", "buy", ""])
        click = str(int(draw.random() < 0.4))
        rows.append(
            dict(row=str(row), user=user, time=str(time), item=item, cate=f"c{row % 9}", click=click, event=event)
        )
        rows[-1]["dwell"] = dwell
    return rows


def has_values(row: dict[str, str]) -> bool:
    """Whether a row has a user, and anything that a history could hold."""
    return bool(row["user"] and (row["item"] or row["cate"]))


def write_log(path: Path, rows: list[dict[str, str]]) -> str:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def histories_of_stores(rows: list[dict[str, str]], history: History, is_event: Any) -> dict[str, list[UserEvent]]:
    """Row -> events that a store a user gives at its time."""
    stores: dict[str, UserHistory] = {}
    for number, row in enumerate(rows):
        store = stores.setdefault(row["user"], UserHistory(history))
        if has_values(row) and is_event(row):
            dwell = float(row["dwell"]) if row["dwell"] else None
            store.add(UserEvent(int(row["time"]), number, row["row"], dwell))
    return {row["row"]: stores[row["user"]].at(int(row["time"]), LENGTH) for row in rows}


def read_rows(manifest, folder, read_split) -> dict[str, dict[str, Any]]:
    """Row -> its columns, of all splits."""
    return {row["row"]: row for split in manifest.splits for row in read_split(manifest, folder, split).to_pylist()}


def check(found: dict[str, dict[str, Any]], expected: dict[str, list[UserEvent]]) -> int:
    """Compare every row's lists with the ids of the rows that are its events; return how many events there are."""
    for name, row in found.items():
        events = expected[name]
        ages = [row["timestamp"] - event.time for event in events]
        assert row["clicks__item"] == [found[event.value]["item"] for event in events], name
        assert row["clicks__cate"] == [found[event.value]["cate"] for event in events], name
        assert row["clicks__gap"] == [1 + sum(gap <= age for gap in (60, 3600)) for age in ages], name
        if "clicks__dwell" in row:
            known = [math.nan if event.dwell is None else event.dwell for event in events]
            assert row["clicks__dwell"] == dwell_ids(np.array(known, np.float64)).tolist(), name
    return sum(len(expected[name]) for name in found)


RULES = {
    "label": ({}, History("user", lag="20s"), lambda row: row["click"] == "1"),
    "rule": ({"where": "event == buy"}, History("user", lag="20s"), lambda row: row["event"] == "buy"),
    "filters": (
        {"where": "event in buy, view", "dwell": {"column": "dwell"}, "burst": {"events": 3, "seconds": 20}},
        History("user", lag="20s", dwell=DwellFilter("dwell"), burst=BurstFilter(3, 20)),
        lambda row: row["event"] in ("buy", "view"),
    ),
    "weights": (
        {"where": "event == buy", "dwell": {"column": "dwell", "min_seconds": 0}, "dwell_weights": True},
        History("user", lag="20s", dwell=DwellFilter("dwell", 0)),
        lambda row: row["event"] == "buy",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rows_have_what_a_store_gives(rule: str, build, read_split, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(histories, "_ROWS_A_TASK", 150)
    history, same, is_event = RULES[rule]
    rows = make_log(1, 600)
    log = write_log(tmp_path / "log.csv", rows)
    pipeline = {
        "input": {"train": log},
        "split": {"kind": "hash", "valid": 0.2, "test": 0.2},
        "write": {"min_files": 3},
        "spark": {"max_partition_bytes": 10_000},
    }
    manifest, folder = build(features(**history), pipeline)
    found = read_rows(manifest, folder, read_split)
    assert set(found) == {row["row"] for row in rows}
    num_seen = check(found, histories_of_stores(rows, same, is_event))
    described = manifest.histories.sequences["clicks"]
    assert described.num_seen == num_seen > 500
    assert described.num_events == sum(has_values(row) and is_event(row) for row in rows)
    assert (described.num_dropped > 20) == (rule == "filters")
    assert described.delay == same.delay
    for split, of_split in manifest.splits.items():
        items = [i for row in read_split(manifest, folder, split).to_pylist() for i in row["clicks__item"]]
        unknown = manifest.load_learnt(folder).oov_id("item")
        counted = of_split.sequences["clicks"].dwell_counts
        ids = [i for row in read_split(manifest, folder, split).to_pylist() for i in row.get("clicks__dwell", [])]
        assert counted == tuple(np.bincount(ids)) and (len(set(ids)) > 10) == (rule == "weights")
        rates = of_split.sequences["clicks"].oov_rates
        assert rates == {"clicks__item": pytest.approx(items.count(unknown) / len(items), abs=1e-6)}


def test_rejected_duplicate_and_left_out_rows_are_no_events(build, read_split, tmp_path: Path) -> None:
    rows = make_log(2, 300)
    bad = [{**row, "row": f"bad{row['row']}", "click": "7"} for row in rows[:20]]
    again = [{**row, "time": str(int(row["time"]) + 1)} for row in rows[20:60]]
    log = write_log(tmp_path / "log.csv", rows + bad + again)
    manifest, folder = build(
        features(where="event == buy"),
        {
            "input": {"train": log},
            "dedupe": ["row"],
            "sample": {"negatives": 0.5},
            "quality": {"max_rejected_fraction": 0.5},
        },
    )
    found = read_rows(manifest, folder, read_split)
    assert manifest.num_duplicates == 40 and manifest.rejected.num_rows == 20
    assert manifest.sampled is not None and len(found) == 300 - manifest.sampled.num_left_out < 280
    assert [words for words in manifest.warnings if "are no events: the histories clicks (event == buy) lack" in words]
    kept = [row for row in rows if row["row"] in found]
    assert check(found, histories_of_stores(kept, *RULES["rule"][1:])) > 100


def test_random_splits_are_told_of_unless_events_are_of_training_rows(build, read_split, tmp_path: Path) -> None:
    rows = make_log(4, 400)
    log = write_log(tmp_path / "log.csv", rows)
    pipeline = {"input": {"train": log}, "split": {"kind": "hash", "valid": 0.3}}
    manifest, _ = build(features(), pipeline, "all")
    assert any('set history.splits = ["train"]' in warning for warning in manifest.warnings)
    manifest, folder = build(features(splits=["train"]), pipeline, "train")
    assert not any("history.splits" in warning for warning in manifest.warnings)
    of_train = {row["row"] for row in read_split(manifest, folder, "train").to_pylist()}
    rule = RULES["label"]
    events = histories_of_stores(rows, rule[1], lambda row: row["row"] in of_train and rule[2](row))
    assert check(read_rows(manifest, folder, read_split), events) > 200


def test_labels_of_the_future_change_no_history(build, read_split, tmp_path: Path) -> None:
    rows = make_log(3, 400)
    now = 1_500
    draw = random.Random(0)
    other = [{**row, "click": str(draw.randrange(2)) if int(row["time"]) + 20 > now else row["click"]} for row in rows]
    early = {row["row"] for row in rows if int(row["time"]) <= now}
    found = []
    for name, log in (("one", rows), ("two", other)):
        manifest, folder = build(features(), {"input": {"train": write_log(tmp_path / f"{name}.csv", log)}}, name)
        found.append(read_rows(manifest, folder, read_split))
    lists = [{name: row["clicks__cate"] for name, row in table.items()} for table in found]
    assert {name: lists[0][name] for name in early} == {name: lists[1][name] for name in early}
    assert lists[0] != lists[1]


@pytest.mark.parametrize("rule", ["label", "filters", "weights"])
def test_days_one_by_one_are_the_full_build(rule: str, build, read_split, tmp_path: Path) -> None:
    history, same, is_event = RULES[rule]
    rows: list[dict[str, str]] = []
    found: dict[str, dict[str, Any]] = {}
    base, folders = {}, []
    for day in range(3):
        new = make_log(10 + day, 150, first=150 * day, seconds=300)
        rows += new
        pipeline = {"input": {"train": write_log(tmp_path / f"{day}.csv", new)}, **base}
        manifest, folder = build(features(**history), pipeline, f"day{day}")
        found |= read_rows(manifest, folder, read_split)
        base = {"base": str(folder)}
        folders.append(folder)
    expected = histories_of_stores(rows, same, is_event)
    assert check(found, expected) > 200
    assert any(int(event.value) < 300 for row in range(300, 450) for event in expected[str(row)])
    state = fetch_histories(manifest, folder, tmp_path)
    assert state.newest == max(int(row["time"]) for row in rows)
    assert state.num_events < sum(has_values(row) and is_event(row) for row in rows)
    joined = join({"train": folders}, tmp_path / "window")
    of_window = fetch_histories(joined, tmp_path / "window", tmp_path).read("clicks")
    assert repr(of_window.to_pylist()) == repr(state.read("clicks").to_pylist())  # NaN has one text
    assert joined.histories is not None
    ids = [i for row in found.values() for i in row.get("clicks__dwell", [])]
    assert joined.splits["train"].sequences["clicks"].dwell_counts == tuple(np.bincount(ids))
    assert joined.histories.sequences["clicks"].num_seen == sum(len(events) for events in expected.values())
    if rule != "filters":
        check_program(folder, rows, found, rule)


def test_a_second_day_goes_on_with_a_base_in_an_object_store(build, bucket, read_split, tmp_path: Path) -> None:
    rows: list[dict[str, str]] = []
    found: dict[str, dict[str, Any]] = {}
    base = {}
    for day in range(2):
        new = make_log(30 + day, 150, first=150 * day, seconds=300)
        rows += new
        pipeline = {"input": {"train": write_log(tmp_path / f"{day}.csv", new)}, **base}
        manifest, folder = build(features(), pipeline, f"day{day}")
        found |= read_rows(manifest, folder, read_split)
        place = locate(f"{bucket.url}/day{day}")
        assert isinstance(place, ObjectPath)
        place.upload(folder)
        base = {"base": str(place)}
    expected = histories_of_stores(rows, *RULES["label"][1:])
    assert check(found, expected) > 200
    assert any(int(event.value) < 150 for row in range(150, 300) for event in expected[str(row)])
    stored = fetch_histories(manifest, place, tmp_path).read("clicks")
    assert stored.equals(fetch_histories(manifest, folder, tmp_path).read("clicks"))


def test_a_user_with_most_of_the_rows_costs_what_many_do(tmp_path: Path, monkeypatch) -> None:
    """A list a row of all that came before would take hundreds of times as long as users of 25 rows each."""
    monkeypatch.setattr(dataset, "run_tasks", run_here)
    seconds = []
    for share in (0.0, 0.9):
        log, output = tmp_path / f"{share}.csv", tmp_path / f"dataset-{share}"
        build_histories.write_log(log, 60_000, share)
        config = parse_config(build_histories.tree_of(log, output, with_history=True))
        started = time.process_time()
        run_build(cast(Any, None), config)
        seconds.append(time.process_time() - started)
        raw = pyarrow.csv.read_csv(log).to_pandas()
        num_seen = 0
        for _, own in raw.groupby("user"):
            clicks = own["time"][own["click"] == 1].to_numpy()
            before = np.searchsorted(clicks, own["time"].to_numpy() - 1800, side="right")
            num_seen += int(np.minimum(before, build_histories.LENGTH).sum())
        histories_ = DatasetManifest.load(output).histories
        assert histories_ is not None and histories_.sequences["clicks"].num_seen == num_seen > 0
    assert seconds[1] < 5 * seconds[0], seconds


def check_program(folder: Path, rows: list[dict[str, str]], found: dict[str, dict[str, Any]], rule: str) -> None:
    """``jobs.history`` shows what a row of the user at that time sees."""
    time = max(int(row["time"]) for row in rows) + 5
    asked = {**rows[0], "row": "asked", "user": "a", "time": str(time)}
    events = histories_of_stores([*rows, asked], *RULES[rule][1:])["asked"]
    command = [sys.executable, "-m", "jobs.history", "--dataset", str(folder), "--user", "a", "--time", str(time)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0] == f"clicks: {len(events)} events of user 'a'" and len(events) == LENGTH
    by_number = {row["row"]: row for row in rows}
    for line, event in zip(shown[2:], events, strict=True):
        row = by_number[event.value]
        assert datetime.fromtimestamp(event.time, UTC).strftime("%H:%M:%S") in line
        stayed = {"label": "", "weights": "not known" if event.dwell is None else f"{event.dwell:g}"}[rule]
        assert line.split(f"id {found[event.value]['cate']}")[1].strip() == stayed
        assert row["item"] in line or "id " in line.rsplit("id ", 1)[0]


def test_rows_that_the_base_has_read_too_are_no_second_events(build, read_split, tmp_path: Path) -> None:
    rows = make_log(20, 200)
    log = write_log(tmp_path / "log.csv", rows)
    _, base = build(features(), {"input": {"train": log}}, "base")
    manifest, folder = build(features(), {"input": {"train": log}, "base": str(base)}, "again")
    found = read_rows(manifest, folder, read_split)
    assert check(found, histories_of_stores(rows, *RULES["label"][1:])) > 100
