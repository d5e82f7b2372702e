"""TorchRec's planner with this project's settings, so that a dry run makes the plan of a training."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import Proposer, ShardingOption, Stats, Storage, Topology
from torchrec.distributed.types import CacheParams, ShardingType

from training.config import GIB, DenseOptimizer, FusedOptimizer, ShardingConfig, TrainingConfig
from training.model.ctr_model import CTRModel
from training.model.embedding import EmbeddingTable, table_of

DATA_PARALLEL = ShardingType.DATA_PARALLEL.value
MODEL_PARALLEL = tuple(
    kind.value for kind in (ShardingType.TABLE_WISE, ShardingType.ROW_WISE, ShardingType.COLUMN_WISE)
)
MARGIN = 0.15
"""Share of a GPU's memory that the planner leaves alone: activations of the dense net, fragments, the CUDA context."""

MOST_COLUMNS = 32
"""Largest width of a part when the planner cuts a table by columns: 128 bytes a row."""

DENSE_COPIES = 6
"""Copies of a replicated weight by TorchRec's count: itself, Adam's two moments, its gradient and DDP's buckets."""

CACHED = EmbeddingComputeKernel.FUSED_UVM_CACHING.value
"""Kernel of a table that lies in host memory, with a cache on the GPU."""

Bytes = dict[str, int]
MEMORY_PARTS = ("weights", "state", "gradients", "cache", "lookups")
"""Parts of a shard's memory on its rank: its rows, the optimizer's state, a replicated table's gradient and average,
the cache of rows that lie in host memory, a batch's ids and vectors on their way in and out."""
HOST = "host"
"""Part of a shard's memory on a GPU's host: rows and the optimizer's state, if they lie there."""

# TorchRec warns of its own default, for nets whose size it cannot tell; make_reservation tells it.
warnings.filterwarnings("ignore", message="HeuristicalStorageReservation", category=FutureWarning)
# It wants its topology from a factory that older versions lack, and which adds nothing to what is said here.
_TOPOLOGY_LOG = "The topology was constructed directly"
logging.getLogger("torchrec.distributed.planner.types").addFilter(
    lambda record: not record.getMessage().startswith(_TOPOLOGY_LOG)
)
# And of each replicated table, that it is on no rank in particular.
logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("Sharding spec not found"))


class Sharder(EmbeddingBagCollectionSharder):
    """Sharder that offers row-wise sharding on CPU, which the stock one leaves out."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """List the sharding types on offer, on any device."""
        return [DATA_PARALLEL, *MODEL_PARALLEL]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """List the kernels of a sharding type; on CUDA also the one with a cache."""
        if sharding_type == DATA_PARALLEL:
            return [EmbeddingComputeKernel.DENSE.value]
        return [EmbeddingComputeKernel.FUSED.value, *([CACHED] if compute_device_type == "cuda" else [])]


class SequenceSharder(EmbeddingCollectionSharder):
    """Sharder of tables that sequences look up: by rows, columns or whole, on any device.

    It cannot replicate: on CPU, FBGEMM's dense kernel adds up vectors that are to stay apart. ``sharders`` leaves it
    out where tables are replicated, and their collections stay as they are.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """List the sharding types on offer, on any device."""
        return list(MODEL_PARALLEL)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """List the kernels of a sharding type; on CUDA also the one with a cache."""
        return [EmbeddingComputeKernel.FUSED.value, *([CACHED] if compute_device_type == "cuda" else [])]


def sharders(model: CTRModel, config: TrainingConfig) -> list[Any]:
    """List the sharders of a model's tables, of one kind of collection each.

    Raises:
        ValueError: some tables that sequences look up are to be replicated and others not.
    """
    return [Sharder(), *([] if _replicates_sequences(model, config) else [SequenceSharder()])]


