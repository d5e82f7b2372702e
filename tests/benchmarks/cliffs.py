"""Builds whose cost must not leap: many columns, many distinct tags, many boundaries.

    python -m tests.benchmarks.cliffs --output runs/bench/cliffs.json

Each pair of builds reads about as many values; ``vs_`` is the second's seconds, without the start of the session, over
the first's.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from tqdm import tqdm

from features.disk.atomic import write_json
from tests.benchmarks.measured import run_measured

ROWS = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/cliffs"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.folder, arguments.repeats)
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    pairs: dict[str, tuple[Callable[[Path], str], Callable[[Path], str]]] = {
        "wide": (lambda place: dense(place, ROWS, 30), lambda place: dense(place, ROWS // 20, 600)),
        "tags": (lambda place: tags(place, 5_000), lambda place: tags(place, 300_000)),
        "quantiles": (lambda place: quantiles(place, 10), lambda place: quantiles(place, 10_000)),
    }
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in pairs}
    for repeat in tqdm(range(repeats), disable=None, desc="repeats"):
        for name, pair in pairs.items():
            for number in (0, 1) if repeat % 2 else (1, 0):
                seconds[name][number].append(build(folder / f"{name}-{number}", pair[number]))
    shutil.rmtree(folder)
    medians = {name: [statistics.median(found) for found in both] for name, both in seconds.items()}
    return {"seconds": seconds, **{f"vs_{name}": after / before for name, (before, after) in medians.items()}}


def build(place: Path, write: Callable[[Path], str]) -> float:
    """Write a log and its config unless they are there, build, and return the seconds."""
    config = place / "config.toml"
    if not config.exists():
        place.mkdir(parents=True)
        features = write(place / "log.csv")
        pipeline = f'[pipeline]\noutput = "{place}/dataset"\ninput.train = "{place}/log.csv"\n'
        pipeline += f'[training]\ndataset = "{place}/dataset"\n'
        features = f'[features]\nlabel = "label"\n{features}[[features.sparse]]\nname = "user"\n'
        config.write_text(features + 'encoding = { kind = "hash", num_buckets = 99 }\n' + pipeline, encoding="utf-8")
    run_measured([sys.executable, "-m", "jobs.build_dataset", "--config", str(config)])
    return json.loads((place / "dataset" / "build.json").read_text())["seconds"]


def dense(log: Path, rows: int, columns: int) -> str:
    """Numbers in ``columns`` columns; the same number of values for any."""
    values = np.random.default_rng(0).normal(size=(columns, rows)).round(4)
    _write(log, {f"d{number}": column for number, column in enumerate(values)})
    return f'dense = [{{ names = ["d{{0..{columns - 1}}}"], standardise = true }}]\n'


def tags(log: Path, distinct: int) -> str:
    """Six tags a row."""
    drawn = np.random.default_rng(0).integers(distinct, size=(ROWS, 6))
    _write(log, {"tags": ["|".join(f"t{tag}" for tag in row) for row in drawn.tolist()]})
    return '[[features.sparse]]\nname = "tags"\nseparator = "|"\nencoding = { kind = "vocabulary" }\n'


def quantiles(log: Path, buckets: int) -> str:
    """Ten numbers a row, in so many buckets each."""
    values = np.random.default_rng(0).normal(size=(10, ROWS)).round(6)
    _write(log, {f"q{number}": column for number, column in enumerate(values)})
    encoding = f'{{ kind = "quantiles", num_buckets = {buckets} }}'
    return f'[[features.sparse]]\nnames = ["q{{0..9}}"]\nencoding = {encoding}\n'


def _write(log: Path, columns: dict[str, Any]) -> None:
    label = np.random.default_rng(1).integers(2, size=len(next(iter(columns.values()))))
    pa.csv.write_csv(pa.table({"label": label, "user": label, **columns}), log)


if __name__ == "__main__":
    main()
