"""Store of a registry: MLflow's database in a folder, or its server; locks between processes; one-sentence errors."""

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from features.disk.atomic import replacing
from features.disk.lock import lock
from jobs.cli.mlflow_client import IS_LOCKED, MAKING_SECONDS, explain_mlflow, import_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE_NAME, REGISTRY_LOCK_NAME = "registry.db", "registry.lock"
REGISTRY_PATIENCE_SECONDS = 30.0
"""Seconds to wait for another program's change; a single SQL statement waits for MLflow's 20 s."""
SETTLED_SECONDS = 1.0
"""Seconds since a database's last change after which its time tells that there was no other."""


class RegistryError(ValueError):
    """The registry cannot be used, or has no such model, alias or version."""


def open_folder(folder: Path, must_exist: bool) -> "MlflowClient":
    """Connect to the registry in a folder; make it if it is missing, unless ``must_exist``.

    Raises:
        RegistryError: it is locked, is no registry, was made by another version of MLflow, or its path has a character
            that SQLite's address cannot hold.
    """
    database = folder / DATABASE_NAME
    if re.search("[?#%]", str(folder)):
        raise RegistryError(f"{folder} cannot hold a registry: SQLite's address may have no ?, # or %")
    if must_exist and not database.is_file():
        raise RegistryError(f"{folder} is no registry: it has no {DATABASE_NAME}; registering a model makes one")
    if not database.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with lock_registry(folder / REGISTRY_LOCK_NAME, MAKING_SECONDS):
            if not database.is_file():
                _create(database)
    _wait_for(database)
    with explained(str(folder)):
        return _connect(f"sqlite:///{database}")


def reach(uri: str) -> "MlflowClient":
    """Connect to the registry on a server.

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


def _connect(uri: str) -> "MlflowClient":
    return import_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create(database: Path) -> None:
    """Make MLflow's tables, which takes seconds; the file appears atomically when all of them are there."""
    import_mlflow()
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    with replacing(database) as temporary:
        engine = sqlalchemy.create_engine(f"sqlite:///{temporary}")
        _initialize_tables(engine)
        engine.dispose()


def _wait_for(database: Path) -> None:
    """Wait until the database can be read; MLflow itself would retry for minutes.

    Raises:
        RegistryError: another program keeps it locked, or it is no database.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=REGISTRY_PATIENCE_SECONDS)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise RegistryError(_reason(str(database.parent), error)) from error


def database_state(folder: Path) -> object:
    """Return something that is equal as long as a folder's database has not changed; None: nobody can tell.

    A file's time has ticks of some milliseconds, so that of a change just now says nothing.
    """
    paths = [folder / f"{DATABASE_NAME}{end}" for end in ("", "-wal", "-journal")]
    try:
        found = [path.stat() for path in paths if path.exists()]
    except OSError:
        return None
    if not found or any(time.time() - stat.st_mtime < SETTLED_SECONDS for stat in found):
        return None
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)


def lock_registry(path: Path, patience: float | None = None) -> contextlib.AbstractContextManager[Any]:
    """Hold a file lock between processes of this machine.

    Raises:
        RegistryError: another process holds it for longer than ``patience`` seconds.
    """
    patience = REGISTRY_PATIENCE_SECONDS if patience is None else patience
    return lock(path, f"{path.parent} {IS_LOCKED}", error=RegistryError, patience=patience)


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn errors of MLflow into a ``RegistryError`` of one sentence."""
    mlflow = import_mlflow()
    from requests import RequestException

    try:
        yield
    except (mlflow.MlflowException, RequestException) as error:
        raise RegistryError(_reason(place, error)) from error


def _reason(place: str, error: Exception) -> str:
    return explain_mlflow(error, place, f"sqlite:///{place}/{DATABASE_NAME}")
