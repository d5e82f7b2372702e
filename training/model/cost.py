"""Cost of a model: products and numbers of its dense network, wherever its tables are."""

from dataclasses import dataclass

from torch import nn

from training.model.ctr_model import CTRModel
from training.model.normalization import GlobalBatchNorm

FLOAT = 4
"""Bytes of a number of a vector."""


@dataclass(frozen=True)
class Net:
    """Net: work of the dense network for a row and a step, independent of sharding.

    Attributes:
        flops: products and sums of a row, forward and backward. A matrix multiplies each row once, and twice on the way
            back; where it multiplies each field (AutoInt) that is too few.
        field_numbers, hidden_numbers: numbers of the fields' vectors, and of the hidden layers, for a row.
        parameters: number of replicated parameters.
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
        dense = {n: p for n, p in model.named_parameters() if not n.startswith("embedding.")}
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        return cls(
            flops=6.0 * sum(p.numel() for p in dense.values() if p.ndim == 2),
            field_numbers=model.embedding.num_fields * sum(model.embedding.widths.values()),
            hidden_numbers=sum(m.out_features for m in linears),
            parameters=sum(p.numel() for p in dense.values()),
            num_norms=sum(isinstance(m, GlobalBatchNorm) for m in model.modules()),
        )
