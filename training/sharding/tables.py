"""Tables of a sharded model: the one module that knows where TorchRec keeps them.

A table's name inside its collection is ``training.model.embedding``'s. What sharding adds is here: wrapped modules,
shards of a table, optimizers that run inside a kernel's backward, and the modules that a look-up goes through.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbedding, BaseBatchedEmbeddingBag
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import EmbeddingModuleShardingPlan
from torchrec.optim.keyed import KeyedOptimizer
from torchrec.optim.optimizers import in_backward_optimizer_filter

from training.data.batch import Batch
from training.model.ctr_model import CTRModel
from training.model.embedding import EmbeddingTable, FieldEmbedding, table_of

if TYPE_CHECKING:  # it needs pyarrow
    from features.vector_table import VectorTable


class LookUp(nn.Module):
    """LookUp: a batch -> vectors of its ids, all that TorchRec's pipeline has to see of a model.

    The pipeline traces what it is given, to learn which sharded module gets which part of a batch; the rest of the
    model has nothing to pipeline and does not trace.
    """

    def __init__(self, model: nn.Module) -> None:
        """Take the collections of tables out of ``model``, which is sharded."""
        super().__init__()
        self.collections = nn.ModuleList(embedding_of(model).collections)

    def forward(self, batch: Batch) -> Any:
        """Look up the batch's ids."""
        return [collection(batch.sparse_features) for collection in self.collections]


def embedding_of(model: nn.Module) -> FieldEmbedding:
    """Find a model's embedding, under whatever wraps the model."""
    (embedding,) = (part for part in model.modules() if isinstance(part, FieldEmbedding))
    return embedding


def lookups_of(model: nn.Module) -> Iterator[nn.Module]:
    """List the modules that look up ids on this rank.

    Each one runs after the exchange of ids between ranks and before the exchange of vectors.
    """
    for module in model.modules():
        if isinstance(module, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            yield from module._lookups


def kernels_of(model: nn.Module) -> Iterator[BaseBatchedEmbedding | BaseBatchedEmbeddingBag]:
    """List FBGEMM's kernels: the ``grad_fn`` of a kernel's output computes gradients of rows and updates them.

    They are part of the look-ups, which TorchRec keeps in a plain list: ``model.modules()`` has none of them.
    """
    for lookup in lookups_of(model):
        yield from (
            part for part in lookup.modules() if isinstance(part, BaseBatchedEmbedding | BaseBatchedEmbeddingBag)
        )


def placements_of(plan: Any) -> dict[str, Any]:
    """Map each table to its place (``ParameterSharding``) in a ``ShardingPlan`` of TorchRec."""
    modules = (part for part in plan.plan.values() if isinstance(part, EmbeddingModuleShardingPlan))
    return {name: place for part in modules for name, place in part.items()}


def fuse_optimizer(
    model: CTRModel, tables: Collection[str], optimizer: type[torch.optim.Optimizer], arguments: dict[str, Any]
) -> None:
    """Have some tables updated inside the backward of their kernel.

    Args:
        model: not sharded yet; sharding it reads what is set here.
        tables: names of tables.
        optimizer: the marker of an update that FBGEMM has.
        arguments: the optimizer's.
    """
    fused = [parameter for name, parameter in model.named_parameters() if table_of(name) in tables]
    if fused:
        _apply_optimizer_in_backward(optimizer, fused, arguments)


def fused_optimizer_of(model: DistributedModelParallel) -> KeyedOptimizer | None:
    """Find the optimizer that runs inside backward, or None if no table of any rank has it."""
    return model.fused_optimizer if model.fused_optimizer.params else None


def trained_parameters(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Map names to the parameters that have gradients: none that a kernel updates inside its backward."""
    return {n: p for n, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}


def initialize_tables(
    model: DistributedModelParallel, tables: Mapping[str, EmbeddingTable], starts: Mapping[str, "VectorTable"]
) -> None:
    """Initialise every shard by its place in the table, so that any sharding starts from the same tables.

    Args:
        model: sharded.
        tables: name -> table, of all tables.
        starts: name -> vectors that some rows of a table start with.
    """
    for name, value in model.state_dict().items():
        table = table_of(name)
        if table is None:
            continue
        for part, offsets in parts_of(value):
            tables[table].initialize(part, *offsets)
            if table in starts:
                _start_with(part, offsets, starts[table])


@torch.no_grad()
def _start_with(part_VD: Tensor, offsets: Sequence[int], start: "VectorTable") -> None:
    """Give a table's part the vectors of those of its rows that have one; the pad stays."""
    rows = slice(offsets[0], offsets[0] + part_VD.shape[0])
    is_known, vectors = start.is_known_V[rows], start.vectors_VW[rows, offsets[1] : offsets[1] + part_VD.shape[1]]
    places = torch.from_numpy(is_known.nonzero()[0]).to(part_VD.device)
    part_VD[places, : vectors.shape[1]] = torch.from_numpy(vectors[is_known]).to(part_VD)


def replicated_tensors(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Map names to the parameters and buffers that each rank holds whole, sharing the model's memory."""
    return {n: v for n, v in model.state_dict().items() if not isinstance(v, ShardedTensor)}


def parts_of(value: Any) -> list[tuple[Tensor, Sequence[int]]]:
    """List the parts of a tensor that this rank holds, each with the place of its first number.

    Args:
        value: value of a ``state_dict``; one that is no tensor has none.
    """
    if isinstance(value, ShardedTensor):
        return [(shard.tensor, shard.metadata.shard_offsets) for shard in value.local_shards()]
    return [(value, [0] * value.dim())] if isinstance(value, Tensor) else []


def without_empty_state(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out of an optimizer's ``state_dict`` the parameters that have no state (SGD's).

    The checkpoint library keeps what is not a tensor from the first rank alone, an empty dictionary too, and would then
    miss those of tables that other ranks own.
    """
    return {**state, "state": {name: values for name, values in state["state"].items() if values}}
