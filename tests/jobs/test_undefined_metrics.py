"""Metrics that the rows do not define: what trains all the same, what is refused, and how it is printed."""

import dataclasses
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from features.disk.run_folder import METRICS_NAME, TABLES_NAME, evaluation_name
from jobs import leaderboard, train
from jobs.cli.config import load_config, read_checked
from jobs.cli.text_table import text_table
from jobs.compare import matrix_run
from jobs.compare.best_configs import conclude, describe_search, write_search
from jobs.compare.matrix import Leaderboard
from jobs.compare.ranking import describe_leaderboard, summarise, write_leaderboard
from jobs.compare.search import Search
from jobs.demos.generated_logs import describe_logs
from jobs.demos.pipeline_demo import describe_demo
from jobs.demos.retrain_week import describe_day
from jobs.launch.follow import describe_training, follow
from jobs.launch.run_guard import prepare_run
from jobs.pages.check_sections import gate_section
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from jobs.pages.status_page import render_status
from jobs.pages.table_section import rows
from jobs.pages.values import shown
from jobs.retraining.retraining_status import RetrainingStatus, read_status
from jobs.retraining.status_text import describe_status
from jobs.scoring.attribution_text import describe_attribution
from tests.jobs.test_leaderboard import LEADERBOARD, train_here
from tests.jobs.test_report import Page
from tests.jobs.test_train import write_config
from tests.jobs.test_tune import SEARCH
from tests.stand_ins.retrained import make_retrained
from tests.stand_ins.tiny_dataset import write_tiny_dataset
from training.fit.run import Run, train_rank
from training.judge.metrics import METRICS

LOGLOSS = "training.monitor={logloss = -1.0}"
DEFINED = {"rows": 20, **dict.fromkeys(METRICS, 0.5)}
TABLES: dict[str, Any] = {
    "step": 1,
    "dataset": "dataset",
    "split": "valid",
    "threads": 1,
    "vocabulary_bytes": 10,
    "precisions": [
        {
            **DEFINED,
            "tables": "float32",
            "table_bytes": 10,
            "weight_bytes": 20,
            "max_difference": 0.0,
            "latency": [{"batch_size": 1, "milliseconds": 1.0, "rows_per_second": 1.0}],
        }
    ],
}
"""Result of jobs.compare_tables."""
CHANGES = {"auc_drop": 0.1, "auc_drop_std": 0.01, "logloss_rise": 0.1, "logloss_rise_std": 0.01}
ATTRIBUTION: dict[str, Any] = {
    **DEFINED,
    "features": [{"name": "user", "kind": "sparse", **CHANGES}],
    "branches": [],
    "parts": [{"name": "hard", "variance_share": None, "mean_abs_part": 0.1, **DEFINED}],
    "fusion_weights": None,
    "gates": [],
    "p_t": None,
}
"""Result of jobs.attribute."""


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one rank, evaluated on validation."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = write_tiny_dataset(folder / "dataset").path
    config = load_config([str(write_config(folder, dataset))], ["training.max_epochs=1"])
    run = Run(folder / "run")
    run.path.mkdir()
    prepared = prepare_run(run.path, config, resume=False)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        train_rank(run, prepared.training, schema=prepared.features)
    finally:
        dist.destroy_process_group()
    return run.path


@pytest.fixture(scope="module")
def status(tmp_path_factory: pytest.TempPathFactory) -> RetrainingStatus:
    made = make_retrained(tmp_path_factory.mktemp("retrained"))
    return read_status(made.root, "ctr", None, load_config([str(made.config)], []))


def without(values: Any, name: str) -> Any:
    """JSON values in which no metric of this name, or change of it, is defined."""
    if isinstance(values, dict):
        changed = (name, *(f"{name}_{change}" for change in ("drop", "rise", "drop_std", "rise_std")))
        return {key: None if key in changed else without(value, name) for key, value in values.items()}
    return [without(value, name) for value in values] if isinstance(values, list) else values


