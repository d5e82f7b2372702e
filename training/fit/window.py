"""TrainingWindow: how good the model is on training rows that it has not been trained on yet.

Each row is scored by the forward pass of its own step (progressive validation), so the model is as training has it:
with dropout, and batch norm by the batch. From the second epoch on it has seen the rows before.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from training.judge.metrics import LOGIT_CLIP, auc

WINDOW_BINS = 1 << 16
"""Bins of the logits that AUC is computed from; two rows of one bin are a tie, and so are logits beyond the clip."""


class TrainingWindow:
    """Sums over the rows of some steps on this rank, on the device, and the metrics of all ranks' rows."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        """Begin an empty window of ``num_steps`` steps."""
        self.num_steps = num_steps
        self._counts = torch.zeros(2 * WINDOW_BINS, dtype=torch.float64, device=device)
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Take the rows of a step in, each (B,); nothing is fetched from the device."""
        clipped = logits.detach().float().nan_to_num().clamp(-LOGIT_CLIP, LOGIT_CLIP)
        bins = ((clipped + LOGIT_CLIP) * (WINDOW_BINS / (2 * LOGIT_CLIP))).long().clamp_(max=WINDOW_BINS - 1)
        self._counts.index_add_(0, bins + WINDOW_BINS * labels.long(), weights.double())
        losses = F.softplus(clipped) - labels * clipped
        parts = [torch.ones_like(weights), weights, weights * labels, weights * clipped.sigmoid(), weights * losses]
        self._sums += torch.stack(parts).sum(1, dtype=torch.float64)

    def take(self) -> dict[str, Any]:
        """Compute the rows and metrics of all ranks' rows, on every rank alike, and begin a new window."""
        values = torch.cat([self._sums, self._counts])
        dist.all_reduce(values)
        self._sums.zero_()
        self._counts.zero_()
        (rows, weight, positive, predicted, loss), counts = np.split(values.cpu().numpy(), [5])
        bins = np.flatnonzero(counts)
        logloss = loss / weight if weight else None
        rate = positive / weight if weight else 0.0
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if 0 < rate < 1 else None
        return {
            "rows": int(rows),
            "auc": auc(bins % WINDOW_BINS, bins // WINDOW_BINS, counts[bins]),
            "logloss": logloss,
            "ne": None if entropy is None or logloss is None else logloss / entropy,
            "calibration": predicted / positive if positive else None,
        }
