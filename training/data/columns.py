"""Columns of a split in memory, for passes over permuted or changed rows."""

import numpy as np
from numpy.typing import NDArray

from features.ragged import concatenate
from features.rows import Columns
from features.schema import FeatureSchema
from training.data.batch import Batch
from training.data.reader import Reader


def read_columns(reader: Reader, max_rows: int) -> Columns:
    """Read a split's columns, named as in the Parquet files; of a longer split, ``max_rows`` evenly spaced rows."""
    n = reader.num_rows
    kept = np.arange(n) if n <= max_rows else np.arange(max_rows) * n // max_rows
    parts, start = [], 0
    for batch in reader.batches(epoch=0):
        first, last = np.searchsorted(kept, (start, start + batch.num_rows))
        parts.append(_to_columns(batch, reader.schema, kept[first:last] - start))
        start += batch.num_rows
    return {name: concatenate([part[name] for part in parts]) for name in parts[0]}


def _to_columns(batch: Batch, schema: FeatureSchema, rows: NDArray[np.int64]) -> Columns:
    """Convert some real rows of a batch back to columns: the inverse of ``to_batch``."""
    columns: Columns = {"label": batch.labels.numpy()[rows], "weight": batch.weights.numpy()[rows]}
    if batch.group_ids is not None:
        columns["group_id"] = batch.group_ids.numpy()[rows]
    for feature in schema.id_features:
        bags = batch.sparse_features[feature.name]
        laid = feature.kind.to_columns(bags.values().numpy(), bags.lengths().numpy(), feature)
        columns |= {name: column[rows] for name, column in laid.items()}
    for i, name in enumerate(schema.dense_names):
        columns[name] = batch.dense_features[:, i].numpy()[rows]
    return columns
