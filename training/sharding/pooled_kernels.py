"""FBGEMM's kernels of un-pooled look-ups on a CPU, run as pooled ones with a single id in each bag.

The backward of an un-pooled look-up that updates its rows on a CPU (fbgemm-gpu 1.8) keeps a small map for each row,
and takes ten times as long for an id of a large table as the pooled one, which sorts the ids. A bag of a single id is
that id's vector, so both give the same vectors, and the same updated rows but for rounding.
"""

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbedding

from training.sharding.tables import kernels_of


def pool_single_ids(model: nn.Module) -> None:
    """Change the un-pooled CPU kernels of a sharded model that update their rows; leave all other kernels.

    Args:
        model: ``DistributedModelParallel``, not run yet.
    """
    for kernel in kernels_of(model):
        tables = kernel.emb_module if isinstance(kernel, BaseBatchedEmbedding) else None
        if isinstance(tables, SplitTableBatchedEmbeddingBagsCodegen) and tables.use_cpu:
            tables.pooling_mode, tables.is_nobag = PoolingMode.SUM, False
            single_ids = SingleIds(tables.feature_table_map, tables.dims)
            kernel.register_forward_pre_hook(single_ids.put_into_bags)
            kernel.register_forward_hook(single_ids.take_out)


class SingleIds:
    """SingleIds: bags of single ids around a kernel, which wants the same number of bags of each of its features.

    A table's ids, of all its features, lie one behind another. They are shared out evenly over its features, so that
    few bags are empty::

        ids of 2 features of a table:  [7] [3, 9, 5, 4]     ->     bags of the first: 7 3 9    of the second: 5 4 -

    Shapes: N ids, T tables, F features, B bags of a feature, D width of a vector.
    """

    def __init__(self, table_of_feature: list[int], widths: list[int]) -> None:
        """Take the table of each of the kernel's features, in their order, and the tables' widths, which are equal."""
        self.width = widths[0]
        self.features_T = torch.bincount(torch.tensor(table_of_feature), minlength=len(widths)).tolist()

    def put_into_bags(self, _kernel: nn.Module, inputs: tuple[KeyedJaggedTensor]) -> tuple[KeyedJaggedTensor]:
        """Give the kernel the same ids in other bags."""
        ids = inputs[0]
        self.num_ids_T = self._ids_of_tables(ids.length_per_key())
        num_bags = max(1, *(-(-n // f) for n, f in zip(self.num_ids_T, self.features_T, strict=True)))
        first, offsets = 0, []
        for num_ids, num_features in zip(self.num_ids_T, self.features_T, strict=True):
            offsets.append(torch.arange(first, first + num_features * num_bags).clamp_(max=first + num_ids))
            first += num_ids
        offsets.append(torch.tensor([first]))
        return (KeyedJaggedTensor(ids.keys(), ids.values(), offsets=torch.cat(offsets), stride=num_bags),)

    def take_out(self, _kernel: nn.Module, _inputs: object, bags: Tensor) -> Tensor:
        """Lay the vectors of a kernel's output (B, F * D) in the order of the ids, (N, D)."""
        tables = bags.unflatten(1, (-1, self.width)).split(self.features_T, dim=1)
        vectors = [of.transpose(0, 1).flatten(0, 1)[:n] for of, n in zip(tables, self.num_ids_T, strict=True)]
        return torch.cat(vectors) if len(vectors) > 1 else vectors[0]

    def _ids_of_tables(self, lengths_F: list[int]) -> list[int]:
        lengths = iter(lengths_F)
        return [sum(next(lengths) for _ in range(features)) for features in self.features_T]
