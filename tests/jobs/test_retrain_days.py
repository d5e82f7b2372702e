"""Days that cannot be read, grow or are not complete: the others go on, with real Spark and Ray."""

import csv
import gzip
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetManifest
from features.disk.retrain_folder import RetrainFiles
from jobs.registry.registry import Registry
from jobs.retraining.retrain_folder import REBUILT_TAG, TRAINED_TAG
from tests.jobs.test_retrain import CONFIG, last, retrain, verdict, write_day
from training.judge.metrics import evaluate
from training.judge.scores import Scores
from training.ship.predict import Predictor

pytestmark = pytest.mark.slow


def log_of(folder: Path, day: int) -> Path:
    return folder / "logs" / f"day=2024-01-{day:02d}" / "part.csv"


def spoil(folder: Path, day: int, change: Callable[[Path], None]) -> None:
    write_day(folder, day)
    change(log_of(folder, day))


def keep_the_header(path: Path) -> None:
    path.write_text(path.read_text().splitlines()[0] + "\n")


def make_rows_malformed(path: Path) -> None:
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{row},?" if i % 20 == 0 else row for i, row in enumerate(rows))]) + "\n")


def encode_otherwise(path: Path) -> None:
    path.write_text(path.read_text().replace("phone", "téléphone"), encoding="cp1252")


def rename_a_column(path: Path) -> None:
    path.write_text(path.read_text().replace("user,device", "user,gadget"))


def truncate(path: Path) -> None:
    packed = gzip.compress(path.read_bytes())
    path.with_suffix(".csv.gz").write_bytes(packed[: len(packed) // 2])
    path.unlink()


def leave_one_class(path: Path) -> None:
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row[:-1] + "0" for row in rows)]) + "\n")


def link_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.csv")


def empty(path: Path) -> None:
    path.unlink()


def test_days_that_cannot_be_read_are_stopped_and_the_others_go_on(tmp_path: Path) -> None:
    config = CONFIG.replace("day={{date}}/*.csv", "day={{date}}/*")
    (tmp_path / "c.toml").write_text(config.format(folder=tmp_path), encoding="utf-8")
    spoil(tmp_path, 1, keep_the_header)
    done = retrain(tmp_path)
    assert done.returncode == 1 and "no date of the log can be read, so look at the config too; 20240101" in done.stderr
    assert (last(tmp_path)["verdict"], last(tmp_path)["unreadable"]) == (
        "failed",
        {"20240101": "the input files have no rows"},
    )
    write_day(tmp_path, 2)
    spoil(tmp_path, 3, make_rows_malformed)
    spoil(tmp_path, 4, encode_otherwise)
    write_day(tmp_path, 5)
    spoil(tmp_path, 6, rename_a_column)
    spoil(tmp_path, 7, truncate)
    spoil(tmp_path, 8, leave_one_class)
    spoil(tmp_path, 9, empty)
    write_day(tmp_path, 10)
    spoil(tmp_path, 11, link_nowhere)
    done = retrain(tmp_path)
    assert done.returncode == 0, done.stderr
    found = last(tmp_path)
    assert (found["day"], found["verdict"], found["trained_on"]) == ("20240110", "promoted", ["20240102", "20240105"])
    reasons = {
        "20240101": "the input files have no rows",
        "20240103": "60 of 1,200 rows (5.00%) are malformed",
        "20240104": "not UTF-8 text",
        "20240106": "has no column 'device'",
        "20240107": "cannot be read",
        "20240111": "is a link that leads nowhere",
    }
    assert {*found["unreadable"]} == {*reasons}
    for day, words in reasons.items():
        assert words in found["unreadable"][day] and f"{day} cannot be read" in done.stderr
        checks = json.loads((tmp_path / "retrain" / "checks" / f"{day}.json").read_text())
        assert checks["level"] == "stop" and any(
            str(tmp_path) in file for file in checks["unreadable"]["seen"]["files"]
        )
        assert not (tmp_path / "retrain" / "partitions" / day).exists()
    one_class = json.loads((tmp_path / "retrain" / "checks" / "20240108.json").read_text())
    assert ("classes", "every label is 0") in {
        (r["rule"], r["reason"]) for r in one_class["results"] if r["level"] == "stop"
    }

    done = retrain(tmp_path)  # nothing has changed, and nothing is read again
    assert done.returncode == 0 and "20240111 is not trained on" in done.stdout and "partition 2024" not in done.stderr
    assert (last(tmp_path)["day"], last(tmp_path)["verdict"]) == ("20240111", "stopped")

    for day in (3, 11):  # mended: one in the middle, and the newest, which is then compared on
        shutil.rmtree(log_of(tmp_path, day).parent)
        write_day(tmp_path, day)
    done = retrain(tmp_path)
    assert done.returncode == 0, done.stderr
    found = verdict(tmp_path, 11)
    assert (found["verdict"], found["trained_on"]) == ("promoted", ["20240103", "20240110"])
    assert {*last(tmp_path)["unreadable"]} == {"20240101", "20240104", "20240106", "20240107"}
    (tmp_path / "c.toml").write_text(
        config.format(folder=tmp_path).replace("[pipeline]\n", '[pipeline]\ninput.format.encoding = "cp1252"\n')
    )
    assert "would build and check 20240101, 20240104, 20240106, 20240107" in retrain(tmp_path, "--dry-run").stdout


