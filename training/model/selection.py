"""SSEM, sample selection embedding module: what each of the two encoders gets to see of a row.

All variants are soft: every row goes through both encoders (TF4CTR, arXiv 2405.03167).

Shapes: B rows, F fields, D width of a field, K = F * D, E experts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from training.config import GateSelection, MoESelection
from training.model.embedding import Streams
from training.model.encoders import hidden_layers

NUM_EXPERTS = 2


class Selection(nn.Module):
    """What selections have in common; built from (config, number of fields F, width of a shared field D)."""

    def __init__(self, config: Any, num_fields: int, dim: int) -> None:
        super().__init__()

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Streams -> (easy_BFD, hard_BFD); the two widths may differ."""
        raise NotImplementedError


class Separate(Selection):
    """ "SER": each encoder has tables of its own; nothing is chosen row by row."""

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        return streams["easy"], streams["hard"]


class Shared(Selection):
    """No selection: both encoders see the same vectors."""

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        return streams["shared"], streams["shared"]


class Gate(Selection):
    """ "GM": easy = g x, hard = (1 - g) x, with one gate g = sigmoid(MLP(x)) in (0, 1) a row."""

    def __init__(self, config: GateSelection, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.gate = _gate(num_fields * dim, 1, config)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        x_BFD = streams["shared"]
        g_B11 = torch.sigmoid(self.gate(x_BFD.flatten(1))).unsqueeze(2)
        return g_B11 * x_BFD, (1 - g_B11) * x_BFD


class MixtureOfExperts(Selection):
    """ "MoE": each stream is its own softmax mixture of two experts of x (MMoE with two tasks)."""

    def __init__(self, config: MoESelection, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        k = num_fields * dim
        widths = [k, max(1, k // 2), k]
        self.experts = nn.ModuleList(
            hidden_layers(widths, config.dropout, config.batch_norm) for _ in range(NUM_EXPERTS)
        )
        self.easy_gate = _gate(k, NUM_EXPERTS, config)
        self.hard_gate = _gate(k, NUM_EXPERTS, config)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        x_BFD = streams["shared"]
        x_BK = x_BFD.flatten(1)
        experts_BEK = torch.stack([expert(x_BK) for expert in self.experts], dim=1)
        easy_BE, hard_BE = self.easy_gate(x_BK).softmax(dim=1), self.hard_gate(x_BK).softmax(dim=1)
        easy_BK, hard_BK = ((share_BE.unsqueeze(2) * experts_BEK).sum(dim=1) for share_BE in (easy_BE, hard_BE))
        return easy_BK.view_as(x_BFD), hard_BK.view_as(x_BFD)


def _gate(k: int, num_outputs: int, config: GateSelection | MoESelection) -> nn.Sequential:
    hidden = max(1, k // 4)
    return nn.Sequential(*hidden_layers([k, hidden], config.dropout, config.batch_norm), nn.Linear(hidden, num_outputs))


SELECTIONS: dict[str, type[Selection]] = {
    "separate": Separate,
    "gate": Gate,
    "moe": MixtureOfExperts,
    "shared": Shared,
}
