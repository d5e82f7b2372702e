"""A process that is killed at its N-th call to the file system: before a write, a sync, a rename or a removal."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from features.disk import atomic

KILLED, NO_MORE_CALLS = 9, 0
_OS_CALLS = ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "link", "write")


def die_at_call(number: int, act: Callable[..., Any], *arguments: Any, swaps: bool = True) -> int:
    """Run a function in a child process that ends, without any clean-up, before a call to the file system.

    Args:
        number: of the call, from 1.
        swaps: whether the file system can swap two folders in one step.

    Returns:
        ``KILLED``, or ``NO_MORE_CALLS`` where the function came to its end before.

    Raises:
        AssertionError: the function failed in another way.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _arm(number, swaps)
            act(*arguments)
            code = NO_MORE_CALLS
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (KILLED, NO_MORE_CALLS), f"the child ended with {code}"
    return code


def _arm(number: int, swaps: bool) -> None:
    """Count this process's calls, each before it is made."""
    left = number

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os._exit(KILLED)
            return call(*arguments, **options)

        return made

    for name in _OS_CALLS:
        setattr(os, name, counted(getattr(os, name)))
    for name in ("write_text", "write_bytes", "open"):  # they go past the functions of os
        setattr(Path, name, counted(getattr(Path, name)))
    exchange = counted(atomic._exchange)
    atomic._exchange = exchange if swaps else lambda *_: False
