"""Six small runs over the frozen dataset: their first losses, last metrics and weights, as ``losses.json`` has them.

``python -m tests.golden.losses --write`` records them anew, after a change that is meant to change losses; ``--add``
records those of another machine beside them. The losses and weights of an ``identity`` are exact; those of ``portable``
hold to a relative tolerance on every other machine (``LOSS_TOLERANCES``).

Also the few places where golden tests take hold of the product: ``train`` and ``one_rank``.
"""

import argparse
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from jobs.cli.config import Config, load_config
from jobs.launch.run_guard import prepare_run
from tests.golden.frozen import copy_frozen
from tests.ranks import on_two_ranks
from training.data.opened_dataset import Dataset
from training.fit import loop
from training.fit.run import Run, build_model, train_rank
from training.sharding import checkpoint

GENERATION = "v1"
LOSSES = Path(__file__).with_name("losses.json")
NUM_LOSSES = 8

COMMON = ("training.max_epochs=1", "training.calibration.kind=none")
RUNS: dict[str, tuple[str, ...]] = {
    "fused": (),
    "dense": (
        "training.optimizer.kind=dense",
        "training.optimizer.embedding_l2=0.01",
        "training.optimizer.learning_rate=0.01",
        "training.sharding.default=auto",
        "training.ema_decay=0.9",
    ),
    "bfloat16": ("training.precision=bfloat16",),
    "two ranks": (
        "training.num_workers=2",
        'training.sharding.features={ user = "table_wise", age = "data_parallel" }',
    ),
    "warm start": ("training.warm_start={frozen}/run", "training.calibration.kind=platt"),
    "finalmlp": (
        'training.model.selection={ kind = "stream_gates", hard_context = ["user"], hidden_units = [8] }',
        'training.model.fusion={ kind = "bilinear", num_heads = 4 }',
        "training.model.objective.kind=bce",
        "training.optimizer.embedding_l2=0.01",
    ),
}
"""Run -> what it changes in the frozen run's config."""
LOSS_TOLERANCES = dict.fromkeys(RUNS, 5e-6) | {"bfloat16": 3e-2}
LOGLOSS_TOLERANCES = dict.fromkeys(RUNS, 1e-2) | {"bfloat16": 5e-2}
"""Relative, of the first losses and of the last validation logloss, where instructions are others than those that were
recorded. AUC is not compared there. Measured: between AVX512 and Torch's plain kernels (ATEN_CPU_CAPABILITY=default)
losses differ by 1.1e-6 and in bfloat16 by 9.6e-3, loglosses by 3.3e-3 and 1.7e-2; with avx2 by 1.5e-7 and 1.3e-3."""
METRIC_TOLERANCE = 1e-14
"""Relative, of metrics where losses and weights are the recorded ones: NumPy computes them, and its exp and its sums
round otherwise from version to version. Measured: between NumPy 1.26 and 2.4, two expected calibration errors differ by
2.5e-16."""

Recorded = dict[str, Any]
"""losses: hexadecimal floats of the first steps; valid: metric -> hexadecimal float; weights: a sha256."""


def identity() -> str:
    """What decides the last bit of a sum: the instructions that Torch takes, whose they are, and Torch itself."""
    processor = {"vendor_id": platform.machine(), "cpu family": "", "model": ""}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in processor:
            processor[name.strip()] = value.strip()
    vendor, family, model = processor.values()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{vendor} family {family} model {model}, {capability}, torch {torch.__version__}, 1 thread"


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """A process group of this process alone, with one thread of Torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


def train(path: Path, config: Config, *, resume: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """Train as jobs.train does, without Ray; every step's loss is in the history.

    Args:
        path: of the run.
        config: the whole config; two workers are two processes of their own.
        resume: go on with the run.
        folder: where two ranks find each other.

    Returns:
        The run's metrics.
    """
    path.mkdir(exist_ok=True)
    prepare_run(path, config, resume=resume)
    if config.training.num_workers == 1:
        _fit(path, config)
    else:
        assert folder is not None
        on_two_ranks(folder, _fit, path, config)
    return Run(path).read("metrics.json")


def _fit(path: Path, config: Config) -> None:
    with patch.object(loop, "PROGRESS_SECONDS", 0.0):
        train_rank(Run(path), config.training, schema=config.features)


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    """A run's history: ``progress`` (one a step), ``evaluation`` or ``checkpoint``."""
    lines = (json.loads(line) for line in Run(path).history.read_text(encoding="utf-8").splitlines())
    return [event for event in lines if event["event"] == kind]


def config_of(frozen: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of the frozen run with some changes; ``{frozen}`` in them is its folder."""
    departures = ("training.from_data=[]", *overrides)
    return load_config([str(frozen / "config.toml")], [text.replace("{frozen}", str(frozen)) for text in departures])


def record(folder: Path, runs: Mapping[str, Sequence[str]] = RUNS) -> dict[str, Recorded]:
    """Do some runs of one epoch.

    Args:
        folder: an empty one.
        runs: name -> overrides.
    """
    frozen = copy_frozen(GENERATION, folder / "frozen")
    recorded = {}
    for number, (name, overrides) in enumerate(runs.items()):
        path = folder / f"run-{number}"
        config = config_of(frozen, (*COMMON, *overrides))
        store = folder / f"store-{number}"
        store.mkdir()
        with one_rank(store):
            metrics = train(path, config, folder=store)
        recorded[name] = {
            "losses": [_hex(event["loss"]) for event in events(path, "progress")[:NUM_LOSSES]],
            "valid": {metric: _hex(metrics["valid"][metric]) for metric in ("auc", "gauc", "logloss", "ne", "ece")},
            "weights": _weights(path, config),
        }
    return recorded


def _hex(value: float) -> str:
    return float(value).hex()


def _weights(path: Path, config: Config) -> str:
    """The sha256 of the last checkpoint's weights, by their names."""
    model = build_model(Dataset.open(config.training.dataset), config.training, torch.device("cpu"))
    newest = checkpoint.newest(Run(path).checkpoints)
    assert newest is not None
    checkpoint.restore_model(newest, model)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.losses", description="Record the golden losses.")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--write", action="store_true", help="in place of all that was recorded")
    how.add_argument("--add", action="store_true", help="those of this machine beside those of others")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recorded = record(Path(folder))
    kept = json.loads(LOSSES.read_text(encoding="utf-8")) if arguments.add else {"portable": recorded, "exact": {}}
    kept["exact"][identity()] = recorded
    LOSSES.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
