"""A model retrained every day from where it ended against one trained anew on a window of days, on a log that drifts.

    python -m tests.benchmarks.retraining_curve --seeds 1 2 --output runs/bench/retraining-curve

Every day both are trained with what there is by then and scored on the next day, which neither has seen:

* warm: begins with yesterday's weights and optimizer state, and is trained on the new day alone.
* scratch: begins anew, and is trained on the last days of a window.
* stale: the scratch model of the first full window, never trained again: what retraining is worth at all.
* oracle: the probability that the labels were drawn with.

Logs, partitions (each going on with the vocabularies of the one before) and windows are those of ``jobs.retrain``, and
the loop is that of ``jobs.train``, in this process. Started again it goes on; ``--seconds`` ends it in between.
"""

# isort: skip_file
# jobs.launch.worker tells the C library and torch about memory, before torch is loaded.
import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.launch.worker import set_up_worker

import numpy as np
import pyarrow.parquet
import torch.distributed as dist

from features.disk.window import join
from features.disk.atomic import write_json
from jobs.cli.config import Config, load_config
from jobs.demos.generated_logs import generate
from jobs.retraining.partitions import build_partitions
from jobs.retraining.retrain_folder import RetrainFolder
from jobs.launch.run_guard import prepare_run
from pipeline.synthetic.generate import LogSpec
from tests.benchmarks.retraining_summary import summarise
from training.ship.export import load_best
from training.judge.metrics import evaluate
from training.judge.scores import Scores
from training.data.opened_dataset import Dataset
from training.fit.run import Run
from training.fit.run import train_rank

