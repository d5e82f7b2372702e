"""The road in a circle: the probability served for a raw row is the one the trained model gave that row."""

import csv
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from features.disk.artifact import ArtifactError
from features.rows import MissingColumnError, RowError
from jobs import evaluate as evaluate_run
from jobs import export as export_run
from jobs import score
from jobs.cli.config import load_config
from jobs.launch.dataset_build import run_build
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from tests.sockets import Sockets, check_loopback, watch
from training.data.batch import to_batch
from training.fit.run import Run
from training.judge.calibration import Calibration
from training.judge.metrics import evaluate, remarks
from training.ship.export import export, load_best
from training.ship.predict import Predictor

COLUMNS = ("row_id", "rating", "user", "movie", "genres", "price", "age", "when")
CONFIG = """
[features]
label = "rating >= 4"
group_id = "user"
timestamp = {{ column = "when" }}
carry = ["row_id"]
[[features.sparse]]
name = "user"
encoding = {{ kind = "hash", num_buckets = 40 }}
[[features.sparse]]
name = "movie"
encoding = {{ kind = "vocabulary", min_count = 2 }}
[[features.sparse]]
name = "genres"
separator = "|"
max_length = 3
encoding = {{ kind = "vocabulary" }}
[[features.sparse]]
name = "user_x_movie"
columns = ["user", "movie"]
encoding = {{ kind = "hash", num_buckets = 200, salt = "cross" }}
[[features.sparse]]
name = "price_bucket"
columns = ["price"]
encoding = {{ kind = "quantiles", num_buckets = 4 }}
[[features.sparse]]
name = "age_bucket"
columns = ["age"]
encoding = {{ kind = "log_squared", min_count = 2 }}
[[features.dense]]
name = "price"
log1p = true
standardise = true
[pipeline]
output = "{folder}/dataset"
input.train = "{folder}/log.csv.gz"
split = {{ kind = "time", valid_from = "1970-01-01T00:10:00", test_from = "1970-01-01T00:13:20" }}
quality.max_rejected_fraction = 0.05
[training]
from_data = []
dataset = "{folder}/dataset"
max_epochs = 2
global_batch_size = 64
model.embedding_dim = 8
model.embedding_init_std = 0.1
model.easy.hidden_units = [8]
model.hard.hidden_units = [16]
"""


