"""Worker of a training: environment, memory, threads, and the report of a failure.

Import it before ray: workers inherit the environment variables that it sets.
"""

import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from features.disk.atomic import is_full
from features.disk.lock import lock
from features.disk.run_folder import ERRORS_NAME, FAILURE_NAME, RESERVE_NAME, WORKERS_LOCK_NAME
from jobs.cli.config import parse_config
from training.fit.allocator import HUGE_PAGES, keep_freed_memory

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # a training is what its machine is for
os.environ.setdefault(HUGE_PAGES, "1")  # workers started from here have it before they load torch

LOCK_SECONDS = 60.0
"""Seconds to wait for the shared lock; only a program in ``take_over`` holds it exclusively."""


def set_up_worker(num_workers: int, num_threads: int | None) -> None:
    """Prepare this process to train; call it before torch allocates.

    Args:
        num_workers: processes that share the machine's cores.
        num_threads: threads of this process; None: its share of the cores.
    """
    keep_freed_memory()
    import torch

    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // num_workers))


def work(arguments: dict[str, Any]) -> None:
    """Train as one Ray Train worker; return at once if it belongs to an earlier training.

    Args:
        arguments: ``run``, path of the run; ``config``, the resolved config; ``training``, the name from ``take_over``.
    """
    path = Path(arguments["run"]) / WORKERS_LOCK_NAME
    with lock(path, f"{path} is held", shared=True, patience=LOCK_SECONDS) as owner:
        if owner.read() == arguments["training"]:
            _fit(arguments)


def _fit(arguments: dict[str, Any]) -> None:
    import ray.train

    from training.fit.run import Run, train_rank

    run = Run(Path(arguments["run"]))
    if run.failure.exists():
        return  # an error that a restart cannot mend: leave quietly, the driver tells it
    context = ray.train.get_context()
    rank = context.get_world_rank()

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            ray.train.report({k: v for k, v in event.items() if isinstance(v, int | float)})

    try:
        config = parse_config(arguments["config"])  # may find no plugin on this machine
        set_up_worker(context.get_local_world_size(), config.training.threads_per_worker)
        train_rank(run, config.training, report, config.features)
    except Exception as error:
        with suppress(OSError):  # where nothing can be written; the error itself goes to the driver by Ray
            message = _final_word(error, run.path)
            if message is not None:
                (run.path / RESERVE_NAME).unlink(missing_ok=True)
                run.write(FAILURE_NAME, {"rank": rank, "message": message})
            errors = run.path / ERRORS_NAME
            errors.mkdir(exist_ok=True)
            (errors / f"rank={rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _final_word(error: Exception, run_path: Path) -> str | None:
    """Describe an error that a restart of the workers cannot cure; None: a restart may cure it."""
    if isinstance(error, OSError) and is_full(error):
        return f"{run_path} cannot be written ({error.strerror}): make room, then go on with --resume"
    return str(error) if isinstance(error, ValueError) else None