@pytest.mark.parametrize("name", METRICS)
def test_every_text_and_page_of_a_run_takes_a_metric_without_a_value(
    trained: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(trained, run.path, ignore=shutil.ignore_patterns("checkpoints"))
    for file in (METRICS_NAME, evaluation_name("valid")):
        run.write(file, without(run.read(file), name))
    lines = [without(json.loads(line), name) for line in run.history.read_text().splitlines()]
    run.history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.write(TABLES_NAME, without(TABLES, name))
    assert f"{name} undefined" in describe_training(run.path, 1.0, [name])
    ended = threading.Event()
    ended.set()
    with caplog.at_level(logging.INFO):
        follow(run.history, dataclasses.replace(run.config(), monitor={name: 1.0}), ended)
    assert f"{name} undefined" in caplog.text
    page = Page(render_report(read_run(run.path)))
    [row] = [row for row in page.rows if row[:1] == ["this model, valid"]]
    assert row[2 + list(METRICS).index(name)] == "\N{EN DASH}"
    texts = text_table([[shown(value) for value in line] for line in rows(run.read(TABLES_NAME))[1]])
    assert texts.count("\N{EN DASH}") == (name in ("auc", "logloss", "calibration"))
    found = without(ATTRIBUTION, name)
    assert describe_attribution(found).count("undefined") == 2 * (name in ("auc", "logloss"))


@pytest.mark.parametrize("name", METRICS)
def test_a_leaderboard_and_a_search_take_a_metric_without_a_value(make_dataset, tmp_path: Path, name: str) -> None:
    config = write_config(tmp_path, make_dataset().path)
    path = tmp_path / "leaderboard.toml"
    path.write_text(LEADERBOARD.format(output=tmp_path, config=config))
    board = read_checked(str(path), Leaderboard)
    cells = list(board.cells())
    values = {"rows": 20, **dict.fromkeys(METRICS, 0.5), name: None}
    logits = np.linspace(-1, 1, 20)
    labels = np.arange(20) % 2
    for cell in cells:
        cell.scores.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"logits": logits, "labels": labels, "weights": np.ones(20)}
        np.savez(cell.scores, **{f"test.{key}": array for key, array in arrays.items()})
    result = {"parameters": 7, "epochs": 1, "seconds": {"train": 1.0}, "valid": values, "test": values}
    found = summarise(board, cells, [result] * len(cells))
    write_leaderboard(tmp_path / "board", board, found)
    assert describe_leaderboard(found).count("undefined") == 2 * (name in ("auc", "logloss"))
    page = (tmp_path / "board" / "leaderboard.html").read_text()
    assert f"test {name}" not in page and f"test {name.upper()}, mean" not in page

    path = tmp_path / "search.toml"
    path.write_text(SEARCH.format(output=tmp_path, config=config))
    search = read_checked(str(path), Search)
    [trials, *_] = search.trials().values()
    row = {"model": trials[0].model.name, "trial": 1, "error": None, "monitor": -0.5, **values}
    row |= {"best_epoch": 1, "stopped_early": False, "epochs": 1, "seconds": 1.0, "overrides": {}}
    best = conclude(str(path), trials, [row])
    write_search(tmp_path, search, [best], [row])
    text = describe_search(tmp_path, search, [best], [row])
    assert f" {name} " not in text and "None" not in text


@pytest.mark.parametrize("name", METRICS)
def test_summaries_of_retraining_take_a_metric_without_a_value(status: RetrainingStatus, name: str) -> None:
    outcomes = tuple(
        dataclasses.replace(
            outcome, metrics=without(outcome.metrics, name), **({name: None} if name in ("auc", "logloss") else {})
        )
        for outcome in status.outcomes
    )
    changed = dataclasses.replace(status, outcomes=outcomes)
    assert "None" not in describe_status(changed)
    assert "None" not in "".join(cell for row in Page(render_status(changed)).rows for cell in row)
    (judged, *_) = (outcome for outcome in reversed(outcomes) if outcome.gate is not None)
    assert judged.gate is not None
    table = gate_section(judged.gate, judged.metrics)["metrics"]
    assert all(row[table.header.index(name)] is None for row in table.rows)
    day = {"day": "2014-10-21", "verdict": "promoted", "stopped_by": None, "champion_version": 1}
    assert "None" not in " ".join(describe_day({**day, "auc": 0.5, "logloss": 0.5, name: None}))
