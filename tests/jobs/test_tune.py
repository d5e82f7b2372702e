"""jobs.tune as a user runs it: trials on real Ray Tune, resumed and refused; and how values are drawn."""

import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from ray.tune.experiment import Trial
from tqdm import tqdm

from jobs.cli.config import load_config, read_checked
from jobs.cli.errors import ConfigError
from jobs.cli.mlflow_client import import_mlflow
from jobs.compare.search import Range, Search, sample
from jobs.compare.trials import _Record
from tests.jobs.test_train import write_config

ROOT = Path(__file__).parents[2]
MARK = "TWINFOCUS_TEST_TUNE"
RATE = "training.optimizer.embedding_learning_rate"
SGD = "training.optimizer.embedding_optimizer=sgd"
SEARCH = """
output = "{output}"
configs = ["{config}"]
num_trials = 3
max_epochs = 3
grace_epochs = 1
reduction_factor = 2
seed = 153
overrides = ["training.checkpoint.keep=1", 'training.schedule={{patience=9}}']
[space]
"training.optimizer.embedding_learning_rate" = {{ log_uniform = [1e-4, 0.5] }}
[[models]]
name = "Twin Focus"
[models.space]
"training.model.hard.hidden_units" = {{ choice = [[8], [8, 8]] }}
"training.model.selection.kind" = {{ choice = ["gate", "shared"] }}
[[models]]
name = "FM"
configs = ["jobs/configs/models/fm.toml"]
overrides = ["training.optimizer.embedding_optimizer=sgd"]
space."training.optimizer.embedding_learning_rate" = {{ choice = [0.01, 1e30, 0.5] }}
"""


def call(path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "jobs.tune", "--config", str(path)]
    environment = os.environ | {MARK: str(path)}
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def left_running(path: Path) -> list[psutil.Process]:
    """Processes that a call has started and that are still there some seconds after it."""
    deadline, left = time.monotonic() + 30, []
    while time.monotonic() < deadline:
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(path) and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
            except psutil.Error:
                continue
        if not left:
            break
        time.sleep(0.2)
    return left


def asha(histories: list[list[float]], grace: int, factor: float, max_epochs: int) -> list[int]:
    """Epochs of trials that run one after the other: at each rung a trial must reach the quantile of those before."""
    rungs: dict[int, list[float]] = {}
    epochs = []
    for history in histories:
        for epoch, value in enumerate(history, 1):
            if epoch == max_epochs:
                break
            if math.log(epoch / grace, factor).is_integer():
                before = rungs.setdefault(epoch, [])
                stopped = bool(before) and value < np.percentile(before, 100 * (1 - 1 / factor))
                before.append(value)
                if stopped:
                    break
        epochs.append(epoch)
    return epochs


