"""A metric of one's own is registered in one place, and then computed, monitored, recorded and shown."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from jobs.cli.config import parse_config
from jobs.cli.errors import ConfigError
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from tests.stand_ins.tiny_model import train_tiny
from tests.training.fit.test_run import make_config
from training import plugins
from training.fit.run import Run, train_rank
from training.judge.metrics import METRICS, Metric, evaluate, metric_texts, register_metric
from training.judge.scores import Scores, to_probs


@pytest.fixture
def brier() -> Iterator[Metric]:
    def compute(scores: Scores) -> float | None:
        if not len(scores.logits):
            return None
        return float(np.average((to_probs(scores.logits) - scores.labels) ** 2, weights=scores.weights))

    metric = Metric(compute, "lower", "mean squared error of the probability", ".3f")
    before = plugins.registered()
    register_metric("brier", metric)
    yield metric
    plugins.restore(before)


def test_it_is_computed_and_printed(brier: Metric):
    metrics = evaluate(Scores.of([0.0, 0.0], [0, 1]))
    assert list(metrics) == ["rows", "auc", "logloss", "ne", "calibration", "ece", "gauc", "brier"]
    assert metrics["brier"] == pytest.approx(0.25)
    assert metric_texts(metrics, "brier", "gauc") == ["brier 0.250", "gauc undefined"]
    assert metric_texts(evaluate(Scores.of([], [])), "brier") == ["brier undefined"]
    assert brier.sign == -1


def test_it_is_monitored_recorded_and_shown(brier: Metric, make_dataset: Callable[..., Any], tmp_path: Path):
    config = make_config(make_dataset().path, monitor={"brier": -1.0}, max_epochs=1)
    run = Run(tmp_path / "run")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        metrics = train_rank(run, config)
    finally:
        dist.destroy_process_group()
    [check] = [e for e in map(json.loads, run.history.read_text().splitlines()) if e["event"] == "evaluation"]
    assert check["monitor"] == -check["brier"]
    assert metrics["valid"]["brier"] == pytest.approx(check["brier"], rel=1e-4)
    train_tiny(tmp_path / "tiny", seed=1)
    assert ">brier</th>" in render_report(read_run(tmp_path / "tiny" / "run"))


def test_monitored_names_are_checked(brier: Metric):
    def tree(name: str, weight: float = 1.0) -> dict[str, Any]:
        return {
            "features": {"label": "click", "sparse": [{"name": "user", "encoding": {"kind": "vocabulary"}}]},
            "pipeline": {"output": "unused", "input": {"format": {"kind": "csv"}}},
            "training": {"dataset": "unused", "monitor": {name: weight}},
        }

    assert parse_config(tree("brier", -1.0)).training.monitor == {"brier": -1.0}
    with pytest.raises(ConfigError, match=r"training\.monitor.*'logless' is none of auc, .*did you mean 'logloss'\?"):
        parse_config(tree("logless"))
    with pytest.raises(ConfigError, match=r"'calibration' is none of"):
        parse_config(tree("calibration"))


@pytest.mark.parametrize("name", ["auc", "rows", "monitor"])
def test_taken_names_are_refused(name: str):
    with pytest.raises(ValueError, match="the name is taken"):
        register_metric(name, METRICS["auc"])
