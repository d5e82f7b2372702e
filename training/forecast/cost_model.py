"""Scaling: what a step costs in products, bytes and messages, and how fast it would be on machines that are not here.

Arithmetic over the shards of a plan. Every rank waits for the slowest, so the slowest rank's seconds are the step's.
What is left out: docs/scaling.md says it.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from features.schema import STRICT
from training.config import ShardingKind
from training.judge.scores import Floats
from training.model.cost import FLOAT, Net

ID = 8
"""Bytes of an id or a length."""
SORT = 64
"""Bytes that sorting the ids before the update moves for each of them: four passes that read and write."""
HIDDEN_PASSES, FIELD_PASSES = 20, 8
"""Times that a step reads or writes each number of a hidden layer (product, norm, ReLU, dropout, and back) and
of the fields' vectors (regrouping, joining with the dense features, and back)."""
BUCKET = 25 << 20
"""Bytes of dense gradients that DistributedDataParallel reduces at once."""

Kind = ShardingKind | Literal["table_row_wise"]
PositiveNumber = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
COST_PARTS = ("fixed", "dense", "tables", "ids", "vectors", "dense gradients", "messages")
"""fixed: the step's own work beside products and bytes. tables: look-up and update. ids, vectors: their exchange, both
ways. messages: what the collectives cost however little they carry."""


@dataclass(frozen=True, config=STRICT)
class Machine:
    """Machine: roofline of a rank, and the share of each limit that is reached.

    Attributes:
        flops: products and sums a second; ``flops_share`` of them are reached.
        memory_bandwidth: bytes a second one after the other; of rows at random places, ``memory_share`` of it.
        line: bytes that the smallest access moves.
        id_seconds: seconds of each id looked up and updated, beside its bytes.
        step_seconds: seconds of each step, whatever its size.
        within_host, between_hosts: bytes a second that a rank sends while it receives as many; ``link_share`` of them.
        latency_within, latency_between: seconds of a collective that carries next to nothing, on one host and on two;
            a tree over more hosts takes one more ``latency_between`` each time their number doubles.
        latency_per_peer: seconds more for each rank that an all-to-all sends to.
        read_rows: rows a second that a rank's reader makes, beside the step.
        memory: bytes.
    """

    flops: PositiveNumber
    memory_bandwidth: PositiveNumber
    flops_share: Share = 1.0
    memory_share: Share = 1.0
    link_share: Share = 1.0
    line: PositiveNumber = 64
    id_seconds: NotNegative = 0.0
    step_seconds: NotNegative = 0.0
    within_host: PositiveNumber = 1e15
    between_hosts: PositiveNumber = 1e15
    latency_within: NotNegative = 0.0
    latency_between: NotNegative = 0.0
    latency_per_peer: NotNegative = 0.0
    read_rows: PositiveNumber = 1e15
    memory: PositiveNumber = 1e15


@dataclass(frozen=True)
class Shard:
    """Rows [first_row, first_row + rows) of some columns of a table on one rank.

    Attributes:
        num_features: features that look up in the table.
    """

    table: str
    kind: Kind
    rank: int
    rows: int
    columns: int
    first_row: int = 0
    num_features: int = 1

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the weights and of row-wise Adagrad's number a row."""
        return self.rows * (FLOAT * self.columns + 4)


@dataclass(frozen=True)
class Traffic:
    """Traffic: distribution of a step over ranks, and statistics of its ids.

    Attributes:
        batch_size: rows of a global batch.
        head: share of a table's ids that are its first row: missing values.
        vector_bytes: bytes of a number of a vector between ranks; 2: half precision.
    """

    world_size: int
    ranks_per_host: int
    batch_size: int
    head: float = 0.0
    vector_bytes: int = FLOAT

    @property
    def rows(self) -> int:
        """Return the rows of a rank's part of a batch."""
        return math.ceil(self.batch_size / self.world_size)

    @property
    def num_hosts(self) -> int:
        """Return the number of hosts."""
        return self.world_size // self.ranks_per_host


