"""An artifact's files: checked against its artifact.json, which has the sha256 of each, or fetched from a server."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.disk.atomic import adding_folder
from features.disk.relative_path import check_relative, is_inside
from jobs.registry.model_versions import ModelVersion
from jobs.registry.store import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT_NAME = "artifact.json"
"""As in ``training.ship.predict``, which would bring Torch along."""


def read_artifact(folder: Path) -> tuple[str, list[str]]:
    """The sha256 of an artifact's artifact.json, and its files, artifact.json last.

    Raises:
        RegistryError: it is no artifact, or a file of it is missing or changed.
    """
    files = _read_description(folder)["files"]
    for name, digest in files.items():
        path = folder / name
        if not is_inside(folder, path) or not path.is_file() or _sha256(path) != digest:
            raise RegistryError(f"{path} is missing or was changed after export: export the model again")
    return _sha256(folder / ARTIFACT_NAME), [*files, ARTIFACT_NAME]


def is_artifact(folder: Path, digest: str | None) -> bool:
    """Whether it is the artifact that was registered; its other files are checked by ``Predictor.load``."""
    return (folder / ARTIFACT_NAME).is_file() and _sha256(folder / ARTIFACT_NAME) == digest


def download(client: "MlflowClient", version: ModelVersion, folder: Path, place: str) -> Path:
    """A copy in a folder of an artifact that a server keeps, each file checked; the one that is there, if it is.

    Raises:
        RegistryError: the server gave other files than were registered.
    """
    found = folder / str(version.sha256)
    if is_artifact(found, version.sha256):
        return found
    with adding_folder(found) as temporary:
        _download_file(client, version, ARTIFACT_NAME, temporary)
        # File by file, as the artifact lists them, and not what the server lists: a name may lead anywhere.
        for name in _read_description(temporary)["files"]:
            _download_file(client, version, name, temporary)
        digest, _ = read_artifact(temporary)
        if digest != version.sha256:
            raise RegistryError(f"{place} gave other files than were registered as version {version.version}")
        shutil.rmtree(found, ignore_errors=True)
    return found


def _download_file(client: "MlflowClient", version: ModelVersion, name: str, folder: Path) -> None:
    """Fetch one file of an artifact into ``folder``."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # MLflow says where it put the file: some stores keep its folders, some do not.
        put = client.download_artifacts(version.run_id, f"artifact/{name}", scratch)
        Path(put).replace(target)


def _read_description(folder: Path) -> dict[str, Any]:
    """What artifact.json says; its ``files`` is an object, and its keys are paths in the folder."""
    try:
        description = json.loads((folder / ARTIFACT_NAME).read_bytes())
        if not isinstance(description, dict) or not isinstance(description.get("files"), dict):
            raise ValueError("it lists no files")
        for name in description["files"]:
            check_relative(name)
    except (OSError, ValueError, RecursionError) as error:
        raise RegistryError(f"{folder} is not an artifact: {ARTIFACT_NAME} cannot be read ({error})") from error
    return description


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
