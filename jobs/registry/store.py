"""The store of a registry: MLflow's tables in a folder or on a server, opened, locked between processes, and explained.

MLflow is imported here alone when it is first needed, told to be silent, and what it raises becomes one sentence.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from features.disk.atomic import replacing
from features.disk.lock import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_NAME, LOCK_NAME = "registry.db", "registry.lock"
PATIENCE_SECONDS = 30.0
"""How long another program's change is waited for; a statement that finds the database locked has MLflow's 20 s."""
MAKING_SECONDS = 120.0
"""How long another program may take to make a registry's tables, which is a few seconds' work."""


class RegistryError(ValueError):
    """The registry cannot be used, or has no such model, alias or version."""


def open_folder(folder: Path, must_exist: bool) -> "MlflowClient":
    """A client of the registry in a folder, which is made if it is new and need not exist.

    Raises:
        RegistryError: it is locked, is no registry, is of another MLflow, or its path cannot be an address.
    """
    database = folder / DATABASE_NAME
    if re.search("[?#%]", str(folder)):
        raise RegistryError(f"{folder} cannot hold a registry: SQLite's address may have no ?, # or %")
    if must_exist and not database.is_file():
        raise RegistryError(f"{folder} is no registry: it has no {DATABASE_NAME}; registering a model makes one")
    if not database.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_NAME, MAKING_SECONDS):
            if not database.is_file():
                _create(database)
    _wait_for(database)
    with explained(str(folder)):
        return _connect(f"sqlite:///{database}")


def reach(uri: str) -> "MlflowClient":
    """A client of the registry on a server.

    Raises:
        RegistryError: it is no server's address, or nobody answers there.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise RegistryError(
            f"{uri!r:.200} is no registry: give a folder, or a server's http:// or https:// address without a password "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD have that)"
        )
    with explained(uri):
        client = _connect(uri)
        client.search_registered_models(max_results=1)
        return client


def _mlflow() -> ModuleType:
    """MLflow, which takes 3 s to import, and what it must not do, which it must hear before that."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # its errors are raised too
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A server that does not answer is given up after half a minute, not after four.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    import mlflow

    return mlflow


def _connect(uri: str) -> "MlflowClient":
    return _mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create(database: Path) -> None:
    """Make MLflow's tables; the file has its name when all of them are there, which takes seconds."""
    _mlflow()
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    with replacing(database) as temporary:
        engine = sqlalchemy.create_engine(f"sqlite:///{temporary}")
        _initialize_tables(engine)
        engine.dispose()


def _wait_for(database: Path) -> None:
    """Wait until the database can be read; MLflow would open it again and again for minutes.

    Raises:
        RegistryError: another program keeps it locked, or it is no database.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=PATIENCE_SECONDS)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise RegistryError(_reason(str(database.parent), str(error))) from error


def locked(path: Path, patience: float | None = None) -> contextlib.AbstractContextManager[Any]:
    """Hold a lock between processes of this machine.

    Raises:
        RegistryError: somebody else holds it for too long.
    """
    patience = PATIENCE_SECONDS if patience is None else patience
    return lock(path, _reason(str(path.parent), "database is locked"), error=RegistryError, patience=patience)


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn what MLflow raises into one sentence."""
    mlflow = _mlflow()
    from requests import RequestException

    try:
        yield
    except (mlflow.MlflowException, RequestException) as error:
        raise RegistryError(_reason(place, str(error))) from error


def _reason(place: str, error: str) -> str:
    if "database is locked" in error:
        return f"{place} is locked by another program: try again when that has finished"
    if "out-of-date database schema" in error:
        return f"{place} was made by another MLflow: mlflow db upgrade sqlite:///{place}/{DATABASE_NAME} brings it here"
    if "Max retries exceeded" in error:
        return f"{place} cannot be reached: is the server running there?"
    return f"{place}: {error.splitlines()[0] if error else 'MLflow gives no reason'}"
