"""Our programs, started from another: they live no longer than the one that started them."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial

_log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent is gone."""


class ProgramError(ValueError):
    """A program failed; it has said why on its own standard error."""

    def __init__(self, program: str, code: int) -> None:
        end = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        super().__init__(f"{program} {end}")
        self.code = code


def run_module(program: str, *arguments: str) -> None:
    """Run ``python -m PROGRAM`` to its end; killed, and not asked to end, when this process is gone.

    Another start must not have to wait for an orderly end. A training is made for that; what its workers still do when
    they lose it, the next one waits for.

    Raises:
        ProgramError: it did not end with 0.
    """
    _log.info("$ -m %s %s", program, " ".join(arguments))
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", program, *arguments], check=False, preexec_fn=ending_with_us(signal.SIGKILL)
    )
    if done.returncode:
        raise ProgramError(program, done.returncode)


def ending_with_us(sent: signal.Signals) -> Callable[[], None] | None:
    """A ``preexec_fn`` for ``subprocess``: the child gets a signal as soon as this process is gone, however it went.

    None: the system cannot do that.
    """
    return partial(_end_with, os.getpid(), ctypes.CDLL(None), sent) if sys.platform == "linux" else None


def _end_with(parent: int, libc: ctypes.CDLL, sent: signal.Signals) -> None:
    libc.prctl(PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:
        os._exit(1)
