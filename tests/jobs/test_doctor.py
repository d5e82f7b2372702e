"""jobs.doctor against environments that are wrong in one known way each."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.doctoring import checks, installed

ROOT = Path(__file__).resolve().parents[2]


def run_doctor(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program; packages and their metadata in ``path`` go before the installed ones."""
    python_path = os.pathsep.join(str(p) for p in (ROOT, path) if p)
    return subprocess.run(
        [sys.executable, "-m", "jobs.doctor", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path, **environment},
        check=False,
    )


def pretend_installed(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def make_java(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return folder


def test_this_environment_is_sound(tmp_path: Path):
    done = run_doctor("--json", str(tmp_path / "doctor.json"))
    findings = {f["name"]: f for f in json.loads((tmp_path / "doctor.json").read_text())}
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [f for f in findings.values() if f["status"] == "wrong"]
    assert {"python", "java", "torch", "torchrec", "petastorm", "ray", "imports", "disk", "memory"} <= set(findings)
    assert findings["imports"]["found"] == f"{len(checks.IMPORTS)} packages load"
    assert findings["torch"]["found"].split("+")[0] == installed.locked_versions("cpu")["torch"]


@pytest.mark.parametrize(("name", "version"), [("pyarrow", "17.0.0"), ("petastorm", "0.13.1"), ("torchrec", "1.7.0")])
def test_a_wrong_version_is_named_with_its_cure(tmp_path: Path, name: str, version: str):
    pretend_installed(tmp_path, name, version)
    done = run_doctor("--quick", path=tmp_path)
    locked = installed.locked_versions("cpu")[name]
    assert done.returncode == 1
    assert f"wrong: {name} is {version}" in done.stdout
    assert f"-m pip install --no-deps {name}=={locked}" in done.stdout
    assert "1 wrong" in done.stdout


def test_two_builds_of_fbgemm(tmp_path: Path):
    have = installed.lane_of(installed.installed_versions(), installed.torch_cuda())
    other = next(name for lane, name in installed.LANES.items() if lane != have)
    pretend_installed(tmp_path, other, "1.8.0")
    done = run_doctor("--quick", path=tmp_path)
    assert done.returncode == 1
    assert "wrong: lane is" in done.stdout
    assert "pip uninstall -y fbgemm-gpu-cpu fbgemm-gpu" in done.stdout


def test_torch_of_the_other_lane():
    finding = checks.check_accelerator({"fbgemm-gpu-cpu": "1.8.0"}, "13.0", "cpu")
    assert finding.status == "wrong"
    assert finding.cure == "rm -r .venv && make setup ACCELERATOR=cpu"
    assert checks.check_accelerator({"fbgemm-gpu": "1.8.0"}, "13.0", "cuda").status == "ok"


def test_a_package_that_does_not_load_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sound.py").write_text("")
    (tmp_path / "mismatched.py").write_text('raise ImportError("undefined symbol: _ZN5torch")')
    (tmp_path / "crashing.py").write_text("import os\nos.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert checks.check_imports(["sound"]).status == "ok"
    finding = checks.check_imports(["sound", "mismatched", "never_reached"])
    assert (finding.status, finding.found) == (
        "wrong",
        "mismatched does not load: ImportError: undefined symbol: _ZN5torch",
    )
    assert "crashing does not load" in checks.check_imports(["sound", "crashing"]).found


@pytest.mark.parametrize(
    ("version", "status", "found"),
    [("11.0.21", "wrong", 'version "11.0.21"'), ("1.8.0_392", "wrong", 'version "1.8.0_392"'), ("21", "ok", "21")],
)
def test_java_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, status: str, found: str):
    monkeypatch.setenv("JAVA_HOME", str(make_java(tmp_path, version)))
    finding = checks.check_java()
    assert (finding.status, finding.found) == (status, found)
    assert (checks.INSTALL_JAVA in finding.cure) == (status == "wrong")


def test_no_java(tmp_path: Path):
    done = run_doctor("--quick", JAVA_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"wrong: java is {tmp_path}/bin/java does not run" in done.stdout
    assert "openjdk-17-jre-headless" in done.stdout


def test_a_busy_port_is_a_warning():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        [finding] = checks.check_ports({port: "a test"})
        assert (finding.status, finding.found) == ("warning", "in use")
        assert str(port) in finding.cure
    assert checks.check_ports({port: "a test"})[0].status == "ok"


def test_every_package_asked_for_is_locked_in_both_lanes():
    for lane in installed.LANES:
        missing = installed.direct_names(lane) - set(installed.locked_versions(lane))
        assert not missing
    assert installed.locked_versions("cpu")["torch"] == installed.locked_versions("cuda")["torch"]
    assert not [name for name in installed.locked_versions("cpu") if name.startswith(("nvidia-", "triton"))]


@pytest.mark.parametrize(
    ("name", "status", "found"),
    [
        ("short", "ok", ""),
        ("a" * 90, "warning", "where Ray cannot work"),
        ("ü", "warning", "where Ray cannot work"),
        ("not-there", "warning", "cannot be used"),
    ],
)
def test_a_temporary_folder_that_will_not_do(name: str, status: str, found: str):
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        folder = Path(parent) / name
        if name != "not-there":
            folder.mkdir()
        done = run_doctor("--quick", "--json", f"{parent}/doctor.json", TMPDIR=str(folder))
        (finding,) = (f for f in json.loads(Path(parent, "doctor.json").read_text()) if f["name"] == "TMPDIR")
    assert finding["status"] == status and found in finding["found"]
    assert done.returncode == 0 and ("set TMPDIR to a short folder" in done.stdout) == (status != "ok")
