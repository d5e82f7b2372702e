"""A program that another one starts says how it failed, and does not outlive it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.cli.child_process import ProgramError, run_module

ROOT = Path(__file__).parents[3]


def test_exit_codes() -> None:
    run_module("json.tool", "--help")
    with pytest.raises(ProgramError, match=r"json\.tool failed with exit code 2") as caught:
        run_module("json.tool", "--strange")
    assert caught.value.code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent is gone")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "code",
    [
        "from jobs.cli.child_process import run_module; run_module('http.server', '--bind', '127.0.0.1', '0')",
        "import signal, subprocess; from jobs.cli.child_process import ending_with_us as ending\n"
        "subprocess.run(['sleep', '100'], preexec_fn=ending(signal.SIGTERM))",
    ],
)
def test_it_ends_with_the_program_that_started_it(end: signal.Signals, code: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(end)
    assert parent.wait() == -end
    assert psutil.wait_procs(children, timeout=10)[1] == []
