"""Rows/s of ``training.data.reader``, shuffled, on one feature and a history of some events a row.

    python -m tests.benchmarks.read_histories --rows 1000000 --events 20

Lengths are even from 0 to twice ``--events``; items are Zipf's. The dataset is read over and over in one process, and
rows are counted for each second and for each second of its CPU.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tests.benchmarks.read import read_with_reader
from tests.benchmarks.train_histories import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=20, help="of a row, on average")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        write_log(log, arguments.rows, arguments.events)
        dataset = build(log, Path(folder), "with", 2 * arguments.events, {"clicks": "item"})
        sum(read_with_reader(dataset, 0))
        wall, cpu = [], []
        for epoch in tqdm(range(1, arguments.epochs + 1), disable=None):
            started, cpu_started = time.perf_counter(), time.process_time()
            rows = sum(read_with_reader(dataset, epoch))
            wall.append(rows / (time.perf_counter() - started))
            cpu.append(rows / (time.process_time() - cpu_started))
    print(json.dumps({"events": arguments.events, "rows_per_second": wall, "rows_per_cpu_second": cpu}, indent=1))


def write_log(path: Path, num_rows: int, events: int) -> None:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 2 * events + 1, num_rows))]).astype(np.int32)
    columns = {
        "label": (rng.random(num_rows) < 0.3).astype(np.int64),
        "item": rng.zipf(1.3, num_rows) % 100_000,
        "clicks": pa.ListArray.from_arrays(offsets, rng.zipf(1.3, offsets[-1]) % 100_000),
    }
    pq.write_table(pa.table(columns), path)


if __name__ == "__main__":
    main()
