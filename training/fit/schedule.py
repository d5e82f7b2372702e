"""Schedules: the plateau rule (which evaluation is best, when training stops), warm-up and decay of the rates."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.config import CosineDecay, ExponentialDecay, OneCycleDecay, ScheduleConfig, ScheduleSpan, StepDecay


def monitor_value(metrics: dict[str, Any], weights: Mapping[Any, float]) -> float:
    """Compute the weighted sum of validation metrics, to be maximised.

    Raises:
        ValueError: a monitored metric is undefined on this data (one class only, or no groups).
    """
    undefined = sorted(name for name in weights if metrics[name] is None)
    if undefined:
        raise ValueError(
            f"training.monitor uses {', '.join(undefined)}, undefined on this validation split: "
            "it needs both labels, and gauc needs features.group_id"
        )
    return sum(weight * metrics[name] for name, weight in weights.items())


def is_constant(config: ScheduleConfig) -> bool:
    """Tell whether the plateau rule alone changes the rates."""
    return config.warmup is None and config.decay.kind == "none"


def rate_factor(config: ScheduleConfig, step: int, epoch_steps: int, max_epochs: int) -> float:
    """Compute what every learning rate is multiplied by at a step, by warm-up and decay.

    It depends on nothing else, so that a run goes on with the same rates at any world size.

    Args:
        config: the schedule.
        step: optimizer steps done before it, since the run's start.
        epoch_steps: steps of an epoch.
        max_epochs: epochs of a training that nothing ends earlier.
    """
    warmup = 0 if config.warmup is None else _steps(config.warmup, epoch_steps)
    if step < warmup:
        return (step + 1) / warmup
    decay, step, left = config.decay, step - warmup, max(1, max_epochs * epoch_steps - warmup)
    if isinstance(decay, ExponentialDecay):
        return decay.factor ** (step / _steps(decay.every, epoch_steps))
    if isinstance(decay, StepDecay):
        return decay.factor ** (step // _steps(decay.every, epoch_steps))
    if isinstance(decay, CosineDecay):
        length = left if decay.over is None else _steps(decay.over, epoch_steps)
        return _half_cosine(1.0, decay.final_factor, step / length)
    if isinstance(decay, OneCycleDecay):
        length = left if decay.over is None else _steps(decay.over, epoch_steps)
        top, last = max(1e-9, decay.rise * length - 1), max(1, length - 1)  # as torch counts
        first = 1 / decay.start_divisor
        if step <= top:
            return _half_cosine(first, 1.0, step / top)
        return _half_cosine(1.0, first / decay.final_divisor, (step - top) / max(1e-9, last - top))
    return 1.0


def _steps(span: ScheduleSpan, epoch_steps: int) -> int:
    """Count the steps of a span, at least one."""
    return span.steps if span.steps is not None else max(1, round((span.epochs or 0) * epoch_steps))


def _half_cosine(start: float, end: float, share: float) -> float:
    """Go from ``start`` to ``end`` along half a cosine; share 1 and more is the end."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def lower(learning_rate: float, config: ScheduleConfig) -> float:
    """Lower the learning rate after a failure: never below the minimum, and never higher than it was."""
    return max(learning_rate * config.factor, min(config.min_learning_rate, learning_rate))


@dataclass
class Plateau:
    """State of the rule after some evaluations.

    Attributes:
        best: highest monitored value so far; None before the first evaluation.
        best_step: optimizer step it was reached at.
        num_failures: evaluations in a row without improvement.
    """

    best: float | None = None
    best_step: int | None = None
    num_failures: int = 0

    def update(self, value: float, step: int, config: ScheduleConfig) -> bool:
        """Take one evaluation in; returns whether it is the best so far.

        A value below ``best + min_delta`` is a failure: the caller lowers the learning rate at once.
        """
        if not self.is_better(value, config):
            self.num_failures += 1
            return False
        self.best, self.best_step, self.num_failures = value, step, 0
        return True

    def is_better(self, value: float, config: ScheduleConfig) -> bool:
        """Tell whether a monitored value is better than all that were taken in."""
        return self.best is None or not value < self.best + config.min_delta

    def is_over(self, config: ScheduleConfig) -> bool:
        """Tell whether failures in a row have reached the patience."""
        return self.num_failures >= config.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values, by attribute."""
        return asdict(self)
