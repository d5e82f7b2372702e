"""Programs with a plugin from outside the tree, as a user runs them: Ray's workers, Spark's executors, replicas."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.test_train import write_config
from tests.stand_ins.plugin import page_files
from tests.stand_ins.tiny_dataset import TinyDataset
from tests.stand_ins.tiny_model import COLUMNS, raw_rows
from tests.stand_ins.tiny_service import started

ROOT = Path(__file__).parents[2]
NAMES = "my_package.encoders,my_package.objectives,my_package.metrics"


@pytest.mark.slow
def test_training_under_ray_exporting_scoring_and_serving(
    make_dataset: Callable[..., TinyDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, run, log = tmp_path / "user", tmp_path / "run", tmp_path / "log.csv"
    for name, text in page_files().items():
        (user / name).parent.mkdir(parents=True, exist_ok=True)
        (user / name).write_text(text)
    config = write_config(tmp_path, make_dataset().path, num_workers=2)
    rows = raw_rows(30)
    log.write_text(",".join(COLUMNS) + "\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
    monkeypatch.setenv("PYTHONPATH", str(user))

    def call(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", f"jobs.{program}", *map(str, arguments)]
        return subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)

    trained = call("train", "--config", config, "--config", user / "mine.toml", "--run", run)
    assert trained.returncode == 0, trained.stderr
    saved = json.loads((run / "config.json").read_text())["training"]
    assert (saved["model"]["hard"]["kind"], saved["model"]["objective"]["kind"]) == ("inner_product", "focal")

    valid = json.loads((run / "metrics.json").read_text())["valid"]
    assert 0 < valid["brier"] < 1 and f"brier {valid['brier']:.4f}" in trained.stdout
    assert call("report", "--run", run).returncode == 0
    assert ">brier</th>" in (run / "report.html").read_text()

    artifact = run / "artifact"
    refused = call("export", "--run", run, "--output", artifact, "--golden-input", log)
    assert refused.returncode == 1 and not artifact.exists()
    assert f"{run} needs the plugin 'my_package.encoders'" in refused.stderr and "Traceback" not in refused.stderr
    monkeypatch.setenv("TWINFOCUS_PLUGINS", NAMES)
    exported = call("export", "--run", run, "--output", artifact, "--golden-input", log)
    assert exported.returncode == 0, exported.stderr

    assert call("score", "--artifact", artifact, "--input", log, "--output", tmp_path / "here.csv").returncode == 0
    spread = call("score", "--engine", "spark", "--artifact", artifact, "--input", log, "--output", tmp_path / "there")
    assert spread.returncode == 0, spread.stderr
    with (tmp_path / "here.csv").open() as here, (tmp_path / "there" / "log.csv").open() as there:
        scores, others = ([float(row["probability"]) for row in csv.DictReader(file)] for file in (here, there))
    assert scores == others and len(set(scores)) > 10
    with started(tmp_path, "--artifact", artifact) as service:
        assert service.score(rows)["scores"] == pytest.approx(scores)


@pytest.mark.slow
def test_a_worker_without_the_plugin_says_so_in_the_run(
    make_dataset: Callable[..., TinyDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module removes itself as the driver imports it, like one that the driver's machine alone has."""
    user, run = tmp_path / "user", tmp_path / "run"
    user.mkdir()
    (user / "only_here.py").write_text("from pathlib import Path\n\nPath(__file__).unlink()\n")
    config = write_config(tmp_path, make_dataset().path)
    monkeypatch.setenv("PYTHONPATH", str(user))
    words = [sys.executable, "-m", "jobs.train", "--config", str(config), "--run", str(run)]
    done = subprocess.run(
        [*words, 'training.plugins=["only_here"]'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    message = (
        "training.plugins: plugin only_here is not found: no module 'only_here' can be imported here; its folder must "
        "be in PYTHONPATH of this program and of its workers"
    )
    assert (done.returncode, done.stdout) == (1, "") and not list(user.glob("*.py"))
    assert done.stderr.splitlines()[-1] == f"error: {message}"
    failure = json.loads((run / "failure.json").read_text())
    assert failure["rank"] == 0 and failure["message"].endswith(message)
    assert message in (run / "errors" / "rank=0.txt").read_text()
