"""A run's folder on disk: its files' names, a strict reader for training, a tolerant one for reports.

config.json      the resolved config                  dataset.json     what it is trained on, and the run's version
learnt/          the dataset's learnt state           checkpoints/     see ``checkpoint``
plan.json        where every table lies               history.jsonl    a line an event, while it trains
metrics.json     written last, deleted by --resume    calibration.json fitted on the validation split
evaluation/      metrics and curves a split           failure.json     why it cannot go on
attribution.json, tables.json, report.html: what jobs.attribute, jobs.compare_tables and jobs.report found
vectors/         fixed vectors, see ``vector_tables``
chosen.json      settings that were chosen from the dataset, each with its reason
gate.json, checks.json: of a retraining's candidate   artifact/        see ``artifact``
tracking.json    MLflow run, and steps recorded there tensorboard/     event files (training.tracking)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from features.disk.atomic import write_json, write_text
from features.disk.dataset import BUILD_NAME, SPLITS, DatasetError, DatasetManifest
from features.disk.object_store import StorageError
from features.disk.place import Place, locate
from features.disk.trained_on import TrainedOn
from features.disk.versions import Format
from features.learnt import Learnt
from features.schema import FeatureSchema

CONFIG_NAME, DATASET_NAME, METRICS_NAME, PLAN_NAME = "config.json", "dataset.json", "metrics.json", "plan.json"
HISTORY_NAME, FAILURE_NAME, CALIBRATION_NAME = "history.jsonl", "failure.json", "calibration.json"
GATE_NAME, CHECKS_NAME, CHOSEN_NAME = "gate.json", "checks.json", "chosen.json"
TRACKING_NAME, TENSORBOARD_NAME = "tracking.json", "tensorboard"
ATTRIBUTION_NAME, TABLES_NAME, REPORT_NAME = "attribution.json", "tables.json", "report.html"
LEARNT_NAME, CHECKPOINTS_NAME, ARTIFACT_FOLDER, ERRORS_NAME = "learnt", "checkpoints", "artifact", "errors"
RUN_LOCK_NAME = ".lock"
"""Lock file that the training program holds."""
WORKERS_LOCK_NAME = ".workers"
"""Lock file that the living workers share; it says which training they belong to."""
RESERVE_NAME = ".reserve"
"""Spare file, deleted when the disk is full to make room for the reason of the failure."""

RUN_FORMAT = Format("run", "update twinfocus here, or train the model again with this program")


class RunError(ValueError):
    """A run folder cannot be used as asked; the message says what to do."""


def evaluation_name(split: str) -> str:
    """Return the name of the file with a split's metrics and curves."""
    return f"evaluation/{split}.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the run's checkpoints, unless its config keeps them elsewhere."""
        return self.path / CHECKPOINTS_NAME

    @property
    def history(self) -> Path:
        """Return the file with a line an event."""
        return self.path / HISTORY_NAME

    @property
    def failure(self) -> Path:
        """Return the file that says why the run cannot go on, written by the worker that noticed."""
        return self.path / FAILURE_NAME

    @property
    def artifact(self) -> Path:
        """Return the folder of the artifact that a retraining exports."""
        return self.path / ARTIFACT_FOLDER

    @property
    def is_finished(self) -> bool:
        """Tell whether training has come to its end and left all that its config promises.

        A calibration that was refused leaves metrics, but none of what an export needs.
        """
        try:
            metrics, training = self.read(METRICS_NAME), self.read(CONFIG_NAME)["training"]
            best_step = metrics["best_step"]
            wanted = training.get("calibration", {})
            needs_none = wanted.get("kind", "none") == "none" or (
                wanted.get("only_where_it_helps", False) and "valid" not in metrics
            )
            return needs_none or self.read(CALIBRATION_NAME)["step"] == best_step
        except (RunError, KeyError, TypeError, AttributeError):
            return False

    def read(self, name: str) -> Any:
        """Read one of the run's JSON files.

        Raises:
            RunError: it is absent or damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path} is not a usable run: {name} cannot be read ({error})") from error

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the run in one step.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def read_dataset(self) -> dict[str, Any]:
        """Read what the run is trained on, in this program's version.

        Raises:
            RunError: it is absent, damaged, or of a newer version.
        """
        return RUN_FORMAT.upgrade(self.read(DATASET_NAME), self.path, RunError)

    def trained_on(self) -> TrainedOn:
        """Read the identity of the dataset that the run is trained on, with fingerprints of this program's version.

        Raises:
            RunError: ``dataset.json`` or the config's features are absent or damaged, or a newer version made the run.
            DatasetError: ``dataset.json`` is not understood, or is of another feature schema than the config.
        """
        return TrainedOn.from_json(self.read_dataset(), self.schema())

    def schema(self) -> FeatureSchema:
        """Read the features section that the run was started with, a model's choices such as pooling included.

        Raises:
            RunError: it is absent or damaged.
        """
        try:
            return TypeAdapter(FeatureSchema).validate_python(self.read(CONFIG_NAME)["features"])
        except (KeyError, TypeError, ValidationError) as error:
            raise RunError(f"{self.path} is not a usable run: {CONFIG_NAME} has no features ({error})") from error

    def write_dataset(self, value: Mapping[str, Any]) -> str | None:
        """Write what the run is trained on, and with it the run's version.

        Returns:
            A sentence for the user where the run was of an older version.

        Raises:
            RunError: the run is of a newer version.
            OSError: it cannot be written.
        """
        has_one = (self.path / DATASET_NAME).exists()
        note = RUN_FORMAT.upgrade_note(self.read(DATASET_NAME), self.path, RunError) if has_one else None
        self.write(DATASET_NAME, {**value, "version": RUN_FORMAT.version})
        return note

    def learnt(self, schema: FeatureSchema) -> Learnt:
        """Read the learnt state of the dataset that the run was trained on.

        Raises:
            LearntError: it is missing or damaged.
        """
        return Learnt.load(self.path / LEARNT_NAME, schema)

    def append(self, event: Mapping[str, Any]) -> None:
        """Add one line to the history."""
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """Read the history's events.

        Raises:
            ValueError: a line is damaged.
        """
        return list(_read_lines(self.history))

    def rewind(self, step: int) -> None:
        """Drop the history's events after ``step``: those steps will be done again."""
        if not self.history.exists():
            return
        lines = self.history.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text(self.history, "".join(kept))


