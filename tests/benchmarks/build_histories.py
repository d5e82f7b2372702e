"""Builds with a history of the last 50 clicks against the same builds without, taking turns.

    python -m tests.benchmarks.build_histories --rows 5000000 --repeats 3

The log has a user with a tenth of the rows (``--share``), the others 25 each, three clicks in ten rows, and 20 columns.
All tasks run in this process, one after the other, and what counts are its CPU seconds and its largest memory: Spark
hands out the same tasks.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv

from features.disk.dataset import DatasetManifest
from jobs.cli.config import parse_config
from jobs.launch.dataset_build import run_build
from pipeline.build import dataset

LENGTH = 50
NUM_OTHERS = 18


def main() -> None:
    """Print CPU seconds of both builds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--share", type=float, default=0.1, help="share of the rows that one user has; default: 0.1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/histories"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log = arguments.folder / f"log-{arguments.rows}-{arguments.share}.csv"
    if not log.exists():
        write_log(log, arguments.rows, arguments.share)
    dataset.run_tasks = run_here
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(arguments.repeats):
        for name, found in seconds.items():
            config = parse_config(tree_of(log, arguments.folder / name, name == "with"))
            started = time.process_time()
            run_build(cast(Any, None), config)
            found.append(time.process_time() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    histories = DatasetManifest.load(arguments.folder / "with").histories
    assert histories is not None
    mean_length = histories.sequences["clicks"].num_seen / arguments.rows
    ratio = medians["with"] / medians["without"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    shown = {"rows": arguments.rows, "share": arguments.share, "seconds": medians, "ratio": ratio}
    print(json.dumps({**shown, "mean_length": mean_length, "peak_mib": peak}))


def run_here(
    spark: object, act: Callable[[Any], Any], items: Sequence[Any], output: Path, title: str | None = None
) -> list[Any]:
    """Run tasks as ``pipeline.tasks.run_tasks`` does, without Spark."""
    return [act(item) for item in items]


def write_log(path: Path, num_rows: int, share: float = 0.1) -> None:
    """Write the log, rows in the order of time; one user has a share of them."""
    rng = np.random.default_rng(0)
    users = np.where(rng.random(num_rows) < share, 0, rng.integers(1, num_rows // 25 + 2, num_rows))
    items = (rng.pareto(1.0, num_rows) * 100).astype(np.int64) % 1_000_000
    columns: dict[str, Any] = {
        "user": users,
        "time": np.sort(rng.integers(1_700_000_000, 1_700_000_000 + 30 * 86_400, num_rows)),
        "click": (rng.random(num_rows) < 0.3).astype(np.int8),
        "item": items,
        "cate": items % 1000,
    }
    columns |= {f"C{number}": rng.integers(0, 10 ** (1 + number % 6), num_rows) for number in range(NUM_OTHERS)}
    pyarrow.csv.write_csv(pa.table(columns), path)


def tree_of(log: Path, output: Path, with_history: bool) -> dict[str, Any]:
    """Make the config tree of a build."""
    names = ["item", "cate", *(f"C{number}" for number in range(NUM_OTHERS))]
    features: dict[str, Any] = {
        "label": "click",
        "timestamp": {"column": "time"},
        "sparse": [{"name": name, "encoding": {"kind": "hash", "num_buckets": 100_000}} for name in names],
    }
    if with_history:
        history = {"of": "user", "lag": "30m"}
        clicks = {"name": "clicks", "parts": ["item", "cate"], "max_length": LENGTH, "history": history}
        features["sequence"] = [clicks]
    return {
        "features": features,
        "pipeline": {"output": str(output), "input": {"train": str(log)}},
        "training": {"dataset": str(output)},
    }


if __name__ == "__main__":
    main()
