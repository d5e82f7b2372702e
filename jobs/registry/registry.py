"""Registry: versions of models, their champion and its predecessors, kept by MLflow.

A version is an artifact that ``training.ship.export`` wrote, with the metrics and parameters of its run. The alias
``candidate`` names the version that was registered last, ``champion`` the one that serves. A registry is a folder, or
an MLflow server:

    registry.db     MLflow's tables, SQLite                  registry.lock   held during changes
    artifacts/      a folder for every run; the artifact is RUN/artifacts/artifact
    fetched/        downloads of a server's artifacts, by the sha256 of their artifact.json

Artifacts are stored as plain files: nothing is pickled, and MLflow loads no model.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.disk.relative_path import check_relative
from jobs.registry.artifact_files import download, holds_artifact, read_artifact
from jobs.registry.model_run import log_run, open_experiment
from jobs.registry.model_versions import (
    CANDIDATE,
    CHAMPION,
    MODEL_NAME,
    REFUSED_TAG,
    SHA256_TAG,
    ModelVersion,
    check_name,
    find_version,
    join_names,
    read_aliases,
    read_champion,
    read_model,
    read_names,
    read_version,
    read_versions,
)
from jobs.registry.promotions import Promotion, read_promotions, record, settle, undo
from jobs.registry.store import (
    REGISTRY_LOCK_NAME,
    RegistryError,
    database_state,
    explained,
    lock_registry,
    open_folder,
    reach,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_URI = re.compile(rf"(?:models:/)?({MODEL_NAME.pattern})(?:@([A-Za-z0-9_-]+)|/([0-9]{{1,9}}))?")


class Registry:
    """Registry of models in a folder or on a server; make one with ``open``.

    Changes to a folder take its lock. A server has no lock: each alias still changes atomically and no promotion is
    lost, but of two concurrent rollbacks only one may take effect, and an artifact that two programs register
    concurrently may become two versions.
    """

    def __init__(self, client: "MlflowClient", folder: Path, place: str, is_server: bool) -> None:
        self._client = client
        self._folder = folder
        self._is_server = is_server
        self.place = place
        """Folder or server's address."""

    @classmethod
    def open(cls, uri: str | None, folder: Path, *, must_exist: bool = False) -> "Registry":
        """Open a registry in a folder on this machine's disk, or on a server.

        Args:
            uri: ``http://`` or ``https://`` address of an MLflow server that keeps artifacts too; None: the folder.
                Credentials come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from
                MLFLOW_TRACKING_TOKEN.
            folder: folder of the registry; with a server, folder of downloads.
            must_exist: whether a missing registry is an error instead of being made.

        Raises:
            RegistryError: it cannot be reached, is locked, is no registry, or was made by another version of MLflow.
        """
        folder = folder.absolute()
        if uri is not None:
            return cls(reach(uri), folder, uri, is_server=True)
        return cls(open_folder(folder, must_exist), folder, str(folder), is_server=False)

    # -------------------------------------------------------------------------------------------------------- writing

    def register(
        self,
        name: str,
        artifact: Path,
        *,
        metrics: Mapping[str, float | None] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        extra: Sequence[Path] = (),
    ) -> int:
        """Store an artifact as the model's next version and candidate; idempotent, an artifact keeps its version.

        Args:
            name: name of the model, which is made if it is new.
            artifact: folder that ``training.ship.export`` wrote.
            metrics: name -> value; None if undefined.
            params: name -> value; nested ones are flattened to dotted names.
            tags: tags of the version.
            extra: further files to keep beside the artifact, such as report.html.

        Returns:
            The version's number. Registration is atomic: the version appears with all its files or not at all.

        Raises:
            RegistryError: the artifact is damaged, or the registry cannot be written.
        """
        check_name(name)
        digest, files = read_artifact(artifact)
        with self._explained():
            run_id = ""
            if find_version(self._client, name, digest) is None:
                targets = {f"artifact/{file}": artifact / file for file in files}
                targets |= {f"files/{path.name}": path for path in extra}
                run_id = log_run(self._client, self._experiment(name), name, targets, metrics, params)
            with self._alone():
                # Another program may have been faster; then this one's run is a run like any other.
                version = find_version(self._client, name, digest)
                version = version or self._add(name, run_id, {**(tags or {}), SHA256_TAG: digest})
                self._nominate(name, version)
                return version

    def promote(self, name: str, version: int, *, despite_refusal: bool = False) -> ModelVersion:
        """Make a version the champion; the alias changes atomically, and the promotion is recorded.

        Raises:
            RegistryError: there is no such version, or it was refused and ``despite_refusal`` is not set.
        """
        with self._explained(), self._alone():
            model = self._model(name)
            wanted = read_version(self._client, model, version)
            if wanted.refusals and not despite_refusal:
                raise RegistryError(f"{name} version {version} was refused: {'; '.join(wanted.refusals)}")
            if read_champion(model) != version:
                settle(self._client, model)
                record(self._client, name, version)
                self._client.set_registered_model_alias(name, CHAMPION, str(version))
            return read_version(self._client, self._model(name), version)

    def rollback(self, name: str) -> ModelVersion:
        """Make the previous champion the champion again; a second rollback goes one further back.

        Raises:
            RegistryError: there is no champion, or none before it.
        """
        with self._explained(), self._alone():
            model = self._model(name)
            serving = read_champion(model)
            if serving is None:
                raise RegistryError(f"{name} has no champion to roll back")
            promotions = settle(self._client, model)
            there = {version.version for version in read_versions(self._client, model)}
            before = [p for p in promotions if p.version != serving and p.version in there]
            if not before:
                raise RegistryError(f"{name} version {serving} has no champion before it: promote another version")
            # The alias first: what a killed rollback leaves behind it, the next one finds to be undone.
            self._client.set_registered_model_alias(name, CHAMPION, str(before[-1].version))
            for promotion in promotions[promotions.index(before[-1]) + 1 :]:
                undo(self._client, name, promotion)
            return read_version(self._client, self._model(name), before[-1].version)

    def refuse(self, name: str, version: int, reasons: Sequence[str]) -> ModelVersion:
        """Record why a version must not serve, and remove its alias ``candidate``.

        Raises:
            RegistryError: there is no such version, it serves, or no reason is given.
        """
        if not reasons:
            raise RegistryError(f"{name} version {version} is not refused without a reason")
        with self._explained(), self._alone():
            model = self._model(name)
            read_version(self._client, model, version)
            if read_champion(model) == version:
                raise RegistryError(f"{name} version {version} is the champion: roll back or promote another one first")
            self._client.set_model_version_tag(name, str(version), REFUSED_TAG, json.dumps(list(reasons)))
            if read_aliases(model).get(CANDIDATE) == version:
                self._client.delete_registered_model_alias(name, CANDIDATE)
            return read_version(self._client, self._model(name), version)

    # -------------------------------------------------------------------------------------------------------- reading

    def champion(self, name: str) -> ModelVersion | None:
        """Return the champion; None: there is no champion, or no such model.

        Raises:
            RegistryError: the registry cannot be read.
        """
        with self._explained():
            if name not in read_names(self._client):
                return None
            model = self._model(name)
            serving = read_champion(model)
            return None if serving is None else read_version(self._client, model, serving)

    def list(self, name: str) -> tuple[ModelVersion, ...]:
        """List all versions, the newest first.

        Raises:
            RegistryError: there is no such model.
        """
        with self._explained():
            return tuple(read_versions(self._client, self._model(name)))

    def state(self) -> object:
        """Return something that is equal as long as a folder's registry has not changed; None: nobody can tell."""
        return None if self._is_server else database_state(self._folder)

    def find(self, name_or_uri: str) -> ModelVersion:
        """Find the version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; a name alone stands for its champion.

        Raises:
            RegistryError: there is no such version; the message lists what there is.
        """
        match = MODEL_URI.fullmatch(name_or_uri)
        if match is None:
            raise RegistryError(f"{name_or_uri!r:.200} names no version: write models:/NAME@ALIAS or models:/NAME/3")
        name, alias, version = match.groups()
        with self._explained():
            model = self._model(name)
            if version is not None:
                return read_version(self._client, model, int(version))
            aliases = read_aliases(model)
            if (alias or CHAMPION) not in aliases:
                raise RegistryError(f"{name} has no {alias or CHAMPION}; its aliases: {join_names(aliases)}")
            return read_version(self._client, model, aliases[alias or CHAMPION])

    def fetch(self, name_or_uri: str) -> Path:
        """Return the folder of a version's artifact, for ``Predictor.load``; a server's artifact is downloaded.

        Raises:
            RegistryError: there is no such version, or its files are missing or differ from those registered.
        """
        version = self.find(name_or_uri)
        if not re.fullmatch("[0-9a-f]{64}", version.sha256 or ""):
            raise RegistryError(f"{version.name} version {version.version} is no artifact of this project")
        with self._explained():
            if self._is_server:
                return download(self._client, version, self._folder / "fetched", self.place)
        # Not by the path that was stored: a registry may be moved, and nothing leads out of it.
        found = self._artifacts / check_relative(version.run_id) / "artifacts" / "artifact"
        if not holds_artifact(found, version.sha256):
            raise RegistryError(f"{found} is not what was registered as {version.name} version {version.version}")
        return found

    def logged(self, version: ModelVersion) -> tuple[dict[str, float], dict[str, str]]:
        """Read the metrics and parameters that a version was registered with.

        Raises:
            RegistryError: the registry cannot be read.
        """
        with self._explained():
            data = self._client.get_run(version.run_id).data
            return dict(data.metrics), dict(data.params)

    def history(self, name: str) -> tuple[Promotion, ...]:
        """List all promotions, the oldest first.

        Raises:
            RegistryError: there is no such model.
        """
        with self._explained():
            return tuple(read_promotions(self._model(name)))

    # -------------------------------------------------------------------------------------------- MLflow's side of it

    @property
    def _artifacts(self) -> Path:
        return self._folder / "artifacts"

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return explained(self.place)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Lock a folder's registry against concurrent changes; a server has no lock."""
        return contextlib.nullcontext() if self._is_server else lock_registry(self._folder / REGISTRY_LOCK_NAME)

    def _model(self, name: str) -> Any:
        return read_model(self._client, name, self.place)

    def _experiment(self, name: str) -> str:
        location = None if self._is_server else self._artifacts.as_uri()
        return open_experiment(self._client, name, location, self.place)

    def _add(self, name: str, run_id: str, tags: dict[str, str]) -> int:
        """Make a run's artifact the model's next version; return its number."""
        if name not in read_names(self._client):
            with contextlib.suppress(Exception):  # another program was faster, or the next call says what is wrong
                self._client.create_registered_model(name)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/artifact"
        # Ready at once: there is nothing to wait for.
        return int(self._client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0).version)

    def _nominate(self, name: str, version: int) -> None:
        """Make a version the candidate if it is the newest and new; a killed registration leaves it without alias."""
        newest, *_ = read_versions(self._client, self._model(name))
        if newest.version == version and not newest.aliases and not newest.refusals:
            self._client.set_registered_model_alias(name, CANDIDATE, str(version))
