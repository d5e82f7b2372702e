"""Files of a run for its report, with a retraining's data checks and verdict parsed."""

from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked

from features.disk.run_folder import RunFiles
from jobs.retraining.shapes import KeptChecks
from training.judge.gate import Verdict


@checked(frozen=True)
class GateFile:
    """Verdict of the gate on a candidate, with the metrics of both models."""

    verdict: Verdict
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metrics of each side: candidate, champion -> metric -> value."""
    day: str | None = None
    """Day of the rows that both were compared on."""


def read_run(path: Path) -> RunFiles:
    """Read a run folder; its ``data_checks`` are date -> ``KeptChecks``, its ``gate`` is a ``GateFile`` or None.

    Raises:
        ValueError: it is not a run, or one of its files is damaged; names the file.
    """
    return RunFiles.load(path, checks=dict[str, KeptChecks], gate=GateFile)
