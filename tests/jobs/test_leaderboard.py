"""jobs.leaderboard: its table and page, resumed through jobs.train on real Ray, repeated and refused."""

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from jobs import leaderboard
from jobs.cli.config import read_checked, read_resolved
from jobs.cli.errors import ConfigError
from jobs.compare import matrix_run
from jobs.compare.matrix import Leaderboard
from jobs.launch.run_guard import prepare_run
from tests.jobs.test_train import write_config
from training.fit.run import Run, train_rank
from training.judge.metrics import METRICS

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
TREES = """
[[models]]
name = "LightGBM"
library = "lightgbm"
"""


def train_here(module: str, words: Sequence[str], log: Path) -> None:
    """What jobs.train does, without Ray, whose start takes far longer than so small a training."""
    assert module == "jobs.train"
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolved")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args(words)
    config = prepare_run(arguments.run, read_resolved(arguments.resolved), arguments.resume)
    train_rank(Run(arguments.run), config.training, schema=config.features)


def test_leaderboard(make_dataset, tmp_path: Path, run_here, one_rank, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(valid=((64,),), test=((64,),)).path
    path, output = tmp_path / "leaderboard.toml", tmp_path / "board"
    config = write_config(tmp_path, dataset)
    text = LEADERBOARD.format(output=output, config=config) + TREES
    path.write_text(text)

    def change_config_and_train(module: str, words: Sequence[str], log: Path) -> None:
        config.write_text("changed = 'meanwhile'")  # the child has its config from its parent
        train_here(module, words, log)

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the other tests' own
    with monkeypatch.context() as patch:
        patch.setattr(matrix_run, "_call", change_config_and_train)
        code, out, error = run_here(leaderboard.main, "--config", path)
    write_config(tmp_path, dataset)
    assert code == 0, error
    assert "2 seeds  test auc" in out and "reference" in out
    table = (output / "leaderboard.csv").read_text()
    rows = {row["model"]: row for row in csv.DictReader(table.splitlines())}
    assert rows["TF4CTR"]["seeds"] == "2" and float(rows["TF4CTR"]["test_auc_std"]) >= 0
    fm = rows["FM"]
    assert (fm["compared_on"], fm["compared_seeds"]) == ("test", "1")
    assert float(fm["auc_low"]) <= float(fm["auc_high"])
    results = {p.stem: json.loads(p.read_text()) for p in (output / "cells" / "results").glob("*.json")}
    names = ("fm--seed=1", "lightgbm--seed=1", "tf4ctr--seed=1", "tf4ctr--seed=2")
    assert sorted(results) == [f"tiny--{name}" for name in names]
    assert results["tiny--lightgbm--seed=1"]["parameters"] > 0 and rows["LightGBM"]["compared_on"] == "test"
    one = results["tiny--tf4ctr--seed=1"]
    expected = float(fm["test_auc"]) - one["test"]["auc"]
    assert float(fm["auc_difference"]) == pytest.approx(expected, abs=1e-12)
    assert one["versions"]["torch"] and one["parameters"] > 0 and one["request"]["config"]["training"]["seed"] == 1
    assert {*METRICS, "rows"} == set(one["test"])
    page = (output / "leaderboard.html").read_text()
    assert "Minus TF4CTR" in page and "src=" not in page.split("</script>")[-1]

    # Killed after two cells: jobs.train makes the third again, and everything comes out the same. A kept result from
    # before a metric and a config key existed is read as it is.
    del one["test"]["ece"], one["request"]["config"]["training"]["ema_decay"]
    (output / "cells" / "results" / "tiny--tf4ctr--seed=1.json").write_text(json.dumps(one))
    shutil.rmtree(output / "cells" / "runs" / "tiny" / "fm")
    (output / "cells" / "results" / "tiny--fm--seed=1.json").unlink()
    assert run_here(leaderboard.main, "--config", path)[0] == 0
    again = {row["model"]: row for row in csv.DictReader((output / "leaderboard.csv").read_text().splitlines())}
    for row in (*rows.values(), *again.values()):
        row.pop("train_seconds")
    assert fm["test_ece"] and rows["TF4CTR"]["test_ece"] and again["TF4CTR"]["test_ece"] == ""
    for name in ("test_ece", "test_ece_std"):
        again["TF4CTR"][name] = rows["TF4CTR"][name]
    assert again == rows

    path.write_text(text.replace("max_epochs=1", "max_epochs=2"))
    code, _, error = run_here(leaderboard.main, "--config", path)
    assert code == 1 and "is of another config or dataset: delete it" in error


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
