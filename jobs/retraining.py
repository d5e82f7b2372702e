"""What a retraining is: its config, which partitions of a log there are, and what is to be done with them.

Nothing is read or written here but names; ``jobs.retrain`` does the work.
"""

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from features.schema import STRICT
from jobs.data_checks import DataChecksConfig
from training.gate import GateConfig

DATE = "{date}"
_DATE_PATTERN = r"[0-9](?:[0-9-]*[0-9])?"


@checked(frozen=True, config=STRICT)
class RetrainConfig:
    """Everything ``jobs.retrain`` needs besides the pipeline's and the training's own sections."""

    root: str
    """Folder of all that retraining keeps: partitions, windows, runs, verdicts and the registry."""
    partitions: str
    """Raw log of one day, hour or month as a path or glob with {date} in it, such as logs/day={date}/*.csv.gz; {date}
    stands for digits and dashes that sort as time does."""
    train_on: Literal["new", "window"] = "new"
    """new: a warm start from the champion, on the partitions that it was not trained on. window: from nothing, on the
    last ``window`` partitions."""
    window: Annotated[int, Field(ge=1)] = 7
    """Partitions that are trained on without a champion or with train_on = "window", and that data checks compare
    with."""
    model: str = "ctr"
    """Name in the registry."""
    registry: str | None = None
    """Address of an MLflow server; None: a folder in ``root``."""
    segments: tuple[str, ...] = ()
    """Single-valued sparse features whose ids the gate looks at one by one."""
    checks: DataChecksConfig = field(default_factory=DataChecksConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        if self.partitions.count(DATE) != 1:
            raise ValueError(f"retrain.partitions needs {DATE} in one place, got {self.partitions!r}")


def date_key(text: str) -> str:
    """A date without its dashes: 2014-10-28 and 20141028 are one."""
    return text.replace("-", "")


def find_partitions(pattern: str) -> dict[str, tuple[str, ...]]:
    """Date -> raw files, oldest first.

    Raises:
        ValueError: the dates are of different lengths, so that they do not sort as time does.
    """
    before, after = pattern.split(DATE)
    # The rest of the pattern is a glob; what stands for {date} in a path that it matches is looked up in the path.
    matcher = re.compile(f"{_translate(before)}(?P<date>{_DATE_PATTERN}){_translate(after)}")
    found: dict[str, list[str]] = {}
    for path in sorted(glob.glob(f"{before}*{after}", recursive=True)):
        match = matcher.fullmatch(path)
        if match is not None:
            found.setdefault(date_key(match["date"]), []).append(path)
    if len({len(date) for date in found}) > 1:
        raise ValueError(f"{pattern} finds dates of different lengths: {', '.join(sorted(found)[:5])}")
    return {date: tuple(found[date]) for date in sorted(found)}


def _translate(part: str) -> str:
    """A part of a glob as a regular expression; a star matches within a folder's name."""
    tokens = re.split(r"(\*\*/|\*|\?)", part)
    return "".join({"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token)) for token in tokens)


@dataclass(frozen=True)
class Todo:
    """What a retraining is to do.

    Attributes:
        build: dates to build, in this order; each goes on with the one before.
        train: dates to train on.
        test: the newest date, which neither model has seen; None: there is nothing to train on before it.
        is_warm: whether the candidate begins where the champion ended.
    """

    build: tuple[str, ...]
    train: tuple[str, ...]
    test: str | None
    is_warm: bool


def plan(
    dates: Sequence[str],
    as_of: str | None,
    built: Sequence[str],
    stopped: Mapping[str, object],
    trained: Sequence[str] | None,
    config: RetrainConfig,
) -> Todo:
    """Decide what to do; a pure function, so that a dry run says what a real one would do.

    Args:
        dates: of the partitions that are there.
        as_of: later ones do not exist yet; None: all exist.
        built: dates that have a dataset.
        stopped: dates that data checks refused; they are trained on never.
        trained: what the champion was trained on; None: there is no champion.

    Raises:
        ValueError: ``as_of`` is no date like those of the partitions.
    """
    if as_of is not None and dates and len(as_of) != len(dates[0]):
        raise ValueError(f"--as-of {as_of} is no date like those of the partitions, such as {dates[0]}")
    known = [date for date in dates if as_of is None or date <= as_of]
    build = tuple(date for date in known if date not in built)
    usable = [date for date in known if date not in stopped]
    if not usable:
        return Todo(build, (), None, False)
    *before, newest = usable
    is_warm = trained is not None and config.train_on == "new"
    unseen = tuple(date for date in before if date not in (trained or ()))
    train = unseen if is_warm else tuple(before[-config.window :])
    is_new = bool(set(train) & set(unseen))
    return Todo(build, train if is_new else (), newest if train and is_new else None, is_warm)
