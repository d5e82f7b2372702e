"""How close one epoch of the dense lane comes to its matrix products alone, in float32 and in bfloat16.

    python -m tests.benchmarks.dense_lane --config jobs/configs/frappe.toml --output runs/bench/dense_lane.json

The products are those of every Linear layer, forward and backward, at the epoch's own batch sizes, with nothing around
them, in float32. Epochs read the dataset, train and update; both alternate, and medians are compared. The last lines
time the pass over every row of every table that each step of this lane makes, at Frappe's size and at Criteo's.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.fit.allocator import HUGE_PAGES, keep_freed_memory

os.environ.setdefault(HUGE_PAGES, "1")  # as jobs.train does, before PyTorch is loaded

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from features.disk.atomic import write_json
from jobs.cli.config import load_config
from training.config import TrainingConfig
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.loop import Training, make_step
from training.fit.run import build_model
from training.sharding.parallelize import parallelize

CRITEO_WEIGHTS = 910_747 * 24
"""Numbers in the tables of Criteo_x4 with 10 occurrences, widths 16 and 8 (the paper's configuration)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/configs/frappe.toml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        result = measure(arguments.config, arguments.repeats)
        dist.destroy_process_group()
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)


def measure(config_path: str, repeats: int) -> dict[str, Any]:
    configs = {p: load_config([config_path], [f"training.precision={p}"]).training for p in ("float32", "bfloat16")}
    trainings = {precision: prepare(c) for precision, c in configs.items()}
    batch_sizes = [batch.num_rows for batch in trainings["float32"].train_reader.batches(0)]
    linears = [m for m in trainings["float32"].parallel.model.modules() if isinstance(m, nn.Linear)]
    contenders: dict[str, Callable[[int], None]] = {
        "products": lambda _: multiply(linears, batch_sizes),
        **{name: lambda epoch, t=training: train_epoch(t, epoch) for name, training in trainings.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in tqdm(range(repeats + 1), disable=None, desc="repeats"):
        order = list(contenders) if repeat % 2 else list(reversed(contenders))
        for name in order:
            started = time.perf_counter()
            contenders[name](repeat)
            if repeat:  # the first round only warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    tables = trainings["float32"].parallel.plan
    num_weights = sum(table["rows"] * table["width"] for table in tables)
    return {
        "rows": sum(batch_sizes),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "seconds": seconds,
        "medians": medians,
        "float32_vs_products": medians["float32"] / medians["products"],
        "bfloat16_vs_products": medians["bfloat16"] / medians["products"],
        "seconds_of_one_table_pass": {f"{n:,} weights": table_pass(n, repeats) for n in (num_weights, CRITEO_WEIGHTS)},
    }


META = torch.device("meta")


def prepare(config: TrainingConfig) -> Training:
    dataset, device = Dataset.open(config.dataset), torch.device("cpu")
    parallel = parallelize(build_model(dataset, config, META), config, device)
    parallel.model.train()
    return Training(parallel, config, Reader(dataset, "train", config), None, device, Path("unused"))


def train_epoch(training: Training, epoch: int) -> None:
    step = make_step(training)
    for number, batch in enumerate(training.train_reader.batches(epoch)):
        loss, _ = step(batch, number)
        float(loss)


def multiply(linears: list[nn.Linear], batch_sizes: list[int]) -> None:
    """Forward, gradient of the weight, gradient of the input, of every layer and batch."""
    with torch.no_grad():
        tensors = {
            rows: [(torch.ones(rows, m.in_features), torch.ones(rows, m.out_features), m.weight) for m in linears]
            for rows in set(batch_sizes)
        }
        for rows in batch_sizes:
            for x, g, weight in tensors[rows]:
                x @ weight.t()
                g.t() @ x
                g @ weight


def table_pass(num_weights: int, repeats: int) -> float:
    """L2, clipping and Adam of so many table weights, once: what a step costs however few rows it looks up."""
    weight = nn.Parameter(torch.zeros(num_weights))
    weight.grad = torch.ones(num_weights)
    adam = torch.optim.Adam([weight], foreach=True)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        weight.grad.add_(weight.detach(), alpha=0.1)
        nn.utils.clip_grad_norm_([weight], 10.0, foreach=True)
        adam.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
