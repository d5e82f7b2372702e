"""Make the frozen formats: a raw log, and the dataset, run, artifacts and retraining that a checkout makes of it.

Run it in the root of the checkout whose formats are to be frozen; it takes about four minutes on two cores:

    python /path/to/tests/golden/make.py --output /path/to/tests/golden/v1

Everything is made in ``PLACE``, a folder of the same name on every machine, and then copied, so that the paths that the
programs write down (manifests, configs, the registry's database) name no machine. ``tests/golden/frozen.py`` copies a
frozen folder to where a test wants it, and rewrites these paths. Programs are called by their command lines alone, so
that this script runs in checkouts whose modules have other places. What no program reads again is left out: Ray's own
files, locks and reports.

    raw/log.csv          ten days of 80 rows, seven of which are malformed and six come twice
    raw/score.csv        twenty rows to score, some with missing values and some with values that training never saw
    raw/days/day=.../    five days of 300 rows; retraining has seen four
    config.toml          of the dataset and the run              retrain.toml    laid over it for retraining
    dataset/, artifact/, artifact-int8/, run.tar.xz, retrain.tar.xz
    scores.jsonl         the probabilities of raw/score.csv with each artifact
"""

import argparse
import csv
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

PLACE = Path("/tmp/twinfocus-golden")
"""Where frozen files say that they are."""

COLUMNS: Sequence[str] = (
    "id",
    "time",
    "click",
    "weight",
    "user",
    "device",
    "genres",
    "age",
    "price",
    "views",
    "seconds",
    "city",
)

CONFIG = f"""\
[features]
label = "click"
weight = "weight"
group_id = "user"
timestamp = {{ column = "time" }}
carry = ["id"]
[[features.sparse]]
name = "user"
encoding = {{ kind = "hash", num_buckets = 64 }}
[[features.sparse]]
name = "device"
encoding = {{ kind = "vocabulary", min_count = 2 }}
[[features.sparse]]
name = "genres"
encoding = {{ kind = "vocabulary" }}
separator = "|"
max_length = 3
pooling = "mean"
[[features.sparse]]
name = "tags"
columns = ["genres"]
encoding = {{ kind = "hash", num_buckets = 16, salt = "tags" }}
separator = "|"
max_length = 2
[[features.sparse]]
name = "age"
encoding = {{ kind = "boundaries", boundaries = [18, 30, 50] }}
[[features.sparse]]
name = "price_bucket"
columns = ["price"]
encoding = {{ kind = "quantiles", num_buckets = 8 }}
[[features.sparse]]
name = "views_bucket"
columns = ["views"]
encoding = {{ kind = "log", num_buckets = 6 }}
[[features.sparse]]
name = "seconds_bucket"
columns = ["seconds"]
encoding = {{ kind = "log_squared", min_count = 2 }}
[[features.sparse]]
name = "device_x_city"
columns = ["device", "city"]
encoding = {{ kind = "hash", num_buckets = 32 }}
[[features.dense]]
names = ["price", "views"]
log1p = true
standardise = true
[[features.dense]]
name = "years"
column = "age"
fill = 38
clip = [14, 90]

[pipeline]
output = "{PLACE}/dataset"
input.train = "{PLACE}/raw/log.csv"
split = {{ kind = "time", valid_from = "2024-01-09", test_from = "2024-01-10" }}
dedupe = ["id"]
quality.max_rejected_fraction = 0.1
spark.master = "local[2]"
spark.driver_memory = "1g"
write = {{ min_files = 2, row_group_rows = 100 }}

[training]
dataset = "{PLACE}/dataset"
max_epochs = 2
global_batch_size = 32
evaluation_batch_size = 32
threads_per_worker = 1
sharding.default = "row_wise"
calibration.kind = "platt"
[training.optimizer]
kind = "fused"
embedding_learning_rate = 0.5
learning_rate = 0.01
[training.model]
embedding_dim = 16
embedding_init_std = 0.05
easy = {{ kind = "mlp", hidden_units = [16, 16] }}
hard = {{ kind = "mlp", hidden_units = [16, 16, 16] }}
"""

RETRAIN_CONFIG = f"""\
[training]
max_epochs = 1
[retrain]
root = "{PLACE}/retrain"
partitions = "{PLACE}/raw/days/day={{date}}/*.csv"
valid = true
retries = 0
tables = "int8"
segments = ["device"]
checks.drift.action = "warn"
[retrain.gate]
max_auc_drop = 0.5
max_logloss_rise = 1.0
max_ne = 10.0
min_calibration = 0.1
max_calibration = 10.0
max_score_psi = 10.0
max_quantized_auc_drop = 0.1
min_class_rows = 20
num_resamples = 50
"""

