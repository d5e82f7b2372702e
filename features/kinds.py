"""Kinds of features: what a feature of each kind is in the Parquet files, in a batch and in its table.

Whoever handles features asks their kind, so a new kind is a class here, its reading of raw values
(``features.encode``) and what a build measures of it (``pipeline.build.encode_rows``). Shapes: n rows, V ids of
all rows together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from features.hashing import MISSING_ID
from features.ragged import Ragged
from features.rows import RowError

if TYPE_CHECKING:  # a schema's features know their kind
    from features.schema import DenseFeature, FeatureSchema, SparseFeature

LENGTH_SUFFIX = "__length"

TABLE = "table"
"""Bound of a column of ids: the number of rows of the feature's table."""

Arrays = Mapping[str, Any]
"""Column name -> its values, rows first: a NumPy array, or ``Ragged`` where a row has a list of any length."""


@dataclass(frozen=True)
class Column:
    """A column of the Parquet files.

    Attributes:
        name: name of the column in the files.
        dtype: type of its numbers.
        shape: shape of one row; empty: one number.
        bound: bound of whole numbers, 0 <= v < bound; ``TABLE`` stands for the rows of the feature's table. None: any
            finite number.
        is_ragged: flag: a row has a list of any length (``Ragged``).
    """

    name: str
    dtype: type[np.generic]
    shape: tuple[int, ...] = ()
    bound: int | Literal["table"] | None = None
    is_ragged: bool = False

    @property
    def path(self) -> str:
        """Path of the column's numbers in a Parquet schema that Spark wrote."""
        return self.name + ".list.element" * (len(self.shape) + self.is_ragged)


class SingleValued:
    """One id a row; a missing value has an id of its own (0, or the out-of-vocabulary one)."""

    has_one_id = True
    """Flag: every row has exactly one id, so a batch stacks such columns and copies them as one block."""
    takes_lists = False
    """Flag: raw values are lists, or text to be split, of which ``max_length`` values are kept."""
    is_array = False
    """Flag: prepared values (before ids are known) are arrays."""

    def columns(self, feature: "SparseFeature") -> tuple[Column, ...]:
        """Columns in the Parquet files; the first one holds the ids."""
        return (Column(feature.name, np.int32, bound=TABLE),)

    def pooling(self, feature: "SparseFeature") -> Literal["mean", "sum"]:
        """Return the pooling of a row's embeddings to one vector."""
        return "sum"

    def tell_missing(self, feature: "SparseFeature", share: str) -> str:
        """Say which share of the rows has no value."""
        return f"feature {feature.name!r}: {share} of rows have no value"

    def lengths(self, columns: Arrays, feature: "SparseFeature") -> NDArray[Any]:
        """Count the ids of each row, (n,)."""
        return np.ones(len(columns[feature.name]), np.int64)

    def ids(self, columns: Arrays, feature: "SparseFeature") -> NDArray[Any]:
        """Return the ids of all rows without padding, (V,) row by row."""
        return columns[feature.name]

    def to_columns(
        self, ids: NDArray[Any], lengths: NDArray[Any], feature: "SparseFeature", padding: int = MISSING_ID
    ) -> dict[str, Any]:
        """Lay rows out as columns.

        Args:
            ids: (V,) row by row.
            lengths: (n,) how many of them each row has.
            feature: feature that the ids belong to.
            padding: what fills a row behind its last id.
        """
        return {feature.name: ids}


class Bag(SingleValued):
    """Up to ``max_length`` ids a row, padded with 0, and how many there are; a missing value is a row without ids."""

    has_one_id = False
    takes_lists = True
    is_array = True

    def columns(self, feature: "SparseFeature") -> tuple[Column, ...]:
        """Columns in the Parquet files: the padded ids, then their number."""
        ids = Column(feature.name, np.int32, (feature.max_length,), TABLE)
        return ids, Column(feature.name + LENGTH_SUFFIX, np.int32, bound=feature.max_length + 1)

    def pooling(self, feature: "SparseFeature") -> Literal["mean", "sum"]:
        """Return the feature's own pooling."""
        return feature.pooling

    def lengths(self, columns: Arrays, feature: "SparseFeature") -> NDArray[Any]:
        """Count the ids of each row, (n,)."""
        return columns[feature.name + LENGTH_SUFFIX]

    def ids(self, columns: Arrays, feature: "SparseFeature") -> NDArray[Any]:
        """Return the ids of all rows without padding, (V,) row by row.

        Raises:
            RowError: a row has more ids than there is room for.
        """
        padded, lengths = columns[feature.name], self.lengths(columns, feature)
        width = padded.shape[1]
        if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= width:
            name = feature.name + LENGTH_SUFFIX
            raise RowError(f"column {name!r} must be between 0 and {width}, got {lengths.min()} to {lengths.max()}")
        return unpadded(padded, lengths)

    def to_columns(
        self, ids: NDArray[Any], lengths: NDArray[Any], feature: "SparseFeature", padding: int = MISSING_ID
    ) -> dict[str, Any]:
        """Lay rows out as columns: padded ids and their number."""
        padded = np.full((len(lengths), feature.max_length), padding, ids.dtype)
        if len(lengths) == 1:
            padded[0, : len(ids)] = ids
        else:
            padded[np.arange(feature.max_length) < lengths[:, None]] = ids
        return {feature.name: padded, feature.name + LENGTH_SUFFIX: lengths}