@dataclass(frozen=True)
class Prediction:
    """Prediction: time and memory of a step.

    Attributes:
        seconds: seconds of each of ``COST_PARTS`` on the slowest rank, one after the other.
        reading: seconds that its rows take to be read, beside the step.
        imbalance: largest / mean over the ranks of what differs between them: tables, ids and vectors.
        memory: bytes of tables on the fullest rank.
    """

    seconds: dict[str, float]
    reading: float
    imbalance: float
    memory: float
    batch_size: int

    @property
    def rows_per_second(self) -> float:
        """Return the rows per second with one part after the other, as the loop runs them, and reading in parallel."""
        return self.batch_size / max(sum(self.seconds.values()), self.reading)

    @property
    def rows_per_second_overlapped(self) -> float:
        """Return the rows per second with memory, products, links and host busy at once: upper bound for this plan."""
        parts = self.seconds
        links = parts["ids"] + parts["vectors"] + parts["dense gradients"]
        busiest = max(parts["fixed"] + parts["messages"], parts["dense"] + parts["tables"], links, self.reading)
        return self.batch_size / busiest

    @property
    def limit(self) -> str:
        """Name of the largest part, or of reading where it takes longer than all parts together."""
        if self.reading > sum(self.seconds.values()):
            return "reading"
        return max(self.seconds, key=lambda part: self.seconds[part])


def predict(shards: Sequence[Shard], net: Net, machine: Machine, traffic: Traffic) -> Prediction:
    """Predict the time of a step with these shards on machines of this kind."""
    t, m = traffic, machine
    loads = _load(shards, m, t)
    total = loads.tables + loads.ids + loads.vectors
    slowest = int(total.argmax())
    numbers = FIELD_PASSES * net.field_numbers + HIDDEN_PASSES * net.hidden_numbers
    gradients = FLOAT * net.parameters + loads.replicated
    num_kinds = len({shard.kind for shard in shards} - {"data_parallel"})
    seconds = {
        "fixed": m.step_seconds,
        "dense": t.rows * net.flops / (m.flops * m.flops_share) + t.rows * FLOAT * numbers / m.memory_bandwidth,
        # Of a replicated table gradient, state and weights are gone over whole, read or written five times.
        "tables": float(loads.tables[slowest]) + 5 * loads.replicated / m.memory_bandwidth,
        "ids": float(loads.ids[slowest]),
        "vectors": float(loads.vectors[slowest]),
        "dense gradients": 2 * _reduce_scatter(gradients, m, t),
        "messages": _latency(num_kinds, net, gradients, m, t),
    }
    return Prediction(
        seconds=seconds,
        reading=t.rows / m.read_rows,
        imbalance=float(total.max() / total.mean()) if total.any() else 1.0,
        memory=float(loads.held.max()),
        batch_size=t.batch_size,
    )


class _Loads(NamedTuple):
    """Loads of each rank: seconds of look-ups and exchanges, bytes of tables; and bytes of replicated tables."""

    tables: Floats
    ids: Floats
    vectors: Floats
    held: Floats
    replicated: float


