"""Reader: a dataset's files as batches of this rank, through Petastorm (``training/data/petastorm_shim.py``).

Every row comes once an epoch over all ranks, every rank takes the same number of steps, and what was read is counted
against the manifest, because a reader that loses rows in silence spoils a model in silence.
"""

import contextlib
import itertools
import logging
import os
import queue
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.rows import Columns
from training.config import TrainingConfig
from training.data.batch import Batch, to_batch
from training.data.file_cache import ShardCache, local_files
from training.data.file_checker import ReaderError, ShardChecker
from training.data.opened_dataset import Dataset
from training.data.petastorm_shim import EmptyResultError, make_batch_reader
from training.data.prefetch import prefetch
from training.data.row_buffer import Rows, RowsPool
from training.data.row_order import Piece, Window, cut_streams

# Arrow's own choice, mimalloc, takes a tenth more CPU a row. By default jemalloc gives each freed buffer back to the
# system, which zeroes the same pages anew for the next row group.
with contextlib.suppress(NotImplementedError):  # an Arrow without jemalloc
    pa.set_memory_pool(pa.jemalloc_memory_pool())
    pa.jemalloc_set_decay_ms(1_000)
logging.getLogger("petastorm").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=FutureWarning, module=r"petastorm\.|pyarrow\.parquet")


class Reader:
    """One split of a dataset, read by one rank.

    An epoch is cut into ``config.reader.num_streams`` row streams; rank r of W hosts num_streams / W of them, in order.
    A step takes ``batch_size / num_streams`` rows of every stream, so the global batch (rank 0's rows, then rank 1's,
    ...) does not depend on W. Near the epoch's end a batch may hold fewer real rows, or none; the rest is padding.

    Attributes:
        num_steps: steps of an epoch, the same on every rank.
        num_rows: rows that are read of the split, over all ranks.
        seconds: seconds of its threads, over all finished epochs, for decoding row groups (reading included), shuffling
            windows and laying out batches; the threads run beside each other and beside the training.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        config: TrainingConfig,
        rank: int = 0,
        world_size: int = 1,
        sample_rows: int | None = None,
    ) -> None:
        """Check the arithmetic; nothing is opened yet.

        Args:
            dataset: dataset to read; its learnt state bounds the ids.
            split: split to read: ``train`` in steps of ``global_batch_size`` rows, shuffled (``reader.shuffle``); any
                other in file order and steps of ``evaluation_batch_size`` rows.
            config: the training section; ``seed`` decides a shuffled order.
            rank: rank of this process.
            world_size: number of processes that share the split out.
            sample_rows: rows to read, always the same, drawn with ``config.seed``; None, or at least as many as the
                split has: all of them.

        Raises:
            ValueError: the streams cannot be shared out evenly.
            DatasetError: the split is absent or empty.
        """
        streams = config.reader.num_streams
        if streams % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size}: training.reader.num_streams ({streams}) must be a multiple "
                "of the world size, and the rank below it"
            )
        is_train = split == "train"
        batch_size = config.global_batch_size if is_train else config.evaluation_batch_size
        manifest = dataset.manifest
        self.config, self.seed, self.shuffle = config.reader, config.seed, config.reader.shuffle and is_train
        self.dataset = dataset.files(config.reader.cache_bytes)
        self.schema = manifest.schema
        self.files = manifest.split(split).files
        self.checker = ShardChecker(manifest.schema, dataset.id_bounds(), dataset.later_ids())
        self.num_rows = min(manifest.split(split).num_rows, sample_rows or sys.maxsize)
        self._sample_rows = sample_rows
        largest = max(rows for file in self.files for rows in file.row_groups)
        window = largest * (config.reader.shuffle_row_groups if self.shuffle else 1)
        longest = -(-self.num_rows // streams)
        self._pool = RowsPool(manifest.schema, self.checker.columns, min(window, longest))
        self._rows_made, self._seconds = 0, 0.0
        self.seconds = {"decode": 0.0, "shuffle": 0.0, "batch": 0.0}
        is_weighted = is_train and config.sampled_negatives == "weights"
        self._negative_weight = 1 / manifest.negatives_rate if is_weighted else 1.0
        self._rows_per_stream = batch_size // streams
        self._batch_size = batch_size // world_size
        streams_per_rank = streams // world_size
        self._streams = range(rank * streams_per_rank, (rank + 1) * streams_per_rank)
        self.num_steps = -(-longest // self._rows_per_stream)

    @property
    def rows_per_second(self) -> float:
        """Return the rows per second that this rank read, shuffled and batched, beside everything else that ran."""
        return self._rows_made / self._seconds if self._seconds else 0.0

    def batches(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch from ``start_step`` on, each padded to batch_size / world_size rows.

        Args:
            epoch: decides the order, with the seed.
            start_step: steps already done; their row groups are skipped unread where possible.

        Raises:
            ReaderError: a file is missing, cut or not as the manifest says, or an id is outside its table.
            StorageError: a file cannot be fetched from its store.
        """
        ready = prefetch(lambda: self._batches(epoch, start_step), self.config.prefetch_batches)
        with contextlib.closing(ready):
            while (batch := self._next(ready)) is not None:
                yield batch

    def _next(self, ready: Iterator[Batch]) -> Batch | None:
        try:
            return next(ready, None)
        except MemoryError as error:  # NumPy's message says how much of it
            raise ReaderError(
                f"{self.dataset}: rows of {self.config.shuffle_row_groups} row groups a stream do not fit in memory "
                f"({error}): lower training.reader.shuffle_row_groups, or pipeline.write.row_group_rows and build again"
            ) from error

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch, None, None]:
        """Make the batches, in the prefetch thread."""
        windows = cut_streams(
            self.files,
            self.config.num_streams,
            seed=self.seed,
            epoch=epoch,
            shuffle=self.shuffle,
            row_groups_per_window=self.config.shuffle_row_groups,
            sample_rows=self._sample_rows,
        )
        source = RowGroups(self.dataset, self.checker)
        skip = start_step * self._rows_per_stream
        started = time.perf_counter()
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(RowStream(source, self._pool, windows[v], skip)) for v in self._streams]
            stack.callback(self._add_seconds, streams)
            for step in range(start_step, self.num_steps):
                parts = [part for stream in streams for part in stream.take(self._rows_per_stream)]
                if step == self.num_steps - 1:
                    for stream in streams:
                        stream.check_end()
                taken = time.perf_counter()
                batch = to_batch(parts, self.schema, self._batch_size)
                if self._negative_weight != 1:
                    batch.weights[batch.labels == 0] *= self._negative_weight
                self.seconds["batch"] += time.perf_counter() - taken
                self._seconds += time.perf_counter() - started
                self._rows_made += batch.num_rows
                yield batch
                started = time.perf_counter()  # waiting for room among the prefetched batches is not reading

    def _add_seconds(self, streams: Sequence["RowStream"]) -> None:
        for stream in streams:
            for part, seconds in stream.seconds.items():
                self.seconds[part] += seconds


