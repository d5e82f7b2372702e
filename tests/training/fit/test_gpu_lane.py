"""tests/benchmarks/gpu_lane.py as anyone with a GPU runs it, here on the CPU: it needs torch and its like alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[3]
PROGRAM = """
import runpy, sys
for name in ("pyarrow", "petastorm", "pyspark", "ray", "pandas"):
    sys.modules[name] = None  # an import of it fails
sys.argv = ["gpu_lane", *sys.argv[1:]]
runpy.run_module("tests.benchmarks.gpu_lane", run_name="__main__")
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_same_code_on_the_cpu(tmp_path: Path) -> None:
    small = ("--rows", 500, "--batch-size", 64, "--steps", 2, "--repeats", 1, "--compared-steps", 3)
    done = run("--device", "cpu", *small, "--output", tmp_path / "lane.json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "lane.json").read_text())
    losses = found["losses"]
    assert len(losses["cpu"]) == 3 and losses["cpu"] == losses["device"] and losses["agree"]
    assert len(set(losses["cpu"])) == 3
    assert set(found["variants"]) == {"base", "plain steps", "row_wise", "bfloat16"}
    for variant in found["variants"].values():
        assert sum(variant["shares"].values()) == pytest.approx(1)
        assert variant["of_gemm"] > 0 and variant["of_copy"] > 0
    assert found["vs_base"]["base"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 1 and done.stdout == ""
    assert "has no CUDA device" in done.stderr and "--device cpu" in done.stderr
