"""plan: partitions to build, train on and compare on, as a pure function of the log and the champion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.cli.retrain_config import RetrainConfig
from jobs.retraining.raw_partitions import date_of, is_late


@dataclass(frozen=True)
class Todo:
    """Plan of a retraining.

    Attributes:
        build: partitions to build, in this order; each extends the vocabularies of the one before.
        train: partitions to train on.
        test: newest date, which neither model has seen; None: there is nothing to train.
        is_warm: whether the candidate starts from the champion's weights.
        valid: partition of the validation split; None: there is no such split.
    """

    build: tuple[str, ...]
    train: tuple[str, ...]
    test: str | None
    is_warm: bool
    valid: str | None = None


def plan(
    dates: Sequence[str],
    as_of: str | None,
    built: Sequence[str],
    stopped: Mapping[str, object],
    trained: Sequence[str] | None,
    config: RetrainConfig,
) -> Todo:
    """Plan a retraining; a pure function, so that a dry run shows what a real one would do.

    Args:
        dates: names of existing partitions, in order; late ones follow that of their date.
        as_of: date after which partitions are ignored; None: use all.
        built: partitions that need no build: they have a dataset, or wait until their files change.
        stopped: partitions that data checks refused, or of other features; they are never trained on.
        trained: partitions that the champion was trained on; None: there is no champion.
        config: rules of retraining.

    Raises:
        ValueError: ``as_of`` is no date like those of the partitions.
    """
    if as_of is not None and dates and len(as_of) != len(date_of(dates[0])):
        raise ValueError(f"--as-of {as_of} is no date like those of the partitions, such as {dates[0]}")
    known = [date for date in dates if as_of is None or date_of(date) <= as_of]
    build = tuple(date for date in known if date not in built)
    usable = [date for date in known if date not in stopped]
    is_warm = trained is not None and config.train_on == "new"
    # Late rows are a part of a day: no day to compare on.
    test = max((date for date in usable if not is_late(date)), default=None)
    nothing = Todo(build, (), None, is_warm)
    if test is None or test <= max(map(date_of, trained or ()), default=""):
        return nothing  # the clock went back: the champion knows that day, or later ones
    before = [date for date in usable if date < test]
    unseen = [date for date in before if date not in (trained or ())]
    train, valid = list(unseen if is_warm else before[-config.window :]), None
    if config.valid and train:
        valid = train.pop()
    if not set(train) & set(unseen):
        return nothing
    return Todo(build, tuple(train), test, is_warm, valid)
