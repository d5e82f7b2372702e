"""Sharded state -> ``checkpoints/step=000001000/``: written whole or not at all, readable at any world size.

``torch.distributed.checkpoint`` writes the shards; a folder gets its final name only when every byte is on disk (in a
store, ``checkpoint.json`` only when every file is there) and ``checkpoint.json`` lists the size of each file, so a cut
folder is noticed before anything is loaded from it.
"""

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from features.disk.atomic import put_folder, write_json
from features.disk.checkpoint import (
    CHECKPOINT_FORMAT,
    LEFTOVERS,
    META_NAME,
    checkpoint_name,
    is_checkpoint_name,
    list_checkpoints,
)
from features.disk.checkpoint import saved_steps as saved_steps
from features.disk.object_store import ObjectPath, StorageError
from features.disk.place import Place, temporary_folder
from features.disk.relative_path import check_relative
from training.sharding.checkpoint_reader import (
    CheckpointError,
    CheckpointPlanner,
    CheckpointReader,
    GrownPlanner,
    flat_state,
)
from training.sharding.checkpoint_store import StoreReader, StoreWriter, delete_checkpoint
from training.sharding.parallelize import ParallelModel
from training.sharding.tables import without_empty_state
from training.sharding.transplant import Transplant

AVERAGE = "average"
"""Key of the averaged weights beside "model" and "optimizer"; absent where nothing is averaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder.

    Attributes:
        path: the folder.
        step: optimizer steps it has seen.
        progress: values of the loop beside the tensors (position, schedule, counters).
        files: its files and their bytes.
    """

    path: Place
    step: int
    progress: dict[str, Any]
    files: dict[str, int]


def save(folder: Place, step: int, parallel: ParallelModel, progress: dict[str, Any]) -> None:
    """Write one checkpoint; every rank calls this, and all return after it is complete.

    Args:
        folder: the run's ``checkpoints`` folder, shared by all ranks.
        step: names the checkpoint.
        progress: JSON values.

    Raises:
        CheckpointError: on every rank, if some rank's part could not be written.
        OSError: on the first rank, if ``checkpoint.json`` or the final name could not be written.
        StorageError: on every rank, if the store did not take some rank's part.
    """
    final = folder / checkpoint_name(step)
    meta = {"version": CHECKPOINT_FORMAT.version, "step": step, "progress": progress}
    if isinstance(final, ObjectPath):
        _save_to_store(final, parallel, meta)
    else:
        _save_to_disk(final, parallel, meta)


def _save_to_store(final: ObjectPath, parallel: ParallelModel, meta: dict[str, Any]) -> None:
    try:
        with temporary_folder() as local:
            writer = StoreWriter(final, local / "shards", lambda sizes: {**meta, "files": sizes})
            dcp.save(_without_empty(_state(parallel)), storage_writer=writer)
    except dcp.CheckpointException as error:
        raise StorageError(f"checkpoint {final} was not saved: {_first_failure(error)}") from error


