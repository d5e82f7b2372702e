"""What a report shows of a run: its files, with a retraining's data checks and verdict in their own types."""

from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from features.disk.run_folder import RunFiles
from jobs.retraining.shapes import KeptChecks
from training.judge.gate import Verdict


@checked(frozen=True)
class GateFile:
    """What the gate said of a candidate."""

    verdict: Verdict
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """candidate and champion -> metrics."""
    day: str | None = None
    """Whose rows both were compared on."""


def read_run(path: Path) -> RunFiles:
    """Read a run folder; its ``data_checks`` are date -> ``KeptChecks``, its ``gate`` is a ``GateFile`` or None.

    Raises:
        ValueError: it is not a run, or one of its files is damaged; names the file.
    """
    return RunFiles.load(path, checks=dict[str, KeptChecks], gate=GateFile)
