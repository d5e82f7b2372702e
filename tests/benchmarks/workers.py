"""Two workers against one on the same total work and the same cores, with plain and with pipelined steps.

    python -m tests.benchmarks.workers --config jobs/configs/bench.toml --output runs/bench/workers.json

Each contender trains with the same first batches of the training split, reading included: one worker with all threads,
two with half of them each over gloo, both with ``training.pipelined`` off and on. All processes live throughout and
wait for their turn; turns alternate, and medians are compared. ``communication`` is the share of a step spent in the
exchange of ids, vectors and their gradients and in reductions, the waiting for the other worker included.
"""

# isort: skip_file
# jobs.launch.worker tells the C library and torch about memory, before torch is loaded.
import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from jobs.launch.worker import set_up_worker

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tqdm import tqdm

from features.disk.atomic import write_json
from jobs.cli.config import load_config
from training.config import TrainingConfig
from training.fit.loop import Training, make_step
from training.sharding.parallelize import parallelize
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import build_model
from training.fit.step_times import COMMUNICATION

CPU, META = torch.device("cpu"), torch.device("meta")
WORLD_SIZES = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="jobs/configs/bench.toml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="of one turn")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    config = load_config(arguments.config or ["jobs/configs/bench.toml"], arguments.overrides).training
    result = measure(config, arguments.repeats, arguments.steps)
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)


def measure(config: TrainingConfig, repeats: int, num_steps: int) -> dict[str, Any]:
    context = mp.get_context("spawn")
    contenders = [(size, pipelined) for size in WORLD_SIZES for pipelined in (False, True)]
    turns: dict[tuple[int, bool], list[dict[str, Any]]] = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory() as folder:
        orders = {(size, rank): context.SimpleQueue() for size in WORLD_SIZES for rank in range(size)}
        answers = context.SimpleQueue()
        processes = [
            context.Process(target=work, args=(folder, size, rank, config, num_steps, order, answers), daemon=True)
            for (size, rank), order in orders.items()
        ]
        for process in processes:
            process.start()
        for _ in processes:
            answers.get()  # its tables are made
        for number in tqdm(range(repeats + 1), disable=None, desc="repeats"):
            for size, pipelined in contenders if number % 2 else reversed(contenders):
                for rank in range(size):
                    orders[size, rank].put(pipelined)
                found = [answers.get() for _ in range(size)]
                if number:  # the first round only warms up
                    turns[size, pipelined].append(merge(found))
        for order in orders.values():
            order.put(None)
        for process in processes:
            process.join()
    names = {c: f"{c[0]} worker{'s' * (c[0] > 1)}{', pipelined' * c[1]}" for c in contenders}
    medians = {names[c]: statistics.median(turn["rows_per_second"] for turn in turns[c]) for c in contenders}
    one, one_pipelined, two, two_pipelined = medians.values()
    return {
        "steps": num_steps,
        "batch_size": config.global_batch_size,
        "rows_per_second": medians,
        "two_vs_one": two / one,
        "pipelined_vs_plain": {"1 worker": one_pipelined / one, "2 workers": two_pipelined / two},
        "communication": {names[c]: statistics.median(t["communication"] for t in turns[c]) for c in contenders},
        "turns": {names[c]: turns[c] for c in contenders},
    }


def merge(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One turn of all ranks: the slowest rank's time, and the mean of the shares."""
    seconds = max(rank["seconds"] for rank in found)
    shares = {part: statistics.mean(rank["shares"][part] for rank in found) for part in found[0]["shares"]}
    rows_per_second = sum(rank["rows"] for rank in found) / seconds
    return {
        "rows_per_second": rows_per_second,
        "communication": sum(shares[part] for part in COMMUNICATION),
        "shares": shares,
    }


def work(
    folder: str, world_size: int, rank: int, config: TrainingConfig, num_steps: int, orders: Any, answers: Any
) -> None:
    """One rank: trains when it is told to, until it is told nothing more."""
    set_up_worker(world_size, None)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{world_size}", rank=rank, world_size=world_size)
    dataset = Dataset.open(config.dataset)
    parallel = parallelize(build_model(dataset, config, META), config, CPU)
    reader = Reader(dataset, "train", config, rank, world_size)
    training = Training(parallel, config, reader, None, CPU, Path("unused"))
    step = make_step(training)
    parallel.model.train()
    answers.put(None)
    while (pipelined := orders.get()) is not None:
        step.config = replace(config, pipelined=pipelined)
        answers.put(take_turn(training, step, num_steps))
    dist.destroy_process_group()


def take_turn(training: Training, step: Any, num_steps: int) -> dict[str, Any]:
    times, rows = training.times, 0
    times.seconds = dict.fromkeys(times.seconds, 0.0)

    def read() -> Any:
        nonlocal rows
        for batch in islice(training.train_reader.batches(0), num_steps):
            rows += batch.num_rows
            yield batch

    dist.barrier()
    started = time.perf_counter()
    times.start()
    for loss, _ in step.run(read(), count()):
        float(loss)
        times.mark("other")
        times.start()
    times.stop()
    return {"seconds": time.perf_counter() - started, "rows": rows, "shares": times.summary()["shares"]}


if __name__ == "__main__":
    main()
