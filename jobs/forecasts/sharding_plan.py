"""Sharding plan: the content of plan.json, its text for a terminal, and changes that would fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from features.disk.atomic import write_json
from features.disk.dataset import MANIFEST_NAME, DatasetManifest
from features.disk.place import locate
from features.learnt import Learnt
from features.schema import VOCABULARY_KINDS
from jobs.cli.config import Config, check_manifest
from jobs.cli.text_table import text_table
from training.config import TrainingConfig
from training.fit.run import settle_training
from training.fit.vectors import with_dimensions
from training.forecast.dry_run import Change, DryRunPlan, PlanError, binary, find_changes, plan_tables
from training.model.ctr_model import CTRModel
from training.sharding.table_planner import HOST, MEMORY_PARTS, Cluster, batch_size_per_rank

MAX_PRINTED_RANKS = 64
"""Ranks printed at most; plan.json has all of them."""


def as_trained(config: Config) -> Config:
    """Return the config with what it leaves open chosen from its dataset, if that is built, as training would.

    Raises:
        ValueError: the dataset is of another feature schema, or damaged.
    """
    manifest = _built(config)
    if manifest is None:
        model = with_dimensions(config.training.model)
        return dataclasses.replace(config, training=dataclasses.replace(config.training, model=model))
    return dataclasses.replace(config, training=settle_training(config.training, manifest)[0])


def _built(config: Config) -> DatasetManifest | None:
    """Load and check the manifest of the config's dataset; None: it is not built."""
    dataset = locate(config.training.dataset)
    if not (dataset / MANIFEST_NAME).is_file():
        return None
    manifest = DatasetManifest.load(dataset)
    check_manifest(config, manifest)
    return manifest


def plan_cluster(config: Config, cluster: Cluster, output: Path) -> DryRunPlan:
    """Plan the shards of a training on a cluster, and write ``plan.json``.

    Args:
        config: the whole config.
        cluster: the ranks to plan for.
        output: folder of ``plan.json``, and of an older ``plan.html``, removed if this plan is refused.

    Raises:
        ValueError: it does not fit; names the nearest changes that fit.
    """
    rows = num_embeddings(config)
    output.mkdir(parents=True, exist_ok=True)

    def build(training: TrainingConfig) -> CTRModel:
        padded = training.pads_tables
        return CTRModel(config.features, rows, training.model, pad_tables=padded, device="meta")

    try:
        plan = plan_tables(build(config.training), config.training, cluster)
    except PlanError as error:
        (output / "plan.html").unlink(missing_ok=True)
        with tqdm(disable=None, unit="plan", desc="looking for what fits") as bar:

            def follow(words: str) -> None:
                bar.set_postfix_str(words[:60], refresh=False)
                bar.update()

            changes = find_changes(build, config.training, cluster, error, follow)
        write_json(output / "plan.json", refusal(error, changes))
        raise ValueError("\n  ".join([str(error), *advice(changes)])) from error
    write_json(output / "plan.json", summarise_plan(plan, config))
    return plan


def num_embeddings(config: Config) -> dict[str, int]:
    """Count the rows of each feature's table, from the dataset's learnt state or, without a dataset, from the schema.

    Returns:
        Feature -> rows.

    Raises:
        ValueError: there is no dataset, and the schema leaves the size of a feature's table to it.
    """
    dataset, manifest, learnt = locate(config.training.dataset), _built(config), Learnt()
    if manifest is not None:
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


def summarise_plan(plan: DryRunPlan, config: Config) -> dict[str, Any]:
    """Describe a plan as plan.json holds it."""
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
        "total": {part: sum(rank[part] for rank in plan.ranks) for part in (*MEMORY_PARTS, HOST)},
        "balance": {name: _balance([rank[name] for rank in plan.ranks]) for name in ("bytes", "ms")},
        "tables": sorted(plan.tables, key=lambda entry: -entry["bytes"]),
        "ranks": plan.ranks,
    }


def refusal(error: PlanError, changes: Sequence[Change]) -> dict[str, Any]:
    """Describe a plan that does not fit as plan.json holds it."""
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


def advice(changes: Sequence[Change]) -> list[str]:
    """Name each change that fits in a line, the nearest first."""
    lines = []
    for index, change in enumerate(changes):
        most, slowest = (max(rank[name] for rank in change.plan.ranks) for name in ("bytes", "ms"))
        words = f"{'or' if index else 'nearest that fits'}: {change.words}"
        lines.append(f"{words} (fullest rank {binary(most)}, slowest {slowest:.1f} ms)")
    return lines or ["no larger cluster, memory, smaller batch or other sharding that was tried fits"]


def describe_plan(result: Mapping[str, Any]) -> str:
    """Lay a plan out for a terminal: the fullest ranks, and the balance of memory and load.

    Args:
        result: as ``summarise_plan``.
    """
    cluster, ranks = result["cluster"], result["ranks"]
    shown = sorted(ranks, key=lambda rank: -rank["bytes"])[:MAX_PRINTED_RANKS]
    hosted = result["total"]["host"] > 0
    header = ("rank", "shards", "tables", "lookups", "in all", "of memory", *(["on host"] if hosted else []))
    rows: list[tuple[str, ...]] = [(*header, "compute ms", "exchange ms", "ms")]
    for rank in sorted(shown, key=lambda rank: rank["rank"]):
        held = sum(rank[part] for part in ("weights", "state", "gradients", "cache"))
        sizes = (held, rank["lookups"], rank["bytes"])
        share = f"{100 * rank['bytes'] / cluster['device_memory']:.1f} %"
        times = (f"{rank[name]:.3f}" for name in ("compute_ms", "exchange_ms", "ms"))
        host = (binary(rank["host"]),) if hosted else ()
        rows.append((str(rank["rank"]), str(rank["num_shards"]), *map(binary, sizes), share, *host, *times))
    lines = [text_table(rows, align=">", gap="", least=12)]
    if len(shown) < len(ranks):
        lines.append(f"... and {len(ranks) - len(shown)} ranks that hold less")
    for name, words in (("bytes", "memory"), ("ms", "load")):
        balance = result["balance"][name]
        values = (balance["largest"], balance["mean"])
        largest, mean = (binary(int(v)) if name == "bytes" else f"{v:.3f} ms" for v in values)
        lines.append(f"{words}: largest {largest}, mean {mean}, largest / mean {balance['ratio']:.2f}")
    return "\n".join(lines)


def _balance(values: Sequence[float]) -> dict[str, float]:
    largest, mean = max(values), sum(values) / len(values)
    return {"largest": largest, "mean": mean, "ratio": largest / mean if mean else 1.0}
