"""CTRModel -> DistributedModelParallel and its optimizers: the only file that knows where tables live.

The model is built on the meta device, TorchRec's planner places its tables, and what the planner leaves out (the dense
net) is replicated. The same function serves one CPU rank and many CUDA ones.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torchrec.optim
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.types import EmbeddingModuleShardingPlan
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as ReplicatedRowWiseAdagrad

from training.config import DenseOptimizer, FusedOptimizer, TrainingConfig
from training.model.ctr_model import CTRModel
from training.model.embedding import EmbeddingTable
from training.sharding.table_planner import DATA_PARALLEL, Cluster, Sharder, describe, make_planner
from training.sharding.weight_average import WeightAverage

FUSED, DENSE = "fused", "dense"
"""Names of FBGEMM's and of the dense net's optimizer among the combined ones."""

FUSED_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
    "adagrad": torchrec.optim.Adagrad,
    "sgd": torchrec.optim.SGD,
    "adam": torchrec.optim.Adam,
}
"""Optimizers of sharded tables; the classes are markers, as FBGEMM runs the update inside its backward."""

REPLICATED_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": ReplicatedRowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
"""Optimizers of data-parallel tables, whose gradient is dense: a row that was not looked up does not move."""


# TorchRec trips a deprecation notice of torch.fx at every first forward; nobody can act on it.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@dataclass
class ParallelModel:
    """A sharded model with its optimizers, average and plan.

    Attributes:
        model: the wrapped CTRModel.
        optimizer: every optimizer, as one; its state and the model's make a checkpoint.
        average: moving average of the replicated weights, or None.
        plan: one readable row a table (see plan.json).
    """

    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    average: WeightAverage | None
    plan: list[dict[str, Any]]
    _embedding_parameters: list[nn.Parameter]
    """Table parameters with gradients: in the dense lane, every table."""
    _clipped_parameters: list[nn.Parameter]
    """Replicated parameters whose gradients share one norm."""
    _learning_rates: list[float]

    def init_optimizer_state(self) -> None:
        """Give every dense optimizer its state tensors.

        An optimizer that never stepped has none, and loading a checkpoint into it would silently do nothing.
        """
        for name, optimizer in self.optimizer.optimizers:
            if name != FUSED:
                optimizer.init_state()
        self.optimizer.zero_grad()

    def add_l2_gradients(self, embedding_l2: float) -> None:
        """Add the gradient of (embedding_l2 / 2) * |table|^2 over every row of every table, looked up or not.

        It must be in the gradients before they are clipped, as it is when the term is part of the loss.
        """
        if embedding_l2:
            parameters = [p for p in self._embedding_parameters if p.grad is not None]
            torch._foreach_add_([p.grad for p in parameters], parameters, alpha=embedding_l2)  # pyright: ignore

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradients so that their common norm is at most ``max_norm``."""
        nn.utils.clip_grad_norm_(self._clipped_parameters, max_norm, foreach=True)

    @contextlib.contextmanager
    def shipped_weights(self) -> Iterator[None]:
        """Give the model the weights that are evaluated and shipped, within this context."""
        with self.average.swapped() if self.average is not None else contextlib.nullcontext():
            yield

    @property
    def learning_rates(self) -> list[float]:
        """Return the learning rates of the tables and of the dense net, equal in the dense lane, on every rank alike.

        Parameter groups would not do: FBGEMM has one a kernel, so their number differs between ranks and plans.
        """
        return self._learning_rates

    @learning_rates.setter
    def learning_rates(self, rates: list[float]) -> None:
        """Set the rates from a list of any rank and plan: its first is the tables', its last the dense net's."""
        self._learning_rates = [rates[0], rates[-1]]
        for name, optimizer in self.optimizer.optimizers:
            groups: list[Any] = list(optimizer.param_groups)
            for group in groups:
                group["lr"] = self._learning_rates[name == DENSE]
        # FBGEMM's kernels are told here, and read it in their forward: told after it, they would be a step late.
        self.optimizer.zero_grad()


