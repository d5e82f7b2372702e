"""Where a program and all that it starts listen, for every test that wants strangers kept out."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]

Sockets = set[tuple[str, str]]
"""(address, name of the process)."""


def watch(*command: str) -> Sockets:
    """Run a program of the project to its good end; every socket that it was seen to listen at."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SPARK_", "GLOO_"))}
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as job:
        seen: Sockets = set()
        while job.poll() is None:
            try:
                seen |= listening(psutil.Process(job.pid))
            except psutil.Error:
                break
            time.sleep(0.1)
        assert job.stdout is not None
        output = job.stdout.read().decode()
    assert job.returncode == 0, output
    return seen


def listening(process: psutil.Process) -> Sockets:
    """Every socket that a process or one below it listens at now."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            connections = one.net_connections("inet")
            found |= {(c.laddr.ip, one.name()) for c in connections if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue  # it ended
    return found


def check_loopback(seen: Sockets, *programs: str) -> None:
    """Each of the programs was seen, and none at an address that others reach."""
    for program in programs:
        assert any(program in name for _, name in seen), f"{program} was not seen to listen: {seen}"
    elsewhere = {(ip, name) for ip, name in seen if ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")}
    assert not elsewhere
