"""Two ranks, each a process of its own: started once for all tests of a process, since loading Torch takes seconds."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

WORLD_SIZE = 2

_ranks: list[tuple[BaseProcess, Connection]] = []


def on_two_ranks(folder: Path, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` on both ranks, of one thread each, in a gloo group and the environment of now.

    Args:
        folder: where the ranks find each other.
        work: a function of a module.

    Raises:
        AssertionError: a rank raised an error, or died. Both are then gone, and the next call starts others.
    """
    if not _ranks:
        _ranks.extend(map(_start, range(WORLD_SIZE)))
    store = folder / f"store-{uuid4().hex}"
    for _, connection in _ranks:
        connection.send((str(store), dict(os.environ), work, arguments))
    waiting = {connection: process for process, connection in _ranks}
    while waiting:
        for connection in wait(list(waiting)):
            process = waiting.pop(connection)  # pyright: ignore[reportArgumentType]
            try:
                error = connection.recv()  # pyright: ignore[reportAttributeAccessIssue]
            except EOFError:
                process.join()
                error = f"ended with {process.exitcode}"
            if error is not None:
                _stop()
                raise AssertionError(f"{process.name}: {error}")


def _start(rank: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(rank, theirs), name=f"rank {rank}", daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _stop() -> None:
    for process, connection in _ranks:
        process.kill()
        process.join()
        connection.close()
    _ranks.clear()


def _serve(rank: int, connection: Connection) -> None:
    """What a rank does until its process's tests are over; answers with None or with the error."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            store, environment, work, arguments = connection.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE)
        try:
            work(*arguments)
        except Exception:
            connection.send(traceback.format_exc())
        else:
            connection.send(None)
        finally:
            dist.destroy_process_group()
