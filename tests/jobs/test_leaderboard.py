"""jobs.leaderboard as a user runs it: through jobs.train on real Ray, resumed, repeated and refused."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import ConfigError, read_checked
from jobs.leaderboard import Leaderboard
from tests.jobs.test_train import write_config
from training.metrics import METRICS

ROOT = Path(__file__).parents[2]
LEADERBOARD = """
output = "{output}"
cells_folder = "{output}/cells"
reference = "TF4CTR"
seeds = [1]
num_resamples = 20
overrides = ["training.threads_per_worker=1", "training.max_epochs=1"]
[[datasets]]
name = "Tiny"
configs = ["{config}"]
[[models]]
name = "TF4CTR"
seeds = [1, 2]
[[models]]
name = "FM"
configs = ["jobs/configs/models/fm.toml"]
"""


def call(path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "jobs.leaderboard", "--config", str(path)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_leaderboard(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(valid=((64,),), test=((64,),)).path
    path, output = tmp_path / "leaderboard.toml", tmp_path / "board"
    text = LEADERBOARD.format(output=output, config=write_config(tmp_path, dataset))
    path.write_text(text)
    done = call(path)
    assert done.returncode == 0, done.stderr
    assert "2 seeds  test auc" in done.stdout and "reference" in done.stdout
    table = (output / "leaderboard.csv").read_text()
    rows = {row["model"]: row for row in csv.DictReader(table.splitlines())}
    assert rows["TF4CTR"]["seeds"] == "2" and float(rows["TF4CTR"]["test_auc_std"]) >= 0
    fm = rows["FM"]
    assert (fm["compared_on"], fm["compared_seeds"]) == ("test", "1")
    assert float(fm["auc_low"]) <= float(fm["auc_high"])
    results = {p.stem: json.loads(p.read_text()) for p in (output / "cells" / "results").glob("*.json")}
    assert sorted(results) == ["tiny--fm--seed=1", "tiny--tf4ctr--seed=1", "tiny--tf4ctr--seed=2"]
    one = results["tiny--tf4ctr--seed=1"]
    expected = float(fm["test_auc"]) - one["test"]["auc"]
    assert float(fm["auc_difference"]) == pytest.approx(expected, abs=1e-12)
    assert one["versions"]["torch"] and one["parameters"] > 0 and one["request"]["config"]["training"]["seed"] == 1
    assert {*METRICS, "rows"} == set(one["test"])
    page = (output / "leaderboard.html").read_text()
    assert "Minus TF4CTR" in page and "src=" not in page.split("</script>")[-1]

    # Killed after two cells: the third is made again, and everything comes out the same. A kept result from before a
    # metric and a config key existed is read as it is.
    del one["test"]["ece"], one["request"]["config"]["training"]["ema_decay"]
    (output / "cells" / "results" / "tiny--tf4ctr--seed=1.json").write_text(json.dumps(one))
    shutil.rmtree(output / "cells" / "runs" / "tiny" / "fm")
    (output / "cells" / "results" / "tiny--fm--seed=1.json").unlink()
    assert call(path).returncode == 0
    again = {row["model"]: row for row in csv.DictReader((output / "leaderboard.csv").read_text().splitlines())}
    for row in (*rows.values(), *again.values()):
        row.pop("train_seconds")
    assert fm["test_ece"] and rows["TF4CTR"]["test_ece"] and again["TF4CTR"]["test_ece"] == ""
    for name in ("test_ece", "test_ece_std"):
        again["TF4CTR"][name] = rows["TF4CTR"][name]
    assert again == rows

    path.write_text(text.replace("max_epochs=1", "max_epochs=2"))
    changed = call(path)
    assert changed.returncode == 1 and "is of another config or dataset: delete it" in changed.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('reference = "TF4CTR"', 'reference = "LR"', "'LR' is not the name of a model"),
        ('name = "FM"', 'name = "tf4ctr!"', "need names that differ"),
        ("num_resamples", "num_resample", "num_resample"),
        ('name = "Tiny"', 'name = "Tiny"\nseeds = [1]', "datasets.0.seeds"),
    ],
)
def test_wrong_leaderboards_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "leaderboard.toml"
    path.write_text(LEADERBOARD.format(output="x", config="y").replace(old, new))
    with pytest.raises(ConfigError, match=words):
        read_checked(str(path), Leaderboard)