def _load(shards: Sequence[Shard], m: Machine, t: Traffic) -> _Loads:
    memory, ids, ids_in, vectors_out, reduced_locally, held = np.zeros((6, t.world_size))
    ids_out = reduced = replicated = 0.0
    for shard in shards:
        r, num_ids, num_bags = shard.rank, *_look_ups(shard, t)
        ids[r] += num_ids
        memory[r] += _table_bytes(shard, num_ids, num_bags, m.line)
        held[r] += shard.num_bytes
        vectors = t.vector_bytes * num_bags * shard.columns
        if shard.kind == "data_parallel":
            replicated += FLOAT * shard.rows * shard.columns / t.world_size  # there is a shard on each rank
            continue
        # A rank is told the length of each bag, and gets those ids that are its own.
        ids_in[r] += ID * (num_bags + num_ids)
        ids_out += ID * (num_bags + num_ids) / t.world_size
        if shard.kind == "row_wise":
            reduced += vectors / t.world_size  # each rank brings a vector for every bag, most of them zero
        elif shard.kind == "table_row_wise":
            reduced_locally[r] += vectors
            vectors_out[r] += vectors / t.ranks_per_host
        else:
            vectors_out[r] += vectors
    vectors_in = vectors_out.sum() / t.world_size
    local = reduced_locally * (t.ranks_per_host - 1) / t.ranks_per_host / (m.within_host * m.link_share)
    exchange = _all_to_all(np.maximum(vectors_out, vectors_in), m, t) + _reduce_scatter(reduced, m, t) + local
    return _Loads(
        tables=memory / (m.memory_bandwidth * m.memory_share) + ids * m.id_seconds,
        ids=_all_to_all(np.maximum(ids_out, ids_in), m, t),
        vectors=2 * exchange,  # forward and backward
        held=held,
        replicated=replicated,
    )


def _look_ups(shard: Shard, t: Traffic) -> tuple[float, float]:
    """Ids that a shard looks up in a step, and bags that it makes a vector of. One id a row and feature."""
    if shard.kind == "data_parallel":
        num_ids, num_bags = float(t.rows), t.rows
    elif shard.kind in ("row_wise", "table_row_wise"):
        ranks = t.world_size if shard.kind == "row_wise" else t.ranks_per_host
        num_ids, num_bags = t.batch_size * ((1 - t.head) / ranks + t.head * (shard.first_row == 0)), t.batch_size
    else:
        num_ids, num_bags = t.batch_size, t.batch_size
    return shard.num_features * num_ids, shard.num_features * num_bags


def _table_bytes(shard: Shard, num_ids: float, num_bags: float, line: float) -> float:
    """Compute the bytes of memory that a shard's look-up, backward and row-wise Adagrad move in a step.

    Forward: the ids, their rows, a vector a bag. Backward: a gradient an id, sorting, and for each distinct row its
    weights and its sum of squares, read and written.
    """
    vector, row = FLOAT * shard.columns, max(FLOAT * shard.columns, line)
    distinct = min(num_ids, shard.rows)
    forward = num_ids * (ID + row) + num_bags * vector
    backward = num_ids * (vector + SORT) + distinct * 2 * (row + line)
    return forward + backward


def _all_to_all(num_bytes: Floats, m: Machine, t: Traffic) -> Floats:
    """Seconds in which each rank sends (or gets) so many bytes, spread evenly over all ranks."""
    local = num_bytes * (t.ranks_per_host - 1) / t.world_size / (m.within_host * m.link_share)
    remote = num_bytes * (t.world_size - t.ranks_per_host) / t.world_size / (m.between_hosts * m.link_share)
    return np.maximum(local, remote)


def _reduce_scatter(num_bytes: float, m: Machine, t: Traffic) -> float:
    """Seconds of a ring over tensors of so many bytes; it crosses each host's links once, spread over its ranks."""
    local = num_bytes * (t.world_size - 1) / t.world_size / (m.within_host * m.link_share)  # nothing on one rank
    crossing = num_bytes * (t.num_hosts - 1) / t.num_hosts / t.ranks_per_host
    return max(local, crossing / (m.between_hosts * m.link_share))


def _latency(num_kinds: int, net: Net, gradient_bytes: float, m: Machine, t: Traffic) -> float:
    """Seconds of a step's collectives, empty: for each kind of sharding splits, lengths, ids and vectors twice; two
    sums of the loop, two for each batch norm, and the dense gradients."""
    if t.world_size == 1:
        return 0.0
    tree = m.latency_within if t.num_hosts == 1 else m.latency_between * math.ceil(math.log2(t.num_hosts))
    base = m.latency_within if t.num_hosts == 1 else m.latency_between
    to_all = base + m.latency_per_peer * (t.world_size - 1)
    trees = 2 + 2 * net.num_norms + math.ceil(gradient_bytes / BUCKET)
    return 5 * num_kinds * to_all + trees * tree