def test_search(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(valid=((64,),)).path
    for file in (dataset / "v1" / "test").iterdir():
        file.write_bytes(b"x" * file.stat().st_size)  # whoever reads a test row fails
    path, output, tiny = tmp_path / "search.toml", tmp_path / "found", write_config(tmp_path, dataset)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = f'overrides = ["training.tracking.tensorboard=true", "training.tracking.mlflow={store}", '
    text = SEARCH.format(output=output, config=tiny).replace("overrides = [", tracking, 1)
    path.write_text(text)
    done = call(path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and left_running(path) == []
    assert done.stdout.startswith("each model: 3 trials of at most 3 epochs") and "best-fm.toml" in done.stdout

    found = json.loads((output / "tune.json").read_text())
    twin, fm = found["models"]
    trials = {f"{stem}-{number:03d}" for stem in ("twin-focus", "fm") for number in (1, 2, 3)}
    assert {folder.name for folder in (output / "tensorboard").iterdir()} == trials
    mlflow = import_mlflow().MlflowClient(tracking_uri=store)
    tracked = mlflow.search_runs([mlflow.get_experiment_by_name("twinfocus").experiment_id])
    assert {run.info.run_name.split("/")[-1] for run in tracked} == trials
    assert found["budget"]["num_trials"] == twin["trials"] == fm["trials"] == 3
    of = {name: [row for row in found["trials"] if row["model"] == name] for name in ("Twin Focus", "FM")}
    results = {p.stem: json.loads(p.read_text()) for p in (output / "trials").iterdir()}  # and no folder is left
    failed = [row["trial"] for row in of["FM"] if row["overrides"][RATE] == 1e30]
    assert failed and fm["failed"] == len(failed)
    assert all("the loss became" in row["error"] for row in of["FM"] if row["trial"] in failed)
    assert all(f"FM, trial {number} failed: the loss became" in done.stdout for number in failed)
    assert len(results) == 6 and {n for n in (1, 2, 3) if results[f"fm-{n:03d}"]["error"]} == set(failed)
    for name, stem, model in (("Twin Focus", "twin-focus", twin), ("FM", "fm", fm)):
        finished = [row for row in of[name] if row["error"] is None]
        histories = [results[f"{stem}-{row['trial']:03d}"]["evaluations"] for row in finished]
        monitors = [[evaluation["monitor"] for evaluation in history] for history in histories]
        assert [row["epochs"] for row in finished] == asha(monitors, 1, 2, 3) == [len(m) for m in monitors]
        assert [row["stopped_early"] for row in finished] == [len(m) < 3 for m in monitors]
        assert [row["monitor"] for row in finished] == [max(m) for m in monitors]
        assert model["best"]["monitor"] == max(map(max, monitors)) and model["seconds"] > 0
        best = output / model["config"]
        layers = [str(tiny), *(["jobs/configs/models/fm.toml"] if name == "FM" else []), str(best)]
        result = results[f"{stem}-{model['best']['trial']:03d}"]
        config = load_config(layers)
        assert config.to_dict() == result["request"]["config"]
        assert config.training.max_epochs == 3 and config.training.schedule.patience == 9
        assert config.training.optimizer.embedding_learning_rate == result["overrides"][RATE]
        assert " ".join(f"--config {layer}" for layer in layers) in best.read_text()
    assert of["FM"][2]["stopped_early"]
    with (output / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row[RATE] for row in rows] == [str(row["overrides"][RATE]) for row in found["trials"]]

    # A result from before a metric and a config key existed is kept.
    older = output / "trials" / "twin-focus-001.json"
    result = json.loads(older.read_text())
    for row in (result, *result["evaluations"]):
        assert row.pop("ece") >= 0
    del result["request"]["config"]["training"]["ema_decay"]
    older.write_text(json.dumps(result))
    # Killed before a trial that ASHA stops: it is stopped again, beside the kept ones, which are not run again.
    again = output / "trials" / "fm-003.json"
    again.unlink()
    before = {p: p.stat().st_mtime_ns for p in (output / "trials").iterdir()}
    assert call(path).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (output / "trials").iterdir() if p != again} == before
    repeated = json.loads((output / "tune.json").read_text())
    for row in (*found["trials"], *repeated["trials"]):
        row.pop("seconds")
    assert found["trials"][0].pop("ece") is not None
    assert repeated["trials"] == found["trials"]

    path.write_text(text.replace("max_epochs = 3", "max_epochs = 2"))
    changed = call(path)
    assert changed.returncode == 1 and "is of another config, dataset or budget" in changed.stderr


def test_what_is_wrong_with_the_data_ends_the_search(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(valid=((64,),)).path
    for file in (dataset / "v1" / "train").iterdir():
        file.write_bytes(b"x" * file.stat().st_size)
    path, output = tmp_path / "search.toml", tmp_path / "found"
    text = SEARCH.format(output=output, config=write_config(tmp_path, dataset))
    path.write_text(text.replace("num_trials = 3", "num_trials = 1"))
    done = call(path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: 1 trials of Twin Focus died") and str(dataset) in done.stderr
    assert not list((output / "trials").glob("*.json"))


def test_a_store_that_goes_away_ends_no_search(make_dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A trial that diverged while MLflow answered, and one that ends when it does so no more."""
    database, output = tmp_path / "mlflow.db", tmp_path / "found"
    text = SEARCH.format(output=output, config=write_config(tmp_path, make_dataset(valid=((64,),)).path))
    more = f'"training.tracking.tensorboard=true", "training.tracking.mlflow=sqlite:///{database}", '
    (tmp_path / "search.toml").write_text(text.replace("overrides = [", f"overrides = [{more}", 1))
    trials = read_checked(str(tmp_path / "search.toml"), Search).trials()["FM"][:2]
    record = _Record(trials, [None, None], tqdm(disable=True))
    for index, trial in enumerate(trials):
        trial.folder.mkdir(parents=True)
        (trial.folder / "config.json").write_text('{"training": {"seed": 7}}')  # as the trial settled it
        event = {"event": "evaluation", "step": 1, "auc": 0.5}
        (trial.folder / "history.jsonl").write_text(json.dumps(event) + "\n")
        one = Trial("work", config={"index": index}, stub=True)
        if index == 0:
            record.on_trial_result(0, [], one, {"epochs": 0, "monitor": -math.inf, "error": "the loss became nan"})
        else:
            database.write_text("no database, but as long as the header of one " * 10)
        record.on_trial_complete(0, [], one)
        assert trial.result.exists() and not trial.folder.exists()
        assert list((output / "tensorboard" / trial.result.stem).iterdir())
        if index == 0:
            mlflow = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{database}")
            [run] = mlflow.search_runs([mlflow.get_experiment_by_name("twinfocus").experiment_id])
            assert run.info.status == "FAILED" and run.data.metrics == {"valid/auc": 0.5}
            assert run.data.params == {"training.seed": "7"} and not caplog.records
    assert "FM, trial 2 is not recorded in MLflow: config key 'training.tracking.mlflow': " in caplog.text


def test_values_are_spread_over_their_range_and_repeat() -> None:
    space = {
        "a": Range(choice=("x", True, 2, [3, 4])),
        "b": Range(integer=(1, 3)),
        "c": Range(uniform=(-1.0, 3.0)),
        "d": Range(log_uniform=(1e-4, 1e-2)),
    }
    samples = sample(space, 2_000, seed=5)
    assert samples[:20] == sample(space, 20, seed=5) != sample(space, 20, seed=6)
    alone = sample({"d": space["d"]}, 20, seed=5)
    assert [values["d"] for values in alone] == [values["d"] for values in samples[:20]]
    columns = {key: [values[key] for values in samples] for key in space}
    for value in ("x", True, 2, [3, 4]):
        assert columns["a"].count(value) == pytest.approx(500, abs=80)
    assert {type(value) for value in columns["a"]} == {str, bool, int, list}
    for value in (1, 2, 3):
        assert columns["b"].count(value) == pytest.approx(667, abs=90)
    assert np.quantile(columns["c"], [0, 0.5, 1]) == pytest.approx([-1, 1, 3], abs=0.2)
    assert np.quantile(columns["d"], [0, 0.5, 1]) == pytest.approx([1e-4, 1e-3, 1e-2], rel=0.2)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_trials", "num_trial", "num_trial"),
        ("grace_epochs = 1", "grace_epochs = 4", r"grace_epochs \(4\) must not be above max_epochs"),
        ("log_uniform = [1e-4, 0.5]", "uniform = [2, 1]", "embedding_learning_rate: uniform .* is empty"),
        ("log_uniform = [1e-4, 0.5]", "log_uniform = [0, 1]", "embedding_learning_rate: log_uniform .* above 0"),
        ("log_uniform = [1e-4, 0.5]", "integer = [0, 1], choice = [1]", "give one of .*got choice, integer"),
        ("log_uniform = [1e-4, 0.5]", "normal = [0, 1]", "embedding_learning_rate.normal"),
        ('name = "FM"', 'name = "twin focus!"', "need names that differ"),
        ("selection.kind", "selection.kinds", "Twin Focus, trial 1: unknown config key .*kinds"),
        ("training.model.selection.kind", "features.label", "'features.label' cannot be searched"),
        ("training.model.selection.kind", "training.max_epochs", "'training.max_epochs' cannot be searched"),
        ("training.model.selection.kind", "training.monitor.auc", "'training.monitor.auc' cannot be searched"),
        ("training.model.selection.kind", "training.num_workers", "'training.num_workers' cannot be searched"),
        ("training.model.selection.kind", "training.threads_per_worker", "'training.threads_per_worker' cannot be"),
        ("training.model.selection.kind", "training.device", "'training.device' cannot be searched"),
        (SGD, "training.monitor={gauc=1.0}", "training.monitor must be the same .* FM, trial 1 and .* Twin Focus"),
        (SGD, "training.device=cuda", "training.device must be the same for every trial"),
        (SGD, "training.dataset=other", "training.dataset must be the same .* 'other' for FM"),
        ('"gate", "shared"', '"gat", "gat"', "Twin Focus, trial 1: config key .*selection"),
        ("checkpoint.keep=1", "max_epochs=9", "max_epochs of the search sets it"),
        ("checkpoint.keep=1", "optimizer={}", "keys do not fit together"),
    ],
)
def test_wrong_searches_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "search.toml"
    text = SEARCH.format(output=tmp_path, config=write_config(tmp_path, tmp_path))
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        read_checked(str(path), Search).trials()


def test_shipped_searches_load() -> None:
    for path in sorted(Path("jobs/configs/tune").glob("*.toml")):
        search = read_checked(str(path), Search)
        trials = search.trials()
        assert list(trials) == [model.name for model in search.models]
        assert all(len(of_model) == search.num_trials for of_model in trials.values())
        header = path.read_text().split("output =")[0]
        assert f"jobs.tune          --config {path}" in header and "Cost" in header and "Expect" in header
