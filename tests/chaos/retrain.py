"""``jobs.retrain`` as it is, but it stands still at a step as long as it is told to, and its clock may be wrong."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jobs import retrain
from jobs.cli.conventions import run_program
from jobs.registry import store
from jobs.retraining.retry import Steps

STAND = "TWINFOCUS_CHAOS_STAND"
"""Name of a step, to stand before it, or with ":done" behind it, to stand after it."""
STANDING = "TWINFOCUS_CHAOS_STANDING"
"""A file that is there while it stands; who removes it lets it go on."""
CLOCK = "TWINFOCUS_CHAOS_CLOCK"
"""Seconds by which its clock is wrong."""
PATIENCE = 2.0
"""Seconds that a locked registry is waited for, instead of half a minute."""

T = TypeVar("T")


def main() -> int:
    store.REGISTRY_PATIENCE_SECONDS = PATIENCE
    do, now, error = Steps.do, time.time, float(os.environ.get(CLOCK, "0"))
    time.time = lambda: now() + error

    def watched(steps: Steps, name: str, act: Callable[[], T]) -> T:
        def standing() -> T:
            _stand(name)
            result = act()
            _stand(f"{name}:done")
            return result

        return do(steps, name, standing)

    Steps.do = watched  # pyright: ignore[reportAttributeAccessIssue]
    return retrain.main()


def _stand(at: str) -> None:
    if at == os.environ.get(STAND):
        del os.environ[STAND]  # at the first of several steps of this name
        sign = Path(os.environ[STANDING])
        sign.touch()
        while sign.exists():
            time.sleep(0.01)


if __name__ == "__main__":
    run_program(main)