def test_a_day_that_grows_after_it_was_built(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    files = RetrainFiles(tmp_path / "retrain")
    for day in (1, 2, 3):
        write_day(tmp_path, day, devices=("phone", "tv", f"new{day}"))
    whole = log_of(tmp_path, 2).read_text()
    log_of(tmp_path, 2).write_text("".join(whole.splitlines(keepends=True)[:601]))
    assert retrain(tmp_path).returncode == 0
    assert verdict(tmp_path, 3)["train_rows"] == 1_800

    log_of(tmp_path, 2).write_text(whole.replace("new2", "other2"))
    log_of(tmp_path, 1).unlink()
    done = retrain(tmp_path)
    assert done.returncode == 0
    changed = last(tmp_path)["changed_files"]
    assert changed["20240101"] == {str(log_of(tmp_path, 1)): "is gone"}
    assert " bytes, " in changed["20240102"][str(log_of(tmp_path, 2))] and "20240102: " in done.stderr
    assert DatasetManifest.load(files.partition("20240102")).num_input_rows == 600, "it is warned of alone"

    write_day(tmp_path, 4)
    done = retrain(tmp_path, "retrain.changed=rebuild")
    assert done.returncode == 0, done.stderr
    found = verdict(tmp_path, 4)
    assert (found["trained_on"], found["train_rows"]) == (["20240102", "20240103"], 2_400)
    assert "20240102" not in last(tmp_path).get("changed_files", {})
    assert files.partition("20240102").name == "20240102~1"
    names = ("20240101", "20240102", "20240103", "20240104")
    learnt = {name: DatasetManifest.load(path).load_learnt(path) for name in names if (path := files.partition(name))}
    chain = [learnt[name] for name in ("20240101", "20240103", "20240102", "20240104")]
    assert all(later.extends(earlier) for earlier, later in itertools.pairwise(chain))
    assert {"new2", "other2"} <= {*learnt["20240104"].vocabularies["device"]}, "no id has another meaning"
    champion = Registry.open(None, files.registry_folder).champion("ctr")
    assert champion is not None and json.loads(champion.tags[REBUILT_TAG]) == {"20240102": 1}
    assert json.loads(champion.tags[TRAINED_TAG]) == ["20240101", "20240102", "20240103"]
    assert "20240104: done before" in retrain(tmp_path, "retrain.changed=rebuild").stdout
    assert not (files.root / "partitions" / "20240102").exists(), "nobody needs the old build"


def test_an_unfinished_day_does_not_exist_yet(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path).replace("segments", 'ready = "_SUCCESS"\nsegments'))
    for day in (1, 2, 3):
        write_day(tmp_path, day)
        if day < 3:
            (log_of(tmp_path, day).parent / "_SUCCESS").touch()
    assert retrain(tmp_path).returncode == 0
    found = last(tmp_path)
    assert (found["day"], found["verdict"]) == ("20240102", "promoted")
    assert found["not_ready"] == {"20240103": f"{log_of(tmp_path, 3).parent} has no _SUCCESS yet"}
    assert not any("_SUCCESS" in note for note in found.get("notes", []))


