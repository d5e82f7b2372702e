"""Ledger: which rows went into which weights, written down by the workers of a real ``jobs.train``.

A row counts when the model in training mode is given it for a step, not when the reader has it ready. What a crash
throws away must not count, so the ledger keeps books as the weights do: a checkpoint is saved with the rows that went
into its weights, and a worker that starts from a checkpoint starts from that checkpoint's rows. ``rows_of`` plays the
books back. The rows of the training split are numbered in ``group_id``, which no model sees.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from jobs import train
from jobs.launch import ray_cluster

PAUSE = "TWINFOCUS_CHAOS_PAUSE"
"""Seconds that every step takes longer, so that there is time to do damage in the middle of an epoch."""
LEDGER = "TWINFOCUS_CHAOS_LEDGER"
"""Folder of the books: beside the run, so that a full disk under the run does not stop them."""
SLOW_SAVE = "TWINFOCUS_CHAOS_SLOW_SAVE"
"""Step whose checkpoint stands unfinished for ``SLOW_SECONDS``, with its tensors on disk and its index not."""
SLOW_SECONDS = 5.0

_train_work = ray_cluster.work


def main() -> int:
    """``jobs.train`` with a ledger in each worker."""
    ray_cluster.work = work
    return train.main()


def work(arguments: dict[str, Any]) -> None:
    """One Ray Train worker; each attempt of the group has a folder of books, one book a rank."""
    import torch.distributed as dist

    from training.fit import run
    from training.sharding import checkpoint

    attempt = [f"{time.time_ns()}"]
    dist.broadcast_object_list(attempt)
    folder = Path(os.environ[LEDGER]) / attempt[0]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank={dist.get_rank()}").open("a", encoding="utf-8", buffering=1) as book:
        _keep_books(book, checkpoint, run)
        _train_work(arguments)


def _keep_books(book: Any, checkpoint: Any, run: Any) -> None:
    parallelize, save, save_tensors = run.parallelize, checkpoint.save, checkpoint.dcp.save
    restore = checkpoint.restore_checkpoint

    def note(**entry: Any) -> None:
        book.write(json.dumps(entry) + "\n")

    def watch(model: Any, inputs: tuple[Any, ...]) -> None:
        if model.training:
            batch = inputs[0]
            note(rows=batch.group_ids[: batch.num_rows].tolist())
            time.sleep(float(os.environ.get(PAUSE, "0")))

    def make_parallel(*arguments: Any) -> Any:
        parallel = parallelize(*arguments)
        parallel.model.register_forward_pre_hook(watch)
        return parallel

    def note_save(folder: Path, step: int, *rest: Any) -> Any:
        note(saved=step)  # before it is complete: a worker may be killed between that and a note
        saving[:] = [step]
        return save(folder, step, *rest)

    def slow_save(*arguments: Any, **options: Any) -> None:
        save_tensors(*arguments, **options)
        if saving == [int(os.environ.get(SLOW_SAVE, "-1"))]:
            time.sleep(SLOW_SECONDS)

    def note_restore(found: Any, parallel: Any) -> None:
        restore(found, parallel)
        note(restored=found.step)

    saving: list[int] = []
    run.parallelize, checkpoint.save, checkpoint.restore_checkpoint = make_parallel, note_save, note_restore
    checkpoint.dcp.save = slow_save


def steps_done(ledger: Path) -> int:
    """Steps that the first rank of the newest attempt has begun."""
    attempts = sorted(ledger.glob("*"))
    book = attempts[-1] / "rank=0" if attempts else None
    return book.read_text(encoding="utf-8").count('"rows"') if book and book.exists() else 0


def world_sizes(ledger: Path) -> list[int]:
    """Number of workers of each attempt, oldest first; 0: none has done a step yet."""
    attempts = sorted(ledger.glob("*"))
    return [sum('"rows"' in book.read_text(encoding="utf-8") for book in attempt.iterdir()) for attempt in attempts]


def rows_of(ledger: Path, step: int) -> Counter[int]:
    """How often each row went into the weights of the checkpoint of ``step``."""
    saved: dict[int, Counter[int]] = {}
    for attempt in sorted(ledger.iterdir()):
        books = [book for book in map(_read, attempt.iterdir()) if book]
        (start,) = {book[0].get("restored") for book in books} or {None}
        inherited = saved[start] if start is not None else Counter()
        seen: dict[int, list[Counter[int]]] = {}
        for book in books:
            rows: Counter[int] = Counter()
            for entry in book:
                rows.update(entry.get("rows", ()))
                if "saved" in entry:
                    seen.setdefault(entry["saved"], []).append(rows.copy())
        # A checkpoint that not every rank came to was never complete.
        saved |= {at: sum(parts, inherited.copy()) for at, parts in seen.items() if len(parts) == len(books)}
    return saved[step]


def _read(book: Path) -> list[dict[str, Any]]:
    lines = book.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
