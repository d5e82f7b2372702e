"""Whether memory stays the same with ten times the rows and over epochs: peak RSS of the reader and of the trainer.

    python -m tests.benchmarks.memory --output runs/bench/memory.json

* reader: ``training.data.reader``, shuffled, batches of 4,096, one epoch of each dataset.
* trainer: ``train_rank``, what a worker of ``jobs.train`` does, one rank, one epoch of each dataset, checkpoints
  included. Its network is small (width 4, layers of 16), so that the loop is quick and what grows is not lost in what
  is large; ``--network`` takes the benchmarks' own.
* epochs: ``train_rank`` with the benchmarks' network (width 16, layers of 400) over 20 epochs of 200,000 rows.
* evaluation: exact metrics keep every score. Bytes a row at the peak, on one rank and on two that gather them.
* job: ``jobs.train`` itself, under Ray: the peak of each of its processes, on the small network.

Growth, with rows within an epoch and over epochs from the third one's checkpoint on, is the slope of a straight line
with its standard error; of anonymous memory, since the kernel takes and gives back pages of files as it likes. Every
measurement is a process of its own; peaks are the kernel's (VmHWM, files included). The datasets have 40 columns, 26 of
them ids of tables with 100,000 rows, in the files and row groups that a build makes; they are drawn without Spark
(``criteo_like.write_dataset``), since ten times the rows through Spark would measure Spark.
"""

# isort: skip_file
# jobs.launch.worker tells the C library and torch about memory, before torch is loaded.
import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.launch.worker import set_up_worker

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from features.disk.atomic import write_json
from jobs.cli.config import load_config
from tests.benchmarks.criteo_like import write_dataset
from training.config import TrainingConfig
from training.fit.scoring import gathered
from training.judge.metrics import curves, evaluate
from training.judge.scores import Scores
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import Run
from training.fit.run import train_rank

CONFIG = "jobs/configs/bench.toml"
NUM_BUCKETS = 100_000
SMALL_NETWORK = (
    "training.model.embedding_dim=4",
    "training.model.easy.hidden_units=[16]",
    "training.model.hard.hidden_units=[16]",
)
PARTS = ("reader", "trainer", "epochs", "evaluation", "job")
WARM_UP_EPOCHS = 2
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/memory"), help="of datasets (2.4 GB) and runs")
    parser.add_argument("--rows", nargs=2, type=int, default=(2_000_000, 20_000_000), metavar=("FEW", "MANY"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epoch-rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3, help="of reader and epochs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--network", choices=("small", "bench"), default="small", help="of trainer and job")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child[0]](*arguments.child[1:])))
        return
    measured = Measurement(arguments)
    result: dict[str, Any] = {}
    for part in tqdm(arguments.only, disable=None, desc="parts"):
        result[part] = getattr(measured, part)()
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.output, result)
    print(json.dumps(result, indent=1))


# --------------------------------------------------------------------------------------------------------- this process


