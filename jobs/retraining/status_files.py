"""StatusFiles: content of a retraining's folder, read without changing it.

A retraining may be running, or may have been killed: missing files are no error, and a damaged one becomes a sentence
in ``problems``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from features.disk.dataset import DatasetManifest
from features.disk.retrain_folder import RetrainFiles, partition_name
from jobs.registry.model_versions import to_iso
from jobs.retraining.shapes import KeptChecks
from training.judge.gate import Verdict

T = TypeVar("T")


@checked(frozen=True)
class Outcome:
    """Outcome of one retraining."""

    day: str | None
    """Day of the partition that both models were compared on, or that data checks stopped."""
    verdict: str
    """Verdict: promoted, refused, stopped, nothing, failed or interrupted."""
    stopped_by: str | None = None
    version: int | None = None
    champion_version: int | None = None
    auc: float | None = None
    logloss: float | None = None
    trained_on: tuple[str, ...] = ()
    train_rows: int | None = None
    is_warm: bool | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metrics on the day: candidate, champion -> metric -> value."""
    gate: Verdict | None = None
    is_done: bool = True
    seconds: float | None = None
    step: str | None = None
    error: str | None = None
    """Error of the step ``step``; None: nothing failed."""
    written: str | None = None
    """Time of the file's last change, UTC."""


@dataclass(frozen=True)
class StatusFiles:
    """Content of a retraining's folder.

    Attributes:
        verdicts: day -> outcome of its retraining, oldest first.
        checks: date -> its data checks, oldest first.
        partitions: date -> manifest of its dataset, oldest first.
        half_built: dates whose dataset has no manifest yet.
        undecided: days whose candidate was begun and has no verdict yet.
        last: outcome of the last retraining; None: there was none.
        is_running: whether a retraining holds the folder's lock; None: this system cannot tell.
        problems: a sentence for each file that cannot be read.
    """

    verdicts: dict[str, Outcome]
    checks: dict[str, KeptChecks]
    partitions: dict[str, DatasetManifest]
    half_built: tuple[str, ...]
    undecided: tuple[str, ...]
    last: Outcome | None
    is_running: bool | None
    problems: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the folder has no files of a retraining."""
        return not (self.verdicts or self.checks or self.partitions or self.half_built or self.last or self.problems)

    @classmethod
    def load(cls, root: Path) -> "StatusFiles":
        """Read a folder, which may be missing."""
        reader, files = _Reader(), RetrainFiles(root)
        reader.read_all([files.version_file] if files.version_file.exists() else [], lambda _: files.check_version())
        return cls(
            verdicts=reader.read_all(files.verdict_files(), _read_outcome),
            checks=reader.read_all(files.checks_files(), _read_checks),
            partitions=reader.read_all(map(files.partition, files.built()), DatasetManifest.load),
            half_built=tuple(files.half_built()),
            undecided=tuple(files.undecided()),
            last=reader.read_all([files.last_file] if files.last_file.exists() else [], _read_outcome).get("last"),
            is_running=files.is_held(),
            problems=tuple(reader.problems),
        )


class _Reader:
    """Reader of files that collects errors as sentences."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read_all(self, paths: Iterable[Path], read: Callable[[Path], T]) -> dict[str, T]:
        """Read files that are valid: name of the day or partition -> content, in the order of names."""
        found = {}
        for path in sorted(paths):
            try:
                found[partition_name(path)] = read(path)
            except ValidationError as error:
                [first, *_] = error.errors()
                place = ".".join(map(str, first["loc"]))
                self.problems.append(f"{path} is damaged: {first['msg']}{f' at {place}' if place else ''}")
            except (ValueError, OSError) as error:
                self.problems.append(f"{path} cannot be read: {one_line(error)}")
        return found


def one_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_outcome(path: Path) -> Outcome:
    return replace(TypeAdapter(Outcome).validate_json(path.read_bytes()), written=to_iso(path.stat().st_mtime))


def _read_checks(path: Path) -> KeptChecks:
    return replace(TypeAdapter(KeptChecks).validate_json(path.read_bytes()), written=to_iso(path.stat().st_mtime))
