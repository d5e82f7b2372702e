"""Checks of the machine and the environment, with a cure for each fault.

Only the standard library is used, and packages are imported in another process: a broken or missing one is reported
instead of crashing the report.
"""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from jobs.cli.socket_paths import LONGEST_FOLDER, fits_ray
from jobs.cli.text_table import text_table
from jobs.doctoring.installed import (
    LANES,
    direct_names,
    installed_versions,
    lane_of,
    locked_versions,
    torch_cuda,
)

PETASTORM = "training.data.petastorm_shim"
"""Module that imports Petastorm, which nothing else can."""
IMPORTS = ("numpy", "pyarrow", "torch", "fbgemm_gpu", "torchrec", PETASTORM, "ray.train", "pyspark", "plotly")
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 13)
PORTS = {8265: "Ray's dashboard and job server", 6379: "a Ray head node", 7077: "a Spark master"}
MIN_JAVA = 17
MIN_DISK, GOOD_DISK = 2 * 10**9, 20 * 10**9
GOOD_MEMORY = 8 * 10**9
WHY = {
    "torch": "torchrec and FBGEMM load with this torch only",
    "torchrec": "pairs with this torch and FBGEMM only",
    "fbgemm-gpu": "pairs with this torch and torchrec only",
    "fbgemm-gpu-cpu": "pairs with this torch and torchrec only",
    "petastorm": "0.13 loses rows without an error",
    "pyarrow": "petastorm was tried with this one",
    "numpy": "2.5 is not for Python 3.11",
}
INSTALL_JAVA = "sudo apt-get install openjdk-17-jre-headless (Debian, Ubuntu) or brew install openjdk@17 (macOS)"

_TMPDIR = "set TMPDIR to a short folder that you can write to, or unset it"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Finding: one part of the environment, its state, the expected state, and a cure."""

    name: str
    status: Literal["ok", "warning", "wrong"]
    found: str
    expected: str = ""
    cure: str = ""


def examine(*, quick: bool = False) -> list[Finding]:
    """Run all checks.

    Args:
        quick: leave out importing the packages, which takes half a minute.
    """
    installed = installed_versions()
    lane = lane_of(installed, torch_cuda())
    findings = [check_python(), check_java()]
    findings += check_packages(installed, locked_versions(lane), direct_names(lane))
    findings += [check_accelerator(installed, torch_cuda(), lane)]
    findings += [] if quick else [check_imports()]
    return [*findings, *check_ports(PORTS), check_disk(Path.cwd()), check_memory(), check_temporary_folder()]


def check_python() -> Finding:
    """Check the version of Python."""
    found = ".".join(map(str, sys.version_info[:3]))
    expected = " to ".join(".".join(map(str, version)) for version in (MIN_PYTHON, MAX_PYTHON))
    if MIN_PYTHON <= sys.version_info[:2] <= MAX_PYTHON:
        return Finding("python", "ok", found, expected)
    return Finding("python", "wrong", found, expected, "make setup, then run .venv/bin/python -m jobs.doctor")


def check_java() -> Finding:
    """Check that Java runs, and its version."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    expected = f">= {MIN_JAVA}"
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        cure = f"unset JAVA_HOME or set it to a Java {MIN_JAVA}; else " if home else ""
        return Finding("java", "wrong", f"{java} does not run", expected, cure + INSTALL_JAVA)
    match = re.search(r'version "(?:1\.)?(\d+)[^"]*"', done.stderr + done.stdout)
    if match is None or int(match[1]) < MIN_JAVA:
        return Finding("java", "wrong", match[0] if match else "no version", expected, INSTALL_JAVA)
    return Finding("java", "ok", match[0].split('"')[1], expected)


def check_packages(installed: Mapping[str, str], locked: Mapping[str, str], direct: set[str]) -> list[Finding]:
    """Compare installed with locked versions: one finding for each direct dependency, one for all others."""
    findings = []
    for name in sorted(direct):
        found, expected = installed.get(name, "missing"), locked[name]
        expected_text = f"{expected} ({WHY[name]})" if name in WHY else expected
        if found.split("+")[0] == expected:
            findings.append(Finding(name, "ok", found, expected_text))
        else:
            findings.append(Finding(name, "wrong", found, expected_text, _pip(f"install --no-deps {name}=={expected}")))
    others = {name: version for name, version in locked.items() if name not in direct}
    off = [name for name, version in others.items() if installed.get(name, "missing").split("+")[0] != version]
    if off:
        shown = ", ".join(f"{name} {installed.get(name, 'missing')}" for name in off[:8]) + (" ..." if off[8:] else "")
        cure = _pip("install --no-deps " + " ".join(f"{name}=={others[name]}" for name in off))
        return [*findings, Finding("other packages", "warning", shown, "as locked", cure)]
    return [*findings, Finding("other packages", "ok", f"{len(others)} as locked")]