def unplanned_tables(model: CTRModel, config: TrainingConfig) -> list[EmbeddingTable]:
    """List the replicated tables that no plan has: collections that sequences look up stay as they are."""
    return [table for table in model.tables if table.sequences and _replicates_sequences(model, config)]


def _replicates_sequences(model: CTRModel, config: TrainingConfig) -> bool:
    """Tell whether the tables that sequences look up are replicated; all are, or none.

    Raises:
        ValueError: some are and others not.
    """
    if isinstance(config.optimizer, DenseOptimizer):
        return True
    kinds = {table.feature: sharding_of(table, config.sharding) for table in model.tables if table.sequences}
    replicated = [feature for feature, kind in kinds.items() if kind == DATA_PARALLEL]
    others = [f"{feature!r} ({kind})" for feature, kind in kinds.items() if kind != DATA_PARALLEL]
    if replicated and others:
        raise ValueError(
            f"training.sharding: sequences look up the tables of {replicated[0]!r} (data_parallel) and {others[0]}, "
            "which are all replicated or all not: give all of them data_parallel, or none"
        )
    return bool(replicated)


def ids_a_row(model: CTRModel, table: EmbeddingTable) -> list[float]:
    """List how many ids of a row each key of a table has: one a feature, and a sequence's mean length."""
    return [1.0] * len(table.features) + [model.mean_lengths[key] for key in table.sequences]


class StorageEstimator(EmbeddingStorageEstimator):
    """Estimator of storage: TorchRec's, plus optimizer state, gradients and averages, which it cannot see yet."""

    def __init__(
        self, config: TrainingConfig, topology: Topology, constraints: dict[str, ParameterConstraints]
    ) -> None:
        super().__init__(topology=topology, constraints=constraints)
        self._config = config
        self._on_cpu = topology.compute_device == "cpu"

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        """Fill in the storage of every shard of the options."""
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            for shard in option.shards:
                parts = held_bytes(self._config, option.sharding_type, shard.size, option.compute_kernel)
                unseen, hosted = parts["state"] + parts["gradients"], max(0, parts[HOST] - 4 * math.prod(shard.size))
                assert shard.storage is not None
                shard.storage += Storage(hbm=0, ddr=unseen) if self._on_cpu else Storage(hbm=unseen, ddr=hosted)


@dataclass(frozen=True)
class Cluster:
    """A cluster of identical ranks.

    Attributes:
        world_size: number of ranks.
        ranks_per_host: number of ranks that share a fast connection.
        memory: bytes a rank, of its GPU or, on CPU, of its share of the host; None: TorchRec's default.
        host_memory: bytes a GPU's rank, of its host; None: TorchRec's default.
    """

    device: Literal["cpu", "cuda"]
    world_size: int
    ranks_per_host: int
    memory: int | None = None
    host_memory: int | None = None

    def topology(self) -> Topology:
        """Convert to TorchRec's topology, with its default bandwidths."""
        return Topology(
            self.world_size,
            self.device,
            hbm_cap=None if self.device == "cpu" else self.memory,
            ddr_cap=self.memory if self.device == "cpu" else self.host_memory,
            local_world_size=self.ranks_per_host,
        )

    def capped(self, sharding: ShardingConfig) -> "Cluster":
        """Limit a GPU's memory to what the config allows."""
        if sharding.device_memory is None or self.device == "cpu":
            return self
        cap = round(sharding.device_memory * GIB)
        return replace(self, memory=cap if self.memory is None else min(cap, self.memory))


