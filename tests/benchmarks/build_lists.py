"""Builds of a log whose rows are pages with a history, as MIND's: rows that a CPU second makes.

    python -m tests.benchmarks.build_lists --lists 10000 --repeats 3

A page has 38 candidates on average and its user's last 50 clicks or fewer. All tasks run in this process, one after the
other, and what counts are its CPU seconds: Spark hands out the same tasks.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from features.disk.dataset import DatasetManifest
from jobs.cli.config import load_config
from jobs.launch.dataset_build import run_build
from pipeline.build import dataset
from tests.benchmarks.build_histories import run_here

CONFIG = "jobs/configs/sequences/mind.toml"


def main() -> None:
    """Print CPU seconds of builds, and rows a CPU second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--log", help="log like MIND's behaviors.tsv; default: a generated one")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/lists"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log, output = arguments.log, str(arguments.folder / "dataset")
    if log is None:
        log = str(arguments.folder / f"log-{arguments.lists}.tsv")
        write_pages(Path(log), arguments.lists)
    dataset.run_tasks = run_here
    config = load_config([CONFIG], [f"pipeline.input.train={log}", f"pipeline.output={output}"])
    seconds = []
    for _ in range(arguments.repeats):
        started = time.process_time()
        run_build(cast(Any, None), config)
        seconds.append(time.process_time() - started)
    rows = sum(split.num_rows for split in DatasetManifest.load(output).splits.values())
    least = min(seconds)
    measured = {"least": least, "median": statistics.median(seconds)}
    print(json.dumps({"rows": rows, "seconds": measured, "rows_a_second": rows / least}))


def write_pages(path: Path, num_lists: int) -> None:
    """Write the log, pages in the order of time."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.integers(9, 16, num_lists))
    with path.open("w", encoding="utf-8") as file:
        for page in range(num_lists):
            shown = (rng.pareto(1.0, rng.integers(1, 76)) * 100).astype(int) % 65_000
            clicks = rng.random(len(shown)) < 0.05
            seen = (rng.pareto(1.0, rng.integers(0, 60)) * 100).astype(int) % 65_000
            history = " ".join(f"N{item}" for item in seen)
            list_ = " ".join(f"N{item}-{int(click)}" for item, click in zip(shown, clicks, strict=True))
            time_ = f"11/{days[page]}/2019 {rng.integers(1, 12)}:{rng.integers(10, 60)}:00 AM"
            file.write(f"{page}\tU{rng.integers(0, 50_000)}\t{time_}\t{history}\t{list_}\n")


if __name__ == "__main__":
    main()
