"""Processes: end a program with all that it has started, and wait until they are gone."""

import contextlib

import psutil

_PATIENCE_SECONDS = 10.0


def end_tree(pid: int) -> None:
    """Kill a process and all that descend from it, and wait until they have ended.

    Killing loses nothing: whatever these programs write appears in one step or not at all.

    Args:
        pid: the process; one that has ended already is no error.
    """
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:  # the eldest first, since it would start others anew
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, _PATIENCE_SECONDS)


def end_children() -> None:
    """Kill all that this process has started, and wait until they have ended."""
    for child in psutil.Process().children():
        end_tree(child.pid)
