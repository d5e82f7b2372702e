"""Whether ``jobs.scaling`` predicts what can be measured here: calibrated on some steps, held to others.

    python -m tests.benchmarks.scaling --dataset runs/bench/memory/dataset-200000 --output runs/bench/scaling.json

One thread a rank, batches that are in memory, networks like the benchmarks' (jobs/configs/bench.toml). Fitted: the
share of a large product's speed and what a step costs whatever its size, by steps of 512 and 4,096 rows; the tables'
cost an id and a byte, at widths 16 and 64; latency and bandwidth of gloo, by empty and by large messages. Predicted:
other batch sizes, widths and layers, and two gloo ranks with their tables cut in three ways. For two ranks the same is
fitted beside a neighbour that does the same, since two threads of one core are slower than two cores.
"""

# isort: skip_file
# jobs.launch.worker tells the C library and torch about memory, before torch is loaded.
import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.launch.worker import set_up_worker

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from features.disk.atomic import write_json
from jobs.cli.config import load_config
from tests.benchmarks.train import make_table_step
from training.config import TrainingConfig
from training.forecast.what_if_layouts import planned_shards
from training.fit.loop import Training, make_step
from training.sharding.parallelize import parallelize
from training.sharding.table_planner import Cluster
from training.data.opened_dataset import Dataset
from training.data.reader import Reader
from training.fit.run import build_model
from training.forecast.cost_model import FIELD_PASSES, HIDDEN_PASSES, Machine, Shard, Traffic, predict
from training.model.cost import FLOAT, Net

CONFIG = "jobs/configs/bench.toml"
CPU, META = torch.device("cpu"), torch.device("meta")
WIDE = ("training.model.easy.hidden_units=[800,800]", "training.model.hard.hidden_units=[800,800,800]")
CASES = {
    "batch 1,024": (1_024, 16, ()),
    "batch 2,048": (2_048, 16, ()),
    "batch 8,192": (8_192, 16, ()),
    "width 8": (4_096, 8, ()),
    "width 32": (4_096, 32, ()),
    "layers of 800": (4_096, 16, WIDE),
}
SHARDINGS = ("table_wise", "column_wise", "row_wise")
TWO_RANKS_BATCHES = (2_048, 8_192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="as tests.benchmarks.memory makes them")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *words = arguments.child
        print(json.dumps(CHILDREN[kind](str(arguments.dataset), arguments.seconds, *words)))
        return
    result = measure(arguments.dataset, arguments.seconds)
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.output, result)


def measure(dataset: Path, seconds: float) -> dict[str, Any]:
    def child(*words: object) -> Any:
        command = [sys.executable, "-m", "tests.benchmarks.scaling", "--dataset", str(dataset)]
        command += ["--seconds", str(seconds), "--child", *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def answer(process: Any) -> Any:
        output = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"{process.args} failed")
        return json.loads(output.splitlines()[-1])

    alone = answer(child("alone", *CASES))
    machine, crowded = (
        calibrate([alone], str(dataset)),
        calibrate([answer(process) for process in [child("alone"), child("alone")]], str(dataset)),
    )
    with tempfile.TemporaryDirectory() as folder:
        ranks = [child("two", f"{folder}/store", rank) for rank in range(2)]
        found, _ = [answer(rank) for rank in ranks]
    crowded = dataclasses.replace(crowded, within_host=found["bandwidth"], latency_within=found["latency"])
    cases = []
    for name, (batch, width, layers) in CASES.items():
        config = _config(str(dataset), batch, width, *layers)
        cases.append(_compare(name, alone["steps"][name], _predict(config, machine, 1)))
    for sharding in SHARDINGS:
        for batch in TWO_RANKS_BATCHES:
            config = _config(str(dataset), batch, 16, f"training.sharding.default={sharding}")
            name = f"two ranks, {sharding}, batch {batch:,}"
            cases.append(_compare(name, found["steps"][f"{sharding} {batch}"], _predict(config, crowded, 2)))
    errors = [abs(case["error"]) for case in cases]
    return {
        "alone": dataclasses.asdict(machine),
        "beside_another": dataclasses.asdict(crowded),
        "cases": cases,
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
    }


def _compare(name: str, measured: float, predicted: Any) -> dict[str, Any]:
    seconds = sum(predicted.seconds.values())
    return {
        "case": name,
        "measured_ms": 1e3 * measured,
        "predicted_ms": 1e3 * seconds,
        "error": seconds / measured - 1,
        "parts_ms": {part: 1e3 * value for part, value in predicted.seconds.items()},
    }


def _predict(config: TrainingConfig, machine: Machine, world_size: int) -> Any:
    model = build_model(Dataset.open(config.dataset), config, META)
    shards = planned_shards(model, config, Cluster("cpu", world_size, world_size))
    return predict(shards, Net.of(model), machine, Traffic(world_size, world_size, config.global_batch_size, head=0.1))


# --------------------------------------------------------------------------------------------------------- calibration


