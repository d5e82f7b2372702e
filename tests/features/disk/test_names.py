"""A format on disk has one module: no other product module holds its file names, and none of them has an engine."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
OWNERS = {
    "manifest.json": "dataset",
    "build.json": "dataset",
    "artifact.json": "artifact",
    "weights.safetensors": "artifact",
    "golden.jsonl": "artifact",
    "checkpoint.json": "checkpoint",
    ".uncommitted": "checkpoint",
    **dict.fromkeys(("config.json", "dataset.json", "metrics.json", "calibration.json", "failure.json"), "run_folder"),
    **dict.fromkeys(("history.jsonl", "gate.json", "checks.json", "attribution.json", "tables.json"), "run_folder"),
    **dict.fromkeys(("report.html", ".workers", ".reserve"), "run_folder"),
    **dict.fromkeys(("last.json", "retrain.json"), "retrain_folder"),
}
"""File name -> the module of features/disk that owns it; plan.json is jobs.plan's too, which writes no run."""
ENGINES = (
    "pyspark",
    "torch",
    "torchrec",
    "fbgemm_gpu",
    "petastorm",
    "ray",
    "mlflow",
    "plotly",
    "pipeline",
    "training",
    "jobs",
)


def texts(path: Path) -> Iterator[str]:
    """Constant texts of a module but for its docstrings and the sentences it says to users."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def test_no_other_module_holds_a_file_name() -> None:
    found = {name: set() for name in OWNERS}
    for folder in ("features", "pipeline", "training", "jobs"):
        for path in (ROOT / folder).rglob("*.py"):
            for text in texts(path):
                last = text.strip().rpartition("/")[2]
                if " " not in text.strip() and last in OWNERS:
                    found[last].add(path.relative_to(ROOT).as_posix())
    assert found == {name: {f"features/disk/{owner}.py"} for name, owner in OWNERS.items()}


def test_no_engine_is_imported() -> None:
    modules = [f"features.disk.{path.stem}" for path in (ROOT / "features" / "disk").glob("[!_]*.py")]
    script = (
        f"import {', '.join(modules)}; import sys; print({{m.partition('.')[0] for m in sys.modules}} & {set(ENGINES)})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n" and len(modules) >= 10