class RowStream:
    """One row stream of an epoch, from its row ``skip`` on.

    It holds two windows of rows: one is handed out while a thread decodes and shuffles the next.
    """

    def __init__(self, source: "RowGroups", pool: RowsPool, windows: Sequence[Window], skip: int) -> None:
        self._planned = sum(window.num_rows for window in windows)
        self._delivered = min(skip, self._planned)
        first, offset = 0, self._delivered
        while first < len(windows) and offset >= windows[first].num_rows:
            offset -= windows[first].num_rows
            first += 1
        self._waiting = deque(windows[first:])
        self._pool, self._memory = pool, [pool.take() for _ in range(min(2, max(1, len(self._waiting))))]
        self._free: queue.LifoQueue[Rows | None] = queue.LifoQueue()
        for memory in self._memory:
            self._free.put(memory)
        self.seconds = {"decode": 0.0, "shuffle": 0.0}
        self._loaded = prefetch(lambda: self._load(source, windows[first:]), 1)
        self._rows, self._held = self._memory[0].fill([]), None
        self._position, self._skip = 0, offset

    def _load(self, source: "RowGroups", windows: Sequence[Window]) -> Generator[tuple[Rows, Rows], None, None]:
        """Yield each shuffled window with the memory that it lies in; runs in the prefetch thread."""
        scratch = np.empty(self._memory[0].scratch_bytes, np.uint8)
        with contextlib.closing(source.read([p for window in windows for p in window.pieces])) as row_groups:
            for window in windows:
                memory = self._free.get()
                if memory is None:  # nobody wants it any more
                    return
                with source.turns:
                    started = time.perf_counter()
                    parts = [next(row_groups) for _ in window.pieces]
                    decoded = time.perf_counter()
                    rows = memory.fill(parts, window.order(), scratch)
                    self.seconds["decode"] += decoded - started
                    self.seconds["shuffle"] += time.perf_counter() - decoded
                    del parts
                yield rows, memory

    def take(self, num_rows: int) -> list[Rows]:
        """Take the next rows, or what is left, in one part or more; they are good until the next call."""
        parts, room = [], num_rows
        while True:
            stop = min(self._position + room, self._rows.num_rows)
            parts.append(self._rows[self._position : stop])
            room -= stop - self._position
            self._position = stop
            if not room or not self._waiting:
                break
            parts[-1] = parts[-1].copy()  # its memory is for another window now
            if self._held is not None:
                self._free.put(self._held)
            self._waiting.popleft()
            self._rows, self._held = next(self._loaded)
            self._position, self._skip = self._skip, 0
        self._delivered += num_rows - room
        return parts

    def check_end(self) -> None:
        """Raise ReaderError unless every planned row was delivered, once."""
        left = self._rows.num_rows - self._position + sum(window.num_rows for window in self._waiting)
        if left or self._delivered != self._planned:
            raise ReaderError(f"a stream of {self._planned} rows delivered {self._delivered} and has {left} left")

    def __enter__(self) -> "RowStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
        self._loaded.close()
        for memory in self._memory:
            self._pool.give(memory)


