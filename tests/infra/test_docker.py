"""infra/docker/Dockerfile: what its linter says, and that what it copies and runs is there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


def test_linter():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_it_copies_is_in_the_project_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = [
        word for line in re.findall(r"^COPY (.+)$", DOCKERFILE.read_text(), re.MULTILINE) for word in line.split()[:-1]
    ]
    assert {"pyproject.toml", "features", "pipeline", "training", "jobs", "infra"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert source not in ignored


def test_its_entry_runs_a_command():
    [entry] = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE.read_text(), re.MULTILINE)[0])
    script = ROOT / entry.removeprefix("/opt/twinfocus/")
    assert os.access(script, os.X_OK)
    done = subprocess.run(
        [script, "sh", "-c", "echo $0 $1; exit 3", "a", "b c"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "a b c\n")
