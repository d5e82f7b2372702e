"""Pauses: the steps of an epoch at which training stops for an evaluation, planned or by the clock.

Batches end at a pause, so that a pipeline drains before the model is evaluated, and every rank pauses at the same step.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from training.config import EvaluationConfig
from training.data.batch import Batch


def next_evaluation(config: EvaluationConfig, step: int, step_in_epoch: int, epoch_steps: int) -> int:
    """Find the next step of an epoch with an evaluation that no clock decides.

    Args:
        config: how often there is one.
        step: optimizer steps done since the run's start.
        step_in_epoch: those of the epoch, fewer than ``epoch_steps``.
        epoch_steps: steps of an epoch.

    Returns:
        Steps of the epoch that are then done: more than ``step_in_epoch``, at most ``epoch_steps``.
    """
    part = step_in_epoch * config.per_epoch // epoch_steps + 1
    found = -(-part * epoch_steps // config.per_epoch)
    if config.every_steps is not None:
        found = min(found, step_in_epoch + config.every_steps - step % config.every_steps)
    return min(found, epoch_steps)


class PausedBatches:
    """An epoch's batches up to the next pause; iterating again goes on behind it."""

    def __init__(self, batches: Iterator[Batch], first: int) -> None:
        """Take the batches from step ``first`` of the epoch on; they pause there."""
        self._batches, self._taken = batches, first
        self.pause = first
        """Steps of the epoch that are done when the batches end."""

    def __iter__(self) -> Iterator[Batch]:
        """Return itself."""
        return self

    def __next__(self) -> Batch:
        """Take the next batch.

        Raises:
            StopIteration: it lies behind the pause.
        """
        if self._taken >= self.pause:
            raise StopIteration
        batch = next(self._batches)
        self._taken += 1
        return batch


def from_first_rank(seconds: list[float], device: torch.device) -> list[float]:
    """Return the first rank's seconds on every rank, so that all decide alike by its clock."""
    if dist.get_world_size() == 1:
        return seconds
    values = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.broadcast(values, 0)
    return values.tolist()
