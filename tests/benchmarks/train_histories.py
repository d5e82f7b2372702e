"""CPU of a training step with two histories against the same step without, for some encoders.

    python -m tests.benchmarks.train_histories --length 50 --encoders mean din
    python -m tests.benchmarks.train_histories --length 1024 --rows 65536 --encoders din sdim

20 hashed features of 100,000 rows x 16, two sequences of one part, lengths even from 0 to --length, batches of 4,096,
one process and one thread. A step's CPU is that of an epoch without the program's start: that of two epochs less that
of one, each least of some turns. All but the histories is TF4CTR as it stands by default.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from features.disk.atomic import write_json
from tests.benchmarks.build_histories import run_here
from tests.benchmarks.train_here import train_here
from training.fit.allocator import HUGE_PAGES

BATCH_SIZE, NUM_FEATURES, NUM_VALUES = 4_096, 20, 100_000
WITHOUT = "without"
DIN_80_40 = "din 80-40"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--encoders", nargs="+", default=["mean", "din", DIN_80_40, "asta", "sdim", "transformer"])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("DATASET", "ENCODER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        dataset, encoder = arguments.one
        print(json.dumps([train(Path(dataset), encoder, arguments.length, epochs) for epochs in (1, 2)]))
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        write_log(log, arguments.rows, arguments.length)
        datasets = {
            name: build(log, Path(folder), name, arguments.length, sequences)
            for name, sequences in ((WITHOUT, {}), ("with", {"a": "C0", "b": "C1"}))
        }
        steps: dict[str, list[float]] = {}
        for _ in tqdm(range(arguments.turns), disable=None):
            for encoder in (WITHOUT, *arguments.encoders):
                dataset = datasets[WITHOUT if encoder == WITHOUT else "with"]
                steps.setdefault(encoder, []).append(step_seconds(dataset, encoder, arguments))
    found = {encoder: min(seconds) for encoder, seconds in steps.items()}
    ratios = {encoder: seconds / found[WITHOUT] for encoder, seconds in found.items()}
    result = {"length": arguments.length, "step_cpu_seconds": steps, "times_without": ratios}
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def step_seconds(dataset: Path, encoder: str, arguments: argparse.Namespace) -> float:
    """Measure a step in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.train_histories", "--length", str(arguments.length)]
    environment = {**os.environ, HUGE_PAGES: "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command += ["--one", str(dataset), encoder]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    one, two = json.loads(done.stdout.splitlines()[-1])
    return (two - one) / -(-arguments.rows // BATCH_SIZE)


def write_log(path: Path, num_rows: int, length: int) -> None:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"C{n}": rng.integers(0, NUM_VALUES, num_rows) for n in range(NUM_FEATURES)}
    columns["label"] = (rng.random(num_rows) < 0.3).astype(np.int64)
    for sequence in ("a", "b"):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, length + 1, num_rows))]).astype(np.int32)
        columns[sequence] = pa.ListArray.from_arrays(offsets, rng.integers(0, NUM_VALUES, offsets[-1]))
    pq.write_table(pa.table(columns), path)


def tree_of(log: Path, output: Path, length: int, sequences: dict[str, str]) -> dict[str, Any]:
    columns = pq.read_schema(log)
    names = [field.name for field in columns if field.name != "label" and not pa.types.is_list(field.type)]
    features = {
        "label": "label",
        "sparse": [{"name": name, "encoding": {"kind": "hash", "num_buckets": NUM_VALUES}} for name in names],
        "sequence": [
            {"name": key, "parts": [part], "columns": {part: key}, "max_length": length, "newest": "first"}
            for key, part in sequences.items()
        ],
    }
    pipeline = {"output": str(output), "input": {"train": str(log), "format": {"kind": "parquet"}}}
    return {"features": features, "pipeline": pipeline, "training": {"dataset": str(output), "from_data": []}}


def build(log: Path, folder: Path, name: str, length: int, sequences: dict[str, str]) -> Path:
    """Build a dataset in this process, with sequences of a part each: column of the log -> part."""
    from jobs.cli.config import parse_config
    from jobs.launch.dataset_build import run_build
    from pipeline.build import dataset

    dataset.run_tasks = run_here
    tree = tree_of(log, folder / name, length, sequences)
    run_build(cast(Any, None), parse_config(tree))
    (folder / f"{name}.json").write_text(json.dumps(tree))
    return folder / name


def train(dataset: Path, encoder: str, length: int, epochs: int) -> float:
    """Train in this process, as a Ray Train worker of one does; CPU seconds."""
    from jobs.cli.config import parse_config

    tree = json.loads(dataset.with_suffix(".json").read_text())
    tree["training"] |= {"global_batch_size": BATCH_SIZE, "max_epochs": epochs, "optimizer": {"kind": "fused"}}
    if encoder != WITHOUT:
        kind, *hidden = encoder.split(" ")
        config: dict[str, Any] = {"kind": kind} | ({"length": length} if kind == "transformer" else {})
        if hidden:
            config["hidden_units"] = [int(units) for units in hidden[0].split("-")]
        tree["training"]["model"] = {"sequences": {"a": config, "b": config}}
    return train_here(parse_config(tree))[1]


if __name__ == "__main__":
    main()
