"""infra/scheduler/ and infra/airflow/: the units and the crontab as systemd and a shell read them, and the commands."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCHEDULER = ROOT / "infra" / "scheduler"
UNITS = ("twinfocus-retrain.service", "twinfocus-retrain.timer", "twinfocus-alert.service")
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="systemd-analyze is not on this machine")
PYTHON = """#!/bin/sh
echo "$*" >>"$CALLS"
[ "$2" = jobs.retrain ] && exit "${CODE:-0}"
exit "${PAGE:-0}"
"""
"""Stands for .venv/bin/python: it notes what it is asked to run."""


def systemd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


# -------------------------------------------------------------------------------------------------------------- systemd


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with the paths of this checkout, as its user has to put them in."""
    for name in UNITS:
        (tmp_path / name).write_text((SCHEDULER / name).read_text().replace("/opt/twinfocus", str(ROOT)))
    return tmp_path


@needs_systemd
def test_systemd_understands_the_units(units: Path):
    done = systemd("verify", *(units / name for name in UNITS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_finds_a_misspelt_setting(units: Path):
    unit = units / UNITS[0]
    unit.write_text(unit.read_text().replace("TimeoutStartSec", "TimeoutStartSecs"))
    assert "TimeoutStartSecs" in systemd("verify", unit).stderr


@needs_systemd
@pytest.mark.parametrize("name", ["twinfocus-retrain.service", "twinfocus-alert.service"])
def test_services_are_hardened(units: Path, name: str):
    """Exposure from 0 to 10 (times 10); a service without any setting has 9.6."""
    done = systemd("security", "--offline=yes", "--no-pager", "--threshold=60", units / name)
    assert done.returncode == 0, done.stdout[-500:]


def test_a_unit_starts_what_is_there_and_then_alerts():
    settings = dict(re.findall(r"^(\w+)=(.*)$", (SCHEDULER / UNITS[0]).read_text(), re.MULTILINE))
    program = ROOT / Path(settings["ExecStart"].split()[0]).relative_to("/opt/twinfocus")
    assert os.access(program, os.X_OK)
    assert settings["OnFailure"] in UNITS
    # Else systemd would start it without end, as three tries were never within the interval.
    hours = {name: int(settings[name].removesuffix("h")) for name in ("StartLimitIntervalSec", "TimeoutStartSec")}
    assert hours["TimeoutStartSec"] * int(settings["StartLimitBurst"]) < hours["StartLimitIntervalSec"] < 24


def test_alert():
    words = shlex.split(next(re.finditer(r"^ExecStart=(.+)$", (SCHEDULER / UNITS[2]).read_text(), re.MULTILINE))[1])
    environment = {name: value for name, value in os.environ.items() if name != "TWINFOCUS_WEBHOOK"}
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert (said["verdict"], said["stopped_by"]) == ("failed", "systemd")


# ---------------------------------------------------------------------------------------------------- the common script


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project whose Python notes what it is asked to run."""
    python = tmp_path / "opt" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / "opt" / "infra" / "scheduler").mkdir(parents=True)
    shutil.copy(SCHEDULER / "retrain.sh", tmp_path / "opt" / "infra" / "scheduler")
    (tmp_path / "mine.toml").touch()
    return tmp_path


def start(command: list[str], checkout: Path, environment: Mapping[str, str] = {}) -> tuple[int, list[str]]:
    calls = checkout / "calls"
    done = subprocess.run(
        command, cwd=checkout, env={**os.environ, "CALLS": str(calls), **environment}, capture_output=True, check=False
    )
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def script(checkout: Path) -> str:
    return str(checkout / "opt" / "infra" / "scheduler" / "retrain.sh")


def test_the_script_retrains_up_to_yesterday_and_makes_the_page(checkout: Path):
    days = [f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"]
    code, calls = start([script(checkout), "mine.toml", "a.b=c d"], checkout)
    days.append(f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}")  # it may be midnight
    config = f"--config {checkout / 'mine.toml'}"
    assert code == 0
    assert calls[0] in [f"-m jobs.retrain {config} --as-of {day} a.b=c d" for day in days]
    assert calls[1:] == [f"-m jobs.status {config} a.b=c d"]


def test_the_script_can_retrain_by_the_hour(checkout: Path):
    _, calls = start([script(checkout), "mine.toml"], checkout, {"BACK": "1 hour ago", "DATES": "%Y-%m-%d%H"})
    assert re.search(r"--as-of \d{4}-\d\d-\d{4}$", calls[0])


@pytest.mark.parametrize(("code", "page", "pages"), [("0", "1", 1), ("1", "0", 1), ("2", "0", 0), ("137", "1", 1)])
def test_the_exit_code_is_that_of_retraining(checkout: Path, code: str, page: str, pages: int):
    found, calls = start([script(checkout), "mine.toml"], checkout, {"CODE": code, "PAGE": page})
    assert (found, len(calls)) == (int(code), 1 + pages)


def test_the_script_says_how_it_is_called(checkout: Path):
    assert start([script(checkout)], checkout) == (2, [])


def test_the_script_is_understood_by_the_real_programs():
    done = subprocess.run([SCHEDULER / "retrain.sh", "/no/such.toml"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/no/such.toml" in done.stderr


# ----------------------------------------------------------------------------------------------------------------- cron


@pytest.mark.parametrize(("code", "mail"), [("0", b""), ("1", b"retraining failed: see %s/retrain.log\n")])
def test_the_line_of_the_crontab(checkout: Path, code: str, mail: bytes):
    """As cron does it: the line after five fields goes to sh, a % would end it, and what is printed is mailed."""
    [line] = [line for line in (SCHEDULER / "crontab").read_text().splitlines() if re.match(r"[^#\w]|\d", line)]
    *fields, command = line.split(maxsplit=5)
    assert all(re.fullmatch(r"\d+|\*", field) for field in fields)
    assert "%" not in command
    here = {"/opt/twinfocus": str(checkout / "opt"), "/etc/twinfocus/retrain.toml": str(checkout / "mine.toml")}
    for there, with_us in {**here, "/data": str(checkout)}.items():
        assert there in command
        command = command.replace(there, with_us)
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": "/usr/bin:/bin", "CALLS": str(checkout / "calls"), "CODE": code},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (mail.replace(b"%s", os.fsencode(checkout)), b"")


# -------------------------------------------------------------------------------------------------------------- Airflow


def test_the_dag_runs_our_programs():
    """make airflow-check runs it; this is what is seen without Airflow: each command's options are the program's."""
    tree = ast.parse((ROOT / "infra" / "airflow" / "twinfocus_retrain.py").read_text())
    commands = [
        ast.literal_eval(keyword.value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "bash_command"
    ]
    programs = set()
    for command in commands:
        exec_, python, flag, program, *options = shlex.split(command)
        assert (exec_, python, flag) == ("exec", "$PYTHON", "-m")
        usage = subprocess.run(
            [sys.executable, "-m", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert [option for option in options if option.startswith("--")]
        for option in options:
            assert option.startswith("$") or re.search(rf"^  {option}\b", usage.stdout, re.MULTILINE)
        programs.add(program)
    assert programs == {"jobs.retrain", "jobs.status"}


def test_airflow_is_imported_in_its_own_folder_alone():
    sources = [
        path for folder in ("features", "pipeline", "training", "jobs") for path in (ROOT / folder).rglob("*.py")
    ]
    assert not [path for path in sources if re.search(r"^\s*(?:from|import) airflow\b", path.read_text(), re.MULTILINE)]


def test_airflow_is_locked_with_hashes():
    lock = (ROOT / "infra" / "airflow" / "requirements.txt").read_text()
    [pin] = (ROOT / "infra" / "airflow" / "requirements.in").read_text().split()
    assert f"{pin} \\" in lock.splitlines()
    for requirement in re.split(r"^(?=\S+==)", lock, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in requirement
