"""The peers' own folder: packages that are compared with, kept out of the project's environment.

It lies in ``runs/bench/peers``, is made once by ``uv pip install --target``, and only a peer's process has it on its
path, before the project's packages; so a peer runs on the project's torch, and its other packages are its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("runs/bench/peers").absolute()
PACKAGES = (
    "pyarrow==18.1.0",  # the project's own needs NumPy 2
    "polars==1.36.1",
    "polars-runtime-32==1.36.1",
    "fuxictr==2.3.10",
    "deepctr-torch==0.2.9",
    "scikit-learn==1.7.2",
    "scipy==1.15.3",
    "joblib==1.5.2",
    "threadpoolctl==3.6.0",
    "h5py==3.14.0",
    "keras-preprocessing==1.1.2",
    "pyyaml==6.0.3",
)
"""Taken without what they depend on, which would bring a torch of their own."""
WITH_DEPENDENCIES = ("tensorflow-cpu==2.17.1", "numpy==1.26.4")
"""DeepCTR-Torch imports TensorFlow for its callbacks."""


def prepare() -> None:
    """Make the folder if it is not there.

    Raises:
        subprocess.CalledProcessError: the package index does not give a package; uv's own message is shown.
    """
    done = FOLDER / "installed.json"
    wanted = json.dumps([PACKAGES, WITH_DEPENDENCIES])
    if done.exists() and done.read_text() == wanted:
        return
    install = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--target", str(FOLDER)]
    subprocess.run([*install, "--no-deps", *PACKAGES], check=True)
    subprocess.run([*install, *WITH_DEPENDENCIES], check=True)
    done.write_text(wanted)


def run(script: str, *arguments: object) -> dict[str, Any]:
    """Run one of the scripts beside this file; the last line that it prints is JSON.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is shown.
    """
    prepare()
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
