"""Hidden layers: Linear, BatchNorm, ReLU and Dropout, with dropout masks drawn in bulk on a CPU.

PyTorch draws masks one number at a time on a CPU, which takes as long as half of the matrix products (docs/results.md).
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.normalization import GlobalBatchNorm, before_norm

_STEPS = 1 << 16
"""A dropout rate is a multiple of 1 / _STEPS on a CPU: 16 random bits decide over an element."""


def hidden_layers(widths: list[int], dropout: float, batch_norm: bool) -> nn.Sequential:
    """Build Linear, BatchNorm, ReLU, Dropout for each pair of neighbouring widths."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        linear = nn.Linear(i, o)
        layers += [before_norm(linear), GlobalBatchNorm(o)] if batch_norm else [linear]
        layers.append(ReLUDropout(dropout))
    return nn.Sequential(*layers)


class ReLUDropout(nn.Module):
    """``nn.Dropout(rate)`` of ``nn.ReLU()``, in one pass; the kept elements are scaled so that the mean stays.

    What is dropped is a function of PyTorch's own generator, as everything random in a step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Apply ReLU and dropout to a tensor of any shape."""
        if not (self.training and self.rate):
            return F.relu(x)
        if x.device.type != "cpu":
            return F.dropout(F.relu(x), self.rate)
        return _ReLUDropout.apply(x, self.rate)

    def extra_repr(self) -> str:
        """Show the dropout rate."""
        return f"rate={self.rate}"


class _ReLUDropout(torch.autograd.Function):
    """y = keep * scale * max(x, 0). An element has a gradient exactly where y > 0, so no mask is kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        dropped = round(rate * _STEPS)
        ctx.scale = _STEPS / (_STEPS - dropped)
        seed = int(torch.randint(2**63 - 1, ()))
        bits = np.random.Generator(np.random.SFC64(seed)).integers(
            0, 2**64 - 1, -(-x.numel() // 4), dtype=np.uint64, endpoint=True
        )
        keep = torch.from_numpy(bits.view(np.uint16)[: x.numel()] >= dropped).view(x.shape)
        y = F.relu(x).mul_(keep.view(torch.int8)).mul_(ctx.scale)  # a bool mask would be cast far more slowly
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (g,) = gradients
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(g, y, 0).mul_(ctx.scale), None
