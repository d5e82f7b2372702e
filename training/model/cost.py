"""Cost of a model: products and numbers of its dense network, wherever its tables are."""

from dataclasses import dataclass

from torch import nn

from training.model.ctr_model import EMBEDDING, CTRModel
from training.model.embedding import table_of
from training.model.normalization import GlobalBatchNorm

FLOAT = 4
"""Bytes of a number of a vector."""


@dataclass(frozen=True)
class Net:
    """Net: work of the dense network for a row and a step, independent of sharding.

    Attributes:
        flops: products and sums of a row, forward and backward. A matrix multiplies each row once, and twice on the way
            back; where it multiplies each field (AutoInt) that is too few. One of a history's encoder multiplies each
            event, by the mean length. A table's projection multiplies the vector of each of the table's features.
        field_numbers, hidden_numbers: numbers of the fields' vectors, before and after their projection, and of the
            hidden layers, for a row.
        parameters: number of replicated parameters: all that is no table.
        num_norms: batch norms over all ranks.
    """

    flops: float
    field_numbers: int
    hidden_numbers: int
    parameters: int
    num_norms: int

    @classmethod
    def of(cls, model: CTRModel) -> "Net":
        """Measure a model, whose tables may be on the meta device."""
        replicated = {name: p for name, p in model.named_parameters() if table_of(name) is None}
        embedding, linears = model.embedding, [m for m in model.modules() if isinstance(m, nn.Linear)]
        times = {
            id(p): model.mean_events[key.rpartition("__")[0]]
            for key, encoder in model.histories.encoders.items()
            for p in encoder.parameters()
        }
        matrices = [
            p.numel() * times.get(id(p), 1.0)
            for name, p in replicated.items()
            if p.ndim == 2 and not name.startswith(f"{EMBEDDING}.")
        ]
        projected = [t for t in embedding.tables if t.name in embedding.projections for _ in t.features]
        dense = {stream: len(vectors) for stream, vectors in embedding.dense_vectors.items()}
        numbers = [
            embedding.widths[stream] * (len(names) + dense.get(stream, 0))
            for stream, names in embedding.features.items()
        ]
        return cls(
            flops=6.0 * (sum(matrices) + sum(embedding.projections[t.name].numel() for t in projected)),
            field_numbers=sum(numbers) + sum(t.width for t in projected),
            hidden_numbers=sum(m.out_features for m in linears),
            parameters=sum(p.numel() for p in replicated.values()),
            num_norms=sum(isinstance(m, GlobalBatchNorm) for m in model.modules()),
        )
