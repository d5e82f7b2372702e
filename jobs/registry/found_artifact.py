"""FoundArtifact: the place of an artifact, from a path or URL, or from a registry's version or alias."""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.disk.artifact import digest_of_artifact
from jobs.cli.conventions import local, place
from jobs.registry.registry import Registry

MODELS = "models:/"
REGISTRY = "runs/registry"
"""Folder of the default registry, and of downloads from a server."""
_ASK_SECONDS = 60.0
"""Seconds after which a registry is read again though it has not changed: its artifacts may have."""


@dataclass(frozen=True)
class FoundArtifact:
    """Place and identity of an artifact.

    Attributes:
        place: folder or URL, for ``Predictor.load``.
        sha256: digest of its artifact.json, which has the digests of its other files.
        name: name of the model; without a registry, the folder's name.
        version: number in the registry; None: the artifact comes without a registry.
    """

    place: str
    sha256: str
    name: str
    version: int | None = None

    @property
    def named(self) -> dict[str, Any]:
        """Model, version and sha256 as JSON values."""
        return {"model": self.name, "version": self.version, "sha256": self.sha256}

    @property
    def title(self) -> str:
        """Model, version and short sha256 as text."""
        version = "" if self.version is None else f" version {self.version}"
        return f"{self.name}{version} ({self.sha256[:12]})"


def find_artifact(given: str, registry: str = REGISTRY) -> FoundArtifact:
    """Find the artifact that a command line names.

    Args:
        given: a folder, a URL, or ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        registry: folder or server's address, for ``models:/``.

    Raises:
        RegistryError: the registry has no such version, or its files are gone.
        ArtifactError: there is no artifact in the place.
    """
    if given.startswith(MODELS):
        return find_in(open_registry(registry), given)
    found = str(place(given))
    return FoundArtifact(found, digest_of_artifact(found), re.split("[/:]", found.rstrip("/"))[-1])


def find_in(registry: Registry, name: str) -> FoundArtifact:
    """Find the artifact of a registry's version; a server's is downloaded.

    Raises:
        RegistryError: as ``find_artifact``.
    """
    version = registry.find(name)
    # By its number: another version may have become champion since.
    folder = registry.fetch(f"{MODELS}{version.name}/{version.version}")
    return FoundArtifact(str(folder), str(version.sha256), version.name, version.version)


class FollowedVersion:
    """The version that a name stands for, asked again and again; a folder's registry is read only when it has changed.

    MLflow takes tens of milliseconds to answer, and whoever serves in the same process waits for it.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        """Follow a name.

        Args:
            registry: the registry.
            name: as for ``find_in``.
        """
        self._registry, self._name = registry, name
        self._found: FoundArtifact | None = None
        self._state: object = None
        self._asked_at = -math.inf

    def find(self) -> FoundArtifact:
        """Find the version's artifact, as ``find_in``.

        Raises:
            RegistryError: as ``find_in``.
        """
        state, now = self._registry.state(), time.monotonic()
        if self._found is None or state is None or state != self._state or now > self._asked_at + _ASK_SECONDS:
            self._state = None  # an error is no answer
            self._found = find_in(self._registry, self._name)
            self._state, self._asked_at = state, now
        return self._found


def open_registry(given: str) -> Registry:
    """Open the existing registry of a command line's ``--registry``.

    Raises:
        RegistryError: it is no registry, or cannot be reached.
    """
    is_server = given.startswith(("http://", "https://"))
    folder = Path(REGISTRY) if is_server else local(given)
    return Registry.open(given if is_server else None, folder, must_exist=True)
