"""Rows/s of ``training.data.reader`` with shuffling on 40 columns, against pyarrow and against Petastorm's own loader.

    python -m tests.benchmarks.read --dataset runs/bench/dataset --output runs/bench/read.json

pyarrow reads the same columns of the same files, in file order, into one tensor of ids and one of floats: the limit.
``BatchedDataLoader`` is Petastorm's, with a shuffling queue of 100,000 rows and the synchronous pool. Each contender
runs in a process of its own, over and over for ``--seconds``; they take turns, and medians of their rates are compared.
Displacement is how far a row ends up from its place in the files, on average, as a share of the split; of a uniform
shuffle it is a third.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from tqdm import tqdm

from features.disk.atomic import write_json
from features.disk.dataset import DatasetManifest
from jobs.launch.worker import set_up_worker
from training.config import ReaderConfig
from training.data.row_order import cut_streams

BATCH_SIZE = 4_096
QUEUE_ROWS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("runs/bench/dataset"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, at least one epoch")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(time_reading(arguments.contender, arguments.dataset, arguments.seconds)))
        return
    result = measure(arguments.dataset, arguments.repeats, arguments.seconds)
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def measure(dataset: Path, repeats: int, seconds: float) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for repeat in tqdm(range(repeats), disable=None, desc="repeats"):
        for name in list(CONTENDERS) if repeat % 2 else list(reversed(CONTENDERS)):
            command = [sys.executable, "-m", "tests.benchmarks.read", "--contender", name]
            command += ["--dataset", str(dataset), "--seconds", str(seconds)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rates = {name: statistics.median(run["rows_per_second"] for run in runs) for name, runs in found.items()}
    return {
        "rows": DatasetManifest.load(dataset).split("train").num_rows,
        "rows_per_second": rates,
        "all": found,
        "peak_mb": {name: max(run["peak_mb"] for run in runs) for name, runs in found.items()},
        "displacement": displacement(dataset),
        "vs_pyarrow": rates["reader"] / rates["pyarrow"],
        "vs_batched_dataloader": rates["reader"] / rates["batched_dataloader"],
    }


def time_reading(contender: str, dataset: Path, seconds: float) -> dict[str, float]:
    """Read whole epochs until the time is over; the first warms up."""
    set_up_worker(1, None)
    read = CONTENDERS[contender]
    expected = DatasetManifest.load(dataset).split("train").num_rows
    if sum(read(dataset, 0)) != expected:
        raise AssertionError(f"{contender} did not deliver {expected} rows")
    rows, epoch, started = 0, 1, time.perf_counter()
    while rows == 0 or time.perf_counter() - started < seconds:
        rows, epoch = rows + sum(read(dataset, epoch)), epoch + 1
    taken = time.perf_counter() - started
    # Linux counts in KiB; what the imports alone take is the same for all.
    return {"rows_per_second": rows / taken, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def read_with_reader(dataset: Path, epoch: int) -> Iterator[int]:
    from training.config import TrainingConfig
    from training.data.opened_dataset import Dataset
    from training.data.reader import Reader

    reader = Reader(Dataset.open(dataset), "train", TrainingConfig(str(dataset), seed=1, global_batch_size=BATCH_SIZE))
    for batch in reader.batches(epoch):
        yield batch.num_rows


def read_with_pyarrow(dataset: Path, epoch: int) -> Iterator[int]:
    manifest = DatasetManifest.load(dataset)
    floats = [*manifest.schema.dense_names, "label"]
    for file in manifest.split("train").files:
        table = pyarrow.parquet.read_table(dataset / file.path, columns=[*manifest.schema.sparse_names, *floats])
        ids = np.empty((len(manifest.schema.sparse), table.num_rows), dtype=np.int64)
        for i, name in enumerate(manifest.schema.sparse_names):
            ids[i] = table[name].to_numpy()
        values = np.empty((len(floats), table.num_rows), dtype=np.float32)
        for i, name in enumerate(floats):
            values[i] = table[name].to_numpy()
        yield torch.from_numpy(ids).shape[1] if torch.from_numpy(values).shape[1] else 0


def read_with_batched_dataloader(dataset: Path, epoch: int) -> Iterator[int]:
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("petastorm").setLevel(logging.WARNING)
    from training.data.petastorm_shim import make_batch_reader  # isort: split

    from petastorm.pytorch import BatchedDataLoader

    files = [
        f"file://{(dataset / file.path).absolute()}" for file in DatasetManifest.load(dataset).split("train").files
    ]
    with make_batch_reader(files, reader_pool_type="dummy", num_epochs=1, shuffle_row_groups=True) as reader:
        loader = BatchedDataLoader(reader, batch_size=BATCH_SIZE, shuffling_queue_capacity=QUEUE_ROWS)
        for batch in loader:
            yield len(batch["label"])


CONTENDERS = {
    "reader": read_with_reader,
    "pyarrow": read_with_pyarrow,
    "batched_dataloader": read_with_batched_dataloader,
}


def displacement(dataset: Path) -> float:
    """Mean distance between a row's place in the files and its place in an epoch, over the rows of the split."""
    files = DatasetManifest.load(dataset).split("train").files
    config = ReaderConfig()
    first_row, offset = {}, 0
    for file in files:
        for group, rows in enumerate(file.row_groups):
            first_row[file.path, group] = offset
            offset += rows
    streams = cut_streams(
        files, config.num_streams, seed=1, epoch=0, shuffle=True, row_groups_per_window=config.shuffle_row_groups
    )
    total = 0.0
    for number, windows in enumerate(streams):
        before = []
        for window in windows:
            pieces = window.pieces
            rows = [np.arange(p.first_row, p.last_row) + first_row[p.file.path, p.row_group] for p in pieces]
            order = window.order()
            laid = np.concatenate(rows)
            before.append(laid if order is None else laid[order])
        # A step takes the same number of rows of each stream, so a stream's i-th row is about the (V * i)-th of all.
        place = np.concatenate(before)
        total += np.abs(place - (np.arange(len(place)) * len(streams) + number)).sum()
    return total / offset**2


if __name__ == "__main__":
    main()
