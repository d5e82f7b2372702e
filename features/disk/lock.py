"""Locks between processes of one machine; the system releases a lock when its holder dies."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_PAUSE_SECONDS = 0.05
_NUM_RACES = 100
_HOLDER = "process "


class LockedError(ValueError):
    """Another process holds a lock."""


@contextlib.contextmanager
def lock(
    path: Path,
    message: str,
    *,
    error: type[Exception] = LockedError,
    shared: bool = False,
    patience: float = 0.0,
    owner: str | None = None,
) -> Iterator[IO[str]]:
    """Hold a lock while the body runs.

    Args:
        path: lock file; made with its folders if absent, and never removed here.
        message: sentence for the user when somebody else holds the lock; the holder is added to it.
        error: class of the exception that carries the message.
        shared: hold the lock together with other shared holders; it names no owner.
        patience: seconds to wait for the lock; 0 tries once, ``math.inf`` waits for ever.
        owner: text to leave in the file, which stays there; None: this process and its machine.

    Yields:
        The open lock file, positioned at its start.

    Raises:
        LockedError: somebody else holds the lock for longer than ``patience`` (or ``error``, if given).
        OSError: the file cannot be opened, or the file system has no locks.
    """
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(_open(path))
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if _is_at(file, path):
                    break
                stack.close()  # its folder was removed meanwhile, and with it the lock's meaning
                continue
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise error(message + _describe(file)) from None
            stack.close()
            time.sleep(_PAUSE_SECONDS)
        if not shared:
            # The name is for a message alone: a full disk must not keep anybody from going on.
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), (owner or f"{_HOLDER}{os.getpid()} on {socket.gethostname()}").encode())
        file.seek(0)
        yield file


def is_held(path: Path) -> bool | None:
    """Tell whether a process of this machine holds a lock, without taking it.

    Returns:
        None where the system does not tell.
    """
    try:
        status, locks = path.stat(), Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None if path.exists() else False
    except OSError:
        return None
    # Whoever begins at this moment must not find the lock taken by somebody who only looks.
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any("FLOCK" in line and device in line.split() for line in locks)


def _open(path: Path) -> IO[str]:
    """Open a lock file, made with its folders if absent; another process may remove the folder meanwhile."""
    for _ in range(_NUM_RACES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return path.open("a+", encoding="utf-8")
    return path.open("a+", encoding="utf-8")


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _describe(file: IO[str]) -> str:
    """Name the holder, where it has left its name."""
    file.seek(0)
    holder = file.read(200)
    return f" (held by {holder})" if holder.startswith(_HOLDER) else ""
