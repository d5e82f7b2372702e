"""One of our programs, started from another: it lives no longer than the one that started it."""

import ctypes
import os
import signal
import subprocess
import sys
from functools import partial

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent is gone."""


class ProgramError(ValueError):
    """A program failed; it has said why on its own standard error."""

    def __init__(self, program: str, code: int) -> None:
        end = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
        super().__init__(f"{program} {end}")
        self.code = code


def run_module(program: str, *arguments: str) -> None:
    """Run ``python -m PROGRAM`` to its end.

    Raises:
        ProgramError: it did not end with 0.
    """
    print(f"$ -m {program} {' '.join(arguments)}", flush=True)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", program, *arguments],
        check=False,
        preexec_fn=partial(_die_with, os.getpid(), ctypes.CDLL(None)) if sys.platform == "linux" else None,
    )
    if done.returncode:
        raise ProgramError(program, done.returncode)


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    """In the child: be killed as soon as the parent is gone, however it went.

    Not asked to end: another start must not have to wait for an orderly end. A training is made for that; what its
    workers still do when they lose it, the next one waits for.
    """
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
