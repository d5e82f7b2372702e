"""Logging of a real process: lines as a person and as a program read them, levels, other libraries, and no secret."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.logging import HIDDEN, LOG_LEVELS, SECRETS

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import argparse, logging, os, warnings
from jobs.cli.conventions import run_program
from jobs.cli.logging import SECRETS, add_log_options, set_up_logging

def main():
    parser = argparse.ArgumentParser()
    add_log_options(parser)
    set_up_logging("jobs.tested", parser.parse_args())
    log, other = logging.getLogger("jobs.retraining.tested"), logging.getLogger("other.library")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("said at %s", level, extra={"step": level, "path": {"of": [1, None, "two\\nlines"]}})
    other.setLevel(logging.DEBUG)
    other.info("nobody asked")
    other.warning("a library warns")
    for name in SECRETS:
        log.info("%s is %s", name, os.environ[name], extra={name: os.environ[name], "nested": [os.environ[name]]})
    try:
        raise ValueError(os.environ[SECRETS[0]])
    except ValueError:
        log.exception("it failed")
    print("the summary")
    raise ENDING

run_program(main)
"""


def say(
    *flags: str, ending: str = "ValueError('the disk is full')", program: str = PROGRAM
) -> subprocess.CompletedProcess[str]:
    secrets = {name: f'se"cret\\{number}' for number, name in enumerate(SECRETS)}
    return subprocess.run(
        [sys.executable, "-c", program.replace("ENDING", ending), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, **secrets, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def as_json(errors: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in errors.splitlines()]


def test_lines_for_a_person() -> None:
    done = say()
    first, *_, last = done.stderr.splitlines()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO jobs\.tested: said at info", first)
    assert last == "error: the disk is full" and done.returncode == 1
    assert " WARNING jobs.tested: a library warns\n" in done.stderr and "nobody asked" not in done.stderr
    assert done.stdout == "the summary\n"


def test_lines_for_a_person_who_waits() -> None:
    done = say(program=PROGRAM.replace("parser.parse_args()", "parser.parse_args(), timed=False"))
    lines = done.stderr.splitlines()
    assert lines[:4] == ["said at info", "warning: said at warning", "error: said at error", "warning: a library warns"]
    assert f"{SECRETS[0]} is {HIDDEN}" in lines and lines[-1] == "error: the disk is full"
    assert "error: it failed" in lines and f"ValueError: {HIDDEN}" in lines


def test_lines_for_a_program() -> None:
    done = say("--log-json")
    first, *_, last = lines = as_json(done.stderr)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    fields = {"step": "info", "path": {"of": [1, None, "two\nlines"]}}
    assert first == {"level": "info", "logger": "jobs.retraining.tested", "message": "said at info", **fields}
    assert (last["level"], last["message"], last["exit_code"]) == ("error", "the disk is full", 1)
    assert [line["message"] for line in lines if line["logger"] == "other.library"] == ["a library warns"]
    [failed] = [line for line in lines if line["message"] == "it failed"]
    assert failed["traceback"].startswith("Traceback")
    assert (done.stdout, done.returncode) == ("the summary\n", 1)


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_levels(level: str) -> None:
    said = [line["step"] for line in as_json(say("--log-json", "--log-level", level).stderr) if "step" in line]
    assert said == list(LOG_LEVELS[LOG_LEVELS.index(level) :])


@pytest.mark.parametrize("flags", [(), ("--log-json",)])
def test_no_secret_is_shown(flags: tuple[str, ...]) -> None:
    done = say(*flags)
    assert "cret" not in done.stderr.replace("it failed", "") and done.stderr.count(HIDDEN) > len(SECRETS)
    for name in SECRETS:
        assert f"{name} is {HIDDEN}" in done.stderr


def test_a_defect_is_a_line_too() -> None:
    done = say("--log-json", ending="KeyError('of ours')")
    last = as_json(done.stderr)[-1]
    assert last["level"] == "critical" and "KeyError: 'of ours'" in last["traceback"] and done.returncode == 1
