"""Child processes: programs of this project, killed when the process that started them ends."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from pipeline.processes import end_tree

_log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl: the signal that a process gets when its parent dies."""


class ProgramError(ValueError):
    """A program failed; its own standard error has the reason."""

    def __init__(self, program: str, code: int) -> None:
        end = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        super().__init__(f"{program} {end}")
        self.code = code


def run_module(program: str, *arguments: str) -> None:
    """Run ``python -m PROGRAM`` to its end; the child gets SIGKILL when this process dies.

    SIGKILL, because the next start must not wait for an orderly end. A training tolerates it: the next one waits for
    workers that are left over. Ctrl-C on a terminal reaches this process alone, which then ends the child and all that
    descend from it, so that one of them speaks.

    Raises:
        ProgramError: its exit code is not 0.
    """
    _log.info("$ -m %s %s", program, " ".join(arguments))
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", program, *arguments], preexec_fn=ending_with_us(signal.SIGKILL), process_group=0
    )
    try:
        code = child.wait()
    except BaseException:
        end_tree(child.pid)
        child.wait()
        raise
    if code:
        raise ProgramError(program, code)


def ending_with_us(sent: signal.Signals) -> Callable[[], None] | None:
    """Make a ``preexec_fn`` for ``subprocess`` that signals the child as soon as this process dies.

    Returns:
        The function; None on systems other than Linux, which cannot do that.
    """
    return partial(_end_with, os.getpid(), ctypes.CDLL(None), sent) if sys.platform == "linux" else None


def _end_with(parent: int, libc: ctypes.CDLL, sent: signal.Signals) -> None:
    libc.prctl(PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:
        os._exit(1)