CONFIGS = ["jobs/configs/demo.toml", "jobs/configs/retrain/demo.toml"]
DAYS_A_SESSION = 8
"""Partitions that are built before the time is looked at."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="of logs and of models")
    parser.add_argument("--days", type=int, default=30, help="that are trained on; one more is generated")
    parser.add_argument("--rows", type=int, default=20_000, help="a day")
    parser.add_argument("--drift", type=float, default=0.1, help="jobs.generate_logs says what it is")
    parser.add_argument("--window", type=int, default=7, help="days of the model that is trained anew")
    parser.add_argument("--warm", nargs="*", default=[], metavar="KEY=VALUE", help="config of the warm days alone")
    parser.add_argument("--name", default="curve", help="of this choice of settings")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/retraining-curve"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="config of both models")
    arguments = parser.parse_args()
    set_up_worker(1, arguments.threads)
    deadline = time.monotonic() + arguments.seconds
    found = {}
    for seed in arguments.seeds:
        curve = Curve(arguments.output / f"seed={seed}", seed, arguments)
        curve.make_partitions(deadline)
        found[seed] = curve.play(deadline)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("seconds", "threads", "output")}
    print(summarise(found, settings, arguments.output / arguments.name))
    is_done = all(len(days) == arguments.days for days in found.values())
    return 0 if is_done else 3


class Curve:
    """One seed's log and both models of it."""

    def __init__(self, folder: Path, seed: int, arguments: argparse.Namespace) -> None:
        self.folder, self.seed, self.arguments = folder.absolute(), seed, arguments
        self.runs = self.folder / arguments.name
        own = [f"training.seed={seed}", f"retrain.root={self.folder}", "training.checkpoint.keep=1"]
        own.append(f"retrain.partitions={self.folder}/logs/day-{{date}}-part-*.csv.gz")
        self.configs = {
            "scratch": load_config(CONFIGS, [*arguments.overrides, *own]),
            "warm": load_config(CONFIGS, [*arguments.overrides, *arguments.warm, *own]),
        }
        assert self.config.retrain is not None
        self.place = RetrainFolder(self.folder, self.config, self.config.retrain)
        self.dates = [f"{day:02d}" for day in range(1, arguments.days + 2)]

    @property
    def config(self) -> Config:
        return self.configs["scratch"]

    def make_partitions(self, deadline: float) -> None:
        """Generate the log and build a partition of each of its days, as far as time allows."""
        spec = LogSpec(self.arguments.rows * len(self.dates), len(self.dates), self.seed, drift=self.arguments.drift)
        if not (self.folder / "logs" / "_summary.json").exists():
            generate(self.folder / "logs", spec)
        raw = self.place.raw()
        while (left := [date for date in self.dates if date not in self.place.built()]) and time.monotonic() < deadline:
            build_partitions(self.place, {date: raw[date] for date in left[:DAYS_A_SESSION]})

    def play(self, deadline: float) -> list[dict[str, Any]]:
        """Train and score day by day, as far as time and partitions allow; returns a record a day."""
        path = self.runs / "days.json"
        days = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        with tempfile.TemporaryDirectory() as store:
            dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
            try:
                built = self.place.built()
                for number in range(len(days), self.arguments.days):
                    if time.monotonic() > deadline or self.dates[number + 1] not in built:
                        break
                    days.append(self._day(number, days[-1] if days else {}))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, days)
            finally:
                dist.destroy_process_group()
        return days

    def _day(self, number: int, before: dict[str, Any]) -> dict[str, Any]:
        """Train both models when day ``number``, from 0, has come, and score them on the one after it."""
        started = time.perf_counter()
        date, window = self.dates[number], self.arguments.window
        scratch = self._train("scratch", number, self.dates[max(0, number + 1 - window) : number + 1])
        warm = scratch if number == 0 else self._train("warm", number, [date])
        if number == 0:
            shutil.copytree(self.runs / "scratch" / date, self.runs / "warm" / date, dirs_exist_ok=True)
        if number == window - 1:
            shutil.copytree(self.runs / "scratch" / date, self.runs / "stale", dirs_exist_ok=True)
        found = {"day": number + 1, "warm": warm, "scratch": scratch, "oracle": self._oracle(number)}
        for name in ("warm", "scratch"):
            total = before.get(name, {}).get("total_rows", 0) + found[name]["rows"]
            found[name] = {**found[name], "total_rows": total}
        if number >= window - 1:
            found["stale"] = self._score(Run(self.runs / "stale"), self._window(number, [date]))
        for old in (self.runs / "scratch" / date, *(self.runs / "warm" / other for other in self.dates[:number])):
            shutil.rmtree(old, ignore_errors=True)
        losses = {name: round(found[name]["logloss"], 5) for name in ("warm", "scratch", "oracle")}
        print(f"seed {self.seed} day {number + 1}: {losses}, {time.perf_counter() - started:.0f} s", flush=True)
        return found

    def _window(self, number: int, dates: list[str]) -> Path:
        """A dataset of these days, and the next one as its test split."""
        output = self.folder / "windows" / f"{dates[0]}-{dates[-1]}"
        folders = {"train": dates, "test": [self.dates[number + 1]]}
        join({name: [self.place.partition(d) for d in found] for name, found in folders.items()}, output)
        return output

    def _train(self, name: str, number: int, dates: list[str]) -> dict[str, Any]:
        """Train a model, or take what an earlier start has trained; returns its metrics on the next day."""
        run, window = Run(self.runs / name / self.dates[number]), self._window(number, dates)
        training = dataclasses.replace(self.configs[name].training, dataset=str(window))
        if name == "warm":
            before = self.runs / "warm" / self.dates[number - 1]
            training = dataclasses.replace(training, warm_start=str(before))
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.mkdir(parents=True)
        prepare_run(run.path, dataclasses.replace(self.config, training=training), resume=False)
        seconds = time.perf_counter()
        metrics = train_rank(run, training)
        seconds = time.perf_counter() - seconds
        return {**self._score(run, window), "rows": metrics["train"]["rows"], "seconds": round(seconds, 2)}

    def _score(self, run: Run, window: Path) -> dict[str, Any]:
        found = evaluate(load_best(run, Dataset.open(window)).score("test"))
        return {name: found[name] for name in ("logloss", "auc", "calibration")}

    def _oracle(self, number: int) -> dict[str, Any]:
        folder = self.place.partition(self.dates[number + 1])
        files = [folder / file.path for file in self.place.manifest(folder.name).split("train").files]
        table = pyarrow.parquet.read_table(files, columns=["label", "click_probability"])
        probability, labels = (table[name].to_numpy().astype(np.float64) for name in ("click_probability", "label"))
        found = evaluate(Scores.of(np.log(probability) - np.log1p(-probability), labels))
        return {name: found[name] for name in ("logloss", "auc")}


if __name__ == "__main__":
    sys.exit(main())
