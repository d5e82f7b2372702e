"""CTRModel -> DistributedModelParallel and its optimizers.

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
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm import get_local_size
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as ReplicatedRowWiseAdagrad

from training.config import DenseOptimizer, FusedOptimizer, TrainingConfig
from training.model.ctr_model import CTRModel
from training.model.embedding import table_of
from training.sharding.table_planner import DATA_PARALLEL, Cluster, Sharder, describe_placement, make_planner
from training.sharding.tables import (
    fuse_optimizer,
    fused_optimizer_of,
    initialize_tables,
    placements_of,
    replicated_tensors,
    trained_parameters,
)
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
    placements = placements_of(plan)
    if isinstance(lane, FusedOptimizer):
        kwargs = _embedding_optimizer_kwargs(lane)
        sharded = {name for name, place in placements.items() if place.sharding_type != DATA_PARALLEL}
        fuse_optimizer(model, sharded, FUSED_OPTIMIZERS[lane.embedding_optimizer], kwargs)
    wrapped = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder])  # pyright: ignore

    initialize_tables(wrapped, tables)
    parameters = trained_parameters(wrapped)
    table_parameters = {n: p for n, p in parameters.items() if table_of(n)}
    is_dense_lane = isinstance(lane, DenseOptimizer)
    embedding_names = set(model.embedding_parameter_names())
    return ParallelModel(
        model=wrapped,
        optimizer=_make_optimizer(wrapped, parameters, table_parameters, lane),
        average=WeightAverage(replicated_tensors(wrapped), config.ema_decay) if config.ema_decay else None,
        plan=[describe_placement(tables[name], placement) for name, placement in placements.items()],
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
        if (fused := fused_optimizer_of(wrapped)) is not None:
            optimizers.append((FUSED, fused))
        if table_parameters:
            kind = REPLICATED_OPTIMIZERS[lane.embedding_optimizer]
            kwargs = _embedding_optimizer_kwargs(lane)
            optimizers.append(("tables", KeyedOptimizerWrapper(table_parameters, lambda p: kind(p, **kwargs))))
            parameters = {n: p for n, p in parameters.items() if n not in table_parameters}
    adam = KeyedOptimizerWrapper(
        parameters, lambda p: torch.optim.Adam(p, lr=lane.learning_rate, eps=lane.epsilon, foreach=True)
    )
    return CombinedOptimizer([*optimizers, (DENSE, adam)])
