"""A signal ends a program with one sentence and its own exit code, and all that the program has started."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
from jobs.cli.child_process import run_module
from jobs.cli.conventions import run_program
from jobs.cli.interruption import interruptible

def main():
    with interruptible():
        child = subprocess.Popen(["sh", "-c", "sleep 100; sleep 100"], start_new_session=True)
        print("ready", flush=True)
        {body}

run_program(main)
"""
IN_A_DESTRUCTOR = """class Slow:
            def __del__(self):
                time.sleep(100)
        Slow()
        time.sleep(100)"""
BODIES = {
    "asleep": "time.sleep(100)",
    "waiting": "run_module('http.server', '--bind', '127.0.0.1', '0')",
    "in a destructor": IN_A_DESTRUCTOR,
}


def start(body: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    wanted, deadline = 3 if "run_module" in body else 2, time.monotonic() + 60
    while len(family := psutil.Process(program.pid).children(recursive=True)) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return program, family


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_one_sentence_and_nothing_left(body: str, number: signal.Signals) -> None:
    program, family = start(body)
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    lines = [line for line in errors.splitlines() if not line.startswith(("Serving", "$ -m"))]
    assert lines == [f"error: interrupted by {number.name}"]
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_a_second_signal_ends_what_does_not_end() -> None:
    stubborn = "try:\n            time.sleep(100)\n        except KeyboardInterrupt:\n            time.sleep(100)"
    program, family = start(stubborn)
    program.send_signal(signal.SIGINT)
    time.sleep(0.5)
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=60)
    assert program.returncode == 143 and psutil.wait_procs(family, timeout=60)[1] == []


def test_an_ignored_signal_stays_ignored() -> None:
    code = (
        "import os, signal\nfrom jobs.cli.interruption import interruptible\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with interruptible():\n    os.kill(os.getpid(), signal.SIGINT)\nprint('on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "on\n"), done.stderr
