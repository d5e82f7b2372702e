"""Interrupted: a signal that asks this program to end, raised where the program is at work."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

from pipeline.processes import end_children

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a program to end: Ctrl-C, and what a scheduler or ``kill`` sends."""
_AGAIN_SECONDS = 0.02
"""Seconds until a signal is sent again."""


class Interrupted(KeyboardInterrupt):
    """A signal has asked this program to end.

    Attributes:
        number: the signal.
        exit_code: what a shell says of a program that it ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, where: str = "") -> None:
        name = signal.Signals(number).name
        super().__init__(f"interrupted by {name}" + (f" {where}" if where else ""))
        self.number, self.exit_code = number, 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` in the body when a signal asks this program to end; then end all that it has started.

    A second signal ends the program at once, wherever it is. A signal that whoever started the program had it ignore
    (``nohup``) stays ignored.
    """
    before, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    sys.unraisablehook = partial(_raise_again, hook)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        end_children()
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for other in SIGNALS:
        signal.signal(other, _end_at_once)
    raise Interrupted(number)


def _raise_again(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Send a signal again whose exception Python drops, as in a destructor and in a weak reference's callback."""
    dropped = unraisable.exc_value
    if not isinstance(dropped, Interrupted):
        hook(unraisable)
        return
    signal.signal(dropped.number, _interrupt)
    threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), dropped.number)).start()


def _end_at_once(number: int, frame: FrameType | None) -> None:
    end_children()
    os._exit(128 + number)
