"""The model registry: which versions of a model there are, which one serves, and which one did before. MLflow keeps it.

A version is an artifact that ``training.export`` wrote, with the metrics and parameters of its run. Of a model's
aliases ``candidate`` names the version that was registered last, ``champion`` the one that serves. A registry is a
folder, or an MLflow server:

    registry.db     MLflow's tables, SQLite                  registry.lock   held by who changes them
    artifacts/      a folder for every run; the artifact is RUN/artifacts/artifact
    fetched/        of a server: copies of artifacts, by the sha256 of their artifact.json

Files are stored as files: nothing here pickles, and MLflow is asked to load nothing.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from features.dataset import is_inside
from features.storage import check_relative

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
ARTIFACT_NAME = "artifact.json"
"""As in ``training.predict``, which would bring Torch along."""
SHA256_TAG = "artifact_sha256"
"""Of a version: the sha256 of its artifact.json, which has those of all other files."""
REFUSED_TAG = "refused"
"""Of a version: why it must not serve, a JSON list."""
PROMOTION_TAG = "promotion."
"""Of a model, followed by a number: a promotion. Each has a tag of its own, so that none overwrites another."""
PATIENCE_SECONDS = 30.0
"""How long another program's change is waited for; a statement that finds the database locked has MLflow's 20 s."""
MAKING_SECONDS = 120.0
"""How long another program may take to make a registry's tables, which is a few seconds' work."""
DATABASE_NAME, LOCK_NAME = "registry.db", "registry.lock"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MODEL_URI = re.compile(rf"(?:models:/)?({MODEL_NAME.pattern})(?:@([A-Za-z0-9_-]+)|/([0-9]{{1,9}}))?")
PARAMS_A_CALL, METRICS_A_CALL = 100, 1000
"""What MLflow takes at a time."""


class RegistryError(ValueError):
    """The registry cannot be used, or has no such model, alias or version."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    created: str
    """UTC, ISO 8601."""
    run_id: str

    @property
    def sha256(self) -> str | None:
        """Of its artifact.json; None: this registry did not make the version."""
        return self.tags.get(SHA256_TAG)

    @property
    def refusals(self) -> list[str]:
        """Why it must not serve; empty if nothing is known against it."""
        return json.loads(self.tags.get(REFUSED_TAG, "[]"))


@dataclass(frozen=True)
class Promotion:
    """One time that a version became champion."""

    number: int
    version: int
    at: str
    undone: bool = False
    """Rolled back, or never carried out."""
    key: str = field(default="", repr=False)


