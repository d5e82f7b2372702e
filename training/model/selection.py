"""SSEM, sample selection embedding module: selects the embeddings that each of the two encoders reads.

All variants are soft: every row goes through both encoders (TF4CTR, arXiv 2405.03167).

Shapes: B rows, F fields, D width of a field, K = F * D, E experts.
"""

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.config import GateSelection, MoESelection, StreamGatesSelection
from training.model.embedding import Streams
from training.model.field_axes import FieldAxes
from training.model.hidden_layers import hidden_layers
from training.plugins import SELECTION_KINDS

NUM_EXPERTS = 2


class Selection(FieldAxes):
    """Selection: base class; built from (config, number of fields F, width of a shared field D)."""

    gate_series: tuple[str, ...] = ()
    """Names of the equal parts of each gate's row; empty: the fields."""
    gate_top = 1
    """Largest value of a gate."""

    def __init__(self, config: Any, num_fields: int, dim: int) -> None:
        super().__init__()

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Select (easy_BFD, hard_BFD); the two widths may differ."""
        raise NotImplementedError

    def gates(self, streams: Streams) -> dict[str, Tensor]:
        """Compute each gate's values, (B, width of the gate); empty where nothing is selected row by row."""
        return {}


class Separate(Selection):
    """ "SER": each encoder has tables of its own; nothing is chosen row by row."""

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Select (easy_BFD, hard_BFD)."""
        return streams["easy"], streams["hard"]


class Shared(Selection):
    """No selection: both encoders see the same vectors."""

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Select (easy_BFD, hard_BFD)."""
        return streams["shared"], streams["shared"]


class Gate(Selection):
    """ "GM": easy = g x, hard = (1 - g) x, with one gate g = sigmoid(MLP(x)) in (0, 1) a row."""

    gate_series = ("share of the easy stream",)

    def __init__(self, config: GateSelection, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.gate = _gate(num_fields * dim, 1, config)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Select (easy_BFD, hard_BFD)."""
        x_BFD = streams["shared"]
        g_B11 = self.gates(streams)["selection"].unsqueeze(2)
        return g_B11 * x_BFD, (1 - g_B11) * x_BFD

    def gates(self, streams: Streams) -> dict[str, Tensor]:
        """Compute the easy stream's share (B, 1)."""
        return {"selection": torch.sigmoid(self.gate(streams["shared"].flatten(1)))}


class MixtureOfExperts(Selection):
    """ "MoE": each stream is its own softmax mixture of two experts of x (MMoE with two tasks)."""

    gate_series = tuple(f"expert {i + 1}" for i in range(NUM_EXPERTS))

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
        """Select (easy_BFD, hard_BFD)."""
        x_BFD = streams["shared"]
        x_BK = x_BFD.flatten(1)
        experts_BEK = torch.stack([expert(x_BK) for expert in self.experts], dim=1)
        shares = self._shares(x_BK)
        easy_BK, hard_BK = ((share_BE.unsqueeze(2) * experts_BEK).sum(dim=1) for share_BE in shares)
        return easy_BK.view_as(x_BFD), hard_BK.view_as(x_BFD)

    def gates(self, streams: Streams) -> dict[str, Tensor]:
        """Compute each stream's shares of the experts (B, E)."""
        easy_BE, hard_BE = self._shares(streams["shared"].flatten(1))
        return {"selection, easy stream": easy_BE, "selection, hard stream": hard_BE}

    def _shares(self, x_BK: Tensor) -> tuple[Tensor, Tensor]:
        return self.easy_gate(x_BK).softmax(dim=1), self.hard_gate(x_BK).softmax(dim=1)


class StreamGates(Selection):
    """FinalMLP's: each stream sees x times its own gate 2 sigmoid(MLP(context)), coordinate by coordinate.

    Without context fields the context is a learnt vector, the same for all rows (arXiv 2304.00902).
    """

    gate_top = 2

    def __init__(self, config: StreamGatesSelection, num_fields: int, dim: int) -> None:
        super().__init__(config, num_fields, dim)
        self.easy_gate = ContextGate(len(config.easy_context), config, num_fields, dim)
        self.hard_gate = ContextGate(len(config.hard_context), config, num_fields, dim)

    def forward(self, streams: Streams) -> tuple[Tensor, Tensor]:
        """Select (easy_BFD, hard_BFD)."""
        x_BFD = streams["shared"]
        easy_BK, hard_BK = self.gates(streams).values()
        return x_BFD * easy_BK.view_as(x_BFD), x_BFD * hard_BK.view_as(x_BFD)

    def gates(self, streams: Streams) -> dict[str, Tensor]:
        """Compute each stream's factors (B, K), field by field."""
        return {
            "selection, easy stream": self.easy_gate(streams["context_easy"]),
            "selection, hard stream": self.hard_gate(streams["context_hard"]),
        }


class ContextGate(nn.Module):
    """ContextGate: context vectors of C fields -> K factors in (0, 2) a row; C = 0: equal for all rows."""

    def __init__(self, num_context: int, config: StreamGatesSelection, num_fields: int, dim: int) -> None:
        super().__init__()
        self.vector = None if num_context else nn.Parameter(torch.zeros(1, dim))
        widths = [max(1, num_context) * dim, *config.hidden_units]
        self.layers = nn.Sequential(
            *hidden_layers(widths, dropout=0.0, batch_norm=False), nn.Linear(widths[-1], num_fields * dim)
        )

    def forward(self, context_BCD: Tensor) -> Tensor:
        """Compute the factors: (B, C, D) -> (B, K)."""
        context_BK = context_BCD.flatten(1) if self.vector is None else self.vector.expand(len(context_BCD), -1)
        return 2 * torch.sigmoid(self.layers(context_BK))


def _gate(k: int, num_outputs: int, config: GateSelection | MoESelection) -> nn.Sequential:
    hidden = max(1, k // 4)
    return nn.Sequential(*hidden_layers([k, hidden], config.dropout, config.batch_norm), nn.Linear(hidden, num_outputs))


SELECTIONS: Mapping[str, type[Selection]] = ChainMap(
    {
        "separate": Separate,
        "gate": Gate,
        "moe": MixtureOfExperts,
        "stream_gates": StreamGates,
        "shared": Shared,
    },
    SELECTION_KINDS.classes,
)
