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


def row_keys(file_number: int, offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Compute each row's random key from its number (``row_numbers``)."""
    return mixed(row_numbers(file_number, offsets), SPARK_SEED)


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


def rows_of_file(block: pa.Table, split: str, number: int, count: int) -> pa.Table:
    """Take the rows of a sorted block that belong to one file of a split.

    Args:
        block: block as ``sort_rows`` returns it.
        split: name of the split.
        number: number of the file in the split, from 0.
        count: how many files the split has; each takes an equal range of the keys.
    """
    splits = block[SPLIT].to_numpy()
    code = SPLITS.index(split)
    start, end = np.searchsorted(splits, [code, code + 1])
    keys = block[KEY].to_numpy()[start:end]
    low, high = (_first_key(n, count) for n in (number, number + 1))
    first = 0 if number == 0 else int(np.searchsorted(keys, low))
    last = len(keys) if number + 1 == count else int(np.searchsorted(keys, high))
    return block.slice(start + first, last - first)


def _first_key(number: int, count: int) -> np.uint64:
    return np.uint64(min(number * (1 << 64) // count, (1 << 64) - 1))


def concat_sorted(blocks: Sequence[pa.Table]) -> tuple[pa.Table, NDArray[np.intp]]:
    """Join blocks to one table, and compute the order of its rows by key; equal keys keep the order of the input."""
    table = pa.concat_tables(blocks)
    return table, np.argsort(table[KEY].to_numpy(), kind="stable")
