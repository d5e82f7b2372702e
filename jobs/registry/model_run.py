"""MLflow run of a version: record its files, metrics and parameters."""

import contextlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobs.cli.mlflow_client import log_values
from jobs.registry.store import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_experiment(client: "MlflowClient", name: str, location: str | None, place: str) -> str:
    """Return the id of a model's MLflow experiment, which records its runs; make it if it is new.

    Args:
        client: client of the registry.
        name: name of the model.
        location: address of the folder that keeps artifacts; None: a server keeps them.
        place: folder or address of the registry, for error messages.

    Raises:
        RegistryError: the server keeps no artifacts, or the folder was moved.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            experiment = client.get_experiment(client.create_experiment(name, location))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another program was faster
            if experiment is None:
                raise
    if location is None and urlsplit(experiment.artifact_location).scheme in ("", "file"):
        raise RegistryError(f"{place} keeps no artifacts: start it with --artifacts-destination")
    if location not in (None, experiment.artifact_location):
        raise RegistryError(
            f"{place} was moved from {experiment.artifact_location}: it can be read and promoted in here, "
            "registering needs it back there"
        )
    return experiment.experiment_id


def log_run(
    client: "MlflowClient",
    experiment_id: str,
    name: str,
    files: Mapping[str, Path],
    metrics: Mapping[str, float | None] | None,
    params: Mapping[str, Any] | None,
) -> str:
    """Record a run with files (path in the run -> local path), metrics and parameters; return its id."""
    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    try:
        log_values(client, run_id, params or {}, ((name, value, 0) for name, value in (metrics or {}).items()))
        for target, path in files.items():
            client.log_artifact(run_id, str(path), str(PurePosixPath(target).parent))
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong first is what must be told
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id
