"""What can happen to an export: ``jobs.export`` killed at every point of its writing, over an artifact that stands."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.data import END_SECONDS, ROOT, expect
from tests.chaos.outcome import Outcome, Unexpected

OLD, NEW = "float32", "int8"
"""Precision of the tables of the artifact that stands, and of the one that is to take its place."""
NUM_KILLS = 8


def kill_export(folder: Path, seed: int) -> Outcome:
    """kill -9 with ever more of the new artifact on disk: the old one or the new one scores, whole; the next works."""
    from features.disk.artifact import open_artifact
    from tests.stand_ins.tiny_model import train_tiny
    from training.ship.predict import Predictor

    artifact, rng = train_tiny(folder / "model", seed), random.Random(seed)
    home = folder / "exported"
    home.mkdir()
    output = home / "artifact"
    shutil.copytree(artifact, output)
    Predictor.load(output)
    found: list[str] = []
    for number in range(NUM_KILLS):
        process = _start(artifact.parent, output)
        _wait_for_files(process, output, number)
        time.sleep(rng.uniform(0, 0.02))
        if process.poll() is None:  # it has not come to its end meanwhile
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        Predictor.load(output)  # checks every file and scores its golden rows
        with open_artifact(output) as opened:
            found.append(opened.description["tables"])
        shutil.rmtree(output)  # each begins with the old one
        shutil.copytree(artifact, output)
    expect(OLD in found, "no export was killed before its artifact was there: nothing is tested")
    process = _start(artifact.parent, output)
    errors = process.communicate(timeout=END_SECONDS)[1]
    expect(process.returncode == 0, f"ended with {process.returncode}: {errors}")
    expect([path.name for path in home.iterdir()] == ["artifact"], "a killed export's files are left")
    with open_artifact(output) as opened:
        expect(opened.description["tables"] == NEW, "it is still the old one")
    return Outcome(0, 0, None)


def _start(model: Path, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.export", "--run", str(model / "run"), "--output", str(output)]
    command += ["--golden-input", str(model / "golden.csv"), "--tables", NEW]
    return subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_files(process: subprocess.Popen[str], output: Path, number: int) -> None:
    """Return when so many files of the new artifact are there, or the export has ended.

    Raises:
        Unexpected: it takes too long.
    """
    deadline = time.monotonic() + END_SECONDS
    while process.poll() is None:
        new = [path for path in output.parent.glob(".artifact.partial/*/new/**/*") if path.is_file()]
        if len(new) >= number and any(output.parent.glob(".artifact.partial/*/new")):
            return
        if time.monotonic() > deadline:
            raise Unexpected(f"no file {number} within {END_SECONDS:.0f} s")
        time.sleep(0.001)


CASES: dict[str, Callable[[Path, int], Outcome]] = {"export-killed": kill_export}