def _save_to_disk(final: Path, parallel: ParallelModel, meta: dict[str, Any]) -> None:
    folder = final.parent
    temporary = folder / f".{final.name}.tmp"
    is_first = dist.get_rank() == 0
    if is_first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    try:
        dcp.save(_without_empty(_state(parallel)), storage_writer=FileSystemWriter(temporary, sync_files=True))
    except dcp.CheckpointException as error:  # no Exception, and nobody's else would catch it
        words = f"checkpoint {final} was not saved ({_failure_to_write(error, folder)})"
        if is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{words}: make room, then go on with --resume") from error
    if is_first:
        sizes = {p.name: p.stat().st_size for p in temporary.iterdir()}
        write_json(temporary / META_NAME, {**meta, "files": sizes}, indent=None, durable=True)
        put_folder(temporary, final, folder / f".{final.name}.old.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # where it holds what was there under this name
    dist.barrier()


def restore_checkpoint(checkpoint: Checkpoint, parallel: ParallelModel) -> None:
    """Load a checkpoint into a model sharded in any way, optimizers included.

    Raises:
        CheckpointError: a file is missing or cut, or a tensor does not fit.
        StorageError: it cannot be fetched.
    """
    parallel.init_optimizer_state()
    state = _state(parallel)
    _load(checkpoint, _without_empty(state))
    parallel.model.load_state_dict(state["model"])
    parallel.optimizer.load_state_dict(state["optimizer"])
    # The average was filled in place.


def begin(checkpoint: Checkpoint, parallel: ParallelModel) -> None:
    """Begin where another run's checkpoint ends: its weights and optimizer state, this run's own learning rates.

    A table may have more rows now: those come after the ones it had, and stay as they are.

    Raises:
        CheckpointError, StorageError: as ``restore_checkpoint``.
    """
    rates = parallel.learning_rates
    parallel.init_optimizer_state()
    state = {name: part for name, part in _state(parallel).items() if name != AVERAGE}
    _load(checkpoint, _without_empty(state), GrownPlanner())
    parallel.model.load_state_dict(state["model"])
    parallel.optimizer.load_state_dict(state["optimizer"])
    parallel.learning_rates = rates
    if parallel.average is not None:
        parallel.average.restart()


def begin_with_others(checkpoint: Checkpoint, parallel: ParallelModel, transplant: Transplant) -> None:
    """Begin with what a model of other features knows of those that are the same; the rest is as it was initialised.

    Raises:
        CheckpointError, StorageError: as ``restore_checkpoint``.
    """
    rates = parallel.learning_rates
    parallel.init_optimizer_state()
    state = {name: part for name, part in _state(parallel).items() if name != AVERAGE}
    tensors = flat_state(state)
    with _reader(checkpoint) as reader:
        entries = reader.read_metadata().state_dict_metadata
    saved = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    for name, old_name, taken in transplant.targets({name: entry.size for name, entry in saved.items()}, tensors):
        entry = saved[old_name]
        old = torch.empty(entry.size, dtype=entry.properties.dtype)  # one at a time: a table may be large
        _load(checkpoint, {old_name: old}, alone=True)
        taken.fill(tensors[name], old)
    parallel.model.load_state_dict(state["model"])
    parallel.optimizer.load_state_dict(state["optimizer"])
    parallel.learning_rates = rates
    if parallel.average is not None:
        parallel.average.restart()


def check_size(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Refuse a model that cannot be in the checkpoint's files, before memory is taken for it.

    Args:
        model: model on the meta device.

    Raises:
        CheckpointError: it has more bytes than they have.
    """
    needed = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    held = sum(checkpoint.files.values())
    if needed > held:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} has {held:,} bytes where the run's config and dataset ask for a model of "
            f"{needed:,}: they do not belong together"
        )


def restore_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the weights that are shipped into an unsharded model on one process, without a process group.

    Raises:
        CheckpointError, StorageError: as ``restore_checkpoint``.
    """
    with _reader(checkpoint) as reader:
        saved = reader.read_metadata().state_dict_metadata
    weights = model.state_dict()
    averaged = {name for name in weights if f"{AVERAGE}.{name}" in saved}
    state = {
        "model": {name: weight for name, weight in weights.items() if name not in averaged},
        AVERAGE: {name: weights[name] for name in averaged},
    }
    _load(checkpoint, state)
    model.load_state_dict(state["model"] | state[AVERAGE])


def newest(folder: Place) -> Checkpoint | None:
    """Find the complete checkpoint with the most steps; None if there is none.

    Raises:
        CheckpointError: that checkpoint is damaged.
        StorageError: the folder's store cannot be read.
    """
    steps = saved_steps(folder)
    return open_checkpoint(folder, steps[-1]) if steps else None


def best(folder: Place) -> Checkpoint:
    """Find the checkpoint with the best monitored metric (the newest, if nothing was ever evaluated).

    Raises:
        CheckpointError: there is none, or it is damaged.
        StorageError: as ``newest``.
    """
    last = newest(folder)
    if last is None:
        raise CheckpointError(f"{folder} holds no complete checkpoint: train first")
    step = last.progress.get("best_step")
    if not isinstance(step, int | None):
        raise CheckpointError(_damaged(last.path, f"{META_NAME} has best_step {step!r:.80}"))
    return last if step in (None, last.step) else open_checkpoint(folder, step)


def open_checkpoint(folder: Place, step: int) -> Checkpoint:
    """Check the files of a checkpoint and describe it.

    Raises:
        CheckpointError: names the damaged file.
        StorageError: as ``newest``.
    """
    path = folder / checkpoint_name(step)
    try:
        meta = {**json.loads((path / META_NAME).read_bytes().decode())}
        # The version first: another one may have none of what follows.
        meta = CHECKPOINT_FORMAT.upgrade(meta, f"checkpoint {path}", CheckpointError)
        sizes, progress = {**meta["files"]}, {**meta["progress"]}
    except (StorageError, CheckpointError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(_damaged(path, f"{META_NAME} cannot be read")) from error
    stored = path.sizes() if isinstance(path, ObjectPath) else {}
    for name, size in sizes.items():
        try:
            check_relative(name)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} is not opened: {error}") from error
        file = path / name
        if Path(name).name != name or (isinstance(file, Path) and file.is_symlink()):
            raise CheckpointError(f"checkpoint {path} is not opened: {name!r:.80} leads out of its folder")
        found = stored.get(name) if isinstance(file, ObjectPath) else file.is_file() and file.stat().st_size
        if type(found) is not int or found != size:
            raise CheckpointError(_damaged(path, f"{name} is missing or cut"))
    return Checkpoint(path, step, progress, sizes)


def prune(folder: Place, keep: int, best_step: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the best one, and leftovers of interrupted writes."""
    if isinstance(folder, ObjectPath):
        _prune_store(folder, keep, best_step)
        return
    steps = saved_steps(folder)
    for step in steps[:-keep]:
        if step != best_step:
            shutil.rmtree(folder / checkpoint_name(step), ignore_errors=True)
    for leftover in folder.glob(LEFTOVERS):
        shutil.rmtree(leftover, ignore_errors=True)


def _prune_store(folder: ObjectPath, keep: int, best_step: int | None) -> None:
    # What is left goes after the next save, which tells of a store that does not answer.
    with contextlib.suppress(StorageError):
        steps = saved_steps(folder)
        kept = {checkpoint_name(step) for step in {*steps[-keep:], best_step} & {*steps}}
        for name in list_checkpoints(folder):
            if is_checkpoint_name(name) and name not in kept:
                delete_checkpoint(folder / name)


def _state(parallel: ParallelModel) -> dict[str, Any]:
    state = {"model": parallel.model.state_dict(), "optimizer": parallel.optimizer.state_dict()}
    return state if parallel.average is None else {**state, AVERAGE: parallel.average.values}


def _without_empty(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the checkpoint library would not find again."""
    return {**state, "optimizer": without_empty_state(state["optimizer"])}


def _load(
    checkpoint: Checkpoint, state: dict[str, Any], planner: CheckpointPlanner | None = None, *, alone: bool = False
) -> None:
    try:
        with warnings.catch_warnings(), _reader(checkpoint) as reader:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
            alone = alone or not dist.is_initialized()
            dcp.load(state, storage_reader=reader, planner=planner or CheckpointPlanner(), no_dist=alone)
    except (dcp.CheckpointException, RuntimeError, ValueError) as error:
        reason = _first_failure(error) if isinstance(error, dcp.CheckpointException) else error
        if isinstance(reason, StorageError):
            raise StorageError(str(reason)) from error
        raise CheckpointError(f"checkpoint {checkpoint.path} does not load into this model: {reason}") from error


@contextlib.contextmanager
def _reader(checkpoint: Checkpoint) -> Iterator[CheckpointReader]:
    if isinstance(checkpoint.path, ObjectPath):
        with temporary_folder() as local:
            yield StoreReader(checkpoint.path, local, checkpoint.files)
    else:
        yield CheckpointReader(checkpoint.path)


def _failure_to_write(error: dcp.CheckpointException, folder: Path) -> object:
    """Find the cause of a failed write; Torch reports a full disk as a wrong position in a file."""
    reason = _first_failure(error)
    if not isinstance(reason, OSError) and shutil.disk_usage(folder).free < 1 << 20:
        return os.strerror(errno.ENOSPC)
    return reason


def _first_failure(error: dcp.CheckpointException) -> BaseException:
    """Return the error of a failed rank."""
    return next(iter(error.failures.values()))[0]


def _damaged(path: Place, what: str) -> str:
    return f"checkpoint {path} is damaged ({what}): delete the folder to go on from the one before it"