def write_log(folder: Path) -> dict[str, dict[str, str | None]]:
    """1,000 rows over 1,000 seconds, a few of them malformed; returns the well-formed ones by row id."""
    rng = np.random.default_rng(5)
    rows = {}
    with gzip.open(folder / "log.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for i in range(1000):
            row = {
                "row_id": f"r{i}",
                "rating": str(rng.integers(1, 6)),
                "user": f"Zoë {rng.integers(60)}" if i % 9 else "",
                "movie": f"m{int(rng.pareto(1.0))}",
                "genres": "|".join(rng.choice(["a", "b", "c,d", "é"], rng.integers(0, 5))),
                "price": f"{rng.lognormal():.4f}" if i % 7 else "",
                "age": str(rng.integers(0, 90)) if i % 5 else "",
                "when": str(i),
            }
            malformed = i % 100 == 50
            if malformed:
                row["price"] = "much"
            writer.writerow(row.values())
            if not malformed:
                rows[row["row_id"]] = {k: v or None for k, v in row.items()}
    return rows


@dataclass(frozen=True)
class Spine:
    """Everything the commands leave behind."""

    folder: Path
    rows: dict[str, dict[str, str | None]]
    """The log's well-formed rows by row id."""
    listened: dict[str, Sockets]
    """Where Spark and Ray listened meanwhile."""


@pytest.fixture(scope="module")
def spine(tmp_path_factory: pytest.TempPathFactory) -> Spine:
    folder = tmp_path_factory.mktemp("spine")
    rows = write_log(folder)
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    config = ("--config", str(folder / "config.toml"))
    spark = watch("jobs.build_dataset", *config)
    ray = watch("jobs.train", *config, "--run", str(folder / "run"), "training.num_workers=2")
    export(Run(folder / "run"), folder / "artifact")
    return Spine(folder, rows, {"Spark": spark, "Ray": ray})


def test_clusters_listen_on_loopback(spine: Spine) -> None:
    check_loopback(spine.listened["Spark"], "java")
    check_loopback(spine.listened["Ray"], "gcs_server", "raylet", "RayTrainWorker")


def test_served_equals_trained(spine) -> None:
    folder, rows = spine.folder, spine.rows
    model, dataset, *_ = load_best(Run(folder / "run"))
    predictor = Predictor.load(folder / "artifact")
    manifest = dataset.manifest
    assert manifest.num_input_rows == 1000 and manifest.rejected.num_rows == 10
    seen = []
    for split in ("train", "valid", "test"):
        for file in manifest.split(split).files:
            table = pq.read_table(dataset.path / file.path)
            columns = {}
            for name in table.column_names:
                values = table[name].to_pylist()
                columns[name] = np.array(values)
            ids = list(columns.pop("row_id"))
            with torch.no_grad():
                trained = torch.sigmoid(model(to_batch(columns, manifest.schema)).fused.double()).numpy()
            served = predictor.predict([rows[i] for i in ids])
            np.testing.assert_allclose(served, trained, rtol=0, atol=1e-6)
            labels = [float(int(rows[i]["rating"]) >= 4) for i in ids]  # pyright: ignore[reportArgumentType]
            assert labels == list(columns["label"])
            seen += ids
    assert sorted(seen) == sorted(rows), "every well-formed row is in exactly one split"
    assert len(np.unique(served)) > 1


def test_scoring_a_log_keeps_every_row(spine, run_here) -> None:
    folder, rows = spine.folder, spine.rows
    output = folder / "scores.csv"
    log, artifact = folder / "log.csv.gz", folder / "artifact"
    code, _, error = run_here(score.main, "--artifact", artifact, "--input", log, "--output", output)
    assert code == 0, error
    with output.open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [int(score["line"]) for score in scores] == list(range(2, 1002))
    malformed = [int(score["line"]) - 2 for score in scores if score["error"]]
    assert malformed == list(range(50, 1000, 100))
    assert all("'price'" in score["error"] and not score["probability"] for score in scores if score["error"])
    predictor = Predictor.load(folder / "artifact")
    assert float(scores[0]["probability"]) == pytest.approx(predictor.predict([rows["r0"]])[0], abs=1e-8)
    assert json.loads((folder / "scores.csv.json").read_text())["errors"] == 10


def evaluated(run_here: Callable[..., tuple[int, str, str]], run: Path, split: str) -> dict[str, Any]:
    """The JSON object that the program prints last."""
    code, out, error = run_here(evaluate_run.main, "--run", run, "--split", split)
    assert code == 0, error
    return json.loads(out.splitlines()[-1])


def test_evaluate_prints_one_json_object_last(spine, run_here) -> None:
    folder = spine.folder
    result = evaluated(run_here, folder / "run", "test")
    assert set(result) == {"split", "rows", "auc", "logloss", "ne", "calibration", "ece", "gauc", "remarks", "data"}
    assert result["split"] == "test" and result["rows"] == 198
    assert result["data"]["is_own"] and result["data"]["rows"] == 198
    valid = evaluated(run_here, folder / "run", "valid")
    trained = Run(folder / "run").read("metrics.json")["valid"]
    assert valid["auc"] == pytest.approx(trained["auc"], abs=1e-6)
    assert valid["logloss"] == pytest.approx(trained["logloss"], abs=1e-6)


def test_calibrated_served_equals_calibrated_trained(spine, tmp_path: Path, run_here) -> None:
    """Scale and offset are set by hand: this log's labels are noise, and nothing can be fitted to them."""
    folder, rows = spine.folder, spine.rows
    raw = Predictor.load(folder / "artifact")
    assert not (folder / "artifact" / "calibration.json").exists() and raw.calibration == Calibration()
    shutil.copytree(folder / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    config = run.read("config.json")
    config["training"]["calibration"] = {"kind": "platt"}
    run.write("config.json", config)
    numbers = {"scale": 0.3, "offset": -1.7}
    run.write("calibration.json", {"step": run.read("metrics.json")["best_step"], **numbers})
    run.write("metrics.json", {**run.read("metrics.json"), "platt": numbers})

    code, out, error = run_here(export_run.main, "--run", run.path, "--output", tmp_path / "artifact")
    assert code == 0 and out.endswith("golden rows replayed\n"), error
    predictor = Predictor.load(tmp_path / "artifact")
    with torch.no_grad():
        z = load_best(run).model(to_batch(predictor._encoder.encode(list(rows.values())), predictor.schema)).fused
    expected = 1 / (1 + np.exp(-(0.3 * z.double().numpy() - 1.7)))
    served, before = (p.predict(list(rows.values())) for p in (predictor, raw))
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-7)
    assert np.array_equal(np.argsort(served, kind="stable"), np.argsort(before, kind="stable"))
    assert json.loads((tmp_path / "artifact" / "calibration.json").read_text()) == numbers
    golden = [json.loads(line) for line in (tmp_path / "artifact" / "golden.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([g["probability"] for g in golden], predictor.predict([g["row"] for g in golden]))

    result = evaluated(run_here, run.path, "test")
    assert result.pop("data")["is_own"]
    raw = load_best(Run(folder / "run")).score("test")
    expected = evaluate(replace(raw, logits=0.3 * raw.logits - 1.7))
    assert result == {"split": "test", **expected, "remarks": remarks(expected)}
    assert run.read("evaluation/test.json")["metrics"] == expected
    page = render_report(read_run(run.path))
    assert "Calibrated: sigmoid(scale * logit + offset), scale 0.3 and offset -1.7 fitted on valid." in page
    assert f'<td class="number">{expected["ece"]:.6g}</td>' in page

    stored = tmp_path / "artifact" / "calibration.json"
    stored.write_text(stored.read_text().replace("0.3", "0.4"))
    with pytest.raises(ArtifactError, match=r"calibration\.json is missing or was changed after export"):
        Predictor.load(tmp_path / "artifact")
    listed = tmp_path / "artifact" / "artifact.json"
    description = json.loads(listed.read_text())
    stored.write_text('{"scale": -1, "offset": 0}')
    description["files"]["calibration.json"] = hashlib.sha256(stored.read_bytes()).hexdigest()
    listed.write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"not a usable artifact: calibration\.json is not understood"):
        Predictor.load(tmp_path / "artifact")
    stored.unlink()
    del description["files"]["calibration.json"]
    listed.write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"not a usable artifact: calibration\.json cannot be read"):
        Predictor.load(tmp_path / "artifact")


def test_unseen_values_score_and_missing_columns_do_not(spine) -> None:
    folder, rows = spine.folder, spine.rows
    predictor = Predictor.load(folder / "artifact")
    new = {**rows["r1"], "user": "nobody yet", "movie": "unheard of", "genres": "new|newer"}
    assert 0 < predictor.predict([new])[0] < 1
    without = {k: v for k, v in new.items() if k != "movie"}
    with pytest.raises(MissingColumnError, match="row 2: column 'movie' is missing"):
        predictor.predict([new, without])
    with pytest.raises(RowError, match="column 'price': 'dear' is not a number"):
        predictor.predict([{**new, "price": "dear"}])


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.jsonl", "learnt/vocabulary.movie.json"])
def test_changed_artifact_is_refused(spine, tmp_path: Path, name: str) -> None:
    folder = spine.folder
    artifact = tmp_path / "artifact"
    shutil.copytree(folder / "artifact", artifact)
    content = (artifact / name).read_bytes()
    (artifact / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"was changed after export"):
        Predictor.load(artifact)


def test_artifact_that_scores_differently_is_refused(spine, tmp_path: Path) -> None:
    folder = spine.folder
    artifact = tmp_path / "artifact"
    shutil.copytree(folder / "artifact", artifact)
    golden = artifact / "golden.jsonl"
    lines = [json.loads(line) for line in golden.read_text().splitlines()]
    assert len(lines) == 64
    lines[3]["probability"] += 2e-6
    golden.write_text("".join(json.dumps(line) + "\n" for line in lines))
    description = json.loads((artifact / "artifact.json").read_text())
    description["files"]["golden.jsonl"] = hashlib.sha256(golden.read_bytes()).hexdigest()
    (artifact / "artifact.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"row 4 scores .* when exported"):
        Predictor.load(artifact)


def test_dataset_with_other_vocabularies_is_refused(spine, spark, tmp_path: Path, run_here) -> None:
    folder = spine.folder
    earlier = [f"pipeline.output={tmp_path}/other", "pipeline.split.valid_from=1970-01-01T00:05:00"]
    run_build(spark, load_config([str(folder / "config.toml")], earlier))
    code, _, error = run_here(evaluate_run.main, "--run", folder / "run", "--dataset", tmp_path / "other")
    assert code == 1 and "its ids mean something else" in error
