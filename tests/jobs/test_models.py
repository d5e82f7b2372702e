"""jobs.models: what it prints, what it changes, and how it exits."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import models
from jobs.registry.registry import Registry
from tests.jobs.registry.test_registry import ROOT, make_artifact, make_registry

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Versions 1 to 3 of ``ctr``; 1 was champion, 2 is, 3 was refused."""
    registry = make_registry(tmp_path / "registry")
    for number in (1, 2, 3):
        artifact = make_artifact(tmp_path / f"artifact-{number}", str(number))
        registry.register("ctr", artifact, metrics={"auc": 0.7 + number / 100}, params={"seed": number})
    for number in (1, 2):
        registry.promote("ctr", number)
    registry.refuse("ctr", 3, ["auc fell"])
    return registry


@pytest.fixture
def run(run_here: Run, tmp_path: Path) -> Run:
    """Run the program on the registry; returns exit code, stdout and stderr."""
    return lambda *arguments: run_here(models.main, *arguments, "--registry", tmp_path / "registry")


def test_list(run: Run, registry: Registry, tmp_path: Path) -> None:
    code, out, _ = run("list")
    title, _, header, *rows = out.splitlines()
    assert (code, title) == (0, f"ctr in {tmp_path}/registry: 3 versions")
    assert header.split() == ["version", "aliases", "registered", "artifact", "refused"]
    found = registry.list("ctr")
    assert [row.split()[0] for row in rows] == ["3", "2", "1"]
    for row, version in zip(rows, found, strict=True):
        assert version.sha256 is not None
        for name, shown in (("registered", version.created), ("artifact", version.sha256[:12])):
            assert row[header.index(name) :].split()[0] == shown
        assert row[header.index("aliases") :].startswith("champion") == (version.version == 2)
    assert rows[0].endswith("auc fell")
    code, out, _ = run("list", "--json")
    listed = json.loads(out)
    assert code == 0 and listed["name"] == "ctr"
    assert [(v["version"], v["aliases"], v["refusals"]) for v in listed["versions"]] == [
        (3, [], ["auc fell"]),
        (2, ["champion"], []),
        (1, [], []),
    ]


def test_show(run: Run, registry: Registry) -> None:
    code, out, _ = run("show")
    assert code == 0 and out.startswith("ctr version 2 is champion\n")
    assert ["auc", "0.72"] in [line.split() for line in out.splitlines()]
    code, out, _ = run("show", "--version", 3)
    assert code == 0 and out.startswith("ctr version 3 has no alias\n")
    assert ["refused", "auc", "fell"] in [line.split() for line in out.splitlines()]
    code, out, _ = run("show", "--json", "--version", 1)
    shown = json.loads(out)
    assert code == 0 and (shown["version"], shown["metrics"], shown["params"]) == (1, {"auc": 0.71}, {"seed": "1"})
    assert [promotion["undone"] for promotion in shown["promotions"]] == [False]


def test_promote_and_roll_back(run: Run, registry: Registry) -> None:
    assert run("promote", "--version", 3) == (1, "", "error: ctr version 3 was refused: auc fell\n")
    assert run("promote", "--version", 3, "--force")[:2] == (0, "ctr version 3 is champion; before: version 2\n")
    assert run("rollback")[:2] == (0, "ctr version 2 is champion again; before: version 3\n")
    code, out, _ = run("rollback", "--json")
    assert (code, json.loads(out)["version"], json.loads(out)["aliases"]) == (0, 1, ["champion"])
    code, out, error = run("rollback")
    assert (code, out) == (1, "") and "ctr version 1 has no champion before it" in error
    champion = registry.champion("ctr")
    assert champion is not None and champion.version == 1


def test_errors(run: Run, registry: Registry) -> None:
    for line, code, message in (
        (("promote",), 2, "promote needs --version N"),
        (("list", "--version", 1), 2, "list takes no --version"),
        (("rollback", "--force"), 2, "rollback takes no --force"),
        (("delete",), 2, "invalid choice: 'delete'"),
        (("promote", "--version", "two"), 2, "invalid int value: 'two'"),
        (("list", "--name", "crt"), 1, "has no model 'crt'; it has ctr"),
        (("show", "--version", 9), 1, "ctr has no version 9; it has 3, 2, 1"),
    ):
        found, out, error = run(*line)
        assert (found, out) == (code, "") and message in error


def test_a_folder_without_a_registry_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    code, _, error = run("list")
    assert code == 1 and "is no registry: it has no registry.db" in error
    assert not (tmp_path / "registry").exists()


def test_help_has_an_example_and_needs_no_mlflow() -> None:
    program = (
        "import sys; from jobs import models; sys.argv = ['models', '--help']\n"
        "try:\n    models.main()\nfinally:\n    assert 'mlflow' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.rstrip().endswith("python -m jobs.models promote --version 3")
