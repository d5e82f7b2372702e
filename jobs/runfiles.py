"""RunFiles: what a run folder holds, read without Torch; a part that is not there is empty, a damaged one an error."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.object_store import StorageError
from features.disk.place import Place, locate
from jobs.pages.table_section import NAME as TABLES_NAME
from jobs.retraining.shapes import KeptChecks
from training.judge.gate import Verdict

T = TypeVar("T")


@checked(frozen=True)
class GateFile:
    """What the gate said of a candidate."""

    verdict: Verdict
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """candidate and champion -> metrics."""
    day: str | None = None
    """Whose rows both were compared on."""


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds; a part that is not there is None or empty.

    Attributes:
        progress: history lines of training steps, in order.
        checks: history lines of evaluations, in order.
        evaluations: split -> {"metrics", "curves"}.
        best_step: step of the checkpoint that is served, as far as the history tells.
        attribution: of ``jobs.attribute``.
        tables: of ``jobs.compare_tables``.
        data_checks: date -> what was said of each partition that it was trained or tested on, if it is a retraining's.
        gate: what the gate said of it.
        build: what the last ``jobs.build_dataset`` said of itself.
        notes: why a part is missing, for the reader of the report.
    """

    path: Path
    config: Mapping[str, Any]
    progress: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    plan: list[dict[str, Any]] = field(default_factory=list)
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    best_step: int | None = None
    attribution: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    data_checks: Mapping[str, KeptChecks] = field(default_factory=dict)
    gate: GateFile | None = None
    dataset_path: str | None = None
    manifest: DatasetManifest | None = None
    build: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "RunFiles":
        """Read a run folder.

        Raises:
            ValueError: it is not a run, or one of its files is damaged; names the file.
        """
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a run: it has no config.json; jobs.train makes one")
        history = list(_read_lines(path / "history.jsonl"))
        dataset = _read(path / "dataset.json", {})
        manifest, note = _load_manifest(dataset)
        folder = dataset.get("dataset")
        splits = [name for name in ("train", "valid", "test") if (path / "evaluation" / f"{name}.json").is_file()]
        return cls(
            path=path,
            config=_read(path / "config.json", {}),
            progress=[e for e in history if e.get("event") == "progress"],
            checks=[e for e in history if e.get("event") == "evaluation"],
            metrics=_read(path / "metrics.json", {}),
            plan=_read(path / "plan.json", []),
            evaluations={name: _read(path / "evaluation" / f"{name}.json", {}) for name in splits},
            best_step=_best_step(history),
            attribution=_read(path / "attribution.json", {}),
            tables=_read(path / TABLES_NAME, {}),
            data_checks=_checked(path / "checks.json", dict[str, KeptChecks]) or {},
            gate=_checked(path / "gate.json", GateFile),
            dataset_path=folder,
            manifest=manifest,
            build=_read(locate(folder) / "build.json", {}) if manifest is not None and folder else {},
            notes={"dataset": note} if note else {},
        )


def _best_step(history: list[dict[str, Any]]) -> int | None:
    """Of the best evaluation; where nothing was evaluated, of the newest checkpoint."""
    best = [e["step"] for e in history if e.get("event") == "evaluation" and e.get("best")]
    steps = best or [e["step"] for e in history if e.get("event") == "checkpoint"]
    return steps[-1] if steps else None


def _load_manifest(dataset: Mapping[str, Any]) -> tuple[DatasetManifest | None, str]:
    """The manifest of the run's dataset, or None and why."""
    if "dataset" not in dataset:
        return None, "The run names no dataset (dataset.json is missing)."
    try:
        manifest = DatasetManifest.load(dataset["dataset"])
    except (DatasetError, StorageError) as error:
        return None, f"The dataset cannot be described any more: {error}."
    if manifest.learnt_fingerprint != dataset.get("learnt_fingerprint", manifest.learnt_fingerprint):
        return None, f"{dataset['dataset']} was built anew since this run and is another dataset now."
    return manifest, ""


def _read(path: Place, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        return json.loads(path.read_bytes().decode())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _checked(path: Path, kind: type[T]) -> T | None:
    """A file of a known kind; keys that are not known here are left alone."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ValueError(f"{path} cannot be read: {first['msg']} at {'.'.join(map(str, first['loc']))}") from error


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a history; one without an end is still being written and left out."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} cannot be read: {error}") from error
