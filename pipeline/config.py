"""PipelineConfig: where raw logs come from, how they are split, checked and written. No engine is imported here."""

import datetime
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from features.disk.dataset import SPLITS
from features.log_format import LogFormat, Lookup
from features.schema import STRICT


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return (value,) if value else ()
    return value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""A path, folder or glob, or a list of them."""
UNDATED = ""
"""Key of the rows that have no date, where rows are counted by date."""


@dataclass(frozen=True, config=STRICT)
class InputConfig:
    """Raw files of each split. A split rule, if any, cuts ``train`` into the splits that have no files of their own."""

    train: Paths = ()
    valid: Paths = ()
    test: Paths = ()
    format: LogFormat = field(default_factory=LogFormat)
    lookups: tuple[Lookup, ...] = ()
    times: tuple[int, int] | None = None
    """Unix seconds, of features.timestamp: rows before the first, not before the second or without a readable time are
    left out, and counted nowhere. None: every row is taken."""


@dataclass(frozen=True, config=STRICT)
class FilesSplit:
    """Each split is exactly the files given for it."""

    kind: Literal["files"] = "files"


def _as_iso(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date) else value


Time = Annotated[str, BeforeValidator(_as_iso)]
"""An ISO date or date-time; TOML's own dates are taken too."""


@dataclass(frozen=True, config=STRICT)
class TimeSplit:
    """Rows at or after ``valid_from`` are validation, at or after ``test_from`` test; needs features.timestamp.

    Times are ISO dates or date-times, read as UTC.
    """

    valid_from: Time
    test_from: Time | None = None
    kind: Literal["time"] = "time"


@dataclass(frozen=True, config=STRICT)
class HashSplit:
    """A stable hash of one column (no value of it in two splits) or of the whole raw row decides."""

    valid: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    column: str | None = None
    """Raw column that is hashed; None: the whole raw row, so equal rows share a split."""
    salt: str = "split"
    kind: Literal["hash"] = "hash"

    def __post_init__(self) -> None:
        if self.valid + self.test >= 1:
            raise ValueError("pipeline.split: valid + test must leave rows for train")


SplitRule = Annotated[FilesSplit | TimeSplit | HashSplit, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class SampleConfig:
    """Down-sampling of the training split's negatives; validation and test keep every row."""

    negatives: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Rate of negatives that are kept; 1: all. Probabilities stay those of all rows (training.sampled_negatives)."""
    salt: str = "sample"
    """Text that decides with a row's own text and place in its file whether it is kept."""


@dataclass(frozen=True, config=STRICT)
class QualityLimits:
    """Highest rates a feature may have in the training split; None: no limit."""

    max_null_rate: float | None = None
    max_oov_rate: float | None = None
    max_collision_rate: float | None = None


@dataclass(frozen=True, config=STRICT)
class OddityLimits:
    """Levels from which on a build that succeeds says that something is odd."""

    max_split_distance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Distance of a split's share of the rows from the share that a hash rule asks for, beyond its scatter."""
    max_group_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the rows that one value of a hash rule's column may have."""
    min_lookup_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the rows whose key a lookup's table should have."""
    max_collision_rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a hashed feature's values that may share an id with another."""
    max_deviations: Annotated[float, Field(gt=0)] = 100.0
    """Distance of the farthest value of a standardised feature from its mean, in standard deviations."""
    max_unsplit_bytes: Annotated[int, Field(ge=0)] = 512 * 1024 * 1024
    """Bytes of a text file that one task has to read alone: a compressed one, or one in an encoding such as UTF-16."""


@dataclass(frozen=True, config=STRICT)
class QualityConfig:
    """Quality limits of a dataset and the action beyond them."""

    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Malformed rows beyond this share of the input fail the job."""
    action: Literal["warn", "fail"] = "warn"
    """Action when a feature exceeds its limits."""
    limits: QualityLimits = field(default_factory=QualityLimits)
    features: dict[str, QualityLimits] = field(default_factory=dict)
    """Per-feature limits; a value given here replaces the one in ``limits``."""
    odd: OddityLimits = field(default_factory=OddityLimits)


@dataclass(frozen=True, config=STRICT)
class WriteConfig:
    """Shape of the Parquet files."""

    rows_per_file: Annotated[int, Field(ge=1)] = 1_000_000
    min_files: Annotated[int, Field(ge=1)] = 8
    """Files a split has at least (if it has as many rows), so that every rank has files of its own."""
    row_group_rows: Annotated[int, Field(ge=1)] = 131_072
    compression: Literal["snappy", "zstd", "lz4", "none"] = "snappy"
    staging: str | None = None
    """Staging folder of a dataset that goes to an object store, seen by every executor; None: below TMPDIR, which
    is enough for an executor on this machine."""


@dataclass(frozen=True, config=STRICT)
class SparkConfig:
    """Spark session settings that belong to the job; everything else comes from spark-submit."""

    master: str | None = None
    """Spark master; None: the one of spark-submit, else local[*]."""
    driver_memory: str = "4g"
    """Driver memory under ``python -m``; spark-submit has a flag of its own."""
    max_partition_bytes: Annotated[int, Field(ge=1)] = 32 * 1024 * 1024
    """Input bytes of one task; no result depends on it."""


@dataclass(frozen=True, config=STRICT)
class PipelineConfig:
    """Everything ``jobs.build_dataset`` needs besides the feature schema."""

    output: str
    """Folder of the dataset."""
    base: str | None = None
    """Folder of the dataset whose vocabularies, boundaries and moments this one goes on with: ids keep their meaning,
    new values get new ids. It may be the output itself. None: everything is learnt from the input."""
    input: InputConfig = field(default_factory=InputConfig)
    split: SplitRule = field(default_factory=FilesSplit)
    dedupe: tuple[str, ...] = ()
    """Raw columns that make a row unique: of equal rows the earliest is kept, the others are counted."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    spark: SparkConfig = field(default_factory=SparkConfig)

    def __post_init__(self) -> None:
        lists, rule = self.input.format.candidates, self.split
        if lists is None or not isinstance(rule, HashSplit):
            return
        if rule.column in lists.made_columns - {lists.list_id}:
            raise ValueError(
                f"pipeline.split.column = {rule.column!r} would tear lists of candidates apart: split by "
                f"{lists.list_id!r}, by a user or by nothing, which keeps a row of the log together"
            )

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Split -> patterns, for the splits that have files."""
        patterns = {"train": self.input.train, "valid": self.input.valid, "test": self.input.test}
        return {name: patterns[name] for name in SPLITS if patterns[name]}

    def expected_splits(self) -> set[str]:
        """Splits that files or the split rule ask for, whether rows fall into them or not."""
        expected, rule = set(self.inputs()), self.split
        if isinstance(rule, HashSplit):
            expected |= {name for name in ("valid", "test") if getattr(rule, name)}
        if isinstance(rule, TimeSplit):
            expected |= {"valid"} | ({"test"} if rule.test_from else set())
        return expected
