"""Locks between processes: exclusive, shared, waited for, and released by whoever dies."""

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from features.disk.lock import LockedError, is_held, lock

HOLD = """
import sys, time
from pathlib import Path
from features.disk.lock import lock
with lock(Path(sys.argv[1]), "busy", shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Start a process that holds a lock; it is killed in the end."""
    started = []

    def start(path: Path, how: str = "alone") -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, path, how], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_error_names_the_holder(tmp_path: Path, hold) -> None:
    path = tmp_path / "new" / ".lock"
    assert is_held(path) is False
    holder = hold(path)
    assert is_held(path) is True
    with pytest.raises(LockedError, match=rf"^it is in use \(held by process {holder.pid} on \S+\)$"):  # noqa: SIM117
        with lock(path, "it is in use"):
            pass
    with pytest.raises(KeyError), lock(path, "as asked", error=KeyError, shared=True):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with lock(path, "free") as file:
        assert file.read() == f"process {os.getpid()} on {os.uname().nodename}"
    assert is_held(path) is False


def test_shared_holders_hold_it_together(tmp_path: Path, hold) -> None:
    path = tmp_path / ".lock"
    with lock(path, "", owner="the 7th"):
        pass
    hold(path, "shared")
    with lock(path, "", shared=True) as file:
        assert file.read() == "the 7th"
    with pytest.raises(LockedError, match=r"^busy$"), lock(path, "busy"):
        pass
    assert path.read_text() == "the 7th"


def test_it_is_waited_for(tmp_path: Path, hold) -> None:
    path = tmp_path / ".lock"
    holder = hold(path)
    started = time.monotonic()
    with pytest.raises(LockedError), lock(path, "", patience=0.2):
        pass
    assert time.monotonic() - started >= 0.2
    threading.Timer(0.3, holder.kill).start()
    with lock(path, "", patience=math.inf):
        assert holder.wait() == -signal.SIGKILL


def test_a_lock_whose_folder_was_removed_is_none(tmp_path: Path, hold) -> None:
    """Otherwise two jobs would hold two files of one name."""
    path = tmp_path / "staging" / ".lock"
    holder = hold(path)

    def remove() -> None:
        shutil.rmtree(path.parent)
        holder.kill()

    threading.Timer(0.2, remove).start()
    with lock(path, "", patience=10), pytest.raises(LockedError), lock(path, ""):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), lock(tmp_path / "file" / ".lock", ""):
        pass
