"""infra/setup.sh: what it says before it downloads anything, and that it does nothing when nothing is to be done."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup needs, with a ``bin`` folder to be the only PATH besides the system's tools."""
    (tmp_path / "infra").mkdir()
    shutil.copy(ROOT / "infra" / "setup.sh", tmp_path / "infra")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "bin").mkdir()
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def set_up(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("JAVA_HOME", "PYTHON", "ACCELERATOR")}
    path = f"{checkout / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return subprocess.run(
        [checkout / "infra" / "setup.sh"],
        capture_output=True,
        text=True,
        env={**inherited, "PATH": path, **environment},
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], checkout: Path) -> str:
    """The one sentence of a refusal, which left no .venv behind."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()
    return done.stderr


@pytest.mark.parametrize("version", ["11.0.21", "1.8.0_392"])
def test_old_java(checkout: Path, version: str):
    write_program(checkout / "bin" / "java", f"echo 'openjdk version \"{version}\" 2023-10-17' >&2")
    message = refused(set_up(checkout), checkout)
    assert f"is version {'8' if version.startswith('1.') else '11'}" in message
    assert "sudo apt-get install openjdk-17-jre-headless" in message
    assert "brew install openjdk@17" in message


def test_no_java(checkout: Path):
    write_program(checkout / "bin" / "java", "exit 127")
    assert "does not run: install it with 'sudo apt-get install" in refused(set_up(checkout), checkout)
    assert f"'{checkout}/bin/java' does not run" in refused(set_up(checkout, JAVA_HOME=str(checkout)), checkout)


def test_no_python(checkout: Path):
    write_program(checkout / "bin" / "java", "echo 'openjdk version \"17.0.1\" 2021-10-19' >&2")
    for name in ("python3.11", "python3.12", "python3.13", "python3", "python"):
        write_program(checkout / "bin" / name, "exit 1")
    message = refused(set_up(checkout), checkout)
    assert "no Python 3.11, 3.12 or 3.13 was found" in message
    assert "sudo apt-get install python3.11 python3.11-venv" in message


def test_unknown_lane(checkout: Path):
    assert "ACCELERATOR=tpu is unknown" in refused(set_up(checkout, ACCELERATOR="tpu"), checkout)


def test_nothing_to_do(checkout: Path):
    """With the lock's stamp in place nothing is installed; with another lock's, it is set up again."""
    write_program(checkout / "bin" / "java", "echo 'openjdk version \"17.0.1\" 2021-10-19' >&2")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    write_program(checkout / ".venv" / "bin" / "pip", "echo pip was called >&2; exit 1")
    checksum = subprocess.run(
        ["cksum"], input=(checkout / "requirements" / "cpu.txt").read_bytes(), capture_output=True, check=True
    )
    (checkout / ".venv" / ".installed").write_text(f"cpu {checksum.stdout.decode()}")
    done = set_up(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with (checkout / "requirements" / "cpu.txt").open("a") as lock:
        lock.write("# changed\n")
    done = set_up(checkout, TORCH_CPU_INDEX="http://127.0.0.1:9")
    assert done.returncode != 0
    assert "pip was called" in done.stderr
    assert not (checkout / ".venv" / ".installed").exists()


def test_the_zip_holds_the_packages_and_is_reproducible():
    subprocess.run([ROOT / "infra" / "package.sh"], check=True)
    path = ROOT / "dist" / "twinfocus.zip"
    first = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    expected = {
        p.relative_to(ROOT).as_posix()
        for package in ("features", "pipeline", "training", "jobs")
        for p in (ROOT / package).rglob("*.py")
    }
    assert names == expected | {p.relative_to(ROOT).as_posix() for p in (ROOT / "jobs/pages/templates").iterdir()}
    subprocess.run([ROOT / "infra" / "package.sh"], check=True)
    assert path.read_bytes() == first


def test_a_wheel_holds_the_templates(tmp_path: Path):
    """Built from a copy, because setuptools leaves its folders beside the sources."""
    for name in ("features", "pipeline", "training", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run(command, check=True, cwd=tmp_path)
    [path] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    assert {f"jobs/pages/templates/{p.name}" for p in (ROOT / "jobs/pages/templates").iterdir()} < names
