"""Nanoseconds a look-up of FBGEMM's forward and backward on CPU, by optimizer; a table by table and all tables as one.

    python -m tests.benchmarks.table_backward

FBGEMM has a generated kernel for row-wise Adagrad where each table has one feature, and a plain loop for all else. The
generated one mixes SSE and AVX instructions, which some processors make expensive: ``one table`` shows what the same
rows cost in the loop.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from features.disk.atomic import write_json

WIDTH = 16
OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of a table")
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {name: measure(arguments, optimizer, False) for name, optimizer in OPTIMIZERS.items()}
    found["rowwise_adagrad, one table"] = measure(arguments, EmbOptimType.EXACT_ROWWISE_ADAGRAD, True)
    print(json.dumps(found, indent=1))
    if arguments.output:
        write_json(arguments.output, found)


def measure(arguments: argparse.Namespace, optimizer: EmbOptimType, is_one: bool) -> dict[str, float]:
    """Nanoseconds a look-up, each of another row; ``is_one``: the tables are one whose rows they share out."""
    tables, rows, batch = arguments.tables, arguments.rows, arguments.batch_size
    place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    module = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows * tables, WIDTH, *place)] if is_one else [(rows, WIDTH, *place)] * tables,
        feature_table_map=[0] * tables if is_one else list(range(tables)),
        optimizer=optimizer,
        learning_rate=0.01,
    )
    generator = torch.Generator().manual_seed(0)
    first = torch.arange(tables).repeat_interleave(batch) * (rows if is_one else 0)
    offsets = torch.arange(tables * batch + 1)
    grad = torch.randn(batch, tables * WIDTH, generator=generator)
    seconds = {"forward": 0.0, "backward": 0.0}
    for turn in range(-2, arguments.repeats):  # two to warm up
        ids = torch.randint(rows, (tables * batch,), generator=generator) + first
        started = time.perf_counter()
        pooled = module(ids, offsets)
        middle = time.perf_counter()
        pooled.backward(grad)
        if turn >= 0:
            seconds["forward"] += middle - started
            seconds["backward"] += time.perf_counter() - middle
    return {name: 1e9 * value / arguments.repeats / tables / batch for name, value in seconds.items()}


if __name__ == "__main__":
    main()
