"""A process that trains: what Ray and its C library are told before it starts, its memory and its threads.

Import it before ray: the programs hand its environment on to the workers that they start.
"""

import os
import secrets
import sys

from training.fit.allocator import HUGE_PAGES, keep_freed_memory

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # a training is what its machine is for
os.environ.setdefault(HUGE_PAGES, "1")  # workers started from here have it before they load torch

LOOPBACK = "127.0.0.1"
"""Address of a Ray cluster of our own."""


def loopback_settings() -> dict[str, str]:
    """The environment of a driver whose cluster is this machine alone; it must be set before ray is imported.

    Ray runs what whoever reaches its ports asks for, and listens on every interface. Told that clusters are switched
    off, as on Windows and macOS, it stays on the address it is given; and it answers those alone who know its token.
    """
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def set_up_worker(num_workers: int, num_threads: int | None) -> None:
    """Prepare this process to train; call it before torch allocates.

    Args:
        num_workers: processes that share out the machine's cores.
        num_threads: of this one; None: its share.
    """
    keep_freed_memory()
    import torch

    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // num_workers))
