"""render_plan: the page of a sharding plan; sentence: the plan in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.pages import figures
from jobs.pages.page import render_page
from jobs.pages.values import Table, percent
from training.config import GIB

MAX_DRAWN = 64
"""Tables drawn at most; plan.json has all of them."""
MAX_CACHED = 8
"""Tables in host memory named at most."""


def render_plan(result: Mapping[str, Any], shards: Mapping[tuple[str, int], int]) -> str:
    """Make the whole page.

    Args:
        result: what ``plan.json`` holds.
        shards: (table, rank) -> bytes.
    """
    reserve, ranks, tables = result["reserve"], result["ranks"], result["tables"]
    memory, drawn = result["cluster"]["device_memory"], tables[:MAX_DRAWN]
    held = {
        "table weights": [rank["weights"] for rank in ranks],
        "optimizer state": [rank["state"] for rank in ranks],
        "gradients": [rank["gradients"] for rank in ranks],
        "caches": [rank["cache"] for rank in ranks],
        "lookups": [rank["lookups"] for rank in ranks],
        "dense net and ids": [reserve["fixed"]] * len(ranks),
    }
    spent = {
        "lookup and update": [rank["compute_ms"] for rank in ranks],
        "exchange": [rank["exchange_ms"] for rank in ranks],
    }
    memory_plot = figures.by_rank({k: [v / GIB for v in held[k]] for k in held if any(held[k])}, "GiB")
    limits = {"memory": memory, "less margin": memory - reserve["margin"]}
    for words, limit in limits.items() if reserve["margin"] else [("memory", memory)]:
        memory_plot.add_hline(y=limit / GIB, annotation_text=words, line={"dash": "dot", "color": figures.GREY})
    names = [entry["table"] for entry in drawn]
    places = [[shards.get((name, rank["rank"]), 0) / GIB for rank in ranks] for name in names]
    sections = {
        "ranks": "Ranks",
        "plan": "Where the tables are",
        "tables": "Tables",
        "numbers": "Rank by rank",
        "meaning": "What the numbers are",
    }
    return render_page(
        "plan.html",
        "Sharding plan",
        sentence(result),
        sections,
        rank_figures={
            "Memory of each rank": memory_plot,
            "Estimated time of a step's lookups": figures.by_rank(spent, "ms"),
        },
        balance=_balance_table(result),
        placement={"GiB of a table on a rank": figures.placement(names, places)},
        num_drawn=len(drawn),
        num_tables=len(tables),
        tables=_table_table(tables),
        numbers=_rank_table(result),
        meaning=_meaning(result),
    )


def _balance_table(result: Mapping[str, Any]) -> Table:
    scales = {"bytes": ("memory, GiB", GIB), "ms": ("lookups of a step, ms", 1)}
    rows = [
        [
            words,
            result["balance"][name]["largest"] / size,
            result["balance"][name]["mean"] / size,
            result["balance"][name]["ratio"],
        ]
        for name, (words, size) in scales.items()
    ]
    return Table(("", "largest", "mean", "largest / mean"), rows)


def _table_table(tables: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("table", "rows", "width", "sharding", "kernel", "num_shards")
    rows = [
        [
            *map(entry.get, columns),
            len(set(entry["ranks"])),
            *(entry[part] / GIB for part in ("bytes", "state", "cache", "host")),
        ]
        for entry in tables
    ]
    sizes = ("weights, GiB", "state, GiB", "cache, GiB", "on hosts, GiB")
    return Table((*columns[:-1], "shards", "ranks", *sizes), rows)


def _rank_table(result: Mapping[str, Any]) -> Table:
    parts = ("weights", "state", "gradients", "cache", "lookups", "bytes", "host")
    times = ("compute_ms", "exchange_ms", "ms")
    memory = result["cluster"]["device_memory"]
    rows = [
        [
            rank["rank"],
            rank["num_shards"],
            *(rank[part] / GIB for part in parts),
            percent(rank["bytes"] / memory),
            *map(rank.get, times),
        ]
        for rank in result["ranks"]
    ]
    sizes = [f"{ {'bytes': 'in all', 'host': 'on the host'}.get(part, part) }, GiB" for part in parts]
    return Table(("rank", "shards", *sizes, "of memory", "compute, ms", "exchange, ms", "in all, ms"), rows)


def _meaning(result: Mapping[str, Any]) -> list[str]:
    bandwidth = result["bandwidth_gb_per_s"]
    return [
        "Weights and optimizer state are exact; a table in host memory (kernel fused_uvm_caching) has both there, and "
        "a cache of its rows on the GPU. Gradients are those of data-parallel tables, and their moving average. "
        f"Lookups are the ids and vectors of a batch of {result['global_batch_size']:,} rows "
        f"({result['batch_size_per_rank']:,} a rank) on their way in and out, one id a feature and row. The dense net "
        "counts six times (weights, optimizer, gradients and their buckets), beside the ids of two batches. "
        "Activations of the dense net are not counted: they have to find room in the margin.",
        f"Times are TorchRec's estimate, with {bandwidth['memory']:,.0f} GB/s of memory, "
        f"{bandwidth['within_host']:,.0f} GB/s within a host and {bandwidth['between_hosts']:,.1f} GB/s between hosts: "
        "good for comparing plans, not for predicting a step.",
        "The planner is the one of a training on such ranks, with the same sharding constraints.",
    ]


def sentence(result: Mapping[str, Any]) -> str:
    """Describe a plan in one sentence: tables, their memory, and the cluster.

    Args:
        result: what ``plan.json`` holds.
    """
    from training.forecast.dry_run import binary

    cluster, total = result["cluster"], result["total"]
    kinds = [entry["sharding"] for entry in result["tables"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    cached = [entry["table"] for entry in result["tables"] if entry["host"]]
    hosted = (
        f"; in host memory {len(cached)} of them, {binary(total['host'])} with their optimizer state, behind caches of "
        f"{binary(total['cache'])}: {', '.join(cached[:MAX_CACHED])}{' ...' if len(cached) > MAX_CACHED else ''}"
    )
    return (
        f"{len(kinds)} tables ({counts}), {binary(total['weights'])} of weights and {binary(total['state'])} of "
        f"optimizer state ({result['embedding_optimizer']}) on {cluster['world_size']} {cluster['device']} ranks of "
        f"{binary(cluster['device_memory'])}, {cluster['local_world_size']} a host{hosted if cached else ''}"
    )
