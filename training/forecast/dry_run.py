"""Dry run of a sharding plan: shards of each rank and their cost, without a GPU, process group or table in memory.

A plan that does not fit is refused with the numbers, and what would fit is found by planning again.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchrec.distributed.planner.types import Enumerator, PlannerError, Shard, ShardingOption, Stats, Topology
from torchrec.distributed.types import ShardingType

from training.config import GIB, DenseOptimizer, FusedOptimizer, ShardingConfig, ShardingKind, TrainingConfig
from training.model.ctr_model import CTRModel
from training.sharding.table_planner import (
    CACHED,
    DATA_PARALLEL,
    HOST,
    MARGIN,
    MEMORY_PARTS,
    Cluster,
    batch_size_per_rank,
    describe_placement,
    held_bytes,
    make_planner,
    make_reservation,
    sharders,
    sharding_of,
    unplanned_tables,
)

TIMES = ("compute_ms", "exchange_ms", "ms")
MAX_REFUSED_TABLES = 3
"""Tables named in a refusal."""
MAX_MEMORY_GROWTH, MAX_GROWTH, MAX_RANKS = 4, 64, 1_024
"""Memory and clusters so many times as large, and clusters of more ranks, are not tried."""
MAX_HALVINGS = 4
"""Sizes of a cache that are tried for tables in host memory, each half the one before."""


class PlanError(ValueError):
    """The tables do not fit; the message says by how much.

    Attributes:
        missing: bytes; 0 if there is enough in all and no way was found to lay it out.
        tables: the ones in the way, largest first.
        more_ranks_help: False: what is too large stays as large on each of more ranks.
    """

    def __init__(self, message: str, missing: int, tables: list[str], more_ranks_help: bool = True) -> None:
        super().__init__(message)
        self.missing, self.tables, self.more_ranks_help = missing, tables, more_ranks_help


@dataclass(frozen=True)
class Reserve:
    """Bytes of a rank that no table may take, and those that are left.

    Attributes:
        fixed: the dense net (``DENSE_COPIES`` times its weights) and the ids of two batches (10 copies of each).
        margin: ``MARGIN`` of a GPU's memory.
    """

    fixed: int
    margin: int
    left: int


@dataclass(frozen=True)
class DryRunPlan:
    """A dry run's plan.

    Attributes:
        tables: tables as in a run's plan.json, with ``num_shards`` and bytes of ``MEMORY_PARTS`` and ``HOST`` over
            all ranks.
        ranks: each rank's number of shards, bytes by part, the total of ``MEMORY_PARTS`` with ``reserve.fixed``, and
            TorchRec's estimate of the milliseconds that a step spends in lookups and exchanges.
        shards: (table, rank) -> bytes, of all parts.
    """

    cluster: Cluster
    reserve: Reserve
    tables: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    shards: dict[tuple[str, int], int]


@dataclass(frozen=True)
class Change:
    """Change: a change of config or cluster with which the tables fit, found by planning with it.

    Attributes:
        words: text for the command line.
        factor: how much more of something it takes; 1: nothing but another config.
    """

    words: str
    factor: float
    plan: DryRunPlan


def plan_tables(model: CTRModel, config: TrainingConfig, cluster: Cluster) -> DryRunPlan:
    """Plan the tables as a training on these ranks would.

    Args:
        model: model with its tables on the meta device.

    Raises:
        PlanError: the tables do not fit.
        ValueError: as ``make_planner``.
    """
    cluster = cluster.capped(config.sharding)
    found, own = _Found(), sharders(model, config)
    planner = make_planner(model, config, cluster, [found])
    reserve = _reserve(model, config, cluster)
    if reserve.left <= 0:
        raise PlanError(
            f"the dense net and the inputs of a batch alone need {binary(reserve.fixed)}, and a rank of "
            f"{binary(_memory(cluster.topology()))} has {binary(reserve.left + reserve.fixed)} for them",
            -reserve.left,
            [],
        )
    try:
        placements: Any = planner.plan(model, own)  # pyright: ignore[reportArgumentType]
    except PlannerError as error:
        options = found.enumerator.enumerate(model, own)  # pyright: ignore[reportArgumentType]
        raise _refusal(options, cluster, reserve) from error
    tables = {table.name: table for table in model.tables}
    placed = {name: place for module in placements.plan.values() for name, place in module.items()}
    nothing = {"num_shards": 0} | dict.fromkeys((*MEMORY_PARTS, HOST), 0)
    rows = {name: describe_placement(tables[name], place) | nothing for name, place in placed.items()}
    ranks = [
        {"rank": rank} | nothing | {"bytes": reserve.fixed} | dict.fromkeys(TIMES, 0.0)
        for rank in range(cluster.world_size)
    ]
    shards: dict[tuple[str, int], int] = {}
    for option in found.options:
        for shard in option.shards:
            if not math.prod(shard.size):
                continue  # row-wise, of a table with fewer rows than ranks
            assert shard.rank is not None and shard.perf is not None
            parts = held_bytes(config, option.sharding_type, shard.size, option.compute_kernel)
            size = _storage(shard, cluster)
            parts["lookups"] = size - sum(parts[part] for part in MEMORY_PARTS if part in parts)
            rank = ranks[shard.rank]
            for entry in (rows[option.name], rank):
                entry["num_shards"] += 1
                for part in (*MEMORY_PARTS, HOST):
                    entry[part] += parts[part]
            rank["bytes"] += size
            rank["compute_ms"] += shard.perf.fwd_compute + shard.perf.bwd_compute
            rank["exchange_ms"] += shard.perf.fwd_comms + shard.perf.bwd_comms
            rank["ms"] += shard.perf.total
            place = (option.name, shard.rank)
            shards[place] = shards.get(place, 0) + size
    for table in unplanned_tables(model, config):  # their bytes are in the reserve, as the dense net's
        rows[table.name] = entry = describe_placement(table, None) | nothing
        parts = held_bytes(config, DATA_PARALLEL, (table.num_embeddings, table.padded_width))
        for rank in ranks:
            for counted in (entry, rank):
                counted["num_shards"] += 1
                for part in parts:
                    counted[part] += parts[part]
    return DryRunPlan(cluster, reserve, list(rows.values()), ranks, shards)


def find_changes(
    build: Callable[[TrainingConfig], CTRModel],
    config: TrainingConfig,
    cluster: Cluster,
    error: PlanError,
    on_plan: Callable[[str], None] = lambda words: None,
) -> list[Change]:
    """Find changes that make the tables fit: the smallest of each kind, the nearest first.

    Args:
        build: the config's model, its tables on the meta device.
        cluster: cluster with its memory given.
        error: error of the plan that does not fit.
        on_plan: called with what is tried, before it is planned.
    """
    found = []
    for change_of, last in _kinds_of_change(build, config, cluster, error):

        def attempt(number: int, change_of: _Kind = change_of) -> Change | None:
            words, factor, new_config, new_cluster = change_of(number)
            on_plan(words)
            try:
                return Change(words, factor, plan_tables(build(new_config), new_config, new_cluster))
            except PlanError:
                return None

        change = _smallest(attempt, last)
        if change is not None:
            found.append(change)
    return sorted(found, key=lambda change: change.factor)


def binary(num_bytes: int) -> str:
    """Format bytes in powers of 1,024."""
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes} B"


# ------------------------------------------------------------------------------------------------- what would have fit

_Kind = Callable[[int], tuple[str, float, TrainingConfig, Cluster]]
"""1, 2, 3 ... -> a change that goes further each time: its words, its factor, config and cluster."""


def _kinds_of_change(
    build: Callable[[TrainingConfig], CTRModel], config: TrainingConfig, cluster: Cluster, error: PlanError
) -> list[tuple[_Kind, int]]:
    """Kinds of change with the last number of each that is worth a try."""
    assert cluster.memory is not None
    memory, hosts = cluster.memory, cluster.world_size // cluster.ranks_per_host
    unit = GIB if memory >= 16 * GIB else 1 << 20

    def memory_of(number: int) -> tuple[str, float, TrainingConfig, Cluster]:
        units = memory // unit + number
        larger = dataclasses.replace(cluster, memory=units * unit)
        words = f"--device-memory {units}{'GiB' if unit == GIB else 'MiB'}"
        return words, units * unit / memory, config, larger

    def ranks_of(number: int) -> tuple[str, float, TrainingConfig, Cluster]:
        world_size = (hosts + number) * cluster.ranks_per_host
        words = f"--world-size {world_size} --local-world-size {cluster.ranks_per_host}"
        return words, world_size / cluster.world_size, config, dataclasses.replace(cluster, world_size=world_size)

    def batch_of(number: int) -> tuple[str, float, TrainingConfig, Cluster]:
        streams = config.reader.num_streams
        batch = math.ceil((config.global_batch_size >> number) / streams) * streams
        smaller = dataclasses.replace(config, global_batch_size=batch)
        return f"training.global_batch_size={batch}", config.global_batch_size / batch, smaller, cluster

    def fused_of(_: int) -> tuple[str, float, TrainingConfig, Cluster]:
        sharding = dataclasses.replace(config.sharding, default="auto")
        fused = dataclasses.replace(config, optimizer=FusedOptimizer(), sharding=sharding)
        words = "training.optimizer.kind=fused training.sharding.default=auto"
        return words, 1.0, fused, cluster

    whole = _features_not_cut(build(config), config.sharding)

    def rows_of(number: int) -> tuple[str, float, TrainingConfig, Cluster]:
        cut: dict[str, ShardingKind] = dict.fromkeys(whole[:number], "row_wise")
        sharding = dataclasses.replace(config.sharding, features=config.sharding.features | cut)
        words = " ".join(f"training.sharding.features.{name}=row_wise" for name in cut)
        return words, 1.0, dataclasses.replace(config, sharding=sharding), cluster

    def cache_of(number: int) -> tuple[str, float, TrainingConfig, Cluster]:
        before = config.sharding.device_memory
        share = config.sharding.cache_load_factor / 2 ** (number if before else number - 1)
        sharding = dataclasses.replace(
            config.sharding, device_memory=before or math.ceil(memory / GIB), cache_load_factor=share
        )
        words = [] if before else [f"training.sharding.device_memory={sharding.device_memory}"]
        if share != config.sharding.cache_load_factor:
            words.append(f"training.sharding.cache_load_factor={share}")
        return " ".join(words), 1.0, dataclasses.replace(config, sharding=sharding), cluster

    is_dense_lane = isinstance(config.optimizer, DenseOptimizer)
    max_hosts = min(MAX_GROWTH * hosts, max(2 * hosts, MAX_RANKS // cluster.ranks_per_host))
    return [
        (fused_of, 1) if is_dense_lane else (rows_of, len(whole)),
        (cache_of, 0 if is_dense_lane or cluster.device == "cpu" else MAX_HALVINGS),
        (batch_of, batch_size_per_rank(config, cluster.world_size).bit_length() - 1),
        (memory_of, (MAX_MEMORY_GROWTH - 1) * memory // unit),
        (ranks_of, max_hosts - hosts if error.more_ranks_help else 0),
    ]


def _smallest(attempt: Callable[[int], Change | None], last: int) -> Change | None:
    """Find the change of the smallest number in 1..last that has one, assuming that every larger number has one too."""
    low, high = 0, 1
    change = attempt(high) if last else None
    while change is None:
        if high >= last:
            return None
        low, high = high, min(2 * high, last)
        change = attempt(high)
    while high - low > 1:
        middle = (low + high) // 2
        found = attempt(middle)
        if found is None:
            low = middle
        else:
            high, change = middle, found
    return change


def _features_not_cut(model: CTRModel, sharding: ShardingConfig) -> list[str]:
    """Features whose tables the config keeps from being cut by rows, the largest first."""
    sizes: dict[str, int] = {}
    for table in model.tables:
        if sharding_of(table, sharding) not in ("auto", "row_wise"):
            sizes[table.feature] = sizes.get(table.feature, 0) + table.num_embeddings * table.padded_width
    return sorted(sizes, key=lambda name: -sizes[name])


# --------------------------------------------------------------------------------------------------- what did not fit


class _Found(Stats):
    """Statistics of TorchRec's search."""

    options: list[ShardingOption]
    enumerator: Enumerator

    def log(self, *_: Any, best_plan: list[ShardingOption], enumerator: Enumerator, **__: Any) -> None:
        self.options, self.enumerator = best_plan, enumerator


