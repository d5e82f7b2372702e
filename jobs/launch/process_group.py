"""LocalTorchConfig: a process group whose ranks, all on this machine, find each other through a file.

The store that Torch starts by default listens on every interface without authentication. Ray Train offers no other one,
so its code that forms the group is repeated here.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _setup_torch_process_group, _TorchBackend


@dataclass
class LocalTorchConfig(TorchConfig):
    """Variant of ``TorchConfig`` for workers on the driver's machine; ``backend`` must be named."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Backend that Ray Train calls to form the group."""
        return _LocalBackend


class _LocalBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Form the group; a restarted worker group forms a new one, with another file."""
        handle, name = tempfile.mkstemp(prefix="twinfocus-group-")  # of this user alone
        os.close(handle)
        ranks = range(len(worker_group))
        group = {
            "backend": backend_config.backend,
            "world_size": len(worker_group),
            "init_method": f"file://{name}",
            "timeout_s": backend_config.timeout_s,
        }
        try:
            ray.get(
                [worker_group.execute_single_async(r, _setup_torch_process_group, world_rank=r, **group) for r in ranks]
            )
        finally:
            Path(name).unlink(missing_ok=True)
