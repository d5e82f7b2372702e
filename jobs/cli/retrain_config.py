"""The config section ``[retrain]``: which log, which model, what of it is trained on and when a candidate may serve."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.schema import STRICT
from jobs.cli.data_checks_config import DataChecksConfig
from training.config import TablePrecision
from training.judge.gate import GateConfig

DATE = "{date}"
"""Place of the date in ``retrain.partitions``."""
Ending = Literal["promoted", "refused", "stopped", "failed"]
"""What a retraining may come to: the gate's two verdicts, data checks that stop the newest day, a step that fails."""


@checked(frozen=True, config=STRICT)
class RetrainConfig:
    """Everything ``jobs.retrain`` needs besides the pipeline's and the training's own sections."""

    root: str
    """Folder of all that retraining keeps: partitions, windows, runs, verdicts and the registry."""
    partitions: str
    """Raw log of one day, hour or month as a path or glob with {date} in it, such as logs/day={date}/*.csv.gz; {date}
    stands for digits and dashes that sort as time does. With ``partition_by`` a time: folder or glob of all files."""
    partition_by: Literal["path", "hour", "day", "month"] = "path"
    """path: the {date} in it. Else every row goes by features.timestamp, in UTC, to its 2014102807, 20141028 or 201410,
    whatever file it is in."""
    late: Literal["ignore", "build"] = "ignore"
    """Files with rows of a date that is built already. ignore: they are counted and left out. build: they become a
    partition of their own, such as 20141028+1, which the next candidate is trained on; none is compared on it."""
    train_on: Literal["new", "window"] = "new"
    """new: a warm start from the champion, on the partitions that it was not trained on. window: from nothing, on the
    last ``window`` partitions."""
    window: Annotated[int, Field(ge=1)] = 7
    """Partitions that are trained on without a champion or with train_on = "window", and that data checks compare
    with."""
    valid: bool = False
    """Keep the newest partition before the one that models are compared on as validation split, for early stopping and
    training.calibration. The next candidate is trained on it."""
    model: str = "ctr"
    """Name in the registry."""
    registry: str | None = None
    """Address of an MLflow server; None: a folder in ``root``."""
    tables: TablePrecision = "float32"
    """Of the tables that are served; retrain.gate.max_quantized_auc_drop says how much worse they may make a model."""
    segments: tuple[str, ...] = ()
    """Single-valued sparse features whose ids the gate looks at one by one."""
    checks: DataChecksConfig = field(default_factory=DataChecksConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a step that fails is tried again, where that may help: a wrong config or a damaged log stays so."""
    retry_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Between two tries."""
    alert_on: tuple[Ending, ...] = ("failed", "stopped", "refused")
    """When last.json is sent to the webhook whose address is in the environment variable TWINFOCUS_WEBHOOK, if it is
    set."""

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
