"""Measure the speed of preprocessing, reading and training against peers and against the machine's own limits.

Each part is a program of its own in ``tests/benchmarks``; here they are run one after the other, in processes of their
own, and put together. Every figure is a ratio inside one run.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.command import plain_parser, run_program, write_json

CONFIG = "jobs/configs/bench.toml"
PARTS = ("preprocess", "read", "train")
TARGETS = {
    ("preprocess", "vs_floor"): 0.5,
    ("read", "vs_pyarrow"): 0.7,
    ("read", "vs_batched_dataloader"): 4.0,
    ("train", "vs_cached_batch"): 0.95,
    ("train", "vs_parts"): 0.85,
    ("train", "vs_deepctr_torch"): 5.0,
    ("train", "vs_fuxictr"): 5.0,
}
"""What is asked of each ratio, ours over theirs."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    preprocess_rows: int
    train_rows: int
    repeats: int
    seconds: float
    """Of one measurement of reading."""


QUICK, FULL = Size(500_000, 200_000, 1, 3.0), Size(5_000_000, 1_000_000, 5, 5.0)


def main() -> int:
    parser = plain_parser("jobs.bench", "Measure speed, as ratios.", "python -m jobs.bench --only read train")
    parser.add_argument("--full", action="store_true", help="all rows and repeats: about two hours on 2 cores")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="parts to run")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), metavar="DIR")
    arguments = parser.parse_args()
    started = time.perf_counter()
    bench = Bench(arguments.output, FULL if arguments.full else QUICK)
    bench.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"form": "full" if arguments.full else "quick"}
    for part in arguments.only or PARTS:
        result[part] = getattr(bench, part)()
        write_json(bench.folder / "bench.json", result)
    _print(result)
    print(f"{time.perf_counter() - started:.0f} s in all; {bench.folder / 'bench.json'}")
    return 0


@dataclass(frozen=True)
class Bench:
    """The parts; each returns what stands under its name in ``bench.json``."""

    folder: Path
    size: Size

    def preprocess(self) -> dict[str, Any]:
        rows, repeats = str(self.size.preprocess_rows), str(self.size.repeats)
        return self._measure("preprocess", "--rows", rows, "--repeats", repeats, "--folder", str(self.folder))

    def read(self) -> dict[str, Any]:
        repeats, seconds = str(max(3, self.size.repeats)), str(self.size.seconds)
        return self._measure("read", "--dataset", str(self._dataset()), "--repeats", repeats, "--seconds", seconds)

    def train(self) -> dict[str, Any]:
        dataset = f"training.dataset={self._dataset()}"
        alone = self._measure("train", "--repeats", str(self.size.repeats), dataset)
        peers = self._measure("peers_training", "--folder", str(self.folder))
        one, two = (self._rows_per_second(dataset, workers) for workers in (1, 2))
        return {
            **alone,
            "vs_deepctr_torch": peers["vs_deepctr_torch"],
            "vs_fuxictr": peers["vs_fuxictr"],
            "peers": peers["all"],
            "two_workers_vs_one": two["train"]["rows_per_second"] / one["train"]["rows_per_second"],
            "one_worker": one["train"],
            "two_workers": two["train"],
        }

    def _measure(self, part: str, *arguments: str) -> dict[str, Any]:
        output = self.folder / f"{part}.json"
        _run("-m", f"tests.benchmarks.{part}", *arguments, "--output", str(output))
        return json.loads(output.read_text(encoding="utf-8"))

    def _dataset(self) -> Path:
        """The dataset that is read and trained on; built once."""
        dataset = self.folder / f"dataset-{self.size.train_rows}"
        if not (dataset / "manifest.json").exists():
            from tests.benchmarks.criteo_like import write_logs

            logs = self.folder / f"logs-{self.size.train_rows}"
            write_logs(logs, self.size.train_rows)
            paths = [f"pipeline.input.train={logs}", f"pipeline.output={dataset}"]
            _run("-m", "jobs.build_dataset", "--config", CONFIG, *paths)
        return dataset

    def _rows_per_second(self, dataset: str, num_workers: int) -> dict[str, Any]:
        """Metrics of one epoch of ``jobs.train`` by so many workers that share the cores."""
        run = self.folder / "workers"
        shutil.rmtree(run, ignore_errors=True)
        _run("-m", "jobs.train", "--config", CONFIG, "--run", str(run), dataset, f"training.num_workers={num_workers}")
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        shutil.rmtree(run)
        return metrics


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def _print(result: dict[str, Any]) -> None:
    print(f"{'ratio':<48}{'measured':>10}{'asked':>8}")
    for part, found in result.items():
        ratios = found.items() if isinstance(found, dict) else ()
        for name, value in ratios:
            if "vs_" not in name:
                continue
            for label, number in value.items() if isinstance(value, dict) else ((None, value),):
                target = TARGETS.get((part, name))
                words = f"{part}.{name}" + (f" {label}" if label else "")
                print(f"{words:<48}{number:>10.2f}{'' if target is None else f'{target:.2f}':>8}")


if __name__ == "__main__":
    run_program(main)
