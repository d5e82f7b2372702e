"""Atomic writes: a file or a folder takes the place of another one in one step.

Whenever the writer is killed, the old one or the new one is there, whole. ``durable`` writes also survive a loss of
power: their bytes and names are on disk before they count.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.disk.lock import lock

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_LOCK, _OLD = ".lock", "old"


class ReplacementError(ValueError):
    """Another job is writing to the same place."""


# --------------------------------------------------------------------------------------------------------------- files


def leftover_pattern(name: str) -> str:
    """Return a regular expression for the temporary files that killed writers of ``name`` leave."""
    return rf"\.{re.escape(name)}\.[0-9a-f]+"


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path whose file takes the place of ``path`` when the body ends; removed if the body fails.

    Args:
        path: file to replace; its folder must be there.
        durable: whether the file survives a loss of power.

    Raises:
        OSError: it cannot be written.
    """
    # Unique across machines too: a process number is not, where several of them share a disk.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False, errors: str = "strict") -> None:
    """Write a text file (UTF-8) in one step.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: Any, *, durable: bool = False, **options: Any) -> None:
    """Write a JSON file in one step: a reader finds the old one or the new one, never half.

    Args:
        options: keyword arguments of ``json.dumps``; an indent of 1 where none is given.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    write_text(path, json.dumps(value, **{"indent": 1, **options}) + "\n", durable=durable)


# -------------------------------------------------------------------------------------------------------------- folders


@contextmanager
def new_folder(output: Path, check: Callable[[Path], None]) -> Iterator[tuple[Path, Path]]:
    """Give two empty folders: one that takes the place of ``output`` when the body ends, and one for scratch files.

    Both are in a hidden folder beside ``output``, which the next job for the same place removes if this one is killed.

    Args:
        output: resolved path; its parent is made if it is not there.
        check: raises if ``output`` holds something that must not be replaced; called when no other job can change it.

    Raises:
        ReplacementError: another job is writing to ``output``.
        OSError: it cannot be written.
    """
    staging = _staging(output)
    with lock(staging / _LOCK, f"another job is writing to {output}: wait for it to end", error=ReplacementError):
        try:
            _restore(output)
            check(output)
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
            put_folder(new, output, staging / _OLD)
        finally:
            _restore(output)
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def adding_folder(output: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``output`` when the body ends; if that is there by then, it stays.

    Raises:
        OSError: it cannot be written.
    """
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            temporary.rename(output)
        except OSError:
            if not output.exists():  # otherwise another program was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_folder(new: Path, output: Path, aside: Path) -> None:
    """Put a folder in the place of another one, in one step where the file system can swap two names.

    Nearly all of Linux's can. Where one cannot, ``output`` is moved to ``aside`` first: see ``standing``.

    Args:
        new: whole and durable folder; afterwards the old one, if there was one and names were swapped.
        output: absent, empty or the old folder.
        aside: absent path on the same file system.
    """
    if not output.exists() or not any(output.iterdir()):
        new.rename(output)
    elif not _exchange(new, output):
        output.rename(aside)
        new.rename(output)
    sync(output.parent)


def standing(output: Path) -> Path:
    """Find the folder that counts as ``output``: the old one set aside, if a job was killed between two renames."""
    aside = _staging(output) / _OLD
    return aside if aside.is_dir() and not output.exists() else output


def _staging(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _restore(output: Path) -> None:
    """Undo the first of ``put_folder``'s two renames, if a job was killed or failed between them."""
    aside = standing(output)
    if aside != output:
        aside.rename(output)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names; False where the file system or the C library cannot."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is None:
        return False
    return swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


# ----------------------------------------------------------------------------------------------------------- durability


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make a folder and all that is in it durable."""
    for parent, _folders, files in os.walk(folder):
        for path in [Path(parent), *(Path(parent) / name for name in files)]:
            sync(path)


def is_full(error: OSError) -> bool:
    """Tell whether the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
