"""RetrainingStatus: the champion, the outcome and data of every day, and the next retraining's plan.

It is read from the files of retraining and from the registry; neither is changed.
"""

import dataclasses
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from features.disk.retrain_folder import RetrainFiles
from jobs.cli.config import Config
from jobs.cli.retrain_config import RetrainConfig
from jobs.registry.model_versions import ModelVersion, to_iso
from jobs.registry.promotions import Promotion
from jobs.registry.registry import Registry
from jobs.registry.store import RegistryError
from jobs.retraining.data_checks import CheckResult
from jobs.retraining.file_states import describe_files
from jobs.retraining.partition_status import PartitionStatus, read_partitions, reasons_of, stopper
from jobs.retraining.retrain_folder import REBUILT_TAG, TRAINED_TAG, RetrainFolder, still_trained_on
from jobs.retraining.shapes import find_distances
from jobs.retraining.status_files import Outcome, StatusFiles, one_line
from jobs.retraining.todo import Todo, plan

NUM_SHOWN = 10
"""Retrainings listed at most, the newest ones."""


@dataclass(frozen=True)
class Champion:
    """Champion: the version that serves.

    Attributes:
        registered, promoted: UTC, ISO 8601; promoted is None if the registry does not remember it.
        trained_on: dates, oldest first; empty if not known.
        newer: existing dates later than all of those.
    """

    version: int
    registered: str
    promoted: str | None
    trained_on: tuple[str, ...]
    newer: tuple[str, ...]


@dataclass(frozen=True)
class RetrainingStatus:
    """Status of one model's retraining.

    Attributes:
        place: folder or address of the registry.
        at: time of reading, UTC.
        outcomes: outcomes of retrainings and of days that data checks stopped, oldest first.
        partitions: states of partitions, oldest first.
        todo: plan of the next retraining, before its data checks; None: not known.
        notes: problems and omissions, a sentence each.
    """

    root: Path
    model: str
    place: str
    at: str
    champion: Champion | None
    promotions: tuple[Promotion, ...]
    outcomes: tuple[Outcome, ...]
    partitions: tuple[PartitionStatus, ...]
    todo: Todo | None
    files: StatusFiles
    notes: tuple[str, ...]
    registry_problem: str | None = None
    """Reason why the champion is not known; None: the registry was read."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return self.files.is_empty and not self.partitions and not self.champion and not self.promotions

    @property
    def drift(self) -> dict[str, list[CheckResult]]:
        """Drift by date: distances of its features to the dates before, the largest first."""
        found = {date: find_distances(checks) for date, checks in self.files.checks.items()}
        return {date: results for date, results in found.items() if results}

    def reasons(self, outcome: Outcome) -> tuple[str, ...]:
        """List why a retraining did not promote: failed rules of the gate, data checks that stopped it, its error."""
        found: list[str] = []
        if outcome.verdict in ("failed", "interrupted"):
            found.append(outcome.error or "it does not say why")
        if outcome.verdict == "stopped" and outcome.day in self.files.checks:
            found += reasons_of(self.files.checks[outcome.day], "stop")
        if outcome.gate is not None:
            failed = [rule for rule in outcome.gate.rules if not rule.passed]
            found += [f"{rule.name}: {rule.reason or rule.threshold}" for rule in failed]
        if not outcome.is_done:
            found.append("decided but not carried out: the next retraining does that")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values; dates and retrainings oldest first."""
        last = self.files.last
        return {
            "root": str(self.root),
            "model": self.model,
            "registry": self.place,
            "at": self.at,
            "is_running": self.files.is_running,
            "undecided": self.files.undecided,
            "champion": self.champion and dataclasses.asdict(self.champion),
            "promotions": [{"version": p.version, "at": p.at, "undone": p.undone} for p in self.promotions],
            "last": last and self._described(last),
            "retrainings": [self._described(outcome) for outcome in self.outcomes[-NUM_SHOWN:]],
            "metrics": [{"day": outcome.day, **outcome.metrics} for outcome in self.files.verdicts.values()],
            "partitions": [dataclasses.asdict(partition) for partition in self.partitions],
            "drift": {
                date: {r.feature: {"distance": r.rule, "value": r.value, "limit": r.limit} for r in results}
                for date, results in self.drift.items()
            },
            "next": self.todo and dataclasses.asdict(self.todo),
            "notes": self.notes,
        }

    def _described(self, outcome: Outcome) -> dict[str, Any]:
        kept = {key: value for key, value in dataclasses.asdict(outcome).items() if key not in ("metrics", "gate")}
        return {**kept, "reasons": self.reasons(outcome)}


