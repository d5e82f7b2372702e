"""MLflow's client: its import without telemetry and output, and logging of values in calls of a size that it takes."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMS_A_CALL, METRICS_A_CALL = 100, 1000
"""Values that MLflow takes in a call."""
_PARAM_CHARACTERS = 6_000


def import_mlflow() -> ModuleType:
    """Import MLflow, which takes 3 s, after setting the environment variables that switch off telemetry and output."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # its errors are raised too
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A server that does not answer is given up after half a minute, not after four.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    import mlflow

    return mlflow


def log_values(
    client: "MlflowClient", run_id: str, params: Mapping[str, Any], metrics: Iterable[tuple[str, float | None, int]]
) -> None:
    """Log parameters, a tree whose keys are joined by dots, and metrics of a step; undefined ones are left out."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    values = [Metric(name, float(value), now, step) for name, value, step in metrics if value is not None]
    for start in range(0, len(values), METRICS_A_CALL):
        client.log_batch(run_id, metrics=values[start : start + METRICS_A_CALL])
    texts = [Param(name, str(value)[:_PARAM_CHARACTERS]) for name, value in _flat(params)]
    for start in range(0, len(texts), PARAMS_A_CALL):
        client.log_batch(run_id, params=texts[start : start + PARAMS_A_CALL])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