class EventIds(SingleValued):
    """Any number of ids a row up to ``max_length``, newest first, without padding; no history is a row without ids."""

    has_one_id = False
    takes_lists = True
    is_array = True

    def columns(self, feature: "SparseFeature") -> tuple[Column, ...]:
        """Columns in the Parquet files: lists of any length."""
        return (Column(feature.name, np.int32, bound=TABLE, is_ragged=True),)

    def tell_missing(self, feature: "SparseFeature", share: str) -> str:
        """Say which share of the rows has no event."""
        sequence, _, _ = feature.name.rpartition("__")
        return f"sequence {sequence!r}: {share} of rows have no events"

    def lengths(self, columns: Arrays, feature: "SparseFeature") -> NDArray[Any]:
        """Count the ids of each row, (n,)."""
        return columns[feature.name].lengths

    def ids(self, columns: Arrays, feature: "SparseFeature") -> NDArray[Any]:
        """Return the ids of all rows, (V,) row by row."""
        return columns[feature.name].flat

    def to_columns(
        self, ids: NDArray[Any], lengths: NDArray[Any], feature: "SparseFeature", padding: int = MISSING_ID
    ) -> dict[str, Any]:
        """Lay rows out as a column of lists; nothing is padded."""
        return {feature.name: Ragged.of(ids, lengths)}


class Dense:
    """One float a row; a missing value is filled, and NaN stands for one that was not."""

    def columns(self, feature: "DenseFeature") -> tuple[Column, ...]:
        """Columns in the Parquet files."""
        return (Column(feature.name, np.float32),)


SINGLE_KIND, BAG_KIND, SEQUENCE_KIND, DENSE_KIND = SingleValued(), Bag(), EventIds(), Dense()


def row_columns(schema: "FeatureSchema") -> dict[str, Column]:
    """List the row's own columns by name: label, and those of weight, group id and timestamp that the schema has."""
    return {name: column for name, column in ROW_COLUMNS.items() if getattr(schema, name)}


ROW_COLUMNS = {
    "label": Column("label", np.float32),
    "weight": Column("weight", np.float32),
    "group_id": Column("group_id", np.int64),
    "timestamp": Column("timestamp", np.int64),
}
"""Columns of a row beside its features, named as the schema's keys; a batch has all but the timestamp."""

BATCH_COLUMNS = ("label", "weight", "group_id")
"""The row's own columns that a batch has, if the schema does."""


def batch_columns(schema: "FeatureSchema") -> dict[str, Column]:
    """List the columns of a batch by name: the features' in the schema's order, and the row's own."""
    own = {name: column for name, column in row_columns(schema).items() if name in BATCH_COLUMNS}
    return {"label": own.pop("label")} | {c.name: c for c in schema.columns} | own


def ids_of(columns: Arrays, feature: "SparseFeature") -> tuple[NDArray[Any], NDArray[Any]]:
    """Return a feature's ids without padding, (V,) row by row, and how many each row has, (n,)."""
    return feature.kind.ids(columns, feature), feature.kind.lengths(columns, feature)


def unpadded(ids: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Flatten (n, width) padded ids row by row; (n,) ids, one a row, stay as they are."""
    return ids if ids.ndim == 1 else ids[np.arange(ids.shape[1]) < lengths[:, None]]


def present_ids(columns: Arrays, feature: "SparseFeature") -> tuple[NDArray[Any], int]:
    """Return the ids of present values, and the number of missing ones: ids 0, and rows without ids."""
    ids, lengths = ids_of(columns, feature)
    is_missing = ids == MISSING_ID
    return ids[~is_missing], int((lengths == 0).sum()) + int(is_missing.sum())


def present_numbers(columns: Arrays, feature: "DenseFeature") -> tuple[NDArray[Any], int]:
    """Return the present numbers, and the number of missing ones (NaN)."""
    values = columns[feature.name]
    is_missing = np.isnan(values)
    return values[~is_missing], int(is_missing.sum())
