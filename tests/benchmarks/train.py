"""Rows/s of the training loop, Parquet to updated weights, against the same steps without parts of it.

    python -m tests.benchmarks.train --config jobs/configs/bench.toml --output runs/bench/train.json

* loop: ``training.fit.loop.train`` over one epoch of the training split.
* cached: the same steps on one batch that is in memory: what the loop would do if reading cost nothing.
* tables: look-up, backward and update of the tables alone, on random gradients.
* dense: selection, encoders, fusion, loss, backward, clipping and Adam alone, on random vectors in place of look-ups.

All take turns in one process, and medians are compared. The parts are timed one after the other, so the loop, whose
reading runs beside them on the same cores, cannot quite reach their sum.
"""

# isort: skip_file
# jobs.launch.worker tells the C library and torch about memory, before torch is loaded.
import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.launch.worker import set_up_worker

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from features.disk.atomic import write_json
from jobs.cli.config import load_config
from training.data.batch import Batch
from training.config import TrainingConfig
from training.fit.loop import Progress, Training, make_step, train
from training.model.ctr_model import CTRModel
from training.model.embedding import FieldEmbedding
from training.model.objective import OBJECTIVES
from training.sharding.parallelize import parallelize
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import build_model

CPU, META = torch.device("cpu"), torch.device("meta")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="jobs/configs/bench.toml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    set_up_worker(1, arguments.threads)
    config = load_config(arguments.config or ["jobs/configs/bench.toml"], arguments.overrides).training
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        result = measure(config, arguments.repeats)
        dist.destroy_process_group()
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)


def measure(config: TrainingConfig, repeats: int) -> dict[str, Any]:
    dataset = Dataset.open(config.dataset)
    parallel = parallelize(build_model(dataset, config, META), config, CPU)
    training = Training(parallel, config, Reader(dataset, "train", config), None, CPU, Path("unused"))
    step = make_step(training)
    batch = next(iter(training.train_reader.batches(0)))
    num_steps, num_rows = training.train_reader.num_steps, training.train_reader.num_rows
    dense_step = make_dense_step(dataset, config, batch)
    contenders: dict[str, Callable[[], float]] = {
        "loop": lambda: run_loop(training, step),
        "cached": lambda: repeat_step(lambda number: float(step(batch, number)[0]), num_steps),
        "tables": lambda: repeat_step(make_table_step(training, batch), num_steps),
        "dense": lambda: repeat_step(dense_step, num_steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in tqdm(range(repeats + 1), disable=None, desc="repeats"):
        for name in list(contenders) if number % 2 else list(reversed(contenders)):
            parallel.model.train()
            taken = contenders[name]()
            if number:  # the first round only warms up
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # The epoch's last batch is not full; the other contenders repeat a full one.
    full = num_steps * batch.num_rows
    rates = {name: (num_rows if name == "loop" else full) / value for name, value in medians.items()}
    parts = 1 / (1 / rates["tables"] + 1 / rates["dense"])
    return {
        "rows": num_rows,
        "batch_size": config.global_batch_size,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "rows_per_second": {**rates, "parts": parts},
        "vs_cached_batch": rates["loop"] / rates["cached"],
        "vs_parts": rates["loop"] / parts,
        **training.times.summary(),
        "reader_rows_per_second": training.train_reader.rows_per_second,
    }


def run_loop(training: Training, step: Any) -> float:
    """Seconds of an epoch, up to its last step: what follows is a checkpoint."""
    for event in train(training, Progress(), step):
        if event["event"] == "progress" and event["step_in_epoch"] == event["epoch_steps"]:
            training.times.stop()  # what the other contenders do is no part of a step
            return event["seconds"]
    raise AssertionError("the epoch had no last step")


def repeat_step(step: Callable[[int], Any], num_steps: int) -> float:
    started = time.perf_counter()
    for number in range(num_steps):
        step(number)
    return time.perf_counter() - started


def make_table_step(training: Training, batch: Batch) -> Callable[[int], None]:
    # Not through the embedding's own forward: its dense vectors are replicated, and wait for a whole step's backward.
    (embedding,) = (m for m in training.parallel.model.modules() if isinstance(m, FieldEmbedding))

    def step(_: int) -> None:
        vectors_BK = embedding.bags(batch.sparse_features).values()
        vectors_BK.backward(torch.full_like(vectors_BK, 1e-6))

    return step


class RandomVectors(nn.Module):
    """Stands where the embedding does: the same shapes, and gradients that end here."""

    def __init__(self, streams: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.streams = {name: torch.randn_like(v).requires_grad_() for name, v in streams.items()}

    def forward(self, *_: Any) -> dict[str, torch.Tensor]:
        for vectors in self.streams.values():
            vectors.grad = None
        return self.streams


def make_dense_step(dataset: Dataset, config: TrainingConfig, batch: Batch) -> Callable[[int], None]:
    model = CTRModel(dataset.manifest.schema, dict.fromkeys(dataset.num_embeddings(), 1), config.model, device=CPU)
    one_row = model.embedding.num_fields
    widths = {stream: width for stream, width in model.embedding.widths.items()}
    streams = {s: torch.zeros(batch.num_rows, one_row if w else 0, w) for s, w in widths.items()}
    model.embedding = RandomVectors(streams)  # pyright: ignore[reportAttributeAccessIssue]
    parameters = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=1e-3, foreach=True)
    objective = OBJECTIVES[config.model.objective.kind](config.model.objective)
    weights = batch.weights[: batch.num_rows]

    def step(_: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = model(batch)
        loss = objective(logits, batch.labels[: batch.num_rows], weights, float(batch.num_rows))
        adam.zero_grad()
        loss.backward()
        if config.clip_gradient_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.clip_gradient_norm, foreach=True)
        adam.step()

    return step


if __name__ == "__main__":
    main()
