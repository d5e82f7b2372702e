"""What can happen to a training."""

from collections.abc import Callable
from pathlib import Path

from tests.chaos.outcome import Outcome

CASES: dict[str, Callable[[Path, int], Outcome]] = {}
"""Name -> the case: does its damage in the given folder, with the given seed, and says what came of it."""
