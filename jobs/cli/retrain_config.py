"""The config section ``[retrain]``: the log, the model, the training window and the rules of promotion."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.schema import STRICT
from jobs.cli.data_checks_config import DataChecksConfig
from training.config import TablePrecision
from training.judge.gate import GateConfig

DATE = "{date}"
"""Placeholder of the date in ``retrain.partitions``."""
Ending = Literal["promoted", "refused", "stopped", "failed", "interrupted"]
"""Verdict of a retraining: the gate's two verdicts, a newest day that was stopped, a failed step, or a signal."""


@checked(frozen=True, config=STRICT)
class RetrainConfig:
    """Config of ``jobs.retrain`` besides the sections of pipeline and training."""

    root: str
    """Folder of retraining: partitions, windows, runs, verdicts and the registry."""
    partitions: str
    """Raw log of one day, hour or month as a path or glob with {date} in it, such as logs/day={date}/*.csv.gz; {date}
    stands for digits and dashes that sort as time does. With ``partition_by`` a time: folder or glob of all files."""
    partition_by: Literal["path", "hour", "day", "month"] = "path"
    """Partitioning of rows. path: by the {date} in the path. Else by features.timestamp, in UTC, into 2014102807,
    20141028 or 201410, whatever file holds the row."""
    late: Literal["ignore", "build"] = "ignore"
    """Handling of late files: those with rows of a date that is built already. ignore: count them and leave them out.
    build: make a partition of their own, such as 20141028+1; the next candidate is trained on it and none is compared
    on it."""
    ready: Annotated[str, Field(pattern=r"^[^/{}]+$")] | None = None
    """Name of a file that must lie in a date's folder, such as _SUCCESS; without it the date does not exist yet."""
    min_age_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds for which no file of a date must have changed; until then the date does not exist yet."""
    changed: Literal["warn", "rebuild"] = "warn"
    """Handling of a built date whose files have changed, grown or gone since. warn: say so. rebuild: build it again
    from the files that are there; ids keep their meaning, and the next candidate is trained on it again. A date that
    was stopped is always built again when its files change, since no model has seen it."""
    train_on: Literal["new", "window"] = "new"
    """Training data. new: a warm start from the champion, on the partitions that it was not trained on. window: random
    initial weights, on the last ``window`` partitions."""
    other_features: bool = False
    """Whether [features] may differ from those of what is built already: then the last ``window`` dates are built
    again, the candidate begins with what the champion knows of the features that are the same, and the gate compares
    both on the same rows, each encoded for it. False: other features are an error."""
    window: Annotated[int, Field(ge=1)] = 7
    """Number of partitions to train on without a champion or with train_on = "window", and of the reference of data
    checks."""
    valid: bool = False
    """Validation split: whether the newest partition before the one that models are compared on is held out, for early
    stopping and training.calibration. The next candidate is trained on it."""
    model: str = "ctr"
    """Model name in the registry."""
    registry: str | None = None
    """Address of an MLflow server; None: a folder in ``root``."""
    tables: TablePrecision = "float32"
    """Precision of the served tables; retrain.gate.max_quantized_auc_drop limits the AUC that it may cost."""
    segments: tuple[str, ...] = ()
    """Single-valued sparse features; the gate compares the models on the rows of each of their ids."""
    checks: DataChecksConfig = field(default_factory=DataChecksConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    retries: Annotated[int, Field(ge=0)] = 2
    """Retries of a failed step; errors that a retry cannot cure, such as a wrong config or a damaged log, get none."""
    retry_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two tries."""
    alert_on: tuple[Ending, ...] = ("failed", "stopped", "refused")
    """Verdicts for which last.json is sent to the webhook; TWINFOCUS_WEBHOOK in the environment has its address."""

    def __post_init__(self) -> None:
        num_dates = self.partitions.count(DATE)
        if self.partition_by == "path" and num_dates != 1:
            raise ValueError(
                f"retrain.partitions needs {DATE} in one place, got {self.partitions!r}; rows go by their own time "
                'with retrain.partition_by = "hour", "day" or "month"'
            )
        if self.partition_by != "path" and num_dates:
            raise ValueError(
                f'retrain.partitions has {DATE}, which is for retrain.partition_by = "path", not {self.partition_by!r}'
            )
        if self.partition_by != "path" and self.ready:
            raise ValueError(
                "retrain.ready is looked for in a date's folder, and with retrain.partition_by = "
                f"{self.partition_by!r} a date has none: use retrain.min_age_seconds"
            )
