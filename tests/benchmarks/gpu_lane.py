"""The CUDA lane on one GPU: losses against the CPU lane, rows/s of its variants, and how near they come to the limits.

    python -m tests.benchmarks.gpu_lane --output runs/bench/gpu_lane.json
    python -m tests.benchmarks.gpu_lane --device cpu --rows 2000 --batch-size 256 --steps 4     # the same code anywhere

Needs torch, torchrec, fbgemm-gpu, numpy, pydantic, xxhash and tqdm, and no dataset, Spark, Ray or Petastorm: batches of
the benchmarks' shape (jobs/configs/bench.toml, with ids of a power law) are made in memory.

* losses: the same steps, without dropout, on the CPU and on the GPU; they must agree to ``--tolerance``.
* variants: one thing changed at a time against pipelined steps, table-wise tables, row-wise Adagrad and float32. Each
  is warmed up; then all steps of a repeat are timed together, and the median of the repeats counts. ``shares`` are of
  steps timed part by part, the GPU finishing each part, so without overlap.
* limits: a copy within the device's memory, and square matrix products in each precision, as measured here.
  ``of_copy`` is what lookups and updates move of a table's rows, gradients and state, against the copy; ``of_gemm`` the
  network's matrix products in the time of its dense part, against the products of the same precision.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torchrec
from torch import nn
from tqdm import tqdm

from features.schema import FeatureSchema
from jobs.cli.config import load_config
from training.config import FusedOptimizer, ShardingConfig, TrainingConfig
from training.data.batch import Batch, to_batch
from training.fit.step import Step, matmul_precision
from training.fit.step_times import StepTimes
from training.model.ctr_model import CTRModel
from training.sharding.parallelize import ParallelModel, parallelize

NUM_BATCHES = 16
"""Different batches that the steps go round."""
WARM_UP = 5
SKEW = 2_000_000
"""Values of a category before they are hashed into a table's rows, the first ones the most frequent."""
PRECISIONS = ("float32", "tf32", "bfloat16")
CAP = 0.5
"""Share of the tables' bytes that fit the GPU in the variant with tables in host memory."""
MARGIN = 0.85
"""Share of a GPU's memory that the planner fills."""
GIB = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--config", default="jobs/configs/bench.toml")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each table")
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--steps", type=int, default=200, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compared-steps", type=int, default=20, help="whose losses are compared with the CPU lane's")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of each of these losses, relative")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: this machine has no CUDA device that PyTorch can use; --device cpu runs the same code on the CPU",
            file=sys.stderr,
        )
        return 1
    result = measure(arguments)
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not result["losses"]["agree"]:
        print(f"error: losses differ from the CPU lane's by more than {arguments.tolerance:g}", file=sys.stderr)
        return 1
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
    config = load_config([arguments.config], [])
    lane = Lane(config.features, config.training, arguments, device)
    with process_group("gloo"):
        on_cpu = lane.losses(torch.device("cpu"))
    with process_group("nccl" if device.type == "cuda" else "gloo"):
        on_device = lane.losses(device)
        limits = measure_limits(device)
        variants = {
            name: lane.measure(variant, limits)
            for name, variant in tqdm(lane.variants().items(), disable=None, desc="variants")
        }
    differences = [abs(a - b) / abs(b) for a, b in zip(on_device, on_cpu, strict=True)]
    rates = {name: variant["rows_per_second"] for name, variant in variants.items()}
    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "torchrec": getattr(torchrec, "__version__", "unknown"),
        },
        "rows": arguments.rows,
        "batch_size": arguments.batch_size,
        "losses": {
            "cpu": on_cpu,
            "device": on_device,
            "largest_relative_difference": max(differences),
            "tolerance": arguments.tolerance,
            "agree": max(differences) <= arguments.tolerance,
        },
        "limits": limits,
        "vs_base": {name: rate / rates["base"] for name, rate in rates.items()},
        "variants": variants,
    }


