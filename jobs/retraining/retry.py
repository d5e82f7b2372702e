"""Steps: one after the other, each tried again where that may help, and known by name when one fails for good."""

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from features.learnt import LearntError
from features.profile.distribution import DriftError
from features.rawlog import LogError
from jobs.cli.child_process import ProgramError
from jobs.cli.conventions import EXIT_USAGE
from jobs.cli.errors import ConfigError

T = TypeVar("T")
LASTING = (ConfigError, LogError, LearntError, DriftError)
"""What is wrong with a config, a log or vocabularies is wrong the next time too."""


class Steps:
    """Does steps, and knows which it is at."""

    def __init__(self, retries: int, seconds: float) -> None:
        self.retries, self.seconds = retries, seconds
        self.current = "start"
        """Name of the step that is being done or was done last."""

    def do(self, name: str, act: Callable[[], T]) -> T:
        """Do a step; it must bear to be done again after it has failed anywhere.

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
                print(f"{name} failed: {error}", file=sys.stderr)
                print(f"{name}: another try in {self.seconds:g} s, {left} left", file=sys.stderr, flush=True)
                time.sleep(self.seconds)
        raise AssertionError("the last try returns or raises")


def is_lasting(error: Exception) -> bool:
    """Whether a step that failed so would only fail so again."""
    if isinstance(error, ProgramError):
        return error.code == EXIT_USAGE
    return isinstance(error, LASTING)
