"""What a program loads of the training package is what it needs, seen in fresh interpreters."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_by(module: str) -> set[str]:
    """Names of the modules that importing one of ours loads."""
    program = f"import sys, {module}; print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("LOADED ")[1].split())


def test_serving_loads_nothing_of_training_and_sharding():
    """A Serve replica and a Spark executor import this; TorchRec's own ``__init__`` loads its distributed half."""
    loaded = loaded_by("training.ship.predict")
    rooms = {name.split(".")[1] for name in loaded if name.startswith("training.")}
    assert rooms & {"fit", "sharding", "forecast"} == set()
    files = {name for name in loaded if name.startswith("training.data.")}
    assert files == {"training.data.batch", "training.data.row_buffer"}
    assert loaded & {"petastorm", "pyspark", "ray", "mlflow"} == set()
    torchrec = {name for name in loaded if name.startswith("torchrec.distributed")}
    assert torchrec <= loaded_by("torchrec"), "no more of it than any import of TorchRec loads"


@pytest.mark.parametrize("module", ["calibration", "comparison", "gate", "metrics"])
def test_judging_loads_no_engine(module: str):
    loaded = loaded_by(f"training.judge.{module}")
    assert loaded & {"torch", "torchrec", "fbgemm_gpu", "petastorm", "pyspark", "ray"} == set()
