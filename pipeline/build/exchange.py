"""Exchange: encoded rows on their way from the tasks that read logs to the tasks that write files.

A task that reads writes one Arrow file for each block of rows, sorted by split and by the rows' random keys; a task
that writes maps all of them into memory and takes the rows whose keys are its own. The folder lies inside the dataset's
version, which every executor sees anyway. A task that is run twice writes equal bytes, so which attempt wins is no
matter.
"""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import SPLITS
from features.hashing import SPARK_SEED, mixed

KEY, SPLIT = "row:key", "row:split"
"""Columns of every block beside the dataset's own; the colon keeps them apart from feature names."""

NUM_KEYS = 1 << 64
"""Keys are 0 <= key < 2^64."""
_EXACT_ROWS = 1_000_000
"""Largest split whose keys are all looked at, to cut it into files of equal size."""
_OFFSET_BITS = 40
"""Bits of a row's offset in its file below the file's number: files of a terabyte, sixteen million of them."""


def row_numbers(file_number: int, offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Number rows by their place in the whole input, whatever the portions are.

    Args:
        file_number: place of the file among all files of the build.
        offsets: (n,) offset of each row in its file.
    """
    return (np.uint64(file_number) << np.uint64(_OFFSET_BITS)) | offsets.astype(np.uint64)


def split_row_numbers(numbers: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the file's number and the offset from the numbers of rows."""
    files = (numbers >> np.uint64(_OFFSET_BITS)).astype(np.int64)
    return files, (numbers & np.uint64((1 << _OFFSET_BITS) - 1)).astype(np.int64)


def keys_of_rows(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Compute each row's random key from its number (``row_numbers``); no two rows have one."""
    return mixed(numbers, SPARK_SEED)


def write_block(folder: Path, name: str, table: pa.Table) -> None:
    """Write a table as ``name.arrow``, complete or not at all."""
    path = folder / f"{name}.arrow"
    temporary = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_block(folder: Path, name: str) -> pa.Table:
    """Map a table into memory that ``write_block`` wrote; nothing is read before it is used."""
    return pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()


def sort_rows(table: pa.Table) -> pa.Table:
    """Sort the rows of a block by split, then by key."""
    order = np.lexsort((table[KEY].to_numpy(), table[SPLIT].to_numpy()))
    return table.take(pa.array(order)).combine_chunks()


def rows_between(block: pa.Table, split: str, first: int, end: int) -> pa.Table:
    """Take the rows of a sorted block that lie in a split and in a range of keys.

    Args:
        block: block as ``sort_rows`` returns it.
        split: name of the split.
        first: least key.
        end: key behind the last; ``NUM_KEYS`` at most.
    """
    splits = block[SPLIT].to_numpy()
    code = SPLITS.index(split)
    start, stop = np.searchsorted(splits, [code, code + 1])
    keys = block[KEY].to_numpy()[start:stop]
    low, high = (len(keys) if key >= NUM_KEYS else int(np.searchsorted(keys, np.uint64(key))) for key in (first, end))
    return block.slice(start + low, high - low)


def key_borders(folder: Path, blocks: Sequence[str], split: str, num_rows: int, count: int) -> list[int]:
    """Cut the keys of a split into ``count`` ranges of near-equal numbers of rows.

    Few rows are cut exactly, so that no file is empty; many by equal ranges, because keys are uniform.

    Returns:
        ``count`` + 1 borders, from 0 to ``NUM_KEYS``.
    """
    if num_rows > _EXACT_ROWS:
        return [number * NUM_KEYS // count for number in range(count + 1)]
    parts = [rows_between(read_block(folder, name), split, 0, NUM_KEYS)[KEY].to_numpy() for name in blocks]
    keys = np.sort(np.concatenate(parts))
    return [0, *(int(keys[number * num_rows // count]) for number in range(1, count)), NUM_KEYS]


def concat_sorted(blocks: Sequence[pa.Table]) -> tuple[pa.Table, NDArray[np.intp]]:
    """Join blocks to one table, and compute the order of its rows by key; equal keys keep the order of the input."""
    table = pa.concat_tables(blocks)
    return table, np.argsort(table[KEY].to_numpy(), kind="stable")