def _refusal(options: list[ShardingOption], cluster: Cluster, reserve: Reserve) -> PlanError:
    """Too little in all, shards too large for any rank, or neither: then there is no way to lay them out."""
    totals: dict[str, int] = {}
    shards: dict[str, tuple[int, str]] = {}
    for option in options:
        sizes = [_storage(shard, cluster) for shard in option.shards]
        totals[option.name] = min(sum(sizes), totals.get(option.name, sum(sizes)))
        largest = (max(sizes), option.sharding_type)
        shards[option.name] = min(largest, shards.get(option.name, largest))
    by_size = sorted(totals, key=lambda name: -totals[name])
    too_large = sorted((n for n, (size, _) in shards.items() if size > reserve.left), key=lambda name: -shards[name][0])
    need, have = sum(totals.values()), cluster.world_size * reserve.left
    reasons = []
    if need > have:
        named = ", ".join(f"{name} {binary(totals[name])}" for name in by_size[:MAX_REFUSED_TABLES])
        reasons.append(
            f"they need {binary(need)} in all, {binary(need - have)} more than there is; the largest: {named}"
        )
    for name in too_large[:MAX_REFUSED_TABLES]:
        size, kind = shards[name]
        reasons.append(
            f"table {name} needs {binary(size)} on a rank even {kind}, {binary(size - reserve.left)} more than there is"
        )
    if len(too_large) > MAX_REFUSED_TABLES:
        reasons.append(f"{len(too_large) - MAX_REFUSED_TABLES} more tables are too large for a rank")
    if not reasons:
        size, kind = max(shards.values())
        hosts = f", and a rank has {binary(_host_memory(cluster))} of host memory" if _can_cache(options) else ""
        reasons.append(
            f"they need {binary(need)} of {binary(have)}, but the planner found no way to lay them out: a shard has up "
            f"to {binary(size)} ({kind}){hosts}"
        )
    # Only rows are spread over as many ranks as there are: a replicated table or one cut into columns is not.
    by_rows = {option.name for option in options if option.sharding_type == ShardingType.ROW_WISE.value}
    replicated = sum(size for size, kind in shards.values() if kind == DATA_PARALLEL)
    more_ranks_help = replicated <= reserve.left and by_rows.issuperset(too_large)
    missing = max([need - have, *(shards[name][0] - reserve.left for name in too_large), 0])
    head = (
        f"{len(totals)} tables do not fit on {cluster.world_size} x {binary(_memory(cluster.topology()))}: a rank has "
        f"{binary(reserve.left)} for them, after a margin of {binary(reserve.margin)} and {binary(reserve.fixed)} for "
        "the dense net and the ids of a batch"
    )
    return PlanError("\n  ".join([head, *reasons]), missing, too_large or by_size[:MAX_REFUSED_TABLES], more_ranks_help)