@contextlib.contextmanager
def process_group(backend: str) -> Iterator[None]:
    """A process group of this process alone, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


class Lane:
    """The benchmarks' network on one device, in variants."""

    def __init__(
        self, schema: FeatureSchema, config: TrainingConfig, arguments: argparse.Namespace, device: torch.device
    ) -> None:
        self.schema, self.arguments, self.device = schema, arguments, device
        self.config = replace(
            config,
            device=device.type,
            global_batch_size=arguments.batch_size,
            pipelined=True,
            optimizer=FusedOptimizer("rowwise_adagrad", embedding_learning_rate=0.02),
            sharding=ShardingConfig("table_wise"),
        )
        rng = np.random.default_rng(0)
        self.batches = [draw(rng, schema, arguments.rows, arguments.batch_size) for _ in range(NUM_BATCHES)]

    def variants(self) -> dict[str, TrainingConfig]:
        base = self.config
        found = {
            "base": base,
            "plain steps": replace(base, pipelined=False),
            "row_wise": replace(base, sharding=ShardingConfig("row_wise")),
            "bfloat16": replace(base, precision="bfloat16"),
        }
        if self.device.type == "cuda":
            cap = CAP * self.table_bytes(base) / MARGIN / GIB
            capped = ShardingConfig("table_wise", device_memory=cap)
            found |= {
                "tf32": replace(base, precision="tf32"),
                "adam": replace(base, optimizer=replace(base.optimizer, embedding_optimizer="adam")),
                "adam, row_wise": replace(
                    base,
                    optimizer=replace(base.optimizer, embedding_optimizer="adam"),
                    sharding=ShardingConfig("row_wise"),
                ),
                "tables in host memory": replace(base, sharding=capped),
            }
        return found

    def losses(self, device: torch.device) -> list[float]:
        """Of the first steps, without dropout, whose random numbers no two devices share."""
        model = self.config.model
        sides = {side: replace(getattr(model, side), dropout=0.0) for side in ("easy", "hard")}
        config = replace(self.config, device=device.type, model=replace(model, **sides))
        step, _ = self.start(config, device)
        with matmul_precision(config):
            results = [float(loss) for loss, _ in step.run(self.take(self.arguments.compared_steps), count())]
        del step
        clear(device)
        return results

    def start(self, config: TrainingConfig, device: torch.device) -> tuple[Step, ParallelModel]:
        rows = dict.fromkeys(self.schema.sparse_names, self.arguments.rows)
        padded = config.pads_tables
        model = CTRModel(self.schema, rows, config.model, seed=config.seed, pad_tables=padded, device="meta")
        parallel = parallelize(model, config, device)
        parallel.model.train()
        return Step(parallel, config, device, StepTimes(parallel.model, device)), parallel

    def take(self, num_steps: int) -> Iterator[Batch]:
        return islice(cycle(self.batches), num_steps)

    def measure(self, config: TrainingConfig, limits: dict[str, Any]) -> dict[str, Any]:
        """Rows/s of a variant, and where its time goes."""
        step, parallel = self.start(config, self.device)
        times, steps, size = step.times, self.arguments.steps, self.arguments.batch_size
        with matmul_precision(config):
            self.run(step, WARM_UP)
            rates = [steps * size / self.run(step, steps) for _ in range(self.arguments.repeats)]
            times.interval = 1
            self.run(step, max(WARM_UP, steps // 10), timed=True)
        timing = times.summary()
        seconds = {part: share * timing["seconds_per_step"] for part, share in timing["shares"].items()}
        dense = seconds["dense forward"] + seconds["dense backward"]
        tables = seconds["lookup"] + seconds["table backward"]
        of_gemm = flops(parallel.model, size) / dense / 1e12 / limits["tflops"][config.precision]
        of_copy = self.moved_bytes(config) / tables / 1e9 / limits["copy_gb_per_second"]
        result = {
            "rows_per_second": statistics.median(rates),
            "repeats": rates,
            **timing,
            "of_gemm": of_gemm,
            "of_copy": of_copy,
            "kernels": {row["table"]: row["kernel"] for row in parallel.plan if row["kernel"] != "fused"},
        }
        if self.device.type == "cuda":
            result["device_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        del step, parallel, times
        clear(self.device)
        return result

    def run(self, step: Step, num_steps: int, *, timed: bool = False) -> float:
        """Seconds of so many steps, the last one's end included."""
        synchronize(self.device)
        started = time.perf_counter()
        if timed:
            step.times.start()
        for _ in step.run(self.take(num_steps), count()):
            if timed:
                step.times.mark("other")
                step.times.start()
        step.times.stop()
        synchronize(self.device)
        return time.perf_counter() - started

    def table_bytes(self, config: TrainingConfig) -> int:
        return 4 * config.model.embedding_dim * self.arguments.rows * len(self.schema.sparse)

    def moved_bytes(self, config: TrainingConfig) -> float:
        """A looked-up row is read and written into its vector; its gradient is read, and it and its state rewritten."""
        assert isinstance(config.optimizer, FusedOptimizer)
        ids = self.arguments.batch_size * len(self.schema.sparse)
        width = config.model.embedding_dim
        state = {"adam": 4 * width, "rowwise_adagrad": 2}[config.optimizer.embedding_optimizer]
        return 4.0 * ids * (5 * width + state)


def draw(rng: np.random.Generator, schema: FeatureSchema, num_rows: int, batch_size: int) -> Batch:
    """Ids of a power law, spread over the table as a hash would; labels that some of them decide."""
    columns: dict[str, Any] = {name: rng.standard_normal(batch_size, np.float32) for name in schema.dense_names}
    effects = np.zeros(batch_size)
    for number, name in enumerate(schema.sparse_names):
        ranks = np.exp(rng.random(batch_size) * np.log(SKEW)).astype(np.int64)
        columns[name] = ((ranks * 2_246_822_519 + number) % (2**31 - 1) % num_rows).astype(np.int32)
        effects += (ranks % 7 - 3) / 10
    columns["label"] = (rng.random(batch_size) < 1 / (1 + np.exp(1 - effects))).astype(np.float32)
    return to_batch(columns, schema, batch_size)


def flops(model: nn.Module, batch_size: int) -> float:
    """Of a step's matrix products: forward, gradient of the weight, gradient of the input."""
    return 6.0 * batch_size * sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))


def measure_limits(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    size = GIB if on_cuda else GIB // 16
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    copy = 2 * size / fastest(lambda: target.copy_(source), device) / 1e9
    width = 8_192 if on_cuda else 1_024
    tflops = {}
    for precision in PRECISIONS if on_cuda else ("float32", "bfloat16"):
        a = torch.randn(width, width, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
        b = torch.randn_like(a)
        config = TrainingConfig(dataset="none", device=device.type, precision=precision)
        with matmul_precision(config):
            tflops[precision] = 2 * width**3 / fastest(lambda a=a, b=b: a @ b, device) / 1e12
    clear(device)
    return {"copy_gb_per_second": copy, "tflops": tflops}


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some runs: a limit, not what is usual."""
    seconds = []
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    """Give back what the last variant held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    sys.exit(main())