def test_other_features_begin_with_what_the_champion_knows(tmp_path: Path) -> None:
    text = CONFIG.format(folder=tmp_path)
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    for day in (1, 2, 3):
        write_day(tmp_path, day)
    assert retrain(tmp_path, "--as-of", "2024-01-02").returncode == 0
    more = '[[features.sparse]]\nname = "both"\ncolumns = ["user", "device"]\n'
    more += 'encoding = { kind = "hash", num_buckets = 400 }\n'
    other = text.replace("[[features.dense]]", f"{more}[[features.dense]]").replace(
        "standardise = true", "log1p = true"
    )
    (tmp_path / "c.toml").write_text(other, encoding="utf-8")
    done = retrain(tmp_path)
    assert done.returncode == 2 and "set retrain.other_features = true" in done.stderr
    assert (last(tmp_path)["verdict"], last(tmp_path)["day"]) == ("failed", "20240103")

    done = retrain(tmp_path, "retrain.other_features=true")
    assert done.returncode == 0, done.stderr
    assert "begins with what another model knows of 2 of 4 features: added both; changed price" in done.stderr
    found = verdict(tmp_path, 3)
    assert (found["day"], found["trained_on"], found["is_warm"]) == ("20240103", ["20240101", "20240102"], True)
    registry = Registry.open(None, tmp_path / "retrain" / "registry")
    rows = list(csv.DictReader(log_of(tmp_path, 3).open()))
    scores = Predictor.load(registry.fetch("models:/ctr/1")).predict(rows)
    auc = evaluate(Scores.of(np.log(scores / (1 - scores)), np.array([float(row["click"]) for row in rows])))["auc"]
    # Of 1,200 rows, a pair whose scores differ in the last bit alone moves the AUC by 3e-6.
    assert found["metrics"]["champion"]["auc"] == pytest.approx(auc, abs=2e-5), "the champion is judged as it serves"
    assert (
        found["metrics"]["candidate"]["auc"] > 0.6
        and "20240103: done before" in retrain(tmp_path, "retrain.other_features=true").stdout
    )


def test_a_damaged_parquet_file_stops_its_day_alone(tmp_path: Path) -> None:
    text = CONFIG.replace("*.csv", "*.parquet").replace("[pipeline]\n", '[pipeline]\ninput.format.kind = "parquet"\n')
    (tmp_path / "c.toml").write_text(text.format(folder=tmp_path), encoding="utf-8")
    for day in (1, 2, 3):
        write_day(tmp_path, day)
        table = pyarrow.csv.read_csv(log_of(tmp_path, day))
        pyarrow.parquet.write_table(table, log_of(tmp_path, day).with_suffix(".parquet"))
    path = log_of(tmp_path, 2).with_suffix(".parquet")
    damaged = bytearray(path.read_bytes())
    damaged[40 : len(damaged) // 2] = bytes(len(damaged) // 2 - 40)  # its footer is whole, and its pages are not
    path.write_bytes(damaged)
    assert retrain(tmp_path).returncode == 0
    assert (last(tmp_path)["day"], last(tmp_path)["trained_on"]) == ("20240103", ["20240101"])
    assert [*last(tmp_path)["unreadable"]] == ["20240102"] and str(path) in last(tmp_path)["unreadable"]["20240102"]
