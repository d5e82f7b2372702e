"""Days of a log retrained as a user does it: real Spark, Ray, checks, gate and registry."""

import fcntl
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features.disk.dataset import DatasetManifest
from jobs.registry.registry import Registry
from jobs.retraining.retrain_folder import TRAINED_TAG
from training.ship.predict import Predictor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = """
[features]
label = "click"
[[features.sparse]]
name = "user"
encoding = {{ kind = "hash", num_buckets = 200 }}
[[features.sparse]]
name = "device"
encoding = {{ kind = "vocabulary" }}
[[features.dense]]
name = "price"
standardise = true
[pipeline]
output = "unused"
spark.master = "local[2]"
spark.driver_memory = "1g"
write.min_files = 2
[training]
from_data = []
dataset = "unused"
max_epochs = 1
global_batch_size = 64
evaluation_batch_size = 64
reader.num_streams = 2
optimizer.embedding_learning_rate = 0.1
[training.model]
embedding_dim = 4
easy = {{ kind = "mlp", hidden_units = [8], dropout = 0.0 }}
hard = {{ kind = "mlp", hidden_units = [8], dropout = 0.0 }}
[retrain]
root = "{folder}/retrain"
partitions = "{folder}/logs/day={{date}}/*.csv"
segments = ["device"]
gate = {{ max_ne = 1.2, max_logloss_rise = 0.01, min_calibration = 0.5, max_calibration = 2.0, max_score_psi = 1.0 }}
"""


def write_day(folder: Path, day: int, *, clicks: float = 1.0, devices: tuple[str, ...] = ("phone", "tv")) -> None:
    rng, path = random.Random(day), folder / "logs" / f"day=2024-01-{day:02d}" / "part.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("user,device,price,click\n")
        for _ in range(1_200):
            user, device = rng.randrange(150), rng.choice(devices)
            rate = min(1.0, clicks * (0.5 if user % 2 else 0.1) * (1.2 if device == "tv" else 1.0))
            file.write(f"u{user},{device},{rng.random():.3f},{int(rng.random() < rate)}\n")


def retrain(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.retrain", "--config", str(folder / "c.toml"), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days, retrained; as soon as it has begun, its config file is no config any more."""
    folder = tmp_path_factory.mktemp("log")
    config = folder / "c.toml"
    config.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    write_day(folder, 1)
    write_day(folder, 2, devices=("phone", "tv", "watch"))
    command = [sys.executable, "-m", "jobs.retrain", "--config", str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        while not (folder / "retrain" / ".lock").exists() and job.poll() is None:
            time.sleep(0.05)
        config.write_text("[training]\nmax_epochs = 'changed meanwhile'\n", encoding="utf-8")
        output, errors = job.communicate()
    config.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    assert job.returncode == 0, errors
    assert "20240102: version 1 promoted, trained on 20240101" in output
    return folder


def last(folder: Path) -> dict:
    return json.loads((folder / "retrain" / "last.json").read_text())


def verdict(folder: Path, day: int) -> dict:
    return json.loads((folder / "retrain" / "verdicts" / f"202401{day:02d}.json").read_text())


def test_days_come_and_the_champion_follows(folder: Path) -> None:
    registry = Registry.open(None, folder / "retrain" / "registry")
    first = registry.champion("ctr")
    assert first is not None and json.loads(first.tags[TRAINED_TAG]) == ["20240101"]
    assert "20240102: done before" in retrain(folder).stdout
    assert len(registry.list("ctr")) == 1 and last(folder) == verdict(folder, 2)
    assert "nothing is new" in retrain(folder, "--as-of", "2024-01-01").stdout
    assert last(folder)["verdict"] == "nothing"

    write_day(folder, 3, clicks=3.0)  # three times the clicks: something is broken
    shutil.copytree(folder / "logs" / "day=2024-01-02", folder / "logs" / "day=2024-01-04")
    write_day(folder, 5)
    write_day(folder, 6)
    dry = retrain(folder, "--dry-run", "--as-of", "2024-01-05")
    assert "would build and check 20240103, 20240104, 20240105\n" in dry.stdout
    assert not (folder / "retrain" / "partitions" / "20240103").exists()

    done = retrain(folder, "--as-of", "2024-01-05")
    assert done.returncode == 0, done.stderr
    found = verdict(folder, 5)
    assert (found["day"], found["trained_on"], found["is_warm"]) == ("20240105", ["20240102"], True)
    assert found["verdict"] == "promoted", done.stdout
    assert last(folder) == found and found["is_done"]
    assert "label rate" in done.stderr and "it has the rows of 20240102" in done.stderr
    assert not (folder / "retrain" / "partitions" / "20240106").exists()
    champion = registry.champion("ctr")
    assert champion is not None and champion.version == found["champion_version"] == 2
    assert json.loads(champion.tags[TRAINED_TAG]) == ["20240101", "20240102"]
    assert {"candidate", "champion"} == set(found["metrics"])

    predictor = Predictor.load(registry.fetch("models:/ctr@champion"))
    rows = [{"user": "u1", "device": device, "price": "0.5"} for device in ("watch", "boat", "car")]
    scores = predictor.predict(rows)
    # A device of the second day is known. Rows of a batch that are alike may differ in their last digit.
    assert scores[1] == pytest.approx(scores[2], abs=1e-7) != scores[0]

    days = [DatasetManifest.load(folder / "retrain" / "partitions" / f"2024010{day}") for day in (1, 2, 5)]
    learnt = [
        day.load_learnt(folder / "retrain" / "partitions" / f"2024010{i}")
        for i, day in zip((1, 2, 5), days, strict=True)
    ]
    assert learnt[1].extends(learnt[0]) and learnt[2].extends(learnt[1])


def test_what_was_decided_is_carried_out_once(folder: Path) -> None:
    """Killed between its verdict and the promotion, a retraining promotes when it is started again; and only then."""
    registry = Registry.open(None, folder / "retrain" / "registry")
    champion = registry.champion("ctr")
    assert champion is not None
    path = max((folder / "retrain" / "verdicts").glob("*.json"))
    decided = json.loads(path.read_text())
    assert decided["is_done"] and decided["version"] == champion.version
    registry.rollback("ctr")
    assert retrain(folder, "--as-of", "2024-01-05").returncode == 0
    assert registry.champion("ctr").version == champion.version - 1  # pyright: ignore[reportOptionalMemberAccess]
    path.write_text(json.dumps({**decided, "is_done": False}))
    assert retrain(folder, "--as-of", "2024-01-05").returncode == 0
    assert registry.champion("ctr").version == champion.version  # pyright: ignore[reportOptionalMemberAccess]
    assert json.loads(path.read_text())["is_done"]


def test_two_at_once(folder: Path) -> None:
    with (folder / "retrain" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = retrain(folder)
    assert done.returncode == 1 and "another retraining is at work" in done.stderr


def test_what_cannot_be_done_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    done = retrain(folder, f"retrain.partitions={tmp_path}/{{date}}.csv")
    assert done.returncode == 1 and "no partition is there: nothing matches" in done.stderr
    without = tmp_path / "c.toml"
    without.write_text((folder / "c.toml").read_text().split("[retrain]")[0], encoding="utf-8")
    shutil.copy(without, tmp_path / "d.toml")
    done = retrain(tmp_path)
    assert done.returncode == 2 and "config key 'retrain' is missing" in done.stderr