def held_bytes(config: TrainingConfig, sharding_type: str, size: Sequence[int], kernel: str = "") -> Bytes:
    """Compute the bytes of ``MEMORY_PARTS``, but for lookups, and ``HOST`` of a shard of ``size`` (rows, columns).

    The optimizer is taken to be that of the tables' optimizers which keeps most. Row-wise Adagrad keeps a number a row
    of a shard: of a table cut into columns, a number a row for each cut. A cache has 4 bytes of index a row of the
    table and 16 of bookkeeping a row of its own; the optimizer's state has none.
    """
    rows, columns = size
    weights = 4 * rows * columns
    states = {"sgd": 0, "rowwise_adagrad": 4 * rows * bool(columns), "adagrad": weights, "adam": 2 * weights}
    state = max(states[kind] for kind in config.optimizer.table_kinds)
    if kernel == CACHED:
        share = config.sharding.cache_load_factor
        cache = math.ceil(share * weights) + math.ceil(rows * (4 + 16 * share))
        return {"weights": 0, "state": 0, "gradients": 0, "cache": cache, HOST: weights + state}
    copies = 1 + bool(config.ema_decay) if sharding_type == DATA_PARALLEL else 0
    return {"weights": weights, "state": state, "gradients": copies * weights, "cache": 0, HOST: 0}


def columns_per_part(sharding: str, table: EmbeddingTable, tables: Sequence[EmbeddingTable], world_size: int) -> int:
    """Choose the columns of a part when a table is cut; the planner takes the next number that divides the table's.

    Where the config asks for it, every rank gets a part. Left to the planner ("auto"), parts are so wide that all
    tables together have two for each rank, and no wider than ``MOST_COLUMNS``: each part needs all ids of its feature,
    and a number a row of row-wise Adagrad.
    """
    if sharding == "auto":
        share = sum(other.padded_width for other in tables) / (2 * world_size)
        columns = min(MOST_COLUMNS, 4 * math.ceil(share / 4))
    else:
        columns = 4 * math.ceil(table.padded_width / world_size / 4)
    return min(columns, table.padded_width)


def batch_size_per_rank(config: TrainingConfig, world_size: int) -> int:
    """Count the rows of the largest rank's part of a global batch."""
    return math.ceil(config.global_batch_size / world_size)


def check_lane(config: TrainingConfig, device: str) -> None:
    """Refuse a config that its optimizer lane does not support on the device.

    Raises:
        ValueError: names the key and what to set instead.
    """
    lane = config.optimizer
    kinds = {config.sharding.default, *config.sharding.features.values()}
    if isinstance(lane, DenseOptimizer) and not kinds <= {"auto", DATA_PARALLEL}:
        raise ValueError(
            "training.sharding: the dense lane replicates its tables (auto or data_parallel), because TorchRec plans "
            'its dense kernel only so; for sharded tables set training.optimizer.kind = "fused"'
        )
    if config.sharding.device_memory is not None and (device == "cpu" or isinstance(lane, DenseOptimizer)):
        raise ValueError(
            "training.sharding.device_memory: tables in host memory with a cache on the GPU exist on CUDA and in the "
            'fused lane only; leave it out, or set training.device = "cuda" and training.optimizer.kind = "fused"'
        )
    if isinstance(lane, FusedOptimizer) and "adam" in lane.table_kinds:
        if device == "cpu":
            raise ValueError(
                "training.optimizer.embedding_optimizer = adam exists on CUDA only: FBGEMM has no fused Adam on CPU; "
                'use rowwise_adagrad, adagrad or sgd, or training.optimizer.kind = "dense"'
            )
        if DATA_PARALLEL in kinds:
            raise ValueError("training.sharding: data_parallel tables cannot use the fused lane's (lazy) adam")