def _reserve(model: CTRModel, config: TrainingConfig, cluster: Cluster) -> Reserve:
    """Measure TorchRec's reservation on a rank with unlimited memory."""
    roomy = dataclasses.replace(cluster, world_size=1, ranks_per_host=1, memory=1 << 60).topology()
    batch_size = batch_size_per_rank(config, cluster.world_size)
    kept = make_reservation(model, config, margin=0).reserve(roomy, batch_size, model, sharders(model, config))  # pyright: ignore
    fixed = _memory(roomy) - _memory(kept)
    memory = _memory(cluster.topology())
    margin = memory - int((1 - MARGIN) * memory) if cluster.device == "cuda" else 0
    return Reserve(fixed, margin, memory - margin - fixed)


def _memory(topology: Topology) -> int:
    storage = topology.devices[0].storage
    return storage.ddr if topology.compute_device == "cpu" else storage.hbm


def _host_memory(cluster: Cluster) -> int:
    return cluster.topology().devices[0].storage.ddr


def _can_cache(options: list[ShardingOption]) -> bool:
    return any(option.compute_kernel == CACHED for option in options)


def _storage(shard: Shard, cluster: Cluster) -> int:
    """Return the bytes that a shard takes of its rank's memory: of the GPU's, if it has one."""
    assert shard.storage is not None
    return shard.storage.ddr if cluster.device == "cpu" else shard.storage.hbm
