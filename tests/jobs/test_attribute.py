"""jobs.attribute on a trained run, and what jobs.report makes of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from features.disk.trained_on import TrainedOn
from jobs import attribute
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from jobs.scoring.attribution_text import describe_attribution
from training.config import MLPEncoder, ModelConfig, MoEFusion, StreamGatesSelection, TrainingConfig
from training.data.opened_dataset import Dataset
from training.fit.run import Run, train_rank
from training.judge.metrics import auc, logloss
from training.ship.export import load_best

FIELDS = {"user", "genres", "device", "age", "row", "price"}


@pytest.fixture
def run(tmp_path: Path, make_dataset: Callable[..., Any], one_rank: None) -> Run:
    """A run of two epochs with gates in its selection and in its fusion."""
    dataset = Dataset.open(make_dataset(valid=((60, 40), (20,))).path)
    model = ModelConfig(
        embedding_dim=8,
        embedding_init_std=0.05,
        selection=StreamGatesSelection(easy_context=("user",), hidden_units=(8,)),
        easy=MLPEncoder((8,)),
        hard=MLPEncoder((8,)),
        fusion=MoEFusion(),
    )
    config = TrainingConfig(str(dataset.path), model, max_epochs=2, global_batch_size=32, evaluation_batch_size=32)
    made = Run(tmp_path / "run")
    made.write("config.json", {"training": asdict(config), "features": asdict(dataset.manifest.schema)})
    made.write_dataset(TrainedOn.of(dataset.path, dataset.manifest).to_json())
    train_rank(made, config)
    return made


def test_the_program_and_the_report(run: Run, run_here):
    before = render_report(read_run(run.path))
    assert f"python -m jobs.attribute --run {run.path} makes it" in before

    code, out, error = run_here(attribute.main, "--run", run.path, "--repeats", 2)
    assert (code, error) == (0, "")  # no progress bar where nobody looks
    *lines, last = out.splitlines()
    line, found = json.loads(last), run.read("attribution.json")
    scores = load_best(run).score("valid")
    logits, labels, weights = scores.logits, scores.labels, scores.weights
    assert found["auc"] == pytest.approx(auc(logits, labels, weights), abs=1e-9)
    assert found["logloss"] == pytest.approx(logloss(logits, labels, weights), abs=1e-6)
    assert (found["split"], found["rows"], found["split_rows"], found["repeats"]) == ("valid", 120, 120, 2)
    assert (line["rows"], line["auc"]) == (120, found["auc"])
    assert line["auc_drop"]["features"] == {entry["name"]: entry["auc_drop"] for entry in found["features"]}
    assert line["auc_drop"]["features"].keys() == FIELDS
    assert all(any(text.startswith(f"{name} ") for text in lines) for name in FIELDS)
    best_step, dataset = run.read("metrics.json")["best_step"], run.read("dataset.json")["dataset"]
    assert (found["step"], found["dataset"]) == (line["step"], line["dataset"]) == (best_step, dataset)

    page = render_report(read_run(run.path))
    titles = (
        "AUC lost when a feature is permuted",
        "AUC lost when a branch&#39;s output is permuted",
        "Parts of the fused logit",
        "Where the branches are right",
        "Gate: selection, easy stream, by field",
        "Gate: selection, hard stream, by field",
        "Gate: fusion",
    )
    for title in titles:
        assert f"<h3>{title}</h3>" in page
    bars = json.dumps([entry["auc_drop"] for entry in found["features"]], separators=(",", ":"))
    assert bars in page
    assert f"120 rows of the split valid; checkpoint of step {best_step}." in page
    assert "of an older checkpoint" not in page and "of another dataset" not in page

    # The run went on and found a better checkpoint.
    check = {"event": "evaluation", "step": best_step + 6, "best": True}
    Run(run.path).append(check)
    page = render_report(read_run(run.path))
    assert "This is of an older checkpoint, run it again" in page and f"of step {best_step + 6} now." in page
    run.rewind(best_step)

    # A longer split is sampled, and a foreign dataset named; branch logits that no loss asks to predict are not drawn.
    other = shutil.copytree(dataset, run.path.parent / "other")
    foreign = ("--dataset", other, "--split", "train", "--max-rows", 50, "--repeats", 1)
    _, _, error = run_here(attribute.main, "--run", run.path, *foreign)
    assert "50 evenly spaced rows of 192; --max-rows takes more" in error
    words = f"50 rows of 192 (evenly spaced) of the split train of another dataset, {other};"
    assert words in render_report(read_run(run.path))
    files = read_run(run.path)
    bare = {**files.attribution, "p_t": None, "gates": []}
    page = render_report(replace(files, attribution=bare))
    assert "Where the branches are right" not in page
    assert "Gate:" not in page


def test_the_summary_has_a_line_a_number():
    series = {"user": {"mean": 1.01, "deviation": 0.2}, "genres": {"mean": 0.9, "deviation": 0.1}}
    drop = {"auc_drop": 0.1, "auc_drop_std": None, "logloss_rise": 0.2, "logloss_rise_std": None}
    found = {
        "rows": 1_000,
        "auc": 0.8,
        "logloss": 0.4,
        "features": [{"name": "user", **drop}],
        "branches": [{"name": "easy", **drop}],
        "parts": [
            {"name": "easy", "mean_abs_part": 0.5, "variance_share": 0.9, "auc": 0.75},
            {"name": "joint", "mean_abs_part": 0.25, "variance_share": 0.1},
        ],
        "fusion_weights": None,
        "gates": [{"name": "selection, easy stream", "top": 2, "series": series}],
    }
    lines = describe_attribution(found).splitlines()
    assert lines[-6:] == [
        "easy: moves the fused logit by 0.500 and 90.0 % of its variance; its own auc 0.750000",
        "joint: moves the fused logit by 0.250 and 10.0 % of its variance",
        "",
        "gate, selection, easy stream: mean and deviation, from 0 to 2",
        "user    1.010 +- 0.200",
        "genres  0.900 +- 0.100",
    ]


def test_what_it_refuses(tmp_path: Path, run_here):
    code, out, error = run_here(attribute.main, "--run", tmp_path)
    assert (code, out) == (1, "")
    assert f"error: {tmp_path} is not a usable run" in error
    code, _, error = run_here(attribute.main, "--run", tmp_path, "--repeats", 0)
    assert code == 2 and "--repeats must be 1 or more" in error
