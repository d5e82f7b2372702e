"""Packages: the versions that are locked for this environment, and those that are installed.

Only the standard library is used: a broken or missing package is reported and not stumbled over.
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
"""Lane -> its build of FBGEMM. Never both: they own the same import folder."""


def locked_versions(lane: str) -> dict[str, str]:
    """Package -> version in the lane's lock."""
    lines = (PROJECT / "requirements" / f"{lane}.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def direct_names(lane: str) -> set[str]:
    """Packages that pyproject.toml itself asks for in this lane."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"][lane]
    return {_normalised(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Package -> installed version, the first found on the path where there are several."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        versions.setdefault(_normalised(distribution.metadata["Name"] or "?"), distribution.version)
    return versions


def torch_cuda() -> str | None:
    """CUDA version torch was built for; None for a CPU build or no torch. Does not import it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    return runpy.run_path(str(version_file)).get("cuda") if version_file.is_file() else None


def lane_of(installed: Mapping[str, str], cuda: str | None) -> str:
    """The lane this environment is meant to be: what FBGEMM says, and where that is unclear, what torch says."""
    found = [lane for lane, name in LANES.items() if name in installed]
    return found[0] if len(found) == 1 else ("cuda" if cuda else "cpu")
