"""The road in a circle: the probability served for a raw row is the one the trained model gave that row."""

import csv
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from features.encoding import MissingColumnError, RowError
from jobs.report import render
from jobs.runfiles import RunFiles
from training.batch import to_batch
from training.calibration import Calibration
from training.export import export, load_best
from training.metrics import evaluate
from training.predict import ArtifactError, Predictor
from training.run import Run

ROOT = Path(__file__).parents[1]
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


def call(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def spine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str | None]]]:
    """Everything the commands leave behind, and the log's well-formed rows."""
    folder = tmp_path_factory.mktemp("spine")
    rows = write_log(folder)
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    config = ("--config", str(folder / "config.toml"))
    call("jobs.build_dataset", *config)
    call("jobs.train", *config, "--run", str(folder / "run"))
    call("jobs.export", "--run", str(folder / "run"), "--output", str(folder / "artifact"))
    return folder, rows


def test_served_equals_trained(spine) -> None:
    folder, rows = spine
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


def test_scoring_a_log_keeps_every_row(spine) -> None:
    folder, rows = spine
    output = folder / "scores.csv"
    log, artifact = str(folder / "log.csv.gz"), str(folder / "artifact")
    call("jobs.score", "--artifact", artifact, "--input", log, "--output", str(output))
    with output.open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [int(score["line"]) for score in scores] == list(range(2, 1002))
    malformed = [int(score["line"]) - 2 for score in scores if score["error"]]
    assert malformed == list(range(50, 1000, 100))
    assert all("'price'" in score["error"] and not score["probability"] for score in scores if score["error"])
    predictor = Predictor.load(folder / "artifact")
    assert float(scores[0]["probability"]) == pytest.approx(predictor.predict([rows["r0"]])[0], abs=1e-8)
    assert json.loads((folder / "scores.csv.json").read_text())["errors"] == 10


def test_evaluate_prints_one_json_object_last(spine) -> None:
    folder, _ = spine
    result = json.loads(call("jobs.evaluate", "--run", str(folder / "run"), "--split", "test").splitlines()[-1])
    assert set(result) == {"split", "rows", "auc", "logloss", "ne", "calibration", "ece", "gauc"}
    assert result["split"] == "test" and result["rows"] == 198
    valid = json.loads(call("jobs.evaluate", "--run", str(folder / "run"), "--split", "valid").splitlines()[-1])
    trained = Run(folder / "run").read("metrics.json")["valid"]
    assert valid["auc"] == pytest.approx(trained["auc"], abs=1e-6)
    assert valid["logloss"] == pytest.approx(trained["logloss"], abs=1e-6)


def test_calibrated_served_equals_calibrated_trained(spine, tmp_path: Path) -> None:
    """Scale and offset are set by hand: this log's labels are noise, and nothing can be fitted to them."""
    folder, rows = spine
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

    predictor = export(run, tmp_path / "artifact")
    with torch.no_grad():
        z = load_best(run).model(to_batch(predictor._encoder.encode(list(rows.values())), predictor.schema)).fused
    expected = 1 / (1 + np.exp(-(0.3 * z.double().numpy() - 1.7)))
    served, before = (p.predict(list(rows.values())) for p in (predictor, raw))
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-7)
    assert np.array_equal(np.argsort(served, kind="stable"), np.argsort(before, kind="stable"))
    assert json.loads((tmp_path / "artifact" / "calibration.json").read_text()) == numbers
    golden = [json.loads(line) for line in (tmp_path / "artifact" / "golden.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([g["probability"] for g in golden], predictor.predict([g["row"] for g in golden]))

    result = json.loads(call("jobs.evaluate", "--run", str(run.path), "--split", "test").splitlines()[-1])
    logits, labels, weights, groups = load_best(Run(folder / "run")).score("test")
    expected = evaluate(0.3 * logits - 1.7, labels, weights, groups)
    assert result == {"split": "test", **expected}
    assert run.read("evaluation/test.json")["metrics"] == expected
    page = render(RunFiles.load(run.path))
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
    folder, rows = spine
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
    folder, _ = spine
    artifact = tmp_path / "artifact"
    shutil.copytree(folder / "artifact", artifact)
    content = (artifact / name).read_bytes()
    (artifact / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"was changed after export"):
        Predictor.load(artifact)


def test_artifact_that_scores_differently_is_refused(spine, tmp_path: Path) -> None:
    folder, _ = spine
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


def test_dataset_with_other_vocabularies_is_refused(spine, tmp_path: Path) -> None:
    folder, _ = spine
    config = ("--config", str(folder / "config.toml"))
    earlier = "pipeline.split.valid_from=1970-01-01T00:05:00"
    call("jobs.build_dataset", *config, f"pipeline.output={tmp_path}/other", earlier)
    arguments = ["jobs.evaluate", "--run", str(folder / "run"), "--dataset", f"{tmp_path}/other"]
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "its ids mean something else" in done.stderr
