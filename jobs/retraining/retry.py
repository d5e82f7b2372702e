"""Steps: run named steps with retries."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from features.learnt import LearntError
from features.log_format import LogError
from features.profile.distribution import DriftError
from jobs.cli.child_process import ProgramError
from jobs.cli.conventions import EXIT_USAGE
from jobs.cli.errors import ConfigError

T = TypeVar("T")
_log = logging.getLogger(__name__)
LASTING = (ConfigError, LogError, LearntError, DriftError)
"""Errors that a retry cannot cure: a wrong config, log or vocabulary stays wrong."""


class Steps:
    """Runner of named steps with retries.

    Attributes:
        current: name of the step that is being run or was run last.
        day: date that the steps are at work on; None: no particular one.
    """

    day: str | None

    def __init__(self, retries: int, seconds: float) -> None:
        """Set the number of retries of each step, and the seconds between two tries."""
        self.retries, self.seconds = retries, seconds
        self.current, self.day = "start", None

    def do(self, name: str, act: Callable[[], T]) -> T:
        """Run a step, which must be idempotent: after a failure anywhere it is run again.

        Raises:
            Exception: what the step raised at last.
        """
        self.current = name
        for left in range(self.retries, -1, -1):
            try:
                return act()
            except (ValueError, OSError) as error:  # any other exception is a defect of ours
                if not left or is_lasting(error):
                    raise
                _log.warning("%s failed: %s", name, error, extra={"step": name})
                _log.warning("%s: another try in %g s, %d left", name, self.seconds, left, extra={"step": name})
                time.sleep(self.seconds)
        raise AssertionError("the last try returns or raises")


def is_lasting(error: Exception) -> bool:
    """Tell whether a retry of a step with this error is in vain."""
    if isinstance(error, ProgramError):
        return error.code == EXIT_USAGE
    return isinstance(error, LASTING)
