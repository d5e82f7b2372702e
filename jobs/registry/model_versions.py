"""ModelVersion: versions of models read from MLflow by name, number or artifact, with aliases and tags."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.registry.store import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
SHA256_TAG = "artifact_sha256"
"""Tag of a version: sha256 of its artifact.json, which has the digests of its other files."""
REFUSED_TAG = "refused"
"""Tag of a version: reasons why it must not serve, a JSON list."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ModelVersion:
    """Version of a model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    created: str
    """Time of registration, UTC, ISO 8601."""
    run_id: str

    @property
    def sha256(self) -> str | None:
        """Digest of its artifact.json; None: another tool made the version."""
        return self.tags.get(SHA256_TAG)

    @property
    def refusals(self) -> list[str]:
        """Reasons why it must not serve; empty if there are none."""
        return json.loads(self.tags.get(REFUSED_TAG, "[]"))


def read_names(client: "MlflowClient") -> Sequence[str]:
    """Read the names of all models."""
    pages = _pages(lambda token: client.search_registered_models(page_token=token))
    return [model.name for model in pages]


def read_model(client: "MlflowClient", name: str, place: str) -> Any:
    """Read MLflow's entry of a model: name, aliases and tags.

    Raises:
        RegistryError: the registry has no such model.
    """
    check_name(name)
    if name not in (names := read_names(client)):
        raise RegistryError(f"{place} has no model {name!r}; it has {join_names(names)}")
    return client.get_registered_model(name)


def read_aliases(model: Any) -> dict[str, int]:
    """Map the aliases of a model to version numbers."""
    return {alias: int(version) for alias, version in model.aliases.items()}


def read_champion(model: Any) -> int | None:
    """Return the number of a model's champion; None: there is no champion."""
    return read_aliases(model).get(CHAMPION)


def read_versions(client: "MlflowClient", model: Any) -> Sequence[ModelVersion]:
    """Read all versions of a model, the newest first."""
    pages = _pages(lambda t: client.search_model_versions(f"name = '{model.name}'", page_token=t))
    found = (_to_version(version, read_aliases(model)) for version in pages)
    return sorted(found, key=lambda version: -version.version)


def read_version(client: "MlflowClient", model: Any, number: int) -> ModelVersion:
    """Read one version of a model.

    Raises:
        RegistryError: the model has no such version.
    """
    versions = read_versions(client, model)
    for version in versions:
        if version.version == number:
            return version
    raise RegistryError(f"{model.name} has no version {number}; it has {join_names(v.version for v in versions)}")


def find_version(client: "MlflowClient", name: str, digest: str) -> int | None:
    """Find the version number of an artifact by its digest; None: it is not registered."""
    tagged = f"name = '{name}' and tags.`{SHA256_TAG}` = '{digest}'"
    found = client.search_model_versions(tagged)
    return min((int(version.version) for version in found), default=None)


def _to_version(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
    """Convert MLflow's version, with the aliases that point to it."""
    number = int(found.version)
    named = tuple(sorted(alias for alias, version in aliases.items() if version == number))
    created = to_iso(found.creation_timestamp / 1000)
    return ModelVersion(found.name, number, named, dict(found.tags), created, found.run_id)


def _pages(search: Any) -> Iterator[Any]:
    """Yield all results of a paged search."""
    token = None
    while True:
        page = search(token)
        yield from page
        if not (token := page.token):
            return


def check_name(name: str) -> None:
    """Check the name of a model.

    Raises:
        RegistryError: no model may have this name."""
    if not MODEL_NAME.fullmatch(name):
        raise RegistryError(f"{name!r:.120} is no name of a model: letters, digits, _ . and - only, 100 at most")


def join_names(names: Iterable[object]) -> str:
    """List names in a sentence; "none" if there are none."""
    return ", ".join(str(name) for name in names) or "none"


def to_iso(seconds: float) -> str:
    """Write Unix seconds as UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
