"""Rows/s of training DIN over a history of up to 50 events, against FuxiCTR's DIN of the same sizes, in turns.

    python -m tests.benchmarks.peers_sequences --output runs/bench/peers_sequences.json

The dataset is that of jobs/configs/sequences/amazon_beauty.toml: 262,826 rows, 8.4 events a row on average, batches of
1,024. Vectors of 32, an attention MLP of 80 and 40 with Dice, a network of 256 and 128, one thread, one pass. FuxiCTR
keeps its rows in memory and pads each history to 50; ours are read from Parquet. "two streams" is our TF4CTR with two
such networks, each with tables and a DIN of its own. Rates are of an epoch by CPU time, without a program's start, so
that what else runs on the machine counts little.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from features.disk.atomic import write_json
from tests.benchmarks.peers import environment
from tests.benchmarks.train_here import train_here

CONFIG = "jobs/configs/sequences/amazon_beauty.toml"
SEQUENCE, LENGTH, BATCH_SIZE = "hist", 50, 1_024
MLP = 'hard={ kind = "mlp", hidden_units = [256, 128], batch_norm = false, dropout = 0.0 }'
DIN = 'sequences.hist={ kind = "din", hidden_units = [80, 40] }'
OURS = {
    "one stream": (
        "embedding_dim=32",
        MLP,
        DIN,
        'selection.kind="shared"',
        'easy={ kind = "none" }',
        'fusion={ kind = "single" }',
        'objective={ kind = "bce" }',
    ),
    "two streams": ("embedding_dim=32", MLP, MLP.replace("hard", "easy"), DIN),
}
"""Settings under training.model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="built by that config; built anew if it is not given")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", choices=OURS, help=argparse.SUPPRESS)  # a process of its own
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train(arguments.dataset, OURS[arguments.one])))
        return
    environment.prepare()
    with tempfile.TemporaryDirectory() as folder:
        dataset = arguments.dataset or build(Path(folder))
        turns = [take_turn(dataset) for _ in tqdm(range(arguments.turns), disable=None)]
    rates = {who: [turn[who] for turn in turns] for who in turns[0]}
    ratios = {who: median(a / b for a, b in zip(rates[who], rates["fuxictr"], strict=True)) for who in OURS}
    result = {"rows_per_cpu_second": rates, "times_fuxictr": ratios}
    print(json.dumps(result, indent=1))
    if arguments.output:
        write_json(arguments.output, result)


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "jobs.build_dataset", "--config", CONFIG, f"pipeline.output={folder / 'dataset'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "dataset"


def take_turn(dataset: Path) -> dict[str, float]:
    """Who -> rows per second of CPU time; one after the other."""
    found = {}
    environment_of_one = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for who in OURS:
        command = [sys.executable, "-m", "tests.benchmarks.peers_sequences", "--dataset", str(dataset), "--one", who]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment_of_one)
        found[who] = json.loads(done.stdout.splitlines()[-1])["rows_per_cpu_second"]
    peer = environment.run("train_fuxictr_din.py", dataset.absolute(), SEQUENCE, LENGTH, BATCH_SIZE)
    return {**found, "fuxictr": peer["rows_per_cpu_second"]}


def train(dataset: Path, model: tuple[str, ...]) -> dict[str, Any]:
    """Train in this process, as a Ray Train worker of one does; the rate of an epoch, with its checkpoint."""
    from jobs.cli.config import load_config

    overrides = [f"training.model.{setting}" for setting in model]
    overrides += [f'training.dataset="{dataset}"', f"training.global_batch_size={BATCH_SIZE}"]
    overrides += ['training.optimizer={ kind = "fused" }', "training.evaluation.sample_rows=1_000"]
    configs = [load_config([CONFIG], [*overrides, f"training.max_epochs={number}"]) for number in (1, 2)]
    (rows, one), (more_rows, two) = map(train_here, configs)
    return {"rows_per_cpu_second": (more_rows - rows) / (two - one)}


if __name__ == "__main__":
    main()
