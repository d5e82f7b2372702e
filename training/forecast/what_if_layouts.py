"""Shard layouts to compare: the planner's own and two that it does not offer.

``training.forecast.cost_model`` computes the cost of a layout.
"""

import math
from typing import Any

import numpy as np
from torchrec.distributed.planner.types import PlannerError

from training.config import TrainingConfig
from training.forecast.cost_model import Kind, Machine, Shard, Traffic, predict
from training.forecast.dry_run import PlanError
from training.model.cost import FLOAT, Net
from training.model.ctr_model import CTRModel
from training.model.embedding import EmbeddingTable
from training.sharding.table_planner import Cluster, ids_a_row, make_planner, sharders, unplanned_tables

GIANT = 8
"""A table that takes more than one part in so many of a rank's memory is cut by rows."""


def planned_shards(model: CTRModel, config: TrainingConfig, cluster: Cluster) -> list[Shard]:
    """List the shards of the plan that a training on these ranks would make.

    Raises:
        PlanError: the tables do not fit; ``training.forecast.dry_run.plan_tables`` tells by how much.
    """
    try:
        plan: Any = make_planner(model, config, cluster).plan(model, sharders(model, config))
    except PlannerError as error:
        raise PlanError(f"the tables do not fit: {error}", 0, []) from error
    tables = {table.name: table for table in model.tables}
    shards = []
    for name, placement in [place for part in plan.plan.values() for place in part.items()]:
        table = tables[name]
        if placement.sharding_spec is None:
            shards += _replicas(model, table, cluster.world_size)
            continue
        for shard in placement.sharding_spec.shards:
            rows, columns = shard.shard_sizes
            if rows and columns:  # row-wise, of a table with fewer rows than ranks, some have none
                place = shard.placement.rank(), rows, columns, shard.shard_offsets[0]
                shards.append(Shard(name, placement.sharding_type, *place, round(sum(ids_a_row(model, table)))))
    for table in unplanned_tables(model, config):
        shards += _replicas(model, table, cluster.world_size)
    return shards


def dealt_shards(model: CTRModel, net: Net, machine: Machine, traffic: Traffic) -> list[Shard]:
    """Cut tables into shards by rows and columns: the fastest of a few layouts that the planner does not offer.

    A table with at most as many rows as a rank has in a batch is replicated: its gradient is less than the vectors that
    it would send. Others are cut into parts of so many columns, and parts of giants (or all) by rows over the ranks of
    one host; the heaviest part goes first, to whoever has least to send.
    """
    ways = [
        _deal(model, traffic, machine.memory, columns, traffic.rows, all_by_host)
        for columns in (None, 64, 32)
        for all_by_host in (False, True)
    ]
    steps = [predict(way, net, machine, traffic) for way in ways]
    fits = [step.memory <= machine.memory for step in steps]
    return ways[max(range(len(ways)), key=lambda i: (fits[i], steps[i].rows_per_second))]


def whole_tables(model: CTRModel, traffic: Traffic) -> list[Shard]:
    """Place each table whole on one rank, as if it fitted."""
    return _deal(model, traffic, math.inf)


def _deal(
    model: CTRModel,
    t: Traffic,
    memory: float,
    columns: int | None = None,
    max_replicated: int = 0,
    all_by_host: bool = False,
) -> list[Shard]:
    shards: list[Shard] = []
    parts: list[tuple[bool, int, str, int, int]] = []
    for table in model.tables:
        rows, width = table.num_embeddings, table.padded_width
        if rows <= max_replicated:
            shards += _replicas(model, table, t.world_size)
            continue
        by_host = all_by_host or rows * (FLOAT * width + 4) > memory / GIANT
        widths = [min(columns or width, width - first) for first in range(0, width, columns or width)]
        parts += [(by_host, rows, table.name, part, round(sum(ids_a_row(model, table)))) for part in widths]
    to_send, held = np.zeros((2, t.num_hosts, t.ranks_per_host))
    mean = sum(width * num_features for *_, width, num_features in parts) / t.world_size
    for by_host, rows, name, width, num_features in sorted(parts, reverse=True):
        score = to_send / mean + held / memory
        host, rank = divmod(int(score.argmin()), t.ranks_per_host)
        ranks = [rank]
        if by_host:
            host, ranks = int(score.max(axis=1).argmin()), range(t.ranks_per_host)
        block = math.ceil(rows / len(ranks))
        kind: Kind = "table_row_wise" if by_host else "column_wise"
        for first, rank in zip(range(0, rows, block), ranks, strict=False):
            place = host * t.ranks_per_host + rank, min(block, rows - first), width, first
            shard = Shard(name, kind, *place, num_features)
            shards.append(shard)
            held[host, rank] += shard.num_bytes
            to_send[host, rank] += width * num_features / len(ranks)
    return shards


def _replicas(model: CTRModel, table: EmbeddingTable, world_size: int) -> list[Shard]:
    """Lay a table on every rank, whole."""
    size, num_ids = (table.num_embeddings, table.padded_width), round(sum(ids_a_row(model, table)))
    return [Shard(table.name, "data_parallel", rank, *size, num_features=num_ids) for rank in range(world_size)]
