"""The folder of a run's checkpoints: names, version, and which checkpoints are whole, without Torch.

    step=000001000/        a checkpoint: the shards of torch.distributed.checkpoint, and checkpoint.json
    .step=000001000.tmp/   one on its way, or what a killed training left of it

In a store ``checkpoint.json`` is put last, as a copy of ``.uncommitted``.
"""

import re

from features.disk.object_store import ObjectPath
from features.disk.place import Place
from features.disk.versions import Format

META_NAME = "checkpoint.json"
UNCOMMITTED_NAME = ".uncommitted"
"""File of a store's checkpoint that is copied to ``checkpoint.json`` once every other file is there."""
LEFTOVERS = ".step=*.tmp"
"""Pattern of the folders of unfinished checkpoints."""
CHECKPOINT_FORMAT = Format(
    "checkpoint",
    "go on with the program that wrote it, or delete the folder to go on from the one before it",
)
_NAME = re.compile(r"^step=(\d{9})$")


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step={step:09d}"


def is_checkpoint_name(name: str) -> bool:
    """Tell whether a folder has the name of a checkpoint."""
    return _NAME.match(name) is not None


def list_checkpoints(folder: ObjectPath) -> dict[str, dict[str, int]]:
    """List the checkpoint folders of a store: name -> its files and their bytes, incomplete ones too.

    Raises:
        StorageError: the store cannot be read.
    """
    found: dict[str, dict[str, int]] = {}
    for path, size in folder.sizes().items():
        name, _, file = path.partition("/")
        if file:
            found.setdefault(name, {})[file] = size
    return found


def saved_steps(folder: Place) -> list[int]:
    """List the steps of the complete checkpoints, rising.

    Raises:
        StorageError: the folder's store cannot be read.
    """
    if isinstance(folder, ObjectPath):
        names = [name for name, files in list_checkpoints(folder).items() if META_NAME in files]
    else:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in map(_NAME.match, names) if match)