class RowGroups:
    """Checked columns of row groups, through Petastorm."""

    def __init__(self, dataset: Path | ShardCache, checker: ShardChecker) -> None:
        self.dataset, self.checker = dataset, checker
        self.turns = threading.Semaphore(os.cpu_count() or 1)
        """Limit of windows loaded at a time, one a core: more would take memory without being faster."""

    def read(self, pieces: Sequence[Piece]) -> Generator[Columns, None, None]:
        """Yield the rows of each piece, in order; pieces of one file stand together."""
        runs = [list(run) for _, run in itertools.groupby(pieces, key=lambda piece: piece.file.path)]
        with contextlib.closing(local_files(self.dataset, [run[0].file for run in runs])) as paths:
            for run in runs:
                yield from self._read_file(next(paths), run)

    def _read_file(self, path: Path, pieces: Sequence[Piece]) -> Generator[Columns, None, None]:
        """Yield the rows of pieces of one file, in the file's order."""
        file = pieces[0].file
        if any(character in str(path) for character in "#?"):
            raise ReaderError(f"{path}: Petastorm cannot open a path with '#' or '?' in it; move the dataset")
        self.checker.check_file(path, file)
        try:
            with contextlib.closing(self._open(path, pieces)) as tables:
                for piece in pieces:
                    table = next(tables, None)
                    found, planned = 0 if table is None else len(table), file.row_groups[piece.row_group]
                    if table is None or found != planned:
                        raise ReaderError(f"row group {piece.row_group} of {path} gave {found} rows, not {planned}")
                    columns = self.checker.to_columns(table, path)
                    yield {name: column[piece.first_row : piece.last_row] for name, column in columns.items()}
        except (OSError, KeyError, UnicodeDecodeError, pa.ArrowException) as error:
            raise ReaderError(f"{path} cannot be read ({error}): build the dataset again") from error

    def _open(self, path: Path, pieces: Sequence[Piece]) -> Generator[pa.Table, None, None]:
        """Yield the whole row groups of ``pieces``.

        Petastorm cannot start in the middle of a file, but of n shards of a file with n row groups, shard i is row
        group i. Each opening reads the footer anew, which costs more than going on, so from the start one reader does.
        No reader is asked for more than it has: while it is still handing out its last row group, 0.12.1 would wait
        for ever.
        """
        if [piece.row_group for piece in pieces] == list(range(len(pieces))):
            shards = [(None, None, len(pieces))]
        else:
            shards = [(piece.row_group, len(piece.file.row_groups), 1) for piece in pieces]
        for shard, num_shards, count in shards:
            with make_batch_reader(
                [f"file://{path}"],
                # One pattern: Petastorm tries each pattern on each column, which is slow for wide tables.
                schema_fields=["|".join(f"{name}$" for name in self.checker.columns)],
                reader_pool_type="dummy",
                shuffle_row_groups=False,
                num_epochs=1,
                cur_shard=shard,
                shard_count=num_shards,
            ) as reader:
                # Private, in a version that is pinned: its own conversion goes through pandas and, for lists, through
                # one array a row (2 microseconds a row and column).
                reader._results_queue_reader = _ArrowResults()
                yield from itertools.islice(reader, count)


class _ArrowResults:
    """Results queue reader for Petastorm that returns row groups as the Arrow tables they are decoded to."""

    batched_output = True

    def read_next(self, workers_pool: Any, schema: Any, ngram: Any) -> pa.Table:
        try:
            return workers_pool.get_results()
        except EmptyResultError:
            raise StopIteration from None
