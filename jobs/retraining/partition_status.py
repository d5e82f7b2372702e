"""PartitionStatus: state of each partition of a log, and statistics of its data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from features.disk.window import SOURCE_SPLIT
from jobs.retraining.data_checks import CheckResult, Checks, Level
from jobs.retraining.raw_partitions import is_late
from jobs.retraining.retrain_folder import UNREADABLE
from jobs.retraining.status_files import StatusFiles

State = Literal[
    "not yet seen", "not ready", "left out", "half built", "not checked", "stopped", "checked", "trained on"
]
"""State of a partition. trained on: by the champion. checked: may be trained on. left out: late rows under
retrain.late = "ignore". not ready: as retrain.ready and retrain.min_age_seconds say."""


@dataclass(frozen=True)
class PartitionStatus:
    """State and statistics of one partition; unknown values are None or empty."""

    name: str
    state: State
    is_late: bool
    """Whether it came after its date's own partition was built, or after the champion had seen later ones."""
    level: Level | None = None
    rows: int | None = None
    label_rate: float | None = None
    null_rates: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    """Reasons of data checks that are not ok, a sentence each."""


def read_partitions(
    files: StatusFiles,
    there: Sequence[str],
    left_out: Sequence[str],
    unready: Sequence[str],
    trained: Sequence[str],
    goes_back: bool,
) -> tuple[PartitionStatus, ...]:
    """Describe every partition that is there or was begun, oldest first.

    Args:
        files: files of the retraining.
        there: names of partitions whose raw files are there.
        left_out: names of late partitions that the config ignores.
        unready: dates that are not complete yet.
        trained: names of partitions that the champion was trained on.
        goes_back: whether the next candidate is also trained on partitions older than all of those.
    """
    span = ("" if goes_back else min(trained, default=""), max(trained, default=""))
    names = {*there, *files.partitions, *files.half_built, *files.checks}
    known = [_describe(name, files, trained, span) for name in names]
    known += [PartitionStatus(name, "left out", is_late=True) for name in left_out if name not in names]
    known += [PartitionStatus(name, "not ready", is_late=False) for name in unready if name not in names]
    return tuple(sorted(known, key=lambda partition: partition.name))


def _describe(name: str, files: StatusFiles, trained: Sequence[str], span: tuple[str, str]) -> PartitionStatus:
    checks, manifest = files.checks.get(name), files.partitions.get(name)
    level = None if checks is None else checks.level
    was_passed = level != "stop" and name not in trained and span[0] < name < span[1]
    reasons = () if checks is None else reasons_of(checks, "stop", "warn")
    found = PartitionStatus(
        name, _state(name, files, level, trained), was_passed or is_late(name), level, reasons=reasons
    )
    if manifest is None or SOURCE_SPLIT not in manifest.splits:
        return found
    split = manifest.splits[SOURCE_SPLIT]
    rates = {feature: statistics.null_rate for feature, statistics in {**split.sparse, **split.dense}.items()}
    return replace(found, rows=split.num_rows, label_rate=split.label_rate, null_rates=rates)


def _state(name: str, files: StatusFiles, level: Level | None, trained: Sequence[str]) -> State:
    if name in trained:
        return "trained on"
    if level is not None:
        return "stopped" if level == "stop" else "checked"
    if name in files.partitions:
        return "not checked"
    return "half built" if name in files.half_built else "not yet seen"


def reasons_of(checks: Checks, *levels: Level) -> tuple[str, ...]:
    """Write a sentence for each result of these levels, in the order of the levels."""
    found = [result for level in levels for result in checks.results if result.level == level]
    return tuple(_sentence(result) for result in found)


def stopper(checks: Checks) -> str:
    """Say what stopped a partition: a data check, or that its files cannot be read."""
    return UNREADABLE if any(result.rule == UNREADABLE for result in checks.results) else "data checks"


def _sentence(result: CheckResult) -> str:
    subject = f"{result.rule} of {result.feature}" if result.feature else result.rule
    if result.rule in ("duplicate", "classes", UNREADABLE):
        return f"{subject}: {result.reason}"
    before = "" if result.reference is None else f" where {result.reference:.4g} was"
    return f"{subject}: {result.value:.4g}{before}, {result.threshold}"
