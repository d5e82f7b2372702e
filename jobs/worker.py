"""A process that trains: what Ray and its C library are told before it starts, its memory and its threads.

Import it before ray: the programs hand its environment on to the workers that they start.
"""

import os

from training.allocator import HUGE_PAGES, keep_freed_memory

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # a training is what its machine is for
os.environ.setdefault(HUGE_PAGES, "1")  # workers started from here have it before they load torch


def set_up_worker(num_workers: int, num_threads: int | None) -> None:
    """Prepare this process to train; call it before torch allocates.

    Args:
        num_workers: processes that share out the machine's cores.
        num_threads: of this one; None: its share.
    """
    keep_freed_memory()
    import torch

    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // num_workers))
