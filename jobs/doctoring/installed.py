"""Packages: the versions locked for this environment, and the installed ones.

Only the standard library is used, so that a broken or missing package cannot crash the report.
"""

import importlib.metadata
import importlib.util
import re
import runpy
import tomllib
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LANES = {"cpu": "fbgemm-gpu-cpu", "cuda": "fbgemm-gpu"}
"""Builds of FBGEMM: lane -> package. Only one may be installed: both own the same import folder."""


def locked_versions(lane: str) -> dict[str, str]:
    """Read the lane's lock: package -> version."""
    lines = (PROJECT / "requirements" / f"{lane}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def direct_names(lane: str) -> set[str]:
    """List the direct dependencies of pyproject.toml in this lane."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"][lane]
    return {_normalised(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Map packages to installed versions; of several, the first on the path counts."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        versions.setdefault(_normalised(distribution.metadata["Name"] or "?"), distribution.version)
    return versions


def torch_cuda() -> str | None:
    """Read torch's CUDA version without importing it; None: a CPU build, or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    return runpy.run_path(str(version_file)).get("cuda") if version_file.is_file() else None


def lane_of(installed: Mapping[str, str], cuda: str | None) -> str:
    """Tell the lane of this environment: the installed FBGEMM's, or if there is not exactly one, torch's."""
    found = [lane for lane, name in LANES.items() if name in installed]
    return found[0] if len(found) == 1 else ("cuda" if cuda else "cpu")
