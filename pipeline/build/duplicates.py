"""Duplicates: of the good rows with equal keys the earliest is kept; of equal times, the line's smallest hash wins.

A row that lacks a part of its key is no duplicate of any other. Keys are compared by 128 bits of hash.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.hashing import SPARK_SEED, hash_array

_SECOND_SEED = 0x9E3779B97F4A7C15
FIRST_HASH, SECOND_HASH, KEY_SECONDS, TIE, ROW = "first", "second", "seconds", "tie", "row"


def key_table(
    keys: Sequence[pa.Array],
    seconds: NDArray[np.int64] | None,
    line_hashes: NDArray[np.uint64],
    rows: NDArray[np.uint64],
) -> tuple[pa.Table, int]:
    """Describe the keys of some good rows.

    Args:
        keys: (n,) texts of each column of the key, null where missing.
        seconds: (n,) Unix times; None: the schema has no time.
        line_hashes: (n,) hashes of the raw lines.
        rows: (n,) number of each row in the whole input.

    Returns:
        A table sorted by the keys' first hash, and the number of rows left out of it because a part of the key is
        missing.
    """
    complete = np.ones(len(rows), bool)
    first: NDArray[np.uint64] | int = SPARK_SEED
    second: NDArray[np.uint64] | int = _SECOND_SEED
    for texts in keys:
        if texts.null_count:
            complete &= texts.is_valid().to_numpy(zero_copy_only=False)
        first, second = hash_array(texts, first), hash_array(texts, second)
    columns = {
        FIRST_HASH: first,
        SECOND_HASH: second,
        KEY_SECONDS: np.zeros(len(rows), np.int64) if seconds is None else seconds,
        TIE: line_hashes.view(np.int64),
        ROW: rows,
    }
    order = np.flatnonzero(complete)
    order = order[np.argsort(columns[FIRST_HASH][order], kind="stable")]
    return pa.table({name: values[order] for name, values in columns.items()}), int((~complete).sum())


def later_rows(tables: Iterable[pa.Table], first: int, end: int) -> NDArray[np.uint64]:
    """List the rows that are duplicates of an earlier one.

    Args:
        tables: what ``key_table`` made of all blocks.
        first: least hash of the keys to compare.
        end: hash behind the last of them.

    Returns:
        Their numbers in the whole input, in no order.
    """
    parts = []
    for table in tables:
        hashes = table[FIRST_HASH].to_numpy()
        start, stop = (
            len(hashes) if bound >> 64 else int(np.searchsorted(hashes, np.uint64(bound))) for bound in (first, end)
        )
        parts.append(table.slice(start, stop - start))
    keys = pa.concat_tables(parts)
    columns = {name: keys[name].to_numpy() for name in keys.column_names}
    order = np.lexsort([columns[name] for name in (ROW, TIE, KEY_SECONDS, SECOND_HASH, FIRST_HASH)])
    one, two = columns[FIRST_HASH][order], columns[SECOND_HASH][order]
    again = (one[1:] == one[:-1]) & (two[1:] == two[:-1])
    return columns[ROW][order[1:][again]]
