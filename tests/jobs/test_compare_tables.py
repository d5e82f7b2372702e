"""jobs.compare_tables on a trained run, what jobs.report makes of it, and jobs.export in each precision."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import compare_tables, export
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from tests.training.fit.test_run import make_config
from tests.training.fit.test_warm_start import finish
from training.fit.run import Run
from training.judge.metrics import auc, logloss
from training.judge.scores import to_probs
from training.ship.export import load_best
from training.ship.predict import Predictor
from training.ship.table_precision import BATCH_SIZES, MIN_ROUNDS, PRECISIONS, time_models


@pytest.fixture
def run(tmp_path: Path, make_dataset: Callable[..., Any], one_rank: None) -> Run:
    """Of the fused lane: hard tables 8 wide, easy ones 4."""
    return finish(tmp_path / "run", make_config(make_dataset(valid=((60, 40), (20,))).path))


def test_the_program_and_the_report(run: Run, run_here) -> None:
    command = f"python -m jobs.compare_tables --run {run.path}"
    assert f"{command} holds float16 and int8 against float32" in render_report(read_run(run.path))

    code, out, error = run_here(compare_tables.main, "--run", run.path, "--seconds", 0)
    assert (code, error) == (0, "")
    header, *lines, last = out.splitlines()
    found = json.loads(last)
    assert found == run.read("tables.json") and found["split"] == "valid"
    best = load_best(run)
    rows = sum(best.dataset.num_embeddings().values())
    assert [entry["table_bytes"] for entry in found["precisions"]] == [
        rows * 4 * 12,
        rows * 2 * 12,
        rows * (2 * 4 + 12),
    ]
    scores = best.score("valid")
    exact, labels, weights = scores.logits, scores.labels, scores.weights
    for entry, line, tables in zip(found["precisions"], lines, PRECISIONS, strict=True):
        logits = best.with_tables(tables).score("valid").logits
        assert (entry["tables"], entry["rows"]) == (tables, 120) and line.split()[0] == tables
        assert entry["auc"] == pytest.approx(auc(logits, labels, weights))
        assert entry["logloss"] == pytest.approx(logloss(logits, labels, weights))
        difference = np.abs(to_probs(logits) - to_probs(exact))
        assert entry["max_difference"] == pytest.approx(difference.max())
        assert entry["mean_difference"] == pytest.approx(difference.mean())
        assert (entry["max_difference"] > 0) == (tables != "float32")
        assert [timed["batch_size"] for timed in entry["latency"]] == list(BATCH_SIZES)
        for timed in entry["latency"]:
            assert timed["milliseconds"] > 0
            assert timed["rows_per_second"] == pytest.approx(1e3 * timed["batch_size"] / timed["milliseconds"])
    assert "ms a batch of 4,096" in header

    page = render_report(read_run(run.path))
    assert f"120 rows of the split valid of {best.dataset.path}; checkpoint of step {best.step}." in page
    assert "<td>int8</td>" in page and ">41.67 %</td>" in page and f"{command}</p>" not in page
    run.append({"event": "evaluation", "step": best.step + 6, "best": True})
    page = render_report(read_run(run.path))
    assert f"This is of step {best.step} and the best one is step {best.step + 6} now: {command}" in page


def test_models_take_turns_over_the_same_batches(make_dataset: Callable[..., Any]) -> None:
    tiny, calls = make_dataset(), []

    def watch(name: str) -> Any:
        return lambda batch: calls.append((name, batch.batch_size, batch.sparse_features.values().tolist()))

    models: dict[Any, Any] = {name: watch(name) for name in PRECISIONS}
    found = time_models(models, tiny.columns["valid"], tiny.schema, seconds=0.0, seed=1)
    assert {name: len(latency) for name, latency in found.items()} == dict.fromkeys(PRECISIONS, 3)
    assert [size for _, size, _ in calls] == [s for s in BATCH_SIZES for _ in range(3 * (MIN_ROUNDS + 1))]
    for start in range(0, len(calls), 3):
        names, _, ids = zip(*calls[start : start + 3], strict=True)
        assert set(names) == set(PRECISIONS) and ids[0] == ids[1] == ids[2]
    assert {calls[start][0] for start in range(0, len(calls), 3)} == set(PRECISIONS)


def test_export_says_which_tables(run: Run, tmp_path: Path, run_here) -> None:
    log = tmp_path / "made.csv"
    log.write_text("user,genres,device,age,row,price\nu,a|b,mobile,33,1,2.5\n")
    arguments = ("--run", run.path, "--output", tmp_path / "artifact", "--golden-input", log)
    code, out, _ = run_here(export.main, *arguments, "--tables", "int8")
    assert code == 0 and out.startswith("exported 8 int8 tables and the network")
    Predictor.load(tmp_path / "artifact")
    code, out, _ = run_here(export.main, *arguments)  # replaces it
    assert code == 0 and out.startswith("exported 8 float32 tables")
    assert "tables" not in json.loads((tmp_path / "artifact" / "artifact.json").read_text())
    code, _, error = run_here(export.main, *arguments, "--tables", "int4")
    assert code == 2 and "invalid choice: 'int4'" in error


def test_what_it_refuses(tmp_path: Path, run_here) -> None:
    code, out, error = run_here(compare_tables.main, "--run", tmp_path)
    assert (code, out) == (1, "") and f"error: {tmp_path} is not a usable run" in error
