"""Programs are doors: short, without a class, a thread or HTML; ``--help`` has an example and loads no engine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem not in ("__init__", "runfiles"))
MAX_LINES = 80
ENGINES = ("torch", "torchrec", "ray", "pyspark", "mlflow", "plotly", "pandas")
LOOK = """
import importlib, sys
program, *engines = sys.argv[1:]
module = importlib.import_module(f"jobs.{program}")
sys.argv = [program, "--help"]
try:
    module.main()
finally:
    print("loaded:", *(name for name in engines if name in sys.modules))
"""


def test_programs_are_found() -> None:
    assert {"train", "serve", "retrain", "status", "doctor"} <= {path.stem for path in PROGRAMS}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_a_door(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_LINES
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in ("threading", "multiprocessing", "html", "tests")}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [words for words in texts if "</" in words or "<p>" in words or "<!" in words]


@pytest.mark.parametrize("program", [path.stem for path in PROGRAMS])
def test_help_has_an_example_and_loads_no_engine(program: str) -> None:
    command = [sys.executable, "-c", LOOK, program, *ENGINES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout and f"jobs.{program}" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"
