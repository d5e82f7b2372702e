"""What a case of chaos has to say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What one disturbance did, counted afterwards.

    Attributes:
        rows_lost: rows that should be in the result and are not.
        rows_doubled: rows that are in the result more often than they should be.
        weights_equal: the final weights are those of an undisturbed run; None where there are no weights.
    """

    rows_lost: int
    rows_doubled: int
    weights_equal: bool | None


class Unexpected(AssertionError):
    """What a case demands did not happen: a program's answer, a file that should be there, a next run that works."""


class Skipped(Exception):
    """This machine does not let a case do its damage; says what it lacks."""
