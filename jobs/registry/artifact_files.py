"""Files of registered artifacts: check them against the sha256 in artifact.json, and download them."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.disk.artifact import ARTIFACT_NAME, ArtifactError, check_files, digest_of_artifact, read_description
from features.disk.atomic import adding_folder
from jobs.registry.model_versions import ModelVersion
from jobs.registry.store import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def read_artifact(folder: Path) -> tuple[str, list[str]]:
    """Check an artifact; return the sha256 of its artifact.json, and its file names, artifact.json last.

    Raises:
        RegistryError: it is no artifact, or a file of it is missing or changed.
    """
    description = _describe(folder)
    try:
        check_files(folder, description)
    except ArtifactError as error:
        raise RegistryError(str(error)) from error
    return digest_of_artifact(folder), [*description["files"], ARTIFACT_NAME]


def holds_artifact(folder: Path, digest: str | None) -> bool:
    """Tell whether a folder holds the artifact with this digest; ``Predictor.load`` checks its other files."""
    return (folder / ARTIFACT_NAME).is_file() and digest_of_artifact(folder) == digest


def download(client: "MlflowClient", version: ModelVersion, folder: Path, place: str) -> Path:
    """Download an artifact from a server into a folder and check each file; do nothing if it is there already.

    Raises:
        RegistryError: the server sent other files than were registered.
    """
    found = folder / str(version.sha256)
    if holds_artifact(found, version.sha256):
        return found
    with adding_folder(found) as temporary:
        _download_file(client, version, ARTIFACT_NAME, temporary)
        # File by file, as the artifact lists them, and not what the server lists: a name may lead anywhere.
        for name in _describe(temporary)["files"]:
            _download_file(client, version, name, temporary)
        digest, _ = read_artifact(temporary)
        if digest != version.sha256:
            raise RegistryError(f"{place} gave other files than were registered as version {version.version}")
        shutil.rmtree(found, ignore_errors=True)
    return found


def _download_file(client: "MlflowClient", version: ModelVersion, name: str, folder: Path) -> None:
    """Download one file of an artifact into ``folder``."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # MLflow says where it put the file: some stores keep its folders, some do not.
        put = client.download_artifacts(version.run_id, f"artifact/{name}", scratch)
        Path(put).replace(target)


def _describe(folder: Path) -> dict[str, Any]:
    try:
        return read_description(folder)
    except ArtifactError as error:
        raise RegistryError(str(error)) from error
