"""Where an artifact is: the place that was given, or the version that a model's alias names in a registry now."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.disk.artifact import digest_of
from jobs.cli.conventions import local, place
from jobs.registry.registry import Registry

MODELS = "models:/"
REGISTRY = "runs/registry"
"""Folder of the registry where none is given, and of what is fetched from a server."""


@dataclass(frozen=True)
class FoundArtifact:
    """An artifact that can be loaded.

    Attributes:
        place: folder or URL, for ``Predictor.load``.
        sha256: of its artifact.json, which has those of all its other files.
        name: of the model; of an artifact without a registry, its folder's.
        version: None: it is of no registry.
    """

    place: str
    sha256: str
    name: str
    version: int | None = None

    @property
    def named(self) -> dict[str, Any]:
        """For a program."""
        return {"model": self.name, "version": self.version, "sha256": self.sha256}

    @property
    def title(self) -> str:
        """For a person."""
        version = "" if self.version is None else f" version {self.version}"
        return f"{self.name}{version} ({self.sha256[:12]})"


def find_artifact(given: str, registry: str = REGISTRY) -> FoundArtifact:
    """The artifact that a command line names.

    Args:
        given: a folder, a URL, or ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        registry: folder or server's address, for a name.

    Raises:
        RegistryError: the registry has no such version, or its files are gone.
        ArtifactError: there is no artifact in the place.
    """
    if given.startswith(MODELS):
        return find_in(open_registry(registry), given)
    found = str(place(given))
    return FoundArtifact(found, digest_of(found), re.split("[/:]", found.rstrip("/"))[-1])


def find_in(registry: Registry, name: str) -> FoundArtifact:
    """The artifact of a version of a registry; a server's is copied to this machine.

    Raises:
        RegistryError: as ``find_artifact``.
    """
    version = registry.find(name)
    # By its number: another version may have become champion since.
    folder = registry.fetch(f"{MODELS}{version.name}/{version.version}")
    return FoundArtifact(str(folder), str(version.sha256), version.name, version.version)


def open_registry(given: str) -> Registry:
    """A registry that is there, of a command line's ``--registry``.

    Raises:
        RegistryError: it is no registry, or cannot be reached.
    """
    is_server = given.startswith(("http://", "https://"))
    folder = Path(REGISTRY) if is_server else local(given)
    return Registry.open(given if is_server else None, folder, must_exist=True)
