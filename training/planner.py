"""TorchRec's planner as this project sets it up, so that a dry run plans what a training would."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import (
    KernelConfig,
    Proposer,
    ShardingOption,
    Stats,
    Storage,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ShardingType

from training.config import DenseOptimizer, FusedOptimizer, TrainingConfig
from training.model.ctr_model import CTRModel
from training.model.embedding import EmbeddingTable

DATA_PARALLEL = ShardingType.DATA_PARALLEL.value
MODEL_PARALLEL = tuple(
    kind.value for kind in (ShardingType.TABLE_WISE, ShardingType.ROW_WISE, ShardingType.COLUMN_WISE)
)
MARGIN = 0.15
"""Share of a GPU's memory that the planner leaves alone: activations of the dense net, fragments, the CUDA context."""

DENSE_COPIES = 6
"""TorchRec's count of what a replicated weight takes: itself, Adam's two moments, its gradient and DDP's buckets."""

Bytes = dict[str, int]
PARTS = ("weights", "state", "gradients", "lookups")
"""What a shard takes: its rows, the optimizer's state, a replicated table's gradient and average, a batch's ids and
vectors on their way in and out."""

# TorchRec warns of its own default, for nets whose size it cannot tell; make_reservation tells it.
warnings.filterwarnings("ignore", message="HeuristicalStorageReservation", category=FutureWarning)
# And of each replicated table, that it is on no rank in particular.
logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("Sharding spec not found"))


class Sharder(EmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPU, which the stock sharder leaves out, and keeps auto plans model-parallel."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [DATA_PARALLEL, *MODEL_PARALLEL]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        kernel = EmbeddingComputeKernel.DENSE if sharding_type == DATA_PARALLEL else EmbeddingComputeKernel.FUSED
        return [kernel.value]


class StorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's, plus what it cannot see: no optimizer is attached when a plan is made."""

    def __init__(
        self, config: TrainingConfig, topology: Topology, constraints: dict[str, ParameterConstraints]
    ) -> None:
        super().__init__(topology=topology, constraints=constraints)
        self._config = config
        self._on_cpu = topology.compute_device == "cpu"

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: Any) -> None:
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            for shard in option.shards:
                parts = held_bytes(self._config, option.sharding_type, shard.size)
                unseen = parts["state"] + parts["gradients"]
                assert shard.storage is not None
                shard.storage += Storage(hbm=0, ddr=unseen) if self._on_cpu else Storage(hbm=unseen, ddr=0)


@dataclass(frozen=True)
class Cluster:
    """Ranks that are alike.

    Attributes:
        world_size: number of ranks.
        ranks_per_host: those that share a fast connection.
        memory: bytes a rank, of its GPU or, on CPU, of its share of the host; None: TorchRec's default.
    """

    device: Literal["cpu", "cuda"]
    world_size: int
    ranks_per_host: int
    memory: int | None = None

    def topology(self) -> Topology:
        """The same for TorchRec, with its default bandwidths."""
        sizes: dict[str, Any] = {"ddr_cap_bytes" if self.device == "cpu" else "hbm_cap_bytes": self.memory}
        return TopologyFactory.create_topology(
            trainer_config=TrainerConfig(world_size=self.world_size, local_world_size=self.ranks_per_host, **sizes),
            kernel_config=KernelConfig(compute_device=self.device),
        )


def held_bytes(config: TrainingConfig, sharding_type: str, size: Sequence[int]) -> Bytes:
    """Bytes of ``PARTS`` that a shard of ``size`` (rows, columns) holds between steps, so without lookups.

    Row-wise Adagrad keeps a number a row of a shard: of a table cut into columns, a number a row for each cut.
    """
    rows, columns = size
    weights = 4 * rows * columns
    lane = config.optimizer
    kind = lane.embedding_optimizer if isinstance(lane, FusedOptimizer) else "adam"
    state = {"sgd": 0, "rowwise_adagrad": 4 * rows * bool(columns), "adagrad": weights, "adam": 2 * weights}[kind]
    copies = 1 + bool(config.ema_decay) if sharding_type == DATA_PARALLEL else 0
    return {"weights": weights, "state": state, "gradients": copies * weights}


def batch_size_per_rank(config: TrainingConfig, world_size: int) -> int:
    """Rows of the largest part of a global batch."""
    return math.ceil(config.global_batch_size / world_size)


def check_lane(config: TrainingConfig, device: str) -> None:
    """Refuse what the optimizer lane cannot do.

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
    if isinstance(lane, FusedOptimizer) and lane.embedding_optimizer == "adam":
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
    """The planner of ``model``'s tables: call its ``plan`` or ``collective_plan`` with a ``Sharder``.

    Args:
        model: with its tables on the meta device.
        stats: are told of the plan that is made.

    Raises:
        ValueError: the config's sharding and its optimizer lane cannot be had together, or it names unknown features.
    """
    check_lane(config, cluster.device)
    auto = (DATA_PARALLEL,) if isinstance(config.optimizer, DenseOptimizer) else MODEL_PARALLEL
    unknown = set(config.sharding.features) - {table.feature for table in model.tables}
    if unknown:
        raise ValueError(f"training.sharding.features names unknown features: {', '.join(sorted(unknown))}")
    constraints = {}
    for table in model.tables:
        kind = config.sharding.features.get(table.feature, config.sharding.default)
        allowed = list(auto) if kind == "auto" else [kind]
        constraints[table.name] = ParameterConstraints(sharding_types=allowed, min_partition=4)
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
        storage_reservation=make_reservation(model, MARGIN),
        proposer=proposers,
        stats=list(stats),
        constraints=constraints,
    )


def make_reservation(model: CTRModel, margin: float) -> HeuristicalStorageReservation:
    """What a rank keeps free of tables: a share of a GPU, the dense net and its copies, the ids of two batches."""
    tables = {id(parameter) for parameter in model.embedding.bags.parameters()}
    dense = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in tables)
    return HeuristicalStorageReservation(margin, dense_tensor_estimate=DENSE_COPIES * dense)


def describe(table: EmbeddingTable, placement: Any) -> dict[str, Any]:
    """A table and its place, as a run's plan.json has it."""
    return {
        "table": table.name,
        "feature": table.feature,
        "stream": table.stream,
        "rows": table.num_embeddings,
        "width": table.width,
        "bytes": 4 * table.num_embeddings * table.padded_width,
        "sharding": placement.sharding_type,
        "kernel": placement.compute_kernel,
        "ranks": list(placement.ranks or []),
    }
