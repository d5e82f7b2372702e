"""Batch: the columns of some rows, as the tensors the model reads.

One function makes it, from Parquet columns and from encoded raw rows alike, so training and scoring cannot differ.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from features.rows import Columns, RowError
from features.schema import FeatureSchema, SparseFeature
from training.data.row_buffer import Rows, lay_end_to_end


@dataclass
class Batch(Pipelineable):
    """B rows; the real ones come first, padding after. Padding has no ids, zero dense features and weight 0.

    Two real rows and one of padding (B = 3), a single-valued feature ``user``, a multi-valued feature ``genres`` and
    the part ``item`` of a sequence ``clicks``, whose parts come after the sparse features::

        sparse_features   keys          row 0    row 1    padding
                          user          [7]      [3]      []        one id a row
                          genres        [4, 9]   []       []        any number of ids
                          clicks__item  [5]      [6, 8]   []        any number of ids, newest first
                          values        [7, 3, 4, 9, 5, 6, 8]       int64, feature by feature, row by row
                          lengths       [1, 1, 0, 2, 0, 0, 1, 2, 0] int64, feature by feature, F * B
        dense_features    [[.1, 2], [.3, 0], [0, 0]]                (B, N) float32
        labels            [1, 0, 0]                                 (B,) float32
        weights           [1, 1, 0]                                 (B,) float32
        group_ids         [52, 52, 0]                               (B,) int64, or None
        num_rows          2                                         real rows
    """

    sparse_features: KeyedJaggedTensor
    dense_features: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    group_ids: torch.Tensor | None
    num_rows: int

    @property
    def batch_size(self) -> int:
        """Return B, the number of real rows and padding."""
        return self.labels.shape[0]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Copy the batch to ``device``."""
        return Batch(
            self.sparse_features.to(device, non_blocking),
            self.dense_features.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.weights.to(device, non_blocking=non_blocking),
            None if self.group_ids is None else self.group_ids.to(device, non_blocking=non_blocking),
            self.num_rows,
        )

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory, from which copies to a GPU run beside computation."""
        return Batch(
            self.sparse_features.pin_memory(),
            self.dense_features.pin_memory(),
            self.labels.pin_memory(),
            self.weights.pin_memory(),
            None if self.group_ids is None else self.group_ids.pin_memory(),
            self.num_rows,
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that ``stream`` reads these tensors (TorchRec's train pipeline asks for it)."""
        self.sparse_features.record_stream(stream)
        for tensor in (self.dense_features, self.labels, self.weights, self.group_ids):
            if tensor is not None:
                tensor.record_stream(stream)


def to_batch(rows: Columns | Sequence[Rows], schema: FeatureSchema, batch_size: int | None = None) -> Batch:
    """Make a batch of encoded rows.

    Args:
        rows: columns named as in the Parquet files: ``NAME`` (n,) for single-valued and dense features, ``NAME``
            (n, max_length) with ``NAME__length`` (n,) for multi-valued ones, n ``Ragged`` rows for parts of sequences;
            ``label``, ``weight`` and ``group_id`` (n,) are optional: 0, 1 and None. Or rows laid out already, to be
            put end to end.
        schema: schema with the features and their order.
        batch_size: rows of the batch after padding; None: no padding.

    Raises:
        RowError: a column is missing or has another number of rows, a length is out of range, or n > batch_size.
    """
    parts = [Rows.of(rows, schema)] if isinstance(rows, dict) else rows
    n = sum(part.num_rows for part in parts)
    size = n if batch_size is None else batch_size
    if n > size:
        raise RowError(f"{n} rows do not fit in a batch of {size}")
    dense = np.empty((size, len(schema.dense)), dtype=np.float32)
    dense[n:] = 0
    lay_end_to_end((part.dense for part in parts), dense)
    labels = _lay_named(parts, "label", np.zeros(size, dtype=np.float32))
    weights = _lay_named(parts, "weight", np.zeros(size, dtype=np.float32))
    group_ids = _lay_named(parts, "group_id", np.zeros(size, dtype=np.int64))
    if weights is None:
        weights = (np.arange(size) < n).astype(np.float32)
    return Batch(
        _sparse_features(parts, schema, n, size),
        torch.from_numpy(dense),
        torch.from_numpy(np.zeros(size, dtype=np.float32) if labels is None else labels),
        torch.from_numpy(weights),
        None if group_ids is None else torch.from_numpy(group_ids),
        n,
    )


def _lay_named(parts: Sequence[Rows], name: str, out: NDArray[Any]) -> NDArray[Any] | None:
    """Fill ``out`` from the parts' columns called ``name``; None: the parts have no such column."""
    if not all(name in part.others for part in parts):
        return None
    lay_end_to_end((part.others[name] for part in parts), out)
    return out


def _sparse_features(parts: Sequence[Rows], schema: FeatureSchema, num_rows: int, size: int) -> KeyedJaggedTensor:
    """Lay out all ids, feature by feature; neighbouring features of one id are copied as one block."""
    features = schema.id_features
    lengths = _single_lengths(len(features), num_rows, size)
    length_per_key, jagged = [num_rows] * len(features), dict[int, list[NDArray[Any]]]()
    if schema.jagged:
        lengths = lengths.copy()
        for i, feature in schema.jagged.items():
            jagged[i] = _jagged(parts, feature, lengths[i])
            # The sums are known here; without them TorchRec would ask the device, and wait, for each of them.
            length_per_key[i] = sum(map(len, jagged[i]))
    values = np.empty(sum(length_per_key), dtype=np.int64)
    start = first = 0
    for i, num_singles in _runs(len(features), tuple(schema.jagged)):
        last = first + num_singles
        block = values[start : start + num_singles * num_rows].reshape(num_singles, num_rows)
        lay_end_to_end((part.ids[first:last].T for part in parts), block.T)
        start, first = start + block.size, last
        if i is not None:
            lay_end_to_end(jagged[i], values[start:])
            start += length_per_key[i]
    return KeyedJaggedTensor(
        keys=[feature.name for feature in features],
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        stride=size,
        length_per_key=length_per_key,
    )


@functools.lru_cache(maxsize=16)
def _runs(num_features: int, jagged: tuple[int, ...]) -> list[tuple[int | None, int]]:
    """List each jagged feature's place with the number of one-id features right before it; None: the end."""
    firsts = [0, *(i + 1 for i in jagged)]
    return [(i, (num_features if i is None else i) - first) for i, first in zip([*jagged, None], firsts, strict=True)]


@functools.lru_cache(maxsize=4)
def _single_lengths(num_features: int, num_rows: int, size: int) -> NDArray[np.int64]:
    """Make (num_features, size) lengths: 1 in the first ``num_rows`` rows, else 0. Batches share it read-only."""
    lengths = np.ones((num_features, size), dtype=np.int64)
    lengths[:, num_rows:] = 0
    return lengths


def _jagged(parts: Sequence[Rows], feature: SparseFeature, lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Return a feature's ids without padding, part by part, and fill its (size,) ``lengths``."""
    lay_end_to_end((feature.kind.lengths(part.others, feature) for part in parts), lengths)
    return [feature.kind.ids(part.others, feature) for part in parts]
