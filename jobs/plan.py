"""Dry run of a sharding plan: what every rank of a cluster would hold and do, on a machine without that cluster.

The plan is the one that a training on such ranks would make. One that does not fit is refused with the nearest change
that does, found by planning again.
"""

import argparse
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from features.disk.dataset import MANIFEST_NAME, DatasetManifest
from features.disk.object_store import locate
from features.learnt import Learnt
from features.schema import VOCABULARY_KINDS
from jobs.cli.config import Config, check_manifest
from jobs.cli.conventions import absolute, config_parser, parse_config_arguments, run_program, write_json
from jobs.pages.plan_page import render, sentence
from training.config import TrainingConfig

if TYPE_CHECKING:
    from training.forecast.dry_run import Change, Plan, PlanError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
    "ti": 1 << 40,
}
MAX_SHOWN = 64
"""Ranks that are printed; all of them are in plan.json."""


def main() -> int:
    parser = config_parser(
        "jobs.plan",
        "Plan how tables are sharded over a cluster, without the cluster: bytes and load of every rank.",
        "python -m jobs.plan --config jobs/configs/plans/criteo_1tb.toml --world-size 64 --device-memory 80GiB",
    )
    parser.add_argument("--world-size", required=True, type=positive, metavar="N", help="ranks, one a GPU")
    parser.add_argument("--device-memory", required=True, type=num_bytes, metavar="SIZE", help="of a rank: 80GiB, 40GB")
    parser.add_argument(
        "--host-memory",
        type=num_bytes,
        metavar="SIZE",
        help="of a rank, for tables that training.sharding.device_memory leaves to its host; default: 128GiB",
    )
    parser.add_argument("--local-world-size", type=positive, metavar="N", help="ranks of a host; default: 8 or fewer")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--output", default="runs/plan", metavar="DIR", help="of plan.json and plan.html")
    arguments, config = parse_config_arguments(parser)
    world_size = arguments.world_size
    ranks_per_host = arguments.local_world_size or math.gcd(world_size, 8)
    if world_size % ranks_per_host:
        parser.error(f"--world-size {world_size} is not a multiple of --local-world-size {ranks_per_host}")
    rows = num_embeddings(config)
    output = absolute(arguments.output)
    output.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    from training.forecast.dry_run import PlanError, find_changes, plan_tables
    from training.model.ctr_model import CTRModel
    from training.sharding.parallelize import needs_padded_tables
    from training.sharding.table_planner import Cluster

    def build(training: TrainingConfig) -> CTRModel:
        padded = needs_padded_tables(training)
        return CTRModel(config.features, rows, training.model, pad_tables=padded, device="meta")

    cluster = Cluster(arguments.device, world_size, ranks_per_host, arguments.device_memory, arguments.host_memory)
    page = output / "plan.html"
    try:
        plan = plan_tables(build(config.training), config.training, cluster)
    except PlanError as error:
        page.unlink(missing_ok=True)
        with tqdm(disable=None, unit="plan", desc="looking for what fits") as bar:

            def follow(words: str) -> None:
                bar.set_postfix_str(words[:60], refresh=False)
                bar.update()

            changes = find_changes(build, config.training, cluster, error, follow)
        write_json(output / "plan.json", refusal(error, changes))
        raise ValueError("\n  ".join([str(error), *advice(changes)])) from error
    result = summary(plan, config)
    write_json(output / "plan.json", result)
    page.write_text(render(result, plan.shards), encoding="utf-8")
    print_plan(result)
    print(f"planned in {time.perf_counter() - started:.0f} s: {output}/plan.json, {page}")
    return 0


def num_embeddings(config: Config) -> dict[str, int]:
    """Feature -> rows of its tables: as the dataset learnt them, or without a dataset as the schema says.

    Raises:
        ValueError: there is no dataset, and the schema leaves the size of a feature's table to it.
    """
    dataset = locate(config.training.dataset)
    learnt = Learnt()
    if (dataset / MANIFEST_NAME).is_file():
        manifest = DatasetManifest.load(dataset)
        check_manifest(config, manifest)
        learnt = manifest.load_learnt(dataset)
    else:
        open_ended = [f for f in config.features.sparse if f.encoding.kind in (*VOCABULARY_KINDS, "quantiles")]
        if open_ended:
            names = ", ".join(f"{f.name} ({f.encoding.kind})" for f in open_ended[:5])
            more = f" and {len(open_ended) - 5} more" if len(open_ended) > 5 else ""
            raise ValueError(
                f"how many rows these features' tables have is learnt from the data: {names}{more}; there is no "
                f"dataset at {dataset}: build it (jobs.build_dataset), point training.dataset at it, or give them a "
                "hash encoding"
            )
    return {feature.name: learnt.num_embeddings(feature) for feature in config.features.sparse}