def parallelize(model: CTRModel, config: TrainingConfig, device: torch.device) -> ParallelModel:
    """Shard ``model``'s tables over the process group and build its optimizers.

    Args:
        model: model with its tables on the meta device.
        config: sharding, optimizer lane.
        device: this rank's device.

    Raises:
        ValueError: the lane cannot do what the config asks for on this device.
    """
    lane = config.optimizer
    sharder = Sharder()
    planner = make_planner(model, config, _cluster(device))
    plan: Any = planner.collective_plan(model, [sharder], dist.group.WORLD)  # pyright: ignore[reportArgumentType]
    tables = {table.name: table for table in model.tables}
    modules = {path: part for path, part in plan.plan.items() if isinstance(part, EmbeddingModuleShardingPlan)}
    placements = {name: shard for part in modules.values() for name, shard in part.items()}
    if isinstance(lane, FusedOptimizer):
        kwargs = _embedding_optimizer_kwargs(lane)
        fused = [p for n, p in model.named_parameters() if _is_model_parallel(_table_of(n, tables), placements)]
        if fused:
            _apply_optimizer_in_backward(FUSED_OPTIMIZERS[lane.embedding_optimizer], fused, kwargs)
    wrapped = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])  # pyright: ignore

    _initialize_tables(wrapped, tables)
    parameters = {n: p for n, p in in_backward_optimizer_filter(wrapped.named_parameters()) if p.requires_grad}
    table_parameters = {n: p for n, p in parameters.items() if _table_of(n, tables)}
    is_dense_lane = isinstance(lane, DenseOptimizer)
    embedding_names = set(model.embedding_parameter_names())
    return ParallelModel(
        model=wrapped,
        optimizer=_make_optimizer(wrapped, parameters, table_parameters, lane),
        average=WeightAverage(_replicated(wrapped), config.ema_decay) if config.ema_decay else None,
        plan=[describe(tables[name], placement) for name, placement in placements.items()],
        _embedding_parameters=[p for n, p in parameters.items() if n in embedding_names],
        _clipped_parameters=[p for n, p in parameters.items() if is_dense_lane or n not in table_parameters],
        _learning_rates=[lane.learning_rate if is_dense_lane else lane.embedding_learning_rate, lane.learning_rate],
    )


def gather(values: torch.Tensor) -> torch.Tensor:
    """Lay all ranks' tensors end to end in rank order, on every rank; their first dimensions may differ."""
    if dist.get_world_size() == 1:
        return values
    size = torch.tensor([len(values)], device=values.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    longest = max(int(s) for s in sizes)
    mine = values.new_zeros(longest, *values.shape[1:])
    mine[: len(values)] = values
    everyone = [torch.zeros_like(mine) for _ in sizes]
    dist.all_gather(everyone, mine)
    return torch.cat([part[: int(s)] for part, s in zip(everyone, sizes, strict=True)])


def _initialize_tables(wrapped: DistributedModelParallel, tables: dict[str, EmbeddingTable]) -> None:
    """Give every shard its place's numbers, so that any sharding starts from the same tables."""
    for name, value in wrapped.state_dict().items():
        table = _table_of(name, tables)
        if table is None:
            continue
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                tables[table].initialize(shard.tensor, *shard.metadata.shard_offsets)
        else:
            tables[table].initialize(value)


def _replicated(wrapped: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """Every parameter and buffer that each rank holds whole, sharing its memory."""
    return {n: v for n, v in wrapped.state_dict().items() if not isinstance(v, ShardedTensor)}


def _cluster(device: torch.device) -> Cluster:
    """Describe this process group to the planner."""
    world_size = dist.get_world_size()
    ranks_per_host = get_local_size(world_size)
    if device.type == "cpu":
        return Cluster("cpu", world_size, ranks_per_host)
    memory = torch.cuda.get_device_properties(device).total_memory
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_per_host
    return Cluster("cuda", world_size, ranks_per_host, memory, host_memory)


def _embedding_optimizer_kwargs(lane: FusedOptimizer) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"lr": lane.embedding_learning_rate}
    if lane.embedding_optimizer != "sgd":
        kwargs["eps"] = lane.epsilon
    return kwargs


def _make_optimizer(
    wrapped: DistributedModelParallel,
    parameters: dict[str, nn.Parameter],
    table_parameters: dict[str, nn.Parameter],
    lane: FusedOptimizer | DenseOptimizer,
) -> CombinedOptimizer:
    """Combine the fused optimizer (if any), that of the fused lane's replicated tables (if any), and Adam."""
    optimizers: list[tuple[str, KeyedOptimizer]] = []
    if isinstance(lane, FusedOptimizer):
        if wrapped.fused_optimizer.params:
            optimizers.append((FUSED, wrapped.fused_optimizer))
        if table_parameters:
            kind = REPLICATED_OPTIMIZERS[lane.embedding_optimizer]
            kwargs = _embedding_optimizer_kwargs(lane)
            optimizers.append(("tables", KeyedOptimizerWrapper(table_parameters, lambda p: kind(p, **kwargs))))
            parameters = {n: p for n, p in parameters.items() if n not in table_parameters}
    adam = KeyedOptimizerWrapper(
        parameters, lambda p: torch.optim.Adam(p, lr=lane.learning_rate, eps=lane.epsilon, foreach=True)
    )
    return CombinedOptimizer([*optimizers, (DENSE, adam)])


def _table_of(parameter_name: str, tables: dict[str, EmbeddingTable]) -> str | None:
    """Table that ``...embedding_bags.TABLE.weight`` belongs to; None for any other parameter."""
    parts = parameter_name.split(".")
    return parts[-2] if len(parts) >= 3 and parts[-3] == "embedding_bags" and parts[-2] in tables else None


def _is_model_parallel(table: str | None, placements: dict[str, Any]) -> bool:
    return table is not None and placements[table].sharding_type != DATA_PARALLEL
