"""The plateau rule: which evaluation is best, when the learning rate falls and when training stops."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.config import ScheduleConfig


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
