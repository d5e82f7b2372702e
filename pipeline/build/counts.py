"""Counts: how often each token and each number of a feature occurs in each split, block by block, then in all rows.

A block's counts are a table with one row for each distinct value, sorted by a few bits of the value's hash. A merging
task reads those rows of all blocks whose hashes are its own, so no process holds more than its part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import pc
from features.disk.dataset import SPLITS
from features.hashing import SPARK_SEED, hash_array, mixed

NUM_HASH_RANGES = 256
"""Number of ranges that hashes of values are cut into; as many tasks can merge counts at the same time."""

FEATURE, CODE, TEXT, NUMBER, RANGE = "feature", "code", "token", "number", "range"


@dataclass(frozen=True)
class Codes:
    """Values of one feature in one block, as places in a list of distinct tokens.

    Attributes:
        codes: (V,) int32 place of each value's token, -1 for a missing one.
        tokens: distinct tokens.
        splits: (V,) uint8 split of each value's row.
    """

    codes: NDArray[np.int32]
    tokens: pa.Array
    splits: NDArray[np.uint8]


def token_counts(features: Mapping[int, Codes]) -> pa.Table:
    """Count the tokens of a block's features.

    Args:
        features: number of the feature in the schema -> its values.

    Returns:
        Columns feature, code, token, range, and a count for each split; sorted by range.
    """
    parts = []
    for number, values in features.items():
        size = len(values.tokens)
        present = values.codes >= 0
        flat = values.codes[present].astype(np.int64) * len(SPLITS) + values.splits[present]
        times = np.bincount(flat, minlength=size * len(SPLITS)).reshape(size, len(SPLITS))
        parts.append(_table(number, TEXT, values.tokens, hash_array(values.tokens, SPARK_SEED), times))
    return _sorted(parts, TEXT, pa.string())


def number_counts(features: Mapping[int, tuple[NDArray[np.float64], NDArray[np.uint8]]]) -> pa.Table:
    """Count the numbers of a block's features; NaN is missing.

    Args:
        features: number of the feature in the schema -> (n,) numbers and (n,) splits of their rows.
    """
    parts = []
    for number, (values, splits) in features.items():
        present = ~np.isnan(values)
        found, places = np.unique(values[present] + 0.0, return_inverse=True)  # -0.0 is the same number as 0.0
        flat = places * len(SPLITS) + splits[present]
        times = np.bincount(flat, minlength=len(found) * len(SPLITS)).reshape(len(found), len(SPLITS))
        parts.append(_table(number, NUMBER, pa.array(found), mixed(found.view(np.uint64), SPARK_SEED), times))
    return _sorted(parts, NUMBER, pa.float64())


def _table(number: int, value: str, values: pa.Array, hashes: NDArray[np.uint64], times: NDArray[np.int64]) -> pa.Table:
    size = len(values)
    ranges = (hashes >> np.uint64(56)).astype(np.uint8)
    return pa.table(
        {
            FEATURE: pa.array(np.full(size, number, np.int32)),
            CODE: pa.array(np.arange(size, dtype=np.int32)),
            value: values,
            RANGE: pa.array(ranges),
            **{split: pa.array(np.ascontiguousarray(times[:, place])) for place, split in enumerate(SPLITS)},
        }
    )


def _sorted(parts: Sequence[pa.Table], value: str, dtype: pa.DataType) -> pa.Table:
    if not parts:
        parts = [_table(0, value, pa.array([], dtype), np.empty(0, np.uint64), np.empty((0, len(SPLITS)), np.int64))]
    table = pa.concat_tables(parts)
    order = np.argsort(table[RANGE].to_numpy(), kind="stable")
    return table.take(pa.array(order)).combine_chunks()


def merge_counts(blocks: Iterable[pa.Table], value: str, first: int, end: int) -> pa.Table:
    """Add up the counts of all blocks whose hashes lie in the ranges ``first`` to before ``end``.

    Returns:
        Columns feature, ``value`` and a count for each split; one row for each distinct value, in no stable order.
    """
    parts = []
    for block in blocks:
        start, stop = np.searchsorted(block[RANGE].to_numpy(), [first, end])
        parts.append(block.slice(start, stop - start).select([FEATURE, value, *SPLITS]))
    merged = pa.concat_tables(parts).group_by([FEATURE, value]).aggregate([(split, "sum") for split in SPLITS])
    return merged.rename_columns([name.removesuffix("_sum") for name in merged.column_names])


@dataclass(frozen=True)
class ValueCounts:
    """Sums over the distinct values of one feature in one split.

    Attributes:
        cardinality: number of distinct values.
        total: number of values.
        head: count of the most frequent value.
    """

    cardinality: int = 0
    total: int = 0
    head: int = 0

    def __add__(self, other: "ValueCounts") -> "ValueCounts":
        """Join the sums over two sets of values without a common one."""
        return ValueCounts(self.cardinality + other.cardinality, self.total + other.total, max(self.head, other.head))


def sum_counts(merged: pa.Table) -> dict[tuple[str, int], ValueCounts]:
    """Sum merged counts up: (split, number of the feature) -> sums; without those that have no values."""
    features = merged[FEATURE].to_numpy()
    found: dict[tuple[str, int], ValueCounts] = {}
    for split in SPLITS:
        counts = merged[split].to_numpy()
        for number in np.unique(features):
            own = counts[features == number]
            if total := int(own.sum()):
                found[split, int(number)] = ValueCounts(int((own > 0).sum()), total, int(own.max()))
    return found


def tokens_to_keep(
    merged: pa.Table, owners: Mapping[int, int], least: Mapping[int, int], known: Mapping[int, pa.Array]
) -> pa.Table:
    """Select the tokens that may have an id.

    Args:
        merged: merged counts of tokens.
        owners: number of each counted feature -> number of the first feature that shares its table.
        least: number of an owner -> least count of a token over the training rows of all features of the table.
        known: number of an owner -> tokens that a base dataset has already.

    Returns:
        The rows of ``merged`` whose token has that count, or is known, with a column ``owner``.
    """
    features = merged[FEATURE].to_numpy()
    lookup = np.zeros(max(owners, default=0) + 1, np.int32)
    for number, owner in owners.items():
        lookup[number] = owner
    table = merged.append_column("owner", pa.array(lookup[features] if len(features) else np.empty(0, np.int32)))
    sums = table.group_by(["owner", TEXT]).aggregate([("train", "sum")])
    keep = np.zeros(len(sums), bool)
    found, counts = sums["owner"].to_numpy(), sums["train_sum"].to_numpy()
    for owner, bound in least.items():
        own = found == owner
        keep |= own & (counts >= bound)
        if owner in known:
            keep |= own & pc.is_in(sums[TEXT].combine_chunks(), value_set=known[owner]).to_numpy(zero_copy_only=False)
    return table.join(sums.select(["owner", TEXT]).filter(pa.array(keep)), ["owner", TEXT], join_type="left semi")
