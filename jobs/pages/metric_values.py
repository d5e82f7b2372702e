"""with_metrics: values of a table's row, metrics among them written as ``METRICS`` says."""

from collections.abc import Mapping
from typing import Any

from jobs.pages.values import Written
from training.judge.metrics import METRICS


def with_metrics(values: Mapping[str, Any], *names: str) -> list[Any]:
    """List some values of a mapping, None where one is absent; metrics are written as ``METRICS`` says."""
    found = [(name, values.get(name)) for name in names]
    return [
        Written(METRICS[name].text(value)) if name in METRICS and value is not None else value for name, value in found
    ]
