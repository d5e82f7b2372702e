"""CTRModel -> DistributedModelParallel and its optimizers.

The model is built on the meta device, TorchRec's planner places its tables, and what the planner leaves out (the dense
net) is replicated. The same function serves one CPU rank and many CUDA ones.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm import get_local_size
from torchrec.optim.keyed import CombinedOptimizer

from training.config import DenseOptimizer, FusedOptimizer, TrainingConfig
from training.model.ctr_model import CTRModel
from training.model.embedding import table_of
from training.sharding.optimizers import FUSED, PART_KEY, ModelParts
from training.sharding.pooled_kernels import pool_single_ids
from training.sharding.table_planner import (
    DATA_PARALLEL,
    Cluster,
    describe_placement,
    make_planner,
    sharders,
    unplanned_tables,
)
from training.sharding.tables import initialize_tables, placements_of, replicated_tensors, trained_parameters
from training.sharding.weight_average import WeightAverage

if TYPE_CHECKING:  # it needs pyarrow
    from features.vector_table import VectorTable

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
        """Return the learning rate of each part (``training.sharding.optimizers``), on every rank alike.

        The first is the tables', the last the dense net's. Parameter groups would not do: FBGEMM has one a kernel, so
        their number differs between ranks and plans.
        """
        return self._learning_rates

    @learning_rates.setter
    def learning_rates(self, rates: list[float]) -> None:
        """Set the rates from a list of any rank; of a model of two parts, earlier versions wrote one for each group."""
        self._learning_rates = [rates[0], rates[-1]] if len(self._learning_rates) == 2 else list(rates)
        for _, optimizer in self.optimizer.optimizers:
            groups: list[Any] = list(optimizer.param_groups)
            for group in groups:
                group["lr"] = self._learning_rates[group[PART_KEY]]
        # FBGEMM's kernels are told here, and read it in their forward: told after it, they would be a step late.
        self.optimizer.zero_grad()


def parallelize(
    model: CTRModel,
    config: TrainingConfig,
    device: torch.device,
    starts: Mapping[str, "VectorTable"] | None = None,
) -> ParallelModel:
    """Shard ``model``'s tables over the process group and build its optimizers.

    Args:
        model: model with its tables on the meta device.
        config: sharding, optimizer lane.
        device: this rank's device.
        starts: table -> vectors that some of its rows start with; the others are as initialised.

    Raises:
        ValueError: the lane cannot do what the config asks for on this device.
    """
    lane = config.optimizer
    own = sharders(model, config)
    planner = make_planner(model, config, _cluster(device))
    plan: Any = planner.collective_plan(model, own, dist.group.WORLD)  # pyright: ignore[reportArgumentType]
    tables = {table.name: table for table in model.tables}
    placements = placements_of(plan)
    parts = ModelParts(lane, model)
    if isinstance(lane, FusedOptimizer):
        parts.fuse(model, [name for name, place in placements.items() if place.sharding_type != DATA_PARALLEL])
    wrapped = DistributedModelParallel(model, device=device, plan=plan, sharders=own)  # pyright: ignore
    pool_single_ids(wrapped)

    initialize_tables(wrapped, tables, starts or {})
    parameters = trained_parameters(wrapped)
    is_dense_lane = isinstance(lane, DenseOptimizer)
    embedding_names = set(model.embedding_parameter_names())
    return ParallelModel(
        model=wrapped,
        optimizer=parts.make_optimizer(wrapped, parameters),
        average=WeightAverage(replicated_tensors(wrapped), config.ema_decay) if config.ema_decay else None,
        plan=[
            *(describe_placement(tables[name], placement) for name, placement in placements.items()),
            *(describe_placement(table, None) for table in unplanned_tables(model, config)),
        ],
        _embedding_parameters=[p for n, p in parameters.items() if n in embedding_names],
        _clipped_parameters=[p for n, p in parameters.items() if is_dense_lane or not table_of(n)],
        _learning_rates=[part.learning_rate for part in parts.parts],
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
