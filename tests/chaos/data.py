"""What can happen to a dataset, while it is made and afterwards."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.outcome import Outcome, Skipped, Unexpected

MIB = 1 << 20


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise Unexpected(otherwise)


@contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of its own that has so much room.

    Raises:
        Skipped: this user may not mount one.
    """
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", path], capture_output=True)
    if done.returncode:
        raise Skipped("a disk that is really full needs the right to mount one: run as root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


CASES: dict[str, Callable[[Path, int], Outcome]] = {}
"""Name -> the case: does its damage in the given folder, with the given seed, and says what came of it."""
