"""Objectives: logits and labels -> this rank's share of the loss.

Everything is computed from logits: going through probabilities would lose the gradient of a badly wrong row.

Shapes: B rows.
"""

import math
import warnings
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import BCEObjective, TwinFocusObjective
from training.model.fusion import TwinLogits
from training.plugins import OBJECTIVE_KINDS


class Objective(Protocol):
    """Objective: (logits, labels_B, weights_B, total_weight) -> sum of weight * loss over the rows / total_weight.

    ``total_weight`` is the weight of the whole batch, so the results of the ranks add up to the batch's mean loss.
    """

    def __call__(self, logits: TwinLogits, labels_B: Tensor, weights_B: Tensor, total_weight: Tensor | float) -> Tensor:
        """Compute this rank's share of the loss, a scalar."""
        ...


class BCE:
    """Binary cross entropy of the fused logit."""

    def __init__(self, config: BCEObjective) -> None:
        self.config = config

    def __call__(self, logits: TwinLogits, labels_B: Tensor, weights_B: Tensor, total_weight: Tensor | float) -> Tensor:
        """Compute this rank's share of the loss, a scalar."""
        logits = _full_precision(logits)
        labels_B = labels_B.to(logits.fused.dtype)
        return weighted_mean(_bce(logits.fused, labels_B), weights_B, total_weight)


class TwinFocus:
    """BCE(fused) + alpha * L_easy + (1 - alpha) * L_hard: the twin focus loss (TF4CTR, arXiv 2405.03167).

    Warns:
        UserWarning: c and gamma let the easy branch gain by lowering the probability of the right class.
    """

    def __init__(self, config: TwinFocusObjective) -> None:
        self.config = config
        least = least_monotone_c(config.gamma)
        if config.c < least:
            warnings.warn(
                f"twin_focus: with gamma = {config.gamma:g} and c = {config.c:g} the easy branch learns to be wrong on "
                f"part of the rows; take c of {least:.4f} or more, or a smaller gamma",
                stacklevel=2,
            )

    def __call__(self, logits: TwinLogits, labels_B: Tensor, weights_B: Tensor, total_weight: Tensor | float) -> Tensor:
        """Compute this rank's share of the loss, a scalar."""
        config, logits = self.config, _full_precision(logits)
        labels_B = labels_B.to(logits.fused.dtype)
        easy_B, hard_B = twin_focus_losses(
            logits.easy, logits.hard, labels_B, config.c, config.gamma, config.detach_focus
        )
        loss_B = _bce(logits.fused, labels_B) + config.alpha * easy_B + (1 - config.alpha) * hard_B
        return weighted_mean(loss_B, weights_B, total_weight)


def twin_focus_losses(
    easy_B: Tensor, hard_B: Tensor, labels_B: Tensor, c: float, gamma: float, detach_focus: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the losses of the branches, row by row.

    With p the probability that a branch gives the row's own class::

        L_easy = (c + p)^gamma * -ln p          rows that go well count more
        L_hard = (2 - c - p)^gamma * -ln p      rows that go badly count more

    Args:
        easy_B: logits of the easy branch.
        hard_B: logits of the hard branch.
        labels_B: 0 or 1.
        c: number in [0, 1].
        gamma: 0 or more.
        detach_focus: no gradient through the factors before -ln p.
    """
    sign_B = 2 * labels_B - 1
    easy_B, hard_B = sign_B * easy_B, sign_B * hard_B
    easy_focus_B = c + torch.sigmoid(easy_B)
    hard_focus_B = (1 - c) + torch.sigmoid(-hard_B)  # 2 - c - p without cancellation
    if detach_focus:
        easy_focus_B, hard_focus_B = easy_focus_B.detach(), hard_focus_B.detach()
    return _power(easy_focus_B, gamma) * F.softplus(-easy_B), _power(hard_focus_B, gamma) * F.softplus(-hard_B)


def least_monotone_c(gamma: float) -> float:
    """Compute the least c for which L_easy falls wherever p rises: gamma * exp(-(1 + 1 / gamma))."""
    return gamma * math.exp(-(1 + 1 / gamma)) if gamma > 0 else 0.0


def _power(base: Tensor, gamma: float) -> Tensor:
    """base^gamma for base >= 0, with a finite gradient at 0."""
    if float(gamma).is_integer():
        power = torch.ones_like(base)
        for _ in range(int(gamma)):
            power = power * base
        return power
    # A base of 0 has an infinite slope for gamma < 1; just above it, the chain rule's other factor, 0, wins.
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** gamma


def _bce(logits_B: Tensor, labels_B: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")


def _full_precision(logits: TwinLogits) -> TwinLogits:
    """Convert to at least float32, the dtype of the network's output under autocast notwithstanding."""
    return TwinLogits(*(z.to(torch.promote_types(z.dtype, torch.float32)) for z in logits))


def weighted_mean(loss_B: Tensor, weights_B: Tensor, total_weight: Tensor | float) -> Tensor:
    """sum(weight * loss) / total; 0 when nothing in the batch has weight."""
    total = torch.as_tensor(total_weight, dtype=loss_B.dtype, device=loss_B.device)
    return (weights_B * loss_B).sum() / total.clamp(min=torch.finfo(loss_B.dtype).tiny)


OBJECTIVES: Mapping[str, Callable[[Any], Objective]] = ChainMap(
    {"twin_focus": TwinFocus, "bce": BCE}, OBJECTIVE_KINDS.classes
)