def num_bytes(text: str) -> int:
    """Read ``80GiB``, ``40GB``, ``512M`` or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in UNITS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 80GiB or 40GB")
    return round(float(match[1]) * UNITS[match[2]])


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


# ------------------------------------------------------------------------------------------------------------ results


def summary(plan: "Plan", config: Config) -> dict[str, Any]:
    """What plan.json holds."""
    from training.sharding.table_planner import HOST, PARTS, batch_size_per_rank

    cluster, topology = plan.cluster, plan.cluster.topology()
    training = config.training
    optimizer = getattr(training.optimizer, "embedding_optimizer", "adam")
    return {
        "fits": True,
        "cluster": {
            "device": cluster.device,
            "world_size": cluster.world_size,
            "local_world_size": cluster.ranks_per_host,
            "device_memory": cluster.memory,
            "host_memory": topology.devices[0].storage.ddr,
        },
        "global_batch_size": training.global_batch_size,
        "batch_size_per_rank": batch_size_per_rank(training, cluster.world_size),
        "embedding_optimizer": f"{training.optimizer.kind} {optimizer}",
        "reserve": {"fixed": plan.reserve.fixed, "margin": plan.reserve.margin, "left": plan.reserve.left},
        "bandwidth_gb_per_s": {  # TorchRec's are bytes a millisecond
            "memory": (topology.hbm_mem_bw if cluster.device == "cuda" else topology.ddr_mem_bw) / 1e6,
            "within_host": topology.intra_host_bw / 1e6,
            "between_hosts": topology.inter_host_bw / 1e6,
        },
        "total": {part: sum(rank[part] for rank in plan.ranks) for part in (*PARTS, HOST)},
        "balance": {name: _balance([rank[name] for rank in plan.ranks]) for name in ("bytes", "ms")},
        "tables": sorted(plan.tables, key=lambda entry: -entry["bytes"]),
        "ranks": plan.ranks,
    }


def refusal(error: "PlanError", changes: "Sequence[Change]") -> dict[str, Any]:
    """What plan.json holds of a plan that does not fit."""
    found = [
        {
            "change": change.words,
            "factor": change.factor,
            "balance": {name: _balance([rank[name] for rank in change.plan.ranks]) for name in ("bytes", "ms")},
        }
        for change in changes
    ]
    return {
        "fits": False,
        "reason": str(error),
        "missing_bytes": error.missing,
        "tables": error.tables,
        "changes": found,
    }


def advice(changes: "Sequence[Change]") -> list[str]:
    """A line for each change that fits, the nearest first."""
    from training.forecast.dry_run import binary

    lines = []
    for index, change in enumerate(changes):
        most, slowest = (max(rank[name] for rank in change.plan.ranks) for name in ("bytes", "ms"))
        words = f"{'or' if index else 'nearest that fits'}: {change.words}"
        lines.append(f"{words} (fullest rank {binary(most)}, slowest {slowest:.1f} ms)")
    return lines or ["no larger cluster, memory, smaller batch or other sharding that was tried fits"]


def print_plan(result: Mapping[str, Any]) -> None:
    """The plan as a person reads it in a terminal."""
    from training.forecast.dry_run import binary

    cluster, ranks = result["cluster"], result["ranks"]
    shown = sorted(ranks, key=lambda rank: -rank["bytes"])[:MAX_SHOWN]
    hosted = result["total"]["host"] > 0
    header = ("rank", "shards", "tables", "lookups", "in all", "of memory", *(["on host"] if hosted else []))
    print("".join(f"{name:>12}" for name in (*header, "compute ms", "exchange ms", "ms")))
    for rank in sorted(shown, key=lambda rank: rank["rank"]):
        held = sum(rank[part] for part in ("weights", "state", "gradients", "cache"))
        sizes = (held, rank["lookups"], rank["bytes"])
        share = f"{100 * rank['bytes'] / cluster['device_memory']:.1f} %"
        times = (f"{rank[name]:.3f}" for name in ("compute_ms", "exchange_ms", "ms"))
        columns = (rank["rank"], rank["num_shards"], *map(binary, sizes), share)
        host = (binary(rank["host"]),) if hosted else ()
        print("".join(f"{c:>12}" for c in (*columns, *host, *times)))
    if len(shown) < len(ranks):
        print(f"... and {len(ranks) - len(shown)} ranks that hold less")
    for name, words in (("bytes", "memory"), ("ms", "load")):
        balance = result["balance"][name]
        values = (balance["largest"], balance["mean"])
        largest, mean = (binary(int(v)) if name == "bytes" else f"{v:.3f} ms" for v in values)
        print(f"{words}: largest {largest}, mean {mean}, largest / mean {balance['ratio']:.2f}")
    print(sentence(result))


def _balance(values: Sequence[float]) -> dict[str, float]:
    largest, mean = max(values), sum(values) / len(values)
    return {"largest": largest, "mean": mean, "ratio": largest / mean if mean else 1.0}


if __name__ == "__main__":
    run_program(main)
