"""Campaign: many inputs for one target in this process, under limits of memory and of time for each."""

import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutation import draw
from tests.fuzz.targets import TARGETS

MEMORY = 1 << 30
"""Bytes of address space that an input may ask for beyond what the process has when it starts."""
SECONDS = 30
"""Of one input."""
SHARE = 10
"""One input in so many is hypothesis's."""


class TooSlow(BaseException):
    """No loader may catch it."""


@dataclass
class Outcome:
    """What a target did with its inputs.

    Attributes:
        accepted: inputs that were loaded.
        refused: inputs answered with a documented error, by its name.
        defects: one entry a place in our code that raised anything else, with the first input that did.
        grown: bytes that the largest resident size grew by.
        slowest: seconds of the slowest input.
    """

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    defects: dict[str, dict[str, Any]] = field(default_factory=dict)
    grown: int = 0
    slowest: float = 0.0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "refused": dict(self.refused)}


def fuzz(name: str, inputs: int, seed: int, progress: Any = None) -> Outcome:
    """Hand ``inputs`` inputs to one target.

    Args:
        name: of ``TARGETS``.
        seed: the same seed makes the same inputs.
        progress: called with 1 after each.
    """
    outcome = Outcome(name)
    with tempfile.TemporaryDirectory(prefix="twinfocus-fuzz-") as folder:
        target = TARGETS[name](Path(folder))
        drawn = draw(target.strategy, max(1, inputs // SHARE), seed)
        rng = random.Random(seed)
        target.run(_first_accepted(target, seed))  # what is loaded at the first call is not the input's
        with _limits():
            before, started = _resident(), time.perf_counter()
            while outcome.inputs < inputs:
                given = drawn.pop() if drawn and outcome.inputs % SHARE == 0 else target.make(rng)
                _try(target, given, outcome)
                if progress is not None:
                    progress(1)
            outcome.seconds = time.perf_counter() - started
            outcome.grown = _resident() - before
    return outcome


def _first_accepted(target: Any, seed: int) -> Any:
    rng = random.Random(seed)
    for _ in range(1_000):
        given = target.make(rng)
        try:
            target.run(given)
        except Exception:
            continue
        return given
    raise AssertionError("not one of 1,000 nearly valid inputs is accepted: the target tests nothing")


def _try(target: Any, given: Any, outcome: Outcome) -> None:
    outcome.inputs += 1
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.run(given)
        outcome.accepted += 1
    except target.documented as error:
        outcome.refused[type(error).__name__] += 1
    except (Exception, TooSlow) as error:
        where = _where(error)
        entry = outcome.defects.setdefault(
            f"{type(error).__name__} at {where}",
            {"count": 0, "message": f"{error!r:.300}", "input": f"{given!r:.2000}"},
        )
        entry["count"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.slowest = max(outcome.slowest, time.perf_counter() - started)


def _where(error: BaseException) -> str:
    """The innermost line of the project's own code."""
    root = str(Path(__file__).parents[2])
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename.startswith(root) and ".venv" not in f.filename
    ]
    ours = [f for f in frames if "/tests/" not in f.filename] or frames
    return f"{Path(ours[-1].filename).relative_to(root)}:{ours[-1].lineno}" if ours else "?"


class _limits:
    """Less memory than a blow-up takes, and an alarm."""

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory

    def __enter__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self.limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + self.memory, self.limits[1]))
        self.handler = signal.signal(signal.SIGALRM, _alarm)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGALRM, self.handler)
        resource.setrlimit(resource.RLIMIT_AS, self.limits)


def _alarm(*_: object) -> None:
    raise TooSlow(f"more than {SECONDS} s")


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
