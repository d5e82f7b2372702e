"""MLflow's client: its import without telemetry and output, its errors, and values in calls of a size that it takes."""

import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMS_A_CALL, METRICS_A_CALL = 100, 1000
"""Values that MLflow takes in a call."""
_PARAM_CHARACTERS = 6_000
MAKING_SECONDS = 120.0
"""Seconds to wait while another program makes a database's tables, which takes a few seconds."""
IS_LOCKED = "is locked by another program: try again when that has finished"


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


def explain_mlflow(error: BaseException, place: str, database: str | None = None) -> str:
    """Explain an error of MLflow's store in a sentence.

    Args:
        error: what MLflow, SQLite or the connection raised.
        place: the store as the user knows it.
        database: the store's address for MLflow's commands; None: the place is one.
    """
    text = str(error)
    if "database is locked" in text:
        return f"{place} {IS_LOCKED}"
    if "out-of-date database schema" in text:
        return _explain_schema(text, place, database or place)
    if "Max retries exceeded" in text:
        return f"{place} cannot be reached: is the server running there?"
    return f"{place}: {text.splitlines()[0] if text else type(error).__name__}"


def _explain_schema(text: str, place: str, database: str) -> str:
    """Explain a schema of another version of MLflow: an older one can be upgraded, a newer one cannot be read."""
    mlflow = import_mlflow()
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    found = re.search(r"found version (\w+)", text)
    try:
        migrations = ScriptDirectory(str(Path(mlflow.__path__[0]) / "store" / "db_migrations"))
        is_older = found is not None and migrations.get_revision(found[1]) is not None
    except CommandError:
        is_older = False
    if is_older:
        return (
            f"{place} was made by an older MLflow: python -m mlflow db upgrade {shlex.quote(database)} brings it here"
        )
    return (
        f"{place} was made by a newer MLflow than {mlflow.__version__}, which is installed: install that version "
        "(pip install --upgrade mlflow-skinny), or choose another one"
    )
