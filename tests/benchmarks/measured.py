"""run_measured: run a command and measure its whole process tree: wall clock, CPU seconds, and memory at its peak."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

_STEP_SECONDS = 0.1


class Measured(NamedTuple):
    """What a command cost."""

    seconds: float
    """Wall clock."""
    cpu: float
    """CPU seconds of all processes, as last seen of each: what one did in its last tenth of a second is missing."""
    peak_bytes: int
    """Largest sum of the processes' resident memory; pages that they share count for each."""
    output: str
    """What they printed."""


def run_measured(
    command: Sequence[str], cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run a command to its end.

    Raises:
        CalledProcessError: it fails; its output has been written to standard error.
    """
    started, peak = time.perf_counter(), 0
    times: dict[psutil.Process, float] = {}
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        root = psutil.Process(run.pid)
        while True:
            resident = 0
            for process in [root, *_children(root)]:
                try:
                    spent = process.cpu_times()
                    times[process] = spent.user + spent.system
                    resident += process.memory_info().rss
                except psutil.Error:
                    continue
            peak = max(peak, resident)
            try:
                output, _ = run.communicate(timeout=_STEP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
    if run.returncode:
        print(output.decode("utf-8", "replace"), file=sys.stderr)
        raise subprocess.CalledProcessError(run.returncode, command)
    return Measured(time.perf_counter() - started, sum(times.values()), peak, output.decode("utf-8", "replace"))


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.Error:
        return []