def read_status(root: Path, model: str, registry: str | None = None, config: Config | None = None) -> RetrainingStatus:
    """Read the status of a retraining.

    Args:
        root: folder of the retraining; it may be missing.
        model: name in the registry.
        registry: address of an MLflow server; None: the folder in ``root``.
        config: config with ``retrain``; None: partitions that were not begun and the next plan stay unknown.
    """
    files = StatusFiles.load(root)
    notes = list(files.problems)
    version, promotions, problem = None, (), None
    try:
        version, promotions = _read_registry(root, model, registry)
    except RegistryError as error:
        problem = f"the registry cannot be read, so the champion is not known: {error}"
        notes.append(problem)
    trained = None if version is None else _trained_on(version, RetrainFiles(root), notes)
    rules = config and config.retrain
    log = LogStatus() if config is None or rules is None else _read_log(RetrainFolder(root, config, rules), notes)
    goes_back = rules is not None and rules.train_on == "new"
    partitions = read_partitions(files, log.there, log.left_out, log.unready, trained or (), goes_back)
    return RetrainingStatus(
        root=root,
        model=model,
        place=registry or str(RetrainFiles(root).registry_folder),
        at=to_iso(time.time()),
        champion=None if version is None else _champion(version, promotions, trained or (), partitions),
        promotions=promotions,
        outcomes=_outcomes(files),
        partitions=partitions,
        todo=_plan(log, files, trained, rules) if rules and log.there and not problem else None,
        files=files,
        notes=tuple(notes),
        registry_problem=problem,
    )


@dataclass(frozen=True)
class LogStatus:
    """Partitions of a log, by what the next retraining does with them.

    Attributes:
        there: partitions of the log, and those built of it.
        done: partitions that need no build: built and unchanged, or unreadable and unchanged.
        left_out: late partitions that the config ignores.
        unready: dates that are not complete yet.
    """

    there: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()


def _read_log(place: RetrainFolder, notes: list[str]) -> LogStatus:
    """Look at the log; add what is to be said of it to ``notes``."""
    try:
        if new := place.undated_files():
            notes.append(f"{len(new)} raw files are new: the next retraining looks for the dates of their rows")
        for name, more in place.changed().items():
            notes.append(f"the raw files of {name} have changed by {more:+,} rows since it was built")
        for name, changes in place.changed_files().items():
            notes.append(f"the raw files of {name} have changed since it was built: {describe_files(changes)}")
        for name, reason in place.unreadable().items():
            notes.append(f"{name} cannot be read: {reason}")
        for file, reason in place.dates.unreadable().items():
            notes.append(f"{file} is put aside until it changes: {reason}")
        unready = place.unready()
        notes += [f"{name} is not ready: {reason}" for name, reason in unready.items()]
        if undated := place.dates.num_undated():
            notes.append(f"{undated:,} raw rows have no readable time and are in no partition")
        late = place.late() if place.rules.late == "ignore" else ()
        raw = place.raw()
        return LogStatus(tuple(raw), place.done(raw), tuple(late), tuple(unready))
    except (ValueError, OSError, KeyError, TypeError) as error:
        notes.append(f"which partitions are there is not known: {one_line(error)}")
        return LogStatus()


# --------------------------------------------------------------------------------------------------------- the registry


def _read_registry(root: Path, model: str, address: str | None) -> tuple[ModelVersion | None, tuple[Promotion, ...]]:
    if address is None and not RetrainFiles(root).registry_folder.is_dir():
        return None, ()
    registry = Registry.open(address, RetrainFiles(root).registry_folder, must_exist=True)
    champion = registry.champion(model)
    return champion, () if champion is None else registry.history(model)


def _trained_on(version: ModelVersion, files: RetrainFiles, notes: list[str]) -> tuple[str, ...]:
    try:
        names = TypeAdapter(tuple[str, ...]).validate_json(version.tags.get(TRAINED_TAG, ""))
        rebuilt = TypeAdapter(dict[str, int]).validate_json(version.tags.get(REBUILT_TAG, "{}"))
        return tuple(still_trained_on(files, names, rebuilt))
    except ValidationError:
        notes.append(f"version {version.version} does not say what it was trained on: retraining did not register it")
        return ()


def _champion(
    version: ModelVersion,
    promotions: tuple[Promotion, ...],
    trained: tuple[str, ...],
    partitions: tuple[PartitionStatus, ...],
) -> Champion:
    times = [p.at for p in promotions if p.version == version.version and not p.undone]
    newer = tuple(p.name for p in partitions if trained and p.name > max(trained))
    return Champion(version.version, version.created, times[-1] if times else None, tuple(sorted(trained)), newer)


# --------------------------------------------------------------------------------------------------------- the outcomes


def _outcomes(files: StatusFiles) -> tuple[Outcome, ...]:
    """List the outcomes of retrained and stopped days, by day, then of the last retraining if it failed."""
    stopped = [
        Outcome(date, "stopped", stopped_by=stopper(checks), written=checks.written)
        for date, checks in files.checks.items()
        if checks.level == "stop" and date not in files.verdicts
    ]
    found = sorted([*files.verdicts.values(), *stopped], key=lambda outcome: outcome.day or "")
    has_failed = files.last is not None and files.last.verdict in ("failed", "interrupted")
    return (*found, files.last) if files.last is not None and has_failed else tuple(found)


def _plan(log: LogStatus, files: StatusFiles, trained: tuple[str, ...] | None, rules: RetrainConfig) -> Todo:
    stopped = {name: checks for name, checks in files.checks.items() if checks.level == "stop"}
    todo = plan(log.there, None, log.done, stopped, trained, rules)
    # A day is decided once: after a refusal nothing is trained before there is a newer one.
    return replace(todo, train=(), test=None, valid=None) if todo.test in files.verdicts else todo