PACKED = ("run", "retrain")
"""Folders that are kept as a tar.xz: a checkpoint and MLflow's tables are mostly air."""
LEFT_OUT = ("ray", ".lock", ".workers", ".reserve", "errors", "report.html", "status.html", "fetched")
"""Files and folders that no program needs of an earlier one."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Freeze the formats of the checkout that this is run in.")
    parser.add_argument("--output", type=Path, required=True, help="folder to make, such as tests/golden/v1")
    output = parser.parse_args().output.absolute()
    if output.exists():
        parser.error(f"{output} exists: remove it first")
    shutil.rmtree(PLACE, ignore_errors=True)
    make()
    _remove_what_is_left_out(PLACE)
    shutil.copytree(PLACE, output)
    shutil.rmtree(PLACE)
    for name in PACKED:
        _pack(output / name)
    print(f"{output}: {sum(path.stat().st_size for path in output.rglob('*') if path.is_file()):,} bytes")


def make() -> None:
    """Make everything in ``PLACE``."""
    raw = PLACE / "raw"
    rows = [row for day in range(1, 11) for row in draw_rows(day, 80)]
    write_csv(raw / "log.csv", _with_flaws(rows))
    write_csv(raw / "score.csv", rows_to_score())
    for day in range(1, 6):
        write_csv(raw / "days" / f"day=2024-01-{day:02d}" / "part.csv", draw_rows(day, 300))
    config, retrain = PLACE / "config.toml", PLACE / "retrain.toml"
    config.write_text(CONFIG, encoding="utf-8")
    retrain.write_text(RETRAIN_CONFIG, encoding="utf-8")

    run = PLACE / "run"
    call("build_dataset", "--config", config)
    call("train", "--config", config, "--run", run)
    for split in ("valid", "test"):
        call("evaluate", "--run", run, "--split", split)
    scores = {}
    for name, tables in (("artifact", "float32"), ("artifact-int8", "int8")):
        call("export", "--run", run, "--output", PLACE / name, "--tables", tables)
        scores[tables] = score(PLACE / name, raw / "score.csv")
    with (PLACE / "scores.jsonl").open("w", encoding="utf-8") as file:
        for row, float32, int8 in zip(read_csv(raw / "score.csv"), scores["float32"], scores["int8"], strict=True):
            file.write(json.dumps({"row": row, "float32": float32, "int8": int8}) + "\n")
    for day in (3, 4):
        call("retrain", "--config", config, "--config", retrain, "--as-of", f"2024-01-{day:02d}")


def call(program: str, *arguments: object) -> None:
    """Run a program of the checkout."""
    subprocess.run([sys.executable, "-m", f"jobs.{program}", *map(str, arguments)], check=True)


def score(artifact: Path, log: Path) -> list[float]:
    """The probabilities of a raw log's rows, as jobs.score gives them."""
    output = PLACE / "scored.csv"
    call("score", "--artifact", artifact, "--input", log, "--output", output)
    scores = [float(row["probability"]) for row in read_csv(output)]
    for path in (output, output.with_name("scored.csv.json")):
        path.unlink()
    return scores


# ------------------------------------------------------------------------------------------------------------ raw rows


def draw_rows(day: int, num_rows: int) -> list[dict[str, str]]:
    """Rows of a day of January 2024; the label can be learnt from user, device and genres, and some values miss."""
    rng = random.Random(day)
    start = datetime(2024, 1, day, tzinfo=UTC).timestamp()
    return [_draw_row(rng, f"{day:02d}-{number:04d}", int(start) + rng.randrange(86_400)) for number in range(num_rows)]


def _draw_row(rng: random.Random, id_: str, time: int) -> dict[str, str]:
    user, device = rng.randrange(12), rng.choice(("phone", "phone", "tv", "desk"))
    genres = rng.sample(("action", "comedy", "drama", "noir", "sci-fi", "western"), rng.randrange(5))
    rate = (0.75 if user % 2 else 0.05) + (0.1 if device == "tv" else 0.0) + (0.1 if "noir" in genres else 0.0)
    row = {
        "id": id_,
        "time": str(time),
        "click": str(int(rng.random() < rate)),
        "weight": rng.choice(("0.5", "1", "1", "2")),
        "user": f"u{user}",
        "device": device,
        "genres": "|".join(genres),
        "age": str(rng.randrange(10, 80)),
        "price": f"{rng.lognormvariate(2, 1):.2f}",
        "views": str(int(rng.expovariate(0.2))),
        "seconds": str(int(rng.lognormvariate(3, 1.5))),
        "city": rng.choice(("Oslo", "Malm\u00f6", "Turku")),
    }
    for name in ("device", "age", "price", "seconds", "city"):
        if rng.random() < 0.04:
            row[name] = ""
    return row


def _with_flaws(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same rows, some of them malformed or there twice."""
    flaws = {"click": "perhaps", "weight": "-1", "time": "yesterday", "price": "cheap", "age": "old", "views": "1,5"}
    flawed = list(rows)
    for number, (name, value) in enumerate(flaws.items()):
        flawed[37 * (number + 1)] = {**flawed[37 * (number + 1)], name: value}
    flawed[500] = {**flawed[500], "click": ""}
    return [*flawed, *rows[10:16]]


def rows_to_score() -> list[dict[str, str]]:
    """Twenty rows of a later day; the last four hold what training never saw, or nothing."""
    rows = draw_rows(20, 20)
    rows[16] |= {"user": "u999", "device": "watch", "city": "Reykjav\u00edk"}
    rows[17] |= {"genres": "opera|noir|opera|drama", "views": "1000000"}
    rows[18] |= dict.fromkeys(("user", "device", "genres", "age", "price", "views", "seconds", "city"), "")
    rows[19] |= {"age": "-5", "price": "1e9", "seconds": "0"}
    return rows


def write_csv(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write a raw log; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------------------------------- what stays


def _pack(folder: Path) -> None:
    """Put a folder into a tar.xz of its name, the same bytes for the same files."""
    with tarfile.open(folder.with_name(f"{folder.name}.tar.xz"), "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder.parent).as_posix(), recursive=False, filter=_without_owner)
    shutil.rmtree(folder)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _remove_what_is_left_out(folder: Path) -> None:
    for name in LEFT_OUT:
        for path in sorted(folder.rglob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for database in folder.rglob("*.db"):
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("UPDATE runs SET user_id = 'golden', source_name = ''")
            # MLflow's own first experiment lies below the current folder.
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", (f"{PLACE}/mlruns",)
            )
        connection.execute("VACUUM")
        connection.close()


if __name__ == "__main__":
    main()
