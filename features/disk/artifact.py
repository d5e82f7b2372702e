"""An artifact: a folder with everything that scoring with a model needs, listed with its sha256 in artifact.json.

    artifact.json          version, precision of the tables, fingerprints, and every other file's sha256
    weights.safetensors    the network                    learnt/         what was learnt from the training split
    config.json            the resolved config            metrics.json    of the run, as training ended
    calibration.json       where logits are corrected     golden.jsonl    raw rows and their probabilities

In an object store the other files are in a folder of their own, which ``artifact.json`` names. Either way an artifact
appears in one step: whenever its export is killed, the old one or the new one is whole.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from features.disk.atomic import new_folder, standing, write_json
from features.disk.digest import file_sha256
from features.disk.object_store import (
    VERSION,
    ObjectPath,
    StorageError,
    clean,
    download_all,
    new_version_name,
    publish,
)
from features.disk.place import Place, locate, temporary_folder
from features.disk.relative_path import check_relative, is_inside
from features.disk.run_folder import CONFIG_NAME
from features.disk.versions import Format

ARTIFACT_NAME = "artifact.json"
WEIGHTS_NAME = "weights.safetensors"
GOLDEN_NAME = "golden.jsonl"
VALUE_RATES_KEY = "value_rates"
"""Key of the description: split -> feature -> shares of missing and unknown values. Optional, whatever the version."""

FLOAT32 = "float32"
"""Precision of the tables of version 1, which does not say it."""
ARTIFACT_FORMAT = Format(
    "artifact",
    "update twinfocus here, or export the model with this program",
    (lambda description: {**description, "tables": FLOAT32},),
)

P = TypeVar("P", Path, ObjectPath)


class ArtifactError(ValueError):
    """An artifact is damaged, of another version, or does not score its own golden rows."""


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk, each file checked.

    Attributes:
        folder: folder of its files.
        description: content of artifact.json, in this program's version.
    """

    folder: Path
    description: dict[str, Any]

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            ArtifactError: it is absent or damaged.
        """
        return _read_json(self.folder / name)

    @property
    def value_rates(self) -> dict[str, dict[str, dict[str, float]]]:
        """Shares of missing and unknown values in the dataset's splits; empty in artifacts of earlier versions.

        Raises:
            ArtifactError: they are damaged.
        """
        try:
            return TypeAdapter(dict[str, dict[str, dict[str, float]]]).validate_python(
                self.description.get(VALUE_RATES_KEY, {})
            )
        except ValidationError as error:
            raise ArtifactError(f"{self.folder / ARTIFACT_NAME}: {VALUE_RATES_KEY} is not understood") from error


# ------------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_artifact(artifact: Place | str) -> Iterator[Artifact]:
    """Check every file of an artifact and give it while the body runs; one in a store is fetched.

    Raises:
        ArtifactError: a file is missing or changed, or the artifact's version is another one.
        StorageError: its store cannot be read.
    """
    place = locate(artifact)
    if isinstance(place, ObjectPath):
        with temporary_folder() as folder:
            _download(place, folder)
            yield _open(folder)
    else:
        yield _open(standing(place))


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``artifact.json`` in this program's version; its ``files`` is an object whose keys lead to no other folder.

    Raises:
        ArtifactError: it is absent, damaged, or of a newer version.
    """
    description = _read_json(folder / ARTIFACT_NAME)
    version, tables = ARTIFACT_FORMAT.version_of(description, folder, ArtifactError), description.get("tables", FLOAT32)
    if (version == 1) != (tables == FLOAT32):
        raise ArtifactError(f"{folder} has tables of {tables!r:.80}, which version {version} has not")
    if not isinstance(description.get("files"), dict):
        raise ArtifactError(f"{folder / ARTIFACT_NAME} does not list the artifact's files")
    for name in description["files"]:
        try:
            check_relative(name)
        except ValueError as error:
            raise ArtifactError(f"{folder} is not opened: {error}") from error
    return ARTIFACT_FORMAT.upgrade(description, folder, ArtifactError)


def check_files(folder: Path, description: dict[str, Any]) -> Path:
    """Check every file that a description lists; returns the folder that they are in.

    Raises:
        ArtifactError: one is missing, was changed, or is a link out of the artifact.
    """
    files = _files_of(folder, description)
    for name, digest in description["files"].items():
        path = files / name
        if not is_inside(folder, path):
            raise ArtifactError(f"{files} is not opened: {name!r} leads out of its folder")
        if not path.is_file() or file_sha256(path) != digest:
            raise ArtifactError(f"{path} is missing or was changed after export: export the model again")
    return files