def make_planner(
    model: CTRModel, config: TrainingConfig, cluster: Cluster, stats: Sequence[Stats] = ()
) -> EmbeddingShardingPlanner:
    """Make the planner of ``model``'s tables: call its ``plan`` or ``collective_plan`` with ``sharders``.

    Args:
        model: model with its tables on the meta device.
        stats: reporters that TorchRec calls with the plan.

    Raises:
        ValueError: the config's sharding and its optimizer lane cannot be had together, or it names unknown features.
    """
    check_lane(config, cluster.device)
    cluster, sharding = cluster.capped(config.sharding), config.sharding
    if isinstance(config.optimizer, DenseOptimizer):
        auto = (DATA_PARALLEL,)
    else:  # a single rank has every table whole, but cut by rows, ids and vectors would be put into order twice a step
        auto = MODEL_PARALLEL if cluster.world_size > 1 else (ShardingType.TABLE_WISE.value,)
    unknown = set(sharding.features) - {name for table in model.tables for name in table.keys}
    if unknown:
        raise ValueError(f"training.sharding.features names unknown features: {', '.join(sorted(unknown))}")
    kernels = [EmbeddingComputeKernel.DENSE.value, EmbeddingComputeKernel.FUSED.value]
    cache = None
    if sharding.device_memory is not None:
        kernels.append(CACHED)
        cache = CacheParams(load_factor=sharding.cache_load_factor)
    constraints = {}
    for table in model.tables:
        kind = sharding_of(table, sharding)
        allowed = list(auto) if kind == "auto" else [kind]
        constraints[table.name] = ParameterConstraints(
            sharding_types=allowed,
            compute_kernels=kernels,
            min_partition=columns_per_part(kind, table, model.tables, cluster.world_size),
            # One a feature name, in the table's order: TorchRec would count one feature, of one id a row.
            pooling_factors=ids_a_row(model, table),
            cache_params=None if kind == DATA_PARALLEL else cache,
        )
    topology = cluster.topology()
    batch_size = batch_size_per_rank(config, cluster.world_size)
    estimators = [EmbeddingPerfEstimator(topology, constraints), StorageEstimator(config, topology, constraints)]
    # Without the stock planner's grid search, which tries up to 10,000 combinations of a few tables' shardings.
    proposers: list[Proposer] = [GreedyProposer(), UniformProposer()]
    if cluster.device == "cuda":
        # Where memory is tight, the other one ends at a large table's table-wise choice, which fits no rank, for good.
        proposers.append(GreedyProposer(use_depth=False))
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=EmbeddingEnumerator(topology, batch_size, constraints, estimators),
        storage_reservation=make_reservation(model, config, MARGIN),
        proposer=proposers,
        stats=list(stats),
        constraints=constraints,
    )


def sharding_of(table: EmbeddingTable, sharding: ShardingConfig) -> str:
    """Find a table's sharding in the config: that of one of its features, else the default.

    Raises:
        ValueError: features that share the table have different ones.
    """
    wanted = {sharding.features[name]: name for name in table.keys if name in sharding.features}
    if len(wanted) > 1:
        shown = ", ".join(f"{name} = {kind}" for kind, name in wanted.items())
        raise ValueError(f"training.sharding.features: {shown}, but they share a table: give both the same sharding")
    return next(iter(wanted), sharding.default)


def make_reservation(model: CTRModel, config: TrainingConfig, margin: float) -> HeuristicalStorageReservation:
    """Reserve a rank's memory beside what is planned: a share of a GPU, what is replicated with its copies (the dense
    net, tables that no plan has), fixed vectors, and the ids of two batches.
    """
    outside = {None, *(table.name for table in unplanned_tables(model, config))}
    dense = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if table_of(name) in outside)
    vectors = sum(table.nbytes for table in model.vectors.tables.values())
    return HeuristicalStorageReservation(margin, dense_tensor_estimate=DENSE_COPIES * dense + vectors)


def describe_placement(table: EmbeddingTable, placement: Any) -> dict[str, Any]:
    """Describe a table and its placement (None: no plan has it, see ``unplanned_tables``) for a run's plan.json."""
    return {
        "table": table.name,
        "feature": ", ".join(table.keys),
        "stream": table.stream,
        "rows": table.num_embeddings,
        "width": table.width,
        "bytes": 4 * table.num_embeddings * table.padded_width,
        "sharding": DATA_PARALLEL if placement is None else placement.sharding_type,
        "kernel": EmbeddingComputeKernel.DENSE.value if placement is None else placement.compute_kernel,
        "ranks": [] if placement is None else list(placement.ranks or []),
    }
