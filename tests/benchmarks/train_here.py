"""Train in the benchmark's own process, and measure it by the CPU it takes or by what it gives."""

import tempfile
import time
from pathlib import Path
from typing import Any

from jobs.cli.config import Config


def train_here(config: Config) -> tuple[int, float]:
    """Train as a Ray Train worker of one does, with one thread; rows that were trained on, and CPU seconds."""
    found, cpu = _train(config)
    return found["train"]["rows"], cpu


def evaluate_here(config: Config) -> dict[str, Any]:
    """Train likewise; the run's final metrics."""
    return _train(config)[0]


def _train(config: Config) -> tuple[dict[str, Any], float]:
    import torch.distributed as dist

    from jobs.launch.run_guard import prepare_run, with_places
    from jobs.launch.worker import set_up_worker
    from training.fit.run import Run, train_rank

    set_up_worker(1, 1)
    config = with_places(config)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        run = Run(Path(folder) / "run")
        prepare_run(run.path, config, resume=False)
        started = time.process_time()
        found = train_rank(run, run.config(), lambda event: None, config.features)
        cpu = time.process_time() - started
        dist.destroy_process_group()
    return found, cpu
