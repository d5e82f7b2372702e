"""What ``jobs.bench`` starts: the parts of the speed measurement, one after the other, put together.

Each part is a program of its own in this folder and runs in a process of its own. Every figure is a ratio
inside one run.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.disk.atomic import write_json
from jobs.bench import BENCH_PARTS
from jobs.cli.conventions import plain_parser, run_program
from jobs.cli.text_table import text_table
from tests.benchmarks.criteo_like import write_dataset
from tests.benchmarks.preprocess import BEFORE

NUM_BUCKETS = 1_000_000
TARGETS = {
    ("preprocess", "vs_floor"): "1.50 or more",
    ("preprocess", "vs_polars"): "0.17 or more",
    ("preprocess", "vs_before"): "3.00 or more",
    ("preprocess", "cpu_vs_before"): "0.30 or less",
    ("preprocess", "memory_vs_before"): "1.00 or less",
    ("cliffs", "vs_wide"): "1.50 or less",
    ("cliffs", "vs_tags"): "1.50 or less",
    ("cliffs", "vs_quantiles"): "1.30 or less",
    ("score", "vs_rows_hash_1"): "1.00 or less",
    ("score", "vs_rows_hash_1000"): "0.20 or less",
    ("score", "vs_rows_vocabulary_1"): "1.00 or less",
    ("score", "vs_rows_vocabulary_1000"): "0.20 or less",
    ("read", "vs_pyarrow"): "0.70 or more",
    ("read", "vs_batched_dataloader"): "4.00 or more",
    ("train", "vs_cached_batch"): "0.95 or more",
    ("train", "vs_parts"): "0.85 or more",
    ("train", "vs_deepctr_torch"): "5.00 or more",
    ("train", "vs_fuxictr"): "5.00 or more",
    ("train", "vs_deepctr_torch_100000"): "3.00 or more",
    ("train", "vs_fuxictr_100000"): "3.00 or more",
}
"""What is asked of each ratio: speeds are ours over theirs, costs (of cliffs and scoring too) likewise."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    preprocess_rows: int
    read_rows: int
    train_rows: int
    repeats: int
    seconds: float
    """Of one measurement of reading."""
    steps: int
    """Of one turn of the workers."""
    peers: tuple[str, ...]
    """Which networks and table sizes are compared with other projects'."""


QUICK = Size(500_000, 2_000_000, 120_000, 1, 3.0, 8, ("--models", "deepfm", "--tables", "1000000"))
FULL = Size(5_000_000, 5_000_000, 1_000_000, 5, 5.0, 30, ())


def main() -> int:
    """Measure and print the ratios beside what is asked of them."""
    parser = plain_parser("jobs.bench", "Measure speed, as ratios.", "python -m jobs.bench --only read train")
    parser.add_argument("--full", action="store_true", help="all rows and repeats: about an hour on 2 cores")
    parser.add_argument("--only", nargs="+", choices=BENCH_PARTS, metavar="PART", help="parts to run")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), metavar="DIR")
    arguments = parser.parse_args()
    started = time.perf_counter()
    bench = Bench(arguments.output, FULL if arguments.full else QUICK)
    bench.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"form": "full" if arguments.full else "quick"}
    for part in arguments.only or BENCH_PARTS:
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
        before = ("--before", BEFORE) if _has_commit(BEFORE) else ()
        where = ("--folder", str(self.folder))
        return self._measure("preprocess", "--rows", rows, "--repeats", repeats, *where, *before)

    def cliffs(self) -> dict[str, Any]:
        return self._measure("cliffs", "--repeats", str(self.size.repeats), "--folder", str(self.folder / "cliffs"))

    def score(self) -> dict[str, Any]:
        return self._measure("score")

    def read(self) -> dict[str, Any]:
        dataset, repeats = self._dataset(self.size.read_rows), str(max(3, self.size.repeats))
        return self._measure("read", "--dataset", dataset, "--repeats", repeats, "--seconds", str(self.size.seconds))

    def train(self) -> dict[str, Any]:
        dataset = f"training.dataset={self._dataset(self.size.train_rows)}"
        alone = self._measure("train", "--repeats", str(self.size.repeats), dataset)
        repeats, steps = str(max(3, self.size.repeats)), str(self.size.steps)
        workers = self._measure("workers", "--repeats", repeats, "--steps", steps, dataset)
        peers = self._measure("peers_training", "--folder", str(self.folder), *self.size.peers)
        return {
            **alone,
            **_least(peers),
            "peers": peers,
            "two_workers_vs_one": workers["two_vs_one"],
            "workers": workers,
        }

    def _measure(self, part: str, *arguments: str) -> dict[str, Any]:
        output = self.folder / f"{part}.json"
        _run("-m", f"tests.benchmarks.{part}", *arguments, "--output", str(output))
        return json.loads(output.read_text(encoding="utf-8"))

    def _dataset(self, num_rows: int) -> str:
        """The dataset that is read or trained on; made once."""
        folder = self.folder / f"dataset-{num_rows}"
        write_dataset(folder, {"train": num_rows}, NUM_BUCKETS)
        return str(folder)


def _least(peers: dict[str, Any]) -> dict[str, float]:
    """Of each peer the smallest ratio over the networks; tables of a million rows need no further word."""
    ratios: dict[str, list[float]] = {}
    for peer in ("vs_deepctr_torch", "vs_fuxictr"):
        for name, ratio in peers[peer].items():
            tables = name.rsplit("_", 1)[1]
            ratios.setdefault(peer if int(tables) == NUM_BUCKETS else f"{peer}_{tables}", []).append(ratio)
    return {name: min(found) for name, found in ratios.items()}


def _has_commit(commit: str) -> bool:
    """Whether this is a repository that has a commit: a copy of the sources alone has none."""
    found = subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True, check=False)
    return not found.returncode


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _print(result: dict[str, Any]) -> None:
    rows = [("ratio", "measured", "asked")]
    for part, found in result.items():
        for name, value in found.items() if isinstance(found, dict) else ():
            if "vs_" in name:
                target = TARGETS.get((part, name))
                rows.append((f"{part}.{name}", f"{value:.2f}", target or ""))
    print(text_table(rows, align="<>"))


if __name__ == "__main__":
    run_program(main)
