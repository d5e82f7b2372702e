"""Encoders: the fields' vectors of one stream -> one vector a row, never a logit; the fusion makes logits.

An encoder says what it reads, so that only those tables are made, and how wide its output is.

Shapes: B rows, F fields, D width of a field, K = F * D, H width of the output.
"""

from collections import ChainMap
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet

from training.config import (
    AutoIntEncoder,
    CINEncoder,
    CrossNetEncoder,
    FGCNNEncoder,
    FMEncoder,
    GatedCrossNetEncoder,
    LinearEncoder,
    MLPEncoder,
    NoEncoder,
    QNNEncoder,
)
from training.model.embedding import ModelError
from training.model.field_axes import FieldAxes
from training.model.hidden_layers import hidden_layers
from training.model.normalization import GlobalBatchNorm, before_norm
from training.plugins import ENCODER_KINDS


class Reads(NamedTuple):
    """Reads: the inputs of an encoder from its stream."""

    views: int = 1
    """Vectors of width D that each field brings: 0, 1, or 2 (the second one from tables of its own)."""
    first_order: bool = False
    """Whether it needs the fields' first-order weights (tables of width 1)."""


class Encoder(FieldAxes):
    """Encoder: base class; built from (config, number of fields F, width of a field's vector D).

    Attributes:
        output_dim: width H of the output.
    """

    def __init__(self, config: Any, num_fields: int, dim: int) -> None:
        super().__init__()
        self.output_dim = 0

    @classmethod
    def reads(cls, config: Any) -> Reads:
        """Return the inputs that an encoder of this config reads."""
        return Reads()

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H). What the encoder does not read may have no columns; two views lie side by side in x."""
        raise NotImplementedError


class MLP(Encoder):
    """h = the last hidden layer's activation after dropout."""

    def __init__(self, config: MLPEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.layers = hidden_layers([num_fields * dim, *config.hidden_units], config.dropout, config.batch_norm)
        self.output_dim = config.hidden_units[-1]

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
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
        """Encode to (B, H)."""
        return self.layers(x_BFD.flatten(1))


class FactorizationMachine(Encoder):
    """h = sum_f w_f + b + sum_{f < g} <x_f, x_g>, one number a row."""

    def __init__(self, config: FMEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        if num_fields < 2:
            raise ModelError("an fm encoder needs at least two features to pair; the schema has one: use linear or mlp")
        self.bias = nn.Parameter(torch.zeros(1))
        self.output_dim = 1

    @classmethod
    def reads(cls, config: FMEncoder) -> Reads:
        """Return the inputs that the encoder reads."""
        return Reads(first_order=True)

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        return first_order_BF1.sum(dim=1) + self.bias + pairwise_products(x_BFD)


def pairwise_products(x_BFD: Tensor) -> Tensor:
    """Sum the dot products of all pairs of fields: 1/2 sum_d [(sum_f x)^2 - sum_f x^2], (B, 1)."""
    return 0.5 * (x_BFD.sum(dim=1).square() - x_BFD.square().sum(dim=1)).sum(dim=1, keepdim=True)


class LinearModel(Encoder):
    """h = sum_f w_f, one number a row, without a bias (the wide part of Wide & Deep, arXiv 1606.07792)."""

    def __init__(self, config: LinearEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.output_dim = 1

    @classmethod
    def reads(cls, config: LinearEncoder) -> Reads:
        """Return the inputs that the encoder reads."""
        return Reads(views=0, first_order=True)

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        return first_order_BF1.sum(dim=1)


class GatedCrossNetwork(Encoder):
    """x_{l+1} = x_0 * (W_l x_l + b_l) * sigmoid(G_l x_l) + x_l: GDCN's gated cross network (arXiv 2311.04635).

    Biases start at 0.
    """

    def __init__(self, config: GatedCrossNetEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.output_dim = k = num_fields * dim
        self.crosses = nn.ModuleList(nn.Linear(k, k) for _ in range(config.num_layers))
        self.gates = nn.ModuleList(nn.Linear(k, k, bias=False) for _ in range(config.num_layers))

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        x_0 = x = x_BFD.flatten(1)
        for cross, gate in zip(self.crosses, self.gates, strict=True):
            x = x_0 * cross(x) * torch.sigmoid(gate(x)) + x
        return x


class QuadraticNetwork(Encoder):
    """x' = PReLU(BN(x * sum_r (W_r x + b_r))) + x, layer on layer: QIN's quadratic network (arXiv 2504.17699).

    Dropout is of each map's result and of PReLU's. Without it a layer's maps are one, (sum_r W_r) x + sum_r b_r, and
    are applied as that.
    """

    def __init__(self, config: QNNEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.output_dim = k = num_fields * dim
        layers = range(config.num_layers)
        self.maps = nn.ModuleList(nn.Linear(k, config.num_maps * k) for _ in layers)
        self.norms = nn.ModuleList(GlobalBatchNorm(k) if config.batch_norm else nn.Identity() for _ in layers)
        self.activations = nn.ModuleList(nn.PReLU() for _ in layers)
        self.num_maps, self.dropout = config.num_maps, config.dropout

    def axis_labels(self, parameter: str, axis: int, size: int, fields: Sequence[Hashable]) -> list[Hashable]:
        """Label the results of all maps: (map, field, place in it)."""
        if not parameter.startswith("maps.") or axis:
            return super().axis_labels(parameter, axis, size, fields)
        width = size // (self.num_maps * len(fields))
        return [(r, field, place) for r in range(self.num_maps) for field in fields for place in range(width)]

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        x_BK = x_BFD.flatten(1)
        for maps, norm, activation in zip(self.maps, self.norms, self.activations, strict=True):
            squares_BK = activation(norm(x_BK * self._add_maps(maps, x_BK)))
            x_BK = F.dropout(squares_BK, self.dropout, self.training) + x_BK
        return x_BK

    def _add_maps(self, maps: nn.Module, x_BK: Tensor) -> Tensor:
        by_map = (-1, self.output_dim)
        if self.training and self.dropout:
            return F.dropout(maps(x_BK), self.dropout).unflatten(1, by_map).sum(1)
        weight, bias = (parameter.unflatten(0, by_map).sum(0) for parameter in maps.parameters())
        return F.linear(x_BK, weight, bias)


class CompressedInteraction(Encoder):
    """xDeepFM's CIN (arXiv 1803.05170).

    x^i_h = sum over (g, f) of w^i_{hgf} (x^{i-1}_g * x^0_f) + b^i_h; every map is summed over its D coordinates, and
    the sums of all layers stand side by side, with the sum of the first-order weights if ``first_order``.
    """

    def __init__(self, config: CINEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.layers = nn.ModuleList(
            nn.Linear(previous * num_fields, units) for previous, units in pairwise([num_fields, *config.layer_units])
        )
        self.adds_first_order = config.first_order
        self.output_dim = sum(config.layer_units) + config.first_order

    @classmethod
    def reads(cls, config: CINEncoder) -> Reads:
        """Return the inputs that the encoder reads."""
        return Reads(first_order=config.first_order)

    def axis_labels(self, parameter: str, axis: int, size: int, fields: Sequence[Hashable]) -> list[Hashable]:
        """Label products of a map with a field: (map, or in the first layer its field; field)."""
        maps = fields if parameter == "layers.0.weight" else range(size // len(fields))
        return [(one, other) for one in maps for other in fields]

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        x_BDF = maps_BDG = x_BFD.transpose(1, 2)
        sums = [first_order_BF1.sum(dim=1)] if self.adds_first_order else []
        for layer in self.layers:
            maps_BDG = layer((maps_BDG.unsqueeze(3) * x_BDF.unsqueeze(2)).flatten(2))
            sums.append(maps_BDG.sum(dim=1))
        return torch.cat(sums, dim=1)


class AutoInt(Encoder):
    """Self-attention over the fields, layer on layer; h is what all fields hold at the end (arXiv 1810.11921)."""

    def __init__(self, config: AutoIntEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        widths = [dim, *[config.attention_dim] * config.num_layers]
        self.layers = nn.ModuleList(FieldAttention(i, o, config) for i, o in pairwise(widths))
        self.output_dim = num_fields * widths[-1]

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        for layer in self.layers:
            x_BFD = layer(x_BFD)
        return x_BFD.flatten(1)


class FieldAttention(nn.Module):
    """e_f -> ReLU(the heads' attention-weighted values + residual of e_f).

    Linear maps without biases; the residual is projected where the widths differ (or always, as the paper writes it).
    """

    def __init__(self, input_dim: int, output_dim: int, config: AutoIntEncoder) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.scale = (output_dim // config.num_heads) ** -0.5 if config.scale else 1.0
        self.query, self.key, self.value = (nn.Linear(input_dim, output_dim, bias=False) for _ in range(3))
        projects = config.always_project_residual or input_dim != output_dim
        self.residual = nn.Linear(input_dim, output_dim, bias=False) if projects else nn.Identity()
        self.norm = nn.LayerNorm(output_dim) if config.layer_norm else nn.Identity()
        self.dropout = config.dropout

    def forward(self, x_BFD: Tensor) -> Tensor:
        """Attend over the fields: (B, F, input_dim) -> (B, F, output_dim)."""
        maps = (self.query, self.key, self.value)
        q, k, v = (m(x_BFD).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for m in maps)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return F.relu(self.norm(attended.transpose(1, 2).flatten(2) + self.residual(x_BFD)))


class FGCNN(Encoder):
    """Fields that a convolution over the fields generates join the raw ones; all pairs and an MLP read them.

    Convolution, batch norm, tanh and max pooling run along the fields only, then a linear layer makes new fields of
    what is left (arXiv 1904.04447). The generator reads the second view, the classifier the first.
    """

    pairs: Tensor
    """Indices of the products of two different fields in the flattened (N, N) matrix of all products."""

    def __init__(self, config: FGCNNEncoder, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.dim = dim
        self.convolutions, self.norms, self.recombinations = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        # The last window may be short: ceil_mode pools (1, 2)(3, 4)(5).
        self.pool = nn.MaxPool2d((config.pool_height, 1), ceil_mode=True)
        height = total = num_fields
        for previous, channels in pairwise([1, *config.channels]):
            convolution = nn.Conv2d(previous, channels, (config.kernel_height, 1), padding="same")
            self.convolutions.append(before_norm(convolution))
            self.norms.append(GlobalBatchNorm(channels))
            height = -(-height // config.pool_height)
            generated = height * config.new_channels
            self.recombinations.append(nn.Linear(height * dim * channels, generated * dim))
            total += generated
        self.num_fields = total
        pairs = torch.triu_indices(total, total, offset=1)
        self.register_buffer("pairs", pairs[0] * total + pairs[1], persistent=False)
        widths = [total * dim + pairs.shape[1], *config.hidden_units]
        self.layers = hidden_layers(widths, config.dropout, config.batch_norm)
        self.output_dim = widths[-1]

    @classmethod
    def reads(cls, config: FGCNNEncoder) -> Reads:
        """Return the inputs that the encoder reads."""
        return Reads(views=1 if config.share_embedding else 2)

    def axis_labels(self, parameter: str, axis: int, size: int, fields: Sequence[Hashable]) -> list[Hashable]:
        """Take nothing over: what is generated depends on which fields are neighbours."""
        return []

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        raw_BFD = x_BFD[..., : self.dim]
        fields_BND = torch.cat([raw_BFD, *self.generate(x_BFD[..., -self.dim :])], dim=1)
        products_BP = (fields_BND @ fields_BND.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.layers(torch.cat([fields_BND.flatten(1), products_BP], dim=1))

    def generate(self, x_BFD: Tensor) -> list[Tensor]:
        """Generate new fields, (B, number of new fields, D) for each convolution."""
        generated = []
        image_BCHD = x_BFD.unsqueeze(1)
        for convolution, norm, recombination in zip(self.convolutions, self.norms, self.recombinations, strict=True):
            image_BHDC = convolution(image_BCHD).permute(0, 2, 3, 1)
            image_BHDC = norm(image_BHDC.flatten(0, 2)).view_as(image_BHDC)
            image_BCHD = self.pool(torch.tanh(image_BHDC).permute(0, 3, 1, 2))
            generated.append(torch.tanh(recombination(image_BCHD.flatten(1))).unflatten(1, (-1, self.dim)))
        return generated


class Nothing(Encoder):
    """Nothing: an encoder without output; the other stream is the whole model."""

    @classmethod
    def reads(cls, config: NoEncoder) -> Reads:
        """Return the inputs that the encoder reads."""
        return Reads(views=0)

    def forward(self, x_BFD: Tensor, first_order_BF1: Tensor) -> Tensor:
        """Encode to (B, H)."""
        return x_BFD.new_zeros(len(x_BFD), 0)


ENCODERS: Mapping[str, type[Encoder]] = ChainMap(
    {
        "mlp": MLP,
        "cross_net": CrossNetwork,
        "gated_cross_net": GatedCrossNetwork,
        "qnn": QuadraticNetwork,
        "cin": CompressedInteraction,
        "autoint": AutoInt,
        "fgcnn": FGCNN,
        "fm": FactorizationMachine,
        "linear": LinearModel,
        "none": Nothing,
    },
    ENCODER_KINDS.classes,
)
