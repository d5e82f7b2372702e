"""Checkpoints in an object store, which cannot rename a folder: ``checkpoint.json``, written last, is the commit.

Each rank writes its shards to a local folder and uploads them, so the ranks need no shared disk; it fetches only the
files of a checkpoint that it reads.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from features.disk.checkpoint import META_NAME, UNCOMMITTED_NAME
from features.disk.object_store import ObjectPath
from training.sharding.checkpoint_reader import CheckpointReader


class StoreWriter(FileSystemWriter):
    """Writer to a local folder, then to the store; an error on any rank ends the save on all of them."""

    def __init__(
        self, checkpoint: ObjectPath, local: Path, describe: Callable[[dict[str, int]], dict[str, Any]]
    ) -> None:
        """Set the folders.

        Args:
            checkpoint: folder in the store.
            local: empty folder of this rank.
            describe: makes the content of ``checkpoint.json`` from file -> bytes.
        """
        super().__init__(local, sync_files=False)
        self.checkpoint, self.local, self.describe = checkpoint, local, describe

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Delete what an interrupted save left; runs on the first rank before any rank writes."""
        delete_checkpoint(self.checkpoint)  # what an interrupted save left
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's shards and upload them."""
        written = super().write_data(plan, planner)
        written.wait()
        self.checkpoint.upload(self.local)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Upload the index and commit the checkpoint; runs on the first rank when every shard is in the store."""
        super().finish(metadata, results)
        sizes = self.checkpoint.sizes()
        sizes[".metadata"] = (self.local / ".metadata").stat().st_size
        (self.local / UNCOMMITTED_NAME).write_text(json.dumps(self.describe(sizes)), encoding="utf-8")
        self.checkpoint.upload(self.local, (".metadata", UNCOMMITTED_NAME))
        (self.checkpoint / UNCOMMITTED_NAME).copy_to(self.checkpoint / META_NAME)


class StoreReader(CheckpointReader):
    """Reader that fetches a checkpoint's files into a local folder when they are needed."""

    def __init__(self, checkpoint: ObjectPath, local: Path, sizes: dict[str, int]) -> None:
        """Set the folders.

        Args:
            checkpoint: folder in the store.
            local: folder of this process.
            sizes: file -> bytes it must have.
        """
        super().__init__(local)
        self.checkpoint, self.local, self.sizes = checkpoint, local, sizes

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Fetch and read the index.

        Raises:
            CheckpointError: it is absent or damaged, or holds an object of a foreign class.
            StorageError: it cannot be fetched.
        """
        self._fetch(".metadata")
        return super().read_metadata(*args, **kwargs)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fetch the files that the plan reads from, and read them."""
        for name in sorted({self.storage_data[item.storage_index].relative_path for item in plan.items}):
            self._fetch(name)
        return super().read_data(plan, planner)

    def _fetch(self, name: str) -> None:
        if name in self.sizes and not (self.local / name).exists():
            (self.checkpoint / name).download(self.local / name, self.sizes[name])


def delete_checkpoint(checkpoint: ObjectPath) -> None:
    """Delete a checkpoint's folder, ``checkpoint.json`` first: a half deleted folder does not count as a checkpoint."""
    (checkpoint / META_NAME).delete()
    checkpoint.delete()
