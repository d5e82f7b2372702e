"""Metrics that the rows do not define: what trains all the same, what is refused, and how it is printed."""

import dataclasses
import json
import logging
import threading
from pathlib import Path

import pytest
import torch

from jobs import leaderboard, train
from jobs.cli.config import load_config, read_checked
from jobs.compare import matrix_run
from jobs.compare.best_configs import conclude, describe_search
from jobs.compare.search import Search
from jobs.demos.generated_logs import describe_logs
from jobs.demos.pipeline_demo import describe_demo
from jobs.launch.follow import describe_training, follow
from jobs.launch.run_guard import prepare_run
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from tests.jobs.test_leaderboard import LEADERBOARD, train_here
from tests.jobs.test_report import Page
from tests.jobs.test_train import write_config
from tests.jobs.test_tune import SEARCH
from training.fit.run import Run, train_rank

LOGLOSS = "training.monitor={logloss = -1.0}"


def test_a_run_on_validation_rows_of_one_class(
    make_dataset, tmp_path: Path, one_rank, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset(valid=((1,),)).path
    config = load_config([str(write_config(tmp_path, dataset))], [LOGLOSS, "training.max_epochs=1"])
    run = Run(tmp_path / "run")
    run.path.mkdir()
    prepared = prepare_run(run.path, config, resume=False)
    train_rank(run, prepared.training, schema=prepared.features)
    assert run.read("metrics.json")["valid"]["auc"] is None
    text = describe_training(run.path, 1.0, prepared.training.monitor)
    assert "auc undefined  logloss 0." in text and run.is_finished
    ended = threading.Event()
    ended.set()
    with caplog.at_level(logging.INFO):
        follow(run.history, prepared.training, ended)
    assert "epoch 1: valid auc undefined logloss 0." in caplog.text
    [row] = [row for row in Page(render_report(read_run(run.path))).rows if row[:1] == ["this model, valid"]]
    assert row[1:3] == ["1", "\N{EN DASH}"]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"kind": "time", "valid_from": "2030-01-01"}, "has no validation rows, though its build was to make some"),
        ({"kind": "hash", "valid": 0.1}, "has no validation rows, though its build was to make some"),
        ({"kind": "files"}, None),
        ({"kind": "hash", "valid": 0.0}, None),
    ],
)
def test_no_validation_rows(make_dataset, tmp_path: Path, split: dict[str, object], message: str | None) -> None:
    made = make_dataset(valid=())
    built = {"pipeline": {"output": "d", "input": {"train": ["a.csv"]}, "split": split}}
    dataclasses.replace(made.manifest, config=built).write(made.path)
    config = load_config([str(write_config(tmp_path, made.path))], [])
    (tmp_path / "run").mkdir()
    if message is None:
        prepare_run(tmp_path / "run", config, resume=False)
    else:
        with pytest.raises(ValueError, match=message):
            prepare_run(tmp_path / "run", config, resume=False)


def test_a_monitor_without_a_value_is_refused_before_ray_starts(
    make_dataset, tmp_path: Path, run_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train_on_ray", None)
    config = write_config(tmp_path, make_dataset(valid=((1,),)).path)
    code, _, error = run_here(train.main, "--config", config, "--run", tmp_path / "run")
    assert code == 1 and "training.monitor uses auc, undefined on rows of one class" in error


def test_a_leaderboard_without_an_auc(
    make_dataset, tmp_path: Path, run_here, one_rank, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(valid=((1,),), test=((1,),)).path
    path, output = tmp_path / "leaderboard.toml", tmp_path / "board"
    text = LEADERBOARD.format(output=output, config=write_config(tmp_path, dataset))
    path.write_text(text.replace("overrides = [", f'overrides = ["{LOGLOSS}", '))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the other tests' own
    monkeypatch.setattr(matrix_run, "_call", train_here)
    code, out, error = run_here(leaderboard.main, "--config", path)
    assert code == 0, error
    [reference, other] = [line for line in out.splitlines() if "test auc undefined" in line]
    assert reference.endswith("reference") and other.endswith("not compared")
    rows = json.loads((output / "leaderboard.json").read_text())
    assert [row.get("compared_on", "") for row in rows] == ["", None] and "test_auc" not in rows[0]


def test_a_search_without_an_auc(make_dataset, tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text(SEARCH.format(output=tmp_path, config=write_config(tmp_path, make_dataset().path)))
    search = read_checked(str(path), Search)
    [trials, *_] = search.trials().values()
    row = {"model": trials[0].model.name, "trial": 1, "error": None, "monitor": -0.5, "auc": None, "logloss": 0.5}
    row |= {"best_epoch": 1, "stopped_early": False, "epochs": 1, "seconds": 1.0, "overrides": {}}
    best = conclude(str(path), trials, [row])
    assert "monitor -0.500000  logloss 0.500000" in describe_search(tmp_path, search, [best], [row])


def test_summaries_of_demos() -> None:
    metrics = {name: {"auc": None, "logloss": 0.4} for name in ("oracle", "test", "linear", "constant")}
    text = describe_demo({**metrics, "rows_per_second": {"read": 1.0}})
    assert text.count("undefined") == 5 and "distance to the oracle: undefined AUC" in text
    logs = {"rows": 1, "days": 1, "files": 1, "seconds": 1.0, "click_rate": 0.0, "oracle": metrics["oracle"]}
    assert "auc undefined, logloss 0.400000" in describe_logs(logs, "logs")