def digest_of_artifact(artifact: Place | str) -> str:
    """Compute the sha256 of ``artifact.json``, which holds the sha256 of every other file.

    Raises:
        ArtifactError: there is no artifact.
        StorageError: its store cannot be read.
    """
    try:
        return hashlib.sha256((_standing(locate(artifact)) / ARTIFACT_NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"{artifact} is not a usable artifact: {error}") from error


def is_artifact(place: Place) -> bool:
    """Tell whether there is an artifact; its files are checked when it is opened."""
    return (_standing(place) / ARTIFACT_NAME).is_file()


def _standing(place: Place) -> Place:
    return standing(place) if isinstance(place, Path) else place


def _open(artifact: Path) -> Artifact:
    description = read_description(artifact)
    if not {WEIGHTS_NAME, GOLDEN_NAME, CONFIG_NAME} <= set(description["files"]):
        raise ArtifactError(f"{artifact / ARTIFACT_NAME} does not list the artifact's files")
    return Artifact(check_files(artifact, description), description)


def _download(artifact: ObjectPath, to: Path) -> None:
    """Fetch an artifact's files to the same places in a local folder; what they hold is checked when they are read."""
    if not (artifact / ARTIFACT_NAME).is_file():
        raise ArtifactError(f"{artifact} is not an artifact: it has no {ARTIFACT_NAME}; run jobs.export first")
    (to / ARTIFACT_NAME).write_bytes((artifact / ARTIFACT_NAME).read_bytes())
    description = _read_json(to / ARTIFACT_NAME)
    files = _files_of(artifact, description)
    download_all(files, files.sizes(), _files_of(to, description))


def _files_of(artifact: P, description: dict[str, Any]) -> P:
    folder = description.get("folder")
    if folder is None:
        return artifact
    if not isinstance(folder, str) or not VERSION.fullmatch(folder):
        raise ArtifactError(f"{artifact} is not opened: {folder!r:.80} is no folder of an artifact")
    return artifact / folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path.parent} is not a usable artifact: {path.name} cannot be read ({error})") from error


# ------------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def new_artifact(output: Place) -> Iterator[Path]:
    """Give an empty folder that becomes the artifact when the body ends, replacing an older one in one step.

    The body writes the artifact's files, and ``write_description`` last.

    Raises:
        ArtifactError: the place holds something else.
        ReplacementError: another job is writing to it.
        StorageError: its store cannot be written; an older artifact stays as it was.
        OSError: it cannot be written.
    """
    if isinstance(output, ObjectPath):
        with temporary_folder() as staging:
            version = staging / new_version_name()
            version.mkdir()
            yield version
            publish(version, output, ARTIFACT_NAME)
        with contextlib.suppress(StorageError):  # what is left goes after the next export
            clean(output, version.name)
    else:
        with new_folder(output.resolve(), check_output) as (new, _):
            yield new


def check_output(output: Place) -> None:
    """Refuse to replace something that is no artifact.

    Raises:
        ArtifactError: the place holds something else.
    """
    if isinstance(output, ObjectPath):
        names = {name.partition("/")[0] for name in output.sizes()}
        is_other = ARTIFACT_NAME not in names and any(not VERSION.fullmatch(name) for name in names)
    else:
        is_other = output.exists() and any(output.iterdir()) and not (output / ARTIFACT_NAME).is_file()
    if is_other:
        raise ArtifactError(f"{output} exists and is not an artifact: choose another --output")


def write_description(folder: Path, tables: str, more: dict[str, Any]) -> None:
    """Write ``artifact.json`` for the files that are in a folder.

    Args:
        folder: folder from ``new_artifact``.
        tables: precision of the tables that are served.
        more: fingerprints and counts.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    description = {
        # Version 1 is float32, and whoever reads it needs to know of no other.
        **({"version": 1} if tables == FLOAT32 else {"version": ARTIFACT_FORMAT.version, "tables": tables}),
        **more,
        "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files},
        **({"folder": folder.name} if VERSION.fullmatch(folder.name) else {}),
    }
    write_json(folder / ARTIFACT_NAME, description)
