"""Batch: the columns of some rows, as the tensors the model reads.

One function makes it, from Parquet columns and from encoded raw rows alike, so training and scoring cannot differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from features.encoding import Columns, RowError
from features.schema import FeatureSchema, SparseFeature


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


def to_batch(columns: Columns | Sequence[Columns], schema: FeatureSchema, batch_size: int | None = None) -> Batch:
    """Make a batch of encoded columns, named as in the Parquet files.

    Args:
        columns: ``NAME`` (n,) for single-valued and dense features, ``NAME`` (n, max_length) with ``NAME__length`` (n,)
            for multi-valued ones; ``label``, ``weight`` and ``group_id`` (n,) are optional: 0, 1 and None.
            A list of such columns is laid end to end.
        schema: which features, in which order.
        batch_size: rows of the batch after padding; None: no padding.

    Raises:
        RowError: a column is missing or has another number of rows, a length is out of range, or n > batch_size.
    """
    parts = _Parts([columns] if isinstance(columns, dict) else columns, schema.sparse_names[0])
    n = parts.num_rows
    size = n if batch_size is None else batch_size
    if n > size:
        raise RowError(f"{n} rows do not fit in a batch of {size}")
    dense = np.empty((size, len(schema.dense)), dtype=np.float32)
    dense[n:] = 0
    for i, name in enumerate(schema.dense_names):
        parts.copy(name, dense[:, i])
    labels, weights = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.float32)
    if parts.have("label"):
        parts.copy("label", labels)
    if parts.have("weight"):
        parts.copy("weight", weights)
    else:
        weights[:n] = 1
    group_ids = None
    if parts.have("group_id"):
        group_ids = np.zeros(size, dtype=np.int64)
        parts.copy("group_id", group_ids)
    return Batch(
        _sparse_features(parts, schema, size),
        torch.from_numpy(dense),
        torch.from_numpy(labels),
        torch.from_numpy(weights),
        None if group_ids is None else torch.from_numpy(group_ids),
        n,
    )


class _Parts:
    """Columns laid end to end, without joining them: each is copied once, to where it belongs in the batch."""

    def __init__(self, parts: Sequence[Columns], first: str) -> None:
        self.parts = parts
        self.lengths = [len(_get(part, first)) for part in parts]
        self.num_rows = sum(self.lengths)

    def have(self, name: str) -> bool:
        return all(name in part for part in self.parts)

    def get(self, name: str) -> list[NDArray[Any]]:
        """The column's arrays, one a part."""
        arrays = [_get(part, name) for part in self.parts]
        for array, length in zip(arrays, self.lengths, strict=True):
            if len(array) != length:
                raise RowError(f"column {name!r} has {len(array)} rows where the first feature has {length}")
        return arrays

    def copy(self, name: str, out: NDArray[Any]) -> None:
        """Copy a column into the first rows of ``out``."""
        start = 0
        for array in self.get(name):
            out[start : start + len(array)] = array
            start += len(array)


def _sparse_features(parts: _Parts, schema: FeatureSchema, size: int) -> KeyedJaggedTensor:
    """All ids, feature by feature. A single-valued column is copied as it is; no mask is needed."""
    lengths = np.ones((len(schema.sparse), size), dtype=np.int64)
    lengths[:, parts.num_rows :] = 0
    ids: list[NDArray[Any]] = []
    # The sums are known here; without them TorchRec would ask the device, and wait, for each of them.
    length_per_key = []
    for i, feature in enumerate(schema.sparse):
        if feature.is_multi_valued:
            jagged = _jagged(parts, feature, lengths[i])
            length_per_key.append(sum(map(len, jagged)))
            ids += jagged
        else:
            ids += parts.get(feature.name)
            length_per_key.append(parts.num_rows)
    values = np.empty(sum(length_per_key), dtype=np.int64)
    np.concatenate(ids, out=values)
    return KeyedJaggedTensor(
        keys=list(schema.sparse_names),
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths.reshape(-1)),
        stride=size,
        length_per_key=length_per_key,
    )


def _jagged(parts: _Parts, feature: SparseFeature, lengths: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Ids of a multi-valued feature without their padding; its (size,) ``lengths`` are filled in."""
    parts.copy(feature.length_name, lengths)
    ids, start = [], 0
    for padded in parts.get(feature.name):
        if padded.ndim != 2:
            raise RowError(f"column {feature.name!r} must hold one list of ids a row, got shape {padded.shape}")
        width, counts = padded.shape[1], lengths[start : start + len(padded)]
        if len(counts) and not 0 <= counts.min() <= counts.max() <= width:
            raise RowError(
                f"column {feature.length_name!r} must be between 0 and {width}, got {counts.min()} to {counts.max()}"
            )
        ids.append(padded[np.arange(width) < counts[:, None]])
        start += len(padded)
    return ids


def _get(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise RowError(f"column {name!r} is missing; there are: {', '.join(columns)}")
    return columns[name]
