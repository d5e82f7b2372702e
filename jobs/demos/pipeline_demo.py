"""Demo: the whole pipeline on generated logs, each step run by the command that a user would call.

The model is compared with the generator's own probability (the oracle), with a linear model and with a constant.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet

from features.disk.dataset import BUILD_NAME, DatasetManifest
from features.disk.run_folder import CONFIG_NAME, METRICS_NAME
from jobs.cli.config import Config, load_config
from jobs.cli.config_arguments import hand_on
from jobs.cli.text_table import text_table
from pipeline.java import JAVA_OPTIONS
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.judge.metrics import METRICS, evaluate
from training.judge.scores import Scores

LINEAR = 'training.model={easy={kind="linear"},hard={kind="linear"},fusion={kind="sum"},objective={kind="bce"}}'
"""Override that makes a logistic regression: two linear streams add up to one."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Demo: one run of the pipeline; ``folder`` is also the training run's folder."""

    folder: Path
    config: str
    rows: int

    @property
    def dataset(self) -> Path:
        """Folder of the dataset."""
        return self.folder.parent / f"{self.folder.name}-dataset"

    @property
    def logs(self) -> Path:
        """Folder of the generated logs."""
        return self.folder.parent / f"{self.folder.name}-logs"

    def run(self) -> dict[str, Any]:
        """Run every step; return the final content of ``metrics.json``."""
        _clear(self.folder)
        overrides = [
            f"pipeline.input.train={self.logs}",
            f"pipeline.output={self.dataset}",
            f"training.dataset={self.dataset}",
        ]
        config = load_config([self.config], overrides)
        hand_on(config, self._resolved_file())
        hand_on(load_config([self.config], [*overrides, LINEAR]), self._resolved_file("linear"))
        python = ["python", "-m"]
        _step("generate logs", [*python, "jobs.generate_logs", "--output", str(self.logs), "--rows", str(self.rows)])
        _step("build the dataset (spark-submit)", self._spark_submit())
        _step("train TF4CTR", [*python, "jobs.train", *self._resolved(), "--run", str(self.folder)])
        linear = str(self.folder / "linear")
        _step("train a linear model", [*python, "jobs.train", *self._resolved("linear"), "--run", linear])
        tests = {}
        for name, run in (("test", str(self.folder)), ("linear", linear)):
            output = _step(f"evaluate ({name})", [*python, "jobs.evaluate", "--run", run, "--split", "test"])
            tests[name] = json.loads(output.splitlines()[-1])
        artifact = str(self.folder / "artifact")
        _step("export", [*python, "jobs.export", "--run", str(self.folder), "--output", artifact])
        scores = str(self.folder / "scores.csv")
        raw = str(sorted(self.logs.glob("*.csv*"))[-1])
        _step("score", [*python, "jobs.score", "--artifact", artifact, "--input", raw, "--output", scores])
        _step("a user's history", [*python, "jobs.history", "--dataset", str(self.dataset), "--user", _user_of(raw)])
        metrics = self._metrics(tests, config)
        (self.folder / METRICS_NAME).write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        _step("report", [*python, "jobs.report", "--run", str(self.folder)])
        return metrics

    def _resolved_file(self, model: str = "tf4ctr") -> Path:
        """Return the path of a model's resolved config, which all steps read."""
        return self.folder.parent / f"{self.folder.name}-configs" / f"{model}.json"

    def _resolved(self, model: str = "tf4ctr") -> list[str]:
        return ["--resolved", str(self._resolved_file(model))]

    def _spark_submit(self) -> list[str]:
        return [
            "spark-submit",
            "--master=local[*]",
            "--driver-memory=4g",
            f"--driver-java-options={JAVA_OPTIONS}",
            "--conf=spark.log.level=WARN",
            "--py-files=dist/twinfocus.zip",
            "jobs/build_dataset.py",
            *self._resolved(),
        ]

    def _metrics(self, tests: dict[str, Any], config: Config) -> dict[str, Any]:
        metrics = json.loads((self.folder / METRICS_NAME).read_text(encoding="utf-8"))
        build = json.loads((self.dataset / BUILD_NAME).read_text(encoding="utf-8"))
        table = _read_split(self.dataset, "test", ["label", "click_probability"])
        probability = table["click_probability"].to_numpy().astype(np.float64)
        labels = table["label"].to_numpy().astype(np.float64)
        oracle = evaluate(Scores.of(np.log(probability) - np.log1p(-probability), labels))
        constant = evaluate(Scores.of(np.zeros_like(labels) + _logit(labels.mean()), labels))
        return {
            **metrics,
            "oracle": {"auc": oracle["auc"], "logloss": oracle["logloss"]},
            "test": tests["test"],
            "linear": tests["linear"],
            "constant": {"auc": constant["auc"], "logloss": constant["logloss"]},
            "rows_per_second": {
                "build_dataset": build["rows_per_second"],
                "read": _read_speed(self.dataset, config),
                "train": metrics["train"]["rows_per_second"],
            },
        }


def _step(title: str, command: list[str]) -> str:
    """Run one command with its stderr passed through; print its stdout and return it.

    Raises:
        ValueError: it failed; names the command.
    """
    print(f"\n== {title}\n$ {' '.join(command)}", flush=True)
    started = time.perf_counter()
    # spark-submit looks for pyspark in the first python3 of the path.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)  # noqa: S603
    print(done.stdout, end="")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    if done.returncode:
        raise ValueError(f"step {title!r} failed with exit code {done.returncode}: {' '.join(command)}")
    return done.stdout


def _clear(folder: Path) -> None:
    """Remove an older demo; refuse any other folder."""
    if folder.exists() and not (folder / CONFIG_NAME).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a demo run: choose another --run")
    shutil.rmtree(folder, ignore_errors=True)


def _user_of(raw: str) -> str:
    """Name the user of a log's last row."""
    return str(pyarrow.csv.read_csv(raw).column("user_id")[-1])


def _read_split(dataset: Path, split: str, columns: list[str]) -> Any:
    files = DatasetManifest.load(dataset).split(split).files
    return pyarrow.parquet.read_table([str(dataset / f.path) for f in files], columns=columns).to_pandas()


def _read_speed(dataset: Path, config: Config) -> float:
    """Measure rows/s of the reader alone, over one epoch of the training split."""
    reader = Reader(Dataset.open(dataset), "train", config.training)
    started = time.perf_counter()
    rows = sum(batch.num_rows for batch in reader.batches(epoch=0))
    return rows / (time.perf_counter() - started)


def _logit(p: float) -> float:
    return float(np.log(p) - np.log1p(-p))


def describe_demo(metrics: dict[str, Any]) -> str:
    """Compare the model with the oracle, a linear model and a constant in a few lines, with the rows/s of each stage.

    Args:
        metrics: as ``Demo.run`` returns them.
    """
    shown, auc = ("auc", "logloss"), METRICS["auc"]
    rows: list[tuple[str, ...]] = [("test split", *shown)]
    for title, name in (("oracle", "oracle"), ("TF4CTR", "test"), ("linear", "linear"), ("constant", "constant")):
        rows.append((title, *(METRICS[metric].text(metrics[name][metric]) for metric in shown)))
    best, found = (metrics[name]["auc"] for name in ("oracle", "test"))
    distance = auc.text(None if best is None or found is None else best - found)
    speeds = ", ".join(f"{name} {value:,.0f}" for name, value in metrics["rows_per_second"].items())
    return f"\n{text_table(rows, '<>')}\ndistance to the oracle: {distance} AUC\nrows/s: {speeds}"