@dataclass(frozen=True)
class RunFiles:
    """Contents of a run folder for a report: an absent part is None or empty.

    Attributes:
        path: the folder.
        config: the resolved config.
        progress: history lines of training steps, in order.
        checks: history lines of evaluations, in order.
        windows: history lines of training rows that were scored before they were trained on, in order.
        pretrained: feature -> vectors that its tables started with.
        metrics: metrics at the end of training.
        plan: sharding of every table.
        evaluations: split -> {"metrics", "curves"}, with ``by_length`` where the dataset has sequences.
        best_step: step of the checkpoint that is served, as far as the history tells.
        attribution: result of ``jobs.attribute``.
        tables: result of ``jobs.compare_tables``.
        data_checks: date -> result for each partition that it was trained or tested on, if it is a retraining's.
        gate: verdict of the gate.
        dataset_path: folder or URL of its dataset.
        manifest: manifest of its dataset, if that is still the one it was trained on.
        build: summary of the dataset's last ``jobs.build_dataset``.
        notes: part -> reason why it is missing, for the reader of the report.
    """

    path: Path
    config: Mapping[str, Any]
    progress: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    pretrained: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    plan: list[dict[str, Any]] = field(default_factory=list)
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    best_step: int | None = None
    attribution: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    data_checks: Mapping[str, Any] = field(default_factory=dict)
    gate: Any = None
    dataset_path: str | None = None
    manifest: DatasetManifest | None = None
    build: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, checks: Any = Any, gate: Any = Any) -> "RunFiles":
        """Read a run folder.

        Args:
            path: the folder.
            checks: type of ``data_checks`` as pydantic reads it; Any leaves plain JSON values.
            gate: type of ``gate``.

        Raises:
            ValueError: it is not a run, or one of its files is damaged; names the file.
        """
        if not (path / CONFIG_NAME).is_file():
            raise ValueError(f"{path} is not a run: it has no {CONFIG_NAME}; jobs.train makes one")
        history = RunFolder(path).events()
        dataset = RUN_FORMAT.upgrade(_read(path / DATASET_NAME, {}), path)
        manifest, note = _load_manifest(dataset)
        folder = dataset.get("dataset")
        splits = [name for name in SPLITS if (path / evaluation_name(name)).is_file()]
        return cls(
            path=path,
            config=_read(path / CONFIG_NAME, {}),
            progress=[e for e in history if e.get("event") == "progress"],
            checks=[e for e in history if e.get("event") == "evaluation"],
            windows=[e for e in history if e.get("event") == "window"],
            pretrained=next((e["features"] for e in reversed(history) if e.get("event") == "pretrained"), {}),
            metrics=_read(path / METRICS_NAME, {}),
            plan=_read(path / PLAN_NAME, []),
            evaluations={name: _read(path / evaluation_name(name), {}) for name in splits},
            best_step=_best_step(history),
            attribution=_read(path / ATTRIBUTION_NAME, {}),
            tables=_read(path / TABLES_NAME, {}),
            data_checks=_checked(path / CHECKS_NAME, checks) or {},
            gate=_checked(path / GATE_NAME, gate),
            dataset_path=folder,
            manifest=manifest,
            build=_read(locate(folder) / BUILD_NAME, {}) if manifest is not None and folder else {},
            notes={"dataset": note} if note else {},
        )


def _best_step(history: list[dict[str, Any]]) -> int | None:
    """Find the step of the best evaluation; where nothing was evaluated, of the newest checkpoint."""
    checks = [e for e in history if e.get("event") == "evaluation"]
    # An extra one, where the time ran out, is forgotten when training goes on.
    best = [e["step"] for e in checks if e.get("best") and (not e.get("is_extra") or e is checks[-1])]
    steps = best or [e["step"] for e in history if e.get("event") == "checkpoint"]
    return steps[-1] if steps else None


def _load_manifest(dataset: Mapping[str, Any]) -> tuple[DatasetManifest | None, str]:
    """Load the manifest of the run's dataset, or None; the note says why, or what differs from the run's rows."""
    if "dataset" not in dataset:
        return None, f"The run names no dataset ({DATASET_NAME} is missing)."
    try:
        manifest = DatasetManifest.load(dataset["dataset"])
    except (DatasetError, StorageError) as error:
        return None, f"The dataset cannot be described any more: {error}."
    if manifest.learnt_fingerprint != dataset.get("learnt_fingerprint", manifest.learnt_fingerprint):
        return None, f"{dataset['dataset']} was built anew since this run and is another dataset now."
    # Runs of earlier versions do not say which rows they were trained on.
    difference = TrainedOn.parse(dataset).difference(manifest) if "fingerprint" in dataset else None
    return manifest, f"{dataset['dataset']} is not what this run was trained on: {difference}." if difference else ""


def _read(path: Place, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        return json.loads(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _checked(path: Path, kind: Any) -> Any:
    """Read a JSON file as a type; None where it is absent."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ValueError(f"{path} cannot be read: {first['msg']} at {'.'.join(map(str, first['loc']))}") from error


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the lines of a history; a last line without an end is still being written and left out."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} cannot be read: {error}") from error