class Registry:
    """Versions of models; make one with ``open``.

    Whoever changes a folder's champions takes its lock first. A server has no lock: there each alias changes in one
    step as well and no promotion is forgotten, but of two rollbacks at once only one may count, and an artifact that
    two programs register at once may become two versions.
    """

    def __init__(self, client: "MlflowClient", folder: Path, place: str, is_server: bool) -> None:
        self._client = client
        self._folder = folder
        self._is_server = is_server
        self.place = place
        """The folder or the server's address."""

    @classmethod
    def open(cls, uri: str | None, folder: Path, *, must_exist: bool = False) -> "Registry":
        """A registry in a folder on this machine's disk, or on a server.

        Args:
            uri: ``http://`` or ``https://`` address of an MLflow server that keeps artifacts too; None: the folder.
                Who needs a password sets MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
                MLFLOW_TRACKING_TOKEN.
            folder: of the registry; with a server, where fetched artifacts are kept.
            must_exist: do not make a new one.

        Raises:
            RegistryError: it cannot be reached, is locked, is no registry, or is of another MLflow.
        """
        folder = folder.absolute()
        if uri is not None:
            return cls(_reach(uri), folder, uri, is_server=True)
        database = folder / DATABASE_NAME
        if re.search("[?#%]", str(folder)):
            raise RegistryError(f"{folder} cannot hold a registry: SQLite's address may have no ?, # or %")
        if must_exist and not database.is_file():
            raise RegistryError(f"{folder} is no registry: it has no {DATABASE_NAME}; registering a model makes one")
        if not database.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / LOCK_NAME, MAKING_SECONDS):
                if not database.is_file():
                    _create(database)
        _wait_for(database)
        with _explained(str(folder)):
            return cls(_connect(f"sqlite:///{database}"), folder, str(folder), is_server=False)

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
        """Store an artifact as the model's next version, the candidate; registered again, it is the version it was.

        Args:
            name: of the model, which is made if it is new.
            artifact: folder that ``training.export`` wrote.
            metrics: name -> value, of the run; None for one that is not defined.
            params: name -> value; what is nested gets names with dots.
            tags: of the version.
            extra: more files to keep beside the artifact, such as report.html.

        Returns:
            The version's number. The version is there with all its files or not at all.

        Raises:
            RegistryError: the artifact is damaged, or the registry cannot be written.
        """
        _check_name(name)
        digest, files = _read_artifact(artifact)
        with self._explained():
            run_id = ""
            if self._find(name, digest) is None:
                targets = {f"artifact/{file}": artifact / file for file in files}
                run_id = self._log(name, targets | {f"files/{path.name}": path for path in extra}, metrics, params)
            with self._alone():
                # Another program may have been faster; then this one's run is a run like any other.
                version = self._find(name, digest) or self._add(name, run_id, {**(tags or {}), SHA256_TAG: digest})
                self._nominate(name, version)
                return version

    def promote(self, name: str, version: int, *, despite_refusal: bool = False) -> ModelVersion:
        """Make a version the champion; the alias changes in one step, and who was champion before is remembered.

        Raises:
            RegistryError: there is no such version, or it was refused and ``despite_refusal`` is not set.
        """
        with self._explained(), self._alone():
            model = self._model(name)
            wanted = self._version(model, version)
            if wanted.refusals and not despite_refusal:
                raise RegistryError(f"{name} version {version} was refused: {'; '.join(wanted.refusals)}")
            if _champion(model) != version:
                self._settle(model)
                self._record(name, version)
                self._client.set_registered_model_alias(name, CHAMPION, str(version))
            return self._version(self._model(name), version)

    def rollback(self, name: str) -> ModelVersion:
        """Make the version champion that was it before; the next rollback goes one further back.

        Raises:
            RegistryError: there is no champion, or none before it.
        """
        with self._explained(), self._alone():
            model = self._model(name)
            serving = _champion(model)
            if serving is None:
                raise RegistryError(f"{name} has no champion to roll back")
            promotions = self._settle(model)
            there = {version.version for version in self._versions(model)}
            before = [p for p in promotions if p.version != serving and p.version in there]
            if not before:
                raise RegistryError(f"{name} version {serving} has no champion before it: promote another version")
            # The alias first: what a killed rollback leaves behind it, the next one finds to be undone.
            self._client.set_registered_model_alias(name, CHAMPION, str(before[-1].version))
            for promotion in promotions[promotions.index(before[-1]) + 1 :]:
                self._undo(name, promotion)
            return self._version(self._model(name), before[-1].version)

    def refuse(self, name: str, version: int, reasons: Sequence[str]) -> ModelVersion:
        """Keep a version with the reasons why it must not serve; it is a candidate no more.

        Raises:
            RegistryError: there is no such version, it serves, or no reason is given.
        """
        if not reasons:
            raise RegistryError(f"{name} version {version} is not refused without a reason")
        with self._explained(), self._alone():
            model = self._model(name)
            self._version(model, version)
            if _champion(model) == version:
                raise RegistryError(f"{name} version {version} is the champion: roll back or promote another one first")
            self._client.set_model_version_tag(name, str(version), REFUSED_TAG, json.dumps(list(reasons)))
            if _aliases(model).get(CANDIDATE) == version:
                self._client.delete_registered_model_alias(name, CANDIDATE)
            return self._version(self._model(name), version)

    # -------------------------------------------------------------------------------------------------------- reading

    def champion(self, name: str) -> ModelVersion | None:
        """The version that serves; None: no version does, or there is no such model.

        Raises:
            RegistryError: the registry cannot be read.
        """
        with self._explained():
            if name not in self._names():
                return None
            model = self._model(name)
            serving = _champion(model)
            return None if serving is None else self._version(model, serving)

    def list(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions, the newest first.

        Raises:
            RegistryError: there is no such model.
        """
        with self._explained():
            return tuple(self._versions(self._model(name)))

    def find(self, name_or_uri: str) -> ModelVersion:
        """The version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; of a name alone, the champion.

        Raises:
            RegistryError: there is none; says what there is.
        """
        match = MODEL_URI.fullmatch(name_or_uri)
        if match is None:
            raise RegistryError(f"{name_or_uri!r:.200} names no version: write models:/NAME@ALIAS or models:/NAME/3")
        name, alias, version = match.groups()
        with self._explained():
            model = self._model(name)
            if version is not None:
                return self._version(model, int(version))
            aliases = _aliases(model)
            if (alias or CHAMPION) not in aliases:
                raise RegistryError(f"{name} has no {alias or CHAMPION}; its aliases: {_listed(aliases)}")
            return self._version(model, aliases[alias or CHAMPION])

    def fetch(self, name_or_uri: str) -> Path:
        """Folder of a version's artifact, for ``Predictor.load``: the registry's own files, or copies of a server's.

        Raises:
            RegistryError: there is no such version, or its files are gone or others than were registered.
        """
        version = self.find(name_or_uri)
        if not re.fullmatch("[0-9a-f]{64}", version.sha256 or ""):
            raise RegistryError(f"{version.name} version {version.version} is no artifact of this project")
        with self._explained():
            if self._is_server:
                return self._download(version)
        # Not by the path that was stored: a registry may be moved, and nothing leads out of it.
        found = self._artifacts / check_relative(version.run_id) / "artifacts" / "artifact"
        if not _is_artifact(found, version.sha256):
            raise RegistryError(f"{found} is not what was registered as {version.name} version {version.version}")
        return found

    def logged(self, version: ModelVersion) -> tuple[dict[str, float], dict[str, str]]:
        """Metrics and parameters that a version was registered with.

        Raises:
            RegistryError: the registry cannot be read.
        """
        with self._explained():
            data = self._client.get_run(version.run_id).data
            return dict(data.metrics), dict(data.params)

    def history(self, name: str) -> tuple[Promotion, ...]:
        """Every promotion, the oldest first.

        Raises:
            RegistryError: there is no such model.
        """
        with self._explained():
            return tuple(_promotions(self._model(name)))

    # -------------------------------------------------------------------------------------------- MLflow's side of it

    @property
    def _artifacts(self) -> Path:
        return self._folder / "artifacts"

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained(self.place)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes this folder's champions meanwhile."""
        return contextlib.nullcontext() if self._is_server else _locked(self._folder / LOCK_NAME)

    def _names(self) -> Sequence[str]:
        pages = _pages(lambda token: self._client.search_registered_models(page_token=token))
        return [model.name for model in pages]

    def _model(self, name: str) -> Any:
        _check_name(name)
        if name not in (names := self._names()):
            raise RegistryError(f"{self.place} has no model {name!r}; it has {_listed(names)}")
        return self._client.get_registered_model(name)

    def _versions(self, model: Any) -> Sequence[ModelVersion]:
        pages = _pages(lambda t: self._client.search_model_versions(f"name = '{model.name}'", page_token=t))
        found = (_to_version(version, _aliases(model)) for version in pages)
        return sorted(found, key=lambda version: -version.version)

    def _version(self, model: Any, number: int) -> ModelVersion:
        versions = self._versions(model)
        for version in versions:
            if version.version == number:
                return version
        raise RegistryError(f"{model.name} has no version {number}; it has {_listed(v.version for v in versions)}")

    def _find(self, name: str, digest: str) -> int | None:
        """The version that an artifact is registered as."""
        tagged = f"name = '{name}' and tags.`{SHA256_TAG}` = '{digest}'"
        found = self._client.search_model_versions(tagged)
        return min((int(version.version) for version in found), default=None)

    def _log(
        self,
        name: str,
        files: Mapping[str, Path],
        metrics: Mapping[str, float | None] | None,
        params: Mapping[str, Any] | None,
    ) -> str:
        """Record a run with files, by their places in it; its id."""
        run_id = self._client.create_run(self._experiment(name), run_name=name).info.run_id
        try:
            self._log_values(run_id, dict(_flat(params or {})), metrics or {})
            for target, path in files.items():
                self._client.log_artifact(run_id, str(path), str(PurePosixPath(target).parent))
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what must be told
                self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id, "FINISHED")
        return run_id

    def _log_values(self, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float | None]) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, 0) for name, value in metrics.items() if value is not None]
        for start in range(0, len(values), METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=values[start : start + METRICS_A_CALL])
        texts = [Param(name, str(value)) for name, value in params.items()]
        for start in range(0, len(texts), PARAMS_A_CALL):
            self._client.log_batch(run_id, params=texts[start : start + PARAMS_A_CALL])

    def _experiment(self, name: str) -> str:
        """Where runs of a model are recorded; made if it is new."""
        from mlflow.exceptions import MlflowException

        location = None if self._is_server else self._artifacts.as_uri()
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                experiment = self._client.get_experiment(self._client.create_experiment(name, location))
            except MlflowException:
                experiment = self._client.get_experiment_by_name(name)  # another program was faster
                if experiment is None:
                    raise
        if self._is_server and urlsplit(experiment.artifact_location).scheme in ("", "file"):
            raise RegistryError(f"{self.place} keeps no artifacts: start it with --artifacts-destination")
        if location not in (None, experiment.artifact_location):
            raise RegistryError(
                f"{self.place} was moved from {experiment.artifact_location}: it can be read and promoted in here, "
                "registering needs it back there"
            )
        return experiment.experiment_id

    def _add(self, name: str, run_id: str, tags: dict[str, str]) -> int:
        """Make a run's artifact the next version."""
        if name not in self._names():
            with contextlib.suppress(Exception):  # another program was faster, or the next call says what is wrong
                self._client.create_registered_model(name)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/artifact"
        # Ready at once: there is nothing to wait for.
        return int(self._client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0).version)

    def _nominate(self, name: str, version: int) -> None:
        """Make the newest version the candidate, if it is new: an earlier try may have been killed before that."""
        newest, *_ = self._versions(self._model(name))
        if newest.version == version and not newest.aliases and not newest.refusals:
            self._client.set_registered_model_alias(name, CANDIDATE, str(version))

    def _download(self, version: ModelVersion) -> Path:
        """A copy of an artifact that a server keeps, each file checked; the one that is there already, if it is."""
        found = self._folder / "fetched" / str(version.sha256)
        if _is_artifact(found, version.sha256):
            return found
        temporary = found.with_name(f".{found.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
        (temporary / "artifact").mkdir(parents=True)
        try:
            self._download_file(version, ARTIFACT_NAME, temporary)
            # File by file, as the artifact lists them, and not what the server lists: a name may lead anywhere.
            for name in _read_description(temporary / "artifact")["files"]:
                self._download_file(version, name, temporary)
            digest, _ = _read_artifact(temporary / "artifact")
            if digest != version.sha256:
                raise RegistryError(f"{self.place} gave other files than were registered as version {version.version}")
            shutil.rmtree(found, ignore_errors=True)
            with contextlib.suppress(OSError):  # another program was faster
                (temporary / "artifact").rename(found)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return found

    def _download_file(self, version: ModelVersion, name: str, temporary: Path) -> None:
        """Fetch one file of an artifact into ``temporary/artifact``."""
        target = temporary / "artifact" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # MLflow says where it put the file: some stores keep its folders, some do not.
        put = self._client.download_artifacts(version.run_id, f"artifact/{name}", str(temporary))
        Path(put).replace(target)

    # ------------------------------------------------------------------------------------------------ who was champion

    def _settle(self, model: Any) -> Sequence[Promotion]:
        """The promotions that hold, the oldest first and the champion's last.

        A promotion that was killed before the alias changed, or a rollback after it did, left newer ones: they end. A
        champion that another tool made gets a promotion.
        """
        promotions = [promotion for promotion in _promotions(model) if not promotion.undone]
        serving = _champion(model)
        if serving is None:
            return promotions
        places = [i for i, promotion in enumerate(promotions) if promotion.version == serving]
        if not places:
            return [*promotions, self._record(model.name, serving)]
        for promotion in promotions[places[-1] + 1 :]:
            self._undo(model.name, promotion)
        return promotions[: places[-1] + 1]

    def _record(self, name: str, version: int) -> Promotion:
        # Numbers and not times: clocks of several machines differ. The rest of the key keeps two at once apart.
        number = max((promotion.number for promotion in _promotions(self._model(name))), default=0) + 1
        made = Promotion(number, version, _iso(time.time()), key=f"{PROMOTION_TAG}{number:06d}.{uuid.uuid4().hex[:8]}")
        self._write(name, made, undone=False)
        return made

    def _undo(self, name: str, promotion: Promotion) -> None:
        self._write(name, promotion, undone=True)

    def _write(self, name: str, promotion: Promotion, undone: bool) -> None:
        value = {"version": promotion.version, "at": promotion.at, "undone": undone}
        self._client.set_registered_model_tag(name, promotion.key, json.dumps(value))


# -------------------------------------------------------------------------------------------------- what MLflow answers


def _aliases(model: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in model.aliases.items()}


def _champion(model: Any) -> int | None:
    return _aliases(model).get(CHAMPION)


def _promotions(model: Any) -> list[Promotion]:
    """What a model's tags say, in the order of their keys, which is that of their numbers."""
    found = sorted((key, json.loads(value)) for key, value in model.tags.items() if key.startswith(PROMOTION_TAG))
    return [
        Promotion(int(key.split(".")[1]), value["version"], value["at"], value["undone"], key) for key, value in found
    ]


def _to_version(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
    number = int(found.version)
    named = tuple(sorted(alias for alias, version in aliases.items() if version == number))
    created = _iso(found.creation_timestamp / 1000)
    return ModelVersion(found.name, number, named, dict(found.tags), created, found.run_id)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pages(search: Any) -> Iterator[Any]:
    """All that a search finds, page by page."""
    token = None
    while True:
        page = search(token)
        yield from page
        if not (token := page.token):
            return


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_name(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise RegistryError(f"{name!r:.120} is no name of a model: letters, digits, _ . and - only, 100 at most")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names) or "none"


# ------------------------------------------------------------------------------------------------------------ artifacts


def _read_artifact(folder: Path) -> tuple[str, list[str]]:
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


def _is_artifact(folder: Path, digest: str | None) -> bool:
    """Whether it is the artifact that was registered; its other files are checked by ``Predictor.load``."""
    return (folder / ARTIFACT_NAME).is_file() and _sha256(folder / ARTIFACT_NAME) == digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------------- opening


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


def _reach(uri: str) -> "MlflowClient":
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise RegistryError(
            f"{uri!r:.200} is no registry: give a folder, or a server's http:// or https:// address without a password "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD have that)"
        )
    with _explained(uri):
        client = _connect(uri)
        client.search_registered_models(max_results=1)
        return client


def _create(database: Path) -> None:
    """Make MLflow's tables; the file has its name when all of them are there, which takes seconds."""
    _mlflow()
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    temporary = database.with_name(f".{database.name}.tmp")
    temporary.unlink(missing_ok=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{temporary}")
    _initialize_tables(engine)
    engine.dispose()
    temporary.rename(database)


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


@contextlib.contextmanager
def _locked(path: Path, patience: float | None = None) -> Iterator[None]:
    """Hold a lock between processes of this machine; one that dies lets go.

    Raises:
        RegistryError: somebody else holds it for too long.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RegistryError(_reason(str(path.parent), "database is locked")) from None
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
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