class Measurement:
    """The parts; each returns what stands under its name in the result."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.network = SMALL_NETWORK if arguments.network == "small" else ()

    def reader(self) -> dict[str, Any]:
        few, many = (
            [_child("reader", self._dataset(rows)) for _ in range(self.arguments.repeats)]
            for rows in self.arguments.rows
        )
        return {**_compare(few, many), "few": few, "many": many}

    def trainer(self) -> dict[str, Any]:
        few, many = (
            _child("trainer", self._dataset(rows), self._run(f"trainer-{rows}"), 1, *self.network)
            for rows in self.arguments.rows
        )
        return {**_compare([few], [many]), "few": few, "many": many}

    def epochs(self) -> dict[str, Any]:
        dataset, epochs = self._dataset(self.arguments.epoch_rows), self.arguments.epochs
        runs = [_child("trainer", dataset, self._run("epochs"), epochs) for _ in range(self.arguments.repeats)]
        slopes = [slope([event["anonymous_mb"] for event in run["checkpoints"]][WARM_UP_EPOCHS:]) for run in runs]
        means = [found["slope"] for found in slopes]
        spread = statistics.stdev(means) if len(means) > 1 else None
        return {"mb_per_epoch": statistics.mean(means), "spread": spread, "of_each_run": slopes, "runs": runs}

    def evaluation(self) -> dict[str, Any]:
        """Peak memory against rows: the slope is bytes a row."""
        rows = [1_000_000, 2_000_000, 4_000_000]
        result = {}
        for world_size in (1, 2):
            peaks = [max(run["peak_mb"] for run in _ranks(world_size, number)) for number in rows]
            result[f"bytes_per_row_on_{world_size}"] = MB * slope(peaks, rows)["slope"]
        return {**result, "rows": rows}

    def job(self) -> dict[str, Any]:
        few, many = (self._job(rows) for rows in self.arguments.rows)
        return {"ratio": {name: many[name] / few[name] for name in many.keys() & few.keys()}, "few": few, "many": many}

    def _job(self, rows: int) -> dict[str, float]:
        """Processes of a ``jobs.train`` by name -> the peak of the largest of that name, MB."""
        run, overlay = self._run(f"job-{rows}"), self.arguments.folder / "buckets.toml"
        dataset = self._dataset(rows)
        encoding = f'{{ kind = "hash", num_buckets = {NUM_BUCKETS} }}'
        overlay.write_text(f'[[features.sparse]]\nnames = ["C{{1..26}}"]\nencoding = {encoding}\n')
        command = [sys.executable, "-m", "jobs.train", "--config", CONFIG, "--config", str(overlay), "--run", str(run)]
        command += [f"training.dataset={dataset}", *self.network]
        peaks: dict[str, float] = {}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
            while job.poll() is None:
                for pid, name in _descendants(job.pid).items():
                    peaks[name] = max(peaks.get(name, 0.0), memory("VmHWM", pid))
                time.sleep(0.5)
        if job.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {job.returncode}")
        shutil.rmtree(run)
        return peaks

    def _dataset(self, rows: int) -> Path:
        dataset = self.arguments.folder / f"dataset-{rows}"
        write_dataset(dataset, {"train": rows}, NUM_BUCKETS)
        return dataset

    def _run(self, name: str) -> Path:
        folder = self.arguments.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def _child(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--child", *map(str, words)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def _ranks(world_size: int, rows: int) -> list[dict[str, Any]]:
    """What each of so many ranks says that evaluate ``rows`` rows together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.memory", "--child", "evaluation", f"{folder}/store"]
        ranks = [
            subprocess.Popen([*command, *map(str, (rank, world_size, rows))], stdout=subprocess.PIPE, text=True)
            for rank in range(world_size)
        ]
        outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("a rank failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def _compare(few: Sequence[dict[str, Any]], many: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians of the peaks, their ratio, and the ratio of what is left without the imports."""
    peaks = [statistics.median(run["peak_mb"] for run in runs) for runs in (few, many)]
    own = [statistics.median(run["peak_mb"] - run["imports_mb"] for run in runs) for runs in (few, many)]
    return {"few_peak_mb": peaks[0], "many_peak_mb": peaks[1], "ratio": peaks[1] / peaks[0], "own": own[1] / own[0]}


def slope(values: Sequence[float], at: Sequence[float] | None = None) -> dict[str, float]:
    """Of the least-squares line, with its standard error.

    Args:
        at: where the values stand; None: at 0, 1, 2, ...
    """
    x, y = np.arange(len(values)) if at is None else np.asarray(at), np.asarray(values)
    x = x - x.mean()
    found = x @ y / (x @ x)
    residual = y - y.mean() - found * x
    return {"slope": float(found), "standard_error": float(np.sqrt(residual @ residual / (len(x) - 2) / (x @ x)))}


def memory(name: str, pid: int | str = "self") -> float:
    """``VmRSS``, ``RssAnon`` or ``VmHWM`` of a process, MB; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(f"{name}:")), 0.0)


def _descendants(root: int) -> dict[int, str]:
    """Processes below ``root``, itself included -> what the kernel calls them."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, rest = (folder / "stat").read_text(encoding="utf-8").rsplit(")", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)], names[int(folder.name)] = int(rest.split()[1]), head.split("(", 1)[1]

    def is_below(pid: int) -> bool:
        return pid == root or (pid in parents and is_below(parents[pid]))

    return {pid: names[pid] for pid in parents if is_below(pid)}


# ------------------------------------------------------------------------------------------------------- children of it


def read(dataset: str) -> dict[str, Any]:
    """One shuffled epoch."""
    set_up_worker(1, None)
    imports = memory("VmRSS")
    reader = Reader(Dataset.open(dataset), "train", _config(dataset, 1))
    rows, curve = 0, []
    for number, batch in enumerate(reader.batches(0)):
        rows += batch.num_rows
        if number % max(1, reader.num_steps // 40) == 0:
            curve.append((rows, memory("RssAnon")))
    if rows != reader.num_rows:
        raise AssertionError(f"{rows} rows were read of {reader.num_rows}")
    return {"rows": rows, "imports_mb": imports, "peak_mb": memory("VmHWM"), **_growth(curve), "anonymous_mb": curve}


def train(dataset: str, run: str, epochs: str, *overrides: str) -> dict[str, Any]:
    """As a worker does it; RSS with each event."""
    set_up_worker(1, None)
    imports, events = memory("VmRSS"), []
    config = _config(dataset, int(epochs), *overrides)

    def follow(event: dict[str, Any]) -> None:
        keys = {name: event[name] for name in ("event", "epoch", "step")}
        sizes = {"rss_mb": "VmRSS", "anonymous_mb": "RssAnon", "peak_mb": "VmHWM"}
        events.append({**keys, **{name: memory(line) for name, line in sizes.items()}})

    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        metrics = train_rank(Run(Path(run)), config, follow)
        dist.destroy_process_group()
    shutil.rmtree(run)
    progress, checkpoints = ([e for e in events if e["event"] == kind] for kind in ("progress", "checkpoint"))
    return {
        "imports_mb": imports,
        "peak_mb": memory("VmHWM"),
        "rows": metrics["train"]["rows"],
        "rows_per_second": metrics["train"]["rows_per_second"],
        "checkpoints": checkpoints,
        **_growth([(event["step"] * config.global_batch_size, event["anonymous_mb"]) for event in progress]),
        "progress": progress[:: max(1, len(progress) // 40)],
    }


def _growth(curve: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """MB a million rows, from the first tenth of the rows on."""
    late = [(rows / 1e6, mb) for rows, mb in curve if rows >= curve[-1][0] / 10]
    return {"mb_per_million_rows": slope([mb for _, mb in late], [rows for rows, _ in late])}


def score(store: str, rank: str, world_size: str, rows: str) -> dict[str, Any]:
    """Gather the scores of a split and compute every metric, as at the end of a training."""
    set_up_worker(int(world_size), None)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world_size))
    rng, own = np.random.default_rng(int(rank)), int(rows) // int(world_size)
    # The types of training.fit.loop.score, drawn into place.
    logits, labels, weights = rng.standard_normal(own), np.zeros(own, np.float32), np.ones(own, np.float32)
    labels[::4] = 1
    scores = gathered(Scores(logits, labels, weights))
    evaluate(scores)
    curves(scores)
    dist.barrier()
    dist.destroy_process_group()
    return {"peak_mb": memory("VmHWM")}


def _config(dataset: str, epochs: int, *overrides: str) -> TrainingConfig:
    overrides = (f"training.dataset={dataset}", f"training.max_epochs={epochs}", *overrides)
    return load_config([CONFIG], list(overrides)).training


CHILDREN = {"reader": read, "trainer": train, "evaluation": score}


if __name__ == "__main__":
    main()