def calibrate(found: list[dict[str, Any]], dataset: str) -> Machine:
    """A machine that takes as long as was measured (on average over ``found``) for the steps it is fitted to."""
    small, large, narrow, wide, flops, bandwidth = np.mean([run["fitted"] for run in found], axis=0)
    config = _config(dataset, 4_096, 16)
    net = Net.of(build_model(Dataset.open(dataset), config, META))
    # Two widths, one number of ids: what does not grow with the bytes is the ids' own cost.
    ids, moved = zip(*(_moved(dataset, width) for width in (16, 64)), strict=True)
    share = min(1.0, (moved[1] - moved[0]) / (wide - narrow) / bandwidth)
    if share <= 0:
        raise RuntimeError("wider tables took no longer: the machine is too busy to measure on")
    # Two batches: what does not grow with the rows is a step's own cost.
    per_row = (large - small) / (4_096 - 512)
    numbers = FLOAT * (FIELD_PASSES * net.field_numbers + HIDDEN_PASSES * net.hidden_numbers)
    products = per_row - narrow / 4_096 - numbers / bandwidth
    return Machine(
        flops=flops,
        flops_share=min(1.0, net.flops / products / flops),
        memory_bandwidth=bandwidth,
        memory_share=share,
        id_seconds=max(0.0, (narrow - moved[0] / bandwidth / share) / ids[0]),
        step_seconds=max(0.0, small - 512 * per_row),
    )


def _alone(dataset: str, width: int = 16) -> list[Shard]:
    config = _config(dataset, 4_096, width)
    return planned_shards(build_model(Dataset.open(dataset), config, META), config, Cluster("cpu", 1, 1))


def _moved(dataset: str, width: int) -> tuple[float, float]:
    """Ids and bytes of a step's look-ups."""
    shards, unit = _alone(dataset, width), Machine(flops=1e30, memory_bandwidth=1.0)
    nothing = Net(0.0, 0, 0, 0, 0)
    moved = predict(shards, nothing, unit, Traffic(1, 1, 4_096, head=0.1)).seconds["tables"]
    return 4_096.0 * len(shards), moved


def _config(dataset: str, batch: int, width: int, *overrides: str) -> TrainingConfig:
    own = (
        f"training.dataset={dataset}",
        f"training.global_batch_size={batch}",
        f"training.model.embedding_dim={width}",
    )
    return load_config([CONFIG], [*own, *overrides]).training


# ------------------------------------------------------------------------------------------------------------ children


def measure_alone(dataset: str, seconds: float, *cases: str) -> dict[str, Any]:
    """Steps and parts of one rank on one thread: what ``calibrate`` fits to, and steps of some of ``CASES``."""
    set_up_worker(1, 1)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        fitted = [
            *(_steps(_config(dataset, batch, 16), seconds) for batch in (512, 4_096)),
            *(_steps(_config(dataset, 4_096, width), seconds, tables_alone=True) for width in (16, 64)),
            *measure_limits(seconds),
        ]
        steps = {}
        for name in tqdm(cases, disable=None):
            batch, width, layers = CASES[name]
            steps[name] = _steps(_config(dataset, batch, width, *layers), seconds)
        dist.destroy_process_group()
    return {"fitted": fitted, "steps": steps}


def measure_two(dataset: str, seconds: float, store: str, rank: str) -> dict[str, Any]:
    """Steps of one of two ranks, each on one thread, and what messages cost them."""
    set_up_worker(2, 1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    tiny, large = torch.zeros(2), torch.zeros(1 << 24)
    latency = _median(lambda: dist.all_reduce(tiny), 1.0, together=True)
    out = torch.empty_like(large)
    # Half of it goes to the other rank.
    bandwidth = FLOAT * len(large) / 2 / _median(lambda: dist.all_to_all_single(out, large), 1.0, together=True)
    steps = {}
    for sharding in SHARDINGS:
        for batch in TWO_RANKS_BATCHES:
            config = _config(dataset, batch, 16, f"training.sharding.default={sharding}")
            steps[f"{sharding} {batch}"] = _steps(config, seconds)
    dist.barrier()
    dist.destroy_process_group()
    return {"latency": latency, "bandwidth": bandwidth, "steps": steps}


def measure_limits(seconds: float) -> tuple[float, float]:
    """Products and sums a second of one large product; bytes a second that a copy reads and writes."""
    a, b, c = torch.randn(4_096, 429), torch.randn(429, 400), torch.empty(4_096, 400)
    flops = 2 * 4_096 * 429 * 400 / _median(lambda: torch.mm(a, b, out=c), seconds / 2)
    source = torch.zeros(1 << 26)
    target = torch.zeros_like(source)
    return flops, 2 * FLOAT * len(source) / _median(lambda: target.copy_(source), seconds / 2)


def _steps(config: TrainingConfig, seconds: float, tables_alone: bool = False) -> float:
    """Median seconds of a step, or of its look-ups and updates, on one batch that stays in memory."""
    dataset, rank, world_size = Dataset.open(config.dataset), dist.get_rank(), dist.get_world_size()
    reader = Reader(dataset, "train", config, rank, world_size)
    batch = next(iter(reader.batches(0)))
    parallel = parallelize(build_model(dataset, config, META), config, CPU)
    parallel.model.train()
    training = Training(parallel, config, reader, None, CPU, Path("unused"))
    if tables_alone:
        tables = make_table_step(training, batch)
        return _median(lambda: tables(0), seconds)
    step = make_step(training)

    def run() -> None:
        loss, _ = step(batch, 0)
        dist.all_reduce(loss)
        float(loss)

    return _median(run, seconds, together=world_size > 1)


def _median(run: Callable[[], Any], seconds: float, together: bool = False) -> float:
    """Of at least five runs after two that warm up; ``together``: as often on every rank."""
    run()
    started = time.perf_counter()
    run()
    count = torch.tensor(max(5, int(seconds / (time.perf_counter() - started))))
    if together:
        dist.all_reduce(count, dist.ReduceOp.MIN)
    taken = []
    for _ in range(int(count)):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"alone": measure_alone, "two": measure_two}


if __name__ == "__main__":
    main()
