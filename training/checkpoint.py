"""Sharded state -> ``checkpoints/step=000001000/``: written whole or not at all, readable at any world size.

``torch.distributed.checkpoint`` writes the shards; a folder gets its final name only when every byte is on disk and
``checkpoint.json`` lists the size of each file, so a cut folder is noticed before anything is loaded from it.
"""

import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter

from features.dataset import check_relative
from training.checkpoint_reader import CheckpointError, CheckpointPlanner, CheckpointReader
from training.parallelize import ParallelModel

META_NAME = "checkpoint.json"
AVERAGE = "average"
"""Key of the averaged weights beside "model" and "optimizer"; absent where nothing is averaged."""
_NAME = re.compile(r"^step=(\d{9})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder.

    Attributes:
        path: the folder.
        step: optimizer steps it has seen.
        progress: what the loop stored beside the tensors (position, schedule, counters).
    """

    path: Path
    step: int
    progress: dict[str, Any]


def save(folder: Path, step: int, parallel: ParallelModel, progress: dict[str, Any]) -> Path:
    """Write one checkpoint; every rank calls this, and all return after it is complete.

    Args:
        folder: the run's ``checkpoints`` folder, shared by all ranks.
        step: names the checkpoint.
        progress: JSON values.
    """
    final = folder / f"step={step:09d}"
    temporary = folder / f".{final.name}.tmp"
    is_first = dist.get_rank() == 0
    if is_first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    dcp.save(_without_empty(_state(parallel)), storage_writer=FileSystemWriter(temporary, sync_files=True))
    if is_first:
        sizes = {p.name: p.stat().st_size for p in temporary.iterdir()}
        meta = {"step": step, "progress": progress, "files": sizes}
        with (temporary / META_NAME).open("w", encoding="utf-8") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_folder(folder)
    dist.barrier()
    return final


def restore(checkpoint: Checkpoint, parallel: ParallelModel) -> None:
    """Load a checkpoint into a model sharded in any way, optimizers included.

    Raises:
        CheckpointError: a file is missing or cut, or a tensor does not fit.
    """
    parallel.init_optimizer_state()
    state = _state(parallel)
    _load(checkpoint, _without_empty(state))
    parallel.model.load_state_dict(state["model"])
    parallel.optimizer.load_state_dict(state["optimizer"])
    # The average was filled in place.


def restore_model(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the weights that are shipped into an unsharded model on one process, without a process group.

    Raises:
        CheckpointError: as ``restore``.
    """
    saved = CheckpointReader(checkpoint.path).read_metadata().state_dict_metadata
    weights = model.state_dict()
    averaged = {name for name in weights if f"{AVERAGE}.{name}" in saved}
    state = {
        "model": {name: weight for name, weight in weights.items() if name not in averaged},
        AVERAGE: {name: weights[name] for name in averaged},
    }
    _load(checkpoint, state)
    model.load_state_dict(state["model"] | state[AVERAGE])


def newest(folder: Path) -> Checkpoint | None:
    """The complete checkpoint with the most steps; None if there is none.

    Raises:
        CheckpointError: that checkpoint is damaged.
    """
    steps = _steps(folder)
    return open_checkpoint(folder, steps[-1]) if steps else None


def best(folder: Path) -> Checkpoint:
    """The checkpoint with the best monitored metric (the newest, if nothing was ever evaluated).

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    last = newest(folder)
    if last is None:
        raise CheckpointError(f"{folder} holds no complete checkpoint: train first")
    step = last.progress.get("best_step")
    if not isinstance(step, int | None):
        raise CheckpointError(_damaged(last.path, f"{META_NAME} has best_step {step!r:.80}"))
    return last if step in (None, last.step) else open_checkpoint(folder, step)


def open_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Check and describe one checkpoint.

    Raises:
        CheckpointError: names the damaged file.
    """
    path = folder / f"step={step:09d}"
    try:
        meta = json.loads((path / META_NAME).read_text(encoding="utf-8"))
        sizes, progress = {**meta["files"]}, {**meta["progress"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(_damaged(path, f"{META_NAME} cannot be read")) from error
    for name, size in sizes.items():
        file = path / Path(name).name
        try:
            check_relative(name)
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path} is not opened: {error}") from error
        if file != path / name or file.is_symlink():
            raise CheckpointError(f"checkpoint {path} is not opened: {name!r:.80} leads out of its folder")
        if not file.is_file() or file.stat().st_size != size:
            raise CheckpointError(_damaged(path, f"{name} is missing or cut"))
    return Checkpoint(path, step, progress)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Delete all but the ``keep`` newest checkpoints and the best one, and leftovers of interrupted writes."""
    steps = _steps(folder)
    for step in steps[:-keep]:
        if step != best_step:
            shutil.rmtree(folder / f"step={step:09d}", ignore_errors=True)
    for leftover in folder.glob(".step=*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _state(parallel: ParallelModel) -> dict[str, Any]:
    state = {"model": parallel.model.state_dict(), "optimizer": parallel.optimizer.state_dict()}
    return state if parallel.average is None else {**state, AVERAGE: parallel.average.values}


def _without_empty(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors without the parameters that have no optimizer state (SGD's).

    The checkpoint library keeps what is not a tensor from the first rank alone, an empty dictionary too, and would then
    miss those of tables that other ranks own.
    """
    optimizer = state["optimizer"]
    kept = {name: values for name, values in optimizer["state"].items() if values}
    return {**state, "optimizer": {**optimizer, "state": kept}}


def _load(checkpoint: Checkpoint, state: dict[str, Any]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
            dcp.load(
                state,
                storage_reader=CheckpointReader(checkpoint.path),
                planner=CheckpointPlanner(),
                no_dist=not dist.is_initialized(),
            )
    except (dcp.CheckpointException, RuntimeError, ValueError) as error:
        reason = error
        if isinstance(error, dcp.CheckpointException):  # what went wrong on some rank
            reason = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"checkpoint {checkpoint.path} does not load into this model: {reason}") from error


def _steps(folder: Path) -> list[int]:
    matches = (_NAME.match(p.name) for p in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in matches if match)


def _damaged(path: Path, what: str) -> str:
    return f"checkpoint {path} is damaged ({what}): delete the folder to go on from the one before it"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
