"""A folder that takes another one's place in one step: whenever its maker is killed, the old one or the new is there.

It is made in a hidden folder beside the place, which the next job for the same place removes if this one is killed.
"""

import ctypes
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.disk.object_store import sync, sync_tree

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LOCK, _OLD = ".lock", "old"


class ReplacementError(ValueError):
    """A place holds something else, or another job is writing to it."""


@contextmanager
def new_folder(output: Path, marker: str) -> Iterator[tuple[Path, Path]]:
    """Two empty folders: one that is ``output`` when the body ends, and one for what is on the way to it.

    Args:
        output: resolved path; its parent is made if it is not there.
        marker: a file that the body writes and every such folder has, so that nothing else is ever replaced.

    Raises:
        ReplacementError: ``output`` is something else, or another job is writing to it.
        OSError: it cannot be written.
    """
    staging = output.with_name(f".{output.name}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(staging, output)
    try:
        _restore(staging / _OLD, output)
        refuse_foreign(output, marker)
        for left in staging.iterdir():
            if left.name != _LOCK:
                shutil.rmtree(left, ignore_errors=True)
        # A name of this job alone: executors of a killed one may still be writing.
        mine = staging / uuid.uuid4().hex
        new, scratch = mine / "new", mine / "scratch"
        new.mkdir(parents=True)
        scratch.mkdir()
        yield new, scratch
        sync_tree(new)
        _put(new, output, staging / _OLD)
    finally:
        _restore(staging / _OLD, output)
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def refuse_foreign(output: Path, marker: str) -> None:
    """Raise ReplacementError unless ``output`` is absent, an empty folder, or one that has the marker."""
    if not output.exists():
        return
    if not output.is_dir() or (not (output / marker).is_file() and any(output.iterdir())):
        raise ReplacementError(f"{output} exists and is no folder of scores (it has no {marker}): choose another one")


def _lock(staging: Path, output: Path) -> int:
    """The open lock file; the system lets go of it when the job dies."""
    while True:
        staging.mkdir(exist_ok=True)
        try:
            lock = os.open(staging / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # a job has just ended and removed its folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), (staging / _LOCK).stat()):
                return lock
        except FileNotFoundError:
            pass  # removed in the meantime
        except OSError as error:
            os.close(lock)
            raise ReplacementError(f"another job is writing to {output}: wait for it to end") from error
        os.close(lock)


def _put(new: Path, output: Path, aside: Path) -> None:
    """Make ``new`` the output: in one step where the file system can swap two names, as nearly all of Linux can."""
    if not output.exists() or not any(output.iterdir()):
        new.rename(output)
    elif not _exchange(new, output):
        output.rename(aside)
        new.rename(output)
    sync(output.parent)


def _restore(aside: Path, output: Path) -> None:
    """Undo the first of two steps after which a job was killed or failed."""
    if aside.is_dir() and not output.exists():
        aside.rename(output)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names; False where that is not to be had."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is None:
        return False
    return swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
