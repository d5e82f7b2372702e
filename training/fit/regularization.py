"""EmbeddingL2: L2 regularisation of table rows as a term of the loss, on the vectors that a batch looked up.

FBGEMM updates tables inside its backward and ignores weight decay on CPU, so what is to move a row must be in the loss.
"""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from training.data.batch import Batch
from training.model.embedding import EventStreams, FieldEmbedding, ModelError, Streams
from training.model.jagged import rows_of
from training.sharding.parallelize import gather


class EmbeddingL2:
    """Loss term (strength / 2) * sum over tables and over the distinct ids j of the global batch of |w_j|^2 / n_j.

    n_j is how often id j occurs in the training split: mini-batch aware regularisation (DIN, arXiv 1706.06978, 5.1). A
    row that no rank looked up has no gradient, one that was gets strength * w_j / n_j, however often it was.

    Of a multi-valued feature only pooled vectors are there: each bag counts as if every row in it were the bag's mean,
    |mean|^2 * (sum over its ids of 1 / (n_j c_j)), with c_j the occurrences of id j in the global batch. That is exact
    for bags of one id or of equal rows; otherwise it decays what the rows of a bag have in common. Events of a sequence
    are not pooled, so the term is exact for them.

    Dense features' vectors are no rows of a table and are left out. Costs a pass over ``batches`` at the start, 8 bytes
    a row of every feature's table (its tables share them), and an all-gather of the ids at each step.
    """

    def __init__(self, embedding: FieldEmbedding, batches: Iterable[Batch], strength: float) -> None:
        """Count the ids, and watch what ``embedding`` looks up from now on.

        Args:
            embedding: the module inside the model that is trained, sharded or not.
            batches: this rank's share of the training split, once, on the device of the ids to come.
            strength: lambda.
        """
        if embedding.projections:
            raise ModelError(
                "training.optimizer.embedding_l2: the fused lane sees projected vectors only, not the rows of "
                f"{', '.join(embedding.projections)}: leave out features' embedding_dim, set embedding_l2 to 0, or "
                'take training.optimizer.kind = "dense"'
            )
        self._strength = strength
        self._features = embedding.features
        sizes = {table.shared_name: table.num_embeddings for table in embedding.tables}
        starts = dict(zip(sizes, accumulate([0, *sizes.values()]), strict=False))
        self._starts = {name: starts[table.shared_name] for table in embedding.tables for name in table.keys}
        self._num_rows = sum(sizes.values())
        self._mean_pooled = embedding.mean_pooled
        self._inverse_counts = 1 / self._count(batches, self._num_rows + 1).float()
        self._in_batch = torch.zeros_like(self._inverse_counts, dtype=torch.int32)
        self._streams: Streams = {}
        self._histories: EventStreams = {}
        self._keys = embedding.sequence_keys
        embedding.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, vectors: tuple[Streams, EventStreams]) -> None:
        if torch.is_grad_enabled():
            self._streams, self._histories = vectors

    def _count(self, batches: Iterable[Batch], num_rows: int) -> Tensor:
        """Count n of every feature's ids, laid end to end, over all ranks."""
        counts = torch.zeros(num_rows, dtype=torch.int64)
        for batch in batches:
            rows = self._rows(batch)
            counts = counts.to(rows.device)
            counts.index_add_(0, rows, torch.ones_like(rows))
        torch.distributed.all_reduce(counts)
        return counts

    def _rows(self, batch: Batch) -> Tensor:
        """Return (V,) the place of each id of the batch when the features' ids are laid end to end.

        Ids of a key without a table, as of gaps that no encoder reads, have the place behind the last.
        """
        ids = batch.sparse_features
        starts = torch.tensor([self._starts.get(feature, self._num_rows) for feature in ids.keys()])  # noqa: SIM118
        starts = starts.repeat_interleave(torch.tensor(ids.length_per_key())).to(ids.device())
        return torch.where(starts < self._num_rows, ids.values() + starts, self._num_rows)

    def loss(self, batch: Batch) -> Tensor:
        """Compute this rank's share of the term from the vectors of the last forward, which must be of ``batch``.

        The shares of all ranks add up to the term, as those of the data loss do.
        """
        values = self._values(batch)
        coefficients_FB = self._coefficients(batch, values)
        fields = {feature: f for f, feature in enumerate(batch.sparse_features.keys())}
        total = coefficients_FB.new_zeros(())
        for stream, features in self._features.items():
            squares_BF = self._streams[stream][:, : len(features)].square().sum(dim=2)
            total = total + (squares_BF * coefficients_FB[[fields[name] for name in features]].T).sum()
        of_key = dict(zip(fields, values.split(batch.sparse_features.length_per_key()), strict=True))
        for of_stream in self._histories.values():
            for sequence, vectors in of_stream.items():
                keys = self._keys[sequence]
                squares_Nk = vectors.events_NE.unflatten(1, (len(keys), -1)).square().sum(dim=2)
                total = total + (squares_Nk * torch.stack([of_key[key] for key in keys], dim=1)).sum()
        self._streams, self._histories = {}, {}
        return self._strength / 2 * total

    def _values(self, batch: Batch) -> Tensor:
        """Compute (V,), the factor of each looked-up row's square.

        Every occurrence of id j has 1 / (n_j c_j), so that its c_j occurrences, on whatever ranks, make 1 / n_j.
        """
        rows = self._rows(batch)
        everyone = gather(rows)
        self._in_batch.index_add_(0, everyone, torch.ones_like(everyone, dtype=torch.int32))
        values = self._inverse_counts[rows] / self._in_batch[rows]
        self._in_batch[everyone] = 0
        return values

    def _coefficients(self, batch: Batch, values: Tensor) -> Tensor:
        """Compute (F, num_rows), the factor of each pooled vector's square, from those of the rows."""
        ids, lengths = batch.sparse_features, batch.sparse_features.lengths()
        sums_FB = (
            values.new_zeros(len(lengths))
            .index_add_(0, rows_of(lengths, len(values)), values)
            .view(-1, batch.batch_size)
        )
        is_sum = torch.tensor([name not in self._mean_pooled for name in ids.keys()], device=values.device)  # noqa: SIM118
        sizes_FB = lengths.view_as(sums_FB).clamp(min=1)
        return torch.where(is_sum[:, None], sums_FB / sizes_FB**2, sums_FB)[:, : batch.num_rows]
