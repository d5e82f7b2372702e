"""Encoders: the fields' vectors of one stream -> one vector a row. Vectors, never logits: the fusion makes logits.

An encoder says what it reads, so that only those tables are made, and how wide its output is.

Shapes: B rows, F fields, D width of a field, K = F * D, H width of the output.
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

from training.config import CrossNetEncoder, FMEncoder, LinearEncoder, MLPEncoder
from training.model.embedding import ModelError
from training.model.normalization import GlobalBatchNorm


class Encoder(nn.Module):
    """What encoders have in common; built from (config, number of fields F, width of a field D).

    Attributes:
        reads_embeddings: whether it needs the fields' vectors.
        reads_first_order: whether it needs the fields' first-order weights (tables of width 1).
        output_dim: H.
    """

    reads_embeddings: ClassVar[bool] = True
    reads_first_order: ClassVar[bool] = False

    def __init__(self, config: Any, num_fields: int, dim: int) -> None:
        super().__init__()
        self.output_dim = 0

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H). What the encoder does not read may have no columns."""
        raise NotImplementedError


def hidden_layers(widths: list[int], dropout: float, batch_norm: bool) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Dropout for each pair of neighbouring widths."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), *([GlobalBatchNorm(o)] if batch_norm else []), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class MLP(Encoder):
    """h = the last hidden layer's activation after dropout."""

    def __init__(self, config: MLPEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.layers = hidden_layers([num_fields * dim, *config.hidden_units], config.dropout, config.batch_norm)
        self.output_dim = config.hidden_units[-1]

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        return self.layers(x_BFD.flatten(1))


class CrossNetwork(Encoder):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, DCN-V2's cross network, with W_l full or of low rank."""

    def __init__(self, config: CrossNetEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.output_dim = num_fields * dim
        if config.low_rank is None:
            self.layers = CrossNet(self.output_dim, config.num_layers)
        else:
            self.layers = LowRankCrossNet(self.output_dim, config.num_layers, config.low_rank)

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        return self.layers(x_BFD.flatten(1))


class FactorizationMachine(Encoder):
    """h = sum_f w_f + b + sum_{f < g} <x_f, x_g>, one number a row."""

    reads_first_order = True

    def __init__(self, config: FMEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        if num_fields < 2:
            raise ModelError("an fm encoder needs at least two features to pair; the schema has one: use linear or mlp")
        self.bias = nn.Parameter(torch.zeros(1))
        self.output_dim = 1

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        return first_order_BF1.sum(dim=1) + self.bias + pairwise_products(x_BFD)


def pairwise_products(x_BFD: Tensor) -> Tensor:
    """Sum over pairs of fields of their dot product: 1/2 sum_d [(sum_f x)^2 - sum_f x^2], (B, 1)."""
    return 0.5 * (x_BFD.sum(dim=1).square() - x_BFD.square().sum(dim=1)).sum(dim=1, keepdim=True)


class LinearModel(Encoder):
    """h = sum_f w_f, one number a row, without a bias (the wide part of Wide & Deep, arXiv 1606.07792)."""

    reads_embeddings = False
    reads_first_order = True

    def __init__(self, config: LinearEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.output_dim = 1

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        return first_order_BF1.sum(dim=1)


ENCODERS: dict[str, type[Encoder]] = {
    "mlp": MLP,
    "cross_net": CrossNetwork,
    "fm": FactorizationMachine,
    "linear": LinearModel,
}