def check_accelerator(installed: Mapping[str, str], cuda: str | None, lane: str) -> Finding:
    """Check that there is one build of FBGEMM, and that torch is of the same lane."""
    found = [f"{name} {installed[name]}" for name in LANES.values() if name in installed]
    shown = f"torch for {f'CUDA {cuda}' if cuda else 'CPU'}, {' and '.join(found) or 'no fbgemm-gpu'}"
    if len(found) > 1:
        keep = f"{LANES[lane]}=={locked_versions(lane)[LANES[lane]]}"
        uninstall = _pip(f"uninstall -y {' '.join(LANES.values())}")
        cure = f"{uninstall} && {_pip(f'install --no-deps --force-reinstall {keep}')}"
        return Finding("lane", "wrong", shown, "one fbgemm: they own the same folder", cure)
    if found and (lane == "cuda") != bool(cuda):
        return Finding("lane", "wrong", shown, f"a {lane} torch", f"rm -r .venv && make setup ACCELERATOR={lane}")
    return Finding("lane", "ok", shown, lane)


_IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    print("importing", name, flush=True)
    importlib.import_module(name)
print("importing nothing", flush=True)
"""


def check_imports(names: Sequence[str] = IMPORTS) -> Finding:
    """Import the packages in order of dependency, in a child process, so that a crash in C++ is reported too."""
    command = [sys.executable, "-W", "ignore", "-c", _IMPORT_ALL, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Finding("imports", "wrong", "not done after 300 s", "", "try again on a machine that is not busy")
    last = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("importing ")][-1:]
    if done.returncode == 0:
        return Finding("imports", "ok", f"{len(names)} packages load")
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    name = last[0] if last else "python"
    cure = "mend the packages above; if there are none: rm -r .venv && make setup"
    return Finding("imports", "wrong", f"{name} does not load: {reason}", "all load", cure)


def check_ports(ports: Mapping[int, str]) -> list[Finding]:
    """Check that default ports are free; a busy one is a warning alone, because infra's scripts choose free ports."""
    findings = []
    for port, user in ports.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            busy = probe.connect_ex(("127.0.0.1", port)) == 0
        if busy:
            cure = f"stop what listens there (ss -ltnp 'sport = :{port}' names it) or choose another port"
            findings.append(Finding(f"port {port}", "warning", "in use", f"free for {user}", cure))
        else:
            findings.append(Finding(f"port {port}", "ok", "free", user))
    return findings


def check_disk(folder: Path) -> Finding:
    """Check the free space on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    status = "wrong" if free < MIN_DISK else "warning" if free < GOOD_DISK else "ok"
    cure = "" if status == "ok" else f"free space on the disk of {folder}"
    return Finding("disk", status, f"{free / 1e9:.1f} GB free", f"{GOOD_DISK / 1e9:.0f} GB", cure)


def check_memory() -> Finding:
    """Check the size of the memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    status = "ok" if total >= GOOD_MEMORY else "warning"
    cure = "" if status == "ok" else "make demo needs about 8 GB: lower pipeline.spark.driver_memory and close programs"
    return Finding("memory", status, f"{total / 1e9:.1f} GB", f"{GOOD_MEMORY / 1e9:.0f} GB", cure)


def check_temporary_folder() -> Finding:
    """Check that TMPDIR is a folder that can be written, and one that Ray can work in."""
    chosen, used = os.environ.get("TMPDIR", ""), tempfile.gettempdir()
    found, expected = chosen or used, f"at most {LONGEST_FOLDER} ASCII characters"
    if chosen and Path(chosen).absolute() != Path(used):
        return Finding("TMPDIR", "warning", f"{found}, which cannot be used: it is {used}", expected, _TMPDIR)
    if not fits_ray(Path(used)):
        return Finding("TMPDIR", "warning", f"{found}, where Ray cannot work: it uses /tmp", expected, _TMPDIR)
    return Finding("TMPDIR", "ok", found, expected)


def as_table(findings: Sequence[Finding]) -> str:
    """Lay the findings out for a terminal: one line each, then the cures."""
    rows = [("", "member", "found", "expected"), *((f.status, f.name, f.found, f.expected) for f in findings)]
    lines = [text_table(rows, most=44)]
    for finding in findings:
        if finding.status != "ok":
            lines += ["", f"{finding.status}: {finding.name} is {finding.found}; cure:", f"  {finding.cure}"]
    counts = {status: sum(f.status == status for f in findings) for status in ("wrong", "warning", "ok")}
    return "\n".join([*lines, "", ", ".join(f"{count} {status}" for status, count in counts.items())])


def _pip(arguments: str) -> str:
    return f"{sys.executable} -m pip {arguments}"
