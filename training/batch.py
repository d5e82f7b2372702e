"""Batch: the columns of some rows, as the tensors the model reads.

One function makes it, from Parquet columns and from encoded raw rows alike, so training and scoring cannot differ.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from features.encoding import Columns, RowError
from features.schema import FeatureSchema, SparseFeature

Ids = NDArray[np.int64]


@dataclass
class Batch(Pipelineable):
    """B rows; the real ones come first, padding after. Padding has no ids, zero dense features and weight 0.

    Two real rows and one of padding (B = 3), a single-valued feature ``user`` and a multi-valued feature ``genres``::

        sparse_features   keys      row 0    row 1    padding
                          user      [7]      [3]      []            one id a row
                          genres    [4, 9]   []       []            any number of ids
                          values    [7, 3, 4, 9]                    int64, feature by feature, row by row
                          lengths   [1, 1, 0, 2, 0, 0]              int64, feature by feature, F * B
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
        """B: real rows and padding."""
        return self.labels.shape[0]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on ``device``."""
        return Batch(
            self.sparse_features.to(device, non_blocking),
            self.dense_features.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.weights.to(device, non_blocking=non_blocking),
            None if self.group_ids is None else self.group_ids.to(device, non_blocking=non_blocking),
            self.num_rows,
        )

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which copies to a GPU run beside computation."""
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


def to_batch(columns: Columns, schema: FeatureSchema, batch_size: int | None = None) -> Batch:
    """Make a batch of encoded columns, named as in the Parquet files.

    Args:
        columns: ``NAME`` (n,) for single-valued and dense features, ``NAME`` (n, max_length) with ``NAME__length`` (n,)
            for multi-valued ones; ``label``, ``weight`` and ``group_id`` (n,) are optional: 0, 1 and None.
        schema: which features, in which order.
        batch_size: rows of the batch after padding; None: no padding.

    Raises:
        RowError: a column is missing or has another number of rows, a length is out of range, or n > batch_size.
    """
    n = len(_get(columns, schema.sparse_names[0]))
    size = n if batch_size is None else batch_size
    if n > size:
        raise RowError(f"{n} rows do not fit in a batch of {size}")
    dense = np.zeros((size, len(schema.dense)), dtype=np.float32)
    for i, name in enumerate(schema.dense_names):
        dense[:n, i] = _column(columns, name, n)
    group_ids = None
    if "group_id" in columns:
        group_ids = torch.from_numpy(_padded(columns["group_id"], n, size, np.int64))
    labels = columns["label"] if "label" in columns else np.zeros(n, np.float32)
    weights = columns["weight"] if "weight" in columns else np.ones(n, np.float32)
    return Batch(
        _sparse_features(columns, schema, n, size),
        torch.from_numpy(dense),
        torch.from_numpy(_padded(labels, n, size, np.float32)),
        torch.from_numpy(_padded(weights, n, size, np.float32)),
        group_ids,
        n,
    )


def _sparse_features(columns: Columns, schema: FeatureSchema, n: int, size: int) -> KeyedJaggedTensor:
    """All ids, feature by feature. A single-valued column is copied as it is; no mask is needed."""
    lengths = np.zeros((len(schema.sparse), size), dtype=np.int64)
    parts: list[NDArray[Any]] = []
    for i, feature in enumerate(schema.sparse):
        if feature.is_multi_valued:
            parts.append(_jagged(columns, feature, n, lengths[i]))
        else:
            parts.append(_column(columns, feature.name, n))
            lengths[i, :n] = 1
    # The sums are known here; without them TorchRec would ask the device, and wait, for each of them.
    length_per_key = [len(part) for part in parts]
    values = np.empty(sum(length_per_key), dtype=np.int64)
    np.concatenate(parts, out=values)
    return KeyedJaggedTensor(
        keys=list(schema.sparse_names),
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        stride=size,
        length_per_key=length_per_key,
    )


def _jagged(columns: Columns, feature: SparseFeature, n: int, lengths: Ids) -> NDArray[Any]:
    """Ids of a multi-valued feature without their padding; its (size,) ``lengths`` are filled in."""
    padded = _column(columns, feature.name, n)
    counts = _column(columns, feature.length_name, n)
    if padded.ndim != 2:
        raise RowError(f"column {feature.name!r} must hold one list of ids a row, got shape {padded.shape}")
    width = padded.shape[1]
    if n and not 0 <= counts.min() <= counts.max() <= width:
        raise RowError(
            f"column {feature.length_name!r} must be between 0 and {width}, got {counts.min()} to {counts.max()}"
        )
    lengths[:n] = counts
    return padded[np.arange(width) < counts[:, None]]


def _get(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise RowError(f"column {name!r} is missing; there are: {', '.join(columns)}")
    return columns[name]


def _column(columns: Columns, name: str, n: int) -> NDArray[Any]:
    column = _get(columns, name)
    if len(column) != n:
        raise RowError(f"column {name!r} has {len(column)} rows where the first feature has {n}")
    return column


def _padded(column: NDArray[Any], n: int, size: int, dtype: type) -> NDArray[Any]:
    padded = np.zeros(size, dtype=dtype)
    padded[:n] = column
    return padded
